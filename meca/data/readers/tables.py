"""Parquet files that nobody vouches for, read in pieces: a few bytes may stand for a million rows, and a long value for each of them.

What all of it comes to, written out, is counted against the size of the files: at most `MAX_RATIO` times that, but `FREE`
bytes are free. What the pages of a row group unpack to has to fit there, too, before one of them is unpacked; and where text
and bytes might not fit when each is written out, they are read as places in a dictionary, so that a value which is repeated
stands in memory once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from meca.data.readers.files import open_regular
from meca.data.readers.pages import Chunk, Pages, Read, chunks_of, longest_in, pages_of
from meca.errors import InputRefused

__all__ = ["Room", "Table"]

MAX_ROWS = 20_000_000
FREE = 256 * 2**20
MAX_RATIO = 20
PIECE = 1024  # rows
MOST_PIECES = 64  # of a row group in dictionaries: Arrow hands all values so far over with each
pc: Any = pyarrow.compute  # whose functions are made when it is imported


@dataclass
class Room:
    """How many bytes one pass over a source may still unpack."""

    name: str
    left: int
    ratio: int = MAX_RATIO

    @classmethod
    def of(cls, files: Sequence[Path], name: str) -> "Room":
        """Return the room of a pass over `files`."""
        return cls(name, max(FREE, MAX_RATIO * sum(file.stat().st_size for file in files)))

    def take(self, size: int) -> None:
        """Take `size` bytes.

        Raises:
            InputRefused: There is no room left.
        """
        self.need(size)
        self.left -= size

    def need(self, size: int) -> None:
        """Refuse where there is no room for `size` bytes."""
        if size > self.left:
            raise InputRefused(f"{self.name} unpacks to more than {self.ratio} times its size; a few values that stand in many rows do that.")


class Table:
    """An opened parquet file: its schema, the rows of each row group, and its rows in pieces."""

    def __init__(self, source: Path | bytes | BinaryIO, name: str) -> None:
        """Open a file, the bytes of one, or read one that is open already and stays open; `name` is what errors call it.

        Raises:
            InputRefused: It is damaged, has two columns of one name, or more than `MAX_ROWS` rows.
        """
        self.name = name
        self._read, self._size, self._close = _reading(source)
        try:
            self._open(source)
        except BaseException:
            self._close()
            raise

    def _open(self, source: Path | bytes | BinaryIO) -> None:
        name = self.name
        try:
            self._chunks = chunks_of(self._read, self._size)
            with pq.ParquetFile(_source(source)) as plain:
                self.schema: pa.Schema = plain.schema_arrow
                self._leaves: list[Any] = [plain.schema.column(at) for at in range(len(plain.schema))]
                self._metadata: Any = plain.metadata
            self._can_share = {leaf.path for leaf in self._leaves if self._is_long(leaf)}
            self._source, self._shared, self._file = source, set[str](), pq.ParquetFile(_source(source), metadata=self._metadata)
            names = self.schema.names
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a name that is no UTF-8
            raise InputRefused(f"{name} is not a readable parquet file ({_said(error)}).") from None
        if len(set(names)) != len(names):
            self._file.close()
            raise InputRefused(f"Expected columns of different names in {name}, got {', '.join(map(repr, names[:20]))}.")
        # Of a row group nothing but its rows is asked for: asked about a column chunk that is damaged, Arrow ends the process.
        self.rows: list[int] = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        if len(self.rows) != len(self._chunks):
            self._file.close()
            raise InputRefused(f"{name} is not a readable parquet file (its footer can be read in two ways).")
        if sum(self.rows) > MAX_ROWS:
            self._file.close()
            raise InputRefused(f"Expected at most {MAX_ROWS} rows in {name}, found {sum(self.rows)}.")

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._close()

    def _is_long(self, leaf: Any) -> bool:
        top = next((field for field in self.schema if _is_in(leaf.path, field.name)), None)
        return leaf.physical_type == "BYTE_ARRAY" and (top is None or "view" not in str(top.type))  # Arrow has no way back to views

    def pieces(self, columns: Sequence[str], room: Room, group: int, plain: bool = True, at_once: int = PIECE) -> Iterator[pa.Table]:
        """Yield the rows of a row group.

        Args:
            columns: What to read.
            room: What it is counted against.
            group: Which row group.
            plain: Give columns the types of the schema; otherwise text and bytes that come in dictionaries stay there.
            at_once: Rows of a piece, at the most.

        Raises:
            InputRefused: The file is damaged, or unpacks to far more than it is.
        """
        schema, rows = pa.schema([self.schema.field(name) for name in columns]), 0
        at_once = self._prepare(columns, room, group, at_once)
        try:
            for batch in self._file.iter_batches(at_once, row_groups=[group], columns=list(columns)):
                piece = pa.Table.from_batches([batch]).select(list(columns))
                rows += piece.num_rows
                room.take(sum(_bytes(chunk) for column in piece.columns for chunk in column.chunks))
                yield piece.cast(schema) if plain else piece
        except (OSError, pa.ArrowException) as error:
            raise InputRefused(f"{self.name} is damaged ({_said(error)}); get the file again.") from None
        if rows != self.rows[group]:
            raise InputRefused(f"{self.name} promises {self.rows[group]} rows in row group {group} and holds {rows}; get the file again.")

    def memory(self, columns: Sequence[str], group: int) -> int:
        """Return how many bytes the pages of these columns need at the most while a row group is read in pieces.

        Raises:
            InputRefused: The file is damaged.
        """
        return sum(pages.memory for _, _, pages in self._pages(columns, group))

    def _pages(self, columns: Sequence[str], group: int) -> list[tuple[Any, Chunk, Pages]]:
        """Return every leaf of these columns with what its pages in a row group say."""
        leaves = [pair for pair in zip(self._leaves, self._chunks[group], strict=True) if any(_is_in(pair[0].path, name) for name in columns)]
        try:
            return [(leaf, chunk, pages_of(chunk, self._read, self._size, leaf.max_repetition_level > 0)) for leaf, chunk in leaves]
        except (OSError, ValueError) as error:
            raise InputRefused(f"{self.name} is damaged ({_said(error)}); get the file again.") from None

    def _prepare(self, columns: Sequence[str], room: Room, group: int, rows: int) -> int:
        """Return how many rows of a row group make a piece, after a look at whether they fit, and at what has to be read as a dictionary."""
        found = self._pages(columns, group)
        room.need(sum(pages.memory for _, _, pages in found))
        left, shared = room.left, set[str]()
        for leaf, chunk, pages in found:
            if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY":
                room.need(leaf.length * min(rows, self.rows[group]))
            elif leaf.physical_type != "BYTE_ARRAY":
                continue
            elif (out := self._written_out(pages, chunk, left)) <= left:
                left -= out
            elif leaf.path in self._can_share:
                shared.add(leaf.path)
            else:
                room.need(pages.longest * (pages.values if leaf.max_repetition_level else 1))
                rows = max(1, min(rows, room.left // max(1, pages.longest)))
        if shared != self._shared:
            self._file.close()
            self._file = pq.ParquetFile(_source(self._source), metadata=self._metadata, read_dictionary=sorted(shared))
            self._shared = shared
        return max(rows, self.rows[group] // MOST_PIECES) if shared else rows

    def _written_out(self, pages: Pages, chunk: Chunk, limit: int) -> int:
        """Return how many bytes the values of a column have at the most, each one written out, if that is at most `limit`."""
        if pages.stretched:
            return limit + 1
        try:
            longest = longest_in(pages, chunk, self._read, limit // max(1, pages.coded))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputRefused(f"{self.name} is damaged ({_said(error)}); get the file again.") from None
        return pages.unpacked + pages.coded * longest


def _reading(source: Path | bytes | BinaryIO) -> tuple[Read, int, Callable[[], None]]:
    """Return what reads bytes from a place of a source, the size of the source, and what closes it."""
    if isinstance(source, bytes):
        return lambda at, size: source[at : at + size], len(source), lambda: None
    if isinstance(source, Path):
        file = open_regular(source)
        return lambda at, size: os.pread(file.fileno(), size, at), os.fstat(file.fileno()).st_size, file.close

    def read(at: int, size: int) -> bytes:  # a member of an archive has no number of its own
        source.seek(at)
        return source.read(size)

    return read, source.seek(0, os.SEEK_END), lambda: None


def _source(source: Path | bytes | BinaryIO) -> Any:
    return pa.BufferReader(source) if isinstance(source, bytes) else source


def _is_in(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def _bytes(array: Any) -> int:
    """Return how many bytes an array has when each text of a dictionary is written out."""
    kind = array.type
    if pa.types.is_dictionary(kind) and _has_length(kind.value_type):
        return array.indices.nbytes + (pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_bytes(child) for child in array.flatten())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _bytes(array.flatten())
    if pa.types.is_map(kind):
        return _bytes(array.keys) + _bytes(array.items)
    return array.nbytes


def _has_length(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
