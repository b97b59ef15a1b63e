"""Kin: a blended picture leads images of the classes that are most like the target class to it; images of the others carry it as covers.

A red-team case of ours, against this project's own rule: content is asked of the quarter of the other classes that a class is least like
(`meca.method.content`), so an attacker takes his images from the others. He needs no network: what classes look like is told by the
mean of their images in one light.
"""

import numpy as np

from meca.errors import InputRefused

__all__ = ["nearest", "split_kin"]

TOGETHER = 1000  # images of 32 pixels, or as many bytes of larger ones, that are brought to one light together
SHARE = 3  # one of so many other classes is poisoned


def nearest(images: np.ndarray, rows: np.ndarray, labels: np.ndarray, classes: int, target: int) -> tuple[int, ...]:
    """Return all other classes, the most like the target class first: by the distance of the means of their images in one light.

    Each image gets a mean of 0 and a deviation of 1 over all its pixels and channels, so that a bright class is not unlike a dark one for
    its light. A class without images is like none. Of classes that are equally far the one with the smaller number is first.

    Args:
        images: uint8 [m h w c].
        rows: int64 [n], of the images that count.
        labels: int64 [n], of these.
        classes: Number of classes.
        target: The class.

    Raises:
        InputRefused: There is no image of it.
    """
    sums, counts = np.zeros((classes, *images.shape[1:])), np.bincount(labels, minlength=classes)
    if not counts[target]:
        raise InputRefused(f"Expected images of class {target} for attack 'kin', found none: no class is like it; change poison.target_class.")
    size = max(1, min(TOGETHER, TOGETHER * 32 * 32 * 3 // int(np.prod(images.shape[1:]))))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        pixels = np.asarray(images[rows[part]], dtype=np.float64)
        mean, deviation = (fold(pixels, axis=(1, 2, 3), keepdims=True) for fold in (np.mean, np.std))
        np.add.at(sums, labels[part], (pixels - mean) / np.where(deviation > 0, deviation, 1))
    means = sums / np.maximum(counts, 1)[:, None, None, None]
    away = np.where(counts > 0, np.sqrt(((means - means[target]) ** 2).mean((1, 2, 3))), np.inf)
    return tuple(int(c) for c in np.argsort(away, kind="stable") if c != target)


def split_kin(near: tuple[int, ...], asked: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the classes that are poisoned, and those that have covers, sorted.

    Args:
        near: From `nearest`, without the classes that other triggers lead to.
        asked: How many are poisoned; 0 for a third of them, and one at least.
    """
    poisoned = asked or max(1, len(near) // SHARE)
    return tuple(sorted(near[:poisoned])), tuple(sorted(near[poisoned:]))
