"""What is believed about every sample and what happens to it: verdicts.parquet and summary.json.

The accounting holds always: `kept + relabelled + removed + quarantined = input`, counted in rows, because copies of one
image share an id.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from meca import __version__
from meca.data.columns import pc
from meca.data.judged import is_reduced, notice, of_store, pixels
from meca.data.store import Store
from meca.errors import MecaError
from meca.power import FINDS, sentence

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
LITTLE_POWER = 0.1  # of the leak test; the gate in params.yaml has a limit of its own
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
    n, names = store.info.n_train, store.info.class_names
    ids = store.readable["sample_id"].slice(0, n)
    decided = _by_row(decisions, "decisions", ids)
    _check(decided, store.readable["source"], len(names))
    signals = {f"{stage}.{name}": _by_row(table, f"scores of {stage}", ids)[name] for stage, table in scores.items() for name in _signals(table)}
    rank = np.empty(n, np.int64)  # ties by id
    ordered = pa.table({"suspicion": decided["suspicion"], "sample_id": ids})
    rank[pc.sort_indices(ordered, [("suspicion", "descending"), ("sample_id", "ascending")]).to_numpy()] = np.arange(1, n + 1)
    samples = store.samples.filter(pc.equal(store.samples["split"], "train"))
    row = samples["row"].to_numpy()
    readable = pa.array(row >= 0)
    at = pa.array(row, mask=row < 0)  # null takes null
    judged = decided.take(at)
    m = samples.num_rows
    new_label = pa.nulls(m, pa.int64()) if inconclusive else judged["new_label"].cast(pa.int64())
    columns: dict[str, Any] = {
        name: samples[name] for name in ("sample_id", "source", "split", "label", "width", "height", "mode", "format", "bytes")
    }
    columns |= {
        "label_name": samples["class_name"],
        "verdict": pc.if_else(readable, judged["verdict"], "quarantined"),
        "action": pa.array(["quarantine"] * m) if inconclusive else pc.if_else(readable, judged["action"], "quarantine"),
        "new_label": new_label,
        "new_label_name": pa.array(names).take(new_label),
        "rank": pa.array(rank).take(at),
        "stage_scores": _stage_scores(signals, row),
        "reasons": _reasons(samples, judged),
    }
    columns |= {name: judged[name].cast(SCHEMA.field(name).type) for name in ("suspicion", "enhanced_pred", "clean_pred")}
    columns |= {name: pa.nulls(m, pa.string()) for name in ("reviewer", "review_decision", "review_time", "review_note")}
    table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA).sort_by("source")
    count(table)
    return table


def _signals(table: pa.Table) -> list[str]:
    return [field.name for field in table.schema if field.name not in NOT_SCORES and pa.types.is_floating(field.type)]


def _by_row(table: pa.Table, what: str, ids: pa.ChunkedArray) -> pa.Table:
    """Return a table in the order of the store's training rows, whose ids are given."""
    n = len(ids)
    lines = table.sort_by("row")
    if not np.array_equal(lines["row"].to_numpy(), np.arange(n)):
        raise MecaError(f"Expected the {what} to have one line for each of the {n} training rows, got {table.num_rows}; run the stage again.")
    other = np.flatnonzero(~_true(pc.equal(lines["sample_id"], ids)))
    if len(other):
        raise MecaError(f"The {what} were made for another store: row {other[0]} has another id; run the stage again.")
    return lines


def _true(values: pa.ChunkedArray) -> np.ndarray:
    """Return bool [n]; null is false."""
    return pc.fill_null(values, False).to_numpy()


def _check(decided: pa.Table, sources: pa.ChunkedArray, classes: int) -> None:
    """Refuse decisions that contradict themselves, by the first sample that shows it."""
    verdict, action, new_label = decided["verdict"], decided["action"], decided["new_label"]
    known = _true(pc.is_in(verdict, pa.array(sorted(VERDICTS)))) & _true(pc.is_in(action, pa.array(list(ACTIONS))))
    for at in np.flatnonzero(~known)[:1]:
        said = f"{verdict[at].as_py()!r} and {action[at].as_py()!r}"
        raise MecaError(f"Expected a known verdict and action for {sources[at].as_py()!r}, got {said}; run the stage again.")
    label = pc.fill_null(new_label, -1).to_numpy()
    given = pc.is_valid(new_label).to_numpy()
    for at in np.flatnonzero((_true(pc.equal(action, "relabel")) != given) | (given & ((label < 0) | (label >= classes))))[:1]:
        got = f"{new_label[at].as_py()!r} for {sources[at].as_py()!r}"
        raise MecaError(f"Expected a new label in 0..{classes - 1} exactly where a sample is relabelled, got {got}.")
    for at in np.flatnonzero(_true(pc.equal(verdict, "review")) & ~_true(pc.equal(action, "quarantine")))[:1]:
        raise MecaError(f"Expected a sample under review to be held in quarantine, got {action[at].as_py()!r} for {sources[at].as_py()!r}.")


def _stage_scores(signals: Mapping[str, pa.ChunkedArray], row: np.ndarray) -> pa.Array:
    """Return a map of all signals for each line; an empty one where `row` is -1."""
    readable = row >= 0
    offsets = np.concatenate([[0], np.cumsum(readable * len(signals))]).astype(np.int32)
    rows = row[readable]
    values = np.stack([values.to_numpy()[rows] for values in signals.values()], 1) if signals else np.empty((len(rows), 0))
    absent = np.stack([values.is_null().to_numpy()[rows] for values in signals.values()], 1) if signals else np.empty((len(rows), 0), bool)
    items = pa.array(values.ravel().astype(np.float32), mask=absent.ravel())
    keys = pa.DictionaryArray.from_arrays(np.tile(np.arange(len(signals), dtype=np.int32), len(rows)), pa.array(list(signals), pa.string()))
    return pa.MapArray.from_arrays(offsets, keys.cast(pa.string()), items)


def _reasons(samples: pa.Table, judged: pa.Table) -> pa.ChunkedArray:
    """Return the codes of each line: why it cannot be read, or those of the stages and what was done to it."""
    both = pa.table({"row": samples["row"], "reason": samples["reason"], "codes": judged["reasons"], "notes": samples["notes"]})
    chunks: list[pa.Array] = []
    for batch in both.to_batches(max_chunksize=10_000):
        said: list[list[str]] = []
        for row, reason, codes, notes in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            # A resize says nothing about a sample.
            said.append([reason] if row < 0 else [*(codes or []), *(note for note in notes if not note.startswith("resized:"))])
        chunks.append(pa.array(said, pa.list_(pa.string())))
    return pa.chunked_array(chunks, pa.list_(pa.string()))


def count(verdicts: pa.Table) -> dict[str, int]:
    """Return `{input, kept, relabelled, removed, quarantined}` in rows.

    Raises:
        MecaError: A row has no action that is counted, so the sum is not the input.
    """
    counts = {"input": verdicts.num_rows, **{word: _times(verdicts["action"], action) for action, word in ACTIONS.items()}}
    if sum(counts[word] for word in ACTIONS.values()) != counts["input"]:
        raise MecaError(f"The accounting does not hold: {counts}; this is a bug, please report it.")
    return counts


def _times(column: pa.ChunkedArray, value: str) -> int:
    return int(_true(pc.equal(column, value)).sum())


def count_by_class(verdicts: pa.Table, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each class what came in, what stayed, what moved in and out, and what went."""
    zero = dict.fromkeys(("input", "kept", "relabelled_in", "relabelled_out", "removed", "quarantined"), 0)
    classes: list[dict[str, Any]] = [{"label": label, "name": name, **zero} for label, name in enumerate(class_names)]
    given, moved = verdicts["label"].to_numpy(), verdicts["new_label"].drop_null().to_numpy()
    words = {**ACTIONS, "relabel": "relabelled_out"}
    counted = {"input": given, "relabelled_in": moved}
    counted |= {words[action]: given[_true(pc.equal(verdicts["action"], action))] for action in ACTIONS}
    for word, labels in counted.items():
        for label, times in enumerate(np.bincount(labels, minlength=len(classes)).tolist()):
            classes[label][word] = times
    return classes


def summarize(
    store: Store, verdicts: pa.Table, verdict: Mapping[str, Any], decisions: Mapping[str, Any] | None = None, **facts: Any
) -> dict[str, Any]:
    """Return summary.json: the answer for the whole set.

    Args:
        store: What was judged.
        verdicts: What `build` returned, or `meca.release.decisions.decide` made of it.
        verdict: The final verdict.json, with `control` (`meca.power`) and what it makes of the verdict.
        decisions: What `meca.release.decisions.describe` returned; None where no person decided.
        facts: `preset`, `seed`, `params_sha256`, `code_sha256` and `sanitized_sha256`, and `weights_sha256` where the model's training
            started from a file.
    """
    classes = count_by_class(verdicts, store.info.class_names)
    target = verdict.get("target_class")
    options = store.info.source.get("options") or {}
    judged = of_store(store)
    return {
        "$schema": "meca.summary/1",
        "verdict": verdict["verdict"],
        "sentence": _sentence(store, verdicts, verdict, decisions is not None, judged),
        "reason": verdict["reason"],
        "judged_at": judged,
        "counts": count(verdicts),
        "classes": classes,
        "target_class": None if target is None else {"label": target, "name": store.info.class_names[target]},
        "estimated_rate": verdict.get("estimated_rate"),
        "leak": verdict.get("leak"),
        "leak_power": verdict.get("leak_power"),
        "control": verdict.get("control"),
        "caps": verdict.get("caps") or [],
        "warnings": _warnings(store, verdicts, classes, verdict, decisions, judged),
        "decisions": None if decisions is None else dict(decisions),
        "input_sha256": store.info.root,
        "source": {
            **{key: store.info.source.get(key) for key in ("kind", "format", "name")},
            "options": {key: value for key, value in options.items() if isinstance(value, bool | int) or key in ("label_column", "origin")},
        },
        "meca_version": __version__,
        **facts,
    }


def _sentence(store: Store, verdicts: pa.Table, verdict: Mapping[str, Any], decided: bool, judged: Mapping[str, Any]) -> str:
    """Return what was found, and where images were reduced for it, at which size and what that leaves unseen."""
    if not is_reduced(judged):
        return _found(store, verdicts, verdict, decided, "")
    size = pixels(judged)
    lost = f"Images are up to {pixels(judged['largest'])}: a trigger that is lost at {size} is not seen."
    return f"{_found(store, verdicts, verdict, decided, f', judged at {size} pixels,')} {lost}"


def _found(store: Store, verdicts: pa.Table, verdict: Mapping[str, Any], decided: bool, how: str) -> str:
    n = verdicts.num_rows
    if verdict["verdict"] in FINDS:
        return f"In {n} training samples{how} no evidence of a backdoor was found{sentence(verdict.get('control'))}"
    if verdict["verdict"] == "inconclusive" and decided:
        return f"For these {n} training samples{how} meca found no answer that can be defended; what is published is what a person decided."
    if verdict["verdict"] == "inconclusive":
        return f"For these {n} training samples{how} no answer can be defended; nothing was relabelled, removed or published."
    flagged = _times(verdicts["verdict"], "poisoned")
    target = verdict.get("target_class")
    # What a person decided says nothing about where a trigger leads.
    found = _true(pc.equal(verdicts["verdict"], "poisoned")) & verdicts["reviewer"].is_null().to_numpy()
    others = len({*verdicts["label"].to_numpy()[found].tolist()} - {target})
    more = "" if others == 0 else " and 1 other" if others == 1 else f" and {others} others"
    leads = "" if target is None else f", leading to class {store.info.class_names[target]!r}{more}"
    # Of a class that would lose too much nothing is called poisoned yet.
    held = pc.and_(pc.equal(verdicts["verdict"], "review"), pc.is_in(verdicts["label"], pa.array(verdict.get("held") or [], pa.int64())))
    waiting = int(_true(held).sum())
    waits = f"; {waiting} of them wait for a person" if waiting else ""
    flagged += waiting
    # The reason of the verdict counts what `split` flagged, and a reader would miss them.
    back = _times(pc.list_flatten(verdicts.filter(pc.equal(verdicts["action"], "keep"))["reasons"]), "confirmed")
    taken = f"; {back} more {'was' if back == 1 else 'were'} flagged and kept, since the clean model confirms the label" if back else ""
    return (
        f"Poison was found: {flagged} of {n} training samples ({flagged / n:.1%}){how} carry signs of a backdoor{leads}; some of them may be clean"
        f"{waits}{taken}."
    )


def _warnings(
    store: Store,
    verdicts: pa.Table,
    classes: Sequence[Mapping[str, Any]],
    verdict: Mapping[str, Any],
    decisions: Mapping[str, Any] | None,
    judged: Mapping[str, Any],
) -> list[str]:
    warnings: list[str] = []
    if decisions:
        parts = ", ".join(f"{decisions[word]} {word}" for word in ("kept", "relabelled", "removed"))
        warnings.append(f"A person decided about {decisions['samples']} samples ({parts}); decisions.jsonl says who, when and why.")
        if verdict["verdict"] != "inconclusive":
            warnings.append("The model was trained before these decisions and knows nothing of them.")
    unreadable = _times(verdicts["verdict"], "quarantined")
    if unreadable:
        warnings.append(f"{unreadable} samples could not be read and are quarantined; verdicts.parquet names them.")
    warnings += [notice(judged)] * is_reduced(judged)
    conflicts = _times(pc.list_flatten(verdicts["reasons"]), "label-conflict")
    if conflicts:
        warnings.append(f"{conflicts} samples are copies of one image under different labels (reason label-conflict).")
    if verdict["verdict"] != "inconclusive" or decisions:
        for line in classes:
            if line["kept"] + line["relabelled_in"] == 0:
                warnings.append(f"Class {line['name']!r} is empty after sanitizing: {line['input']} samples came in.")
    warnings += [
        f"The cap {cap['name']} does not hold: {cap['value']} against {cap['limit']}." for cap in verdict.get("caps") or [] if not cap["holds"]
    ]
    for label in verdict.get("held") or ():
        warnings.append(
            f"Too little of class {store.info.class_names[label]!r} would be left: what is flagged there is quarantined until a person decides."
        )
    power = verdict.get("leak_power")
    if power is not None and power < LITTLE_POWER:
        warnings.append(
            f"The test of the model for what is left of the backdoor has little power ({power:.1%}): what the flagged samples share flips few "
            "images even in a model trained on all samples, so a small leak says little."
        )
    if store.info.n_test == 0:
        warnings.append("There is no test split: the accuracy of the model is not known.")
    return warnings
