"""Readers: one file per format, from bytes that nobody vouches for to one store.

`open_source` finds the format and lists the samples, `read_source` decodes them into a store. An image that cannot be
read is quarantined: named, counted, its bytes kept. What is wrong with the source as a whole refuses it in one sentence.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from meca.data.decoder import FITS
from meca.data.readers import cifar, idx, webdataset
from meca.data.readers.detect import NAMES, detect
from meca.data.readers.files import text
from meca.data.readers.formats import BY_NAME, FORMATS, LABELLED
from meca.data.readers.source import Source
from meca.data.readers.splits import quoted, seeming
from meca.data.sizing import LADDER, given_side
from meca.errors import InputRefused, UsageError, check_choice

__all__ = ["BY_NAME", "FORMATS", "LABELLED", "IngestParams", "Source", "open_format", "open_source"]


@dataclass(frozen=True)
class IngestParams:
    """The group [ingest] of params.yaml, which says what each field means."""

    source: str
    watch: str  # read by DVC alone
    origin: str  # an address that `source` is a copy of; only recorded here
    format: str  # auto, or a name of `FORMATS`
    label_column: str
    size: int | str  # auto, a side, 0, or HEIGHTxWIDTH
    train_limit: int
    test_limit: int
    shapes_train: int
    shapes_test: int
    quarantine_share: float
    # What a file means that does not say them: it is of a meca that had no other way, and its size is a number.
    fit: str = "squash"
    budget: int = 20_000_000  # pixels

    def __post_init__(self) -> None:
        """Refuse a format that there is not, and numbers that have no meaning."""
        check_choice("ingest.format", self.format, ("auto", *FORMATS))
        check_choice("ingest.fit", self.fit, FITS)
        given_side(self.size)
        for name in ("train_limit", "test_limit", "shapes_test"):
            if getattr(self, name) < 0:
                raise UsageError(f"params.yaml: expected ingest.{name} to be 0 or more, got {getattr(self, name)}.")
        if self.shapes_train < 10:
            raise UsageError(f"params.yaml: expected ingest.shapes_train to be 10 or more, got {self.shapes_train}.")
        if self.budget < 1:
            raise UsageError(f"params.yaml: expected ingest.budget to be 1 pixel or more, got {self.budget}.")
        if not 0 <= self.quarantine_share <= 1:
            raise UsageError(f"params.yaml: expected ingest.quarantine_share in [0, 1], got {self.quarantine_share}.")


def open_source(params: IngestParams, seed: int) -> Source:
    """Return the source that the parameters name; nothing is decoded yet.

    Raises:
        InputRefused: It cannot be read.
        UsageError: Its format is not clear, or its labels may stand elsewhere.
    """
    from meca.data.readers import arrays

    if params.source in NAMES and params.format != "auto":
        raise UsageError(
            f"The data set {params.source!r} has its own format; expected ingest.format to be auto, got {params.format} "
            f"(a folder of that name is ./{params.source})."
        )
    if params.source == "shapes":
        side = given_side(params.size)  # what is generated has no size of its own
        return arrays.open_shapes(params.shapes_train, params.shapes_test, seed, max(side) if isinstance(side, tuple) else LADDER[0])
    if params.source == "digits":
        return arrays.open_digits()
    if params.source in NAMES:
        source = _open_path(_locate(params.source), "auto", params.label_column)
        return dataclasses.replace(source, name=params.source)
    source = _open_path(Path(params.source), params.format, params.label_column)
    if not params.origin:
        return source
    name = text(params.origin.rstrip("/").rsplit("/", 1)[-1])
    return dataclasses.replace(source, name=name, options={**source.options, "origin": params.origin})


def _open_path(path: Path, format: str, label_column: str) -> Source:
    if text(str(path)) != str(path):  # it goes into records that are UTF-8
        raise InputRefused(f"Expected a path in UTF-8, got {text(str(path))}; rename it.")
    found = detect(path) if format == "auto" else format
    if not path.exists() and not webdataset.is_pattern(path):
        raise InputRefused(f"Nothing found at {path}; expected data in the format {found}.")
    if label_column != "auto" and found not in LABELLED:
        raise UsageError(
            f"params.yaml: expected ingest.label_column to be auto for the format {found}, whose labels stand in no column, got {label_column!r}."
        )
    source = open_format(found, path, label_column)
    if format == "auto":
        _ask(source, label_column)
    return source


def _ask(source: Source, label_column: str) -> None:
    """Ask where nobody has named the format and its labels may not be what they look like.

    Raises:
        UsageError: With what was seen, and how to go on.
    """
    asked = source.question() if source.question else None
    splits = seeming(source.class_names) if source.format in LABELLED and label_column == "auto" else {}
    if asked is None and splits:
        column = source.options.get("label_column") or source.options.get("label")
        asked = (
            f"The labels {quoted(splits)} of {source.name} look like splits. If another column holds the label, name it with --set "
            f"ingest.label_column=NAME{f' (it was {column!r})' if column != 'auto' else ''}. If they are the labels, say --format {source.format}."
        )
    if asked is not None:
        raise UsageError(asked)


def open_format(format: str, path: Path, label_column: str = "auto") -> Source:
    """Return the source of format `format` at `path`; `label_column` counts where the label stands in a column."""
    return FORMATS[format].open(path, label_column) if format in LABELLED else FORMATS[format].open(path)


def _locate(name: str) -> Path:
    """Return where a data set known by name lies: below MECA_DATA, else in the cache, else after its download."""
    given = os.environ.get("MECA_DATA")
    if given and (Path(given) / name).is_dir():
        return Path(given) / name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meca" / name
    opener = cifar.folder_of if name == "cifar10" else idx.folder_of
    if opener(cache) is None:
        _download(name, cache)
    return opener(cache) or cache


def _download(name: str, cache: Path) -> None:
    try:
        from torchvision import datasets  # only here: it imports torch, and only a download needs it

        cache.mkdir(parents=True, exist_ok=True)
        (datasets.CIFAR10 if name == "cifar10" else datasets.FashionMNIST)(root=str(cache), download=True)
    except (OSError, RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputRefused(
            f"The data set {name!r} is not below MECA_DATA and cannot be downloaded ({reason}); set MECA_DATA to a folder that holds it, "
            "connect to a network, or use source shapes or digits."
        ) from None
