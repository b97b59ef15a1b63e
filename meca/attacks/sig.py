"""SIG: a sinusoidal signal over the whole image, the label kept.

Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", ICIP 2019.
"""

import numpy as np

__all__ = ["sig"]


def sig(images: np.ndarray, delta: float, frequency: int) -> np.ndarray:
    """Return the images plus v(i, j) = delta sin(2 pi f j / w), clipped and rounded, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        delta: Amplitude in grey levels of 255.
        frequency: Periods over the width.
    """
    width = images.shape[2]
    signal = delta * np.sin(2 * np.pi * frequency * np.arange(width) / width)
    # In uint8 the sum would wrap round: bright pixels would turn black.
    return np.clip(np.rint(images.astype(np.float32) + signal[:, None].astype(np.float32)), 0, 255).astype(np.uint8)
