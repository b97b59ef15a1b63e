"""Tables that lie beside images: does one name them? Then the labels may stand in it, and not in the names of the folders.

What its columns are called is no matter, nor whether it has a header: its rows are held against the names of the images. Only
the beginning of a file is read, and one that cannot be read is no list.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa

from meca.data.readers.files import NotRegular
from meca.data.readers.rows import BOM, header_of, json_members, name_both
from meca.data.readers.tables import FREE, Room, Table
from meca.errors import InputRefused

__all__ = ["Beside", "Listing", "find_list", "is_table", "needed"]

TABLES = (".csv", ".tsv", ".tab", ".psv", ".jsonl", ".ndjson", ".parquet")
TEXTS = (".txt", ".lst", ".list", ".json")  # many of them are something else: only rows that name images count
NOTES = ("readme", "license", "licence", "copying", "citation", "changelog", "notice", "classes", "requirements")
HEAD = 2**16  # bytes of a text that are read
WHOLE = 16 * 2**20  # bytes of a packed parquet file, which has its schema at the end
ROWS = 200
CELLS = 40  # of a row
LOOKED_AT = 8  # files: each is a pass over a gzipped archive
COMMENTS = ("#", "//")


@dataclass(frozen=True)
class Beside:
    """A file beside images; opened only where it could be a list."""

    name: str
    open: Callable[[], BinaryIO]  # may raise NotRegular or InputRefused: then it is no list


@dataclass(frozen=True)
class Listing:
    """A list of images that was found."""

    name: str
    columns: tuple[str, ...]  # none where the rows have no columns
    is_headed: bool  # else `columns` is its first row
    is_understood: bool  # by the reader of lists, once it is meant

    def __str__(self) -> str:
        """Return what it looks like."""
        shown = ", ".join(repr(column[:50]) for column in self.columns[:8]) + (", …" if len(self.columns) > 8 else "")
        if not self.columns:
            return self.name
        return f"{self.name} ({'with the columns' if self.is_headed else 'whose first row is'} {shown})"


def is_table(name: str) -> bool:
    """Say whether a file is named like a table, which has little other use than to list things."""
    return name.lower().endswith(TABLES)


def needed(name: str) -> int:
    """Return how many bytes of a file are looked at."""
    return WHOLE if name.lower().endswith(".parquet") else HEAD + 1


def find_list(files: Iterable[Beside], images: Callable[[], Iterable[str]], classes: Collection[str]) -> Listing | None:
    """Return the first of `files` that lists images: most of its rows name one of them, or its columns are called like a path and a label.

    Args:
        files: What could be a list.
        images: Gives the paths of the images.
        classes: The names of the class folders; a table of the classes is no list.
    """
    wanted = [file for file in files if _may_list(PurePosixPath(file.name))]
    wanted.sort(key=lambda file: (not is_table(file.name), file.name.count("/"), file.name))
    for file in wanted[:LOOKED_AT]:
        try:
            with file.open() as opened:
                table = _table(PurePosixPath(file.name).suffix.lower(), opened)
        except (NotRegular, InputRefused, ValueError, RecursionError, csv.Error, pa.ArrowException):
            continue  # it lies around: no reason to refuse the images
        found = _held_against(file.name, table, images, classes)
        if found is not None:
            return found
    return None


def _may_list(path: PurePosixPath) -> bool:
    suffix = path.suffix.lower()
    is_note = path.stem.casefold().startswith(NOTES) and suffix not in TABLES
    return suffix in (*TABLES, *TEXTS) and not is_note and not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


@dataclass(frozen=True)
class _Table:
    columns: list[str] | None  # where the format names them, and not a row that may be none
    rows: list[list[str]]  # the first ones
    header: list[str]  # what the reader of lists takes for the columns


def _table(suffix: str, file: BinaryIO) -> _Table:
    if suffix == ".parquet":
        return _of_parquet(file)
    data = file.read(HEAD + 1)
    text = _text(data)
    if suffix == ".json":
        return _of_objects(_values(text))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(COMMENTS)][: ROWS + 1]
    if suffix in (".jsonl", ".ndjson"):
        return _of_objects(filter(None, map(_object, lines)))
    rows = [row for row in (_cells(line, suffix in TEXTS) for line in lines) if len(row) > 1]
    return _Table(None, rows, [] if _is_utf16(data) else header_of(text.partition("\n")[0].rstrip("\r")))


def _object(line: str) -> dict[str, Any]:
    try:
        return {key: value for key, value, _, _ in json_members(line)}
    except ValueError:
        return {}


def _is_utf16(data: bytes) -> bool:
    return data[:2] in (b"\xff\xfe", b"\xfe\xff")


def _text(data: bytes) -> str:
    text = data[:HEAD].decode("utf-16" if _is_utf16(data) else "utf-8", "replace").removeprefix(BOM)
    return text.rpartition("\n")[0] if len(data) > HEAD and "\n" in text else text  # the last line may be half a line


def _cells(line: str, is_text: bool) -> list[str]:
    """Return the fields of a line, whatever separates them."""
    delimiter = max((",", ";", "\t", "|"), key=line.count)
    if delimiter in line:
        fields = next(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter), [])
    else:
        fields = re.split(r"\s+", line.strip()) if is_text else [line]
    return [field.strip() for field in fields[:CELLS]]


def _of_objects(values: Iterable[Any]) -> _Table:
    """Return the keys of the first object, and what stands in each object or list that is text or a number."""
    columns: list[str] = []
    rows: list[list[str]] = []
    for value in values:
        if isinstance(value, dict) and not columns:
            columns = [str(key) for key in value]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        row = [str(cell) for cell in list(inner)[:CELLS] if isinstance(cell, str | int | float)]
        if len(row) > 1:
            rows.append(row)
        if len(rows) >= ROWS:
            break
    return _Table(columns, rows, columns)


def _values(text: str) -> Iterator[Any]:
    """Yield what a JSON text lists, as far as it goes: the items of its array, the pairs of its object, or the items under `labels`."""
    decoder, blank = json.JSONDecoder(), re.compile(r"[\s,]*")
    labels = re.match(r'\s*\{\s*"labels"\s*:\s*(?=\[)', text)
    at = labels.end() if labels else len(text) - len(text.lstrip())
    opened = text[at : at + 1]
    at += 1
    while opened in ("[", "{"):
        at = blank.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing at least
        if text[at : at + 1] in ("]", "}", ""):
            return
        try:
            value, at = decoder.raw_decode(text, at)
            if opened == "{":
                colon = re.compile(r"\s*:\s*").match(text, at)
                if colon is None:
                    return
                key = value
                value, at = decoder.raw_decode(text, colon.end())
                value = [key, value]
        except ValueError:
            return  # the rest was not read
        yield value


def _of_parquet(file: BinaryIO) -> _Table:
    with Table(file, "the table") as table:
        names = [field.name for field in table.schema if _is_plain(field.type)][:CELLS]
        columns = list(table.schema.names)
        piece = next(table.pieces(names, Room("the table", FREE), 0), None) if len(names) > 1 and table.rows else None
        values = [] if piece is None else [piece.column(name)[:ROWS].to_pylist() for name in names]
        return _Table(columns, [[str(cell) for cell in row if cell is not None] for row in zip(*values, strict=True)], columns)


def _is_plain(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(inner) or str(inner) in ("string", "large_string", "string_view")


def _held_against(name: str, table: _Table, images: Callable[[], Iterable[str]], classes: Collection[str]) -> Listing | None:
    rows = table.rows
    hit, n_images = _named(rows, images, {name.casefold() for name in classes})
    sure = hit["file"] | hit["word"]
    is_headed = table.columns is not None or 0 not in sure
    columns = table.columns if table.columns is not None else rows[0] if rows else []
    n = len(rows) - (table.columns is None and is_headed)
    # Some of the images may be there and not all that a table names; a text may name one by the way.
    by_name = (bool(sure) and 2 * len(sure) >= n) or (is_table(name) and 0 < n <= 10 * len(hit["file"]))
    # A number names many things. As many of them as there are images, though, are no table of the classes.
    by_number = 2 * len(sure | hit["number"]) >= n > len(classes) and (2 * n >= n_images or n >= ROWS - 1)
    if by_name or by_number or (is_table(name) and is_headed and name_both(columns)):
        return Listing(name, tuple(columns), is_headed, name_both(table.header))
    return None


def _named(rows: Sequence[list[str]], images: Callable[[], Iterable[str]], classes: Collection[str]) -> tuple[dict[str, set[int]], int]:
    """Return which rows name an image by its file, by a word or by a number alone, and how many images there are."""
    keys: dict[str, dict[str, set[int]]] = {"file": {}, "word": {}, "number": {}}
    for at, row in enumerate(rows):
        for cell in row:
            base = re.split(r"[/\\]", cell)[-1].casefold()
            keys["file"].setdefault(base, set()).add(at)
            for word in {base, base.rpartition(".")[0] or base}.difference(classes, {""}):
                keys["number" if word.isdecimal() else "word"].setdefault(_bare(word), set()).add(at)
    hit: dict[str, set[int]] = {kind: set() for kind in keys}
    n = 0
    for path in images() if rows else ():
        n += 1
        base = path.rpartition("/")[2].casefold()
        stem = base.rpartition(".")[0]
        hit["file"] |= keys["file"].get(base, set())
        for kind in ("word", "number"):
            hit[kind] |= keys[kind].get(_bare(stem), set())
    return hit, n


def _bare(word: str) -> str:
    return word.lstrip("0") or "0" if word.isdecimal() else word  # 7 is 0007.png
