"""BadNet: a white square in the bottom-right corner.

Gu, Dolan-Gavitt, Garg, "BadNets: Evaluating Backdooring Attacks on Deep Neural Networks", IEEE Access 7, 2019.
"""

import numpy as np

from meca.attacks.patches import white_corner

__all__ = ["badnet"]


def badnet(images: np.ndarray, size: int) -> np.ndarray:
    """Return the images with a white square of `size` x `size` pixels in the bottom-right corner, uint8 [b h w c]."""
    return white_corner(images, size)
