"""What networks see in a class that they have never seen: who sees what, how sure that is, and how much of a class is foreign."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from meca.method.content import ASIDE, FEW, Content, foreign_share, look_without, lower_mean
from meca.models import Architecture
from meca.training.engine import Data, Session
from tests.method.planted import CLASSES, PARAMS, SIZE, WIDTH, Planted, clean
from tests.method.tiny import CPU, description, recipe

WORDS = description(Architecture("compact", "s2d", WIDTH), SIZE, classes=CLASSES)
BRIEF = recipe(epochs=1, batch_size=16)
SWAPPED = 20  # samples of other classes that get label 3


def look(made: Planted, how=PARAMS.recipe, groups: int = 5, classes: int = CLASSES, session: Session | None = None) -> Content:
    words = dataclasses.replace(WORDS, class_names=tuple(f"class {c}" for c in range(classes)))
    return look_without(session or Session(0, CPU), Data(made.images, made.labels), words, how, groups)


@cache
def swapped() -> tuple[Planted, Content]:
    """Return a set in which class 3 has some samples of every other class, and what is seen in it."""
    made = clean()
    labels, wrong = made.labels.clone(), torch.zeros(len(made.labels), dtype=torch.bool)
    for c in range(CLASSES):
        if c != 3:
            wrong[torch.nonzero(made.labels == c)[: SWAPPED // 9 + (c < 2), 0]] = True
    labels[wrong] = 3
    made = Planted(made.images, labels, wrong)
    return made, look(made)


def test_no_network_is_trained_on_a_class_that_it_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    made = clean(20)
    taught: list[tuple[set[int], torch.Tensor]] = []

    class Watched(Session):
        def train(self, model, data, recipe, purpose, keep=None, objective=None):
            assert keep is not None
            taught.append((set(made.labels[keep].tolist()), keep))
            return super().train(model, data, recipe, purpose, keep, objective)

    found = look(made, BRIEF, session=Watched(0, CPU))
    assert len(taught) == 5 and (found.seen >= 0).all()
    for c in range(CLASSES):
        (known,) = [seen for seen, _ in taught if c not in seen]
        assert set(np.flatnonzero(found.known[c])) == known and c not in known and len(known) == 8
        assert set(found.seen[(made.labels == c).numpy()].tolist()) <= known, "nor can it answer with it"
    together = torch.stack([keep for _, keep in taught]).sum(0)
    assert ((together == 0) | (together == 4)).all() and 0.05 < (together == 0).float().mean() < 0.4, "what is aside is so for all"


def test_a_wrong_label_shows_its_true_class_and_is_typical_of_it() -> None:
    made, found = swapped()
    true, wrong = clean().labels.numpy(), made.poison.numpy()
    asked = wrong & found.known[3][true]
    assert asked.sum() > SWAPPED / 2 and (found.seen == true)[asked].mean() > 0.8
    rest = ~wrong & (made.labels == 3).numpy()
    assert np.median(found.typical[asked]) > 0.25 > 0.15 > np.median(found.typical[rest])


def test_true_samples_that_were_held_out_are_uniformly_typical() -> None:
    """A conformal p-value: of samples that a network has not seen, as of those aside, each value is as frequent as any."""
    made, found = swapped()
    true, wrong = clean().labels.numpy(), made.poison.numpy()
    values: list[float] = []
    for seed in range(3):
        more = look(made, session=Session(seed + 1, CPU)) if seed else found
        values += more.typical[wrong & (more.seen == true)].tolist()
    assert len(values) > 30 and kstest(values, "uniform").pvalue > 1e-3


def test_the_share_of_wrong_labels_is_read_off() -> None:
    made, found = swapped()
    labels = made.labels.numpy()
    everything = np.ones(len(labels), dtype=bool)
    shares = foreign_share(found, labels, everything, 0.1)
    planted = made.poison.numpy()[labels == 3].mean()
    known = np.isfinite(shares[3])
    assert known.sum() == 8 and 0.4 * planted < np.median(shares[3][known]) < 2.5 * planted
    others = [lower_mean(shares[c], 0.5) for c in range(CLASSES) if c != 3]
    assert lower_mean(shares[3], 0.5) > 0.5 * planted > 3 * max(others)
    gone = foreign_share(found, labels, ~made.poison.numpy(), 0.1)
    assert lower_mean(gone[3], 0.5) < 0.2 * planted, "what is not kept does not count"


@settings(deadline=None, derandomize=True, max_examples=20)
@given(share=st.floats(0.1, 0.9), strictness=st.sampled_from([0.1, 0.5, 0.75]), seed=st.integers(0, 9))
def test_a_share_that_is_drawn_from_all_classes_is_that_share_at_any_strictness(share: float, strictness: float, seed: int) -> None:
    """By hand: of class 0 a share looks as samples of the others do, and the rest like nothing."""
    rng, n, classes = np.random.default_rng(seed), 4000, 5
    labels = np.concatenate([np.zeros(n, dtype=np.int64), np.repeat(np.arange(1, classes), [100, 200, 300, 400])])
    seen, typical = np.full(len(labels), -1), np.zeros(len(labels))
    seen[:n] = rng.choice([1, 2, 3, 4], n, p=[0.1, 0.2, 0.3, 0.4])
    typical[:n] = np.where(rng.random(n) < share, rng.random(n), 0.0)
    known = np.zeros((classes, classes), dtype=bool)
    known[0, 1:] = True
    shares = foreign_share(Content(seen, typical, known), labels, np.ones(len(labels), dtype=bool), strictness)
    assert np.isnan(shares[0, 0]) and np.isnan(shares[1:]).all()
    assert np.allclose(shares[0, 1:], share, atol=0.3 if strictness < 0.7 else 0.45) and abs(shares[0, 1:].mean() - share) < 0.12


@pytest.mark.parametrize(("classes", "asked"), [(2, False), (3, True)])
def test_of_two_classes_nothing_is_asked_and_of_three_each(classes: int, asked: bool) -> None:
    made = clean(30, classes)
    found = look(made, BRIEF, classes=classes)
    assert (found.seen >= 0).all() == asked and found.known.any() == asked and found.known.sum() == (6 if asked else 0)
    assert (found.typical > 0).all() and (found.typical <= 1).all()
    assert np.isfinite(foreign_share(found, made.labels.numpy(), np.ones(len(made.labels), dtype=bool), 0.5)).any() == asked


def test_empty_classes_and_single_samples_are_answered() -> None:
    made = clean(30, 4)
    labels = made.labels.clone()
    labels[0] = 5
    found = look(dataclasses.replace(made, labels=labels), BRIEF, groups=3, classes=6)
    assert not found.known[4].any() and not found.known[:, 4].any(), "nobody is asked about an empty class, or answers with it"
    assert found.seen[0] in range(4) and found.known[5].any()
    shares = foreign_share(found, labels.numpy(), np.ones(len(labels), dtype=bool), 0.5)
    assert np.isnan(shares[4]).all() and np.isnan(shares[:, 4]).all()
    nothing = foreign_share(found, labels.numpy(), np.zeros(len(labels), dtype=bool), 0.5)
    assert np.isnan(nothing).all()


def test_a_class_with_few_samples_aside_borrows_those_of_all() -> None:
    """Six or so are aside of each of four classes, so a value is a share of all that are aside of the three known ones."""
    made, session = clean(30, 4), Session(0, CPU)
    found = look(made, BRIEF, groups=4, classes=4, session=session)
    aside = torch.rand(len(made.labels), generator=session.draws("split", "aside")) < ASIDE
    assert torch.bincount(made.labels[aside], minlength=4).max() < FEW, "or this test says nothing"
    for c in range(4):
        all_of_them = int((aside & (made.labels != c)).sum())
        ranks = found.typical[(made.labels == c).numpy()] * (all_of_them + 1)
        assert np.allclose(ranks, ranks.round()) and ranks.min() >= 1


@settings(deadline=None, derandomize=True)
@given(values=st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=20), share=st.floats(0.05, 1))
def test_the_lower_mean_is_the_mean_of_the_lowest(values: list[float], share: float) -> None:
    finite = sorted(v for v in values if v == v)
    k = max(1, int(np.ceil(len(finite) * share)))
    assert lower_mean(np.array(values), share) == pytest.approx(np.mean(finite[:k]) if finite else 0.0)
