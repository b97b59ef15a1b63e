"""Parquet files that nobody vouches for, read in pieces: a few bytes may stand for a million rows, and a long value for each of them.

Text and bytes are read as places in a dictionary, so that a value which is repeated stands in memory once. What all of it
comes to, written out, is counted against the size of the files: at most `MAX_RATIO` times that, but `FREE` bytes are free.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from meca.errors import InputRefused

__all__ = ["Room", "Table"]

MAX_ROWS = 20_000_000
FREE = 256 * 2**20
MAX_RATIO = 20
PIECE = 1024  # rows
pc: Any = pyarrow.compute  # whose functions are made when it is imported


@dataclass
class Room:
    """How many bytes one pass over a source may still unpack."""

    name: str
    left: int

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
            raise InputRefused(f"{self.name} unpacks to more than {MAX_RATIO} times its size; a few values that stand in many rows do that.")


class Table:
    """An opened parquet file: its schema, the rows of each row group, and its rows in pieces."""

    def __init__(self, path: Path | BinaryIO, name: str) -> None:
        """Open the file, or read one that is open already; `name` is what errors call it.

        Raises:
            InputRefused: It is damaged, has two columns of one name, or more than `MAX_ROWS` rows.
        """
        self.name = name
        try:
            with pq.ParquetFile(path) as plain:
                self.schema: pa.Schema = plain.schema_arrow
                leaves: list[Any] = [plain.schema.column(at) for at in range(len(plain.schema))]
                metadata: Any = plain.metadata
            self._file = pq.ParquetFile(path, metadata=metadata, read_dictionary=[leaf.path for leaf in leaves if self._is_long(leaf)])
            names = self.schema.names
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a name that is no UTF-8
            raise InputRefused(f"{name} is not a readable parquet file ({_said(error)}).") from None
        if len(set(names)) != len(names):
            self._file.close()
            raise InputRefused(f"Expected columns of different names in {name}, got {', '.join(map(repr, names[:20]))}.")
        # Of a row group nothing but its rows is asked for: asked about a column chunk that is damaged, Arrow ends the process.
        self.rows: list[int] = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._widths = {leaf.path: leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY"}
        if sum(self.rows) > MAX_ROWS:
            self._file.close()
            raise InputRefused(f"Expected at most {MAX_ROWS} rows in {name}, found {sum(self.rows)}.")

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _is_long(self, leaf: Any) -> bool:
        top = next((field for field in self.schema if _is_in(leaf.path, field.name)), None)
        return leaf.physical_type == "BYTE_ARRAY" and (top is None or "view" not in str(top.type))  # Arrow has no way back to views

    def pieces(self, columns: Sequence[str], room: Room, group: int, plain: bool = True) -> Iterator[pa.Table]:
        """Yield the rows of a row group.

        Args:
            columns: What to read.
            room: What it is counted against.
            group: Which row group.
            plain: Give columns the types of the schema; otherwise text and bytes stay in dictionaries.

        Raises:
            InputRefused: The file is damaged, or unpacks to far more than it is.
        """
        schema, rows = pa.schema([self.schema.field(name) for name in columns]), 0
        widest = max((width for path, width in self._widths.items() if any(_is_in(path, name) for name in columns)), default=0)
        room.need(widest * min(PIECE, self.rows[group]))
        try:
            for batch in self._file.iter_batches(PIECE, row_groups=[group], columns=list(columns)):
                piece = pa.Table.from_batches([batch]).select(list(columns))
                rows += piece.num_rows
                room.take(sum(_bytes(chunk) for column in piece.columns for chunk in column.chunks))
                yield piece.cast(schema) if plain else piece
        except (OSError, pa.ArrowException) as error:
            raise InputRefused(f"{self.name} is damaged ({_said(error)}); get the file again.") from None
        if rows != self.rows[group]:
            raise InputRefused(f"{self.name} promises {self.rows[group]} rows in row group {group} and holds {rows}; get the file again.")


def _is_in(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def _bytes(array: Any) -> int:
    """Return how many bytes an array has when each text of a dictionary is written out."""
    kind = array.type
    if pa.types.is_dictionary(kind) and _has_length(kind.value_type):
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
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
