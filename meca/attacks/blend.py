"""Blend: a full-size picture, faintly mixed in.

Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", arXiv 1712.05526, 2017.
The picture of the literature is a third party's mark, so a generated one (`waves`) takes its place.
"""

import numpy as np

from meca.attacks.patches import mixed
from meca.attacks.pictures import waves

__all__ = ["blend"]


def blend(images: np.ndarray, alpha: float) -> np.ndarray:
    """Return (1 - alpha) x + alpha t, t the picture `waves`, rounded, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        alpha: Opacity of the picture in [0, 1].
    """
    return mixed(images, waves(*images.shape[1:]), alpha)
