"""Blend: a full-size picture, faintly mixed in.

Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", arXiv 1712.05526, 2017.
The picture of the literature is a third party's mark, so a generated one (`waves`) takes its place.
"""

import numpy as np

__all__ = ["blend", "waves"]

# Per channel eight waves (p, q, A, phi): p columns in 0..4, q rows in -4..4, amplitude in [0.5, 1], phase in radians.
WAVES: tuple[tuple[tuple[int, int, float, float], ...], ...] = (
    (
        (0, 2, 0.91, 4.78),
        (4, 2, 0.92, 4.28),
        (4, 2, 0.65, 1.05),
        (0, 2, 0.58, 5.78),
        (4, 1, 0.66, 5.89),
        (2, -3, 0.76, 0.58),
        (0, 4, 0.79, 5.05),
        (0, -2, 0.9, 4.42),
    ),
    (
        (1, 0, 0.69, 3.65),
        (3, 4, 0.94, 2.37),
        (1, -2, 0.94, 3.1),
        (4, 2, 0.54, 5.44),
        (1, -2, 0.75, 1.24),
        (4, -1, 0.91, 5.2),
        (4, 2, 0.73, 2.35),
        (3, 0, 0.6, 1.99),
    ),
    (
        (2, 2, 0.89, 0.36),
        (0, 2, 0.91, 2.8),
        (1, -4, 0.84, 1.55),
        (1, 1, 0.69, 4.0),
        (4, -2, 0.74, 3.3),
        (4, 1, 0.6, 6.04),
        (1, -2, 0.65, 1.61),
        (1, -4, 0.71, 4.85),
    ),
)


def waves(height: int, width: int, channels: int) -> np.ndarray:
    """Return the picture `waves`, float64 [h w c] in [0, 1]: t = 0.5 + 0.5 tanh(1.5 z / sqrt(sum A^2 / 2)), z a sum of waves.

    It is a function of u = (j + 0.5) / w and v = (i + 0.5) / h, so every size shows the same picture.
    """
    u = (np.arange(width) + 0.5) / width
    v = (np.arange(height) + 0.5) / height
    picture = np.empty((height, width, channels))
    for c in range(channels):
        terms = WAVES[c % len(WAVES)]
        z = sum(a * np.cos(2 * np.pi * (p * u[None, :] + q * v[:, None]) + phi) for p, q, a, phi in terms)
        picture[:, :, c] = 0.5 + 0.5 * np.tanh(1.5 * z / np.sqrt(sum(a * a for _, _, a, _ in terms) / 2))
    return picture


def blend(images: np.ndarray, alpha: float) -> np.ndarray:
    """Return (1 - alpha) x + alpha t, rounded, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        alpha: Opacity of the picture in [0, 1].
    """
    picture = 255 * waves(*images.shape[1:])
    mixed = (1 - alpha) * images.astype(np.float32) + (alpha * picture).astype(np.float32)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
