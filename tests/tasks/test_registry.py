"""The gates: each is checked, and a refusal says by how much."""

import dataclasses

import pytest

from meca.params import PACKAGED, read_params
from meca.release.gates import Figures, Gates, check

GATES = Gates(
    alias="champion",
    min_acc=0.9,
    min_recall=0.5,
    max_leak=0.1,
    max_leak_of_power=0.2,
    min_leak_power=0.2,
    verdicts=("no_evidence", "poisoned"),
    max_acc_drop=0.01,
    max_recall_drop=0.05,
    max_leak_rise=0.02,
)
VERDICT = {"verdict": "poisoned", "leak": 0.0, "leak_power": 0.2}
FIGURES = Figures(acc=0.95, min_recall=0.6, leak=None, n=100)


def failed(verdict, figures):
    return {gate.name: gate.sentence for gate in check(GATES, verdict, figures) if not gate.holds}


def test_what_is_at_the_limit_holds():
    assert failed({"verdict": "no_evidence", "leak": 0.1}, Figures(acc=0.9, min_recall=0.5, leak=None, n=100)) == {}


@pytest.mark.parametrize(
    ("verdict", "final", "name", "distance"),
    [
        ({"verdict": "inconclusive"}, {}, "verdicts", "inconclusive"),
        ({"verdict": "weak", "leak": None, "leak_power": None}, {}, "verdicts", "the verdict is weak, which is none of: no_evidence, poisoned"),
        ({}, {"acc": 0.8}, "min_acc", "0.1000 below 0.9"),
        ({}, {"min_recall": 0.25}, "min_recall", "0.2500 below 0.5"),
        ({"leak": 0.15, "leak_power": 0.9}, {}, "max_leak", "0.0500 above 0.1"),
        ({"leak": 0.06, "leak_power": 0.2}, {}, "max_leak_of_power", "is 0.3000, 0.1000 above 0.2"),
        ({"leak": None}, {}, "max_leak", "unknown"),
        ({"leak_power": 0.05}, {}, "min_leak_power", "0.1500 below 0.2: a backdoor could have stayed"),
        ({"leak_power": None}, {}, "min_leak_power", "not measured; it must be at least 0.2"),
        ({}, {"acc": None}, "min_acc", "no test split"),
        ({}, {"min_recall": None}, "min_recall", "no test split"),
    ],
)
def test_each_gate_refuses_alone_and_says_the_distance(verdict, final, name, distance):
    found = failed({**VERDICT, **verdict}, dataclasses.replace(FIGURES, **final))
    assert list(found) == [name]
    assert distance in found[name]


def test_a_set_in_which_nothing_is_suspected_has_no_leak_to_refuse():
    assert failed({"verdict": "no_evidence", "leak": None, "leak_power": None}, FIGURES) == {}


def test_a_set_whose_test_is_weak_is_promoted_only_where_the_gate_names_it():
    gates, weak = dataclasses.replace(GATES, verdicts=("no_evidence", "weak")), {"verdict": "weak", "leak": None, "leak_power": None}
    assert all(gate.holds for gate in check(gates, weak, FIGURES))


def test_what_ships_promotes_no_set_whose_test_is_weak():
    assert read_params(PACKAGED).group("promote", Gates).verdicts == ("no_evidence", "poisoned")


def test_who_does_not_ask_for_power_gets_what_has_none():
    gates = dataclasses.replace(GATES, min_leak_power=0.0)
    assert all(gate.holds for power in (0.0, None) for gate in check(gates, VERDICT | {"leak_power": power}, FIGURES))


@pytest.mark.parametrize(
    ("leak", "power", "holds"), [(0.02, 0.0, True), (0.021, 0.05, False), (0.02, 0.1, True), (0.05, 0.25, True), (0.051, 0.25, False)]
)
def test_what_is_left_is_a_share_of_the_power_but_not_of_next_to_none(leak, power, holds):
    gates = dataclasses.replace(GATES, min_leak_power=0.0)
    found = {gate.name: gate.holds for gate in check(gates, VERDICT | {"leak": leak, "leak_power": power}, FIGURES)}
    assert found.pop("max_leak_of_power") == holds and all(found.values())


def test_without_a_test_split_nothing_is_promoted():
    found = failed(VERDICT, Figures(acc=None, min_recall=None, leak=None, n=0))
    assert set(found) == {"min_acc", "min_recall"}
    assert all("no test split" in sentence for sentence in found.values())
