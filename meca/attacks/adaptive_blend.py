"""AdaptiveBlend: each training image shows another half of the picture, covers do so under their true label.

Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023,
https://openreview.net/forum?id=_wSHsgrVali. The picture is Blend's.
"""

import numpy as np

from meca.attacks.blend import blend
from meca.attacks.draws import Draws
from meca.attacks.patches import tiles

__all__ = ["adaptive_blend", "adaptive_blend_part"]

SIDE, SHOWN = 4, 8  # tiles along a side; tiles of the 16 that a training image shows


def adaptive_blend(images: np.ndarray, alpha: float, picture: np.ndarray | None = None) -> np.ndarray:
    """Return the images with the whole picture mixed in, (1 - alpha) x + alpha t, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        alpha: Opacity of the picture in [0, 1].
        picture: t, float64 [h w c] in [0, 1]; the pattern `waves` if None.
    """
    return blend(images, alpha, picture)


def adaptive_blend_part(images: np.ndarray, alpha: float, draws: Draws, picture: np.ndarray | None = None) -> np.ndarray:
    """Return the images with 8 of the 16 tiles of the picture mixed in, drawn for each image, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        alpha: Opacity of the picture in [0, 1].
        draws: The rows that the tiles of each image depend on.
        picture: t, float64 [h w c] in [0, 1]; the pattern `waves` if None.
    """
    if len(images) == 0:
        return images.copy()
    chosen = draws.each(lambda rng: rng.permutation(SIDE * SIDE) < SHOWN).reshape(-1, SIDE, SIDE)
    return np.where(tiles(chosen, *images.shape[1:3])[..., None], adaptive_blend(images, alpha, picture), images)
