"""Decisions of people: every line is understood or refused by its number, and nothing is guessed."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import meca.release.decisions as decisions_module
from meca.errors import InputRefused
from meca.release.decisions import DECISION_COLUMNS, decide, describe, parse, resolve
from meca.release.verdicts import SCHEMA, count

NAMES = ["cat", "dog", "7"]
GOOD: dict[str, Any] = {"source": "a", "action": "keep", "who": "R", "when": "2026-11-21T10:00:00Z", "why": "clear"}


def lines(*changes: dict[str, Any]) -> bytes:
    return "".join(json.dumps({k: v for k, v in {**GOOD, **change}.items() if v != ...}) + "\n" for change in changes).encode()


def verdicts() -> pa.Table:
    """Return six samples: `a` is kept, `b` removed, `c` under review, `d` unreadable, `e` and `f` copies under two labels."""
    rows = [("a", "A", 0, "clean", "keep"), ("b", "B", 0, "poisoned", "remove"), ("c", "C", 1, "review", "quarantine"),
            ("d", "D", 1, "quarantined", "quarantine"), ("e", "E", 0, "clean", "keep"), ("f", "E", 1, "poisoned", "relabel")]  # fmt: skip
    new = {"f": 2}
    return pa.Table.from_pylist(
        [
            {"source": s, "sample_id": i, "label": label, "verdict": v, "action": a, "new_label": new.get(s), "split": "train"}
            for s, i, label, v, a in rows
        ],
        schema=SCHEMA,
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "line 2: not JSON"),
        (b"[" * 9000, "line 2: not JSON"),
        (b"[]", "line 2: expected a JSON object, got list"),
        (b"\xff{}", "line 2: not UTF-8"),
        (b"\xef\xbb\xbf" + lines({}).strip(), "line 2: not JSON"),
        (b'{"source": "' + b"x" * 70_000 + b'"}', "line 2: longer than 65536 bytes"),
        (b'{"source": "a", "source": "b"}', "line 2: has a key twice"),
        (lines({"label": 1}).strip(), "line 2: unknown 'label'"),
        (lines({"source": ...}).strip(), "line 2: names no sample"),
        (lines({"source": 7}).strip(), "line 2: expected source to be text"),
        (lines({"action": "burn"}).strip(), 'line 2: expected the action keep, relabel or remove, got "burn"'),
        (lines({"action": ...}).strip(), "line 2: expected the action keep, relabel or remove, got null"),
        (lines({"action": "relabel"}).strip(), "line 2: relabel without new_label"),
        (lines({"new_label": 1}).strip(), "line 2: keep with a new_label"),
        (lines({"action": "relabel", "new_label": True}).strip(), "line 2: expected new_label to be a number or a class name, got true"),
        (lines({"action": "relabel", "new_label": 1.0}).strip(), "line 2: expected new_label to be a number or a class name, got 1.0"),
        (lines({"who": ...}).strip(), "line 2: expected who to be text"),
        (lines({"who": " "}).strip(), "line 2: expected who to be text"),
        (lines({"why": "x" * 2001}).strip(), "line 2: expected why to be text of 1 to 2000 characters"),
        (lines({"when": "yesterday"}).strip(), "line 2: expected when to be a time"),
        (lines({"when": "2026-11-21T10:00:00"}).strip(), "line 2: expected when to be a time with its offset"),
        (lines({"who": "\ud800"}).strip(), "line 2: who holds half a character"),
    ],
)
def test_a_bad_line_is_named(line: bytes, sentence: str) -> None:
    with pytest.raises(InputRefused) as caught:
        parse(lines({}) + line + b"\n" + lines({"source": "b"}))
    assert sentence in str(caught.value) and "line 1:" not in str(caught.value) and "line 3:" not in str(caught.value)


def test_all_bad_lines_are_counted_and_some_are_named() -> None:
    with pytest.raises(InputRefused, match=r"line 1: .* line 5: .*; 2 more\."):
        parse(b"x\n" * 7)


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_a_decision_is_refused(data: bytes) -> None:
    with pytest.raises(InputRefused, match="holds none"):
        parse(data)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([{"source": "z"}], "line 1: there is no training sample 'z'"),
        ([{"source": ..., "sample_id": "Z"}], "line 1: there is no training sample with the sample_id 'Z'"),
        ([{"sample_id": "B"}], "line 1: 'a' has another sample_id"),
        ([{"action": "relabel", "new_label": 3}], "line 1: expected a new label in 0..2, got 3"),
        ([{"action": "relabel", "new_label": -1}], "line 1: expected a new label in 0..2, got -1"),
        ([{"action": "relabel", "new_label": "bird"}], "line 1: there is no class 'bird'; known are cat, dog, 7"),
        ([{"action": "relabel", "new_label": "cat"}], "line 1: 'a' has the label 0 already; say keep"),
        ([{}, {"source": "b"}, {"action": "remove"}], "line 3: contradicts line 1 about 'a'"),
        ([{"action": "relabel", "new_label": 1}, {"action": "relabel", "new_label": 2}], "line 2: contradicts line 1 about 'a'"),
        ([{"source": "d"}], "line 1: 'd' cannot be read, so it can only be removed"),
        ([{"source": ..., "sample_id": "E"}], "line 1: its copies have different labels"),
    ],
)
def test_what_does_not_fit_the_set_is_named(changes: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(InputRefused) as caught:
        resolve(verdicts(), NAMES, parse(lines(*changes)))
    assert sentence in str(caught.value)


def test_a_number_is_a_label_and_a_text_is_a_name() -> None:
    found = resolve(verdicts(), NAMES, parse(lines({"action": "relabel", "new_label": "7"}, {"source": "b", "action": "relabel", "new_label": 1})))
    assert (found[0]["new_label"], found[1]["new_label"]) == (2, 1)


def test_an_id_stands_for_every_copy_and_the_first_of_two_that_agree_is_named() -> None:
    found = resolve(
        verdicts(), NAMES, parse(lines({"source": ..., "sample_id": "E", "action": "remove"}, {"source": "e", "action": "remove", "who": "S"}))
    )
    assert sorted(found) == [4, 5] and {values["reviewer"] for values in found.values()} == {"R"}


def test_decisions_change_what_happens_and_not_what_is_believed() -> None:
    before = verdicts()
    data = lines({"source": "b"}, {"source": "c", "action": "relabel", "new_label": 2}, {"source": "d", "action": "remove"}, {"source": "f"})
    after = decide(before, NAMES, parse(data))
    assert after["verdict"].equals(before["verdict"]) and after["label"].equals(before["label"])
    assert after["action"].to_pylist() == ["keep", "keep", "relabel", "remove", "keep", "keep"]
    assert after["new_label"].to_pylist() == [None, None, 2, None, None, None], "a label that meca gave goes with its action"
    assert after["new_label_name"].to_pylist() == [None, None, "7", None, None, None]
    assert after["review_decision"].to_pylist() == [None, "keep", "relabel", "remove", None, "keep"]
    assert after.to_pylist()[1] | {"stage_scores": None} == before.to_pylist()[1] | {
        "action": "keep", "reviewer": "R", "review_decision": "keep", "review_time": "2026-11-21T10:00:00Z", "review_note": "clear",
    }  # fmt: skip
    said = describe(after, data)
    assert {key: said[key] for key in ("samples", "kept", "relabelled", "removed", "reviewers")} == {
        "samples": 4, "kept": 2, "relabelled": 1, "removed": 1, "reviewers": ["R"],
    }  # fmt: skip


def test_an_inconclusive_set_needs_a_decision_about_every_readable_sample() -> None:
    held = verdicts()
    with pytest.raises(InputRefused, match="every sample needs a decision: 4 of 6 have none, the first is 'b'"):
        decide(held, NAMES, parse(lines({})), inconclusive=True)
    everything = lines(*({"source": source} for source in "abcef"))
    assert decide(held, NAMES, parse(everything), inconclusive=True)["action"].to_pylist() == ["keep"] * 3 + ["quarantine"] + ["keep"] * 2


def test_a_set_is_not_emptied() -> None:
    with pytest.raises(InputRefused, match="would leave none of the 6 samples"):
        decide(verdicts(), NAMES, parse(lines(*({"source": source, "action": "remove"} for source in "aef"))))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from("abcef"), st.sampled_from([("keep", ...), ("remove", ...), ("relabel", 2)]), min_size=1))
def test_whatever_is_decided_the_sum_holds_and_the_rest_stays(chosen: dict[str, tuple[str, Any]]) -> None:
    data = lines({"source": "e"}, *({"source": s, "action": a, "new_label": n} for s, (a, n) in chosen.items() if s != "e"))
    before = verdicts()
    after = decide(before, NAMES, parse(data))
    counts = count(after)
    assert counts["kept"] + counts["relabelled"] + counts["removed"] + counts["quarantined"] == counts["input"] == 6
    named = {*chosen, "e"}
    for old, new in zip(before.to_pylist(), after.to_pylist(), strict=True):
        if old["source"] not in named:
            assert all(old[name] == new[name] for name in DECISION_COLUMNS)
        elif old["source"] != "e":
            assert (new["action"], new["new_label"]) == (chosen[old["source"]][0], 2 if chosen[old["source"]][0] == "relabel" else None)


def naive(table: pa.Table, decisions: list[Any]) -> dict[int, dict[str, Any]] | list[int]:
    """Return what `resolve` does, or the numbers of the lines that it refuses, row by row and line by line."""
    found: dict[int, dict[str, Any]] = {}
    wrong: list[int] = []
    for decision in decisions:
        rows = [
            (at, row)
            for at, row in enumerate(table.to_pylist())
            if (row["source"] == decision.source if decision.source is not None else row["sample_id"] == decision.sample_id)
        ]
        label = NAMES.index(decision.new_label) if isinstance(decision.new_label, str) else decision.new_label
        bad = not rows or (decision.source is None and decision.action == "keep" and len({row["label"] for _, row in rows}) > 1)
        for at, row in rows:
            bad |= row["verdict"] == "quarantined" and decision.action != "remove"
            bad |= label is not None and row["label"] == label
            bad |= at in found and (found[at]["action"], found[at]["new_label"]) != (decision.action, label)
            if bad:
                break
            values = (decision.action, label, decision.who, decision.action, decision.when, decision.why)
            found.setdefault(at, dict(zip(DECISION_COLUMNS, values, strict=True)))
        if bad:
            wrong.append(decision.line)
    return wrong or found


CHOICES = st.sampled_from(
    [{"action": "keep"}, {"action": "remove"}, *({"action": "relabel", "new_label": label} for label in (0, 1, 2, "cat", "dog", "7"))]
)
WHAT = st.sampled_from([*({"source": name} for name in "abcdef"), *({"source": ..., "sample_id": name} for name in "ABCDE")])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(WHAT, CHOICES, st.sampled_from("RS")), min_size=1, max_size=8))
def test_lines_are_resolved_as_one_after_the_other(drawn: list[tuple[dict[str, Any], dict[str, Any], str]]) -> None:
    decisions = parse(lines(*({**what, **choice, "who": who} for what, choice, who in drawn)))
    expected = naive(verdicts(), decisions)
    try:
        assert resolve(verdicts(), NAMES, decisions) == expected
    except InputRefused as problem:
        assert isinstance(expected, list), problem
        assert f"The decisions were refused: line {expected[0]}: " in str(problem)


def test_the_same_line_about_all_copies_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines times copies: a file of 600 kB would take a minute."""
    n, looks, rows_of = 300, 0, decisions_module._rows  # pyright: ignore[reportPrivateUsage]

    def rows(*given: Any) -> list[int]:
        nonlocal looks
        found = rows_of(*given)
        looks += len(found)
        return found

    monkeypatch.setattr(decisions_module, "_rows", rows)
    table = pa.table({"sample_id": ["A"] * n, "source": [f"{at:05}" for at in range(n)], "label": [0] * n, "verdict": ["clean"] * n})
    found = resolve(table, NAMES, parse(lines(*[{"source": ..., "sample_id": "A", "action": "remove"}] * n)))
    assert len(found) == looks == n and {values["action"] for values in found.values()} == {"remove"}
    with pytest.raises(InputRefused, match=f"line 1: .*already; say keep; .*{n - 5} more"):
        resolve(table, NAMES, parse(lines(*[{"source": ..., "sample_id": "A", "action": "relabel", "new_label": 0}] * n)))
    assert looks == 2 * n


def test_problems_are_counted_and_the_first_are_named() -> None:
    with pytest.raises(InputRefused, match=r"line 1: .*line 5: .*; 95 more\.$"):
        parse(b"x\n" * 100)


def test_lines_end_where_they_end() -> None:
    line = lines({}).strip()
    assert [decision.line for decision in parse(b"\n\r\n" + line + b"\r\n" + line)] == [3, 4]
