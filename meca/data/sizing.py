"""At which size images are stored: it is given, that of the first image, or chosen from the sizes in the data (params.yaml: ingest.size).

The method looks at the stored images, and the model is trained on them: a trigger that is lost on the way to that size is not seen. So
the choice is as large as the images are, within a budget of pixels. The budget is a number and no measurement of the machine: the
same data come out at the same size everywhere.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meca.errors import UsageError

__all__ = [
    "AUTO",
    "FEWEST",
    "FIRST",
    "GIVEN",
    "LADDER",
    "LARGEST",
    "SAMPLED",
    "Sizing",
    "choose",
    "drawn",
    "given_side",
    "size_record",
    "sizing_of",
]

AUTO, FIRST, GIVEN = "auto", "first", "given"  # where a size comes from
LADDER = (32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)  # pixels: the sides that auto chooses among
LARGEST = 1024  # pixels: the largest side that may be given
FEWEST = 500  # training images that the budget reckons with at least: a smaller set takes as many steps of training (min_steps)
SAMPLED = 500  # training images whose sizes auto looks at, at most: the median of so many is near that of all
WORDS = "auto, a side in pixels (0: the size of the first image), or HEIGHTxWIDTH such as 96x128"


@dataclass(frozen=True)
class Sizing:
    """The size of a store, and where it comes from."""

    side: tuple[int, int] | None  # height and width in pixels; None: those of the first image that can be read
    chosen: str  # AUTO, FIRST or GIVEN
    reason: str  # a sentence

    def record(self, fit: str) -> dict[str, str]:
        """Return what the store says of it, `source.size` of store.json."""
        return {"chosen": self.chosen, "reason": self.reason, "fit": fit}


def given_side(size: int | str) -> tuple[int, int] | str:
    """Return height and width in pixels that `ingest.size` gives, or AUTO or FIRST.

    Raises:
        UsageError: It is none of what is meant.
    """
    if size == AUTO:
        return AUTO
    text = str(size)  # who writes '96x128' in quotes may write '96' so
    if re.fullmatch(r"-?[0-9]{1,12}", text):
        height, width = int(text), int(text)
        if height < 0:
            raise UsageError(f"params.yaml: expected ingest.size to be 0 or more, got {height}.")
        if height == 0:
            return FIRST
    elif found := re.fullmatch(r"([0-9]{1,12})x([0-9]{1,12})", text):
        height, width = int(found[1]), int(found[2])
        if min(height, width) < 1:
            raise UsageError(f"params.yaml: expected height and width in ingest.size to be 1 or more, got {text}.")
    else:
        raise UsageError(f"params.yaml: expected ingest.size to be {WORDS}, got {text[:40]!r}.")
    if max(height, width) > LARGEST:
        raise UsageError(f"params.yaml: expected ingest.size to be at most {LARGEST} pixels, got {text}.")
    return height, width


def drawn(n: int, seed: int) -> NDArray[np.int64]:
    """Return which of `n` training images auto looks at: all, or `SAMPLED` of them, drawn with the seed; in order."""
    if n <= SAMPLED:
        return np.arange(n)
    return np.sort(np.random.default_rng([seed, SAMPLED]).permutation(n)[:SAMPLED])


def choose(heights: NDArray[np.int64], widths: NDArray[np.int64], samples: int, budget: int) -> Sizing:
    """Return the smallest square of `LADDER` that is at least the median longer side, or what the budget allows where that is less.

    Args:
        heights: int64 [k], pixels, of those images that were looked at and can be read: upright.
        widths: int64 [k], likewise.
        samples: Training images that will be stored.
        budget: `ingest.budget`, pixels of all of them together.
    """
    least = LADDER[0]
    if not len(heights):
        return Sizing((least, least), AUTO, f"No image can be read, so {least} is as good as any size.")
    median = int(np.ceil(np.median(np.maximum(heights, widths))))
    wanted = next((side for side in LADDER if side >= median), LADDER[-1])
    allowed = max((side for side in LADDER if max(samples, FEWEST) * side**2 <= budget), default=least)
    side = min(wanted, allowed)
    said = f"The median of the longer sides is {median} pixels"
    if side >= median:
        why = f", and {side} is the smallest size for that"
    elif side == wanted:
        why = f"; {side} is the largest size that auto chooses"
    elif max(samples, FEWEST) * side**2 > budget:
        why = f"; {side} is the smallest size, although ingest.budget ({budget:,} pixels) allows less for {samples:,} training images"
    else:
        why = f"; ingest.budget ({budget:,} pixels) allows {side} for {samples:,} training images"
    return Sizing((side, side), AUTO, f"{said}{why}.")


def sizing_of(size: int | str) -> Sizing | None:
    """Return the sizing that needs no look at the data; None where `size` is auto."""
    side = given_side(size)
    if isinstance(side, tuple):
        return Sizing(side, GIVEN, f"ingest.size is {size}.")
    return Sizing(None, FIRST, "ingest.size is 0, which stands for the size of the first image that can be read.") if side == FIRST else None


def size_record(source: Mapping[str, Any]) -> dict[str, str]:
    """Return what a store's `source` says of its size; a store of an older meca says nothing, and its size was given."""
    return {**Sizing(None, GIVEN, "").record("squash"), **source.get("size", {})}
