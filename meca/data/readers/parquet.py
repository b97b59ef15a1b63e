"""Hugging Face-style parquet: `image: struct{bytes, path}` and `label`; one file, or a folder of shards.

A shard belongs to the split that its name begins with (`train-00000-of-00005.parquet`). Rows are read in pieces.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.readers.files import text
from meca.data.readers.labels import checked
from meca.data.readers.source import Found, Labels, Source
from meca.data.readers.splits import splits_of
from meca.data.readers.tables import Room, Table
from meca.errors import InputRefused

__all__ = ["holds_images", "open_parquet", "shards_of"]

IMAGE, LABEL = ("image", "img"), ("label", "labels")
MAX_CLASSES = 100_000


def shards_of(path: Path) -> list[Path]:
    """Return the parquet files that `path` names: itself, those in it, or those in its folder `data`."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    for folder in (path, path / "data"):
        found = [file for file in folder.glob("*.parquet") if file.is_file() and not file.is_symlink()] if folder.is_dir() else []
        if found:
            return sorted(found, key=lambda file: file.name.encode(errors="surrogateescape"))
    return []


def holds_images(path: Path) -> bool:
    """Say whether a parquet file is for this reader: it has a column of image bytes, or cannot be read at all."""
    try:
        return _bytes_column(_schema(path)) is not None
    except InputRefused:
        return True  # whoever opens it says what is wrong


def _bytes_column(schema: pa.Schema) -> str | None:
    found = (name for name in IMAGE if name in schema.names)
    return next((name for name in found if not _is_text(schema.field(name).type)), None)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def open_parquet(path: Path, label_column: str = "auto") -> Source:
    """Return the source of parquet shards; `label_column` says which column holds the label.

    Raises:
        InputRefused: A file is damaged, a column is missing, shards differ, or a label has no class.
        UsageError: Some shards are named after a split and some are not.
    """
    shards = shards_of(path)
    if not shards:
        raise InputRefused(f"Expected parquet files at {path.name}, found none.")
    named = splits_of([text(shard.name) for shard in shards], "shard")
    splits = {shard: named[text(shard.name)] for shard in shards}
    schema, first = _schema(shards[0]), text(shards[0].name)
    image, label = _columns(schema, first, label_column)
    names = _class_names(schema, label, first)
    given: dict[Path, Labels] = {}
    room = Room.of(shards, text(path.name))
    for shard in shards:
        other = _schema(shard)
        if not other.equals(schema):
            raise InputRefused(f"Expected every shard to have the columns of {first}, but {text(shard.name)} has others: {_list(other)}.")
        if _class_names(other, label, text(shard.name)) != names:
            raise InputRefused(f"Expected every shard to have the class names of {first}, but {text(shard.name)} has others.")
        given[shard] = _labels(shard, label, room)
    highest = max((int(values.max()) for values in given.values() if values.size), default=-1)
    if highest >= MAX_CLASSES:
        raise InputRefused(f"Expected at most {MAX_CLASSES} classes, found a label {highest}; is column {label!r} the label?")
    names = names or tuple(str(number) for number in range(highest + 1))
    for shard, values in given.items():
        wrong = np.flatnonzero((values < 0) | (values >= len(names)))
        if wrong.size:
            raise InputRefused(
                f"Expected labels in 0..{len(names) - 1}, got {values[wrong[0]]} in row {wrong[0]} of {text(shard.name)}; mend or drop that row."
            )
    mine = {split: [shard for shard in shards if splits[shard] == split] for split in ("train", "test")}
    rest = schema.remove(schema.get_field_index(label))

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        for shard, start, table, wanted in _pieces(mine[split], [image, label], take, text(path.name), plain=False):
            cells, labels = table.column(image).combine_chunks(), table.column(label)
            data = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
            for at in np.flatnonzero(wanted):
                content = data[int(at)].as_py() if cells[int(at)].is_valid else None
                value = labels[int(at)].as_py()
                yield Found(f"{text(shard.name)}#{start + at:07d}", int(value), data=content, reason=None if content is not None else "no-bytes")

    def columns(split: str, take: NDArray[np.bool_]) -> pa.Table:
        kept = [
            _without_bytes(table, image).filter(pa.array(wanted)) for _, _, table, wanted in _pieces(mine[split], rest.names, take, text(path.name))
        ]
        return pa.concat_tables(kept) if kept else _without_bytes(rest.empty_table(), image)

    return Source(
        format="parquet",
        name=text(path.resolve().name.removesuffix(".parquet")),
        class_names=names,
        labels={split: np.concatenate([given[s] for s in files] or [np.empty(0, np.int64)]) for split, files in mine.items()},
        read=read,
        columns=columns,
        options={
            "image": image,
            "label": label,
            "label_column": label_column,
            "schema": base64.b64encode(schema.serialize().to_pybytes()).decode(),
            "shards": [{"name": text(shard.name), "split": splits[shard]} for shard in shards],
        },
    )


def _schema(shard: Path) -> pa.Schema:
    with Table(shard, text(shard.name)) as table:
        return table.schema


def _list(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _columns(schema: pa.Schema, shard: str, wanted: str) -> tuple[str, str]:
    image = next((name for name in IMAGE if name in schema.names), None)
    label = next((name for name in (LABEL if wanted == "auto" else (wanted,)) if name in schema.names), None)
    if image is None or label is None:
        name = "label" if wanted == "auto" else wanted
        raise InputRefused(
            f"Expected the columns image (struct of bytes and path) and {name} in {shard}, found {_list(schema)} "
            "(params.yaml: ingest.label_column names the column of the label)."
        )
    kind = schema.field(image).type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InputRefused(f"Expected the column {image} of {shard} to hold encoded images (struct of bytes and path, or binary), got {kind}.")
    if not pa.types.is_integer(schema.field(label).type):
        raise InputRefused(f"Expected the column {label} of {shard} to hold integers, got {schema.field(label).type}.")
    return image, label


def _class_names(schema: pa.Schema, label: str, shard: str) -> tuple[str, ...]:
    """Return the class names out of the schema's metadata, or nothing where it names none."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return ()
    try:
        names: Any = json.loads(raw)["info"]["features"][label].get("names") or ()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()
    if isinstance(names, dict):  # older writers number the names
        names = [names[key] for key in sorted(names, key=lambda key: (len(key), key))]
    return checked(names, f"the class names in the metadata of {shard}")


def _labels(shard: Path, label: str, room: Room) -> Labels:
    with Table(shard, text(shard.name)) as table:
        pieces = [piece for group in range(len(table.rows)) for piece in table.pieces([label], room, group)]
    column = pa.chunked_array([chunk for piece in pieces for chunk in piece.column(label).chunks], table.schema.field(label).type)
    if column.null_count:
        row = next(at for at, value in enumerate(column) if not value.is_valid)
        raise InputRefused(f"Expected a label in every row, found none in row {row} of {text(shard.name)}; mend or drop that row.")
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowException:
        raise InputRefused(f"Expected the labels of {text(shard.name)} to fit into 64 bits with a sign.") from None


def _pieces(
    shards: list[Path], columns: list[str], take: NDArray[np.bool_], name: str, plain: bool = True
) -> Iterator[tuple[Path, int, pa.Table, NDArray[np.bool_]]]:
    """Yield every piece of the row groups that hold wanted rows: its shard, its first row there, its rows, and which are wanted."""
    room, done = Room.of(shards, name), 0
    for shard in shards:
        with Table(shard, text(shard.name)) as table:
            start = 0
            for group, rows in enumerate(table.rows):
                wanted, at = take[done : done + rows], 0
                if wanted.any():
                    for piece in table.pieces(columns, room, group, plain):
                        yield shard, start + at, piece, wanted[at : at + piece.num_rows]
                        at += piece.num_rows
                start, done = start + rows, done + rows


def _without_bytes(table: pa.Table, image: str) -> pa.Table:
    """Return the table with what the image column holds beside the bytes."""
    at = table.column_names.index(image)
    kind = table.schema.field(image).type
    inner = [field for field in kind if field.name != "bytes"] if pa.types.is_struct(kind) else []
    if not inner:
        return table.remove_column(at)
    chunks = [pa.StructArray.from_arrays([chunk.field(f.name) for f in inner], fields=inner) for chunk in table.column(image).chunks]
    return table.set_column(at, pa.field(image, pa.struct(inner)), pa.chunked_array(chunks, type=pa.struct(inner)))
