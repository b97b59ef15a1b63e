"""Two clusters a class: the smaller one is found, and it is poison only by what it flips."""

import warnings

import numpy as np
import pytest
import torch
from meca.method.clusters import Asked, changed_pairs, smaller_clusters
from torch import Tensor, nn

from meca.training.engine import Data

CLASSES, SIZE, PLANTED = 6, 60, 8
ASKED = Asked(most=0.35, least=5, probe=100)


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


class Reader(nn.Module):
    """Sees the class in the brightest column; with `tricked`, light in the last row flips it to the next class."""

    def __init__(self, tricked: bool) -> None:
        super().__init__()
        self.tricked = tricked

    def forward(self, x: Tensor) -> Tensor:
        seen = x[:, 0, :-1].mean(1)
        light = (x[:, 0, -1].mean(1) > 0.15) & self.tricked
        return seen + 1.5 * light[:, None] * seen.roll(1, 1)


def samples(moved: bool = True) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Return images, labels, features and who is planted: images of the class before, if `moved`, with light in the last row."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), SIZE)
    odd = np.arange(len(labels)) % SIZE < PLANTED
    content = np.where(odd & moved, (labels - 1) % CLASSES, labels)
    images = rng.integers(80, 100, (len(labels), CLASSES + 1, CLASSES, 1)).astype(np.uint8)
    images[np.arange(len(labels)), :-1, content] += 120
    images[:, -1] = rng.integers(0, 20, (len(labels), CLASSES, 1))
    images[odd, -1] += 60  # less than it takes to make one class of another
    values = rng.normal(0, 0.1, (len(labels), CLASSES + 1))
    values[np.arange(len(labels)), labels] += 3
    values[odd, CLASSES] += 3
    return torch.from_numpy(images), torch.from_numpy(labels), values, odd


def test_a_trigger_that_changes_every_class_to_the_next_is_carried_by_the_clusters() -> None:
    images, labels, values, odd = samples()
    found = changed_pairs(Reader(True), Data(images, labels), values, CLASSES, ASKED, 0)
    assert np.array_equal(found.small, odd) and found.flip_rates.shape == (CLASSES,) and found.flip_rates.min() > 0.9
    again = changed_pairs(Reader(True), Data(images, labels), values, CLASSES, ASKED, 0)
    assert np.array_equal(found.flip_rates, again.flip_rates)


def test_a_network_that_has_not_learnt_it_turns_nothing() -> None:
    images, labels, values, _ = samples()
    assert changed_pairs(Reader(False), Data(images, labels), values, CLASSES, ASKED, 0).flip_rates.max() == 0.0


def test_a_second_kind_of_pictures_turns_nothing() -> None:
    images, labels, values, odd = samples(moved=False)
    found = changed_pairs(Reader(False), Data(images, labels), values, CLASSES, ASKED, 0)
    assert np.array_equal(found.small, odd) and found.flip_rates.max() == 0.0


@pytest.mark.parametrize(("most", "least"), [(PLANTED / SIZE - 0.01, 5), (0.35, PLANTED + 1)])
def test_clusters_that_are_too_large_or_too_small_are_not_asked(most: float, least: int) -> None:
    images, labels, values, _ = samples()
    assert changed_pairs(Reader(True), Data(images, labels), values, CLASSES, Asked(most, least, 100), 0).flip_rates.max() == 0.0
    assert changed_pairs(Reader(True), Data(images, labels), values, CLASSES, Asked(PLANTED / SIZE, PLANTED, 100), 0).flip_rates.min() > 0.9


def test_a_single_class_has_nothing_to_be_changed_from() -> None:
    images, labels, values, _ = samples()
    one = labels == 0
    found = changed_pairs(Reader(True), Data(images[one], labels[one]), values[one.numpy()], CLASSES, ASKED, 0)
    assert found.flip_rates.tolist() == [0.0] * CLASSES and int(found.small.sum()) == PLANTED
