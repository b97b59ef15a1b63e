"""Sources that are arrays in memory: scikit-learn's bundled digits, and the generated `shapes`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meca.data.readers import shapes
from meca.data.readers.source import Found, Labels, Source

__all__ = ["open_digits", "open_shapes"]


def open_digits() -> Source:
    """Return 1,797 scans of handwritten digits, 8x8; of every class each fifth scan is for evaluation."""
    from sklearn.datasets import load_digits  # only here: it takes long to import

    bunch: Any = load_digits()
    pixels = np.rint(np.asarray(bunch["data"]).reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(bunch["target"]).astype(np.int64)
    place = np.array([np.count_nonzero(labels[:at] == label) for at, label in enumerate(labels)])  # how many of its class come before
    of_test = place % 5 == 4
    return _source("digits", tuple(str(digit) for digit in range(10)), {"train": pixels[~of_test], "test": pixels[of_test]}, labels, of_test)


def _source(name: str, class_names: tuple[str, ...], images: dict[str, NDArray[np.uint8]], labels: Labels, of_test: NDArray[np.bool_]) -> Source:
    given = {"train": labels[~of_test], "test": labels[of_test]}

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        for at in np.flatnonzero(take):
            yield Found(f"{name}-{split}#{at:06d}", int(given[split][at]), pixels=images[split][at])

    return Source(format=name, name=name, class_names=class_names, labels=given, read=read)


def open_shapes(n_train: int, n_test: int, seed: int, size: int) -> Source:
    """Return generated objects; `size` is their side in pixels."""
    train, test = shapes.generate(n_train, seed, size), shapes.generate(n_test, seed, size, "test")
    of_test = np.arange(n_train + n_test) >= n_train
    return _source("shapes", shapes.CLASS_NAMES, {"train": train[0], "test": test[0]}, np.concatenate([train[1], test[1]]), of_test)
