"""The published detectors find what they were made to find, by the rule of their paper, and the table says what the rows say."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.quality import detector_tables, detectors
from meca.data.store import open_store
from meca.files import read_json
from meca.metrics import accuracy, auroc
from meca.models import Description, NetworkParams
from meca.params import PACKAGED, read_params, with_settings
from meca.pipeline import run as pipeline
from meca.training.engine import predict

SIDE = 8


class Corner(nn.Module):
    """Its features are the mean of a picture and of its corner; a bright corner makes class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 10.0]]))
            self.head.bias.copy_(torch.tensor([0.0, -7.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([x.mean((1, 2, 3)), x[:, :, -3:, -3:].mean((1, 2, 3))], 1))


def scene(n: int = 200, poisoned: int = 20, classes: int = 2) -> tuple[detectors.Scene, np.ndarray]:
    """Noise with labels by chance; the first samples have a white corner and are called class 1."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 140, (n, SIDE, SIDE, 3), np.uint8)
    labels = rng.integers(0, classes, n)
    images[:poisoned, -3:, -3:], labels[:poisoned] = 255, 1
    description = Description(
        NetworkParams("compact", "s2d", 8), tuple(str(c) for c in range(classes)), SIDE, SIDE, 3, (0.4, 0.4, 0.4), (0.1, 0.1, 0.1)
    )
    made = detectors.Scene(torch.from_numpy(images), torch.from_numpy(labels), description, Corner().eval(), poisoned / n, 3)
    return made, np.arange(n) < poisoned


def in_class(found: detectors.Found, made: detectors.Scene, truth: np.ndarray) -> float:
    value = auroc(found.suspicion, truth, made.labels.numpy() == 1)
    assert value is not None
    return value


@pytest.mark.parametrize("name", ["spectral", "clusters"])
def test_features_that_stand_apart_are_found(name):
    made, truth = scene()
    found = detectors.DETECTORS[name](made)
    assert in_class(found, made, truth) == 1
    labels = made.labels.numpy()
    if name == "spectral":
        poisoned = int(truth.sum())
        assert [int(found.flagged[labels == c].sum()) for c in (0, 1)] == [min(int(1.5 * poisoned), int((labels == c).sum()) // 2) for c in (0, 1)]
        assert found.flagged[truth].all(), "who knows how much there is finds all of what stands apart"
    else:
        assert np.array_equal(found.flagged[labels == 1], truth[labels == 1])


def test_a_cluster_that_holds_half_of_a_class_is_not_flagged():
    made, truth = scene(poisoned=60)
    found = detectors.clusters(made)
    assert (made.labels.numpy() == 1).sum() < 60 / detectors.SMALLER and not found.flagged[truth].any() and in_class(found, made, truth) == 1


def test_a_prediction_that_stays_when_the_pixels_are_scaled_is_suspicious():
    made, truth = scene()
    before = predict(made.model, made.images).argmax(1).numpy()
    assert np.array_equal(before == 1, truth)
    found = detectors.scaling(made)
    stays = []
    for scale in detectors.SCALES:
        pictures = np.clip((made.images.numpy() / 255 - detectors.SHIFT) * scale, 0, 1)
        stays.append(predict(made.model, torch.from_numpy(np.round(pictures * 255).astype(np.uint8))).argmax(1).numpy() == before)
    assert np.allclose(found.suspicion, 2 * np.mean(stays, axis=0) - 1)
    assert np.array_equal(found.flagged, found.suspicion > 0)
    assert found.flagged[truth].all()  # what is white stays white; grey noise is white at high scales, too, and is called class 1 then
    assert found.suspicion[~truth].max() < 1


def test_what_is_learnt_first_is_isolated():
    made, truth = scene(n=400, poisoned=40)
    found = detectors.isolation(made)
    value = auroc(found.suspicion, truth, np.ones(len(truth), dtype=bool))
    assert value is not None and value > 0.95  # labels by chance cannot be learnt, a corner can
    assert found.flagged.sum() == 4 and found.suspicion[found.flagged].min() >= found.suspicion[~found.flagged].max()


def test_the_samples_whose_features_move_most_are_flagged():
    made, _ = scene()
    found, again = detectors.transforms(made), detectors.transforms(made)
    assert np.array_equal(found.suspicion, again.suspicion) and np.isfinite(found.suspicion).all()
    assert found.flagged.sum() == int(detectors.MOVED * 200)
    assert found.suspicion[found.flagged].min() >= found.suspicion[~found.flagged].max()


def test_a_picture_is_turned_about_its_middle_and_shifted():
    images = torch.zeros(64, 33, 33, 3, dtype=torch.uint8)
    images[:, 14:19, 14:19] = 200
    turned = detectors._rotated(images, torch.Generator().manual_seed(0))
    assert turned.shape == images.shape and turned.dtype == torch.uint8
    place = torch.nonzero(turned[..., 0] > 100).float()
    centres = torch.stack([place[place[:, 0] == i][:, 1:].mean(0) for i in range(64)])
    assert (centres - 16).abs().max() < 0.3 * 33 and centres.std(0).min() > 1.5  # a fifth of the side, along turned axes
    images[:, 2:5, 2:5] = 200
    again = detectors._rotated(images, torch.Generator().manual_seed(0))
    assert torch.equal(again, detectors._rotated(images, torch.Generator().manual_seed(0))) and not torch.equal(again[0], again[1])


def test_the_network_is_the_reference_of_the_run(tmp_path):
    settings = {
        "ingest.source": "shapes", "ingest.shapes_train": 200, "ingest.shapes_test": 100, "network.width": 8, "detector.width": 8,
        "partition.recipe.epochs": 1, "partition.recipe.min_steps": 4, "train_clean.epochs": 2, "train_clean.min_steps": 4, "second_look.rounds": 0,
    }  # fmt: skip
    params = with_settings(read_params(PACKAGED), settings | {"preset": "default", "seed": 5, "poison.attack": "badnet"})
    pipeline(tmp_path / "run", params)
    made, truth = detectors.scene_of(tmp_path / "scene", params)
    reference = read_json(tmp_path / "run" / "work" / "evaluate" / "evaluation.json")["no_defence"]
    store = open_store(tmp_path / "scene" / "data" / "store")
    seen = predict(made.model, torch.from_numpy(store.pixels(store.test))).argmax(1).numpy()
    assert accuracy(seen, store.labels[store.test], len(store.info.class_names))["confusion"] == reference["confusion"]
    assert truth["is_poisoned"].sum() == 10 and made.rate == 0.05


def test_a_set_without_an_attack_has_false_alarms_only(tmp_path):
    settings = {"ingest.source": "shapes", "ingest.shapes_train": 200, "ingest.shapes_test": 100, "network.width": 8, "train_clean.epochs": 1}
    made, truth = detectors.scene_of(tmp_path, with_settings(read_params(PACKAGED), settings | {"seed": 5, "poison.attack": "none"}))
    assert made.rate == 0 and not truth["is_poisoned"].any()
    flagged = np.arange(200) < 10
    assert detectors.judge(detectors.Found(flagged * 1.0, flagged), made.labels, truth) == {
        "tpr": None, "fpr": 0.05, "auroc": None, "auroc_target": None, "tpr_at": None,
    }  # fmt: skip


def test_every_detector_has_its_line():
    assert tuple(detectors.DETECTORS) == detector_tables.DETECTORS


def row(name: str, attack: str, **more: object) -> dict:
    return {
        "name": name, "experiment": "cifar10-10k", "attack": attack, "seed": 1, "tpr": 0.5, "fpr": 0.04, "auroc": 0.75, "auroc_target": 0.6,
        "tpr_at": 0.55, "command": "python -m x", "commit": "c", "date": "2026-11-22", "hardware": "h", "torch": "t", "seconds": 1,
        **more,
    }  # fmt: skip


def test_the_table_has_our_figures_of_the_same_cell_only():
    ours = row("", "badnet", preset="default", tpr=0.97, fpr=0.01, auroc=0.99, auroc_target=0.98, no_defence_asr=0.8)
    del ours["tpr_at"], ours["name"]
    ours["separation"] = {"final": {"roc": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.98, 1, 1, 1, 1, 1, 1]}}
    quality = [
        ours,
        {**ours, "seed": 2, "tpr": 0.0},
        {**ours, "preset": "paper", "tpr": 0.0},
        {**ours, "attack": "wanet", "no_defence_asr": 0.1, "tpr": 0.0},
    ]
    text = detector_tables.section([row("spectral", "badnet"), row("spectral", "wanet", tpr=0.1), row("clusters", "badnet", tpr=None)], quality)
    lines = text.splitlines()
    assert "| detector | badnet | wanet † | mean |" in lines
    assert "| meca, default | 97.0/1.0 | 0.0/1.0 | 97.0/1.0 |" in lines  # an attack that does not work is in no mean
    assert "| spectral | 50.0/4.0 | 10.0/4.0 | 50.0/4.0 |" in lines and "| clusters | –/4.0 | not run | –/4.0 |" in lines
    assert "| meca, default | 98.0 | 98.0 | 98.0 |" in lines and "| spectral | 0.750/0.600 | 0.750/0.600 | 0.750/0.600 |" in lines
    text = detector_tables.section(
        [row("clusters", "none", tpr=None, fpr=0.3)], [{**ours, "attack": "none", "tpr": None, "fpr": 0.0, "no_defence_asr": None}]
    )
    assert "| detector | none | mean |" in text and "| meca, default | –/0.0 |" in text and "| clusters | –/30.0 |" in text
    assert detector_tables.section([], quality) == ""
