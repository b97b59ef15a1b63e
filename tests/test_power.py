"""What a control makes of a verdict, and the sentence that a person reads."""

from typing import Any

import pytest

from meca import power
from tests.making import control_record


def tried(*tries: tuple[int, bool, bool | None]) -> dict[str, Any]:
    return power.line("badnet", 0.05, 100, [{"planted": planted, "found": found, "learnt": learnt} for planted, found, learnt in tries])


@pytest.mark.parametrize(
    ("tries", "state", "counts"),
    [
        ([(5, True, True)], "found", (1, 1, 1, 0)),
        ([(5, False, True)], "missed", (1, 0, 1, 1)),
        ([(5, True, True), (5, False, True)], "missed", (2, 1, 2, 1)),
        ([(5, False, False)], "not learnt", (1, 0, 0, 0)),
        ([(5, True, True), (5, False, False)], "found", (2, 1, 1, 0)),
        ([(5, False, None)], "not measured", (1, 0, 0, 0)),
        ([(5, True, None)], "found", (1, 1, 1, 0)),  # what is found has been learnt
        ([(5, True, False)], "found", (1, 1, 0, 0)),
        ([(0, False, None)], "not planted", (0, 0, 0, 0)),
        ([(0, False, None), (5, True, True)], "found", (1, 1, 1, 0)),
    ],
)
def test_a_line_has_one_state_and_counts_what_was_planted(tries: Any, state: str, counts: tuple[int, ...]) -> None:
    found = tried(*tries)
    assert found["state"] == state in power.STATES and tuple(found[name] for name in ("tries", "found", "learnt", "missed")) == counts
    assert found["planted"] == [planted for planted, _, _ in tries] and 0 <= found["missed"] <= found["learnt"] <= found["tries"]


@pytest.mark.parametrize(
    ("states", "weak"),
    [
        ({"badnet": "found", "blend": "found"}, False),
        ({"badnet": "found", "blend": "not learnt"}, False),
        ({"badnet": "found", "blend": "not measured", "sig": "not planted"}, False),
        ({"badnet": "found", "blend": "missed"}, True),
        ({"badnet": "not learnt"}, True),
        ({"badnet": "not measured"}, True),
        ({"badnet": "not planted"}, True),
        ({}, False),  # never run: nobody knows
    ],
)
def test_a_test_is_weak_that_misses_what_works_or_finds_nothing_that_works(states: dict[str, str], weak: bool) -> None:
    assert power.is_weak(control_record(**states)) is weak


def test_what_is_found_without_having_been_learnt_is_no_sign_of_power() -> None:
    assert power.is_weak({"ran": True, "reason": "", "lines": [tried((5, True, False))]})


def record(*lines: dict[str, Any]) -> dict[str, Any]:
    return {"ran": True, "reason": "", "lines": list(lines)}


def of(kind: str, rate: float, *tries: tuple[int, bool, bool | None]) -> dict[str, Any]:
    return power.line(kind, rate, 1000, [{"planted": planted, "found": found, "learnt": learnt} for planted, found, learnt in tries])


YES, NO, UNLEARNT, UNKNOWN, NONE = (50, True, True), (50, False, True), (50, False, False), (50, False, None), (0, False, None)
FIVE, ONE = (50, True, True), (10, False, True)


@pytest.mark.parametrize(
    ("control", "sentence"),
    [
        (
            record(of("badnet", 0.05, FIVE), of("badnet", 0.01, ONE)),
            ", but the test is weak here: of a planted patch at 5 % of all samples 1 of 1 was found, at 1 % 0 of 1 although it works.",
        ),
        (
            record(of("blend", 0.05, YES, NO), of("sig", 0.05, YES, UNLEARNT)),
            ", but the test is weak here: of a planted pattern at 5 % of all samples 1 of 2 were found although they work; "
            "of a planted wave at 5 % 1 of 2, since the network learnt only 1 of them.",
        ),
        (
            record(of("badnet", 0.05, NO, NO, UNLEARNT), of("sig", 0.05, YES)),
            ", but the test is weak here: of a planted patch at 5 % of all samples 0 of 3 were found although 2 of them work; "
            "of a planted wave at 5 % 1 of 1.",
        ),
        (
            record(of("badnet", 0.05, UNLEARNT), of("blend", 0.05, UNKNOWN), of("sig", 0.05, NONE)),
            ", but the test is weak here: of a planted patch at 5 % of all samples 0 of 1 was found, since the network did not learn it; "
            "of a planted pattern at 5 % 0 of 1, and whether it works was not measured; of a planted wave at 5 % nothing could be planted.",
        ),
        (
            record(of("badnet", 0.05, YES), of("sig", 0.05, (7, True, True))),
            "; this does not prove that there is none. Power of the test here: of a planted patch at 5 % of all samples 1 of 1 was found; "
            "of a planted wave at 0.7 % 1 of 1.",
        ),
        (
            record(of("badnet", 0.05, NONE)),
            ", but the test is weak here: the set is too small, or its images are too uniform, to plant a trigger that could be found.",
        ),
        (
            power.not_run("control.when is never"),
            "; this does not prove that there is none, and the power of the test was not measured (control.when is never).",
        ),
        (None, "; this does not prove that there is none, and the power of the test was not measured."),
    ],
)
def test_a_person_reads_what_was_found_of_what_was_planted(control: Any, sentence: str) -> None:
    assert power.sentence(control) == sentence


def test_the_table_shows_the_share_that_was_planted_and_not_the_one_that_was_asked_for() -> None:
    rows = power.found_lines(record(of("badnet", 0.05, YES, NO), of("sig", 0.05, (7, True, True))))
    assert rows[0] == {
        "kind": "patch (badnet)", "rate": "5 %", "planted": "50, 50", "found": "1 of 2", "learnt": "2 of 2", "state": "missed",
    }  # fmt: skip
    assert (rows[1]["kind"], rows[1]["rate"], rows[1]["planted"]) == ("wave (sig)", "0.7 %", "7")
    assert power.found_lines(None) == power.found_lines(power.not_run("x")) == []
