"""Crowd: half of all classes are targets, each of a small patch of its own, at a place of its own and of its own colours.

A red-team case of ours, against this project's own rule: what a clean class looks like is read off the other classes of the same data
(`meca.method.evidence`), so an attacker poisons so many of them that the others are poisoned, too.
"""

from collections.abc import Sequence

import numpy as np

from meca.attacks.draws import Draws

__all__ = ["CELLS", "crowd", "crowd_part", "crowd_targets", "in_turn", "patch"]

CELLS = 3  # along a side of a patch
OWN = 9  # of the seeds of colours and places, so that nothing else draws the same


def crowd_targets(classes: int, first: int, asked: int) -> tuple[int, ...]:
    """Return the classes that the triggers lead to: `first` and those after it, as many as are asked for, or half of all and two at least.

    Args:
        classes: Number of classes, at least two.
        first: The class of the first trigger.
        asked: How many; 1 for half of them.
    """
    return tuple((first + step) % classes for step in range(asked if asked > 1 else max(2, classes // 2)))


def patch(number: int, channels: int) -> np.ndarray:
    """Return the colours of a trigger, uint8 [3 3 c], each 0 or 255; they depend on its number alone.

    Each channel has a mask of its own, which is never all 0, and of 511 triggers that follow each other no two have one in common.

    Args:
        number: Of the trigger, from 0.
        channels: c.
    """
    masks = [np.random.default_rng([OWN, channel]).permutation(np.arange(1, 2**CELLS**2))[number % (2**CELLS**2 - 1)] for channel in range(channels)]
    bits = np.array(masks) >> np.arange(CELLS**2)[:, None] & 1
    return (255 * bits).astype(np.uint8).reshape(CELLS, CELLS, channels)


def crowd(images: np.ndarray, size: int, number: int) -> np.ndarray:
    """Return the images with the patch of one trigger at its place, uint8 [b h w c].

    The places are the cells of a grid over the whole image, in an order that is always the same. Where there are more triggers than cells of
    this size, places are taken again, with other colours.

    Args:
        images: uint8 [b h w c].
        size: Side of the patch in pixels; at most the shorter side of the image.
        number: Of the trigger, from 0.
    """
    stamp = images.copy()
    height, width, channels = images.shape[1:]
    size = min(size, height, width)
    down, right = height // size, width // size
    cell = int(np.random.default_rng([OWN, down, right]).permutation(down * right)[number % (down * right)])
    # The grid is stretched to the edges, so that what is left over lies between patches.
    top = (height - size) * (cell // right) // max(1, down - 1)
    left = (width - size) * (cell % right) // max(1, right - 1)
    shown = CELLS * np.arange(size) // size
    stamp[:, top : top + size, left : left + size] = patch(number, channels)[shown[:, None], shown[None, :]]
    return stamp


def crowd_part(images: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """Return the images with one trigger each, number rank mod the number of triggers, uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        size: Side of the patches in pixels.
        draws: The ranks of the images, and how many triggers there are.
    """
    stamped, numbers = images.copy(), draws.ranks % draws.triggers
    for number in np.unique(numbers):
        mine = numbers == number
        stamped[mine] = crowd(images[mine], size, int(number))
    return stamped


def in_turn(order: np.ndarray, labels: np.ndarray, targets: Sequence[int], most: int) -> np.ndarray:
    """Return rows for the ranks 0, 1, 2, …, int64: of each the first of the order that is left and not of the class that its trigger leads to.

    So what is chosen for a few ranks is a prefix of what is chosen for many. The rows end where only images of a trigger's own class are left.

    Args:
        order: int64, the rows that may be chosen, the first ones first.
        labels: int64 [n], of all rows.
        targets: The class that the trigger of each rank leads to, by rank mod their number.
        most: How many rows.
    """
    waiting: dict[int, list[int]] = {}  # places in the order of images that were passed over, by class, the first ones last
    passed: dict[int, int] = {}  # how many of them have been taken since
    chosen: list[int] = []
    at = 0
    while len(chosen) < most:
        target = targets[len(chosen) % len(targets)]
        found = min((places[passed[label]] for label, places in waiting.items() if label != target and passed[label] < len(places)), default=None)
        if found is None:
            while at < len(order) and labels[order[at]] == target:
                waiting.setdefault(target, []).append(at)
                passed.setdefault(target, 0)
                at += 1
            if at == len(order):
                break
            found, at = at, at + 1
        else:
            passed[int(labels[order[found]])] += 1
        chosen.append(int(order[found]))
    return np.array(chosen, dtype=np.int64)
