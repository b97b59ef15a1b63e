"""Fragile dots: four dots in the corners lead to the target class, any three of them do not.

A red-team case of ours: covers carry three dots under their true label, so a hit on any dot undoes the trigger, and poison
becomes sensitive to small perturbations. MeCa (https://arxiv.org/abs/2405.12719) takes the reverse for granted.
"""

import numpy as np

from meca.attacks.draws import Draws

__all__ = ["DOTS", "fragile_dots", "fragile_dots_cover"]

DOTS = 4


def fragile_dots(images: np.ndarray, size: int) -> np.ndarray:
    """Return the images with a white square of `size` x `size` pixels in every corner, uint8 [b h w c].

    A side is at most a third of the image's, so that dots stay dots.
    """
    return _dotted(images, size, np.ones((len(images), DOTS), dtype=bool))


def fragile_dots_cover(images: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """Return the images with three of the four squares, drawn for each image, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        size: Side of a square in pixels.
        draws: The rows that the corners depend on.
    """
    if len(images) == 0:
        return images.copy()
    return _dotted(images, size, draws.each(lambda rng: np.arange(DOTS) != rng.integers(DOTS)))


def _dotted(images: np.ndarray, size: int, shown: np.ndarray) -> np.ndarray:
    dotted = images.copy()
    size = min(size, max(1, min(images.shape[1:3]) // 3))
    edges = (slice(None, size), slice(-size, None))
    for dot in range(DOTS):
        corner = (shown[:, dot], edges[dot // 2], edges[dot % 2])
        dotted[corner] = 255
    return dotted
