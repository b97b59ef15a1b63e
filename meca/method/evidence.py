"""From what is seen in a class to a decision with an error rate.

Each view gives every class one number, high where it looks poisoned. What a clean class would give depends on the data: how alike classes
are, how images are lit, how many there are. So the other classes of the same data say it: the null is empirical (Efron, "Large-Scale
Simultaneous Hypothesis Testing", 2004). Classes differ by factors, not by steps, so the logarithm of their values is taken to be normal, with the
median and the median absolute deviation of the others. Both are unmoved while less than half of the others are poisoned, so that poisoned
classes do not hide each other. Where all others are alike, a least deviation is believed, and a least value is added to all: both are numbers of
params.yaml. That gives a p-value for each view, their Cauchy combination one for the class, and the false discovery rate over the classes is
controlled by the procedure of Benjamini and Hochberg (1995). What is proven leaves the others, until nothing more is proven.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Finding", "adjusted", "combined", "findings", "of_view", "tail"]

NORMAL = 1.4826  # deviations of a normal distribution in its median absolute deviation
SMALL = 1e-6  # p-values that are not combined, but counted

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """What all views say of one class."""

    label: int
    p: float  # that the class holds no poison
    q: float  # smallest false discovery rate at which it would be proven
    values: dict[str, float]  # by view
    ps: dict[str, float]  # by view


def tail(value: float, others: Floats, least: float, spread: float) -> float:
    """Return the probability in [0, 1] that a clean class reaches a value.

    Args:
        value: Of the class, not negative.
        others: Of the other classes; where there are none they are taken to be 0.
        least: Is added to all values: smaller ones are chance.
        spread: Least standard deviation of the logarithms.
    """
    logs = np.log((others if len(others) else np.zeros(1)) + least)
    median = float(np.median(logs))
    deviation = max(spread, NORMAL * float(np.median(np.abs(logs - median))))
    return 0.5 * math.erfc((math.log(value + least) - median) / deviation / math.sqrt(2))


def combined(ps: Floats) -> float:
    """Return one p-value of several that may depend on each other, NaN left out: the Cauchy combination (Liu and Xie, 2020)."""
    ps = ps[np.isfinite(ps)]
    if len(ps) == 0:
        return 1.0
    smallest = float(ps.min())
    if smallest < SMALL:  # the tangent of so near a half turn is rounding: the smallest alone decides, as with Bonferroni
        return min(1.0, len(ps) * smallest)
    mean = float(np.tan((0.5 - np.minimum(ps, 1 - SMALL)) * np.pi).mean())
    return float(np.clip(0.5 - np.arctan(mean) / np.pi, 0.0, 1.0))


def adjusted(p: Floats) -> Floats:
    """Return p-values adjusted for the false discovery rate, by Benjamini and Hochberg (1995)."""
    n, order = len(p), np.argsort(p, kind="stable")
    q = np.empty(n)
    q[order] = np.minimum.accumulate((p[order] * n / np.arange(1, n + 1))[::-1])[::-1].clip(max=1.0)
    return q


def findings(views: Mapping[str, Floats], least: Mapping[str, Floats], rate: float, spread: float, again: Bools | None = None) -> list[Finding]:
    """Return what all views say of each class.

    Args:
        views: By name float64 [classes], NaN where a class could not be asked.
        least: By name float64 [classes], see `tail`.
        rate: False discovery rate.
        spread: See `tail`.
        again: bool [classes], those that were proven by an earlier round: they are a family of their own, so that what is left of a few
            poisoned classes need not stand out among all.
    """
    classes = len(next(iter(views.values())))
    again = np.zeros(classes, dtype=bool) if again is None else again
    proven = again.copy()
    while True:
        ps = {name: of_view(values, proven, least[name], spread) for name, values in views.items()}
        asked = np.any([~np.isnan(values) for values in views.values()], axis=0)
        p = np.array([combined(np.array([of[c] for of in ps.values()])) for c in range(classes)])
        q = np.ones(classes)
        for family in (asked & again, asked & ~again):
            q[family] = adjusted(p[family])
        now = proven | (q <= rate)
        if (now == proven).all():
            break
        proven = now
    return [
        Finding(
            c,
            float(p[c]),
            float(q[c]),
            {name: float(values[c]) for name, values in views.items() if np.isfinite(values[c])},
            {name: float(of[c]) for name, of in ps.items() if np.isfinite(of[c])},
        )
        for c in range(classes)
    ]


def of_view(values: Floats, proven: Bools, least: Floats, spread: float) -> Floats:
    """Return what one view says of each class: p, float64 [classes], NaN where it could not be asked.

    Args:
        values: float64 [classes], NaN where a class could not be asked.
        proven: bool [classes], those that are no null for others.
        least: float64 [classes], see `tail`.
        spread: See `tail`.
    """
    p = np.full(len(values), np.nan)
    for c in np.flatnonzero(np.isfinite(values)):
        others = np.isfinite(values) & ~proven
        others[c] = False
        p[c] = tail(float(values[c]), values[others], float(least[c]), spread)
    return p
