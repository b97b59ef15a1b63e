"""Numbers as people read them: percent, intervals, counts; an unknown one is a dash, never a zero."""

import math
from collections.abc import Sequence

__all__ = ["count", "interval", "percent"]

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
