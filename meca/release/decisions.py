"""What people decided about single samples: decisions.jsonl, one JSON object a line.

    {"source": "train/cat/7.png", "action": "relabel", "new_label": "dog", "who": "A. Reader", "when": "2026-11-21T10:00:00Z", "why": "a dog"}

A line names a sample by `source`, or by `sample_id` (then it holds for every copy of the image), or by both. `action` is
keep, remove or relabel; `new_label` (a number or a class name) stands with relabel alone. Nothing is guessed: a line that
is not understood, or that says other than another line, refuses the whole file.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meca.data.columns import pc
from meca.errors import InputRefused, UsageError
from meca.release.verdicts import SCHEMA, count
from meca.text import plain

__all__ = ["DECISIONS", "DECISION_COLUMNS", "Decision", "decide", "describe", "parse", "read", "resolve"]

DECISIONS = "decisions.jsonl"
DECISION_COLUMNS = ("action", "new_label", "reviewer", "review_decision", "review_time", "review_note")
WORDS = {"keep": "kept", "relabel": "relabelled", "remove": "removed"}
KEYS = {"sample_id", "source", "action", "new_label", "who", "when", "why"}
MAX_BYTES, MAX_LINE = 256 * 2**20, 64 * 2**10
MAX_TEXT = {"who": 200, "when": 64, "why": 2000}  # characters
SHOWN = 5  # problems in one message


@dataclass(frozen=True)
class Decision:
    """One line of the file, with its number (1 = first)."""

    line: int
    sample_id: str | None
    source: str | None
    action: str
    new_label: int | str | None
    who: str
    when: str  # ISO 8601 with an offset
    why: str


def read(file: Path) -> bytes:
    """Return the bytes of a file of decisions.

    Raises:
        UsageError: There is no such file.
        InputRefused: It is larger than 256 MiB.
    """
    try:
        with open(file, "rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"Expected a file of decisions, {plain(file)} cannot be read ({error.strerror}); check --decisions.") from None
    if len(data) > MAX_BYTES:
        raise InputRefused(f"Expected at most {MAX_BYTES // 2**20} MiB of decisions, {plain(file)} is larger.")
    return data


def parse(data: bytes) -> list[Decision]:
    """Return the decisions of decisions.jsonl in the order of the lines; empty lines are passed over.

    Raises:
        InputRefused: A line is no decision; the message has the numbers of the lines.
    """
    decisions: list[Decision] = []
    problems = _Problems()
    for number, line in enumerate(io.BytesIO(data), 1):  # one at a time: a list of all lines may be larger than the file
        if not line.strip():
            continue
        try:
            decisions.append(_parse_line(number, line.removesuffix(b"\n")))
        except ValueError as error:
            problems.add(number, error)
    problems.refuse()
    if not decisions:
        raise InputRefused("Expected one JSON object a line, the file of decisions holds none.")
    return decisions


def _parse_line(number: int, line: bytes) -> Decision:
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    given: dict[str, Any] = {str(key): item for key, item in value.items()}
    if unknown := sorted(set(given) - KEYS):
        raise ValueError(f"unknown {plain(unknown[0], 40)!r}, known are {', '.join(sorted(KEYS))}")
    for key in ("sample_id", "source"):
        if given.get(key) is not None and (not isinstance(given[key], str) or not given[key]):
            raise ValueError(f"expected {key} to be text, got {plain(json.dumps(given[key]), 40)}")
    if given.get("sample_id") is None and given.get("source") is None:
        raise ValueError("names no sample: expected source or sample_id")
    for key, item in given.items():
        if isinstance(item, str) and any("\ud800" <= character <= "\udfff" for character in item):
            raise ValueError(f"{key} holds half a character (a lone surrogate)")
    action, new_label = given.get("action"), given.get("new_label")
    if action not in WORDS:
        raise ValueError(f"expected the action keep, relabel or remove, got {plain(json.dumps(action), 40)}")
    if (action == "relabel") != (new_label is not None):
        raise ValueError("relabel without new_label" if action == "relabel" else f"{action} with a new_label")
    if new_label is not None and (isinstance(new_label, bool) or not isinstance(new_label, int | str)):
        raise ValueError(f"expected new_label to be a number or a class name, got {plain(json.dumps(new_label), 40)}")
    for key, limit in MAX_TEXT.items():
        text = given.get(key)
        if not isinstance(text, str) or not text.strip() or len(text) > limit:
            raise ValueError(f"expected {key} to be text of 1 to {limit} characters, got {plain(json.dumps(text), 40)}")
    if not _is_time(given["when"]):
        raise ValueError(f"expected when to be a time with its offset, as 2026-11-21T10:00:00Z, got {plain(given['when'], 40)!r}")
    return Decision(number, given.get("sample_id"), given.get("source"), action, new_label, given["who"], given["when"], given["why"])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal keys json keeps the last; a person who reads the line may see the first.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("has a key twice")
    return found


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() is not None
    except ValueError:
        return False


def resolve(verdicts: pa.Table, class_names: Sequence[str], decisions: Sequence[Decision]) -> dict[int, dict[str, Any]]:
    """Return what was decided about each row of the verdicts that a decision names: `DECISION_COLUMNS` by row.

    It depends on what the samples are, not on what happens to them, so it can be compared with a published table.
    Where several lines agree about a sample, the first one is named.

    Raises:
        InputRefused: A line names no sample or no class, cannot be done, or says other than an earlier line.
    """
    sources = pa.array(sorted({each.source for each in decisions if each.source is not None}), pa.string())
    ids = pa.array(sorted({each.sample_id or "" for each in decisions if each.source is None}), pa.string())
    named = pc.or_(pc.is_in(verdicts["source"], value_set=sources), pc.is_in(verdicts["sample_id"], value_set=ids))
    places = np.flatnonzero(named.to_numpy())
    about = verdicts.select(["sample_id", "source", "label", "verdict"]).take(pa.array(places, pa.int64()))
    rows = dict(zip(places.tolist(), zip(*(column.to_pylist() for column in about.columns), strict=True), strict=True))
    by_source = {row[1]: at for at, row in rows.items()}
    by_id: dict[str, list[int]] = {}
    for at, row in rows.items():
        by_id.setdefault(row[0], []).append(at)
    numbers = {name: label for label, name in reversed(list(enumerate(class_names)))}
    found: dict[int, dict[str, Any]] = {}
    lines: dict[int, int] = {}
    said: dict[tuple[Any, ...], str] = {}  # what came of a line about all copies of an image: the same line again changes nothing
    problems = _Problems()

    def one(decision: Decision) -> None:
        label = _label(decision.new_label, class_names, numbers)
        for at in _rows(decision, by_source, by_id, rows):
            _, source, given, verdict = rows[at]
            name = plain(source, 80)
            if verdict == "quarantined" and decision.action != "remove":
                raise ValueError(f"{name!r} cannot be read, so it can only be removed")
            if label is not None and label == given:
                raise ValueError(f"{name!r} has the label {label} already; say keep")
            if at not in found:
                values = (decision.action, label, decision.who, decision.action, decision.when, decision.why)
                found[at], lines[at] = dict(zip(DECISION_COLUMNS, values, strict=True)), decision.line
            elif (found[at]["action"], found[at]["new_label"]) != (decision.action, label):
                raise ValueError(f"contradicts line {lines[at]} about {name!r}")

    for decision in decisions:
        same = (decision.sample_id, decision.action, decision.new_label)
        if decision.source is None and same in said:
            if said[same]:
                problems.add(decision.line, said[same])
            continue
        try:
            one(decision)
            why = ""
        except ValueError as error:
            why = str(error)
            problems.add(decision.line, error)
        if decision.source is None:
            said[same] = why
    problems.refuse()
    return found


class _Problems:
    """What is wrong with lines: the first ones in words, of the others the number."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.more = 0

    def add(self, line: int, why: object) -> None:
        if len(self.said) < SHOWN:
            self.said.append(f"line {line}: {why}")
        else:
            self.more += 1

    def refuse(self) -> None:
        if self.said:
            more = f"; {self.more} more" if self.more else ""
            raise InputRefused(f"The decisions were refused: {'; '.join(self.said)}{more}.")


def _label(given: int | str | None, class_names: Sequence[str], numbers: Mapping[str, int]) -> int | None:
    if given is None:
        return None
    if isinstance(given, str):
        if given not in numbers:
            raise ValueError(f"there is no class {plain(given, 60)!r}; known are {plain(', '.join(class_names[:20]), 300)}")
        return numbers[given]
    if not 0 <= given < len(class_names):
        raise ValueError(f"expected a new label in 0..{len(class_names) - 1}, got {plain(given, 40)}")
    return given


def _rows(decision: Decision, by_source: Mapping[str, int], by_id: Mapping[str, list[int]], rows: Mapping[int, tuple[Any, ...]]) -> list[int]:
    if decision.source is not None:
        at = by_source.get(decision.source)
        if at is None:
            raise ValueError(f"there is no training sample {plain(decision.source, 80)!r}")
        if decision.sample_id not in (None, rows[at][0]):
            raise ValueError(f"{plain(decision.source, 80)!r} has another sample_id")
        return [at]
    copies = by_id.get(decision.sample_id or "", [])
    if not copies:
        raise ValueError(f"there is no training sample with the sample_id {plain(decision.sample_id, 80)!r}")
    if decision.action == "keep" and len({rows[at][2] for at in copies}) > 1:
        raise ValueError("its copies have different labels: name each by its source")
    return copies


def decide(verdicts: pa.Table, class_names: Sequence[str], decisions: Sequence[Decision], inconclusive: bool = False) -> pa.Table:
    """Return the verdicts with what people decided: `action` changes, `verdict` stays what meca believes.

    Args:
        verdicts: What `meca.release.verdicts.build` returned.
        class_names: A name for each label.
        decisions: What `parse` returned.
        inconclusive: meca had no answer, so every readable sample needs a decision.

    Raises:
        InputRefused: The decisions do not fit the set, leave a sample of an inconclusive set open, or leave none in the set.
    """
    found = resolve(verdicts, class_names, decisions)
    believed = verdicts["verdict"].to_pylist()
    if inconclusive and (open_ := [at for at, verdict in enumerate(believed) if verdict != "quarantined" and at not in found]):
        raise InputRefused(
            f"The verdict was inconclusive, so every sample needs a decision: {len(open_)} of {len(believed)} have none, "
            f"the first is {plain(verdicts['source'][open_[0]].as_py(), 80)!r}. Nothing was written."
        )
    for values in found.values():
        values["new_label_name"] = None if values["new_label"] is None else class_names[values["new_label"]]
    table = verdicts
    for name in (*DECISION_COLUMNS, "new_label_name"):  # column by column: the others may be large
        column = verdicts[name].to_pylist()
        for at, values in found.items():
            column[at] = values[name]
        field = SCHEMA.field(name)
        table = table.set_column(SCHEMA.get_field_index(name), field, pa.array(column, field.type))
    counts = count(table)
    if counts["kept"] + counts["relabelled"] == 0:
        raise InputRefused(f"These decisions would leave none of the {counts['input']} samples in the set. Nothing was written.")
    return table


def describe(verdicts: pa.Table, data: bytes) -> dict[str, Any]:
    """Return what summary.json says about decisions: `{samples, kept, relabelled, removed, reviewers, sha256}`.

    Args:
        verdicts: What `decide` returned.
        data: The bytes of decisions.jsonl.
    """
    decisions = verdicts["review_decision"]
    return {
        "samples": len(decisions) - decisions.null_count,
        **{word: pc.sum(pc.equal(decisions, action)).as_py() or 0 for action, word in WORDS.items()},
        "reviewers": sorted(pc.unique(verdicts["reviewer"]).drop_null().to_pylist()),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
