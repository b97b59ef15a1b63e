"""The parts of a stage one by one: the gather, a training step, a score, the masks; and whether they compute the right thing."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.floors import NETWORKS, TARGETS, Cost, cost
from benchmarks.harness import MEAN, STD, Bench, describe, network, random_set
from benchmarks.peers import EPS, RECIPE, PilSet
from meca.augment import crop_flip, draw, generator
from meca.engine import Recipe, Trainer, as_input, predict
from meca.models import Normalize
from meca.scoring import consistency, patch_masks, ranks, score

STEP = Recipe(1, 0, 64, 0.05, 0.9, 5e-4, label_smoothing=0.1, augment="none", padding=3)
FAR = 0.05  # float32 itself is off by a hundredth in a deep network, where BatchNorm divides by small deviations
CPU_BATCH = {("resnet18", "cifar"): 32, ("resnet34", "cifar"): 32}  # a larger one would take seconds a step


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# Name to what surrounds a step; a mode of the engine joins by one entry.
PRECISIONS: dict[str, dict[str, Callable[[], Any]]] = {
    "cpu": {"fp32": contextlib.nullcontext, "bf16": lambda: torch.autocast("cpu", torch.bfloat16)},
    "cuda": {"fp32": contextlib.nullcontext, "tf32": _tf32, "bf16": lambda: torch.autocast("cuda", torch.bfloat16)},
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
    for precision, mode in PRECISIONS[bench.device].items():
        trainer = Trainer(network(description, bench.device), STEP, 10**6)

        def one(trainer: Trainer = trainer, mode: Callable[[], Any] = mode) -> None:
            with mode():
                trainer.step(*next(parts))

        seconds, busy = bench.repeated(one)
        _rate(bench, f"training step, {name} {stem}, 32 px, batch {batch}, {precision}", batch / seconds, "train", each, target, busy, precision)
    model, many = network(description, bench.device).eval(), 2 * batch
    rng = generator("benchmarks", "masks")
    masks = patch_masks(4, 32, 32, 2, 0.25, rng).to(bench.device)
    turns = itertools.cycle(range(0, len(images) - many + 1, batch))

    def scored(count: int) -> None:
        at = next(turns)
        score(model, images[at : at + many], labels[at : at + many], masks[:count], EPS, many)

    seconds, busy = bench.repeated(lambda: scored(1))
    _rate(bench, f"scoring, {name} {stem}, 32 px, batch {many}, 1 mask", many / seconds, "score", each, target, busy)
    seconds, busy = bench.repeated(lambda: predict(model, images[:many], many))
    _rate(bench, f"forward, {name} {stem}, 32 px, batch {many}", many / seconds, "forward", each, {}, busy)
    if name == "compact":
        found = bench.pairs(lambda: scored(1), lambda: scored(4))
        bench.row(
            "micro",
            f"scoring, {name} {stem}, 1 mask against 4",
            "img/s",
            many / found.seconds[0],
            other=many / found.seconds[1],
            **found.columns("4 masks"),
        )


def _rate(bench: Bench, name: str, value: float, kind: str, each: Cost, target: dict[str, float], busy: float, precision: str = "fp32") -> None:
    flops, limits = each.flops(kind), bench.ceilings.at(precision)
    bench.row(
        "micro",
        name,
        "img/s",
        value,
        floor=1 / each.floor(limits, **{kind: 1}),
        target=target.get(kind),
        mfu=value * flops / limits.flops,
        gflop=flops / 1e9,
        n=5,
        busy=busy,
    )


def masks(bench: Bench) -> None:
    """Write how many masks a second are drawn."""
    rng = generator("benchmarks", "masks")
    seconds, busy = bench.repeated(lambda: patch_masks(64, 32, 32, 2, 0.25, rng))
    bench.row("micro", "masks, 2x2 patches, 32 px", "masks/s", 64 / seconds, n=5, busy=busy)


def correctness(bench: Bench, name: str, stem: str) -> None:
    """Write how far a step and a score are from float64 on the CPU; a figure of speed counts only beside these."""
    images, labels = random_set(64, device=bench.device)
    mask = patch_masks(1, 32, 32, 2, 0.25, generator("benchmarks", "mask"))

    def stepped(device: str, wide: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model, x, y = network(describe(name, stem), device), as_input(images).to(device), labels.to(device)
        model, x = (model.double(), x.double()) if wide else (model, x)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        Trainer(model, STEP, 10).step(x, y)
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        kl, _ = consistency(model.eval(), x, y, mask.to(device, x.dtype), EPS)
        return (after - before).double().cpu(), kl[0].double().cpu()

    (change, kl), (exact, exact_kl) = stepped(bench.device, False), stepped("cpu", True)
    error = float((change - exact).norm() / exact.norm())
    alike = float(torch.corrcoef(torch.stack([ranks(kl), ranks(exact_kl)]))[0, 1])
    bench.row("correctness", f"error of a training step against float64, {name} {stem}", "of its length", error, limit=FAR, holds=error < FAR)
    bench.row(
        "correctness", f"rank correlation of the score with float64, {name} {stem}", "Spearman", alike, limit=0.99, holds=alike > 0.99, n=len(kl)
    )
    if error >= FAR or alike <= 0.99:
        raise RuntimeError(f"{name} {stem}: a step is off by {error:.2g}, the score correlates with {alike:.4f}")


def correct(bench: Bench) -> None:
    """Check the networks that the ratios are about."""
    for name, stem in (("compact", "s2d"), ("resnet18", "imagenet"))[: 1 if bench.quick else 2]:
        correctness(bench, name, stem)


def run(bench: Bench) -> None:
    """Write the rows of all parts."""
    augmentation(bench, 256 if bench.quick else 2048 if bench.device == "cpu" else 10_000)
    masks(bench)
    for name, stem in NETWORKS[:1] if bench.quick else NETWORKS:
        if bench.device == "cpu" and name == "resnet34":
            continue  # on a CPU it says nothing that ResNet18 does not
        for batch in (CPU_BATCH.get((name, stem), 64),) if bench.device == "cpu" else (64, 1024):
            step(bench, name, stem, batch)
