"""From values to a decision: p-values that are not too small, an error rate that holds, and poison that does not hide poison."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import false_discovery_control

from meca.method.evidence import adjusted, findings, tail

SHARES = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1))
VALUES = hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(0, 5))
steady = settings(deadline=None, derandomize=True)


@steady
@given(p=SHARES)
def test_adjusted_p_values_are_those_of_scipy(p: np.ndarray) -> None:
    assert np.allclose(adjusted(p), false_discovery_control(p, method="bh"), rtol=1e-12, atol=0)


@steady
@given(others=VALUES, value=st.floats(0, 5), more=st.floats(0, 5), least=st.floats(0.02, 1), seed=st.integers(0, 9))
def test_a_larger_value_has_no_larger_p_value_whatever_the_order_of_the_others(
    others: np.ndarray, value: float, more: float, least: float, seed: int
) -> None:
    p = tail(value, others, least)
    assert 0 < p <= 1 and tail(value + more, others, least) <= p
    assert tail(value, np.random.default_rng(seed).permutation(others), least) == pytest.approx(p, rel=1e-9)


def test_a_value_is_no_surprise_where_it_is_that_of_the_others_and_by_the_least_excess_where_they_are_alike() -> None:
    alike = np.full(9, 0.3)
    assert tail(0.3, alike, 0.02) == 1.0
    assert tail(0.34, alike, 0.02) == pytest.approx(0.5 * np.exp(-2)) and tail(0.34, alike, 0.04) == pytest.approx(0.5 * np.exp(-1))
    assert tail(0.04, np.zeros(0), 0.02) == pytest.approx(0.5 * np.exp(-2)), "one class alone is measured from zero"


def test_the_excess_is_that_of_the_others_where_it_is_larger() -> None:
    others = np.random.default_rng(0).exponential(1.0, 20_000)
    for value in (1.0, 2.0, 4.0):
        assert tail(value, others, 0.01) == pytest.approx(np.exp(-value), rel=0.1), "the tail of an exponential"


def test_few_large_values_among_the_others_change_little() -> None:
    others = np.random.default_rng(1).exponential(1.0, 200)
    assert tail(9.0, np.concatenate([others, np.full(20, 1e6)]), 0.01) < 3 * tail(9.0, others, 0.01) ** 0.7


@pytest.mark.parametrize("classes", [10, 20])
def test_clean_sets_have_evidence_as_seldom_as_the_rate_says(classes: int) -> None:
    """Six views of classes whose values fall off with the least mean excess; where they fall off more slowly, it holds but roughly."""
    rng, alarms, sets = np.random.default_rng(2), 0, 100
    for _ in range(sets):
        views = {str(i): rng.exponential(0.02, classes) for i in range(6)}
        alarms += any(found.q <= 0.1 for found in findings(views, dict.fromkeys(views, 0.02), 0.1))
    assert alarms / sets <= 0.15


def test_two_poisoned_classes_do_not_hide_each_other_and_nothing_else_is_proven() -> None:
    values = np.random.default_rng(3).exponential(0.02, 10)
    values[[2, 7]] = 1.0, 1.5
    found = findings({"a": values}, {"a": 0.02}, 0.01)
    assert [each.label for each in found if each.q <= 0.01] == [2, 7] and [each.label for each in found] == list(range(10))
    assert found[2].values == {"a": 1.0} and found[2].ps["a"] == found[2].p


def test_what_is_proven_is_no_measure_for_the_others() -> None:
    values = np.concatenate([np.linspace(0, 0.3, 16), [3.0, 3.0, 3.0, 1.4]])
    together, alone = (findings({"a": v}, {"a": 0.02}, 0.01) for v in (values, np.delete(values, [16, 17, 18])))
    assert [each.label for each in together if each.q <= 0.01] == [16, 17, 18, 19]
    assert together[19].p == pytest.approx(alone[16].p), "as if the other three had never been there"
    assert together[19].p < tail(1.4, np.delete(values, 19), 0.02) / 2, "or this test says nothing"


def test_a_class_that_could_not_be_asked_is_never_proven_and_is_no_measure() -> None:
    values = np.array([0.0, np.nan, 0.01, 0.02, 0.9, 0.0])
    other = np.array([np.nan, np.nan, np.nan, np.nan, np.nan, 0.5])
    found = findings({"a": values, "b": other}, {"a": 0.02, "b": 0.02}, 0.01)
    assert (found[1].p, found[1].q, found[1].values, found[1].ps) == (1.0, 1.0, {}, {})
    assert found[4].ps.keys() == {"a"} and found[5].values == {"a": 0.0, "b": 0.5} and found[4].q <= 0.01
    without = findings({"a": np.delete(values, 1), "b": np.delete(other, 1)}, {"a": 0.02, "b": 0.02}, 0.01)
    assert [each.p for each in without] == [found[c].p for c in (0, 2, 3, 4, 5)]
    nothing = findings({"a": np.full(3, np.nan)}, {"a": 0.02}, 0.01)
    assert [(each.p, each.q) for each in nothing] == [(1.0, 1.0)] * 3


def test_each_further_view_costs_a_factor() -> None:
    values = np.array([0.0, 0.0, 0.0, 0.1])
    one, three = (findings({name: values for name in names}, dict.fromkeys(names, 0.02), 0.01) for names in ("a", "abc"))
    assert three[3].p == pytest.approx(3 * one[3].p) and three[3].ps["a"] == one[3].ps["a"]


def test_what_was_proven_before_is_a_family_of_its_own() -> None:
    """What is left of one class need not stand out among a hundred, and is no measure for them."""
    values, again = np.zeros(100), np.arange(100) == 5
    values[5] = 0.02 * np.log(0.5 / 0.002)  # p 0.002
    alone, among = (findings({"a": values}, {"a": 0.02}, 0.01, mask)[5] for mask in (again, None))
    assert alone.p == pytest.approx(0.002) == among.p and alone.q == pytest.approx(0.002) and among.q == pytest.approx(0.2)
    values[7] = 0.09
    with_it = findings({"a": values}, {"a": 0.02}, 0.01, again)
    values[5] = 1e6
    assert findings({"a": values}, {"a": 0.02}, 0.01, again)[7].p == with_it[7].p
