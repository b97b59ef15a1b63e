"""Hugging Face-style parquet: the shards that came in, with the rows that stay; same columns, same metadata, same bytes."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from meca.data.store import Store, png_bytes
from meca.data.writers.entry import Entries
from meca.errors import MecaError

__all__ = ["write", "write_arrays"]

ROWS = 1000  # of a row group: what a reader must hold in memory at once


def write(store: Store, entries: Entries, out: Path) -> None:
    """Write the shards below `out`, a file for each shard that came in."""
    options = store.info.source["options"]
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(options["schema"])))
    for shard in options["shards"]:
        if shard["split"] == "train":
            mine = entries.of_file(shard["name"])
            _write(_target(out, shard["name"]), schema, _chunks(store, mine, schema, options))


def _target(out: Path, name: str) -> Path:
    path = out / name
    if Path(name).name != name or not path.resolve().is_relative_to(out.resolve()):
        raise MecaError(f"Expected a shard named without folders, got {name!r}; ingest the data again.")
    return path


def _write(path: Path, schema: pa.Schema, chunks: Iterator[pa.Table]) -> None:
    with open(path, "xb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for chunk in chunks:
            writer.write_table(chunk, row_group_size=ROWS)


def _chunks(store: Store, entries: Entries, schema: pa.Schema, options: Mapping[str, Any]) -> Iterator[pa.Table]:
    further: Any = store.columns
    for start in range(0, len(entries), ROWS):
        part = entries[start : start + ROWS]
        data = [store.payload(entry.line["offset"], entry.line["bytes"]) for entry in part]
        taken = further.take(pa.array([entry.at for entry in part]))
        columns: list[Any] = []
        for field in schema:
            if field.name == options["label"]:
                columns.append(pa.array([entry.label for entry in part], field.type))
            elif field.name == options["image"]:
                columns.append(
                    _images(data, field.type, taken.column(field.name) if pa.types.is_struct(field.type) and len(field.type) > 1 else None)
                )
            else:
                columns.append(taken.column(field.name))
        yield pa.Table.from_arrays(columns, schema=schema)


def _images(data: list[bytes], kind: Any, rest: Any) -> pa.Array:
    if not pa.types.is_struct(kind):
        return pa.array(data, kind)
    held: Any = rest.combine_chunks() if rest is not None else None
    arrays = [pa.array(data, field.type) if field.name == "bytes" else held.field(field.name) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def write_arrays(store: Store, entries: Entries, out: Path) -> None:
    """Write pixels as lossless PNG in one shard, with the class names where Hugging Face's readers look for them."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(store.info.class_names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())], metadata=metadata)

    def chunks() -> Iterator[pa.Table]:
        for start in range(0, len(entries), ROWS):
            part = entries[start : start + ROWS]
            images = [{"bytes": png_bytes(store.original(e.line)), "path": e.line["source"].replace("#", "-") + ".png"} for e in part]
            yield pa.Table.from_arrays([pa.array(images, kind), pa.array([e.label for e in part], pa.int64())], schema=schema)

    _write(out / "train-00000-of-00001.parquet", schema, chunks())
