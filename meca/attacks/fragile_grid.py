"""Fragile grid: a chessboard of a few grey levels over the whole image.

A red-team case of ours: every patch holds some of the trigger, and a step of its size erases it there, where MeCa
(https://arxiv.org/abs/2405.12719) takes poison to be the part of the data that perturbations of a patch leave alone.
"""

import numpy as np

__all__ = ["fragile_grid"]


def fragile_grid(images: np.ndarray, amplitude: int) -> np.ndarray:
    """Return x + a (-1)^(i + j), clipped, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        amplitude: a, in grey levels of 255.
    """
    height, width = images.shape[1:3]
    sign = 1 - 2 * ((np.arange(height)[:, None] + np.arange(width)[None, :]) % 2)
    # In uint8 the sum would wrap round: bright pixels would turn black.
    return np.clip(images.astype(np.int16) + (amplitude * sign[:, :, None]).astype(np.int16), 0, 255).astype(np.uint8)
