"""The one form in which images reach the method: a folder that is written once and verified by hash when opened.

    images.npy       uint8 [n h w c], memory-mapped: the rows of split `train` first, then those of `test`
    samples.parquet  one line for every input sample, also for those that could not be read (see `SCHEMA`)
    payload.bin      the encoded bytes of every sample as they came, one after the other. Where the source has no encoding
                     of its own (arrays, format `raw`) it holds the pixels as found if `images.npy` had to resize them or
                     repeat their channel, and nothing otherwise
    columns.parquet  only where the source has columns of its own to give back; aligned with `samples.parquet`
    store.json       sizes, class names, source, the SHA-256 of the other files and one root over them

Only the readers' output is written here, so nothing in a store runs code: `numpy` without pickle, parquet, JSON.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meca.data.columns import pc
from meca.data.sizing import size_record
from meca.errors import InputRefused, MecaError
from meca.files import canonical_json, read_json, sha256_file

__all__ = [
    "SCHEMA",
    "Changes",
    "Lines",
    "Store",
    "StoreInfo",
    "each_line",
    "open_store",
    "pixel_id",
    "png_bytes",
    "read_parquet",
    "rewrite",
    "write_array",
    "write_blocks",
    "write_parquet",
    "write_store",
]

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # SHA-256 of the encoded bytes; of dtype, shape and pixels where there are none
        ("source", pa.string()),  # relative path, `shard#row` or `name#row`; unique
        ("split", pa.string()),  # train: is sanitized; test: evaluation only
        ("row", pa.int64()),  # index into images.npy; -1 for a quarantined sample
        ("label", pa.int64()),  # as given; -1 where there was none to read
        ("class_name", pa.string()),
        ("width", pa.int32()),  # as found, before the resize
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("offset", pa.int64()),  # into payload.bin; -1 where there is no encoding
        ("reason", pa.string()),  # why it is quarantined; null for a readable sample
        ("notes", pa.list_(pa.string())),  # what was done to it, as `converted:L`
    ]
)


class Lines:
    """Lines of `SCHEMA` as they are gathered, packed by the thousand: as objects a million of them would take gigabytes."""

    def __init__(self) -> None:
        self._loose: list[dict[str, Any]] = []
        self._packed: list[pa.RecordBatch] = []
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def append(self, line: dict[str, Any]) -> None:
        """Take one line; it may not change any more."""
        self._loose.append(line)
        self._n += 1
        if len(self._loose) == 4096:
            self._pack()

    def _pack(self) -> None:
        self._packed.append(pa.RecordBatch.from_pylist(self._loose, schema=SCHEMA))
        self._loose = []

    def table(self) -> pa.Table:
        """Return all lines."""
        self._pack()
        return pa.Table.from_batches(self._packed, schema=SCHEMA)


def each_line(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the lines of a table; only some thousand of them are objects at a time."""
    for batch in table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


@dataclass(frozen=True)
class StoreInfo:
    """What a store says about itself (store.json)."""

    n: int
    n_train: int
    n_test: int
    quarantined: int
    height: int
    width: int
    channels: int
    class_names: tuple[str, ...]
    source: dict[str, Any]  # kind, name, options: enough to say where the data came from and how to write it again
    sha256: dict[str, str]
    root: str  # SHA-256 over the three hashes: the identity of the data set


@dataclass(frozen=True)
class Store:
    """An opened store. Arrays cover the readable samples; `samples` has a line for every input sample."""

    path: Path
    info: StoreInfo
    images: np.ndarray  # uint8 [n h w c], read-only
    samples: pa.Table

    @cached_property
    def readable(self) -> pa.Table:
        """The lines of `samples` with pixels, in the order of `images`."""
        return self.samples.take(self._lines)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [n]: the labels as given."""
        return self.samples["label"].to_numpy()[self._lines]

    @cached_property
    def ids(self) -> list[str]:
        """The sample ids in the order of `images`."""
        return self.samples["sample_id"].take(self._lines).to_pylist()

    @cached_property
    def _lines(self) -> np.ndarray:
        """int64 [n]: the line of `samples` of each row of `images`."""
        rows = self.samples["row"].to_numpy()
        lines = np.empty(self.info.n, dtype=np.int64)
        lines[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        return lines

    @cached_property
    def columns(self) -> pa.Table | None:
        """Further columns of the source, aligned with `samples`; None where there are none."""
        return read_parquet(self.path / "columns.parquet") if "columns.parquet" in self.info.sha256 else None

    def original(self, line: Mapping[str, Any]) -> np.ndarray:
        """Return the pixels as found, uint8 [h w c], of a sample of format `raw`; `line` is its line of `samples`."""
        if line["offset"] < 0:
            return self.images[line["row"]]
        shape = (line["height"], line["width"], 1 if line["mode"] == "L" else 3)
        return np.frombuffer(self.payload(line["offset"], line["bytes"]), np.uint8).reshape(shape)

    def pixels(self, rows: slice) -> np.ndarray:
        """Return a writable copy of neighbouring rows, uint8 [b h w c].

        It is read from the file: pages of the mapping would stay beside the copy as long as the store is open.
        """
        start, stop, _ = rows.indices(len(self.images))
        if not isinstance(self.images, np.memmap):
            return self.images[start:stop].copy()
        each = int(np.prod(self.images.shape[1:]))
        found = np.fromfile(self.path / "images.npy", np.uint8, (stop - start) * each, offset=self.images.offset + start * each)
        return found.reshape(-1, *self.images.shape[1:])

    @property
    def train(self) -> slice:
        """The rows that are sanitized."""
        return slice(0, self.info.n_train)

    @property
    def test(self) -> slice:
        """The rows that are for evaluation only."""
        return slice(self.info.n_train, self.info.n)

    def payload(self, offset: int, size: int) -> bytes:
        """Return the encoded bytes of one sample."""
        if offset < 0:
            raise MecaError("This sample has no encoded bytes; its pixels are its encoding.")
        with open(self.path / "payload.bin", "rb") as file:
            file.seek(offset)
            return file.read(size)


def read_parquet(path: Path) -> pa.Table:
    """Return one parquet file as a table.

    Not `pq.read_table`: that reads columns out of folder names such as `year=2026` above the file.

    Raises:
        MecaError: The file is missing or is not parquet.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (OSError, pa.ArrowException) as error:
        raise MecaError(f"{path} cannot be read ({error}); run the stage that writes it again.") from None


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `np.save` does, and raise if the disk does not take all of it.

    `np.save` gives the data to the C library, and when that fails to write what it still holds at the end, nobody hears of it.
    """
    array = np.ascontiguousarray(array)
    write_blocks(path, array.shape, [array], array.dtype)


def write_blocks(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray], dtype: np.dtype | type = np.uint8) -> None:
    """Write an array that comes in blocks of its first axis, as `write_array` does.

    Raises:
        ValueError: The blocks are not the array.
    """
    whole = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), dtype)) | {"shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, whole)
        begun = file.tell()
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
        if file.tell() - begun != np.dtype(dtype).itemsize * int(np.prod(shape)):
            raise ValueError(f"Expected blocks that make {list(shape)}, got {file.tell() - begun} bytes of {np.dtype(dtype)}.")


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table. Through a buffer: parquet is made of many short pieces, and each would be a call of its own."""
    with open(path, "wb") as file:
        pq.write_table(table, file, compression="zstd")


def pixel_id(image: np.ndarray) -> str:
    """Return the id of a sample without an encoding: SHA-256 of dtype, shape and pixel bytes."""
    head = f"{image.dtype.str}{list(image.shape)}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


class Changes(MutableMapping[int, tuple[np.ndarray, int]]):
    """New pixels, uint8 [h w c], and label by row, as `rewrite` wants them. The pixels wait in a file without a name, which ends with the process."""

    def __init__(self, folder: Path, shape: Sequence[int]) -> None:
        """Take the folder whose disk holds them, and the shape of an image."""
        self._file = tempfile.TemporaryFile(dir=folder)
        self._shape, self._each = tuple(shape), int(np.prod(shape))
        self._at: dict[int, tuple[int, int]] = {}  # by row: place in the file, label

    def __setitem__(self, row: int, value: tuple[np.ndarray, int]) -> None:
        """Take the pixels and label of a row."""
        end = self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(value[0], np.uint8).reshape(self._shape).data)
        self._at[row] = end // self._each, value[1]

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        """Return the pixels and label of a row."""
        at, label = self._at[row]
        self._file.seek(at * self._each)
        return np.frombuffer(self._file.read(self._each), np.uint8).reshape(self._shape), label

    def __delitem__(self, row: int) -> None:
        """Forget a row."""
        del self._at[row]

    def __iter__(self) -> Iterator[int]:
        """The rows, in the order in which they came."""
        return iter(self._at)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._at)

    def __contains__(self, row: object) -> bool:
        """Whether a row changes; asks for no pixels."""
        return row in self._at

    def moved(self, rows: np.ndarray) -> "Changes":
        """Return the same with other numbers: row i becomes rows[i]."""
        self._at = {int(rows[row]): value for row, value in self._at.items()}
        return self

    def __enter__(self) -> "Changes":
        """Give the file back at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the file back."""
        self._file.close()


def png_bytes(image: np.ndarray) -> bytes:
    """Return uint8 [h w c] as a PNG without metadata: the same pixels give the same bytes and come back unchanged."""
    from PIL import Image  # only here: opening a store needs no codec

    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def rewrite(
    store: Store, out: Path, changed: Mapping[int, tuple[np.ndarray, int]], keep: np.ndarray | None = None, encoded: bool = True
) -> StoreInfo:
    """Write a copy of a store in which some samples have other pixels or another label, and some are missing.

    Source names, splits and all other samples stay as they are. New pixels get a new id, and an encoding of their own (a
    lossless PNG) where the old ones had one; in a source of arrays of one size they are scaled back to that size for
    publishing. A sample whose label alone changes keeps its bytes and its id.

    Args:
        store: The store to start from.
        out: A folder that does not hold a store yet.
        changed: uint8 [h w c] and label by row of the old store.
        keep: bool [n], false for the rows that are dropped; the others move up. None drops nothing.
        encoded: Whether the encoded bytes come along; without them nothing can be published from the copy, and it is a fraction as large.
    """
    keep = np.ones(store.info.n, dtype=bool) if keep is None else keep
    moved = np.cumsum(keep) - 1
    unknown = [row for row in changed if not 0 <= row < store.info.n]
    if unknown:
        raise MecaError(f"Expected rows in 0..{store.info.n - 1} to change, got {unknown[0]}.")
    out.mkdir(parents=True, exist_ok=True)
    scratch, payload = out / "images.tmp", out / "payload.tmp"
    with open(scratch, "wb") as file:  # not a writable mapping: on a full disk that ends the process without a word
        for row in np.flatnonzero(keep):
            pixels = changed[int(row)][0] if int(row) in changed else store.images[row]
            file.write(np.ascontiguousarray(pixels, np.uint8).reshape(store.images.shape[1:]).data)
    images = np.memmap(scratch, np.uint8, "r", shape=(int(keep.sum()), *store.images.shape[1:]))
    stays = store.samples["row"].to_numpy()
    stays = (stays < 0) | keep[stays]  # what could not be read has no row to drop
    columns = store.columns
    lines = Lines()
    with open(store.path / "payload.bin", "rb") as old, open(payload, "wb") as new:
        for line in each_line(store.samples.filter(pa.array(stays))):
            data = b""
            if not encoded:
                line["offset"] = -1
            if line["offset"] >= 0:
                old.seek(line["offset"])
                data = old.read(line["bytes"])
            if line["row"] in changed:
                image, label = changed[line["row"]]
                line |= {"label": int(label), "class_name": store.info.class_names[label]}
                if not np.array_equal(image, store.images[line["row"]]):
                    if line["offset"] < 0:
                        line["sample_id"] = pixel_id(image)
                    elif line["format"] == "raw":
                        found = _as_found(image, line, size_record(store.info.source)["fit"])
                        data = found.tobytes()
                        line["sample_id"] = pixel_id(found)
                    else:
                        data = png_bytes(image)
                        line |= {"height": image.shape[0], "width": image.shape[1], "mode": "RGB" if image.shape[2] == 3 else "L"}
                        line |= {"sample_id": hashlib.sha256(data).hexdigest(), "format": "PNG", "bytes": len(data), "notes": []}
            if line["offset"] >= 0:
                line["offset"] = new.tell()
                new.write(data)
            if line["row"] >= 0:
                line["row"] = int(moved[line["row"]])
            lines.append(line)
    further = None if columns is None else columns.filter(pa.array(stays))
    info = write_store(out, images, lines.table(), store.info.class_names, store.info.source, payload, further)
    del images
    scratch.unlink()
    return info


def _as_found(image: np.ndarray, line: Mapping[str, Any], fit: str) -> np.ndarray:
    """Return uint8 [h w c] pixels in the size and with the channels that the sample had before it was changed; without the borders of `pad`."""
    from PIL import Image

    from meca.data.decoder.decode import place

    if fit == "pad":
        top, left, high, wide = place(line["height"], line["width"], *image.shape[:2])
        image = image[top : top + high, left : left + wide]
    resized = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    resized = resized.convert(line["mode"]).resize((line["width"], line["height"]), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(line["height"], line["width"], -1)


def write_store(
    path: Path,
    images: np.ndarray,
    samples: Sequence[dict[str, Any]] | pa.Table,
    class_names: Sequence[str],
    source: dict[str, Any],
    payload: bytes | Path = b"",
    columns: pa.Table | None = None,
) -> StoreInfo:
    """Write a new store and return what it says about itself.

    Args:
        path: A folder that does not hold a store yet.
        images: uint8 [n h w c]; rows of split `train` first.
        samples: A line of `SCHEMA` for every input sample; the non-negative `row`s are 0 .. n-1.
        class_names: One name per label.
        source: Kind, name and options of the source; JSON.
        payload: The encoded bytes, or a file that holds them and is moved into the store.
        columns: Further columns of the source, a line for each of `samples`, that are given back when it is published.

    Raises:
        InputRefused: The lines contradict the images, or there is nothing to train on.
    """
    table = pa.Table.from_pylist(list(samples), schema=SCHEMA) if isinstance(samples, Sequence) else samples.cast(SCHEMA)
    _check(images, table, class_names)
    path.mkdir(parents=True, exist_ok=True)
    write_array(path / "images.npy", images)
    if isinstance(payload, Path):
        os.replace(payload, path / "payload.bin")
    else:
        (path / "payload.bin").write_bytes(payload)
    write_parquet(table, path / "samples.parquet")
    names = ["images.npy", "payload.bin", "samples.parquet"]
    if columns is not None:
        if columns.num_rows != table.num_rows:
            raise InputRefused(f"Expected {table.num_rows} lines of further columns, got {columns.num_rows}.")
        write_parquet(columns, path / "columns.parquet")
        names.append("columns.parquet")
    info = _describe(images, table, class_names, source, {name: sha256_file(path / name) for name in names})
    (path / "store.json").write_text(canonical_json({"schema": "meca.store/1", **info.__dict__}), encoding="utf-8")
    return info


def _describe(images: np.ndarray, table: pa.Table, class_names: Sequence[str], source: dict[str, Any], hashes: dict[str, str]) -> StoreInfo:
    n_train = int(((table["row"].to_numpy() >= 0) & _is_train(table)).sum())
    return StoreInfo(
        n=len(images),
        n_train=n_train,
        n_test=len(images) - n_train,
        quarantined=table.num_rows - len(images),
        height=images.shape[1],
        width=images.shape[2],
        channels=images.shape[3],
        class_names=tuple(class_names),
        source=source,
        sha256=hashes,
        root=hashlib.sha256(json.dumps([hashes, list(class_names)], sort_keys=True).encode()).hexdigest(),
    )


def _is_train(table: pa.Table) -> np.ndarray:
    return pc.equal(table["split"], "train").to_numpy()


def _check(images: np.ndarray, table: pa.Table, class_names: Sequence[str]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputRefused(f"Expected uint8 images [n h w c] with 1 or 3 channels, got {images.dtype} {list(images.shape)}.")
    rows = table["row"].to_numpy()
    readable = rows >= 0
    if not np.array_equal(np.sort(rows[readable]), np.arange(len(images))):
        raise InputRefused(f"Expected the rows 0..{len(images) - 1} once each in the sample table.")
    labels = table["label"].to_numpy()[readable]
    if labels.size and (labels.min() < 0 or labels.max() >= len(class_names)):
        bad = labels[(labels < 0) | (labels >= len(class_names))][0]
        raise InputRefused(f"Expected labels in 0..{len(class_names) - 1}, got {bad}.")
    is_train = _is_train(table)
    if not is_train[readable].any():
        raise InputRefused("Expected at least one readable training image, got none.")
    order = np.argsort(rows[readable])
    if (np.diff(is_train[readable][order].astype(int)) > 0).any():
        raise InputRefused("Expected the rows of split 'train' before those of 'test'.")
    if pc.count_distinct(table["source"], mode="all").as_py() != table.num_rows:
        raise InputRefused("Expected every sample to have a source name of its own.")


def open_store(path: Path, verify: bool = True) -> Store:
    """Open a store, check every byte against its hashes and what store.json says against the files, and map the images.

    Raises:
        MecaError: The store is missing, or a file differs from what was written.
    """
    record = read_json(path / "store.json")
    record.pop("schema", None)
    record["class_names"] = tuple(record["class_names"])
    info = StoreInfo(**record)
    if verify:
        for name, expected in info.sha256.items():
            actual = sha256_file(path / name)
            if actual != expected:
                raise MecaError(
                    f"{path / name} was changed after it was written: expected SHA-256 {expected[:12]}, got {actual[:12]}; ingest the data again."
                )
    images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
    samples = read_parquet(path / "samples.parquet")
    # The root names the data set to whoever signs it, and the sizes say which rows are for evaluation only.
    if verify and (images.ndim != 4 or info != _describe(images, samples, info.class_names, info.source, info.sha256)):
        raise MecaError(f"{path / 'store.json'} was changed after it was written: it does not describe the files beside it; ingest the data again.")
    return Store(path=path, info=info, images=images, samples=samples)
