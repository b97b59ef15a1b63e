"""In a proven class the poison is told from the rest, by networks that have not seen what they judge; no other class is touched."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from meca.method.enhance import folds
from meca.method.localise import ROUNDS, Seeds, order_by_features, separate
from meca.models import Architecture, Network, build
from meca.training.engine import Data, Session, features
from meca.training.seeds import generator
from tests.method.planted import CLASSES, FULL, SHORT, SIZE, WIDTH, Planted, clean, plant
from tests.method.tiny import CPU, copied, description, unchanged

TARGET = 1
WORDS = description(Architecture("compact", "s2d", WIDTH), SIZE, classes=CLASSES)


@cache
def learnt() -> tuple[Planted, Network]:
    """Return a set with a patch, and a network that has learnt it."""
    made = plant(clean(), TARGET, 30)
    model = build(WORDS, generator("localise"))
    return made, Network(Session(0, CPU).train(model, Data(made.images, made.labels), FULL, "learnt"), WORDS)


class Watched(Session):
    """Writes down what each training was taught."""

    def __init__(self) -> None:
        super().__init__(0, CPU)
        object.__setattr__(self, "taught", [])

    def train(self, model, data, recipe, purpose, keep=None, objective=None):
        self.taught.append((data.labels.clone(), keep.clone()))  # pyright: ignore[reportAttributeAccessIssue]
        return super().train(model, data, recipe, purpose, keep, objective)


@cache
def separated() -> tuple[np.ndarray, np.ndarray, list]:
    """Return the rows of the class, their margins, and what was taught; a quarter of the poison and some clean samples begin."""
    made, network = learnt()
    rows = np.flatnonzero((made.labels == TARGET).numpy())
    poison = made.poison.numpy()[rows]
    order = np.random.default_rng(0).normal(0, 0.5, len(rows)) + poison
    session = Watched()
    seeds = {TARGET: Seeds(rows, order, float(poison.mean()), 0.15)}
    margins = separate(session, network, Data(made.images, made.labels), seeds, SHORT, "test")
    assert margins.keys() == {TARGET}
    return rows, margins[TARGET], session.taught  # pyright: ignore[reportAttributeAccessIssue]


def test_a_planted_patch_is_separated() -> None:
    made, _ = learnt()
    rows, margins, _ = separated()
    poison = made.poison.numpy()[rows]
    assert roc_auc_score(poison, margins) > 0.97
    assert (margins[poison] > 0).mean() > 0.9 and (margins[~poison] > 0).mean() < 0.1, "and the line is at zero"


def test_each_sample_is_judged_by_networks_that_have_not_seen_it() -> None:
    made, _ = learnt()
    taught = separated()[2]
    half = folds(made.labels, Session(0, CPU).draws("split", "folds", "test"))
    assert len(taught) == 2 * ROUNDS
    for number, (_, keep) in enumerate(taught):
        held = half if number % 2 == 0 else ~half
        assert not (keep & held).any() and keep.any()
    in_class = made.labels == TARGET
    assert all(0.3 < (half[in_class].float().mean()) < 0.7 for _ in range(1)), "both folds have samples of the class"


def test_only_the_proven_class_is_taught_as_suspect_and_others_keep_their_labels() -> None:
    made, _ = learnt()
    for labels, keep in separated()[2]:
        others = keep & (made.labels != TARGET)
        assert torch.equal(labels[others], made.labels[others]) and set(labels[keep & ~others].tolist()) == {TARGET, CLASSES}
        assert set(made.labels[others].tolist()) == set(range(CLASSES)) - {TARGET}, "others show what has no trigger"


def test_the_network_that_it_begins_with_is_not_changed() -> None:
    made, network = learnt()
    before = copied(network.model)
    rows = np.flatnonzero((made.labels == 2).numpy())
    session, data = Session(0, CPU), Data(made.images, made.labels)
    brief = dataclasses.replace(SHORT, epochs=1)
    margins = separate(session, network, data, {2: Seeds(rows, np.arange(len(rows), dtype=float), 0.5, 0.3)}, brief, "x")
    assert unchanged(network.model, before) and margins[2].shape == rows.shape and np.isfinite(margins[2]).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.95, 1.0])
def test_a_class_of_few_samples_and_any_share_is_answered(share: float) -> None:
    made, network = learnt()
    brief, data = dataclasses.replace(SHORT, epochs=1), Data(made.images, made.labels)
    rows = np.flatnonzero((made.labels == 2).numpy())[:4]
    other = np.flatnonzero((made.labels == 5).numpy())
    seeds = {2: Seeds(rows, np.zeros(4), share, 0.15), 5: Seeds(other, np.zeros(len(other)), share, 0.3)}
    margins = separate(Session(0, CPU), network, data, seeds, brief, "few")
    assert {c: len(values) for c, values in margins.items()} == {2: 4, 5: len(other)}
    assert all(np.isfinite(values).all() for values in margins.values())


def test_the_order_by_features_puts_all_that_has_the_trigger_before_the_rest() -> None:
    made, network = learnt()
    rows = np.flatnonzero((made.labels == TARGET).numpy())
    poison = made.poison.numpy()[rows]
    suspects = poison & (np.cumsum(poison) <= poison.sum() / 3)  # a third of it
    values = features(network.model, made.images[torch.from_numpy(rows)]).double().numpy()
    order = order_by_features(values, suspects)
    assert roc_auc_score(poison, order) > 0.95 and roc_auc_score(poison[~suspects], order[~suspects]) > 0.9


@settings(deadline=None, derandomize=True, max_examples=25)
@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50), seed=st.integers(0, 5))
def test_neither_the_scale_nor_the_zero_of_a_feature_matters(scale: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, suspects = rng.normal(0, 1, (30, 6)), np.arange(30) < 8
    values[suspects] += 1.0
    moved = values * np.array([scale, 1, 1, 1, 1, 1]) + np.array([0, shift, 0, 0, 0, 0])
    assert np.allclose(order_by_features(values, suspects), order_by_features(moved, suspects), atol=1e-2)
    flat = np.concatenate([values, np.full((30, 1), 3.0)], axis=1)
    assert np.isfinite(order_by_features(flat, suspects)).all()
