"""What is drawn for one sample: it depends on the seed and on the sample's row, never on its batch or its place there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["COVERS", "IMBALANCE", "NOISE", "POISON", "SAMPLE", "SIGN", "SOURCES", "TRIGGER", "Draws"]

# The role is the second word of a seed, so that no draw moves another.
POISON, COVERS, NOISE, IMBALANCE, TRIGGER, SAMPLE, SOURCES, SIGN = 1, 2, 3, 4, 5, 6, 7, 8


@dataclass(frozen=True)
class Draws:
    """The samples of a batch that get a trigger for training."""

    seed: int
    rows: np.ndarray  # int64 [b], of the training set
    ranks: np.ndarray  # int64 [b], places in the seeded permutation by which the samples were chosen
    triggers: int = 1  # that lead to a class each; a sample carries number rank mod `triggers`

    def generators(self) -> Iterator[np.random.Generator]:
        """Return a generator for each sample, of its own."""
        return (np.random.default_rng([self.seed, SAMPLE, int(row)]) for row in self.rows)

    def again(self, role: int, draw: Callable[[np.random.Generator], Any]) -> np.ndarray:
        """Return what is drawn for each sample in a role of its own, beside what its view draws: [b ...]."""
        return np.array([draw(np.random.default_rng([self.seed, role, int(row)])) for row in self.rows])

    def each(self, draw: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
        """Return what `draw` draws for each sample, stacked: [b ...]; at least one sample is needed to know the shape."""
        return np.stack([draw(rng) for rng in self.generators()])
