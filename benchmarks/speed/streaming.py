"""Sets that stay in their files: memory and speed against sets in memory, by number and size of the images.

    python -m benchmarks.memory                    every cell that has no row of this machine yet, the small ones first
    python -m benchmarks.memory --side 32 64       some of them
    python -m benchmarks.memory --minutes 20       no cell is begun after so long

A cell is one part of the work on one set, in a process of its own. The set is generated, and lies in a file as in a store. Each part is about the
whole set; what would take hours on large images is done for some of them, spread over the set (`HANDLED`), and the row says for how many. The figure
is the peak of the anonymous memory (`RssAnon`: the page cache does not count, since the system takes it back) over that before the part, after one
step on four images has brought in the libraries. The speed is a ratio of both arms in one process, in turn; where the set does not fit into
`engine.resident` there is no second arm.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import ROOT
from benchmarks.speed.harness import FILE, Bench, Work, default_params, describe, exponent, network, random_set
from meca.data.store import write_blocks
from meca.method.flips import light_of, mean_in_light
from meca.method.scoring import patch_masks, score
from meca.stages.tensors import hold
from meca.training.device import Device, EngineParams
from meca.training.engine import Data, Session, features, predict
from meca.training.images import Images, chosen, mean_image
from meca.training.seeds import generator
from meca.training.trainer import Recipe
from tasks.benchmark.rows import read_rows

__all__ = ["PARTS", "cells", "main", "peak"]

SIDES = (32, 64, 128, 224)  # pixels
NUMBERS = (2_000, 8_000, 32_000, 100_000)  # images
WIDTH = 16
HANDLED = 2048  # images of 32 pixels, or as many pixels of larger ones, one batch at least: what a part that computes gradients works on
BATCH = 64
BLOCK = 1 << 24  # bytes of a set that are generated at once
EVERY = 0.004  # seconds from one look at the memory to the next
RECIPE = Recipe(1, 0, BATCH, 0.05, 0.9, 5e-4, 0.0, "shift_flip", 3)
LIMIT = 4096.0  # MiB: what a run may need
WITHIN = 0.85  # of the speed of a set in memory
NAME = "{part}, {n:,} x {side} px"


def handled(n: int, side: int) -> int:
    """Return how many images a part that computes gradients works on."""
    return min(n, max(BATCH, HANDLED * 32 * 32 // side**2))


def _spread(n: int, side: int) -> torch.Tensor:
    return torch.arange(handled(n, side)) * (n // handled(n, side))


def _train(images: Images, labels: torch.Tensor, side: int) -> int:
    keep = torch.zeros(len(labels), dtype=torch.bool)
    keep[_spread(len(labels), side)] = True
    model = network(describe("compact", "s2d", side, width=WIDTH))
    Session(0, Device("cpu", torch.get_num_threads())).train(model, Data(images, labels), RECIPE, "streaming", keep)
    return int(keep.sum())


def _score(images: Images, labels: torch.Tensor, side: int) -> int:
    rows = _spread(len(labels), side)
    model = network(describe("compact", "s2d", side, width=WIDTH))
    score(model, chosen(images, rows), labels[rows], patch_masks(1, side, side, 2, 0.25, generator("mask")), 2 / 255)
    return len(rows)


def _features(images: Images, labels: torch.Tensor, side: int) -> int:
    rows = _spread(len(labels), side)
    model = network(describe("compact", "s2d", side, width=WIDTH))
    features(model, chosen(images, rows))
    predict(model, chosen(images, rows))
    return len(rows)


def _light(images: Images, labels: torch.Tensor, side: int) -> int:
    light, rows = light_of(images), np.flatnonzero(labels.numpy() == 0)
    mean_in_light(images, light, rows, torch.ones(1, len(rows)))
    return len(labels)


def _means(images: Images, labels: torch.Tensor, side: int) -> int:
    for c in range(10):
        mean_image(images, labels == c)
    return len(labels)


# From the images, their labels and their side to how many images were worked on. The last two read every pixel and are cheap.
PARTS: Mapping[str, Callable[[Images, torch.Tensor, int], int]] = {
    "training": _train, "scores": _score, "features and logits": _features, "one light": _light, "means of classes": _means,
}  # fmt: skip
CHEAP = ("one light", "means of classes")


@contextlib.contextmanager
def peak() -> Generator[list[float]]:
    """Yield a list that holds at the end by how many MiB the anonymous memory of this process has grown at most."""
    grown, done = list[float](), threading.Event()
    before, most = _anonymous(), 0.0

    def watch() -> None:
        nonlocal most
        while not done.wait(EVERY):
            most = max(most, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()
        grown.append(max(most, _anonymous()) - before)


def _anonymous() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def generate(file: Path, n: int, side: int) -> None:
    """Write a set of random pixels; a block is repeated, for what they show changes no figure."""
    each = side * side * 3
    many = max(1, BLOCK // each)
    block = np.random.default_rng(side).integers(0, 256, (many, side, side, 3), dtype=np.uint8)
    write_blocks(file, (n, side, side, 3), (block[: min(many, n - start)] for start in range(0, n, many)))


def measure(bench: Bench, file: Path, part: str) -> None:
    """Write the row of one cell; in a process that has done nothing else."""
    there = np.load(file, mmap_mode="r")
    n, side = there.shape[:2]
    labels, work = torch.arange(n) % 10, PARTS[part]
    work(random_set(4, side)[0].repeat(5, 1, 1, 1), torch.arange(20) % 10, side)
    streamed = hold(there, Device("cpu", resident=0))
    with peak() as grown:
        count = work(streamed, labels, side)
    more: dict[str, object] = {"part": part, "side": side, "images": n, "handled": count, "pixels_mib": there.nbytes / 2**20, "resident_mib": None}
    if there.nbytes <= default_params().group("engine", EngineParams).resident * 2**20:
        with peak() as whole:
            held = hold(there, Device("cpu"))
            work(held, labels, side)
        first: Work = lambda: work(streamed, labels, side)  # noqa: E731
        found = bench.pairs(first, lambda: work(held, labels, side), 3)
        more |= {"resident_mib": whole[0], "samples_per_s": count / found.seconds[0], "target_ratio": WITHIN, **found.columns("the set in memory")}
    else:
        seconds, busy = bench.timed(lambda: work(streamed, labels, side))
        more |= {"samples_per_s": count / seconds, "busy": busy}
    bench.row("streaming", NAME.format(part=part, n=n, side=side), "MiB", grown[0], limit=LIMIT, holds=grown[0] <= LIMIT, **more)


def cells(sides: Sequence[int] = SIDES, numbers: Sequence[int] = NUMBERS) -> list[tuple[int, int, tuple[str, ...]]]:
    """Return side, number and parts of every set, the fewest pixels first; of the largest only the cheap parts."""
    sizes = sorted(((side, n) for side in sides for n in numbers), key=lambda size: size[0] ** 2 * size[1])
    return [(side, n, CHEAP if side**2 * n > 32_000 * 128**2 else tuple(PARTS)) for side, n in sizes]


def exponents(bench: Bench) -> None:
    """Write how the peak of each part grows with images and with pixels, of the rows of this machine."""
    here = bench.provenance()["hardware"]
    rows = [row for row in read_rows(bench.out) if row.get("group") == "streaming" and row["hardware"] == here]
    newest = {(row["part"], row["side"], row["images"]): float(row["value"]) for row in rows}
    for part in PARTS:
        for of, at, other in (("images", 2, 1), ("pixels", 1, 2)):
            lines: dict[int, dict[float, float]] = {}
            for key, value in newest.items():
                if key[0] == part:
                    lines.setdefault(key[other], {})[float(key[at] ** (1 if of == "images" else 2))] = max(value, 0.1)
            lines = {key: line for key, line in lines.items() if len(line) > 1}
            if lines:
                each = {key: exponent([*line], [*line.values()]) for key, line in lines.items()}
                widest = max(lines, key=lambda key, lines=lines: (len(lines[key]), max(lines[key])))
                bench.row(
                    "scaling", f"exponent of the peak of {part}, streamed, in {of}", "exponent", each[widest], limit=None, lowest=min(each.values()),
                    highest=max(each.values()), n=len(each), points=[[x, round(y, 1)] for x, y in sorted(lines[widest].items())],
                )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cells that have no row yet, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, nargs="+", default=SIDES, help="pixels")
    parser.add_argument("--images", type=int, nargs="+", default=NUMBERS)
    parser.add_argument("--minutes", type=float, default=60.0, help="no cell is begun after so long")
    parser.add_argument("--folder", type=Path, help="where the sets are written; a temporary folder if not given")
    parser.add_argument("--out", type=Path, default=FILE, help="file that the rows are appended to")
    parser.add_argument("--quick", action="store_true", help="few repeats; needs --out")
    parser.add_argument("--cell", nargs=2, metavar=("FILE", "PART"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.quick and given.out == FILE:
        parser.error("--quick measures nothing that may stand among the results: say where with --out")
    bench = Bench(given.out, "python -m benchmarks.memory", given.quick, time.monotonic() + 60 * given.minutes)
    if given.cell:
        torch.set_num_threads(bench.machine.threads)
        measure(bench, Path(given.cell[0]), given.cell[1])
        return
    here = bench.provenance()["hardware"]
    known = {row["name"] for row in (read_rows(given.out) if given.out.exists() else ()) if row["hardware"] == here}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for side, n, parts in cells(given.side, given.images):
            left = [part for part in parts if NAME.format(part=part, n=n, side=side) not in known]
            if not left or bench.left() < 0:
                continue
            generate(file := Path(folder, "images.npy"), n, side)
            for part in left:
                if bench.left() > 0:
                    options = ["--out", str(given.out.resolve()), "--cell", str(file), part, *["--quick"] * given.quick]
                    subprocess.run([sys.executable, "-m", "benchmarks.memory", *options], cwd=ROOT, check=True)
    exponents(bench)


if __name__ == "__main__":
    main()
