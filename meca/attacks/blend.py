"""Blend: a full-size pattern, faintly mixed in.

Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", arXiv 1712.05526, 2017.
The pattern of the literature is a third party's mark, so a generated one (`waves`) takes its place.
"""

import numpy as np

from meca.attacks.images import waves
from meca.attacks.patches import mixed

__all__ = ["blend"]


def blend(images: np.ndarray, alpha: float) -> np.ndarray:
    """Return (1 - alpha) x + alpha t, t the pattern `waves`, rounded, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        alpha: Opacity of the pattern in [0, 1].
    """
    return mixed(images, waves(*images.shape[1:]), alpha)
