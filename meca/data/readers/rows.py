"""Lists of files: CSV, JSON lines and parquet, read row by row with limits, each row kept as it came.

Nothing is guessed about encodings: text is UTF-8, with or without a byte order mark. A row is a path, a label and, where
the list has that column, a split.
"""

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from meca.data.readers.files import open_regular, text
from meca.data.readers.tables import Room, Table
from meca.errors import InputRefused, UsageError

__all__ = ["BOM", "LABELS", "SUFFIXES", "Rows", "columns_of", "csv_fields", "header_of", "is_list", "json_members", "name_both", "read_rows"]

SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
PATHS = ("file_name", "path", "filename", "file_path", "filepath", "image_path")
LABELS = ("label", "labels", "class", "class_name", "category", "target")
# Further names, in any case and with blanks, that count where somebody points to the list: one that just lies there is asked about.
LIKE_PATHS = (
    *PATHS,
    "image",
    "images",
    "img",
    "file",
    "files",
    "filenames",
    "filepaths",
    "image_file",
    "image_filename",
    "image_name",
    "img_name",
    "img_path",
)
LIKE_LABELS = (*LABELS, "classes", "class_label", "label_name", "category_name", "breed", "species")
SPLIT = "split"
DELIMITERS = (",", ";", "\t")
MAX_LINE = 2**20  # characters
MAX_ROWS = 10_000_000
BOM = "\ufeff"

Choose = Callable[[list[str]], tuple[str, str]]  # of all columns those of the path and of the label


@dataclass
class Rows:
    """A list of files, in its own order."""

    kind: str  # csv, jsonl or parquet
    head: str  # csv, jsonl: everything before the first row, as it came
    delimiter: str  # csv
    path_column: str
    label_column: str
    names: tuple[str, ...]  # all columns of csv and parquet
    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    raw: list[str]  # csv, jsonl: the text of each row with its line end
    schema: str  # parquet: its Arrow schema, base64


def is_list(path: Path, is_meant: bool = False) -> bool:
    """Say whether a file is named and headed like a list of files: a column of paths and a further one; `is_meant`: somebody pointed to it."""
    names = columns_of(path)
    return len(names) > 1 and bool(_matching(names, PATHS, LIKE_PATHS if is_meant else ()))


def name_both(names: Sequence[str]) -> bool:
    """Say whether columns are named like a path and a label, in words that `read_rows` understands where a list is meant."""
    return bool(_matching(names, PATHS, LIKE_PATHS)) and bool(_matching(names, LABELS, LIKE_LABELS))


def _matching(names: Sequence[str], exact: Sequence[str], like: Sequence[str]) -> list[str]:
    """Return the columns of the wanted names; where there is none, those that are much the same."""
    found = [column for column in exact if column in names]
    return found or [name for name in names if "_".join(re.split(r"[\s_-]+", name.strip().casefold())) in like]


def columns_of(path: Path) -> list[str]:
    """Return the columns of a list by its first line or schema; nothing where it cannot be read."""
    try:
        return _names(path)
    except (InputRefused, OSError, ValueError, csv.Error, pa.ArrowException):
        return []  # no list, or one that its reader will name


def _names(path: Path) -> list[str]:
    kind = SUFFIXES.get(path.suffix.lower())
    if kind == "parquet":
        with Table(path, text(path.name)) as table:
            return [field.name for field in table.schema if not _matching([field.name], PATHS, LIKE_PATHS) or _is_text(field.type)]
    if kind is None:
        return []
    with open_regular(path) as file:
        lines = _lines(file, text(path.name), [])
        first = next(lines, "").removeprefix(BOM)
        if kind == "jsonl":
            return [key for key, _, _, _ in json_members(first)]
        return header_of(first)


def header_of(line: str) -> list[str]:
    """Return the columns that the first line of a CSV file names."""
    return next(csv.reader([line.removeprefix(BOM)], delimiter=_delimiter(line), strict=True), [])


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(inner) or pa.types.is_large_string(inner)


def read_rows(path: Path, name: str, label_column: str, is_meant: bool = False) -> Rows:
    """Return the rows of a list.

    Args:
        path: The file.
        name: How errors call it.
        label_column: The column of the label; `auto` takes the one of `LABELS` that is there.
        is_meant: Somebody pointed to it: where there is no column of `PATHS` or `LABELS`, one of `LIKE_PATHS` or `LIKE_LABELS` is taken.

    Raises:
        InputRefused: It is damaged, not UTF-8, has lines or fields without end, or a row has no path or no label.
        UsageError: Two columns could be the path, or the label.
    """
    reader = {"csv": _read_csv, "jsonl": _read_json, "parquet": _read_parquet}[SUFFIXES[path.suffix.lower()]]

    def chosen(names: list[str]) -> tuple[str, str]:
        path_column = _column(names, PATHS, LIKE_PATHS if is_meant else (), name, "path")
        if label_column != "auto":
            return path_column, _column(names, (label_column,), (), name, "label")
        return path_column, _column(names, LABELS, LIKE_LABELS if is_meant else (), name, "label")

    try:
        return reader(path, name, chosen)
    except UnicodeDecodeError as problem:
        raise InputRefused(f"Expected {name} to be UTF-8, but it holds the byte {problem.object[problem.start]:#04x}; save it as UTF-8.") from None


def _column(names: list[str], wanted: Sequence[str], like: Sequence[str], name: str, what: str) -> str:
    found = _matching(names, wanted, like)
    if not found:
        option = " (params.yaml: ingest.label_column names it)" if what == "label" else ""
        also = f" The first line has to name one of {', '.join(wanted)}." if len(wanted) > 1 else ""
        raise InputRefused(
            f"Expected a column {wanted[0]!r} for the {what} in {name}, found {', '.join(map(repr, names[:20])) or 'none'}{option}.{also}"
        )
    if len(found) > 1:
        option = "say which with params.yaml: ingest.label_column" if what == "label" else "rename one of them"
        raise UsageError(f"The columns {' and '.join(found)} of {name} could both be the {what}; {option}.")
    return found[0]


def _lines(file: Any, name: str, seen: list[str]) -> Iterator[str]:
    """Yield the lines of a text file with their ends, and append each to `seen`."""
    with io.TextIOWrapper(file, "utf-8", newline="") as lines:
        number = 0
        while line := lines.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise InputRefused(f"Expected lines of at most {MAX_LINE} characters, but line {number} of {name} is longer.")
            if "\0" in line:
                raise InputRefused(f"Expected text in {name}, but line {number} holds a NUL character.")
            seen.append(line)
            yield line


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)  # the first of them where none occurs


def csv_fields(raw: str, delimiter: str) -> list[str]:
    """Return the fields of one row as it came."""
    return next(csv.reader(io.StringIO(raw, newline=""), delimiter=delimiter, strict=True), [])


def _read_csv(path: Path, name: str, chosen: Choose) -> Rows:
    seen: list[str] = []
    with open_regular(path) as file:
        lines = _lines(file, name, seen)
        first = next(lines, "")
        delimiter = _delimiter(first)
        reader = csv.reader(_again(first.removeprefix(BOM), lines), delimiter=delimiter, strict=True)
        number = 0
        try:
            names = next(reader, [])
            path_at, label_at = map(names.index, chosen(names))
            if len(set(names)) != len(names):
                raise InputRefused(f"Expected columns of different names in {name}, got {', '.join(map(repr, names[:20]))}.")
            split_at = names.index(SPLIT) if SPLIT in names and label_at != names.index(SPLIT) else None
            head = "".join(seen)
            seen.clear()
            rows = Rows("csv", head, delimiter, names[path_at], names[label_at], tuple(names), [], [], None if split_at is None else [], [], "")
            for fields in reader:
                number += 1
                raw = "".join(seen)
                seen.clear()
                if not fields:  # an empty line belongs to the row before it
                    _append(rows, raw)
                    continue
                if len(fields) != len(names):
                    raise InputRefused(f"Expected {len(names)} fields in row {number} of {name}, got {len(fields)}; mend or drop that row.")
                _add(rows, name, number, fields[path_at], fields[label_at], None if split_at is None else fields[split_at], raw)
        except csv.Error as problem:
            raise InputRefused(f"Row {number + 1} of {name} is no row of CSV ({problem}).") from None
    return rows


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _append(rows: Rows, raw: str) -> None:
    if rows.raw:
        rows.raw[-1] += raw
    else:
        rows.head += raw


def _add(rows: Rows, name: str, number: int, path: object, label: object, split: object, raw: str | None) -> None:
    if not isinstance(path, str) or not path:
        raise InputRefused(f"Expected a path in row {number} of {name}, got {path!r}; mend or drop that row.")
    if isinstance(label, bool) or not isinstance(label, int | str) or (isinstance(label, str) and not label.strip()):
        got = "none" if label in (None, "") else repr(label)[:100]
        raise InputRefused(f"Expected a label (text or a whole number) in row {number} of {name}, got {got}; mend or drop that row.")
    if len(rows.paths) >= MAX_ROWS:
        raise InputRefused(f"Expected at most {MAX_ROWS} rows in {name}, found more.")
    rows.paths.append(path)
    rows.labels.append(str(label).strip())
    if rows.splits is not None:
        if not isinstance(split, str):
            raise InputRefused(f"Expected the split of row {number} of {name} to be text, got {split!r}.")
        rows.splits.append(split.strip())
    if raw is not None:
        rows.raw.append(raw)


def json_members(line: str) -> list[tuple[str, Any, int, int]]:
    """Return key, value, and begin and end of the value's text, of each member of a JSON object.

    Raises:
        ValueError: It is no JSON object, or has a key twice.
    """
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    blank = re.compile(r"[ \t\r\n]*")
    at = _skip(blank, line, 0)
    if line[at : at + 1] != "{":
        raise ValueError("no object")
    at = _skip(blank, line, at + 1)
    members: list[tuple[str, Any, int, int]] = []
    seen: set[str] = set()
    while line[at : at + 1] != "}":
        if members:
            if line[at : at + 1] != ",":
                raise ValueError("no comma between two members")
            at = _skip(blank, line, at + 1)
        try:
            key, at = decoder.raw_decode(line, at)
            at = _skip(blank, line, at)
            if not isinstance(key, str) or line[at : at + 1] != ":":
                raise ValueError("no key")
            begin = _skip(blank, line, at + 1)
            value, end = decoder.raw_decode(line, begin)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if key in seen:
            raise ValueError(f"the key {key[:50]!r} twice")
        seen.add(key)
        members.append((key, value, begin, end))
        at = _skip(blank, line, end)
    if line[at + 1 :].strip():
        raise ValueError("more behind the object")
    return members


def _skip(blank: re.Pattern[str], line: str, at: int) -> int:
    found = blank.match(line, at)
    return found.end() if found else at


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _read_json(path: Path, name: str, chosen: Choose) -> Rows:
    seen: list[str] = []
    rows: Rows | None = None
    head = ""
    with open_regular(path) as file:
        for number, line in enumerate(_lines(file, name, seen), 1):
            if not line.strip():
                if rows is None:
                    head += line
                else:
                    _append(rows, line)
                continue
            try:
                members = {key: value for key, value, _, _ in json_members(line.removeprefix(BOM) if number == 1 else line)}
            except ValueError as problem:
                raise InputRefused(f"Row {number} of {name} is no JSON object ({problem}).") from None
            if rows is None:
                path_name, label_name = chosen(list(members))
                with_split = SPLIT in members and label_name != SPLIT
                rows = Rows("jsonl", head, "", path_name, label_name, (), [], [], [] if with_split else None, [], "")
            _add(rows, name, number, members.get(rows.path_column), members.get(rows.label_column), members.get(SPLIT), line)
    if rows is None:
        raise InputRefused(f"Expected rows in {name}, found none.")
    return rows


def _read_parquet(path: Path, name: str, chosen: Choose) -> Rows:
    with Table(path, name) as table:
        names = list(table.schema.names)
        path_name, label_name = chosen(names)
        with_split = SPLIT in names and label_name != SPLIT
        wanted = [path_name, label_name, *([SPLIT] if with_split else [])]
        rows = Rows(
            "parquet", "", "", path_name, label_name, tuple(names), [], [], [] if with_split else None, [],
            base64.b64encode(table.schema.serialize().to_pybytes()).decode(),
        )  # fmt: skip
        number, room = 0, Room.of([path], name)
        for group in range(len(table.rows)):
            for piece in table.pieces(wanted, room, group):
                columns = [piece.column(column).to_pylist() for column in wanted]
                for path_value, label, *split in zip(*columns, strict=True):
                    number += 1
                    _add(rows, name, number, path_value, label, split[0] if split else None, None)
    return rows
