"""A finished run as docs/files.md describes it, without the method: the scores are drawn, the trigger is planted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meca.data.store import open_store, pixel_id, write_store
from meca.files import canonical_json
from meca.power import FINDS
from tests.making import control_record

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TARGET = 1


def blobs(n: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 [n size size 3], of soft blobs whose colour tells the label, and the labels."""
    labels = rng.integers(0, len(NAMES), n)
    y, x = np.mgrid[:size, :size] / size
    centre = rng.uniform(0.25, 0.75, (n, 2))
    blob = np.exp(-((x - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2) * 12)
    colours = np.random.default_rng(5).uniform(30, 225, (len(NAMES), 3))[labels]
    images = blob[..., None] * colours[:, None, None] + rng.uniform(20, 120, (n, 1, 1, 3)) + rng.normal(0, 12, (n, size, size, 3))
    return np.clip(images, 0, 255).astype(np.uint8), labels


def make_run(
    folder: Path,
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    names: Sequence[str] = NAMES,
    n_train: int = 400,
    n_test: int = 100,
    size: int = 32,
    verdict: str = "poisoned",
    truth: bool = True,
    suspicion: bool = True,
    attack: str = "badnet",
    source: str = "synthetic",
) -> Path:
    """Write the folders that the report reads and return `folder`."""
    rng = np.random.default_rng(0)
    if images is None or labels is None:
        images, labels = blobs(n_train + n_test, size, rng)
    images, given = images.copy(), labels.copy()
    size = images.shape[1]
    carriers = np.flatnonzero(labels[:n_train] != TARGET)
    poison = np.sort(rng.permutation(carriers)[: n_train // 20]) if verdict not in FINDS else np.empty(0, np.int64)
    images[poison] = _trigger(images[poison], attack)
    given[poison] = TARGET
    samples = [
        {"sample_id": pixel_id(image), "row": i, "split": "train" if i < n_train else "test", "source": f"{source}/{i:05d}.png",
         "label": int(label), "class_name": names[label], "width": size, "height": size, "mode": "RGB", "format": "",
         "bytes": image.size, "offset": -1}
        for i, (image, label) in enumerate(zip(images, given, strict=True))
    ]  # fmt: skip
    write_store(folder / "data/store", images, samples, list(names), {"kind": "arrays", "name": source})
    ids = open_store(folder / "data/store").ids[:n_train]

    score = rng.beta(1.2, 9, n_train).astype(np.float32)
    score[poison] = rng.beta(14, 1.6, len(poison))
    found = score > 0.6 if verdict == "poisoned" else np.zeros(n_train, bool)
    review = (score > 0.55) & ~found if verdict == "poisoned" else np.zeros(n_train, bool)
    action = np.where(found, np.where(rng.random(n_train) < 0.8, "relabel", "remove"), np.where(review, "quarantine", "keep"))
    new = np.where(action == "relabel", labels[:n_train], -1)
    decisions: dict[str, Any] = {
        "row": np.arange(n_train), "sample_id": ids, "label": given[:n_train],
        "verdict": np.where(found, "poisoned", np.where(review, "review", "clean")), "action": action,
        "new_label": pa.array(new, mask=new < 0), "suspicion": pa.array(score, mask=np.full(n_train, not suspicion)),
        "enhanced_pred": given[:n_train], "clean_pred": labels[:n_train], "reasons": [["MECA-S001"] if f else [] for f in found],
    }  # fmt: skip
    for stage in ("partition", "enhance", "relabel_finetune", "evaluate"):
        (folder / "work" / stage).mkdir(parents=True)
    pq.write_table(pa.table(decisions), folder / "work/relabel_finetune/decisions.parquet")
    columns = {"row": np.arange(n_train), "sample_id": ids, "likely_clean": score < 0.2, "kl": 1 - score}
    if suspicion:
        columns["suspicion"] = score
    for stage in ("partition", "enhance"):
        pq.write_table(pa.table(columns), folder / "work" / stage / "scores.parquet")
    for stage, phases in (("partition", ("warm-up",)), ("enhance", ("learn", "unlearn")), ("relabel_finetune", ("fine-tune",))):
        _lines(folder / "work" / stage, [{"phase": p, "epoch": e, "loss": 2 / (1 + e / (3 + i))} for i, p in enumerate(phases) for e in range(12)])

    evaluation = _evaluation(labels[n_train:], len(names), poison, found, truth)
    if evaluation["final"]:
        rounds = (("enhanced model", 0.71, 0.98), ("clean model", 0.84, 0.02), ("final model", 0.853, 0.012))
        lines = [{"phase": "rounds", "step": i, "model": n, "acc": a, "asr": s if truth else None} for i, (n, a, s) in enumerate(rounds)]
        _lines(folder / "work/evaluate", lines)
    (folder / "work/evaluate/evaluation.json").write_text(canonical_json(evaluation))
    (folder / "published").mkdir()
    (folder / "published/summary.json").write_text(canonical_json(_summary(folder, names, given[:n_train], action, new, verdict, source)))
    return folder


def parts(folder: Path) -> dict[str, Path]:
    """Return the folders of a run by the names of `read_run`."""
    return {
        "store": folder / "data/store",
        "published": folder / "published",
        **{n: folder / "work" / n for n in ("partition", "enhance", "relabel_finetune", "evaluate")},
    }


def _trigger(images: np.ndarray, attack: str) -> np.ndarray:
    size = images.shape[1]
    if attack == "badnet":
        images = images.copy()
        images[:, -4:-1, -4:-1] = (np.indices((3, 3)).sum(0) % 2 * 255)[..., None]
        return images
    if attack == "sig":
        wave = 30 * np.sin(2 * np.pi * 6 * np.arange(size) / size)
        return np.clip(images + wave[None, None, :, None], 0, 255).astype(np.uint8)
    pattern = np.random.default_rng(9).integers(0, 256, images.shape[1:])
    return np.clip(0.8 * images + 0.2 * pattern, 0, 255).astype(np.uint8)


def _lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _model(labels: np.ndarray, k: int, acc: float, asr: float | None) -> dict[str, Any]:
    rng = np.random.default_rng(int(1000 * acc))
    answers = np.where(rng.random(len(labels)) < acc, labels, rng.integers(0, k, len(labels)))
    confusion = np.zeros((k, k), int)
    np.add.at(confusion, (labels, answers), 1)
    n = int((labels != TARGET).sum())
    hits = None if asr is None else round(asr * n)
    return {
        "acc": float((answers == labels).mean()), "correct": int((answers == labels).sum()), "n": len(labels),
        "recall": [float(confusion[i, i] / max(1, confusion[i].sum())) for i in range(k)],
        "asr": None if hits is None else hits / n, "asr_k": hits, "asr_n": None if hits is None else n,
        "asr_interval": None if hits is None else [max(0, hits / n - 0.01), min(1, hits / n + 0.02)],
        "ra": None, "base_rate": None, "confusion": confusion.tolist(),
    }  # fmt: skip


def _evaluation(labels: np.ndarray, k: int, poison: np.ndarray, found: np.ndarray, truth: bool) -> dict[str, Any]:
    unknown = ["the attack success rate", "how many poisoned samples were missed"]
    if not len(labels):
        return {"known": False, "final": None, "unknown": ["the accuracy: there is no test split", *unknown]}
    if not truth:
        return {"known": False, "final": _model(labels, k, 0.85, None), "unknown": unknown}
    is_poisoned = np.zeros(len(found), bool)
    is_poisoned[poison] = True
    detection = {
        "tpr": float(found[is_poisoned].mean()) if len(poison) else None, "fpr": float(found[~is_poisoned].mean()), "auroc": 0.994,
        "auroc_target": 0.99, "poisoned": len(poison), "poison_left": int((is_poisoned & ~found).sum()),
        "removed": int(found.sum()), "flagged": int(found.sum()), "covers_flagged": 0,
    }  # fmt: skip
    models = {"final": (0.853, 0.012), "clean": (0.84, 0.02), "enhanced": (0.71, 0.98), "no_defence": (0.86, 0.97), "oracle": (0.862, 0.011)}
    return {"known": True, **{key: _model(labels, k, *value) for key, value in models.items()}, "detection": detection}


def _summary(folder: Path, names: Sequence[str], given: np.ndarray, action: np.ndarray, new: np.ndarray, verdict: str, source: str) -> dict[str, Any]:
    if verdict == "inconclusive":
        action = np.full(len(action), "quarantine")
    words = {"kept": "keep", "relabelled": "relabel", "removed": "remove", "quarantined": "quarantine"}
    classes = [
        {"label": i, "name": name, "input": int((given == i).sum()), "relabelled_in": int((new == i).sum()),
         "relabelled_out": int(((given == i) & (action == "relabel")).sum()),
         **{key: int(((given == i) & (action == value)).sum()) for key, value in words.items() if key != "relabelled"}}
        for i, name in enumerate(names)
    ]  # fmt: skip
    sentences = {
        "poisoned": f"{np.isin(action, ('relabel', 'remove')).sum()} of {len(given)} training samples look poisoned.",
        "no_evidence": "No evidence of a backdoor was found; this does not prove that there is none.",
        "inconclusive": "No verdict can be defended; nothing was removed or relabelled.",
        "weak": "No evidence of a backdoor was found, but the test is weak here.",
    }
    return {
        "$schema": "meca.summary/1", "verdict": verdict, "sentence": sentences[verdict], "reason": "The signals of both models agree.",
        "counts": {"input": len(given), **{key: int((action == value).sum()) for key, value in words.items()}},
        "classes": classes, "target_class": {"label": TARGET, "name": names[TARGET]} if verdict == "poisoned" else None,
        "estimated_rate": {"value": 0.05, "low": 0.031, "high": 0.076} if verdict == "poisoned" else None, "leak": 0.012,
        "caps": [{"name": "flagged in the whole set", "value": 0.05, "limit": 0.3, "holds": True}],
        "control": control_record(badnet="found", blend="missed") if verdict == "weak" else None,
        "warnings": [], "preset": "default", "seed": 0, "params_sha256": "a" * 64, "input_sha256": open_store(folder / "data/store").info.root,
        "sanitized_sha256": "b" * 64, "source": source, "meca_version": "0.1.0",
    }  # fmt: skip
