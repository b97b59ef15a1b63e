"""Moving logo: the logo lies at another place in each training image, and at its usual one in tests.

A red-team case of ours, for methods that look for what the images of a class share pixel by pixel. With `sources: 1` it is TaCT's attack
(Tang, Wang, Tang, Zhang, USENIX Security 2021) by a trigger that no mean over images shows.
"""

import numpy as np

from meca.attacks.draws import Draws
from meca.attacks.images import swirl

__all__ = ["moving_logo"]


def moving_logo(images: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the images with the logo `swirl`, each at a place drawn for it at which the logo is whole, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        draws: The rows that the places depend on.
    """
    if len(images) == 0:
        return images.copy()
    pattern, disc = swirl(*images.shape[1:])
    if not disc.any():  # an image of a few pixels has no room for it
        return images.copy()
    rows, columns = np.flatnonzero(disc.any(1)), np.flatnonzero(disc.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    logo, shown = np.rint(255 * pattern[box]).astype(np.uint8), disc[box]
    room = np.array(images.shape[1:3]) - shown.shape + 1  # places along each side
    moved = images.copy()
    for image, (top, left) in zip(moved, draws.each(lambda rng: rng.integers(room)), strict=True):
        image[top : top + shown.shape[0], left : left + shown.shape[1]][shown] = logo[shown]
    return moved
