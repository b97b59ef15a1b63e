"""From values to a decision: p-values that are not too small, an error rate that holds, and poison that does not hide poison."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import false_discovery_control, kstest, norm

from meca.method.evidence import Finding, adjusted, combined, findings, tail

SHARES = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1))
VALUES = hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(0, 5))
SPREAD = 0.5
steady = settings(deadline=None, derandomize=True)


def found(views: Mapping[str, np.ndarray], rate: float = 0.01, again: np.ndarray | None = None, least: float = 0.03) -> list[Finding]:
    return findings(views, {name: np.full(len(values), least) for name, values in views.items()}, rate, SPREAD, again)


@steady
@given(p=SHARES)
def test_adjusted_p_values_are_those_of_scipy(p: np.ndarray) -> None:
    assert np.allclose(adjusted(p), false_discovery_control(p, method="bh"), rtol=1e-12, atol=0)


@steady
@given(others=VALUES, value=st.floats(0, 5), more=st.floats(0, 5), least=st.floats(0.02, 1), seed=st.integers(0, 9))
def test_a_larger_value_has_no_larger_p_value_whatever_the_order_of_the_others(
    others: np.ndarray, value: float, more: float, least: float, seed: int
) -> None:
    p = tail(value, others, least, SPREAD)
    assert 0 <= p <= 1 and tail(value + more, others, least, SPREAD) <= p
    assert tail(value, np.random.default_rng(seed).permutation(others), least, SPREAD) == pytest.approx(p, rel=1e-9)


def test_where_all_are_alike_a_class_is_in_the_middle_and_the_least_deviation_is_believed() -> None:
    alike = np.full(9, 0.3)
    assert tail(0.3, alike, 0.03, 0.5) == pytest.approx(0.5)
    assert tail(0.63, alike, 0.03, 0.5) == pytest.approx(norm.sf(np.log(2) / 0.5)) and tail(0.63, alike, 0.03, 1.0) == pytest.approx(
        norm.sf(np.log(2))
    )
    assert tail(0.27, np.zeros(0), 0.03, 0.5) == pytest.approx(norm.sf(np.log(10) / 0.5)), "one class alone is measured from zero"


def test_the_deviation_is_that_of_the_others_where_it_is_larger() -> None:
    others = np.exp(np.random.default_rng(0).normal(0, 2, 20_000))
    for value in (1.0, 20.0, 400.0):
        assert tail(value, others, 1e-9, SPREAD) == pytest.approx(norm.sf(np.log(value) / 2), rel=0.1)


def test_a_third_of_poisoned_classes_among_the_others_hides_nothing() -> None:
    others = np.exp(np.random.default_rng(1).normal(-3, 0.4, 60))
    crowd = np.concatenate([others, np.full(30, 0.8)])
    assert tail(0.8, others, 0.01, SPREAD) < 1e-6 and tail(0.8, crowd, 0.01, SPREAD) < 1e-3


def test_one_p_value_of_several_is_the_smallest_times_their_number_where_it_is_small() -> None:
    assert combined(np.array([1e-4, 0.5, 0.5, np.nan])) == pytest.approx(3e-4, rel=0.01)
    assert combined(np.array([1e-9, 0.9])) == pytest.approx(2e-9) and combined(np.array([0.0, 1.0])) == 0.0
    assert combined(np.full(6, 0.2)) == pytest.approx(0.2), "what all say is said once"
    assert combined(np.array([np.nan])) == 1.0 and combined(np.zeros(0)) == 1.0
    assert 0.99 < combined(np.ones(3)) <= 1.0


def test_combined_p_values_of_clean_classes_are_uniform() -> None:
    p = np.random.default_rng(2).random((2000, 4))
    assert kstest([combined(each) for each in p], "uniform").pvalue > 0.01


@pytest.mark.parametrize("classes", [10, 43])
def test_clean_sets_have_evidence_as_seldom_as_the_rate_says(classes: int) -> None:
    """Of clean classes that differ by factors, as often as the rate says at most: views depend on one another, as those of one class do."""
    rng, alarms, sets = np.random.default_rng(3), 0, 150
    for _ in range(sets):
        level = rng.normal(-3, 0.45, classes)
        views = {str(i): np.exp(level + rng.normal(0, 0.2, classes)) for i in range(6)}
        alarms += any(each.q <= 0.1 for each in found(views, 0.1))
    assert alarms / sets <= 0.2


def test_two_poisoned_classes_do_not_hide_each_other_and_nothing_else_is_proven() -> None:
    values = np.random.default_rng(3).uniform(0, 0.05, 10)
    values[[2, 7]] = 0.6, 0.8
    seen = found({"a": values})
    assert [each.label for each in seen if each.q <= 0.01] == [2, 7] and [each.label for each in seen] == list(range(10))
    assert seen[2].values == {"a": 0.6} and seen[2].ps["a"] == pytest.approx(seen[2].p)


def test_what_is_proven_is_no_measure_for_the_others() -> None:
    values = np.concatenate([np.linspace(0, 0.1, 12), [3.0, 3.0, 3.0, 3.0, 0.6]])
    together, alone = (found({"a": v}) for v in (values, np.delete(values, [12, 13, 14, 15])))
    assert [each.label for each in together if each.q <= 0.01] == [12, 13, 14, 15, 16]
    assert together[16].p == pytest.approx(alone[12].p), "as if the other four had never been there"
    assert together[16].p < tail(0.6, np.delete(values, 16), 0.03, SPREAD) / 2, "or this test says nothing"


def test_a_class_that_could_not_be_asked_is_never_proven_and_is_no_measure() -> None:
    values = np.array([0.0, np.nan, 0.01, 0.02, 0.9, 0.0])
    other = np.array([np.nan, np.nan, np.nan, np.nan, np.nan, 0.5])
    seen = found({"a": values, "b": other})
    assert (seen[1].p, seen[1].q, seen[1].values, seen[1].ps) == (1.0, 1.0, {}, {})
    assert seen[4].ps.keys() == {"a"} and seen[5].values == {"a": 0.0, "b": 0.5} and seen[4].q <= 0.01
    without = found({"a": np.delete(values, 1), "b": np.delete(other, 1)})
    assert [each.p for each in without] == [seen[c].p for c in (0, 2, 3, 4, 5)]
    nothing = found({"a": np.full(3, np.nan)})
    assert [(each.p, each.q) for each in nothing] == [(1.0, 1.0)] * 3


def test_a_small_class_needs_more_where_its_least_value_is_larger() -> None:
    values = np.array([0.0, 0.0, 0.0, 0.2, 0.2])
    seen = findings({"a": values}, {"a": np.array([0.03, 0.03, 0.03, 0.03, 0.5])}, 0.01, SPREAD)
    assert seen[3].p < 0.01 < 0.2 < seen[4].p


def test_what_was_proven_before_is_a_family_of_its_own() -> None:
    """What is left of one class need not stand out among a hundred, and is no measure for them."""
    values, again = np.zeros(100), np.arange(100) == 5
    values[5] = 0.03 * (np.exp(SPREAD * norm.isf(0.002)) - 1)
    alone, among = (found({"a": values}, again=mask)[5] for mask in (again, None))
    assert alone.p == pytest.approx(0.002) == among.p and alone.q == pytest.approx(0.002) and among.q == pytest.approx(0.2)
    values[7] = 0.09
    with_it = found({"a": values}, again=again)
    values[5] = 1e6
    assert found({"a": values}, again=again)[7].p == with_it[7].p
