"""Published detectors of poison on the very samples that the default preset was run on, into results/detectors.jsonl.

    python -m benchmarks.quality.detectors           all cells of `EXPERIMENTS` that have no row yet
    python -m benchmarks.quality.detectors --only cifar10-10k --attack blend --seeds 101
    python -m benchmarks.quality.detectors --again   measure anew; the newest row counts

The detectors are those of `meca.defenses`, with the paper's own numbers for all attacks, on the network, the images and the seed of the row in
quality.jsonl; what looks at a trained network gets the reference "no defence" of that row, weight by weight. The truth is read to count, never to
decide, with one exception that favours them: `spectral` is told the poison rate.
"""

import argparse
import importlib
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.detector_tables import FALSE_ALARMS
from benchmarks.quality.experiments import CIFAR, DIGITS, FIRST, SHAPES, TWO, Experiments, chosen
from benchmarks.quality.experiments import FILE as WHOLE
from benchmarks.quality.seeds import refuse
from benchmarks.rows import RESULTS, ROOT, provenance
from meca.defenses import DETECTORS, Judgement, Samples, Scene
from meca.metrics import ROC_AT, detection, separation
from meca.models import NetworkParams, build
from meca.params import Params
from meca.training.device import Device
from meca.training.engine import Data, Session
from meca.training.seeds import generator
from meca.training.trainer import Recipe
from tasks.benchmark.cell import evidence
from tasks.benchmark.grid import Cell
from tasks.benchmark.rows import Row, append, identity, newest, read_rows

FILE = RESULTS / "detectors.jsonl"
NAMED_BY = ("experiment", "attack", "seed")
EXPERIMENTS: Experiments = {
    "cifar10-10k": (replace(CIFAR, seeds=(FIRST,)),),
    "shapes": (replace(SHAPES, attacks=TWO, seeds=(FIRST,)),),
    "digits": (replace(DIGITS, attacks=TWO, seeds=(FIRST,)),),
}


def scene_of(folder: Path, params: Params) -> tuple[Scene, dict[str, Any]]:
    """Make the poisoned set of a cell in `folder`, and return what detectors see, and the truth for `judge`."""
    from meca.data.store import open_store, read_parquet
    from meca.files import read_json
    from meca.pipeline import paths_of
    from meca.stages.runtime import execute
    from meca.stages.tensors import describe_network

    seed = params.seed
    for name in ("ingest", "poison"):
        module = importlib.import_module(f"meca.stages.{name}")
        execute(module, paths_of(module, name, folder), params, None, None, folder / "scratch")
    store = open_store(folder / "data" / "store")
    images, labels = torch.from_numpy(store.pixels(store.train)), torch.from_numpy(np.array(store.labels[store.train]))
    if params.raw("poison")["attack"] == "none":
        marks = {name: np.zeros(len(labels), dtype=bool) for name in ("is_poisoned", "is_cover")}
    else:
        table = read_parquet(folder / "data" / "truth" / "truth.parquet")
        marks = {name: table[name].to_numpy(zero_copy_only=False) for name in ("is_poisoned", "is_cover")}
    recipe = params.group("train_clean", Recipe)
    description = describe_network(store, images, params.group("network", NetworkParams))
    model = build(description, generator(seed, "train_clean", "init"))
    device = Device("cpu", torch.get_num_threads())
    Session(seed, device).train(model, Data(images, labels), recipe, "train_clean")
    rate = float(marks["is_poisoned"].mean())
    scene = Scene(Samples(images, labels), description, model.eval(), seed, device, rate=rate)
    return scene, marks | {"targets": read_json(folder / "data" / "truth" / "attack.json").get("targets")}


def judge(judgement: Judgement, labels: Tensor, truth: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a detector: by its own rule, without any, and at a rate of false alarms that is the same for all."""
    poisoned, covers = truth["is_poisoned"], truth["is_cover"]
    told = detection(judgement.flagged, judgement.suspicion, poisoned, covers, labels.numpy(), truth["targets"])
    ranks = np.searchsorted(np.sort(judgement.suspicion), judgement.suspicion) / len(judgement.suspicion)
    roc = separation(ranks, poisoned, ~poisoned & ~covers)["roc"]
    counts = torch.bincount(labels[torch.from_numpy(judgement.flagged)], minlength=1).tolist()
    return {key: told[key] for key in ("tpr", "fpr", "fpr_flagged", "auroc", "auroc_target")} | {
        "tpr_at": roc[list(ROC_AT).index(FALSE_ALARMS)] if roc else None,
        "evidence": evidence({"verdict": None}, {label: (count, count) for label, count in enumerate(counts)}),  # they say no more
    }


def measure(cell: Cell, only: Sequence[str] = ()) -> list[Row]:
    """Return a row for each detector on one cell."""
    experiment, attack, seed = (cell.given[key] for key in ("experiment", "attack", "seed"))
    command = f"python -m benchmarks.quality.detectors --only {shlex.quote(experiment)} --attack {attack} --seeds {seed}"
    told = {"experiment": experiment, "dataset": cell.given["source"], "attack": attack, "params_sha256": cell.given["params_sha256"]}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="meca-detectors-") as folder:
        scene, truth = scene_of(Path(folder), cell.params)
        for name, detector in DETECTORS.items():
            if only and name not in only:
                continue
            started = time.perf_counter()
            judgement = detector(scene)
            row = provenance(command, time.perf_counter() - started, seed, **told, name=name, n_train=len(scene.train.labels))
            row["hardware"] = f"{row['hardware'].rsplit(', ', 1)[0]}, {torch.get_num_threads()} of {os.cpu_count()} cores"
            rows.append(row | judge(judgement, scene.train.labels, truth))
    return rows


def main() -> None:
    """Measure the cells that have no row yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.detectors", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], choices=EXPERIMENTS, help="an experiment")
    parser.add_argument("--attack", action="append", default=[])
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--detector", action="append", default=[], choices=DETECTORS)
    parser.add_argument("--again", action="store_true", help="measure cells that have a row already")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("MECA_DATA", str(ROOT.parent / "shared" / "data"))
    torch.set_num_threads(arguments.threads)
    known = newest(read_rows(FILE), *NAMED_BY)
    wanted = chosen(EXPERIMENTS, arguments.only, arguments.attack, ("default",), arguments.seeds)
    refuse((cell.given for cell in wanted), [*read_rows(FILE), *read_rows(WHOLE)])
    for cell in wanted:
        if identity(dict(cell.given), NAMED_BY) in known and not arguments.again:
            continue
        for row in measure(cell, arguments.detector):
            append(FILE, row)
            figures = " ".join(f"{key} {row[key]:.3f}" for key in ("tpr", "fpr", "auroc", "auroc_target", "tpr_at") if row[key] is not None)
            print(f"{cell.name} {row['name']}: {figures} {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
