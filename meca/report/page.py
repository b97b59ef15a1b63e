"""What the report says: read what the stages wrote, choose what is shown, fill the template."""

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from meca.data.judged import at_size, beside, of_store
from meca.data.store import Store, open_store, read_parquet
from meca.errors import MecaError
from meca.files import read_json
from meca.power import found_lines
from meca.report import plots
from meca.report.images import Estimate, block_features, diverging, estimate_trigger, nearest, shown, thumbnail
from meca.report.numbers import count, interval, percent
from meca.text import plain

__all__ = ["MAX_BYTES", "ReportParams", "Run", "build", "read_run", "render", "with_verdicts"]

MAX_BYTES = 5_000_000  # of the page; MLflow's viewer and mail programs choke on larger ones
THUMBNAIL_BYTES = 4_200_000  # of all thumbnails together, so that the rest fits
MAX_PAIRS = 1000  # for the estimate of the trigger
MIN_PAIRS = 8  # fewer say nothing
BINS = 50
MAX_CLASSES = 20  # in the tables with a line a class; a page is no place for a thousand
ACTIONS = ("keep", "relabel", "remove", "quarantine")
VERDICTS = {"no_evidence": "No evidence", "weak": "None, weak test", "poisoned": "Poison found", "inconclusive": "Inconclusive"}


@dataclass(frozen=True)
class ReportParams:
    """How many thumbnails of each kind (group `report` of params.yaml)."""

    flagged_pictures: int
    borderline_pictures: int
    kept_pictures: int


@dataclass(frozen=True)
class Run:
    """What the stages wrote, as arrays over the train rows."""

    store: Store
    summary: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    curves: Mapping[str, list[dict[str, Any]]]  # stage to lines
    verdict: np.ndarray  # str [n]: clean, poisoned, review
    action: np.ndarray  # str [n]: keep, relabel, remove, quarantine
    label: np.ndarray  # int64 [n]
    new_label: np.ndarray  # int64 [n], -1 where there is none
    enhanced: np.ndarray  # int64 [n], prediction of the enhanced model, -1 where unknown
    suspicion: np.ndarray  # float32 [n], NaN where unknown
    reasons: Sequence[Sequence[str]]

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, harmless for a screen."""
        return tuple(plain(name, 60) or f"class {i}" for i, name in enumerate(self.store.info.class_names))

    def name(self, label: int) -> str:
        """Return the name of a label; a dash where there is none."""
        return self.names[label] if 0 <= label < len(self.names) else "–"


def read_run(store: Path, published: Path, partition: Path, enhance: Path, relabel_finetune: Path, evaluate: Path) -> Run:
    """Read what a report needs from the folders of the stages.

    Raises:
        MecaError: The decisions do not belong to this store.
    """
    opened = open_store(store)
    table = pq.read_table(relabel_finetune / "decisions.parquet").sort_by("row")
    n = opened.info.n_train
    if not np.array_equal(table["row"].to_numpy(), np.arange(n)):
        raise MecaError(f"Expected {relabel_finetune / 'decisions.parquet'} to decide on the {n} train rows once each, got {table.num_rows} lines.")

    def integers(name: str) -> np.ndarray:
        if name not in table.column_names:
            return np.full(n, -1)
        return table[name].cast("int64").fill_null(-1).to_numpy()

    def strings(name: str) -> np.ndarray:
        return np.array(table[name].to_pylist(), dtype=object)

    evaluation = evaluate / "evaluation.json"
    reasons = table["reasons"].to_pylist() if "reasons" in table.column_names else [[]] * n
    return Run(
        store=opened,
        summary=read_json(published / "summary.json"),
        evaluation=read_json(evaluation) if evaluation.is_file() else {"known": False, "unknown": []},
        curves={
            name: _lines(folder / "curves.jsonl")
            for name, folder in (("partition", partition), ("enhance", enhance), ("relabel_finetune", relabel_finetune), ("evaluate", evaluate))
        },
        verdict=strings("verdict"),
        action=strings("action"),
        label=integers("label"),
        new_label=integers("new_label"),
        enhanced=integers("enhanced_pred"),
        suspicion=_suspicion(table, (enhance, partition), n),
        reasons=reasons,
    )


def with_verdicts(run: Run, published: Path) -> Run:
    """Return the run with the summary of a published folder, and with the actions and new labels of its verdicts.

    Raises:
        MecaError: The verdicts cannot be read.
    """
    columns = [read_parquet(published / "verdicts.parquet")[name].to_pylist() for name in ("source", "action", "new_label")]
    said = {source: (action, -1 if label is None else label) for source, action, label in zip(*columns, strict=True)}
    rows = [said[source] for source in run.store.readable["source"].to_pylist()[: run.store.info.n_train]]
    action, new_label = np.array([a for a, _ in rows], dtype=object), np.array([label for _, label in rows], np.int64)
    return replace(run, summary=read_json(published / "summary.json"), action=action, new_label=new_label)


def render(run: Run, seed: int, params: ReportParams) -> str:
    """Return the page of a run: the same run gives the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=lambda *given: percent(*given).replace(" ", "\u00a0"), count=count, interval=interval, plain=plain)
    page = environment.get_template("page.html").render(build(run, seed, params)) + "\n"
    # A lone surrogate (from a file name that is not UTF-8) cannot be written; `plain` removes it, this is the second lock.
    page = page.encode("utf-8", "replace").decode()
    if len(page.encode()) > MAX_BYTES:
        raise MecaError(
            f"Expected the report to stay below {MAX_BYTES} bytes, got {len(page.encode())}; ask for fewer images in params.yaml [report]."
        )
    return page


def build(run: Run, seed: int, params: ReportParams) -> dict[str, Any]:
    """Return everything that the template shows."""
    features = block_features(run.store.images, np.arange(run.store.info.n_train))
    kept = np.flatnonzero(run.action == "keep")
    if not len(kept):  # an inconclusive run publishes nothing; what was not suspected is the ordinary sample then
        kept = np.flatnonzero(run.verdict == "clean")
    known, edges = run.suspicion[~np.isnan(run.suspicion)], np.linspace(0, 1, BINS + 1)
    groups = _groups(run, seed, params, features, kept)
    on_page = sum(len(group["entries"]) for group in groups)
    evaluation = run.evaluation
    verdict, judged = str(run.summary["verdict"]), of_store(run.store)
    # Only where nothing was found is the size a part of the verdict: what was found at a smaller size is there.
    size = at_size(judged) if verdict in ("no_evidence", "weak") else ""
    return {
        "summary": run.summary,
        "verdict": verdict,
        "verdict_name": f"{VERDICTS.get(verdict, verdict)} {size}".rstrip(),
        "is_weak": bool(size) or verdict == "weak",
        "control": found_lines(run.summary.get("control")),
        "judged": beside(judged),
        "source": _source(run.summary),
        "colours": plots.COLOURS,
        "counts": _counts(run.summary),
        "not_shown": max(0, int(run.summary["counts"]["input"]) - on_page),
        "on_page": on_page,
        "classes": _classes(run),
        "more_classes": max(0, len(run.summary["classes"]) - MAX_CLASSES),
        "trigger": _trigger(run, features, kept),
        "groups": groups,
        "strip": _strip(run.suspicion, edges),
        "histogram": plots.histogram(edges, {a: np.histogram(run.suspicion[run.action == a], edges)[0] for a in ACTIONS}) if known.size else None,
        "ridges": _ridges(run, edges),
        "evaluation": evaluation,
        "figures": _figures(evaluation),
        "detection": evaluation.get("detection") or {},
        "unknown": [plain(item, 300) for item in evaluation.get("unknown") or ()],
        "rounds": _rounds(run),
        "curves": _curves(run),
        "recalls": _recalls(run),
        "confusions": _confusions(run),
        "command": _command(run),
        "versions": _versions(run.summary),
        "image_size": f"{run.store.info.width} × {run.store.info.height}" + (" with borders" if judged["fit"] == "pad" else ""),
        "size_reason": plain(judged["reason"], 300),
        "n_test": run.store.info.n_test,
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line] if path.is_file() else []


def _suspicion(decisions: Any, folders: Sequence[Path], n: int) -> np.ndarray:
    """Return the suspicion of the decisions; of the last stage that has one where they have none; NaN otherwise."""
    tables = [decisions, *(pq.read_table(folder / "scores.parquet").sort_by("row") for folder in folders if (folder / "scores.parquet").is_file())]
    for table in tables:
        if "suspicion" in table.column_names and table.num_rows == n and table["suspicion"].null_count < n:
            return table["suspicion"].cast("float32").fill_null(float("nan")).to_numpy()
    return np.full(n, np.nan, np.float32)


def _source(summary: Mapping[str, Any]) -> str:
    source = summary.get("source")
    if isinstance(source, Mapping):
        source = source.get("name") or source.get("kind")
    return plain(source or "unknown source", 120)


def _counts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts = summary["counts"]
    words = (
        ("keep", "kept", "bytes unchanged"),
        ("relabel", "relabelled", "image kept, label corrected"),
        ("remove", "removed", "poisoned, no label defensible"),
        ("quarantine", "quarantined", "unreadable, or for a person to decide"),
    )
    total = max(1, int(counts["input"]))
    return [{"action": action, "word": word, "what": what, "n": counts[word], "share": counts[word] / total} for action, word, what in words]


def _classes(run: Run) -> list[dict[str, Any]]:
    """Return a bar per class: what became of the samples that came with this label."""
    bars: list[dict[str, Any]] = []
    targets = set(run.label[run.verdict == "poisoned"].tolist()) if run.summary.get("target_class") else set[int]()
    widest = max([1, *(int(c["input"]) for c in run.summary["classes"])])
    # Where there are too many classes to list, those with most changes are the ones to look at.
    changed = sorted(run.summary["classes"], key=lambda c: (-(int(c["input"]) - int(c["kept"])), int(c["label"])))[:MAX_CLASSES]
    for item in sorted(changed, key=lambda c: int(c["label"])):
        parts = [
            {"action": action, "n": int(item[key]), "width": 100 * int(item[key]) / widest}
            for action, key in zip(ACTIONS, ("kept", "relabelled_out", "removed", "quarantined"), strict=True)
        ]
        bars.append({**item, "name": plain(item["name"], 60), "parts": parts, "is_target": item["label"] in targets})
    return bars


def _trigger(run: Run, features: np.ndarray, kept: np.ndarray) -> dict[str, Any] | None:
    """Compare the flagged images of the suspected target class with matched kept images.

    Kept images of any class may match: the subject of a poisoned image often belongs to another class than its label says,
    and matched within the label alone, the difference of the subjects hides weak triggers.
    """
    target = run.summary.get("target_class")
    if not target:
        return None
    label = int(target["label"])
    others = len(np.unique(run.label[(run.verdict == "poisoned") & (run.label != label)]))
    flagged = np.flatnonzero((run.verdict == "poisoned") & (run.label == label))
    flagged = flagged[np.argsort(-run.suspicion[flagged], kind="stable")][:MAX_PAIRS]
    if len(flagged) < MIN_PAIRS or len(kept) < MIN_PAIRS:
        return None
    matched = kept[nearest(features[flagged], features[kept])]
    estimate = estimate_trigger(run.store.images, flagged, matched)
    return {"name": run.name(label), "others": others, "n": estimate.n, "panels": _panels(estimate), "distinct": len(np.unique(matched))}


def _panels(estimate: Estimate) -> list[dict[str, str]]:
    largest = float(np.quantile(np.abs(estimate.difference), 0.999))
    gain = min(40.0, max(1.0, 110 / max(largest, 1e-6)))
    # The channel that speaks loudest decides the colour: in a mean over channels a coloured trigger would cancel out.
    t = np.take_along_axis(estimate.t, np.abs(estimate.t).argmax(axis=2)[..., None], axis=2)[..., 0]
    t_limit = max(8.0, float(np.abs(t).max()))
    s_limit = max(0.15, float(np.abs(estimate.spectrum).max()))
    return [
        {"image": shown(estimate.flagged), "title": "Mean of the flagged", "note": f"{estimate.n} images"},
        {"image": shown(estimate.matched), "title": "Mean of their matches", "note": "the nearest kept image of each"},
        {
            "image": shown(128 + gain * estimate.difference),
            "title": f"Difference, × {gain:.1f}",
            "note": f"grey is equal; largest {largest:.1f} of 255",
        },
        {"image": shown(diverging(t, t_limit)), "title": "t per pixel", "note": f"blue −{t_limit:.0f}, white 0, red +{t_limit:.0f}"},
        {
            "image": shown(diverging(estimate.spectrum, s_limit)),
            "title": "Frequencies",
            "note": f"amplitude: blue ÷ {10**s_limit:.1f}, red × {10**s_limit:.1f}; slow waves in the middle",
        },
    ]


def _groups(run: Run, seed: int, params: ReportParams, features: np.ndarray, kept: np.ndarray) -> list[dict[str, Any]]:
    """Return the three groups of thumbnails, each sample beside its nearest kept neighbour."""
    order = np.argsort(-np.nan_to_num(run.suspicion, nan=-1.0), kind="stable")
    flagged = order[run.verdict[order] == "poisoned"]
    first = flagged[: params.flagged_pictures]
    review, clean, rest = order[run.verdict[order] == "review"], order[run.verdict[order] == "clean"], flagged[len(first) :]
    below = clean[: params.borderline_pictures // 2]
    above = np.concatenate([review, rest[::-1]])[: params.borderline_pictures - len(below)]
    drawn = np.setdiff1d(kept, below)
    random = np.random.default_rng([seed, 0x7E9027])  # a stream of its own: the thumbnails leave every other draw alone
    kept_rows = np.sort(random.permutation(drawn)[: params.kept_pictures])
    texts = (
        (
            "Flagged",
            f"The {len(first)} most suspicious of {count(len(flagged))} flagged samples." if len(flagged) else "No sample is flagged.",
            first,
        ),
        (
            "Borderline",
            f"{len(above)} samples just flagged or left for review, then the {len(below)} most suspicious kept ones.",
            np.concatenate([above, below]),
        ),
        ("Kept", f"{len(kept_rows)} kept samples, drawn at random: what an ordinary sample looks like here.", kept_rows),
    )
    cache: dict[int, str] = {}
    spent, groups = 0, list[dict[str, Any]]()
    place = {int(row): i for i, row in enumerate(kept)}
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    for title, text, rows in texts:
        forbidden = np.array([place.get(int(row), -1) for row in rows], np.int64)
        neighbours = nearest(features[rows], features[kept], forbidden) if len(rows) else np.empty(0, np.int64)
        items: list[dict[str, Any]] = []
        for row, neighbour in zip(rows.tolist(), neighbours.tolist(), strict=True):
            near = int(kept[neighbour]) if neighbour >= 0 else -1
            for index in (row, near):
                if index >= 0 and index not in cache:
                    cache[index] = thumbnail(np.asarray(run.store.images[index]))
            spent += len(cache[row]) + (len(cache[near]) if near >= 0 else 0)
            if spent > THUMBNAIL_BYTES:
                break
            items.append(_item(run, row, near, int(ranks[row]), cache))
        groups.append({"title": title, "text": text, "entries": items, "wanted": len(rows)})
    return groups


def _item(run: Run, row: int, near: int, rank: int, cache: Mapping[int, str]) -> dict[str, Any]:
    suspicion = float(run.suspicion[row])
    known = not np.isnan(suspicion)
    return {
        "image": cache[row],
        "near": cache.get(near),
        "label": run.name(int(run.label[row])),
        "near_label": run.name(int(run.label[near])) if near >= 0 else "",
        "new": run.name(int(run.new_label[row])) if run.action[row] == "relabel" else "",
        "sees": run.name(int(run.enhanced[row])) if run.enhanced[row] >= 0 else "",
        "action": str(run.action[row]),
        "did": plots.NAMES.get(str(run.action[row]), str(run.action[row])),
        "place": f"{100 * min(1.0, max(0.0, suspicion)):.1f}" if known else None,
        "suspicion": f"{suspicion:.3f}" if known else "unknown",
        "rank": count(rank),
        "source": plain(run.store.readable["source"][row].as_py(), 80),
        "reasons": ", ".join(plain(reason, 40) for reason in run.reasons[row] or ()),
    }


def _strip(suspicion: np.ndarray, edges: np.ndarray) -> str:
    """Return the outline of the score histogram as an SVG path in a box of 100 x 20, logarithmic."""
    return _outline(np.histogram(suspicion[~np.isnan(suspicion)], edges)[0], 20.0)


def _outline(counts: np.ndarray, height: float, top: float | None = None) -> str:
    heights = np.log1p(counts)
    scale = height / max(float(heights.max()) if top is None else np.log1p(top), 1e-9)
    steps = "".join(f"V{height - scale * value:.1f}H{100 * (i + 1) / len(counts):.4g}" for i, value in enumerate(heights))
    return f"M0 {height:.0f}{steps}V{height:.0f}Z"


def _ridges(run: Run, edges: np.ndarray) -> list[dict[str, Any]]:
    """Return the histogram of the suspicion per given label: what is kept and what is not, on one scale."""
    found: list[dict[str, Any]] = []
    shown_labels = [int(item["label"]) for item in _classes(run)]
    counts = {
        label: [np.histogram(run.suspicion[(run.label == label) & mask], edges)[0] for mask in (run.action == "keep", run.action != "keep")]
        for label in shown_labels
        if not np.isnan(run.suspicion).all()
    }
    top = max([1, *(int(c.max()) for pair in counts.values() for c in pair)])
    for label, (kept, other) in counts.items():
        numbers = {"kept": int(kept.sum()), "other": int(other.sum())}
        found.append({"name": run.name(label), "kept": _outline(kept, 24.0, top), "other": _outline(other, 24.0, top), "numbers": numbers})
    return found


def _figures(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    texts = (
        ("final", "The model that is published"),
        ("clean", "After train_clean, before the fine-tuning"),
        ("enhanced", "The enhanced model (built to be backdoored)"),
        ("oracle", "Oracle: the same recipe on the truly clean samples"),
        ("no_defence", "No defence: the same recipe on everything"),
    )
    return [{"key": key, "text": text, **evaluation[key]} for key, text in texts if evaluation.get(key)]


def _rounds(run: Run) -> dict[str, Any] | None:
    lines = [line for line in run.curves["evaluate"] if line.get("phase") == "rounds"]
    if not lines:
        return None
    names = [plain(line.get("model") or line.get("name") or line.get("checkpoint") or "", 24) for line in lines]
    if not all(names):
        # Checkpoints of the pipeline, in its order, where the lines carry numbers only.
        usual = ("enhanced model", "clean model", "final model")
        names = list(usual) if len(lines) == len(usual) else [f"round {line.get('step', line.get('epoch', i))}" for i, line in enumerate(lines)]
    acc, asr = [line.get("acc") for line in lines], [line.get("asr") for line in lines]
    references = {key: (run.evaluation.get(key) or {}).get("acc") for key in ("no_defence", "oracle")}
    if all(value is None for value in (*acc, *asr)):
        return None
    rows = [{"name": name, "acc": a, "asr": b} for name, a, b in zip(names, acc, asr, strict=True)]
    return {"image": plots.rounds(names, acc, asr, references), "rows": rows}


def _curves(run: Run) -> str | None:
    """Return the losses of the trained stages, a panel a stage."""
    panels: list[tuple[str, str, dict[str, tuple[list[float], list[float]]]]] = []
    for stage in ("partition", "enhance", "relabel_finetune"):
        series: dict[str, tuple[list[float], list[float]]] = {}
        axis = "epoch" if any("epoch" in line for line in run.curves[stage]) else "step"
        for position, line in enumerate(run.curves[stage]):
            for key, value in line.items():
                if "loss" in key and isinstance(value, int | float):
                    name = plain(f"{line.get('phase', '')} {'' if key == 'loss' else key}".strip() or "loss", 30)
                    x, y = series.setdefault(name, ([], []))
                    x.append(float(line.get(axis, position)))
                    y.append(float(value))
        series = {name: plots.thin(x, y) for name, (x, y) in list(series.items())[:6]}
        if series:
            panels.append((f"Loss in {stage}", axis, series))
    return plots.curves(panels) if panels else None


def _recalls(run: Run) -> dict[str, Any] | None:
    models = [(key, name) for key, name in (("final", "published"), ("oracle", "oracle"), ("no_defence", "no defence")) if _of(run, key, "recall")]
    if not models:
        return None
    table = [[value for value in _of(run, key, "recall")] for key, _ in models]
    order = list(range(len(run.names)))
    if len(order) > MAX_CLASSES:  # the worst classes of the published model
        order = sorted(sorted(order, key=lambda i: (table[0][i] if table[0][i] is not None else 2.0, i))[:MAX_CLASSES])
    rows = [{"name": run.name(i), "values": [column[i] if i < len(column) else None for column in table]} for i in order]
    return {"models": [{"key": key, "name": name} for key, name in models], "rows": rows}


def _confusions(run: Run) -> list[dict[str, Any]]:
    """Return confusion matrices, before and after where there is a before; the largest confusions where the matrix is too wide."""
    found: list[dict[str, Any]] = []
    for key, title in (("no_defence", "No defence"), ("final", "Published model")):
        matrix = _of(run, key, "confusion")
        if not matrix:
            continue
        values = np.array(matrix, float)
        shares = values / np.maximum(values.sum(1, keepdims=True), 1)
        if len(values) <= 12:
            rows = [
                {"name": run.name(i), "cells": [{"n": int(values[i, j]), "share": float(shares[i, j])} for j in range(len(values))]}
                for i in range(len(values))
            ]
            found.append({"title": title, "rows": rows, "names": run.names, "pairs": None})
        else:
            np.fill_diagonal(values, 0)
            worst = [divmod(int(i), len(values)) for i in np.argsort(-values, axis=None, kind="stable")[:12]]
            pairs = [{"true": run.name(i), "given": run.name(j), "n": int(values[i, j]), "share": float(shares[i, j])} for i, j in worst]
            found.append({"title": title, "rows": None, "names": (), "pairs": pairs})
    return found


def _of(run: Run, model: str, key: str) -> list[Any]:
    return (run.evaluation.get(model) or {}).get(key) or []


def _command(run: Run) -> str:
    """Return the command that ends in this result; an attack that was planted for a test is in params.yaml alone."""
    summary = run.summary
    if run.evaluation.get("known"):
        return "dvc repro    # in the workspace with the params.yaml of this run"
    return (
        f"meca clean {shlex.quote(_source(summary))} --output OUT --preset {shlex.quote(plain(summary['preset']))} --set seed={int(summary['seed'])}"
    )


def _versions(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [("meca", plain(summary.get("meca_version", "unknown"))), ("Python", platform.python_version())]
    for name in ("torch", "torchvision", "numpy", "pyarrow", "pillow", "scikit-learn", "matplotlib"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found
