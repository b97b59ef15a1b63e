"""A first look at data, without changing it: format, counts, odd files. Needs no torch."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meca.data.decoder.decode import Decoded
from meca.data.decoder.pool import Decoder
from meca.data.ingest import encoded, refusal, refusal_of_images
from meca.data.judged import is_reduced, judged_at, notice
from meca.data.readers import FORMATS, IngestParams, open_source
from meca.data.readers.detect import NAMES
from meca.data.readers.files import text
from meca.data.readers.splits import quoted, seeming
from meca.errors import UsageError
from meca.params import PACKAGED, read_params

__all__ = ["Inspection", "inspect"]

SHOWN = 20  # odd entries by name; the rest is counted
CHECKED = 50_000  # images that are decoded; enough to see what a set is like, in seconds
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
    modes: dict[str, int]  # likewise, by format and mode
    judged_at: dict[str, Any]  # as in summary.json, of the training images that were decoded, with the size of the packaged params.yaml
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
    ingest = read_params(PACKAGED).raw("ingest")
    size, share = int(ingest["size"]), float(ingest["quarantine_share"])
    params = IngestParams(source, "", "", format, label_column, 0, 0, 0, 4000, 1000, share)  # pyright: ignore[reportArgumentType]
    found = open_source(params, 0)
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    trained: list[tuple[int, int]] = []  # height and width, upright
    unreadable: list[str] = []
    readable = np.bincount(found.labels["train"], minlength=len(found.class_names))  # of each class, as far as is known
    checked, until, is_late = 0, time.monotonic() + SECONDS, False
    with Decoder() as decoder:
        for split in ("train", "test"):
            take = np.arange(len(found.labels[split])) < (0 if is_late else CHECKED - checked)
            for sample, outcome in decoder.map(found.read(split, take), encoded, pixels=False):
                checked += 1
                upright: tuple[int, int] | None = None
                if sample.pixels is not None:
                    height, width, channels = sample.pixels.shape
                    upright = height, width
                    sizes[f"{width}x{height}"] += 1
                    modes[f"pixels {'L' if channels == 1 else 'RGB'}"] += 1
                elif isinstance(outcome, Decoded):
                    sizes[f"{outcome.width}x{outcome.height}"] += 1
                    modes[f"{outcome.format} {outcome.mode}"] += 1
                    upright = outcome.upright
                elif sample.reason or outcome:
                    unreadable.append(f"{sample.name} ({sample.reason or outcome})")
                    readable[sample.label] -= split == "train"
                if upright and split == "train":
                    trained.append(upright)
                if is_late := time.monotonic() > until:
                    break
    heights, widths = np.array(trained, np.int64).reshape(-1, 2).T
    judged = judged_at((size, size), heights, widths)
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
        modes=dict(modes.most_common(SHOWN)),
        judged_at=judged,
        checked=checked,
        unreadable=unreadable[:SHOWN],
        n_unreadable=len(unreadable),
        odd=list(found.odd[:SHOWN]),
        n_odd=len(found.odd),
        warnings=warnings,
        refused=refusal(found) or refusal_of_images(found, readable, unreadable, share),
    )


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
