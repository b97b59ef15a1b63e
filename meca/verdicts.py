"""What is believed about every sample and what happens to it: verdicts.parquet and summary.json.

The accounting holds always: `kept + relabelled + removed + quarantined = input`, counted in rows, because copies of one
image share an id.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from meca import __version__
from meca.errors import MecaError
from meca.store import Store

__all__ = ["ACTIONS", "SCHEMA", "build", "count", "summarize"]

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),  # the table is sorted by it, so that two runs compare line by line
        ("split", pa.string()),
        ("label", pa.int64()),
        ("label_name", pa.string()),
        ("verdict", pa.string()),  # clean, poisoned, review, quarantined: what we believe
        ("action", pa.string()),  # keep, relabel, remove, quarantine: what happens
        ("new_label", pa.int64()),
        ("new_label_name", pa.string()),
        ("suspicion", pa.float32()),  # in [0, 1], high = suspicious
        ("rank", pa.int64()),  # 1 = most suspicious
        ("stage_scores", pa.map_(pa.string(), pa.float32())),  # `<stage>.<signal>`
        ("enhanced_pred", pa.int64()),
        ("clean_pred", pa.int64()),
        ("reasons", pa.list_(pa.string())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        # Null unless a person decided about the sample (decisions.jsonl); `action` is then what was decided.
        ("reviewer", pa.string()),
        ("review_decision", pa.string()),  # keep, relabel, remove
        ("review_time", pa.string()),
        ("review_note", pa.string()),
    ]
)

ACTIONS = {"keep": "kept", "relabel": "relabelled", "remove": "removed", "quarantine": "quarantined"}
VERDICTS = {"clean", "poisoned", "review"}
NOT_SCORES = {"row", "sample_id", "suspicion", "likely_clean"}


def build(store: Store, decisions: pa.Table, scores: Mapping[str, pa.Table], inconclusive: bool = False) -> pa.Table:
    """Return the verdicts: a line for every sample of split train, also for those that could not be read.

    Args:
        store: What was judged.
        decisions: A line for each readable training sample (docs/files.md).
        scores: scores.parquet by stage; what they hold besides the suspicion goes into `stage_scores`.
        inconclusive: No answer can be defended: every sample is held in quarantine, none is relabelled or removed.

    Raises:
        MecaError: The decisions do not cover the store, or contradict themselves.
    """
    ids, n, classes = store.ids, store.info.n_train, len(store.info.class_names)
    decided = _by_row(decisions, "decisions", ids, n)
    signals = [(stage, name, _by_row(table, f"scores of {stage}", ids, n)) for stage, table in scores.items() for name in _signals(table)]
    order = np.lexsort((np.array(ids[:n]), np.array([-float(line["suspicion"]) for line in decided])))  # ties by id
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(1, n + 1)
    lines: list[dict[str, Any]] = []
    for sample in store.samples.to_pylist():
        if sample["split"] != "train":
            continue
        line = {key: sample[key] for key in ("sample_id", "source", "split", "label", "width", "height", "mode", "format", "bytes")}
        line["label_name"] = sample["class_name"]
        row = sample["row"]
        if row < 0:
            line |= {"verdict": "quarantined", "action": "quarantine", "reasons": [sample["reason"]], "stage_scores": []}
        else:
            line |= _decide(decided[row], sample, classes, inconclusive)
            line["new_label_name"] = None if line["new_label"] is None else store.info.class_names[line["new_label"]]
            line["rank"] = int(rank[row])
            line["stage_scores"] = [(f"{stage}.{name}", table[row][name]) for stage, name, table in signals]
        lines.append(line)
    lines.sort(key=lambda line: line["source"])
    table = pa.Table.from_pylist(lines, schema=SCHEMA)
    count(table)
    return table


def _signals(table: pa.Table) -> list[str]:
    return [field.name for field in table.schema if field.name not in NOT_SCORES and pa.types.is_floating(field.type)]


def _by_row(table: pa.Table, what: str, ids: Sequence[str], n: int) -> list[dict[str, Any]]:
    """Return the lines of a table in the order of the store's training rows."""
    lines = sorted(table.to_pylist(), key=lambda line: line["row"])
    if [line["row"] for line in lines] != list(range(n)):
        raise MecaError(f"Expected the {what} to have one line for each of the {n} training rows, got {len(lines)}; run the stage again.")
    wrong = next((line["row"] for line in lines if line["sample_id"] != ids[line["row"]]), None)
    if wrong is not None:
        raise MecaError(f"The {what} were made for another store: row {wrong} has another id; run the stage again.")
    return lines


def _decide(decision: dict[str, Any], sample: dict[str, Any], classes: int, inconclusive: bool) -> dict[str, Any]:
    where, action, new_label = sample["source"], decision["action"], decision["new_label"]
    if decision["verdict"] not in VERDICTS or action not in ACTIONS:
        raise MecaError(f"Expected a known verdict and action for {where!r}, got {decision['verdict']!r} and {action!r}; run the stage again.")
    if (action == "relabel") != (new_label is not None) or (new_label is not None and not 0 <= new_label < classes):
        raise MecaError(f"Expected a new label in 0..{classes - 1} exactly where a sample is relabelled, got {new_label!r} for {where!r}.")
    if decision["verdict"] == "review" and action != "quarantine":
        raise MecaError(f"Expected a sample under review to be held in quarantine, got {action!r} for {where!r}.")
    notes = [note for note in sample["notes"] if not note.startswith("resized:")]  # a resize says nothing about a sample
    return {
        "verdict": decision["verdict"],
        "action": "quarantine" if inconclusive else action,
        "new_label": None if inconclusive else new_label,
        "suspicion": decision["suspicion"],
        "enhanced_pred": decision["enhanced_pred"],
        "clean_pred": decision["clean_pred"],
        "reasons": [*(decision["reasons"] or []), *notes],
    }


def count(verdicts: pa.Table) -> dict[str, int]:
    """Return `{input, kept, relabelled, removed, quarantined}` in rows.

    Raises:
        MecaError: A row has no action that is counted, so the sum is not the input.
    """
    actions = verdicts["action"].to_pylist()
    counts = {"input": verdicts.num_rows, **{word: actions.count(action) for action, word in ACTIONS.items()}}
    if sum(counts[word] for word in ACTIONS.values()) != counts["input"]:
        raise MecaError(f"The accounting does not hold: {counts}; this is a bug, please report it.")
    return counts


def count_by_class(verdicts: pa.Table, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each class what came in, what stayed, what moved in and out, and what went."""
    zero = dict.fromkeys(("input", "kept", "relabelled_in", "relabelled_out", "removed", "quarantined"), 0)
    classes: list[dict[str, Any]] = [{"label": label, "name": name, **zero} for label, name in enumerate(class_names)]
    words = {**ACTIONS, "relabel": "relabelled_out"}
    columns = (verdicts[name].to_pylist() for name in ("label", "action", "new_label"))
    for label, action, new_label in zip(*columns, strict=True):
        classes[label]["input"] += 1
        classes[label][words[action]] += 1
        if new_label is not None:
            classes[new_label]["relabelled_in"] += 1
    return classes


def summarize(
    store: Store, verdicts: pa.Table, verdict: Mapping[str, Any], decisions: Mapping[str, Any] | None = None, **facts: Any
) -> dict[str, Any]:
    """Return summary.json: the answer for the whole set.

    Args:
        store: What was judged.
        verdicts: What `build` returned, or `meca.decisions.decide` made of it.
        verdict: The final verdict.json.
        decisions: What `meca.decisions.describe` returned; None where no person decided.
        facts: `preset`, `seed`, `params_sha256`, `code_sha256` and `sanitized_sha256`.
    """
    classes = count_by_class(verdicts, store.info.class_names)
    target = verdict.get("target_class")
    options = store.info.source.get("options") or {}
    return {
        "$schema": "meca.summary/1",
        "verdict": verdict["verdict"],
        "sentence": _sentence(store, verdicts, verdict, decisions is not None),
        "reason": verdict["reason"],
        "counts": count(verdicts),
        "classes": classes,
        "target_class": None if target is None else {"label": target, "name": store.info.class_names[target]},
        "estimated_rate": verdict.get("estimated_rate"),
        "leak": verdict.get("leak"),
        "caps": verdict.get("caps") or [],
        "warnings": _warnings(store, verdicts, classes, verdict, decisions),
        "decisions": None if decisions is None else dict(decisions),
        "input_sha256": store.info.root,
        "source": {
            **{key: store.info.source.get(key) for key in ("kind", "format", "name")},
            "options": {key: value for key, value in options.items() if isinstance(value, bool | int) or key == "label_column"},
        },
        "meca_version": __version__,
        **facts,
    }


def _sentence(store: Store, verdicts: pa.Table, verdict: Mapping[str, Any], decided: bool) -> str:
    n = verdicts.num_rows
    if verdict["verdict"] == "no_evidence":
        return f"In {n} training samples no evidence of a backdoor was found; this does not prove that there is none."
    if verdict["verdict"] == "inconclusive" and decided:
        return f"For these {n} training samples meca found no answer that can be defended; what is published is what a person decided."
    if verdict["verdict"] == "inconclusive":
        return f"For these {n} training samples no answer can be defended; nothing was relabelled, removed or published."
    flagged = verdicts["verdict"].to_pylist().count("poisoned")
    target = verdict.get("target_class")
    leads = "" if target is None else f", leading to class {store.info.class_names[target]!r}"
    rate = verdict.get("estimated_rate")
    estimate = "" if not rate else f"; the estimated rate is {rate['value']:.1%} (between {rate['low']:.1%} and {rate['high']:.1%})"
    return f"Poison was found: {flagged} of {n} training samples carry signs of a backdoor{leads}{estimate}."


def _warnings(
    store: Store,
    verdicts: pa.Table,
    classes: Sequence[Mapping[str, Any]],
    verdict: Mapping[str, Any],
    decisions: Mapping[str, Any] | None,
) -> list[str]:
    said: list[str] = []
    if decisions:
        parts = ", ".join(f"{decisions[word]} {word}" for word in ("kept", "relabelled", "removed"))
        said.append(f"A person decided about {decisions['samples']} samples ({parts}); decisions.jsonl says who, when and why.")
        if verdict["verdict"] != "inconclusive":
            said.append("The model was trained before these decisions and knows nothing of them.")
    unreadable = verdicts["verdict"].to_pylist().count("quarantined")
    if unreadable:
        said.append(f"{unreadable} samples could not be read and are quarantined; verdicts.parquet names them.")
    conflicts = sum("label-conflict" in (reasons or []) for reasons in verdicts["reasons"].to_pylist())
    if conflicts:
        said.append(f"{conflicts} samples are copies of one image under different labels (reason label-conflict).")
    if verdict["verdict"] != "inconclusive" or decisions:
        for line in classes:
            if line["kept"] + line["relabelled_in"] == 0:
                said.append(f"Class {line['name']!r} is empty after sanitizing: {line['input']} samples came in.")
    said += [f"The cap {cap['name']} does not hold: {cap['value']} against {cap['limit']}." for cap in verdict.get("caps") or [] if not cap["holds"]]
    if store.info.n_test == 0:
        said.append("There is no test split: the accuracy of the model is not known.")
    return said
