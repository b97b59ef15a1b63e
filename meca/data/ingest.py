"""From a source to a store: which samples, decoded where, quarantined why."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.columns import pc
from meca.data.decoder.decode import Decoded, resize
from meca.data.decoder.pool import Decoder, Outcome
from meca.data.readers import LABELLED, IngestParams, open_source
from meca.data.readers.source import Found, Labels, Source
from meca.data.sizing import Sizing, choose, drawn, sizing_of
from meca.data.store import Lines, StoreInfo, pixel_id, write_store
from meca.errors import InputRefused, UsageError
from meca.files import need_room

__all__ = ["Told", "chosen", "encoded", "read_source", "refusal", "refusal_of_images", "upright"]


Told = Callable[[str, int, int], None]


def chosen(labels: Labels, limit: int, seed: int, split: str) -> NDArray[np.bool_]:
    """Return the mask of a stratified subset of `limit` samples; all where `limit` is 0.

    Each class is drawn by its own generator: what is taken of one class does not depend on the others, and of more
    samples of a class fewer are a part. A class gets its share, at least one; rounding favours the larger remainder.
    """
    n = len(labels)
    if limit == 0 or limit >= n:
        return np.ones(n, bool)
    classes, counts = np.unique(labels, return_counts=True)
    if limit < len(classes):
        raise UsageError(f"params.yaml: expected ingest.{split}_limit to be 0 or at least {len(classes)}, one for each class, got {limit}.")
    exact = counts * (limit / n)
    quota = np.maximum(1, np.floor(exact).astype(int))
    while quota.sum() != limit:
        if quota.sum() < limit:
            quota[np.argmax(exact - quota)] += 1
        else:  # small classes got more than their share: large ones give it
            quota[np.argmax(np.where(quota > 1, quota - exact, -np.inf))] -= 1
    take = np.zeros(n, bool)
    for label, count in zip(classes, quota, strict=True):
        draw = np.random.default_rng([seed, {"train": 0, "test": 1}[split], int(label)])
        take[draw.permutation(np.flatnonzero(labels == label))[:count]] = True
    return take


def encoded(found: Found) -> bytes | None:
    """Return what has to be decoded of a sample; None where it is pixels, or is unreadable already."""
    return found.data if found.pixels is None and found.reason is None else None


def upright(found: Found, outcome: Outcome) -> tuple[int, int] | None:
    """Return height and width of a sample as the networks see it, before any resize; None where it cannot be read."""
    if found.pixels is not None:
        return found.pixels.shape[0], found.pixels.shape[1]
    return outcome.upright if isinstance(outcome, Decoded) else None


def _sizing(params: IngestParams, source: Source, take: NDArray[np.bool_], seed: int, decoder: Decoder) -> Sizing:
    """Return the size of the store; `take` says which training samples there will be."""
    if given := sizing_of(params.size):
        return given
    rows = np.flatnonzero(take)
    looked_at = np.zeros(len(take), bool)
    looked_at[rows[drawn(len(rows), seed)]] = True
    seen = [upright(found, outcome) for found, outcome in decoder.map(source.read("train", looked_at), encoded, pixels=False)]
    heights, widths = np.array([size for size in seen if size], np.int64).reshape(-1, 2).T
    return choose(heights, widths, len(rows), params.budget)


def read_source(params: IngestParams, seed: int, out: Path, progress: Told | None = None, decoder: Decoder | None = None) -> StoreInfo:
    """Decode a source into a new store at `out` and return what the store says about itself.

    Args:
        params: What to read.
        seed: Draws the subset where not all is taken.
        out: Where the store goes.
        progress: Told how far it is.
        decoder: Decodes, and ends with the call; one of its own if None.

    Raises:
        InputRefused: The source cannot be read, has fewer than two classes or an empty one, or too many samples are unreadable.
    """
    source = open_source(params, seed)
    why = refusal(source)
    if why:
        raise InputRefused(why)
    take = {"train": chosen(source.labels["train"], params.train_limit, seed, "train")}
    take["test"] = chosen(source.labels["test"], params.test_limit, seed, "test")
    total = sum(int(mask.sum()) for mask in take.values())
    out.mkdir(parents=True, exist_ok=True)
    limit = _most_unreadable(params.quarantine_share, total)
    share = total / sum(len(labels) for labels in source.labels.values())
    expected = (total, int(share * _size_of(Path(params.source))))
    with decoder or Decoder() as decoder:
        sizing = _sizing(params, source, take["train"], seed, decoder)
        with _Collector(out, source.class_names, sizing.side, params.fit, limit, expected) as collector:
            for split in ("train", "test"):
                for found, outcome in decoder.map(source.read(split, take[split]), encoded, lambda: collector.side, fit=params.fit):
                    collector.add(found, outcome, split)
                    if progress and len(collector.lines) % 500 == 0:
                        progress("ingest", len(collector.lines), total)
            if progress:
                progress("ingest", total, total)
            lines = collector.finish()
            columns = pa.concat_tables([source.columns(split, take[split]) for split in ("train", "test")]) if source.columns else None
            about = {"kind": source.format, "format": source.format, "name": source.name, "options": source.options}
            about["size"] = sizing.record(params.fit)
            return write_store(out, collector.images(), lines, source.class_names, about, collector.payload, columns)


def _size_of(path: Path) -> int:
    """Return the bytes of a file or of all files below a folder; 0 where the source is a name."""
    files = [path] if path.is_file() else (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    size = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # taken away a moment ago: the reader will say so
            size += file.lstat().st_size
    return size


def refusal(source: Source) -> str:
    """Return why a source cannot be cleaned, as far as its labels say; "" where they do not."""
    labels = source.labels["train"]
    occurring = np.unique(labels)
    if not len(labels):
        return "Expected training samples in the source, found none."
    if len(occurring) == 1:
        return (
            f"Expected images of at least two classes, found only the class {source.class_names[int(occurring[0])]!r}: a backdoor leads from one "
            f"class to another. {_one_class(source)}"
        )
    return _empty(source.class_names, np.bincount(labels, minlength=len(source.class_names)), "has no training sample")


def refusal_of_images(source: Source, readable: NDArray[np.int64], unreadable: Sequence[str], share: float) -> str:
    """Return why a source cannot be cleaned, as far as its images say; "" where they do not.

    Args:
        source: What was looked at.
        readable: int64 [classes], training images that can be read.
        unreadable: Those that cannot, of all splits.
        share: `ingest.quarantine_share`.
    """
    most = _most_unreadable(share, sum(len(labels) for labels in source.labels.values()))
    if len(unreadable) > most:
        return _too_many(most, unreadable)
    return _unreadable_class(source.class_names, readable, unreadable)


def _most_unreadable(share: float, samples: int) -> int:
    return min(1000, max(10, int(share * samples)))


def _too_many(most: int, unreadable: Sequence[str]) -> str:
    return (
        f"More than {most} images cannot be read, among them {'; '.join(unreadable[:3])}; mend or remove them "
        "(params.yaml: ingest.quarantine_share sets the limit, between 10 and 1000)."
    )


def _one_class(source: Source) -> str:
    """Return what may be the reason for a single class, and how to go on."""
    unpack = "unpack the archive and " if source.format in ("zip", "tar") else ""
    if source.format in ("imagefolder", "zip", "tar"):
        return (
            f"Each folder is read as a class: put the images of each class into a folder of its own. If the class folders lie further down, {unpack}"
            f"point to the folder that holds them; if the labels stand in a list, {unpack}point to it (CSV with the columns path and label)."
        )
    if source.format in LABELLED:
        column = source.options.get("label_column", "auto")
        column = source.options.get("label", "cls") if column == "auto" else column
        return f"The label was taken from {column!r}: if it stands elsewhere, name that with --set ingest.label_column=NAME."
    return "All records have one label: point to the whole set."


def _unreadable_class(class_names: tuple[str, ...], readable: NDArray[np.int64], unreadable: Sequence[str]) -> str:
    if not readable.any():
        return f"No training image can be read: {'; '.join(unreadable[:3])}."
    return _empty(class_names, readable, "has no readable training image")


def _empty(class_names: tuple[str, ...], counts: NDArray[np.int64], what: str) -> str:
    if (counts == 0).any():
        name = class_names[int(np.argmin(counts))]
        return f"The class {name!r} {what}; add images or take the class away."
    return ""


class _Collector:
    """Gathers samples into files beside the store, so that memory does not grow with the number of pixels."""

    def __init__(
        self, out: Path, class_names: tuple[str, ...], side: tuple[int, int] | None, fit: str, limit: int, expected: tuple[int, int]
    ) -> None:
        self.out, self.class_names, self.limit = out, class_names, limit
        self.expected = expected  # samples, and bytes of their files
        self.side, self.fit = side, fit  # without a side, the first image that can be read sets it
        self.lines = Lines()
        self.payload = out / "payload.tmp"
        self._pixels = out / "images.tmp"
        self._rows = 0
        self._quarantined: list[str] = []
        self._names = bytearray()  # what DVC would call each sample: 16 bytes a line
        self._files: list[BinaryIO] = []

    def __enter__(self) -> "_Collector":
        self._files = [open(self.payload, "wb"), open(self._pixels, "wb")]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        for path in (self.payload, self._pixels):
            path.unlink(missing_ok=True)

    def add(self, found: Found, outcome: Outcome, split: str) -> None:
        """Append one sample and what its decoding came to; what could not be decoded is a line without a row."""
        line: dict[str, Any] = {"source": found.name, "split": split, "row": -1, "label": found.label, "offset": -1, "notes": []}
        line |= {"class_name": self.class_names[found.label], "reason": found.reason, "bytes": 0, "sample_id": hashlib.sha256(b"").hexdigest()}
        if found.pixels is not None:
            self._add_pixels(found.pixels, line)
        elif found.data is not None:
            self._add_encoded(found.data, outcome, line)
        # Where there are no bytes, the id stands in: equal only where the samples are.
        name = bytes.fromhex(line["sample_id"])[:16]
        self._names += name if found.data is None else hashlib.md5(found.data, usedforsecurity=False).digest()
        if line["reason"] is not None:
            self._quarantined.append(f"{found.name} ({line['reason']})")
            if len(self._quarantined) > self.limit:
                raise InputRefused(_too_many(self.limit, self._quarantined))
        self.lines.append(line)

    def _add_encoded(self, data: bytes, outcome: Outcome, line: dict[str, Any]) -> None:
        digest = hashlib.sha256(data)
        line |= {"sample_id": digest.hexdigest(), "bytes": len(data), "offset": self._files[0].tell()}
        self._files[0].write(data)
        if not isinstance(outcome, Decoded):
            line["reason"] = line["reason"] or outcome
            return
        line |= {"width": outcome.width, "height": outcome.height, "mode": outcome.mode, "format": outcome.format, "notes": list(outcome.notes)}
        self._append(outcome.pixels, outcome.upright, line)

    def _add_pixels(self, pixels: NDArray[np.uint8], line: dict[str, Any]) -> None:
        height, width, channels = pixels.shape
        line |= {"sample_id": pixel_id(pixels), "bytes": pixels.nbytes, "width": width, "height": height, "format": "raw"}
        line["mode"] = "L" if channels == 1 else "RGB"
        self._append(pixels, (height, width), line)
        if line["notes"] or channels == 1:
            line["offset"] = self._files[0].tell()
            self._files[0].write(np.ascontiguousarray(pixels).tobytes())

    def _append(self, pixels: NDArray[np.uint8], side: tuple[int, int], line: dict[str, Any]) -> None:
        """Append pixels that were of size `side`, whether or not they have been resized already."""
        self.side = self.side or side
        if not self._rows:
            self._need_room(line["format"] == "raw")
        if side != self.side:
            line["notes"].append(f"resized:{side[1]}x{side[0]}")
        self._files[1].write(np.ascontiguousarray(resize(pixels, *self.side, self.fit)).tobytes())
        line["row"] = self._rows
        self._rows += 1

    def _need_room(self, raw: bool) -> None:
        """Refuse a run that the disk cannot hold: two stores, as read and as received, and the published set."""
        assert self.side is not None
        samples, encoded = self.expected
        pixels = samples * 3 * self.side[0] * self.side[1]
        need_room(self.out, 3 * pixels if raw else 2 * pixels + 3 * encoded, "A run on this data")

    def finish(self) -> pa.Table:
        """Close the files, look at the samples together, and return their lines.

        Raises:
            InputRefused: A class has no readable training image, or two files were made to share one MD5.
        """
        for file in self._files:
            file.close()
        table = self.lines.table()
        self._refuse_collisions(table)
        readable = pc.greater_equal(table["row"], 0)
        trained = table.filter(pc.and_(readable, pc.equal(table["split"], "train")))
        counts = np.bincount(trained["label"].to_numpy(), minlength=len(self.class_names))
        why = _unreadable_class(self.class_names, counts, self._quarantined)
        if why:
            raise InputRefused(why)
        labels = table.filter(readable).group_by("sample_id").aggregate([("label", "min"), ("label", "max")])
        contradicted = labels.filter(pc.not_equal(labels["label_min"], labels["label_max"]))["sample_id"]
        if not len(contradicted):
            return table
        marks = pc.and_(readable, pc.is_in(table["sample_id"], value_set=contradicted)).to_pylist()
        notes = [[*held, "label-conflict"] if mark else held for held, mark in zip(table["notes"].to_pylist(), marks, strict=True)]
        return table.set_column(table.column_names.index("notes"), "notes", pa.array(notes, pa.list_(pa.string())))

    def _refuse_collisions(self, table: pa.Table) -> None:
        # DVC names files by MD5: two files under one name, and one of them would silently take the place of the other.
        halves = np.frombuffer(self._names, np.uint64).reshape(-1, 2)
        order = np.lexsort(halves.T)
        same = np.flatnonzero((halves[order[1:]] == halves[order[:-1]]).all(1))
        pairs = np.sort(np.stack([order[same], order[same + 1]], 1), 1)
        ids = table["sample_id"]
        differ = pc.not_equal(ids.take(pa.array(pairs[:, 0])), ids.take(pa.array(pairs[:, 1]))).to_numpy()
        if differ.any():
            first, second = (table["source"][int(at)].as_py() for at in min(map(tuple, pairs[differ])))
            raise InputRefused(
                f"{first!r} and {second!r} differ but share one MD5, which happens only by intent; remove both and ask where they come from."
            )

    def images(self) -> NDArray[np.uint8]:
        """Return uint8 [n h w 3], mapped from disk."""
        assert self.side is not None
        return np.memmap(self._pixels, np.uint8, "r", shape=(self._rows, *self.side, 3))
