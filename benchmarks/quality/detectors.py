"""Published detectors of poison on the very samples that the default preset was run on, into results/detectors.jsonl.

    python -m benchmarks.quality.detectors           all cells of `EXPERIMENTS` that have no row yet
    python -m benchmarks.quality.detectors --only cifar10-10k --attack blend --seeds 1
    python -m benchmarks.quality.detectors --again   measure anew; the newest row counts

Only detectors that need no clean data. Each is written from its paper, with the paper's own numbers for all attacks, on the network, the
pictures and the seed of the row in quality.jsonl; what looks at a trained network gets the reference "no defence" of that row, weight by
weight. The truth is read to count, never to decide, with one exception that favours them: `spectral` is told the poison rate.

* `spectral`: Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018: the squared projection of the centred features of a class
  on their first singular vector; of every class 1.5 times as many as there is poison are flagged, at most half of it.
* `clusters`: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", 2018, arXiv 1811.03728: ten components
  of the features of a class, two means; the smaller cluster is flagged where it holds less than 35 % of the class.
* `isolation`: Li et al., "Anti-Backdoor Learning", NeurIPS 2021, arXiv 2110.11571: ten passes by local gradient ascent (0.5); the 1 % with
  the lowest loss is flagged.
* `transforms`: Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples", NeurIPS 2022 (D-BR): two passes, ten
  passes that spread the classes, then how far a rotation with a shift moves the features; the 5 % that move most are flagged.
* `scaling`: Guo et al., "SCALE-UP", ICLR 2023, arXiv 2302.03251, with the shift of Pal et al., "Backdoor Secrets Unveiled", ICLR 2024, arXiv
  2403.10717, without its mask: how often the prediction stays when all pixels are multiplied by 2 to 12; flagged where it stays mostly.
"""

import argparse
import importlib
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.quality.detector_tables import FALSE_ALARMS
from benchmarks.quality.experiments import CIFAR, DIGITS, SHAPES, Experiments, chosen
from benchmarks.rows import RESULTS, ROOT, provenance
from meca.method.clusters import smaller_clusters
from meca.metrics import ROC_AT, detection, separation
from meca.models import Description, NetworkParams, build
from meca.params import Params
from meca.training.device import Device
from meca.training.engine import Data, Session, features, predict
from meca.training.seeds import generator
from meca.training.trainer import Recipe, as_input
from tasks.benchmark.grid import Cell
from tasks.benchmark.rows import Row, append, identity, newest, read_rows

FILE = RESULTS / "detectors.jsonl"
NAMED_BY = ("experiment", "attack", "seed")
EXPERIMENTS: Experiments = {
    "cifar10-10k": (replace(CIFAR, seeds=(1,)),),
    "shapes": (replace(SHAPES, seeds=(20,)),),
    "digits": (replace(DIGITS, attacks=("badnet", "blend"), seeds=(2,)),),
}
SMALLER, ISOLATED, MOVED = 0.35, 0.01, 0.05  # shares that the papers give
ASCENT = 0.5  # gamma of local gradient ascent
SCALES, SHIFT = range(2, 13), 0.2
BATCH = 128

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """What a detector may look at."""

    images: Tensor  # uint8 [n h w c]
    labels: Tensor  # int64 [n], as given
    description: Description
    model: nn.Module  # trained on everything, the reference "no defence"
    rate: float  # poisoned / all, told to `spectral` alone
    seed: int

    def fresh(self, purpose: str) -> nn.Module:
        """Return an untrained network."""
        return build(self.description, generator(self.seed, "detectors", purpose))


@dataclass(frozen=True)
class Found:
    """What a detector says about every sample."""

    suspicion: Floats  # [n], high is suspicious
    flagged: Bools  # [n], by the paper's own rule


def spectral(scene: Scene) -> Found:
    """Squared projections on the first singular vector of each class; 1.5 times the count of poison is flagged in each, at most half of it."""
    values, score, flagged = features(scene.model, scene.images).double().numpy(), *_nothing(scene)
    for rows in _classes(scene):
        centred = values[rows] - values[rows].mean(0)
        score[rows] = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
        # All poison may be in this class, and the detector is told how much there is.
        flagged[_highest(score, rows, min(0.5, 1.5 * scene.rate * len(score) / len(rows)))] = True
    return Found(score, flagged)


def clusters(scene: Scene) -> Found:
    """Two means in ten components of each class; a smaller cluster is flagged where it is small.

    The suspicion is how much nearer a sample is to the smaller cluster than to the larger, over the distance of the two.
    """
    labels = scene.labels.numpy()
    small, score = smaller_clusters(features(scene.model, scene.images).double().numpy(), labels, scene.seed)
    counts, smaller = np.bincount(labels), np.bincount(labels, weights=small)
    return Found(score, small & (smaller / np.maximum(1, counts) < SMALLER)[labels])


def isolation(scene: Scene) -> Found:
    """The loss after ten passes in which a batch whose loss is below 0.5 is unlearnt; the lowest hundredth is flagged."""

    def step(logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        return torch.sign(loss.detach() - ASCENT) * loss

    model = _passes(scene, scene.fresh("isolation"), 10, 0.1, 1e-4, lambda model, x, y: step(model(x), y), nesterov=True)
    score = -F.cross_entropy(predict(model, scene.images), scene.labels, reduction="none").double().numpy()
    flagged = np.zeros(len(score), dtype=bool)
    flagged[_highest(score, np.arange(len(score)), ISOLATED)] = True
    return Found(score, flagged)


def transforms(scene: Scene) -> Found:
    """How far a random rotation with a random shift moves the features of a network whose classes are spread; the highest twentieth is flagged."""

    def spread(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        inputs = _inputs_of_head(model, x)
        centres = F.normalize(torch.stack([inputs[y == c].mean(0) for c in y.unique()]), dim=1)
        cosine = centres @ centres.T
        return (cosine - torch.diag(torch.diagonal(cosine))).mean()

    model = _passes(scene, scene.fresh("transforms"), 2, 0.01, 5e-4, lambda model, x, y: F.cross_entropy(model(x), y))
    model = _passes(scene, model, 10, 0.01, 5e-4, spread)
    rng = generator(scene.seed, "detectors", "rotation")
    moved = torch.cat([_rotated(block, rng) for block in scene.images.split(1024)])
    score = (features(model, scene.images) - features(model, moved)).double().square().mean(1).numpy()
    flagged = np.zeros(len(score), dtype=bool)
    flagged[_highest(score, np.arange(len(score)), MOVED)] = True
    return Found(score, flagged)


def scaling(scene: Scene) -> Found:
    """How often the prediction stays when the pixels are scaled, from -1 (never) to 1; above 0 is flagged."""
    before = predict(scene.model, scene.images).argmax(1)
    stays = torch.zeros(len(before), dtype=torch.float64)
    for scale in SCALES:
        pictures = torch.cat([((block.float() / 255 - SHIFT) * scale).clamp(0, 1).mul(255).round().byte() for block in scene.images.split(1024)])
        stays += 2 * (predict(scene.model, pictures).argmax(1) == before).double() - 1
    score = (stays / len(SCALES)).numpy()
    return Found(score, score > 0)


DETECTORS: dict[str, Callable[[Scene], Found]] = {
    "spectral": spectral,
    "clusters": clusters,
    "isolation": isolation,
    "transforms": transforms,
    "scaling": scaling,
}


def _nothing(scene: Scene) -> tuple[Floats, Bools]:
    return np.zeros(len(scene.labels)), np.zeros(len(scene.labels), dtype=bool)


def _classes(scene: Scene) -> list[NDArray[np.int64]]:
    labels = scene.labels.numpy()
    return [np.flatnonzero(labels == c) for c in np.unique(labels)]


def _highest(score: Floats, rows: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Return the share of the rows with the highest score; ties go to the earlier row."""
    return rows[np.argsort(-score[rows], kind="stable")[: int(share * len(rows))]]


def _passes(
    scene: Scene,
    model: nn.Module,
    count: int,
    lr: float,
    weight_decay: float,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    nesterov: bool = False,
) -> nn.Module:
    """Train in place by plain SGD without augmentation, as the isolating stages of these methods do."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov)
    model.train()
    for number in range(count):
        order = torch.randperm(len(scene.labels), generator=generator(scene.seed, "detectors", "order", number))
        for rows in order.split(BATCH):
            if len(rows) < 2:  # BatchNorm has nothing to average
                continue
            value = loss(model, as_input(scene.images[rows]), scene.labels[rows])
            optimizer.zero_grad()
            value.backward()  # pyright: ignore[reportUnknownMemberType]
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return model.eval()


def _inputs_of_head(model: nn.Module, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        model(x)
    finally:
        hook.remove()
    return kept[0]


def _rotated(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return each picture turned by up to 180 degrees and shifted by up to a fifth of its side, uint8 [n h w c]; black comes in."""
    n = len(images)
    angle = (2 * torch.rand(n, generator=rng) - 1) * torch.pi
    shift = (2 * torch.rand(n, 2, generator=rng) - 1) * 0.4  # coordinates run from -1 to 1
    cos, sin = angle.cos(), angle.sin()
    grid = F.affine_grid(
        torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1),
        [n, images.shape[3], *images.shape[1:3]],
        align_corners=False,
    )
    turned = F.grid_sample(images.permute(0, 3, 1, 2).float(), grid, align_corners=False)
    return turned.permute(0, 2, 3, 1).round().clamp(0, 255).byte()


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
    Session(seed, Device("cpu")).train(model, Data(images, labels), recipe, "train_clean")
    scene = Scene(images, labels, description, model.eval(), float(marks["is_poisoned"].mean()), seed)
    return scene, marks | {"targets": read_json(folder / "data" / "truth" / "attack.json").get("targets")}


def judge(found: Found, labels: Tensor, truth: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a detector: by its own rule, without any, and at a rate of false alarms that is the same for all."""
    poisoned, covers = truth["is_poisoned"], truth["is_cover"]
    told = detection(found.flagged, found.suspicion, poisoned, covers, labels.numpy(), truth["targets"])
    ranks = np.searchsorted(np.sort(found.suspicion), found.suspicion) / len(found.suspicion)
    roc = separation(ranks, poisoned, ~poisoned & ~covers)["roc"]
    return {key: told[key] for key in ("tpr", "fpr", "auroc", "auroc_target")} | {
        "tpr_at": roc[list(ROC_AT).index(FALSE_ALARMS)] if roc else None,
    }


def measure(cell: Cell, only: Sequence[str] = ()) -> list[Row]:
    """Return a row for each detector on one cell."""
    experiment, attack, seed = (cell.given[key] for key in ("experiment", "attack", "seed"))
    command = f"python -m benchmarks.quality.detectors --only {shlex.quote(experiment)} --attack {attack} --seeds {seed}"
    told = {"experiment": experiment, "attack": attack, "params_sha256": cell.given["params_sha256"]}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="meca-detectors-") as folder:
        scene, truth = scene_of(Path(folder), cell.params)
        for name, detector in DETECTORS.items():
            if only and name not in only:
                continue
            started = time.perf_counter()
            found = detector(scene)
            row = provenance(command, time.perf_counter() - started, seed, **told, name=name, n_train=len(scene.labels))
            row["hardware"] = f"{row['hardware'].rsplit(', ', 1)[0]}, {torch.get_num_threads()} of {os.cpu_count()} cores"
            rows.append(row | judge(found, scene.labels, truth))
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
    for cell in chosen(EXPERIMENTS, arguments.only, arguments.attack, ("default",), arguments.seeds):
        if identity(dict(cell.given), NAMED_BY) in known and not arguments.again:
            continue
        for row in measure(cell, arguments.detector):
            append(FILE, row)
            figures = " ".join(f"{key} {row[key]:.3f}" for key in ("tpr", "fpr", "auroc", "auroc_target", "tpr_at") if row[key] is not None)
            print(f"{cell.name} {row['name']}: {figures} {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
