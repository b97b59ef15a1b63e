"""The parts of a stage one by one: the gather, a training step, a score, the masks; and whether they compute the right thing."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.speed.floors import TARGETS, Cost, cost
from benchmarks.speed.harness import MEAN, STD, Bench, Repeated, describe, network, random_set
from benchmarks.speed.peers import EPS, RECIPE, PilSet
from meca.method.scoring import consistency, patch_masks, ranks, score
from meca.models import Normalize
from meca.training.augment import crop_flip, draw
from meca.training.engine import predict
from meca.training.seeds import generator
from meca.training.trainer import Recipe, Trainer, as_input

STEP = Recipe(1, 0, 64, 0.05, 0.9, 5e-4, label_smoothing=0.1, augment="none", padding=3)
FAR = 0.02  # of a loss
ALIKE = 0.99  # Spearman
# Network to batch sizes: that of the recipes, on a GPU also one that fills it; a step must not take seconds.
CPU_NETWORKS = {
    ("compact", "s2d"): (64,),
    ("compact", "conv3"): (64,),
    ("resnet18", "imagenet"): (64,),
    ("mobilenet_v2", "imagenet"): (64,),
    ("resnet18", "cifar"): (16,),
}
GPU_NETWORKS = {
    ("compact", "s2d"): (64, 1024),
    ("resnet18", "cifar"): (64, 1024),
    ("resnet18", "imagenet"): (64, 1024),
    ("resnet34", "cifar"): (1024,),
    ("mobilenet_v2", "cifar"): (1024,),
}


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 or forbid it, in both places: torch's own default differs between convolutions and matrix products."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.allow_tf32 = old


# Name to what surrounds a step, and to its precision.
Precision = tuple[Callable[[], Any], torch.dtype]
PRECISIONS: dict[str, dict[str, Precision]] = {
    "cpu": {"fp32": (contextlib.nullcontext, torch.float32), "bf16": (contextlib.nullcontext, torch.bfloat16)},
    "cuda": {
        "fp32": (lambda: _tf32(False), torch.float32),
        "tf32": (lambda: _tf32(True), torch.float32),
        "bf16": (lambda: _tf32(True), torch.bfloat16),
    },
}


def augmentation(bench: Bench, n: int) -> None:
    """Write the ratio of a batched gather over the PIL chain; both end in normalised float32 batches of 64."""
    images, labels = random_set(n, device=bench.device)
    chain, normalize = PilSet(images.cpu(), labels.cpu(), RECIPE.padding), Normalize(MEAN, STD).to(bench.device)
    rng = generator("benchmarks", "augmentation")

    def ours() -> None:
        draws = draw(n, RECIPE.padding, True, rng)
        draws = type(draws)(**{name: value.to(bench.device) for name, value in vars(draws).items()})
        for rows in torch.randperm(n, generator=rng).to(bench.device).split(64):
            normalize(as_input(crop_flip(images, rows, draws)))

    some = min(n, 512)
    found = bench.pairs(ours, lambda: [torch.stack([chain[i][0] for i in range(at, at + 64)]) for at in range(0, some, 64)], units=(n, some))
    moved = 3 * 32 * 32 * (1 + 1 + 4 + 4)  # bytes: read and written as uint8, written as float32, and once more normalised
    floor = bench.ceilings.bytes / moved
    bench.row(
        "micro",
        "augmentation, 32 px, batch 64",
        "img/s",
        1 / found.seconds[0],
        floor=floor,
        other=1 / found.seconds[1],
        **found.columns("PIL chain, one image at a time"),
    )


def step(bench: Bench, name: str, stem: str, batch: int) -> None:
    """Write a row per precision for the training step, and one for the score; inputs rotate."""
    description = describe(name, stem)
    target = TARGETS.get((bench.device, name, stem), {})
    images, labels = random_set(8 * batch, device=bench.device)
    parts = itertools.cycle([(as_input(images[i : i + batch]), labels[i : i + batch]) for i in range(0, len(images), batch)])
    each = cost(name, stem)
    for precision, (mode, dtype) in PRECISIONS[bench.device].items():
        trainer = Trainer(network(description, bench.device), STEP, 10**6, dtype)
        if trainer.precision is not dtype:
            continue  # the engine does not use it for this network

        def one(trainer: Trainer = trainer, mode: Callable[[], Any] = mode) -> None:
            with mode():
                trainer.step(*next(parts))

        _rate(bench, f"training step, {name} {stem}, 32 px, batch {batch}, {precision}", batch, "train", each, target, bench.repeated(one), precision)
    model, many = network(description, bench.device).eval(), 2 * batch if name == "compact" else batch
    rng = generator("benchmarks", "masks")
    masks = patch_masks(4, 32, 32, 2, 0.25, rng).to(bench.device)
    turns = itertools.cycle(range(0, len(images) - many + 1, batch))

    def scored(count: int) -> None:
        at = next(turns)
        score(model, images[at : at + many], labels[at : at + many], masks[:count], EPS, many)

    found = bench.repeated(lambda: scored(1))
    _rate(bench, f"scoring, {name} {stem}, 32 px, batch {many}, 1 mask", many, "score", each, target, found)
    found = bench.repeated(lambda: predict(model, images[:many], many))
    _rate(bench, f"forward, {name} {stem}, 32 px, batch {many}", many, "forward", each, {}, found)
    if name == "compact":
        found = bench.pairs(lambda: scored(1), lambda: scored(4))
        bench.against("micro", f"scoring, {name} {stem}, 1 mask against 4", many, found, "4 masks")


def _rate(bench: Bench, name: str, images: int, kind: str, each: Cost, target: dict[str, float], found: Repeated, precision: str = "fp32") -> None:
    flops, limits = each.flops(kind), bench.ceilings.at(precision)
    bench.row(
        "micro",
        name,
        "img/s",
        images / found.seconds,
        floor=1 / each.floor(limits, **{kind: 1}),
        target=target.get(kind),
        mfu=images * flops / (found.seconds * limits.flops),
        gflop=flops / 1e9,
        busy=found.busy,
        n=found.n,
    )


def masks(bench: Bench) -> None:
    """Write how many masks a second are drawn."""
    rng = generator("benchmarks", "masks")
    found = bench.repeated(lambda: patch_masks(64, 32, 32, 2, 0.25, rng))
    bench.row("micro", "masks, 2x2 patches, 32 px", "masks/s", 64 / found.seconds, n=found.n, busy=found.busy)


def correctness(bench: Bench, name: str, stem: str, batch: int = 64) -> None:
    """Write how far training steps and a score are from float64 on the CPU: a figure of speed counts only beside these.

    Of the steps the losses are compared, not the weights: where a deep network's units are near zero, float32 itself turns a
    hundredth of a gradient round.

    Raises:
        RuntimeError: They are too far apart.
    """
    images, labels = random_set(batch, device=bench.device)
    mask = patch_masks(1, 32, 32, 2, 0.25, generator("benchmarks", "mask"))

    def computed(device: str, dtype: torch.dtype, mode: Callable[[], Any], steps: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        model, x, y = network(describe(name, stem), device).to(dtype), as_input(images).to(device, dtype), labels.to(device)
        with mode():
            kl, _ = consistency(model.eval(), x, y, mask.to(device, dtype), EPS)
        trainer = Trainer(model, STEP, 10**6, steps)  # the first of many: a small learning rate, with which five steps do not part ways
        losses = []
        for _ in range(5):
            with mode():
                losses.append(trainer.step(x, y)[0].double().cpu())
        return torch.stack(losses), kl[0].double().cpu()

    exact, exact_kl = computed("cpu", torch.float64, contextlib.nullcontext, torch.float32)
    worst = []
    for precision, (mode, dtype) in PRECISIONS[bench.device].items():
        losses, kl = computed(bench.device, torch.float32, mode, dtype)
        error = float(((losses - exact) / exact).abs().max())
        what = f"{name} {stem}, {precision}"
        bench.row("correctness", f"error of the loss over five steps, {what}", "of it", error, limit=FAR, holds=error < FAR)
        worst += [f"the loss of {what} is off by {error:.2g}"] * (error >= FAR)
        if precision == "bf16":
            continue  # a step of the score is about two spacings of it: no score is taken in bf16
        alike = float(torch.corrcoef(torch.stack([ranks(kl), ranks(exact_kl)]))[0, 1])
        bench.row("correctness", f"rank correlation of the score, {what}", "Spearman", alike, limit=ALIKE, holds=alike > ALIKE, n=batch)
        worst += [f"the score of {what} correlates with {alike:.4f}"] * (alike <= ALIKE)
    if worst:
        raise RuntimeError("; ".join(worst))


def correct(bench: Bench) -> None:
    """Check the networks that the ratios are about."""
    for name, stem in (("compact", "s2d"), ("resnet18", "imagenet"))[: 1 if bench.quick else 2]:
        correctness(bench, name, stem)


def run(bench: Bench) -> None:
    """Write the rows of all parts."""
    augmentation(bench, 256 if bench.quick else 2048 if bench.device == "cpu" else 10_000)
    masks(bench)
    networks = CPU_NETWORKS if bench.device == "cpu" else GPU_NETWORKS
    for (name, stem), batches in list(networks.items())[: 1 if bench.quick else None]:
        for batch in batches:
            step(bench, name, stem, batch)
