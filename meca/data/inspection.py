"""A first look at data, without changing it: format, counts, odd files. Needs no torch."""

import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from meca.data.decoder.decode import Decoded
from meca.data.decoder.pool import Decoder
from meca.data.ingest import encoded, refusal, refusal_of_images, upright
from meca.data.judged import is_reduced, judged_at, notice
from meca.data.readers import FORMATS, IngestParams, open_source
from meca.data.readers.detect import NAMES
from meca.data.readers.files import text
from meca.data.readers.splits import quoted, seeming
from meca.data.sizing import choose, drawn, sizing_of
from meca.errors import UsageError
from meca.params import PACKAGED, Params, read_params

__all__ = ["Inspection", "inspect"]

SHOWN = 20  # odd entries by name; the rest is counted
CHECKED = 50_000  # images that are decoded; enough to see what a set is like, in seconds
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent
# Seconds of one core for one pixel of one image in a step of training, with network compact: 1.1 to 1.4 microseconds at 32 to 160 pixels on
# an AMD EPYC of two cores. What goes beside the steps (scores, probes) is within that. Another network takes another time.
SECONDS_PER_PIXEL = 1.3e-6
SIDES, FOLDS = 3, 2  # of stage enhance (`meca.method.enhance`): so many networks a round
SECONDS = 120.0  # after which no further image is decoded: a few thousand that each hang their decoder would take days
# Tools of ours would read these if they stood in the folder that they run in.
TOOL_FILES = (
    "prefect.toml",
    ".prefectignore",
    ".env",
    "dvc.yaml",
    ".dvc",
    ".git",
    "sitecustomize.py",
    "usercustomize.py",
    "conftest.py",
    "pyproject.toml",
)


@dataclass(frozen=True)
class Inspection:
    """What was seen."""

    name: str
    format: str
    option: str  # what `meca clean` would be told
    samples: dict[str, int]  # by split
    classes: dict[str, dict[str, int]]  # by split and class name
    sizes: dict[str, int]  # images of each size, the commonest first
    longer_sides: dict[str, int]  # pixels: quantiles (percent) of the longer sides of the training images that were decoded, upright
    modes: dict[str, int]  # as `sizes`, by format and mode
    judged_at: dict[str, Any]  # as in summary.json, of the training images that were decoded, with the size of the packaged params.yaml
    estimate: dict[str, Any]  # about how long `meca clean` takes on the cores of this machine, without a GPU (`_estimate`)
    checked: int  # images that were decoded
    unreadable: list[str]  # name and reason, at most SHOWN
    n_unreadable: int
    odd: list[str]  # entries that are not read, at most SHOWN
    n_odd: int
    warnings: list[str]
    refused: str  # why `meca clean` will refuse it, with the packaged params.yaml; "" where nothing speaks for that


def inspect(path: str | Path, format: str = "auto", label_column: str = "auto") -> Inspection:
    """Look at the data at `path`, or at a data set known by name; `label_column` is that of params.yaml.

    Raises:
        InputRefused: It cannot be read.
        UsageError: Its format is not clear, or `format` is not known.
    """
    source = str(path)
    if format not in ("auto", *FORMATS):
        raise UsageError(f"Expected --format to be auto, {', '.join(list(FORMATS)[:-1])} or {list(FORMATS)[-1]}, got {format!r}.")
    packaged = read_params(PACKAGED)
    given = {"source": source, "format": format, "label_column": label_column}
    params = replace(packaged.group("ingest", IngestParams), **given)
    found = open_source(params, packaged.seed)
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    trained: list[tuple[int, int] | None] = []  # height and width, upright; None where it cannot be read
    unreadable: list[str] = []
    readable = np.bincount(found.labels["train"], minlength=len(found.class_names))  # of each class, as far as is known
    checked, until, is_late = 0, time.monotonic() + SECONDS, False
    with Decoder() as decoder:
        for split in ("train", "test"):
            take = np.arange(len(found.labels[split])) < (0 if is_late else CHECKED - checked)
            for sample, outcome in decoder.map(found.read(split, take), encoded, pixels=False):
                checked += 1
                if sample.pixels is not None:
                    height, width, channels = sample.pixels.shape
                    sizes[f"{width}x{height}"] += 1
                    modes[f"pixels {'L' if channels == 1 else 'RGB'}"] += 1
                elif isinstance(outcome, Decoded):
                    sizes[f"{outcome.width}x{outcome.height}"] += 1
                    modes[f"{outcome.format} {outcome.mode}"] += 1
                elif sample.reason or outcome:
                    unreadable.append(f"{sample.name} ({sample.reason or outcome})")
                    readable[sample.label] -= split == "train"
                if split == "train":
                    trained.append(upright(sample, outcome))
                if is_late := time.monotonic() > until:
                    break
    n = len(found.labels["train"])
    heights, widths = np.array([size for size in trained if size], np.int64).reshape(-1, 2).T
    # The very images that `clean` will look at, as far as they were decoded.
    looked_at = [trained[row] for row in drawn(n, packaged.seed) if row < len(trained)]
    sample_heights, sample_widths = np.array([size for size in looked_at if size], np.int64).reshape(-1, 2).T
    sizing = sizing_of(params.size) or choose(sample_heights, sample_widths, n, params.budget)
    side = sizing.side or (next((size for size in trained if size), (0, 0)))
    judged = {**judged_at(side, heights, widths), **sizing.record(params.fit)}
    longer = np.maximum(heights, widths)
    warnings = [notice(judged)] * is_reduced(judged) + _warnings(Path(source), found.labels, found.class_names)
    if is_late:
        warnings.append(f"Only {checked} images were looked at: after {SECONDS:.0f} s no further one is decoded.")
    return Inspection(
        name=found.name,
        format=found.format,
        option=_option(found.format, label_column),
        samples={split: len(labels) for split, labels in found.labels.items()},
        classes={
            split: {name: int((labels == label).sum()) for label, name in enumerate(found.class_names)}
            for split, labels in found.labels.items()
            if len(labels)
        },
        sizes=dict(sizes.most_common(SHOWN)),
        longer_sides={str(at): int(np.percentile(longer, at, method="higher")) for at in QUANTILES} if len(longer) else {},
        modes=dict(modes.most_common(SHOWN)),
        judged_at=judged,
        estimate=_estimate(packaged, n, side[0] * side[1], len(found.class_names)),
        checked=checked,
        unreadable=unreadable[:SHOWN],
        n_unreadable=len(unreadable),
        odd=list(found.odd[:SHOWN]),
        n_odd=len(found.odd),
        warnings=warnings,
        refused=refusal(found) or refusal_of_images(found, readable, unreadable, params.quarantine_share),
    )


def _estimate(params: Params, n: int, pixels: int, classes: int) -> dict[str, Any]:
    """Return `{cores, seconds, seconds_with_control}`: about how long `meca clean` takes on the processor.

    It is reckoned from the steps of training that the recipes ask for: where the set is small that is their `min_steps`, whatever its size.
    Where poison is found, what is left is trained on once more; the clean model is the network that has just been asked. Where nothing is
    found the control is run, which does the same with each of its copies.

    Args:
        params: Those of `clean`.
        n: Training images.
        pixels: Of a stored image.
        classes: Their number: the fewer, the fewer triggers fit into one copy of the control.
    """

    def images(recipe: Mapping[str, Any], share: float = 1.0) -> float:
        """Return how many images a training on a share of the set sees."""
        return max(recipe["epochs"] * share * n, recipe["min_steps"] * min(recipe["batch_size"], max(1, share * n)))

    enhance, split, clean, control = (params.raw(group) for group in ("enhance", "split", "train_clean", "control"))
    detection = images(params.raw("partition")["recipe"]) + images(clean)
    detection += SIDES * FOLDS * enhance["rounds"] * images(enhance["recipe"], (enhance["core"] + enhance["plain"]) / FOLDS)
    detection += split["groups"] * images(split["recipe"], 1 - 1 / split["groups"])
    rounds, together = len(control["rates"]) * control["tries"], max(1, classes // control["classes_per_target"])
    copies = max(rounds, math.ceil(rounds * len(control["kinds"]) / together))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = detection + images(clean)
    seconds = [SECONDS_PER_PIXEL * pixels * seen / cores for seen in (found, detection + copies * found)]
    return {"cores": cores, "seconds": round(seconds[0]), "seconds_with_control": round(seconds[1])}


def _option(format: str, label_column: str) -> str:
    if format in NAMES:
        return ""
    return f"--format {format}" + (f" --set ingest.label_column={label_column}" if label_column != "auto" else "")


def _warnings(path: Path, labels: object, class_names: tuple[str, ...]) -> list[str]:
    said: list[str] = []
    if path.is_dir():
        tools = sorted(text(entry.name) for entry in path.iterdir() if entry.name in TOOL_FILES)
        if tools:
            said.append(f"The folder holds files that tools obey ({', '.join(tools)}); do not run any tool inside it.")
    assert isinstance(labels, dict)
    splits = seeming(class_names)
    if splits:
        said.append(f"The classes {quoted(splits)} are named like splits.")
    counts = np.bincount(labels["train"], minlength=len(class_names))
    if counts.size and counts.max() > 10 * counts.min() > 0:
        said.append(f"The classes are unbalanced: from {counts.min()} to {counts.max()} training samples.")
    if not len(labels["test"]):
        said.append("There is no test split: the accuracy of the clean model will not be known.")
    return said
