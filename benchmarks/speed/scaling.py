"""How the cost grows with the number of images, with their pixels and with the classes: fitted exponents.

The work is what the pipeline repeats: an epoch of training on everything, a scoring pass, and one round of `enhance`, with a
narrow network. An exponent of 1 is proportional; in the number of images at most 1.05 is accepted.

On a CPU the cost is the processor time of all threads, because a neighbour on the same cores would bend the curve of the wall
time; the exponent of the wall time stands beside it in the row.
"""

import dataclasses
import statistics

from benchmarks.speed.harness import Bench, default_params, describe, exponent, network, random_set
from benchmarks.speed.peers import EPS, RECIPE
from meca.method.enhance import EnhanceParams, two_outputs
from meca.method.scoring import patch_masks, score
from meca.models import Network
from meca.training.engine import Data, Session
from meca.training.seeds import generator

WIDTH = 16
LIMIT = 1.05


def inner(bench: Bench, n: int, size: int, classes: int, seed: int) -> tuple[float, float]:
    """Return cost and wall seconds of one epoch, one scoring pass and one round of `enhance`."""
    images, labels = random_set(n, size, classes, bench.device)
    description = describe("compact", "s2d", size, classes, WIDTH)
    model = network(description, bench.device)
    masks = patch_masks(1, size, size, 2, 0.25, generator("benchmarks", "mask")).to(bench.device)
    given = default_params().group("enhance", EnhanceParams)
    once = dataclasses.replace(given, rounds=1, recipe=dataclasses.replace(given.recipe, epochs=1, min_steps=0))

    def work() -> None:
        session, data = Session(seed, bench.machine), Data(images, labels)
        session.train(model, data, RECIPE, "scaling")
        kl, _ = score(model, images, labels, masks, EPS)
        two_outputs(session, Network(model, description), data, -kl, once, "low")

    wall, busy = bench.timed(work)
    return (wall * busy * bench.machine.threads if bench.device == "cpu" else wall), wall


def fitted(bench: Bench, of: str, points: dict[float, tuple[int, int, int]], limit: float | None, repeats: int = 3) -> None:
    """Write the exponent of the cost against one quantity.

    Args:
        bench: Where the row goes.
        of: The quantity.
        points: Its value, to images, pixels of a side, and classes.
        limit: What the exponent may be.
        repeats: Sweeps over all points, so that a slow minute of the machine meets all of them.
    """
    inner(bench, *min(points.values()), -1)  # warm
    sweeps = [{x: inner(bench, *sizes, seed) for x, sizes in points.items()} for seed in range(1 if bench.quick else repeats)]
    cost, wall = ({x: statistics.median(sweep[x][i] for sweep in sweeps) for x in points} for i in range(2))
    found = exponent(list(points), list(cost.values()))
    each = [exponent(list(sweep), [seconds for seconds, _ in sweep.values()]) for sweep in sweeps]
    bench.row(
        "scaling",
        f"exponent of the cost in {of}",
        "exponent",
        found,
        limit=limit,
        holds=None if limit is None else found <= limit,
        lowest=min(each),
        highest=max(each),
        n=len(sweeps),
        points=[[x, float(f"{value:.4g}")] for x, value in cost.items()],
        wall=exponent(list(points), list(wall.values())),
    )


def run(bench: Bench) -> None:
    """Write the three exponents."""
    small = 256 if bench.quick else 1000 if bench.device == "cpu" else 10_000
    numbers = (128, 256, 512) if bench.quick else (1000, 2000, 4000, 8000) if bench.device == "cpu" else (6250, 12_500, 25_000, 50_000)
    fitted(bench, "pictures", {n: (n, 32, 10) for n in numbers}, LIMIT)
    fitted(bench, "pixels", {size**2: (small, size, 10) for size in (16, 32, 64)}, None)
    fitted(bench, "classes", {classes: (small, 32, classes) for classes in (10, 50, 100)}, None)
