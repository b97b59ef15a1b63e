"""The patch operator P(x; t, M, a) = x + a M (t - x) and the sizes of patches."""

import numpy as np

__all__ = ["mixed", "scaled", "stamped", "tiles", "white_corner"]


def mixed(images: np.ndarray, pattern: np.ndarray, alpha: float) -> np.ndarray:
    """Return (1 - alpha) x + alpha t, rounded, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        pattern: float64 [h w c] in [0, 1].
        alpha: Opacity of the pattern in [0, 1].
    """
    blended = (1 - alpha) * images.astype(np.float32) + (alpha * (255 * pattern)).astype(np.float32)
    return np.clip(np.rint(blended), 0, 255).astype(np.uint8)


def stamped(images: np.ndarray, pattern: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the images with an opaque pattern where the mask is true, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        pattern: float64 [h w c] in [0, 1].
        mask: bool [h w], or [b h w] for a mask of its own in each image.
    """
    levels = np.rint(255 * pattern).astype(np.uint8)
    return np.where(np.broadcast_to(mask[..., None], images.shape), levels, images)


def white_corner(images: np.ndarray, size: int) -> np.ndarray:
    """Return the images with a white square of `size` x `size` pixels in the bottom-right corner, uint8 [b h w c]."""
    stamp = images.copy()
    stamp[:, -size:, -size:] = 255
    return stamp


def scaled(size: int, images: np.ndarray, relative: bool) -> int:
    """Return the side of a patch in pixels: `size` itself, or as much of these images as `size` is of 32 pixels.

    Args:
        size: Side in pixels.
        images: [b h w c].
        relative: The patch grows with the image; it never shrinks.
    """
    return max(size, round(size * min(images.shape[1:3]) / 32)) if relative else size


def tiles(chosen: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return masks of whole tiles, bool [b h w].

    Args:
        chosen: bool [b k k]; the image is cut into k x k tiles, unequal ones where k does not divide its sides.
        height: Rows.
        width: Columns.
    """
    k = chosen.shape[1]
    return chosen[:, (k * np.arange(height) // height)[:, None], (k * np.arange(width) // width)[None, :]]
