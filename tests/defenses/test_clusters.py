"""Two clusters a class: the smaller one is found."""

import warnings

import numpy as np
import pytest

from meca.defenses.clusters import smaller_clusters

CLASSES, SIZE, PLANTED = 6, 60, 8


def blobs(seed: int = 0, apart: float = 12.0, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels, and which samples lie apart from the rest of their class: the first eight of each."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), SIZE) if labels is None else labels
    odd = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        odd[np.flatnonzero(labels == c)[:PLANTED]] = True
    values = rng.normal(0, 1, (len(labels), 12)) + 20 * np.eye(12)[labels]
    values[odd, 11] += apart
    return values, labels, odd


@pytest.mark.parametrize("seed", range(3))
def test_the_smaller_cluster_is_what_lies_apart(seed: int) -> None:
    values, labels, odd = blobs(seed)
    small, nearer = smaller_clusters(values, labels, seed)
    assert np.array_equal(small, odd)
    assert np.array_equal(nearer > 0, odd) and np.abs(nearer).max() <= 1 and nearer[odd].mean() > 0.5 > -0.5 > nearer[~odd].mean()


def test_one_seed_gives_the_same_clusters() -> None:
    values, labels, _ = blobs(apart=0.0)
    first, again = smaller_clusters(values, labels, 2**33 + 1), smaller_clusters(values, labels, 2**33 + 1)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert (np.bincount(labels, weights=first[0]) <= SIZE / 2).all() and (np.bincount(labels, weights=first[0]) > 0).all()


def test_classes_that_are_small_or_all_alike_are_not_divided() -> None:
    values, labels, _ = blobs(labels=np.repeat([0, 1, 2], [19, 20, 40]))
    values[labels == 2] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, nearer = smaller_clusters(values, labels, 0)
    assert np.bincount(labels, weights=small).tolist() == [0, PLANTED, 0] and not nearer[labels != 1].any()
