"""Decide which samples are poisoned, and whether there is evidence of poisoning at all."""

import dataclasses
import sys
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from meca.data.store import open_store, write_parquet
from meca.files import canonical_json, read_json
from meca.method.clusters import Pairs, changed_pairs
from meca.method.enhance import SIDES, EnhanceParams, two_outputs
from meca.method.partition import PartitionParams
from meca.method.second_look import SecondLookParams, second_look
from meca.method.split import Decision, SplitParams, by_misclassification, by_two_clusters
from meca.method.transfer import called, everywhere, trigger_estimate, unexplained
from meca.metrics import share
from meca.models import build, load_model, read_description, save_model
from meca.stages.graph import Output
from meca.stages.runtime import Context, main
from meca.stages.tensors import EVERYTHING, column, open_train, scores_table
from meca.training.device import Device, EngineParams, prepare
from meca.training.engine import features, predict, side_by_side, train
from meca.training.seeds import generator
from meca.training.trainer import Recipe


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
    params, again, data = split, second_look_params, open_store(store)
    labels = data.labels[data.train]
    classes = len(data.info.class_names)
    scores = enhance / "scores.parquet"
    predicted: np.ndarray | None = None
    if params.rule == "two_clusters":
        margins = {side: column(scores, f"margin_{side}", len(labels)).astype(np.float64) for side in SIDES}
        networks = _Networks(ctx, store, partition, params, out, prepare(engine), _Trainings(partition_params.recipe, enhance_params, train_clean))
        decision = by_two_clusters(margins, labels, classes, params, networks.flips, networks.unseen, networks.again, _fitted(partition))
        if not decision.flagged.any():
            decision = second_look(
                decision,
                margins["behind"],
                labels,
                classes,
                again,
                params,
                partial(networks.fit, again),
                networks.carry,
                partial(networks.pair, again),
            )
    else:
        predicted = column(scores, "predicted", len(labels)).astype(np.int64)
        decision = by_misclassification(predicted, column(scores, "suspicion", len(labels)).astype(np.float64), labels, classes)
    early = column(partition / "scores.parquet", "suspicion", len(labels))
    write_parquet(
        _decisions(data_ids=scores_table(data, {}), labels=labels, decision=decision, predicted=predicted, early=early), out / "decisions.parquet"
    )
    n, k = len(labels), int(decision.flagged.sum())
    called = 0 if decision.verdict == "inconclusive" else k  # poisoned; the others are held for a person
    verdict: dict[str, Any] = {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "target_class": decision.target_class,
        "doubtful": list(decision.doubtful),
        "estimated_rate": share(called, n) if called else None,
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


@dataclasses.dataclass(frozen=True)
class _Trainings:
    """How the networks that `split` asks are trained."""

    unseen: Recipe
    again: EnhanceParams
    everything: Recipe


class _Networks:
    """What `split` asks of networks: the one of `partition`, and others like it that were trained without some samples."""

    def __init__(self, ctx: Context, store: Path, partition: Path, params: SplitParams, out: Path, device: Device, trainings: _Trainings) -> None:
        self.ctx, self.probe, self.end, self.out = ctx, params.probe, params.end, out
        self.device, self.trainings = device, trainings
        _, self.images, self.labels = open_train(store, self.device)
        # By class: pictures of others, the share of them that is called so as they are, and the mean of all others.
        self.tried: dict[int, tuple[torch.Tensor, float, torch.Tensor]] = {}
        self.model, self.description = load_model(partition).to(self.device.name), read_description(partition)

    def flips(self, label: int, suspects: np.ndarray, rest: np.ndarray) -> float:
        """Return the share of pictures of other classes that the difference of two heaps turns to the class, 0 where content explains it."""
        if len(suspects) == 0 or len(rest) == 0:
            return 0.0
        if label not in self.tried:
            others = torch.nonzero(self.labels != label)[:, 0]
            order = torch.randperm(len(others), generator=generator(self.ctx.seed, "split", label))
            pictures = self.images[others[order[: self.probe].to(others.device)]]
            self.tried[label] = pictures, called(self.model, pictures, label), self._mean(others)
        pictures, without, elsewhere = self.tried[label]
        first, second = (self._mean(torch.from_numpy(rows).to(self.images.device)) for rows in (suspects, rest))
        return unexplained(self.model, pictures, first - second, second - elsewhere, label, without)

    def _mean(self, rows: torch.Tensor) -> torch.Tensor:
        return self.images[rows].float().mean(0) / 255

    def unseen(self, left_out: list[np.ndarray]) -> list[np.ndarray]:
        """Return what networks that were trained without these samples see in all, int64 [n] each."""
        recipe = self.trainings.unseen

        def look(number: int, without: np.ndarray) -> np.ndarray:
            kept = torch.from_numpy(~without).to(self.device.name)
            if int(kept.sum()) < 2:  # nothing to learn from: it sees nothing foreign
                return self.labels.cpu().numpy()
            model = build(self.description, generator(self.ctx.seed, "split", "init")).to(self.device.name)
            place = self.ctx.checkpoints / f"without-{number}.safetensors"
            train(model, self.images, self.labels, kept, recipe, self.ctx.seed, f"split {number}", place, device=self.device)
            return predict(model, self.images).argmax(1).cpu().numpy()

        with self.ctx.timed("train"):
            return side_by_side([partial(look, *job) for job in enumerate(left_out)], self.device)

    def again(self, ranks: np.ndarray) -> np.ndarray:
        """Return the margins of all samples of `enhance` run once more, with the ends as suspects, float64 [n]."""
        params = dataclasses.replace(self.trainings.again, core=self.end)
        order = torch.from_numpy(ranks.astype(np.float32)).to(self.device.name)

        def note(number: int, loss: float, accuracy: float) -> None:
            self.ctx.progress("split: the ends again", number, 2 * params.rounds, f"loss {loss:.3f}")

        with self.ctx.timed("train"):
            found = two_outputs(
                self.model, self.description, self.images, self.labels, order, params, self.ctx.seed, "again", self.ctx.checkpoints, note, self.device
            )
        return found.margin.double().cpu().numpy()

    def fit(self, params: SecondLookParams, number: int, keep: np.ndarray) -> np.ndarray:
        """Return the probabilities of all samples by a network that was trained on some, float64 [n classes]."""
        self.ctx.progress("split: second look", number + 1, params.rounds, f"{int(keep.sum())} samples")
        model = build(self.description, generator(self.ctx.seed, "second look", number)).to(self.device.name)
        place, kept = self.ctx.checkpoints / f"round-{number}.safetensors", torch.from_numpy(keep).to(self.device.name)
        if int(kept.sum()) >= 2:
            with self.ctx.timed("train"):
                train(model, self.images, self.labels, kept, params.recipe, self.ctx.seed, f"second look {number}", place, device=self.device)
        return predict(model.eval(), self.images).double().softmax(1).cpu().numpy()

    def carry(self, suspects: np.ndarray, trusted: np.ndarray, content: np.ndarray) -> np.ndarray:
        """Return per class the share of other pictures that the common feature of its suspects turns to it, in a network trained on everything."""
        classes = len(self.description.class_names)
        if len(suspects) < 2:
            return np.zeros(classes)
        model = self.everything
        flagged, clean, seen = (torch.from_numpy(values).to(self.device.name) for values in (suspects, trusted, content))
        shares = np.zeros(classes)
        for c in range(classes):
            mine, alike, others = flagged & (self.labels == c), clean & (self.labels == c), torch.nonzero(clean & (self.labels != c))[:, 0]
            if not bool(mine.any()) or not bool(alike.any()) or len(others) == 0:
                continue
            order = torch.randperm(len(others), generator=generator(self.ctx.seed, "second look", "pictures", c))
            asked = others[order[: self.probe].to(others.device)]
            shared = trigger_estimate(self.images, mine, clean, seen, classes)
            looks = self._mean(torch.nonzero(alike)[:, 0]) - self._mean(others)
            shares[c] = everywhere(model, self.images[asked], self.labels[asked], shared, looks, c)
        return shares

    def pair(self, params: SecondLookParams) -> Pairs:
        """Return the smaller cluster of each class in the features of a network trained on everything, and what it turns."""
        model, classes = self.everything, len(self.description.class_names)
        values = features(model, self.images).double().cpu().numpy()
        return changed_pairs(model, self.images, self.labels, values, classes, params.cluster, params.min_suspects, self.probe, self.ctx.seed)

    @cached_property
    def everything(self) -> torch.nn.Module:
        """A network that was trained fully on everything: it has learnt the trigger, however rare. It is kept for the test of the final model."""
        recipe = self.trainings.everything
        self.ctx.progress("split: second look", 1, 1, "all samples")
        model = build(self.description, generator(self.ctx.seed, "second look", "everything")).to(self.device.name)
        kept, place = torch.ones_like(self.labels, dtype=torch.bool), self.ctx.checkpoints / "everything.safetensors"
        with self.ctx.timed("train"):
            train(model, self.images, self.labels, kept, recipe, self.ctx.seed, "second look everything", place, device=self.device)
        save_model(model, self.description, self.out / EVERYTHING)
        return model.eval()


def _decisions(data_ids: pa.Table, labels: np.ndarray, decision: Decision, predicted: np.ndarray | None, early: np.ndarray) -> pa.Table:
    # Without an answer nothing is called poisoned: what would have been is held for a person.
    word = "review" if decision.verdict == "inconclusive" else "poisoned"
    action = "quarantine" if decision.verdict == "inconclusive" else "remove"
    suspected = np.isin(labels, labels[decision.flagged])
    cleared = np.where(suspected, "with-its-class", "no-evidence") if predicted is None else np.full(len(labels), "not-fitted-by-enhanced")
    reasons = [
        [decision.code, *["early-loss"] * bool(rank >= 0.9)] if flag else [str(code)]
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
