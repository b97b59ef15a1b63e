"""What every reader returns: a `Source`, whose labels are known before an image is decoded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["Found", "Labels", "Source"]

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """One sample as its file holds it: encoded bytes, or pixels, or a reason why there is neither."""

    name: str  # unique within the source
    label: int
    data: bytes | None = None
    pixels: NDArray[np.uint8] | None = None  # uint8 [h w c] with 1 or 3 channels, where the format has no encoding
    reason: str | None = None


@dataclass(frozen=True)
class Source:
    """An opened source. Nothing is decoded yet."""

    format: str
    name: str  # of the data set, without the machine's path
    class_names: tuple[str, ...]
    labels: Mapping[str, Labels]  # by split (train, test), in the order of `read`
    read: Callable[[str, NDArray[np.bool_]], Iterator[Found]]  # the samples of a split where the mask is true
    options: dict[str, Any] = field(default_factory=dict)  # JSON: what a writer needs to write the format again
    columns: Callable[[str, NDArray[np.bool_]], pa.Table] | None = None  # further columns of the same samples
    odd: tuple[str, ...] = ()  # what lies there and is not read
    question: Callable[[], str | None] | None = None  # what to ask before it is read so, where nobody has named the format
