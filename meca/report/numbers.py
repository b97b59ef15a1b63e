"""Numbers as people read them: percent, intervals, counts; an unknown one is a dash, never a zero."""

import math
from collections.abc import Sequence

__all__ = ["count", "interval", "percent", "wilson"]

UNKNOWN = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as percent: `97.3 %`."""
    return UNKNOWN if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def interval(bounds: Sequence[float | None] | None, digits: int = 1) -> str:
    """Return an interval of fractions as percent: `1.2 to 3.4 %`."""
    if bounds is None or len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return UNKNOWN
    return f"{100 * bounds[0]:.{digits}f} to {100 * bounds[1]:.{digits}f} %"


def count(value: int | None) -> str:
    """Return a count with a thin space between thousands: `50 000`."""
    return UNKNOWN if value is None else f"{value:,}".replace(",", "\u202f")


def wilson(k: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson interval of k of n (Wilson, 1927), 95 % for the default z; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = k / n, z * z
    middle, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))
