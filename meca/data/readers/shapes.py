"""`shapes`: the embedded data set, generated from a seed; ten classes of textured objects in clutter.

The class decides the outline, and it leans the hue of the object and the spacing of its stripes without fixing them.
Place, size, turn, stretch, background, small pieces of other outlines, a bar in front, light and noise are drawn at
random and say nothing about it, so that the clean task is learnt slowly, as with photographs, and a planted trigger is
the easier thing to learn.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASS_NAMES", "generate"]

CLASS_NAMES = ("disc", "triangle", "square", "star", "ring", "cross", "crescent", "heart", "arrow", "bolt")

Floats = NDArray[np.float32]

ANGLES = 512  # resolution of an outline: the radius of the edge in that many directions
HUE_SPREAD = 0.3  # in turns per unit of drift: how little the hue says about the class
DRAWS = 96  # uniform numbers per sample for everything that is not a grid of noise
GRIDS = {"coarse": 3, "middle": 7, "fine": 14, "texture": 9}  # points per side, three channels each
BRIGHTEST = 0.78  # pure white is rare, as in photographs: where it is common, a white patch is no salient trigger
PIECES = 2  # small outlines of random classes beside the object
CHUNK = 512  # samples that are rendered together: their layers stay in the cache


def _polygon(points: list[tuple[float, float]]) -> Floats:
    """Return the radius of a polygon that is star-shaped around the origin, with shape [ANGLES]."""
    vertices = np.array(points)
    vertices = vertices / np.sqrt((vertices**2).sum(1)).max()
    ends = np.roll(vertices, -1, axis=0)
    theta = np.arange(ANGLES) / ANGLES * 2 * np.pi
    ray = np.stack([np.cos(theta), np.sin(theta)])[:, :, None]
    edge = (ends - vertices).T[:, None, :]
    start = vertices.T[:, None, :]
    cross = ray[0] * edge[1] - ray[1] * edge[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (start[0] * edge[1] - start[1] * edge[0]) / cross
        along = (start[0] * ray[1] - start[1] * ray[0]) / cross
    hit = (np.abs(cross) > 1e-9) & (along >= -1e-9) & (along <= 1 + 1e-9) & (distance > 0)
    return np.where(hit, distance, 0.0).max(1).astype(np.float32)


@cache
def _outlines() -> Floats:
    """Return the radius of every class's edge by direction, with shape [class, ANGLES]."""
    theta = np.arange(ANGLES) / ANGLES * 2 * np.pi
    disc = np.full(ANGLES, 0.85, np.float32)
    turn = 2 * np.pi * np.arange(10) / 10 - np.pi / 2
    star = [(r * np.cos(a), r * np.sin(a)) for a, r in zip(turn, [1.0, 0.42] * 5, strict=True)]
    arm = 0.3
    cross = [
        (arm, 1),
        (arm, arm),
        (1, arm),
        (1, -arm),
        (arm, -arm),
        (arm, -1),
        (-arm, -1),
        (-arm, -arm),
        (-1, -arm),
        (-1, arm),
        (-arm, arm),
        (-arm, 1),
    ]
    heart = [(16 * np.sin(a) ** 3, -13 * np.cos(a) + 5 * np.cos(2 * a) + 2 * np.cos(3 * a) + np.cos(4 * a)) for a in theta[::16]]
    arrow = [(0, -1), (0.8, -0.05), (0.3, -0.05), (0.3, 0.9), (-0.3, 0.9), (-0.3, -0.05), (-0.8, -0.05)]
    bolt = [(0.35, -1), (0.1, -0.2), (0.6, -0.2), (-0.35, 1), (-0.1, 0.2), (-0.6, 0.2)]
    rows = [
        disc,
        _polygon([(0, -1), (0.9, 0.6), (-0.9, 0.6)]),
        _polygon([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * 0.98,
        _polygon(star),
        disc,
        _polygon([(float(x), float(y)) for x, y in cross]),
        disc,
        _polygon(heart),
        _polygon([(float(x), float(y)) for x, y in arrow]),
        _polygon([(float(x), float(y)) for x, y in bolt]),
    ]
    return np.stack(rows)


def _coverage(kind: NDArray[np.int64], x: Floats, y: Floats, place: Floats, sharp: float) -> Floats:
    """Return how much of each pixel lies inside an outline, in [0, 1], with shape [n h w].

    Args:
        kind: Class of the outline [n].
        x: Horizontal pixel coordinates in [-1, 1], shape [1 1 w].
        y: Vertical ones, shape [1 h 1].
        place: Centre x, centre y, radius, turn, stretch and shear of each outline [n 6].
        sharp: Slope of the edge: one over the width of its soft border.
    """
    cx, cy, radius, turn, stretch, shear = (place[:, i, None, None] for i in range(6))
    dx, dy = (x - cx) / radius, (y - cy) / radius
    u = np.cos(turn) * dx + np.sin(turn) * dy
    v = np.cos(turn) * dy - np.sin(turn) * dx
    u = (u + shear * v) * stretch
    v = v / stretch
    rho = np.sqrt(u * u + v * v)
    direction = (np.arctan2(v, u) * (ANGLES / (2 * np.pi))).astype(np.int64) % ANGLES
    inside = (_outlines()[kind[:, None, None], direction] - rho) * radius
    hollow = (0.0 + (kind == 4) * 0.48)[:, None, None]  # ring: a hole in the middle
    inside = np.where(hollow > 0, np.minimum(inside, (rho - hollow) * radius), inside)
    bite = np.sqrt((u - 0.42) ** 2 + v * v)  # crescent: a second disc cut out of the first
    inside = np.where((kind == 6)[:, None, None], np.minimum(inside, (bite - 0.68) * radius), inside)
    return np.clip(inside * sharp + 0.5, 0, 1).astype(np.float32)


def _enlarge(grid: Floats, size: int) -> Floats:
    """Return grids of noise [n k k c] as smooth fields [n size size c]: linear between the points."""
    k = grid.shape[1]
    at: Floats = np.linspace(0, k - 1, size, dtype=np.float32)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(k))).astype(np.float32)
    rows = np.einsum("sk,nklc->nslc", weights, grid, optimize=True)
    return np.einsum("tl,nslc->nstc", weights, rows, optimize=True)


def _rainbow(hue: Floats) -> Floats:
    """Return fully saturated colours [n 3] of hues in turns."""
    return np.clip(np.abs((hue[:, None] + np.array([0, 2 / 3, 1 / 3], np.float32)) % 1 * 6 - 3) - 1, 0, 1).astype(np.float32)


def _span(u: Floats, low: float, high: float) -> Floats:
    return (low + (high - low) * u).astype(np.float32)


def _render(labels: NDArray[np.int64], u: Floats, grids: dict[str, Floats], noise: Floats) -> NDArray[np.uint8]:
    """Return uint8 [n size size 3]: the layers from back to front, then light and noise."""
    n, size = noise.shape[0], noise.shape[1]
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    sharp = size / 2.2
    draw = iter(u.T)

    def column(low: float, high: float) -> Floats:
        return _span(next(draw), low, high)

    def colour() -> Floats:
        return np.stack([next(draw) for _ in range(3)], axis=1)[:, None, None, :]

    def field(name: str) -> Floats:
        return _enlarge(grids[name] - 0.5, size)

    back = 0.2 + 0.6 * colour()
    image = back + field("coarse") * column(0.1, 0.7)[:, None, None, None]
    image += field("middle") * column(0.0, 0.5)[:, None, None, None] + field("fine") * column(0.0, 0.3)[:, None, None, None]
    for _ in range(PIECES):
        kind = (next(draw) * len(CLASS_NAMES)).astype(np.int64)
        place = np.stack([column(-1, 1), column(-1, 1), column(0.1, 0.3), column(0, 2 * np.pi), column(0.75, 1.3), column(-0.3, 0.3)], axis=1)
        shown = (_coverage(kind, x, y, place, sharp) * (next(draw) < 0.7)[:, None, None])[..., None]
        image = image * (1 - shown) + colour() * shown
    place = np.stack([column(-0.25, 0.25), column(-0.25, 0.25), column(0.55, 0.9), column(-0.4, 0.4), column(0.85, 1.18), column(-0.2, 0.2)], axis=1)
    mask = _coverage(labels, x, y, place, sharp)[..., None]
    drift = sum(next(draw) for _ in range(3)) - 1.5  # about normal, spread 0.5
    hue = _rainbow((labels / len(CLASS_NAMES) + HUE_SPREAD * drift).astype(np.float32))[:, None, None, :]
    vivid = column(0.3, 0.9)[:, None, None, None]
    # An object may have nearly the colour of its background: the outline is then told by texture alone, as in nature.
    contrast = column(0.65, 1.0)[:, None, None, None]
    paint = back + (colour() * (1 - vivid) + hue * vivid - back) * contrast
    drift = sum(next(draw) for _ in range(3)) - 1.5
    period, angle, depth = (3 + (labels * 7 % 10) * 0.8 + 1.4 * drift).astype(np.float32), column(0, np.pi), column(0.1, 0.5)
    wave = np.sin((x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]) * period[:, None, None] * np.pi)
    paint = paint + (wave * depth[:, None, None])[..., None] * (colour() - 0.3) + field("texture") * column(0.1, 0.5)[:, None, None, None]
    image = image * (1 - mask) + paint * mask
    turn, shift, width = column(0, np.pi), column(-0.6, 0.6), column(0.04, 0.16)
    across = np.abs(x * np.cos(turn)[:, None, None] + y * np.sin(turn)[:, None, None] - shift[:, None, None])
    bar = (np.clip((width[:, None, None] - across) * sharp + 0.5, 0, 1) * (next(draw) < 0.4)[:, None, None])[..., None]
    image = image * (1 - bar) + colour() * bar
    turn, slope, level, gain = column(0, 2 * np.pi), column(0.0, 0.35), column(0.55, 1.05), column(-0.15, 0.15)
    light = level[:, None, None] + slope[:, None, None] * (x * np.cos(turn)[:, None, None] + y * np.sin(turn)[:, None, None])
    image = image * light[..., None] + gain[:, None, None, None] + (noise - 0.5) * column(0.02, 0.16)[:, None, None, None]
    assert image.shape == (n, size, size, 3)
    return (np.clip(image, 0, 1) * (255 * BRIGHTEST) + 0.5).astype(np.uint8)


def generate(n: int, seed: int, size: int = 32, split: str = "train") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return `n` images uint8 [n size size 3] and their labels int64 [n]; sample `i` depends on seed, split and `i` alone.

    Every ten samples in a row hold each class once, in a drawn order.
    """
    stream = {"train": 0, "test": 1}[split]
    classes = len(CLASS_NAMES)
    blocks = [np.random.default_rng([seed, stream, 0, block]).permutation(classes) for block in range(-(-n // classes))]
    labels = np.concatenate([*blocks, np.empty(0, np.int64)])[:n].astype(np.int64)
    images = np.empty((n, size, size, 3), np.uint8)
    points = {name: k * k * 3 for name, k in GRIDS.items()}
    for start in range(0, n, CHUNK):
        rows = range(start, min(start + CHUNK, n))
        width = DRAWS + sum(points.values()) + size * size * 3
        numbers = np.stack([np.random.default_rng([seed, stream, 1, i]).random(width, dtype=np.float32) for i in rows])
        ends = np.cumsum([DRAWS, *points.values()])
        grids = {
            name: numbers[:, end - points[name] : end].reshape(len(rows), k, k, 3) for (name, k), end in zip(GRIDS.items(), ends[1:], strict=True)
        }
        noise = numbers[:, ends[-1] :].reshape(len(rows), size, size, 3)
        images[rows.start : rows.stop] = _render(labels[rows.start : rows.stop], numbers[:, :DRAWS], grids, noise)
    return images, labels
