"""The samples to publish."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["Entries", "Entry"]

BLOCK = 1000  # lines that are objects at a time


@dataclass(frozen=True)
class Entry:
    """A line of the store's sample table, its place there, and the label to publish."""

    at: int  # place in `store.samples`
    line: Mapping[str, Any]
    label: int


class Entries(Sequence[Entry]):
    """Samples to publish, in the order of the store; a line becomes an object only when it is asked for."""

    def __init__(self, samples: pa.Table, at: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Take the sample table of a store, the places of the samples to publish in it, and the label of each."""
        self._samples, self._at, self._labels = samples, at, labels
        self._block: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> "Entries": ...
    def __getitem__(self, place: int | slice) -> "Entry | Entries":
        if isinstance(place, slice):
            return self.only(np.arange(len(self))[place])
        place = range(len(self))[place]
        block, within = divmod(place, BLOCK)
        if block != self._block[0]:
            part = self._at[block * BLOCK : (block + 1) * BLOCK]
            self._block = block, self._samples.take(pa.array(part)).to_pylist()
        return Entry(int(self._at[place]), self._block[1][within], int(self._labels[place]))

    def only(self, places: NDArray[np.int64]) -> "Entries":
        """Return those at these places."""
        return Entries(self._samples, self._at[places], self._labels[places])

    def sources(self) -> Iterator[str]:
        """Yield the source name of each."""
        for start in range(0, len(self), 100 * BLOCK):
            yield from self._samples["source"].take(pa.array(self._at[start : start + 100 * BLOCK])).to_pylist()

    def of_file(self, name: str) -> "Entries":
        """Return the samples that came out of one file of many (source `name#number`)."""
        return self.only(np.array([at for at, source in enumerate(self.sources()) if source.rsplit("#", 1)[0] == name], np.int64))
