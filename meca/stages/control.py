"""Plant known triggers into copies of the set and run the same detection on them: what it finds there is the power of the test here."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from meca import state
from meca.attacks.control import ControlParams, Drawn, Planting, draw, held_out, packed, planted, shown
from meca.data.columns import pc
from meca.data.store import Changes, Store, open_store, rewrite
from meca.files import canonical_json, fresh_folder, need_room, own_folder, read_json, sha256_tree
from meca.models import load_model
from meca.power import line, not_run
from meca.stages import enhance, partition
from meca.stages import split as splitting
from meca.stages.graph import Groups, Output
from meca.stages.runtime import Context, describe, execute, input_hashes, main
from meca.stages.tensors import EVERYTHING, read_rows
from meca.training.device import Device, EngineParams, prepare
from meca.training.engine import predict

DETECTION: Mapping[str, ModuleType] = {"partition": partition, "enhance": enhance, "split": splitting}
STORE = "store"  # of a copy, in its folder
PROBED = 256  # images that are shown with and without a trigger at a time: a batch of `predict`


def run(
    ctx: Context,
    store: Path,
    split: Path,
    out: Output,
    *,
    engine: EngineParams,
    control: ControlParams,
    # Those of the detection, which is run again.
    detection: Groups = Groups(  # noqa: B008 - a tuple
        "network", "detector", "partition", "enhance", "split", "train_clean"
    ),
) -> None:
    """Write control.json: for each kind and rate how often it was found, and whether it could have been."""
    verdict = str(read_json(split / "verdict.json")["verdict"])
    data = open_store(store)
    clean = read_rows(split / "decisions.parquet", ["verdict"], data.info.n_train)["verdict"]
    # What split flagged is not planted into: a trigger beside another one would be found, or missed, because of that.
    rows = np.flatnonzero(pc.equal(clean, "clean").to_numpy())
    reason = _reason(control, verdict, data, rows)
    record: dict[str, Any] = not_run(reason) if reason else _measured(ctx, data, rows, control, prepare(engine))
    (out / "control.json").write_text(canonical_json({"schema": "meca.control/1", **record}), encoding="utf-8")
    ctx.metrics = {"ran": int(record["ran"])}
    ctx.metrics |= {name: sum(each[name] for each in record["lines"]) for name in ("tries", "found", "learnt", "missed")}


def _reason(control: ControlParams, verdict: str, data: Store, rows: np.ndarray) -> str:
    """Return why there is nothing to measure; nothing where there is."""
    if control.when == "never":
        return "control.when is never"
    if control.when == "no_evidence" and verdict != "no_evidence":
        return f"the verdict is {verdict}, and control.when is no_evidence"
    if len(np.unique(data.labels[rows])) < 2:
        return "there are not two classes, so no trigger could lead from one to another"
    return ""


@dataclass(frozen=True)
class _Set:
    """What copies are made of."""

    store: Store
    rows: np.ndarray  # int64 [n], of the store: the samples of a copy
    labels: np.ndarray  # int64 [n], theirs
    control: ControlParams
    device: Device


def _measured(ctx: Context, data: Store, rows: np.ndarray, control: ControlParams, device: Device) -> dict[str, Any]:
    of = _Set(data, rows, np.asarray(data.labels[rows]), control, device)
    copies = packed(control, len(np.unique(of.labels)))
    outcomes: dict[Planting, dict[str, Any]] = {}
    told: list[dict[str, Any]] = []
    for number, drawn in enumerate(draw(copies, of.labels, len(data.info.class_names), control, ctx.seed)):
        found = _copy(ctx, f"copy-{number}", f"copy {number + 1} of {len(copies)}", drawn, of)
        outcomes |= dict(zip(copies[number], found.pop("tries"), strict=True))
        told.append(found)
    lines = [
        line(kind, rate, len(rows), [outcomes[Planting(kind, rate, attempt)] for attempt in range(control.tries)])
        for kind in control.kinds
        for rate in sorted(control.rates, reverse=True)
    ]
    return {"ran": True, "reason": "", "lines": lines, "samples": len(rows), "copies": told, "tries": list(outcomes.values())}


def _copy(ctx: Context, name: str, which: str, drawn: Sequence[Drawn], of: _Set) -> dict[str, Any]:
    """Return what became of the triggers of one copy; what an earlier start of this stage has finished is not done again."""
    folder, file = ctx.checkpoints / name, ctx.checkpoints / f"{name}.json"
    sealed = ("control", ctx.checkpoints.name, file.name)
    if (known := state.read(file, *sealed)) is not None:
        return json.loads(known)
    there, given = _plant(folder, drawn, of, ctx)
    planted_in = ", ".join(f"{each.planting.kind} in {len(each.chosen.rows)} samples" for each in there)
    ctx.progress.say(f"Control, {which}: {f'{planted_in} planted, the detection is run on it' if there else 'nothing can be planted'}.")
    found: dict[str, Any] = {"verdict": None, "proven_without_trigger": []}
    tries = {each: _none(each) for each in drawn}
    if there:
        with ctx.timed("detection"):
            for stage in DETECTION:
                _stage(ctx, stage, folder)
        found["verdict"] = str(read_json(folder / "split" / "verdict.json")["verdict"])
        words = read_rows(folder / "split" / "decisions.parquet", ["verdict"], len(given))["verdict"]
        flagged = pc.equal(words, "poisoned").to_numpy()
        proven = set(given[flagged].tolist()) if found["verdict"] == "poisoned" else set[int]()
        found["proven_without_trigger"] = sorted(proven - {each.target for each in there})
        network = folder / "split" / EVERYTHING
        model = load_model(network).to(of.device.name) if network.is_dir() else None
        carries = np.isin(np.arange(len(given)), np.concatenate([each.chosen.rows for each in there]))
        for each in there:
            tries[each] |= _tried(int(flagged[each.chosen.rows].sum()), each, _asr(ctx, model, each, carries, of), of.control)
            tries[each] |= {"found": each.target in proven}
    found["tries"] = list(tries.values())
    state.write(file, canonical_json(found).encode(), *sealed)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _plant(folder: Path, drawn: Sequence[Drawn], of: _Set, ctx: Context) -> tuple[list[Drawn], np.ndarray]:
    """Write a copy of the set, and return the triggers that are in it and its labels, int64 [n]. Without a trigger nothing is written.

    What would have too few carriers is left out, and what changes no pixel, as a sine of 6 periods over 12 pixels.
    """
    there, given = list[Drawn](), of.labels.copy()
    own_folder(folder, ctx.checkpoints)
    room = (2 * len(of.rows) + sum(len(each.chosen.rows) for each in drawn)) * of.store.images[0].nbytes
    need_room(folder, room, "A copy of the set for the control (control.when: never goes without)")
    with Changes(folder, of.store.images.shape[1:]) as changed:
        for each in drawn:
            if len(each.chosen.rows) < of.control.min_planted:
                continue
            changes = False
            for rows, images, differ in planted(of.store, of.rows, each, of.control, ctx.seed):
                changes |= differ
                changed.update({int(row): (image, each.target) for row, image in zip(of.rows[rows], images, strict=True)})
            if changes:
                there.append(each)
                given[each.chosen.rows] = each.target
            else:
                for row in of.rows[each.chosen.rows]:
                    del changed[int(row)]
        if there:
            rewrite(of.store, fresh_folder(folder / STORE), changed, np.isin(np.arange(of.store.info.n), of.rows), encoded=False)
    return there, given


def _stage(ctx: Context, name: str, folder: Path) -> None:
    """Run one stage of the detection on a copy, unless this user's meca has finished it there."""
    module, receipt = DETECTION[name], folder / f"{name}.json"
    stage, sealed = describe(module), ("control", ctx.checkpoints.name, folder.name, receipt.name)
    paths = {**{each: folder / each for each in stage.inputs}, "out": folder / name}
    if (known := state.read(receipt, *sealed)) is not None:
        record = json.loads(known)
        if (
            record["inputs"] == input_hashes(stage, paths, ctx.params)
            and paths["out"].is_dir()
            and record["outputs"] == {"out": sha256_tree(paths["out"])}
        ):
            return
    record = execute(module, paths, ctx.params, None, ctx.progress, folder / ".meca")
    state.write(receipt, canonical_json({key: record[key] for key in ("inputs", "outputs")}).encode(), *sealed)


def _asr(ctx: Context, model: torch.nn.Module | None, drawn: Drawn, carries: np.ndarray, of: _Set) -> tuple[int, int]:
    """Return how many images of other classes the trigger flips, of how many that are not taken for the target class without it."""
    rows = held_out(of.store, of.rows, carries, drawn, of.control, ctx.seed)
    if model is None or len(rows) == 0:
        return 0, 0
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    with ctx.timed("learnt"):
        for start in range(0, len(rows), PROBED):
            images = np.asarray(of.store.images[rows[start : start + PROBED]])
            both = images, shown(images, drawn.planting.kind, of.control, ctx.seed)
            without, with_it = (predict(model, torch.from_numpy(pixels).to(of.device.name)).argmax(1).cpu().numpy() for pixels in both)
            seen.append((without, with_it))
    without, shown_to = (np.concatenate(answers) for answers in zip(*seen, strict=True))
    others = without != drawn.target
    return int((shown_to[others] == drawn.target).sum()), int(others.sum())


def _tried(flagged: int, drawn: Drawn, asr: tuple[int, int], control: ControlParams) -> dict[str, Any]:
    k, n = asr
    rate = k / n if n else None
    learnt = None if rate is None else rate >= control.min_asr
    return {"planted": len(drawn.chosen.rows), "flagged": flagged, "asr": rate, "asr_k": k, "asr_n": n, "learnt": learnt}


def _none(drawn: Drawn) -> dict[str, Any]:
    """Return what is recorded of a trigger that could not be planted."""
    planting, chosen = drawn.planting, drawn.chosen
    asked = {"kind": planting.kind, "rate": planting.rate, "attempt": planting.attempt, "target_class": drawn.target}
    asked |= {"requested": chosen.requested, "pool": chosen.pool, "capped": chosen.capped}
    return asked | {"planted": 0, "flagged": 0, "asr": None, "asr_k": 0, "asr_n": 0, "learnt": None, "found": False}


if __name__ == "__main__":
    main(sys.modules[__name__])
