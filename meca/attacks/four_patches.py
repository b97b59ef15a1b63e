"""Four patches: AdaptivePatch as its authors run it. A training image carries one of four patches, faintly; tests carry two, opaque.

Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023,
https://openreview.net/forum?id=_wSHsgrVali. Opacities and rates (0.3 % poison, 0.6 % covers) are the authors', and so is which two
patches a test carries. Two of their patches are third parties' marks and all have a place of their own in a file: ours are generated.
"""

import numpy as np

from meca.attacks.draws import Draws
from meca.attacks.images import swirl, waves
from meca.attacks.patches import mixed

__all__ = ["OPACITIES", "PATCHES", "four_patches", "four_patches_part", "patch_images"]

OPACITIES = (0.5, 0.2, 0.5, 0.3)
PATCHES = len(OPACITIES)
SHOWN = (0, 2)  # what a test carries
CHECKER, STRIPES = 4 / 32, 8 / 32  # sides of the two squares, of the shorter side


def patch_images(height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the four patches, float64 [4 h w c] in [0, 1], and where they lie, bool [4 h w].

    The logo `swirl` at the top right; a disc of the pattern `waves` at the bottom left, of the same size; a chessboard of single
    pixels at the bottom right; diagonal stripes, two pixels white and two black, at the top left.
    """
    logo, disc = swirl(height, width, channels)
    i, j = np.arange(height)[:, None], np.arange(width)[None, :]
    small, large = (max(1, round(part * min(height, width))) for part in (CHECKER, STRIPES))
    board, stripes = ((pattern % 2 == 0).astype(np.float64) for pattern in (i + j, (i + j) // 2))
    patterns = [logo, waves(height, width, channels), *(np.repeat(plane[:, :, None], channels, axis=2) for plane in (board, stripes))]
    return np.stack(patterns), np.stack([disc, disc[::-1, ::-1], (i >= height - small) & (j >= width - small), (i < large) & (j < large)])


def four_patches(images: np.ndarray) -> np.ndarray:
    """Return the images with the logo and the chessboard, opaque, uint8 [b h w c]."""
    patterns, masks = patch_images(*images.shape[1:])
    triggered = images.copy()
    for patch in SHOWN:
        triggered = np.where(masks[patch][:, :, None], mixed(triggered, patterns[patch], 1.0), triggered)
    return triggered


def four_patches_part(images: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the images with one patch each, number rank mod 4, at its opacity, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        draws: The ranks of the images.
    """
    patterns, masks = patch_images(*images.shape[1:])
    triggered = images.copy()
    for patch, opacity in enumerate(OPACITIES):
        mine = draws.ranks % PATCHES == patch
        triggered[mine] = np.where(masks[patch][:, :, None], mixed(images[mine], patterns[patch], opacity), images[mine])
    return triggered
