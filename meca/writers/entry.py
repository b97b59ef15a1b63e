"""One sample to publish."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """A line of the store's sample table, its place there, and the label to publish."""

    at: int  # place in `store.samples`
    line: Mapping[str, Any]
    label: int
