"""Stage enhance: both methods, and a killed stage ends in the same bytes."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meca.data.store import open_store, read_parquet
from meca.method.enhance import SIDES
from meca.models import load_model, read_description
from meca.params import PRESETS
from meca.progress import Progress
from meca.training.engine import predict
from tests.stages.chain import N_TRAIN, outputs, quick, step, with_inputs

Finished = Callable[..., Path]


def test_two_outputs_leave_margins_of_all_sides_and_a_network_with_twice_the_classes(finished: Finished) -> None:
    out = finished() / "work" / "enhance"
    table = read_parquet(out / "scores.parquet")
    assert table.column_names == ["row", "sample_id", *(f"{name}_{side}" for side in SIDES for name in ("margin", "called")), "suspicion"]
    names = open_store(finished() / "data" / "store").info.class_names
    assert read_description(out).class_names == (*names, *(f"{name} (suspect)" for name in names))
    margins = {side: table[f"margin_{side}"].to_numpy() for side in SIDES}
    suspicion = table["suspicion"].to_numpy()
    assert any(np.allclose(suspicion, 1 / (1 + np.exp(-margin)), atol=1e-6) for margin in margins.values())
    assert not any(np.allclose(margins[a], margins[b]) for a, b in itertools.combinations(SIDES, 2))


def test_unlearning_leaves_the_predictions_of_the_model_that_it_writes(finished: Finished) -> None:
    out, store = finished("paper") / "work" / "enhance", open_store(finished("paper") / "data" / "store")
    table = read_parquet(out / "scores.parquet")
    assert table.column_names == ["row", "sample_id", "suspicion", "kl_suspicion", "predicted"]
    logits = predict(load_model(out), torch.from_numpy(np.array(store.images[:N_TRAIN])))
    assert np.array_equal(table["predicted"].to_numpy(), logits.argmax(1).numpy())
    given = logits.softmax(1)[torch.arange(N_TRAIN), torch.from_numpy(np.array(store.labels[:N_TRAIN]))]
    assert np.allclose(table["suspicion"].to_numpy(), given.numpy(), atol=1e-6)


def test_the_share_of_the_clean_part_grows_from_round_to_round(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("enhance", finished("paper"), tmp_path)
    step("enhance", folder, quick("paper", enhance__rounds=3))
    lines = [json.loads(line) for line in (folder / "work" / "enhance" / "curves.jsonl").read_text().splitlines()]
    assert [(line["step"], line["alpha"]) for line in lines] == [(1, 0.1), (2, 0.5), (3, 0.9)]


class Killed(BaseException):
    pass


class Stop(Progress):
    """Progress that stops the run when it is told of the given point."""

    def __init__(self, what: str, done: int) -> None:
        super().__init__(quiet=True)
        self.at = (what, done)

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        if (what, done) == self.at:
            raise Killed


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("done", [1, 2])
def test_a_killed_stage_ends_in_the_bytes_of_an_uninterrupted_one(preset: str, done: int, finished: Finished, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"enhance__rounds": 2}
    whole, parts = (with_inputs("enhance", finished(preset), tmp_path / name) for name in ("whole", "parts"))
    step("enhance", whole, quick(preset, **changes))
    with pytest.raises(Killed):
        step("enhance", parts, quick(preset, **changes), progress=Stop("enhance: low" if preset == "default" else "enhance", done))
    assert not (parts / "work" / "enhance").exists() and list((parts / "scratch" / "checkpoints").rglob("*.safetensors"))
    step("enhance", parts, quick(preset, **changes))
    for file in (whole / "work" / "enhance").iterdir():
        assert file.read_bytes() == (parts / "work" / "enhance" / file.name).read_bytes(), file.name
    assert outputs("enhance", whole) == outputs("enhance", parts)
