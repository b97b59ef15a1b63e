"""What a run costs is counted in samples: each pass of a network once, by its kind, and never guessed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules import module

from meca.method.scoring import consistency, folded, patch_masks
from meca.training.engine import features, predict
from tasks import environment
from tasks.benchmark.seen import KINDS, UNCOUNTED, WEIGHTS, Seen, cost, plain_training
from tests.making import settings
from tests.method.tiny import network, recipe, samples, train

IMAGES, LABELS = samples(40)
COUNTS = st.fixed_dictionaries({kind: st.integers(0, 10**9) for kind in KINDS})


def test_every_pass_is_counted_once_by_its_kind(tmp_path: Path) -> None:
    keep = torch.arange(40) < 20
    x, masks = IMAGES.permute(0, 3, 1, 2).float() / 255, patch_masks(3, 8, 8, 2, 0.25, torch.Generator().manual_seed(0))
    with Seen(tmp_path) as seen:
        model = train(network(), IMAGES, LABELS, keep, recipe(epochs=3))
        seen.finished("partition", 1.0)
        predict(model, IMAGES, 16)
        features(model, IMAGES[:7])
        seen.finished("enhance", 1.0)
        consistency(folded(model), x, LABELS, masks, 0.01)  # one gradient of the input, and a pass for each of three masks
        seen.finished("split", 1.0)
    predict(model, IMAGES)
    assert seen.stages == {
        "partition": {"trained": 3 * 16, "graded": 0, "forward": 0},  # of 20 samples two batches of 8; the rest waits
        "enhance": {"trained": 0, "graded": 0, "forward": 47},
        "split": {"trained": 0, "graded": 40, "forward": 120},
    }
    assert Seen(tmp_path).stages == seen.stages, "it stands beside the run"


def test_what_was_not_counted_is_unknown(tmp_path: Path) -> None:
    with Seen(tmp_path) as seen:
        seen.finished("partition", None)  # finished by a start that was killed before it wrote the count
    assert seen.stages == {"partition": None} and cost(seen.stages, 10) is None
    (tmp_path / ".meca" / "checkpoints" / "split-0123-4567").mkdir(parents=True)
    with Seen(tmp_path) as seen:
        for name in ("enhance", "split"):
            predict(network(), IMAGES)
            seen.finished(name, 1.0)
    assert seen.stages == {"partition": None, "enhance": {"trained": 0, "graded": 0, "forward": 40}, "split": None}, "it goes on from a checkpoint"


def test_on_a_gpu_nothing_is_counted_and_nothing_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    for device, counted in (("cpu", {"trained": 0, "graded": 0, "forward": 40}), ("", None)):
        monkeypatch.setenv("MECA_DEVICE", device)
        with Seen(tmp_path / device) as seen:
            assert bool(module._global_forward_pre_hooks) == (device == "cpu")
            predict(network(), IMAGES)
            seen.finished("partition", 1.0)
        assert seen.stages == {"partition": counted} and not module._global_forward_pre_hooks


def test_a_stage_that_was_finished_before_keeps_its_count(tmp_path: Path) -> None:
    for seconds in (1.0, None):
        with Seen(tmp_path) as seen:
            if seconds:
                predict(network(), IMAGES)
            seen.finished("partition", seconds)
    assert seen.stages["partition"] == {"trained": 0, "graded": 0, "forward": 40}


@given(stages=st.dictionaries(st.sampled_from(("partition", "enhance", "split", *UNCOUNTED)), COUNTS), plain=st.integers(1, 10**6))
def test_a_cost_is_the_weighted_sum_over_a_plain_training_without_what_is_no_part_of_it(stages: dict, plain: int) -> None:
    counted = [found for name, found in stages.items() if name not in UNCOUNTED]
    if not counted:
        assert cost(stages, plain) is None
        return
    whole = sum(3 * found["trained"] + 2 * found["graded"] + found["forward"] for found in counted)
    assert cost(stages, plain) == pytest.approx(whole / 3 / plain)
    assert cost({**stages, "train_clean": None}, plain) is None and cost({**stages, "evaluate": None}, plain) == cost(stages, plain)


def test_a_training_of_everything_costs_one(tmp_path: Path) -> None:
    how = {"train_clean.epochs": 2, "train_clean.min_steps": 0, "train_clean.batch_size": 8}
    assert plain_training(settings(**how), 40) == 80 and plain_training(settings(**how), 5) == 10
    assert plain_training(settings(**how | {"train_clean.min_steps": 11}), 43) == 3 * 40
    with Seen(tmp_path) as seen:
        train(network(), IMAGES, LABELS, torch.ones(40, dtype=torch.bool), recipe(epochs=2))
        seen.finished("train_clean", 1.0)
    assert cost(seen.stages, 80) == 1 and WEIGHTS["trained"] == 1
