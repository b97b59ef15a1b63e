"""A list of files and the files: kept rows come back as they came, a relabelled one differs in its label alone."""

import base64
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from meca.data.readers.files import clean_name
from meca.data.readers.rows import BOM, csv_fields, json_members
from meca.data.store import Store
from meca.data.writers.entry import Entries, Entry
from meca.errors import MecaError

__all__ = ["below", "write"]

ROWS = 10_000  # of a row group


def below(out: Path, name: str) -> Path:
    """Return the path of a new file below `out`, whose folders are made.

    Raises:
        MecaError: The name would leave the folder.
    """
    root = out.resolve()
    path = root.joinpath(*name.split("/"))
    if any(clean_name(part) != part for part in name.split("/")) or not path.resolve().is_relative_to(root):
        raise MecaError(f"{name!r} would be written outside of the output folder; ingest the data again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(store: Store, entries: Entries, out: Path) -> None:
    """Write the files and the list of split train below `out`."""
    about = store.info.source["options"]["list"]
    for entry in entries:
        with open(below(out, entry.line["source"]), "xb") as file:  # x: nothing is ever written over
            file.write(store.payload(entry.line["offset"], entry.line["bytes"]))
    target = below(out, about["name"])
    if about["kind"] == "parquet":
        _write_parquet(store, entries, target, about)
        return
    further: Any = store.columns
    raw = further["raw"].combine_chunks()
    change = _changed_csv if about["kind"] == "csv" else _changed_json
    head = about["head"]
    end = "\r\n" if head.endswith("\r\n") else "\n"
    with open(target, "x", encoding="utf-8", newline="") as file:
        file.write(head)
        last = head
        for entry in entries:
            line = raw[entry.at].as_py()
            if entry.label != _given(store, entry, line, about):
                line = change(line, about, store.info.class_names[entry.label])
            if last and not last.endswith(("\n", "\r")):
                file.write(end)  # the last row of the input had no line end
            file.write(line)
            last = line


def _given(store: Store, entry: Entry, line: str, about: Mapping[str, Any]) -> int:
    """Return the label that the row holds: what was planted into the store has another one than the list."""
    name = _value_csv(line, about) if about["kind"] == "csv" else _value_json(line, about)
    names = store.info.class_names
    return names.index(name) if name in names else -1


def _value_csv(line: str, about: Mapping[str, Any]) -> str:
    return csv_fields(line, about["delimiter"])[about["columns"].index(about["label"])].strip()


def _value_json(line: str, about: Mapping[str, Any]) -> str:
    return next((str(value).strip() for key, value, _, _ in json_members(line.removeprefix(BOM)) if key == about["label"]), "")


def _changed_csv(line: str, about: Mapping[str, Any], label: str) -> str:
    fields = csv_fields(line, about["delimiter"])
    fields[about["columns"].index(about["label"])] = label
    end = line[len(line.rstrip("\r\n")) :]
    text = io.StringIO(newline="")
    # Only characters of the writer's own line end are quoted, so it gets both; the row keeps the end that it had.
    csv.writer(text, delimiter=about["delimiter"], lineterminator="\r\n").writerow(fields)
    return text.getvalue().removesuffix("\r\n") + end


def _changed_json(line: str, about: Mapping[str, Any], label: str) -> str:
    mark = BOM if line.startswith(BOM) else ""
    text = line.removeprefix(BOM)
    for key, value, begin, end in json_members(text):
        if key == about["label"]:
            new = json.dumps(int(label) if isinstance(value, int) else label, ensure_ascii=False)
            return mark + text[:begin] + new + text[end:]
    raise MecaError(f"Expected the label {about['label']!r} in every row; ingest the data again.")


def _write_parquet(store: Store, entries: Entries, target: Path, about: Mapping[str, Any]) -> None:
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(about["schema"])))
    further: Any = store.columns
    with open(target, "xb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, len(entries), ROWS):
            part = entries[start : start + ROWS]
            taken = further.take(pa.array([entry.at for entry in part]))
            names = [store.info.class_names[entry.label] for entry in part]
            columns = [_labels(taken[field.name], names) if field.name == about["label"] else taken[field.name] for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROWS)


def _labels(column: Any, names: list[str]) -> pa.Array:
    """Return the column of labels; a value stays as it came where it names its class already."""
    kind = column.type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    given = column.to_pylist()
    values = [old if str(old).strip() == new else int(new) if pa.types.is_integer(inner) else new for old, new in zip(given, names, strict=True)]
    array = pa.array(values, inner)
    return array.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else array
