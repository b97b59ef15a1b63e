"""Detectors see the network and the images of the run that they stand beside, and the table says what the rows say."""

import json

import numpy as np
import torch

from benchmarks.quality import detector_tables, detectors
from meca import defenses
from meca.data.store import open_store
from meca.files import read_json
from meca.metrics import accuracy
from meca.params import PACKAGED, read_params, with_settings
from meca.pipeline import run as pipeline
from meca.training.engine import predict


def test_the_network_is_the_reference_of_the_run(tmp_path):
    settings = {
        "ingest.source": "shapes", "ingest.shapes_train": 200, "ingest.shapes_test": 100, "network.width": 8, "detector.width": 8,
        "partition.recipe.epochs": 1, "partition.recipe.min_steps": 4, "train_clean.epochs": 2, "train_clean.min_steps": 4,
        "split.recipe.epochs": 1, "split.recipe.min_steps": 0, "split.rounds": 1,
        "control.when": "never",
    }  # fmt: skip
    params = with_settings(read_params(PACKAGED), settings | {"preset": "default", "seed": 5, "poison.attack": "badnet"})
    pipeline(tmp_path / "run", params)
    made, truth = detectors.scene_of(tmp_path / "scene", params)
    reference = read_json(tmp_path / "run" / "work" / "evaluate" / "evaluation.json")["references"]["plain"]["no_defence"]
    store = open_store(tmp_path / "scene" / "data" / "store")
    seen = predict(made.model, torch.from_numpy(store.pixels(store.test))).argmax(1).numpy()
    assert accuracy(seen, store.labels[store.test], len(store.info.class_names))["confusion"] == reference["confusion"]
    assert truth["is_poisoned"].sum() == 10 and made.rate == 0.05


def test_a_set_without_an_attack_has_false_alarms_only(tmp_path):
    settings = {"ingest.source": "shapes", "ingest.shapes_train": 200, "ingest.shapes_test": 100, "network.width": 8, "train_clean.epochs": 1}
    made, truth = detectors.scene_of(tmp_path, with_settings(read_params(PACKAGED), settings | {"seed": 5, "poison.attack": "none"}))
    assert made.rate == 0 and not truth["is_poisoned"].any()
    flagged = np.arange(200) < 10
    labels = made.train.labels.numpy()
    inside = 10 / np.isin(labels, labels[:10]).sum()
    found = detectors.judge(defenses.Judgement(flagged * 1.0, flagged), made.train.labels, truth)
    assert found == {
        "tpr": None, "fpr": 0.05, "fpr_flagged": inside, "auroc": None, "auroc_target": None, "tpr_at": None, "evidence": found["evidence"],
    }  # fmt: skip
    assert sum(found["evidence"]["flagged"].values()) == 10 and len(json.dumps(found["evidence"])) < 1000


def test_every_detector_has_its_line():
    assert tuple(defenses.DETECTORS) == detector_tables.DETECTORS


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
