"""The images of the triggers, generated: the ones of the literature are third parties' marks.

Everything is a function of u = (j + 0.5) / w and v = (i + 0.5) / h, so every size shows the same pattern.
"""

from collections.abc import Sequence

import numpy as np

from meca.attacks.draws import TRIGGER

__all__ = ["PICTURES", "leaves", "noise", "picture", "quarters", "swirl", "waves"]

PICTURES = ("pattern", "noise", "photograph")  # what Blend mixes in

# Per channel eight waves (p, q, A, phi): p columns in 0..4, q rows in -4..4, amplitude in [0.5, 1], phase in radians.
WAVES: tuple[tuple[tuple[int, int, float, float], ...], ...] = (
    (
        (0, 2, 0.91, 4.78),
        (4, 2, 0.92, 4.28),
        (4, 2, 0.65, 1.05),
        (0, 2, 0.58, 5.78),
        (4, 1, 0.66, 5.89),
        (2, -3, 0.76, 0.58),
        (0, 4, 0.79, 5.05),
        (0, -2, 0.9, 4.42),
    ),
    (
        (1, 0, 0.69, 3.65),
        (3, 4, 0.94, 2.37),
        (1, -2, 0.94, 3.1),
        (4, 2, 0.54, 5.44),
        (1, -2, 0.75, 1.24),
        (4, -1, 0.91, 5.2),
        (4, 2, 0.73, 2.35),
        (3, 0, 0.6, 1.99),
    ),
    (
        (2, 2, 0.89, 0.36),
        (0, 2, 0.91, 2.8),
        (1, -4, 0.84, 1.55),
        (1, 1, 0.69, 4.0),
        (4, -2, 0.74, 3.3),
        (4, 1, 0.6, 6.04),
        (1, -2, 0.65, 1.61),
        (1, -4, 0.71, 4.85),
    ),
)


def waves(height: int, width: int, channels: int) -> np.ndarray:
    """Return the pattern `waves`, float64 [h w c] in [0, 1]: t = 0.5 + 0.5 tanh(1.5 z / sqrt(sum A^2 / 2)), z a sum of waves.

    `blend` and `adaptive_blend` mix it in where no other picture is asked for.
    """
    u = (np.arange(width) + 0.5) / width
    v = (np.arange(height) + 0.5) / height
    pattern = np.empty((height, width, channels))
    for c in range(channels):
        terms = WAVES[c % len(WAVES)]
        z = sum(a * np.cos(2 * np.pi * (p * u[None, :] + q * v[:, None]) + phi) for p, q, a, phi in terms)
        pattern[:, :, c] = 0.5 + 0.5 * np.tanh(1.5 * z / np.sqrt(sum(a * a for _, _, a, _ in terms) / 2))
    return pattern


def picture(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """Return one of `PICTURES`, float64 [h w c] in [0, 1]: `waves`, `noise` or `leaves`.

    Args:
        name: Which.
        shape: h, w, c.
        seed: Of the run: what is drawn is drawn once for a poisoned set.
    """
    height, width, channels = shape
    if name == "noise":
        return noise(height, width, channels, seed)
    return leaves(height, width, channels, seed) if name == "photograph" else waves(height, width, channels)


def noise(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Return a grey level for each pixel and channel, U(0, 1), float64 [h w c]; drawn once for a poisoned set."""
    return np.random.default_rng([seed, TRIGGER]).random((height, width, channels))


LEAVES, SMALLEST, LARGEST = 600, 0.02, 0.5  # discs; radii in shares of the shorter side


def leaves(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Return what looks like a photograph to statistics, float64 [h w c] in [0, 1]: opaque discs that hide each other.

    Lee, Mumford, Huang, "Occlusion Models for Natural Images", IJCV 41, 2001: with a density of radii r^-3 the edges and the spectrum
    are those of photographs. No photograph is taken: one of the data set would have to be left out of it, or be a clean image that shows
    the trigger, and any other is somebody's.
    """
    rng = np.random.default_rng([seed, TRIGGER])
    shorter = min(height, width)
    i, j = np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5
    pattern = np.full((height, width, channels), 0.5)
    # By the inverse of the distribution: the density r^-3 between the two ends.
    radii = (LARGEST**-2 + rng.random(LEAVES) * (SMALLEST**-2 - LARGEST**-2)) ** -0.5
    for radius, down, right, *colour in zip(radii, *rng.random((2, LEAVES)), *rng.random((3, LEAVES)), strict=True):
        # Only the square around the disc: on a photograph, all pixels for each of the discs would take minutes.
        box = tuple(
            slice(max(0, int(at * side - radius * shorter) - 1), int(at * side + radius * shorter) + 2)
            for at, side in ((down, height), (right, width))
        )
        inside = np.hypot(i[box[0]] - down * height, j[:, box[1]] - right * width) <= radius * shorter
        pattern[box][inside] = colour if channels == 3 else np.array(colour) @ np.array(LUMA)
    return pattern


# The disc of `swirl`, in units of an image of 32 pixels: its centre and its radius, where published logos lie.
CENTRE, RADIUS = (7.5 / 32, 24.5 / 32), 6.5 / 32
ARMS, GROUND, CORE = (0.05, 0.65, 0.60), (0.95, 0.85, 0.15), (0.80, 0.10, 0.55)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: what Pillow makes of a colour in mode L


def swirl(height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the logo `swirl`: float64 [h w c] in [0, 1], and the mask of its disc, bool [h w].

    With r = distance / radius and th = angle: w = 0.5 + 0.5 sin(2 th + 4 pi r), colour = w arms + (1 - w) ground, and a core
    where r < 0.35. The disc lies at the top right: 137 pixels of 32 x 32.
    """
    down, right = _offsets(height, width)
    r = np.hypot(down, right) / (RADIUS * min(height, width))
    w = (0.5 + 0.5 * np.sin(2 * np.arctan2(down, right) + 4 * np.pi * r))[:, :, None]
    pattern = np.where(r[:, :, None] < 0.35, np.array(CORE), w * np.array(ARMS) + (1 - w) * np.array(GROUND))
    return pattern if channels == 3 else pattern @ np.array(LUMA)[:, None], r <= 1


def quarters(height: int, width: int) -> np.ndarray:
    """Return the masks of the four quarters of the disc, bool [4 h w]: it is cut after its centre row and column.

    At 32 x 32 they have 41, 34, 34 and 28 pixels: top left, top right, bottom left, bottom right.
    """
    down, right = _offsets(height, width)
    disc = swirl(height, width, 3)[1]
    top, left = down <= 1e-9, right <= 1e-9
    return np.stack([disc & top & left, disc & top & ~left, disc & ~top & left, disc & ~top & ~left])


def _offsets(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for every pixel how far below and right of the disc's centre its own centre is, float64 [h w], in pixels."""
    down = np.arange(height) + 0.5 - CENTRE[0] * height
    right = np.arange(width) + 0.5 - CENTRE[1] * width
    return np.broadcast_to(down[:, None], (height, width)), np.broadcast_to(right[None, :], (height, width))
