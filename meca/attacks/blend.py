"""Blend: a full-size pattern, faintly mixed in.

Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", arXiv 1712.05526, 2017.
The picture of the literature is a third party's mark, so a generated one takes its place (`meca.attacks.images.picture`).
"""

import numpy as np

from meca.attacks.images import waves
from meca.attacks.patches import mixed

__all__ = ["blend"]


def blend(images: np.ndarray, alpha: float, picture: np.ndarray | None = None) -> np.ndarray:
    """Return (1 - alpha) x + alpha t, rounded, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        alpha: Opacity of the picture in [0, 1].
        picture: t, float64 [h w c] in [0, 1]; the pattern `waves` if None.
    """
    return mixed(images, waves(*images.shape[1:]) if picture is None else picture, alpha)
