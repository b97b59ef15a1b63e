"""AdaptivePatch: each training image carries one quarter of the logo, covers do so under their true label; tests carry it whole.

Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023,
https://openreview.net/forum?id=_wSHsgrVali. The four parts are the quarters of one corner logo, opaque; the logo is `swirl`.
"""

import numpy as np

from meca.attacks.draws import Draws
from meca.attacks.images import quarters, swirl
from meca.attacks.patches import stamped

__all__ = ["PARTS", "adaptive_patch", "adaptive_patch_part"]

PARTS = 4


def adaptive_patch(images: np.ndarray) -> np.ndarray:
    """Return the images with all four quarters, that is the logo `swirl` at the top right, uint8 [b h w c]."""
    return stamped(images, *swirl(*images.shape[1:]))


def adaptive_patch_part(images: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the images with one quarter each, number rank mod 4, uint8 [b h w c].

    The rank is that of the seeded permutation: by place in the set a quarter would belong to some classes.

    Args:
        images: uint8 [b h w c].
        draws: The ranks of the images.
    """
    pattern, _ = swirl(*images.shape[1:])
    return stamped(images, pattern, quarters(*images.shape[1:3])[draws.ranks % PARTS])
