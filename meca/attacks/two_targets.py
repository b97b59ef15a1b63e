"""Two targets: a white square at the bottom right leads to one class, a checkered one at the top left to another.

A red-team case of ours, for methods that look for one class; the squares are BadNet's (Gu, Dolan-Gavitt, Garg, IEEE Access 7, 2019).
"""

import numpy as np

from meca.attacks.draws import Draws
from meca.attacks.patches import white_corner

__all__ = ["TRIGGERS", "checkered", "two_targets"]

TRIGGERS = 2
CHECKER = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]], np.uint8)


def checkered(images: np.ndarray, size: int) -> np.ndarray:
    """Return the images with the block 0 0 1 / 0 1 0 / 1 0 1, white and black, scaled to `size`, in the top-left corner."""
    stamp = images.copy()
    height, width = (min(size, side) for side in images.shape[1:3])
    cells = CHECKER[3 * np.arange(height)[:, None] // size, 3 * np.arange(width)[None, :] // size]
    stamp[:, :height, :width] = 255 * cells[:, :, None]
    return stamp


def two_targets(images: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """Return the images with one trigger each, by rank mod 2: the white one, or the checkered one; uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        size: Side of both in pixels.
        draws: The ranks of the images.
    """
    second = (draws.ranks % TRIGGERS == 1)[:, None, None, None]
    return np.where(second, checkered(images, size), white_corner(images, size))
