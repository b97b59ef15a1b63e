"""Decide which samples are poisoned, and whether there is evidence of poisoning at all."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meca.data.store import open_store, write_parquet
from meca.files import canonical_json, read_json
from meca.method.enhance import SIDES, EnhanceParams
from meca.method.networks import Networks, Trainings
from meca.method.partition import PartitionParams
from meca.method.second_look import SecondLookParams, SecondQuestions, second_look
from meca.method.split import Decision, Labelling, Questions, SplitParams, by_misclassification, by_two_clusters
from meca.metrics import share
from meca.models import Network, load_model, read_description, save_model
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import EVERYTHING, column, open_train, scores_table
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
    partition_params: PartitionParams,
    enhance_params: EnhanceParams,
    split: SplitParams,
    second_look_params: SecondLookParams,
    train_clean: Recipe,
) -> None:
    """Write a verdict for every sample and one for the set."""
    params, later = split, second_look_params
    trainings = Trainings(partition_params.recipe, enhance_params, later, train_clean, params.end, params.probe)
    data = open_store(store)
    labels = data.labels[data.train]
    classes = len(data.info.class_names)
    scores = enhance / "scores.parquet"
    predicted: np.ndarray | None = None
    if params.rule == "two_clusters":
        margins = {side: column(scores, f"margin_{side}", len(labels)).astype(np.float64) for side in SIDES}
        session, labelling = Session(ctx.seed, prepare(engine), ctx.checkpoints), Labelling(labels, classes)
        network = Network(load_model(partition).to(session.device.name), read_description(partition))
        networks = Networks(session, network, Data(*open_train(store, session.device)[1:]), trainings, ctx.progress)
        asked = Questions(networks.flip_rate, networks.unseen, networks.rescore)
        decision = by_two_clusters(margins, labelling, params, asked, _fitted(partition))
        if not decision.flagged.any():
            further = SecondQuestions(networks.fit, networks.common_flip_rates, networks.pair)
            decision = second_look(decision, margins["behind"], labelling, later, params, further)
        if networks.learnt is not None:  # for the test of the final model
            save_model(networks.learnt, network.description, out / EVERYTHING)
        ctx.timings |= {"train": networks.seconds} if networks.seconds else {}
    else:
        predicted = column(scores, "predicted", len(labels)).astype(np.int64)
        decision = by_misclassification(predicted, column(scores, "suspicion", len(labels)).astype(np.float64), labels, classes)
    suspicious = column(partition / "scores.parquet", "suspicion", len(labels))
    write_parquet(
        _decisions(data_ids=scores_table(data, {}), labels=labels, decision=decision, predicted=predicted, early=suspicious),
        out / "decisions.parquet",
    )
    n, k = len(labels), int(decision.flagged.sum())
    poisoned = 0 if decision.verdict == "inconclusive" else k  # the others are held for a person
    verdict: dict[str, Any] = {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "target_class": decision.target_class,
        "doubtful": list(decision.doubtful),
        "estimated_rate": share(poisoned, n) if poisoned else None,
        "caps": decision.caps,
        "leak": None,
        "evidence": [
            {name: (value if not isinstance(value, float) or np.isfinite(value) else None) for name, value in dataclasses.asdict(e).items()}
            for e in decision.evidence
        ],
        "second_look": [dataclasses.asdict(f) for f in decision.foreign],
    }
    (out / "verdict.json").write_text(canonical_json(verdict), encoding="utf-8")
    ctx.metrics = {"flagged": k, "classes_with_evidence": len(set(labels[decision.flagged].tolist()))}
    if decision.evidence:
        strongest = max(decision.evidence, key=lambda e: (e.flips or 0.0, e.range))
        ctx.metrics |= {"flips": strongest.flips or 0.0, "valley": strongest.valley, "range": strongest.range}


def _fitted(partition: Path) -> float:
    return float(read_json(partition / "metrics.json")["train_accuracy"])


def _decisions(data_ids: pa.Table, labels: np.ndarray, decision: Decision, predicted: np.ndarray | None, early: np.ndarray) -> pa.Table:
    # Without an answer nothing is called poisoned: what would have been is held for a person.
    word = "review" if decision.verdict == "inconclusive" else "poisoned"
    action = "quarantine" if decision.verdict == "inconclusive" else "remove"
    suspected = np.isin(labels, labels[decision.flagged])
    cleared = np.where(suspected, "with-its-class", "no-evidence") if predicted is None else np.full(len(labels), "not-fitted-by-enhanced")
    reasons = [
        [decision.code, *["early-loss"] * bool(rank >= EARLY)] if flag else [str(code)]
        for flag, rank, code in zip(decision.flagged, early, cleared, strict=True)
    ]
    n = len(labels)
    columns = {
        "label": pa.array(labels),
        "verdict": pa.array([word if flag else "clean" for flag in decision.flagged]),
        "action": pa.array([action if flag else "keep" for flag in decision.flagged]),
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
