"""Which samples are poisoned: the rate counts all samples, carriers come from the pool, a cap is counted."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.errors import InputRefused
from meca.poisoning import PoisonParams, Selection, plan
from tests.making import settings

PARAMS = settings().group("poison", PoisonParams)
CLASSES = 4


def pick(labels: np.ndarray, clean_label: bool = False, seed: int = 0, **changes: Any) -> Selection:
    changes = {"attack": "sig" if clean_label else "badnet", **changes}
    return plan(labels, CLASSES, dataclasses.replace(PARAMS, **changes), seed).poison


def labels_of(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CLASSES, n)


draws = {
    "seed": st.integers(0, 99),
    "n": st.integers(1, 200),
    "rate": st.floats(0.01, 0.9),
    "cap": st.floats(0.05, 1.0),
    "carrier": st.sampled_from(["non_target", "all"]),
    "clean_label": st.booleans(),
}


@examples(derandomize=True, deadline=None)
@given(**draws)
def test_the_promised_number_of_the_pool_is_chosen(seed: int, n: int, rate: float, cap: float, carrier: str, clean_label: bool) -> None:
    labels = labels_of(seed, n)
    pool = labels == 1 if clean_label else (labels != 1) | (carrier == "all")
    requested = math.floor(n * rate + 1e-9)
    expected = min(requested, math.floor(cap * pool.sum()))
    assume(expected > 0)
    chosen = pick(labels, clean_label, seed, rate=rate, cap=cap, carrier=carrier)
    assert len(chosen.rows) == expected and (np.diff(chosen.rows) > 0).all()
    assert pool[chosen.rows].all()
    assert (chosen.requested, chosen.pool, chosen.capped) == (requested, pool.sum(), expected < requested)


@examples(derandomize=True, deadline=None)
@given(**draws)
def test_poison_at_a_lower_rate_is_part_of_poison_at_a_higher_one(
    seed: int, n: int, rate: float, cap: float, carrier: str, clean_label: bool
) -> None:
    labels = labels_of(seed, n)
    try:
        low = pick(labels, clean_label, seed, rate=rate / 3, cap=cap, carrier=carrier)
    except InputRefused:
        return
    high = pick(labels, clean_label, seed, rate=rate, cap=cap, carrier=carrier)
    assert set(low.rows) <= set(high.rows)


def test_one_seed_gives_one_choice_and_another_seed_another() -> None:
    labels = labels_of(0, 200)
    assert np.array_equal(pick(labels).rows, pick(labels).rows)
    assert not np.array_equal(pick(labels).rows, pick(labels, seed=1).rows)


def test_a_rate_whose_float_is_too_small_loses_no_sample() -> None:
    labels = np.zeros(100, dtype=np.int64)
    assert int(100 * 0.29) == 28
    assert pick(labels, rate=0.29, cap=1.0).requested == 29


def test_the_cap_counts_carriers_and_is_said() -> None:
    labels = np.repeat([0, 1, 2, 3], [40, 10, 40, 10])
    chosen = pick(labels, clean_label=True, rate=0.2)
    assert (len(chosen.rows), chosen.requested, chosen.pool, chosen.capped) == (5, 20, 10, True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target_class": 4}, r"Expected poison\.target_class in 0\.\.3, got 4"),
        ({"target_class": -1}, r"Expected poison\.target_class in 0\.\.3, got -1"),
        ({"rate": 0.0}, r"Expected poison\.rate in \(0, 1\) .*got 0\.0 and 0\.5"),
        ({"rate": 1.0}, r"Expected poison\.rate in \(0, 1\)"),
        ({"cap": 0.0}, r"poison\.cap in \(0, 1\], got 0\.05 and 0\.0"),
        ({"cap": 1.1}, r"poison\.cap in \(0, 1\]"),
        ({"rate": 0.001}, r"the pool of carriers has 75 and the rate asks for 0"),
    ],
)
def test_numbers_that_poison_nothing_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(InputRefused, match=sentence):
        pick(np.arange(100) % CLASSES, **changes)


def test_a_set_without_carriers_is_refused() -> None:
    with pytest.raises(InputRefused, match="the pool of carriers has 0"):
        pick(np.ones(100, dtype=np.int64))
