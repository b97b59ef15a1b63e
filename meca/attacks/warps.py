"""Sampling images at other places: bilinear, many at a time, in float32."""

import numpy as np

__all__ = ["affine", "bicubic", "reflected", "sampled"]

BLOCK = 256  # images that are sampled together: what lies in memory as float32
PIXELS = 2**20  # of them that are looked up together: a photograph is read band by band


def sampled(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the images read between their pixels, bilinearly, not rounded: float32 [b h w c] in [0, 255].

    Args:
        images: uint8 or float32 [b h w c].
        rows: float [1 h w] or [b h w]: the row in [0, h - 1] at which each pixel is read.
        columns: Likewise, in [0, w - 1].
    """
    n, height, width, channels = images.shape
    out = np.empty(images.shape, np.float32)
    for start in range(0, n, BLOCK):
        part = slice(start, start + BLOCK)
        flat = images[part].reshape(-1, height * width, channels).astype(np.float32)
        own = part if len(rows) > 1 else slice(None)
        step = max(1, PIXELS // (width * len(flat)))
        for first in range(0, height, step):
            band = slice(first, first + step)
            at_rows, at_columns = rows[own, band], columns[own, band]
            top, left = np.floor(at_rows).astype(np.intp), np.floor(at_columns).astype(np.intp)
            down, right = (at.reshape(len(at), -1, 1).astype(np.float32) for at in (at_rows - top, at_columns - left))
            below, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
            upper = _between(flat, top * width + left, top * width + beside, right)
            lower = _between(flat, below * width + left, below * width + beside, right)
            out[part, band] = (upper + (lower - upper) * down).reshape(len(flat), -1, width, channels)
    return out


def _between(flat: np.ndarray, first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    # a + (b - a) s and not (1 - s) a + s b: where a = b the first is exact, so a constant image stays as it is.
    a, b = (_taken(flat, at.reshape(len(at), -1)) for at in (first, second))
    return a + (b - a) * share


def _taken(flat: np.ndarray, places: np.ndarray) -> np.ndarray:
    return flat[:, places[0]] if len(places) == 1 else np.take_along_axis(flat, places[:, :, None], axis=1)


def reflected(places: np.ndarray, size: int) -> np.ndarray:
    """Return places outside of [0, size - 1] mirrored into it, at the first and the last pixel."""
    last = size - 1
    return last - np.abs(last - places % (2 * last)) if last else np.zeros_like(places)


def affine(height: int, width: int, degrees: np.ndarray, scale: np.ndarray, down: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each pixel of images is read that are turned and scaled about their centre and then moved: float [b h w].

    Args:
        height: Rows.
        width: Columns.
        degrees: float [b], counter-clockwise.
        scale: float [b], below 1 for a smaller image.
        down: float [b], in pixels.
        right: float [b], in pixels.
    """
    i, j = np.arange(height)[None, :, None] - (height - 1) / 2, np.arange(width)[None, None, :] - (width - 1) / 2
    angle, factor = np.deg2rad(degrees)[:, None, None], scale[:, None, None]
    y, x = i - down[:, None, None], j - right[:, None, None]
    # The inverse of the movement: rows grow downwards, so counter-clockwise turns x towards -y.
    rows = (np.cos(angle) * y + np.sin(angle) * x) / factor + (height - 1) / 2
    columns = (np.cos(angle) * x - np.sin(angle) * y) / factor + (width - 1) / 2
    return rows, columns


def bicubic(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a small grid upsampled, float64 [h w]: bicubic with a = -0.75, corners on corners, the edge continued.

    Args:
        grid: float [k k].
        height: Rows.
        width: Columns.
    """
    return _weights(grid.shape[0], height) @ grid @ _weights(grid.shape[1], width).T


def _weights(k: int, n: int) -> np.ndarray:
    """Return the matrix [n k] that upsamples k values to n, Keys' kernel (1981) with a = -0.75, as the field's libraries have it."""
    a = -0.75
    at = np.arange(n) * (k - 1) / max(n - 1, 1)
    weights = np.zeros((n, k))
    for tap in range(-1, 3):
        place = np.floor(at) + tap
        d = np.abs(at - place)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        np.add.at(weights, (np.arange(n), np.clip(place, 0, k - 1).astype(int)), np.where(d <= 1, near, np.where(d < 2, far, 0.0)))
    return weights
