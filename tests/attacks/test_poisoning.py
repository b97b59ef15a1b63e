"""Which samples are poison, covers or mislabelled: rates count all samples, roles are disjoint, a cap is counted."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.attacks import ATTACKS
from meca.attacks.poisoning import Plan, PoisonParams, Selection, long_tail, plan
from meca.errors import InputRefused, UsageError
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


def planned(attack: str, seed: int = 0, n: int = 400, classes: int = 10, **changes: Any) -> tuple[np.ndarray, Plan]:
    labels = np.random.default_rng(seed + 50).integers(0, classes, n)
    # The classes that are near one are those that follow it.
    near = lambda target: tuple((target + step) % classes for step in range(1, classes))  # noqa: E731
    return labels, plan(labels, classes, dataclasses.replace(PARAMS, attack=attack, **changes), seed, near)


every_attack = pytest.mark.parametrize("attack", ATTACKS)


@every_attack
@pytest.mark.parametrize("seed", range(3))
def test_roles_are_disjoint_and_no_cover_is_of_a_target_class(attack: str, seed: int) -> None:
    labels, found = planned(attack, seed, rate=0.1, cover_rate=0.1, label_noise=0.2)
    roles = [set(chosen.rows) for chosen in (found.poison, found.covers, found.noise)]
    assert len(set.union(*roles)) == sum(len(role) for role in roles)
    assert not np.isin(labels[found.covers.rows], found.targets).any()
    assert len(found.noise.rows) == 80 and (found.given[found.noise.rows] != labels[found.noise.rows]).all()
    untouched = np.setdiff1d(np.arange(len(labels)), [*roles[0], *roles[2]])
    assert np.array_equal(found.given[untouched], labels[untouched]), "covers keep their label"
    assert (len(found.covers.rows) > 0) == (ATTACKS[attack].cover is not None)


@every_attack
def test_poison_of_every_attack_at_1_percent_is_part_of_that_at_5_percent(attack: str) -> None:
    low, high = (planned(attack, n=1000, rate=rate)[1].poison for rate in (0.01, 0.05))
    assert set(low.rows) < set(high.rows) and len(low.rows) == 10 and len(high.rows) == 50
    rank = dict(zip(high.rows, high.ranks, strict=True))
    assert [rank[row] for row in low.rows] == list(low.ranks), "a sample carries the same part at both rates"
    assert sorted(high.ranks) == list(range(50))


@every_attack
def test_an_option_moves_no_other_draw(attack: str) -> None:
    _, plain = planned(attack)
    _, other = planned(attack, cover_rate=0.1, label_noise=0.3)
    assert np.array_equal(plain.poison.rows, other.poison.rows)
    _, less = planned(attack, cover_rate=0.1, label_noise=0.1)
    assert np.array_equal(less.covers.rows, other.covers.rows) and set(less.noise.rows) < set(other.noise.rows)
    assert np.array_equal(less.given[less.noise.rows], other.given[less.noise.rows])


@pytest.mark.parametrize(
    ("attack", "expected"), [("badnet", 0), ("wanet", 50), ("tact", 10), ("adaptive_blend", 10), ("adaptive_patch", 10), ("fragile_dots", 70)]
)
def test_cover_rates_are_those_of_the_table_unless_one_is_given(attack: str, expected: int) -> None:
    assert planned(attack, n=1000, rate=0.07)[1].covers.requested == expected
    if expected:
        assert len(planned(attack, n=1000, cover_rate=0.02)[1].covers.rows) == 20
        assert len(planned(attack, n=1000, cover_rate=0.0)[1].covers.rows) == 0


def test_tact_poisons_the_source_class_and_covers_come_from_two_others() -> None:
    labels, found = planned("tact", rate=0.03, source_class=3)
    assert (labels[found.poison.rows] == 3).all() and (found.given[found.poison.rows] == 1).all()
    assert found.cover_classes == (5, 7) and np.isin(labels[found.covers.rows], (5, 7)).all()


def test_a_cap_on_source_and_cover_classes_is_counted() -> None:
    labels, found = planned("tact", rate=0.5, cover_rate=0.5)
    assert (found.poison.requested, found.poison.capped, len(found.poison.rows)) == (200, True, (labels == 0).sum() // 2)
    assert (found.covers.requested, found.covers.capped, len(found.covers.rows)) == (200, True, np.isin(labels, (5, 7)).sum() // 2)


def test_all_to_all_leads_every_class_to_the_next_and_takes_carriers_from_all() -> None:
    labels, found = planned("all_to_all", rate=0.2)
    rows = found.poison.rows
    assert np.array_equal(found.given[rows], (labels[rows] + 1) % 10) and found.targets == () and len(set(labels[rows])) == 10


@pytest.mark.parametrize(("classes", "target", "second"), [(10, 1, 5), (10, 8, 2), (4, 1, 2), (3, 2, 0)])
def test_two_targets_share_the_rate_and_carriers_are_of_neither(classes: int, target: int, second: int) -> None:
    labels, found = planned("two_targets", classes=classes, target_class=target, rate=0.1)
    rows = found.poison.rows
    assert found.targets == (target, second) and not np.isin(labels[rows], found.targets).any()
    assert [(found.given[rows] == c).sum() for c in found.targets] == [20, 20]


@pytest.mark.parametrize("mu", [0.1, 0.5])
def test_the_long_tail_falls_geometrically_in_a_drawn_order_of_classes(mu: float) -> None:
    labels = np.repeat(np.arange(10), 100)
    orders = []
    for seed in range(4):
        sizes = np.bincount(labels[long_tail(labels, 10, mu, seed)], minlength=10)
        assert sorted(sizes, reverse=True) == [math.floor(100 * mu ** (c / 9) + 1e-9) for c in range(10)]
        orders.append(tuple(np.argsort(-sizes)))
    assert len(set(orders)) > 1
    assert long_tail(labels, 10, 1.0, 0).all()
    assert set(np.flatnonzero(long_tail(labels, 10, 0.1, 0))) < set(np.flatnonzero(long_tail(labels, 10, 0.5, 0)))


def test_the_long_tail_leaves_every_class_a_sample() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [2])
    assert np.bincount(labels[long_tail(labels, 3, 0.01, 0)]).min() == 1


@pytest.mark.parametrize(
    ("attack", "classes", "changes", "sentence"),
    [
        ("tact", 10, {"source_class": 10}, r"Expected poison\.source_class in 0\.\.9, got 10"),
        ("tact", 10, {"source_class": 1}, r"Expected poison\.source_class to differ from poison\.target_class, got 1"),
        ("tact", 2, {}, r"no sample may be one; set poison\.cover_rate to 0\.0"),
        ("two_targets", 10, {"second_target": 1}, r"Expected poison\.second_target to differ from poison\.target_class, got 1"),
        ("two_targets", 10, {"second_target": 12}, r"Expected poison\.second_target in 0\.\.9, got 12"),
        ("none", 1, {"label_noise": 0.1}, r"Expected two classes or more for poison\.label_noise, got one"),
        ("two_targets", 2, {}, r"the pool of carriers has 0"),
    ],
)
def test_classes_that_cannot_be_are_refused(attack: str, classes: int, changes: dict, sentence: str) -> None:
    with pytest.raises(InputRefused, match=sentence):
        planned(attack, classes=classes, **changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cover_rate", -0.5), ("cover_rate", 1.0), ("second_target", -2), ("source_class", -1), ("label_noise", 1.0), ("label_noise", -0.1),
        ("imbalance", 0.0), ("imbalance", 1.5), ("adaptive_alpha", 0.0), ("warp_strength", 0.0), ("warp_grid", 1), ("dot_size", 0),
        ("grid_amplitude", 0), ("grid_amplitude", 256),
    ],
)  # fmt: skip
def test_numbers_without_meaning_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"expected poison\.{field} to be .*, got {value}"):
        dataclasses.replace(PARAMS, **{field: value})
