"""PhysicalBA: a logo is stamped on, and then the image is photographed again: turned, moved, brighter or darker.

Li, Zhai, Jiang, Li, Xia, "Backdoor Attack in the Physical World", https://arxiv.org/abs/2104.02361, 2021.
The original transforms every training image afresh in each epoch and so controls training. Here the transform is drawn once
for each poisoned image and written into the set. Size and place of the logo are not published; `swirl` is ours.
"""

import numpy as np

from meca.attacks.draws import Draws
from meca.attacks.images import swirl
from meca.attacks.patches import stamped
from meca.attacks.warps import affine, reflected, sampled

__all__ = ["photographed", "physical"]

MIRROR, JITTER, DEGREES, SHIFT, SCALES = 0.5, 0.2, 10.0, 0.1, (0.8, 0.9)  # as published; SHIFT is a share of the side


def physical(images: np.ndarray) -> np.ndarray:
    """Return the images with the logo `swirl` at the top right, uint8 [b h w c]."""
    return stamped(images, *swirl(*images.shape[1:]))


def photographed(images: np.ndarray, draws: Draws) -> np.ndarray:
    """Return A(x) for each image: mirrored or not, brightness and contrast, then a movement; uint8 [b h w c].

    The borders are reflected: a black frame would mark the poison better than the logo does.

    Args:
        images: uint8 [b h w c].
        draws: The rows that the transform of each image depends on.
    """
    if len(images) == 0:
        return images.copy()
    height, width = images.shape[1:3]
    mirrored, brightness, contrast, degrees, scale, down, right = draws.each(_transform).T
    x = np.where((mirrored < MIRROR)[:, None, None, None], images[:, :, ::-1], images).astype(np.float32)
    x = np.clip(x * _wide(brightness), 0, 255)
    x = np.clip(x * _wide(contrast) + (1 - _wide(contrast)) * x.mean((1, 2, 3), keepdims=True), 0, 255)
    rows, columns = affine(height, width, degrees, scale, down * height, right * width)
    return np.rint(sampled(x, reflected(rows, height), reflected(columns, width))).astype(np.uint8)


def _transform(rng: np.random.Generator) -> np.ndarray:
    """Return mirror, brightness, contrast, degrees, scale, and the shift down and right in shares of the side: float64 [7]."""
    low = np.array([0, 1 - JITTER, 1 - JITTER, -DEGREES, SCALES[0], -SHIFT, -SHIFT])
    high = np.array([1, 1 + JITTER, 1 + JITTER, DEGREES, SCALES[1], SHIFT, SHIFT])
    return rng.uniform(low, high)


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None, None, None]
