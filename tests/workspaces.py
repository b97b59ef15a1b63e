"""Finished workspaces in a second: real stores, networks that do what is asked of them, the files that the stages leave."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from meca.data.store import Store
from meca.files import canonical_json, sha256_tree
from meca.metrics import accuracy
from meca.models import Architecture, Description, build, load_model, save_model
from meca.release.manifest import listing, root_of
from meca.training.engine import features
from tasks.dvc.workspace import create
from tests.making import encode, ingest, publish_store

COLOURS = ("blue", "green", "red")
STAGES = ("relabel_finetune", "evaluate")  # those that the record is told of here: each takes MLflow a third of a second
GATES = {"promote.min_acc": 0.3, "promote.min_recall": 0.0, "promote.max_leak": 0.5, "promote.max_leak_of_power": 99.0}


def receipt_of(stage: str) -> str:
    return f"work/receipts/{stage}.json"


def colours(folder: Path, n: int = 10, size: int = 8, names: Sequence[str] = COLOURS, judged_at: int | None = None) -> Store:
    """Ingest an ImageFolder of noisy images in one colour each: n of each class for training and n for evaluation."""
    rng = np.random.default_rng(5)
    for split in ("train", "test"):
        for label, name in enumerate(names):
            place = folder / "data" / "pictures" / split / name
            place.mkdir(parents=True)
            for i in range(n):
                image = rng.integers(0, 30, (size, size, 3), np.uint8)
                image[..., 2 - label % 3] += 150
                (place / f"{i:02d}.png").write_bytes(encode(image))
    return ingest(folder / "data" / "pictures", folder / "data" / "store", size=judged_at or size)


def network(store: Store, folder: Path, seed: int, confused: Sequence[int] = ()) -> nn.Module:
    """Write a network whose last layer is fitted to all images; the classes in `confused` are taken for class 0."""
    info = store.info
    description = Description(Architecture("compact", "s2d", 8), info.class_names, info.height, info.width, info.channels, (0.5,) * 3, (0.25,) * 3)
    model = build(description, torch.Generator().manual_seed(seed)).eval()
    known = features(model, torch.from_numpy(store.pixels(slice(0, store.info.n)))).numpy()
    wanted = np.eye(len(info.class_names))[[0 if label in confused else label for label in store.labels]]
    weights = np.linalg.lstsq(np.hstack([known, np.ones((len(known), 1))]), wanted, rcond=None)[0]
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weights[:-1].T))
        last.bias.copy_(torch.from_numpy(weights[-1]))
    save_model(model, description, folder)
    return load_model(folder)


def finished(folder: Path, seed: int = 0, confused: Sequence[int] = (), verdict: str = "no_evidence", **how: Any) -> Path:
    """Make a workspace as a run leaves it, up to stage `track`, and return it."""
    settings = {key: how.pop(key) for key in list(how) if "." in key}
    create(folder, {**GATES, **settings}, code=False)
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["track"]
    pipeline["cmd"] = re.sub(r"--receipts .*?--store", f"--receipts {' '.join(map(receipt_of, STAGES))} --store", pipeline["cmd"])
    pipeline["deps"] = ["published", "report", "work/relabel_finetune"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"track": pipeline}}))
    store = colours(folder, **how)
    published = publish_store(store, folder, {0: ("poisoned", "remove", None)} if verdict == "poisoned" else {}, verdict)
    shutil.rmtree(folder / "scratch")
    work = folder / "work"
    network(store, work / "relabel_finetune", seed, confused)
    for name in ("model.json", "model.safetensors") if verdict != "inconclusive" else ():
        shutil.copyfile(work / "relabel_finetune" / name, published / "model" / name)
    manifest = json.loads((published / "manifest.json").read_text())
    manifest["files"] = listing(published)
    assert manifest["sanitized_sha256"] == root_of(manifest["files"])
    (published / "manifest.json").write_text(canonical_json(manifest))
    (work / "relabel_finetune" / "curves.jsonl").write_text(
        '{"phase": "train", "epoch": 1, "loss": 1.5}\n{"phase": "train", "epoch": 2, "loss": 0.5}\n'
    )
    logits = load_model(work / "relabel_finetune")(torch.from_numpy(store.pixels(store.test)).permute(0, 3, 1, 2).float() / 255)
    final = accuracy(logits.argmax(1).numpy(), store.labels[store.test], len(store.info.class_names))
    (work / "evaluate").mkdir()
    (work / "evaluate" / "evaluation.json").write_text(json.dumps({"final": final}))
    (folder / "report").mkdir()
    (folder / "report" / "report.html").write_text("<p>the page</p>")
    digest = sha256_tree(work / "relabel_finetune")
    for stage in STAGES:
        receipt = {
            "stage": stage, "key": f"{seed}-{'-'.join(map(str, confused))}-{stage}", "seconds": 1.0, "peak_mib": 10.0, "timings": {"train": 0.5},
            "metrics": {"acc": final["acc"]} if stage == "evaluate" else {}, "versions": {"meca": "0"}, "outputs": {},
            "inputs": {"relabel_finetune": digest} if stage == "evaluate" else {},
            "params": {"seed": 3, "relabel_finetune": {"probe": 7}} if stage == "relabel_finetune" else {"seed": 3},
        }  # fmt: skip
        (work / "receipts").mkdir(exist_ok=True)
        (folder / receipt_of(stage)).write_text(json.dumps(receipt))
    return folder
