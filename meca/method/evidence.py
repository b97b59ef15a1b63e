"""From what is seen in a class to a decision with an error rate.

Each view gives every class one number, high where it looks poisoned. What a clean class would give depends on the data: how alike classes
are, how images are lit, how many there are. So the other classes of the same data say it. Beyond their median a clean class's value is
taken to fall off exponentially, with the mean excess of the others; where all others are alike, with a least mean that is a number of
params.yaml. That gives a p-value for each view, their Cauchy combination one for the class, and the false discovery rate over the classes is
controlled by the procedure of Benjamini and Hochberg (1995).

Poisoned classes among the others would hide each other. So the excess is measured below the 80 % quantile, and scaled to what an
exponential has there; and what is proven leaves the others, until nothing more is proven.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Finding", "adjusted", "combined", "findings", "tail"]

HIGH = 0.8  # quantile of the other classes, beyond which their values do not count: they may be poisoned
SCALE = 0.6  # mean excess over the median of an exponential that is cut at its 80 % quantile, over its own mean: 1 - 0.2 / 0.5

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


def tail(value: float, others: Floats, least: float) -> float:
    """Return the probability in (0, 1] that a clean class reaches a value.

    Args:
        value: Of the class.
        others: Of the other classes; none says nothing.
        least: Smallest mean excess that is believed.
    """
    if len(others) == 0:
        others = np.zeros(1)
    median, high = np.quantile(others, (0.5, HIGH))
    above = np.clip(others[others >= median], None, high) - median
    mean = max(least, float(above.mean()) / SCALE)
    if value > median:
        return float(0.5 * np.exp(-(value - median) / mean))
    # Where all are alike, as where no class looks like any other, a class is in the middle of them, and the view says nothing.
    return (int((others > value).sum()) + 0.5 * (int((others == value).sum()) + 1)) / (1 + len(others))


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


def findings(views: Mapping[str, Floats], least: Mapping[str, Floats], rate: float, again: Bools | None = None) -> list[Finding]:
    """Return what all views say of each class.

    Args:
        views: By name float64 [classes], NaN where a class could not be asked.
        least: By name float64 [classes], see `tail`.
        rate: False discovery rate.
        again: bool [classes], those that were proven by an earlier round: they are a family of their own, so that what is left of a few
            poisoned classes need not stand out among all.
    """
    classes = len(next(iter(views.values())))
    again = np.zeros(classes, dtype=bool) if again is None else again
    proven = again.copy()
    while True:
        ps = {name: _of_view(values, proven, least[name]) for name, values in views.items()}
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


def _of_view(values: Floats, proven: Bools, least: Floats) -> Floats:
    p = np.full(len(values), np.nan)
    for c in np.flatnonzero(np.isfinite(values)):
        others = np.isfinite(values) & ~proven
        others[c] = False
        p[c] = tail(float(values[c]), values[others], float(least[c]))
    return p
