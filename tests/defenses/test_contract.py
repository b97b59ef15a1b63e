"""What a method is told, what its answer must be, and what is recorded: tried with small methods of both kinds."""

import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meca.defenses import DETECTORS, Judgement, Method, Repaired, Samples, Scene
from meca.errors import MecaError
from meca.training.engine import predict
from meca.training.trainer import as_input
from tests.defenses.scenes import scene


def tuned(model: nn.Module, samples: Samples, steps: int, lr: float) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        loss = F.cross_entropy(model(as_input(samples.images)), samples.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def fine_tuning(scene: Scene, *, steps: int, lr: float) -> Repaired:
    """Train a copy of the model on clean samples."""
    assert scene.rate is None, "it did not ask for the rate"
    assert scene.clean is not None
    return Repaired(tuned(copy.deepcopy(scene.model), scene.clean, steps, lr))


def without_suspects(scene: Scene, *, steps: int, lr: float) -> Repaired:
    """Train on what a detector leaves, and keep the weights in the method's own folder."""
    assert scene.rate is None and scene.clean is None and scene.checkpoints is not None
    judgement = DETECTORS["clusters"](scene)
    kept = torch.from_numpy(~judgement.flagged)
    model = tuned(scene.fresh("without"), Samples(scene.train.images[kept], scene.train.labels[kept]), steps, lr)
    (scene.checkpoints / "done").write_bytes(b"weights")
    return Repaired(model, judgement)


TUNING = Method(fine_tuning, 'Liu et al., "Fine-Pruning", RAID 2018', {"steps": 30, "lr": 0.5}, frozenset({"clean"}))


def bright(n: int) -> Samples:
    """Images with a white corner that are rightly called class 0."""
    made, _ = scene(n, n)
    return Samples(made.train.images, torch.zeros(n, dtype=torch.int64))


def test_a_defence_gets_the_clean_samples_that_it_says_it_needs_and_returns_a_model():
    made = replace(scene()[0], clean=bright(50))
    before = predict(made.model, made.clean.images).argmax(1)
    repaired = TUNING(made)
    assert before.eq(1).all() and predict(repaired.model, made.clean.images).argmax(1).eq(0).all()
    assert predict(made.model, made.clean.images).argmax(1).eq(1).all(), "the model that it was given is as it was"
    assert repaired.judgement is None and not repaired.model.training
    assert TUNING.record(made) == {"paper": TUNING.paper, "settings": {"steps": 30, "lr": 0.5}, "told_rate": None, "clean_samples": 50}


def test_a_defence_that_judges_and_keeps_its_state_is_told_neither_rate_nor_clean_samples(tmp_path):
    method = Method(without_suspects, 'Chen et al., "x", 2018', {"steps": 2, "lr": 0.1})
    made = replace(scene()[0], clean=bright(5), checkpoints=tmp_path)
    repaired = method(made)
    assert repaired.judgement is not None and repaired.judgement.flagged.sum() == 40
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    assert method.record(made)["clean_samples"] == 0 and method.record(made)["told_rate"] is None
    assert DETECTORS["spectral"].record(made)["told_rate"] == 0.1


def test_a_method_whose_needs_are_not_met_is_not_run():
    with pytest.raises(MecaError, match=r"scene with clean for fine_tuning, got none"):
        TUNING(scene()[0])
    with pytest.raises(MecaError, match=r"scene with rate for spectral, got none"):
        DETECTORS["spectral"](replace(scene()[0], rate=None))


@pytest.mark.parametrize(
    "suspicion, flagged",
    [
        (np.zeros(399), np.zeros(400, dtype=bool)),
        (np.zeros(400), np.zeros(399, dtype=bool)),
        (np.zeros((400, 1)), np.zeros((400, 1), dtype=bool)),
        (np.zeros(400, dtype=np.float32), np.zeros(400, dtype=bool)),
        (np.zeros(400), np.zeros(400)),
        (np.full(400, np.nan), np.zeros(400, dtype=bool)),
        (np.full(400, -np.inf), np.zeros(400, dtype=bool)),
    ],
)
@pytest.mark.parametrize("repaired", [False, True])
def test_an_answer_that_does_not_fit_the_samples_is_refused(suspicion, flagged, repaired):
    def wrong(scene: Scene) -> Judgement | Repaired:
        judgement = Judgement(suspicion, flagged)
        return Repaired(scene.model, judgement) if repaired else judgement

    with pytest.raises(MecaError, match="finite number and a flag for each of 400 samples"):
        Method(wrong, "", {})(scene()[0])


def test_the_registry_gives_every_number_that_a_method_takes():
    for name, method in DETECTORS.items():
        taken = [parameter for parameter in inspect.signature(method.run).parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]
        assert [parameter.name for parameter in taken] == list(method.settings), name
        assert all(parameter.default is parameter.empty for parameter in taken), f"{name} hides a number in its signature"
