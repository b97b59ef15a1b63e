"""Decide which samples are poisoned, and whether there is evidence of poisoning at all."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meca.data.store import open_store, write_parquet
from meca.files import canonical_json
from meca.method.enhance import SIDES, EnhanceParams
from meca.method.proofs import REASONS
from meca.method.split import Asked, Decision, SplitParams, by_misclassification, detect
from meca.metrics import share
from meca.models import Network, load_model, read_description, save_model
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import EVERYTHING, KEPT, column, open_train, rows_digest, scores_table
from meca.training.device import EngineParams, prepare
from meca.training.engine import Data, Session
from meca.training.trainer import Recipe

EARLY = 0.9  # suspicion of `partition`, from which a flagged sample has the reason `early-loss`: the first tenth (docs/files.md); changes no verdict


def run(
    ctx: Context,
    store: Path,
    partition: Path,
    enhance: Path,
    out: Output,
    *,
    engine: EngineParams,
    enhance_params: EnhanceParams,
    split: SplitParams,
    train_clean: Recipe,
) -> None:
    """Write a verdict for every sample and one for the set."""
    params = split
    data = open_store(store)
    labels = data.labels[data.train]
    scores = enhance / "scores.parquet"
    predicted: np.ndarray | None = None
    if params.rule == "tests":
        session = Session(ctx.seed, prepare(engine), ctx.checkpoints)
        # The networks of this stage are trained from scratch, also where that of partition was not.
        description = dataclasses.replace(read_description(partition), weights_sha256=None)
        network = Network(load_model(partition).to(session.device.name), description)
        train = Data(*open_train(store, session.device)[1:])
        margins = {side: column(scores, f"margin_{side}", len(labels)).astype(np.float64) for side in SIDES}
        with ctx.timed("train"):
            found = detect(Asked(session, network, train, margins, params, train_clean, enhance_params.recipe, ctx.progress))
        decision = found.decision
        save_model(found.everything, network.description, out / EVERYTHING)
        if found.kept is not None:
            save_model(found.kept, network.description, out / KEPT)
            (out / KEPT / "rows.sha256").write_text(rows_digest(~decision.flagged), encoding="utf-8")
            lines = [canonical_json({"epoch": e, "loss": round(loss, 6), "accuracy": round(a, 6)}, indent=None) for e, loss, a in found.curve]
            (out / KEPT / "curve.jsonl").write_text("".join(lines), encoding="utf-8")
    else:
        predicted = column(scores, "predicted", len(labels)).astype(np.int64)
        confidence = column(scores, "suspicion", len(labels)).astype(np.float64)
        decision = by_misclassification(predicted, confidence, labels, len(data.info.class_names))
    suspicious = column(partition / "scores.parquet", "suspicion", len(labels))
    write_parquet(
        _decisions(data_ids=scores_table(data, {}), labels=labels, decision=decision, predicted=predicted, early=suspicious),
        out / "decisions.parquet",
    )
    n, k = len(labels), int(decision.flagged.sum())
    poisoned = (
        0 if decision.verdict == "inconclusive" else int((decision.flagged & ~np.isin(labels, decision.held)).sum())
    )  # others wait for a person
    verdict: dict[str, Any] = {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "target_class": decision.target_class,
        "held": list(decision.held),
        "estimated_rate": share(poisoned, n) if poisoned else None,
        "caps": decision.caps,
        "leak": None,
        "evidence": [dataclasses.asdict(each) for each in decision.evidence],
        "rounds": decision.rounds,
    }
    (out / "verdict.json").write_text(canonical_json(verdict), encoding="utf-8")
    ctx.metrics = {"flagged": k, "classes_with_evidence": len(set(labels[decision.flagged].tolist()))}
    if decision.evidence:
        ctx.metrics |= {"smallest_p": min(each.p for each in decision.evidence), "rounds": len(decision.rounds)}


def _decisions(data_ids: pa.Table, labels: np.ndarray, decision: Decision, predicted: np.ndarray | None, early: np.ndarray) -> pa.Table:
    # Without an answer nothing is called poisoned: what would have been is held for a person. Of a class that breaks a cap that is so, too.
    waits = decision.flagged & (np.isin(labels, decision.held) | (decision.verdict == "inconclusive"))
    suspected = np.isin(labels, labels[decision.flagged])
    cleared = np.where(suspected, "with-its-class", "no-evidence") if predicted is None else np.full(len(labels), "not-fitted-by-enhanced")
    reasons = [
        [REASONS[decision.proofs[int(c)]], *["early-loss"] * bool(rank >= EARLY)] if flag else [str(code)]
        for c, flag, rank, code in zip(labels, decision.flagged, early, cleared, strict=True)
    ]
    n = len(labels)
    columns = {
        "label": pa.array(labels),
        "verdict": pa.array(np.select([waits, decision.flagged], ["review", "poisoned"], "clean")),
        "action": pa.array(np.select([waits, decision.flagged], ["quarantine", "remove"], "keep")),
        "new_label": pa.nulls(n, pa.int64()),
        "suspicion": pa.array(decision.suspicion.astype(np.float32)),
        "enhanced_pred": pa.nulls(n, pa.int64()) if predicted is None else pa.array(predicted),
        "clean_pred": pa.nulls(n, pa.int64()),
        "reasons": pa.array(reasons, pa.list_(pa.string())),
        "proof": pa.array([decision.proofs[int(c)] if flag else None for c, flag in zip(labels, decision.flagged, strict=True)], pa.string()),
    }
    table = data_ids
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


if __name__ == "__main__":
    main(sys.modules[__name__])
