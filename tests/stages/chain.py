"""The stages of the method on a tiny set: 96 images of 16x16, a narrow network, one or two passes."""

import hashlib
import importlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from meca.attacks import ATTACKS
from meca.data.store import Store, open_store, pixel_id, write_store
from meca.files import sha256_tree
from meca.params import PRESETS, Params
from meca.pipeline import paths_of
from meca.stages.graph import graph
from meca.stages.runtime import execute
from tests.making import settings
from tests.method.tiny import CLASSES, samples

METHOD = ("poison", "partition", "enhance", "split", "train_clean", "relabel_finetune", "evaluate")
MODULES = {name: importlib.import_module(f"meca.stages.{name}") for name in METHOD}
N_TRAIN, N_TEST = 96, 32

# Thresholds under which the tiny set has a verdict `poisoned` and something to relabel: the content is tested elsewhere.
QUICK = {
    "partition.recipe.epochs": 2, "partition.recipe.min_steps": 0, "partition.recipe.batch_size": 16,
    "enhance.recipe.epochs": 1, "enhance.recipe.batch_size": 16, "enhance.rounds": 1,
    "split.recipe.epochs": 1, "split.recipe.min_steps": 0, "split.recipe.batch_size": 16, "split.rounds": 1, "split.probe": 8,
    "split.false_discovery": 1.0, "split.cap_flagged": 1.0, "split.cap_left": 0.0,
    "train_clean.epochs": 12, "train_clean.min_steps": 0, "train_clean.batch_size": 16,
    "relabel_finetune.recipe.epochs": 1, "relabel_finetune.recipe.batch_size": 16, "relabel_finetune.confidence": 0.0,
    "network.width": 4, "detector.width": 4, "poison.rate": 0.1,
}  # fmt: skip


NOTHING: dict[str, Any] = {"split__least_content": 1e9, "split__least_flips": 1e9, "split__false_discovery": 0.01}  # no class can be proven


def quick(preset: str = "default", attack: str = "badnet", **changes: Any) -> Params:
    return settings(**{"preset": preset, "poison.attack": attack, **QUICK, **changes})


def easy(n: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = samples(n, seed=3, size=16)
    return images.numpy(), labels.numpy()


def make_store(path: Path, n_train: int = N_TRAIN, n_test: int = N_TEST, made: Callable[[int], tuple[np.ndarray, np.ndarray]] = easy) -> Store:
    """Write a store of images of 16x16, uint8 [n h w c] with their labels int64 [n], which `made` returns for a number of them."""
    images, labels = made(n_train + n_test)
    lines = [
        {
            "sample_id": pixel_id(image), "source": f"tiny#{row}", "split": "train" if row < n_train else "test", "row": row,
            "label": int(label), "class_name": f"class {label}", "width": 16, "height": 16, "mode": "RGB", "format": "raw",
            "bytes": image.nbytes, "offset": -1, "reason": None, "notes": [],
        }
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]  # fmt: skip
    write_store(path, images, lines, [f"class {c}" for c in range(CLASSES)], {"kind": "arrays", "name": "tiny", "options": {}})
    return open_store(path)


def paths(name: str, folder: Path) -> dict[str, Path]:
    return paths_of(MODULES[name], name, folder)


def step(name: str, folder: Path, params: Params, **options: Any) -> dict[str, Any]:
    """Run one stage in a folder laid out as dvc.yaml says."""
    return execute(MODULES[name], paths(name, folder), params, scratch=folder / "scratch", **options)


def run(folder: Path, params: Params, names: Iterable[str] = METHOD, n_test: int = N_TEST) -> Path:
    if not (folder / "data" / "ingested").exists():
        make_store(folder / "data" / "ingested", n_test=n_test)
    for name in names:
        step(name, folder, params)
    return folder


def outputs(name: str, folder: Path) -> dict[str, str]:
    """Return the hash of each output of a stage."""
    return {path: sha256_tree(folder / path) for path in graph()[name][1]}


def with_inputs(name: str, source: Path, folder: Path) -> Path:
    """Copy what a stage declares to read, and nothing else, into another folder."""
    for path in graph()[name][0]:
        shutil.copytree(source / path, folder / path)
    return folder


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


ATTACKED = ["none", *ATTACKS]
__all__ = [
    "ATTACKED",
    "METHOD",
    "MODULES",
    "NOTHING",
    "N_TEST",
    "N_TRAIN",
    "PRESETS",
    "make_store",
    "outputs",
    "paths",
    "quick",
    "run",
    "step",
    "with_inputs",
]
