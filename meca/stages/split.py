"""Decide which samples are poisoned, and whether there is evidence of poisoning at all."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from meca.augment import generator
from meca.engine import EngineParams, prepare
from meca.enhance import SIDES
from meca.files import canonical_json, read_json
from meca.metrics import wilson
from meca.models import load_model
from meca.relabel import transplant
from meca.split import Decision, SplitParams, by_misclassification, by_two_clusters
from meca.stages.runtime import Context, main
from meca.stages.tensors import column, open_train, scores_table, write_parquet
from meca.store import open_store

GROUPS = ("seed", "preset", "engine", "split")


def run(ctx: Context, store: Path, partition: Path, enhance: Path, out: Path) -> None:
    """Write a verdict for every sample and one for the set."""
    params = ctx.params.group("split", SplitParams)
    data = open_store(store)
    labels = data.labels[data.train]
    classes = len(data.info.class_names)
    scores = enhance / "scores.parquet"
    predicted: np.ndarray | None = None
    if params.rule == "two_clusters":
        margins = {side: column(scores, f"margin_{side}", len(labels)).astype(np.float64) for side in SIDES}
        decision = by_two_clusters(margins, labels, classes, params, _flips(ctx, store, partition, params), _fitted(partition))
    else:
        predicted = column(scores, "predicted", len(labels)).astype(np.int64)
        decision = by_misclassification(predicted, column(scores, "suspicion", len(labels)).astype(np.float64), labels, classes)
    early = column(partition / "scores.parquet", "suspicion", len(labels))
    write_parquet(
        _decisions(data_ids=scores_table(data, {}), labels=labels, decision=decision, predicted=predicted, early=early), out / "decisions.parquet"
    )
    n, k = len(labels), int(decision.flagged.sum())
    low, high = wilson(k, n)
    verdict: dict[str, Any] = {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "target_class": decision.target_class,
        "estimated_rate": {"value": k / n, "low": low, "high": high},
        "caps": decision.caps,
        "leak": None,
        "evidence": [
            {name: (value if not isinstance(value, float) or np.isfinite(value) else None) for name, value in dataclasses.asdict(e).items()}
            for e in decision.evidence
        ],
    }
    (out / "verdict.json").write_text(canonical_json(verdict), encoding="utf-8")
    ctx.metrics = {"flagged": k, "classes_with_evidence": len(set(labels[decision.flagged].tolist()))}
    if decision.evidence:
        strongest = max(decision.evidence, key=lambda e: (e.flips or 0.0, e.range))
        ctx.metrics |= {"flips": strongest.flips or 0.0, "valley": strongest.valley, "range": strongest.range}


def _fitted(partition: Path) -> float:
    return float(read_json(partition / "metrics.json")["train_accuracy"])


def _flips(ctx: Context, store: Path, partition: Path, params: SplitParams) -> Callable[[int, np.ndarray, np.ndarray], float]:
    device = prepare(ctx.params.group("engine", EngineParams))
    _, images, labels = open_train(store, device)
    model = load_model(partition).to(device.name)

    def flips(label: int, suspects: np.ndarray, rest: np.ndarray) -> float:
        if len(suspects) == 0 or len(rest) == 0:
            return 0.0
        others = torch.nonzero(labels != label)[:, 0]
        chosen = others[torch.randperm(len(others), generator=generator(ctx.seed, "split", label))[: params.probe].to(others.device)]
        first, second = (images[torch.from_numpy(rows).to(images.device)].float().mean(0) for rows in (suspects, rest))
        with_trigger, without = transplant(model, images[chosen], (first - second) / 255, label)
        return max(0.0, with_trigger - without)

    return flips


def _decisions(data_ids: pa.Table, labels: np.ndarray, decision: Decision, predicted: np.ndarray | None, early: np.ndarray) -> pa.Table:
    # Without an answer nothing is called poisoned: what would have been is held for a person.
    word = "review" if decision.verdict == "inconclusive" else "poisoned"
    action = "quarantine" if decision.verdict == "inconclusive" else "remove"
    reasons = [
        (["stands-apart"] * bool(flag) if predicted is None else ["fitted-by-enhanced"] * bool(flag)) + ["early-loss"] * bool(flag and rank >= 0.9)
        for flag, rank in zip(decision.flagged, early, strict=True)
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
    }
    table = data_ids
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


if __name__ == "__main__":
    main(sys.modules[__name__])
