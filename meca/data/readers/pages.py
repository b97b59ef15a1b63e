"""What the pages of a parquet file unpack to, read from their heads before Arrow unpacks one.

Arrow takes the memory that a page asks for before a row comes out: 20 kB can be one value of 600 MiB, and 600 bytes a row of
100 million numbers. pyarrow shows no page, so footer and heads are read here, as parquet.thrift of apache/parquet-format has
them (https://github.com/apache/parquet-format, Thrift's compact protocol). What is odd is refused, so that Arrow and this
file see the same pages.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

__all__ = ["Chunk", "Pages", "chunks_of", "longest_in", "pages_of"]

Read = Callable[[int, int], bytes]  # at most so many bytes from a place in the file

MAGIC = b"PAR1"
MAX_FOOTER = 32 * 2**20
MAX_HEAD = 16 * 2**20  # of a page; Arrow's limit too
HEAD = 2**12  # of it that is read at first
MAX_NESTING = 32  # of the schema, and of structures inside each other
PADDING = 100  # bytes that Arrow reads beyond a chunk of some old writers
DICTIONARY_VALUE, VALUE = 64, 16  # bytes that one takes in memory beside what its page unpacks to, at most
BOOLEANS, BYTE, INTEGERS, I32, I64, DOUBLE, BINARY, LISTS, LIST, MAP, STRUCT = (1, 2), 3, (4, 5, 6), 5, 6, 7, 8, (9, 10), 9, 11, 12
DATA, DICTIONARY, DATA_2 = 0, 2, 3  # types of pages
PLAIN, LENGTHS_FIRST, PLACES = 0, 6, (2, 8)  # encodings: values as they are, with their lengths before them, places in the dictionary
CODECS = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd"}  # the others are not needed to know a longest value


@dataclass(frozen=True)
class Chunk:
    """Where the pages of one column in one row group lie."""

    start: int
    stop: int
    values: int
    codec: int = 0


@dataclass(frozen=True)
class Pages:
    """What the pages of a column chunk say about themselves."""

    memory: int  # bytes that Arrow needs at the most while it reads the chunk in pieces; what it hands over is not counted
    unpacked: int  # bytes of all pages but the dictionary
    longest: int  # bytes of the largest page: no value in it has more
    values: int
    coded: int  # of them are places in the dictionary
    dictionary: tuple[int, int, int] | None  # where it lies, its bytes there, and unpacked
    stretched: bool  # a value may be longer than what stands in its page


class _Cut(ValueError):  # noqa: N818 - it asks for more bytes
    """The bytes end inside of something."""


class _Compact:
    """Thrift's compact protocol: what is wanted of a structure is returned, the rest is passed over and takes no memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise _Cut("it ends too early")
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("it holds a number of more than 64 bits")

    def number(self, bits: int) -> int:
        value = self.varint()
        value = (value >> 1) ^ -(value & 1)
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise ValueError(f"it holds a number of more than {bits} bits")
        return value

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise _Cut("it ends too early")
        self.at += size

    def head_of_list(self) -> tuple[int, int]:
        """Return the number of elements and their type. Each has a byte at least, so that nobody takes memory for more."""
        head = self.byte()
        count = self.varint() if head >> 4 == 15 else head >> 4
        if count > len(self.data) - self.at:
            raise _Cut("it ends too early")
        return count, head & 15

    def structs(self, wanted: Mapping[int, tuple[int, Any]]) -> list[dict[int, Any]]:
        count, kind = self.head_of_list()
        if kind != STRUCT:
            raise ValueError(f"it holds a list of type {kind} where structures belong")
        return [self.struct(wanted, 1) for _ in range(count)]

    def struct(self, wanted: Mapping[int, tuple[int, Any]], depth: int = 0) -> dict[int, Any]:
        """Return the fields that are wanted, by number.

        Args:
            wanted: By number the type, and for a structure or a list of them what is wanted of it.
            depth: How many structures stand around this one.
        """
        if depth > MAX_NESTING:
            raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")
        found: dict[int, Any] = {}
        field = 0
        while head := self.byte():
            kind, before = head & 15, field
            field = field + (head >> 4) if head >> 4 else self.number(16)
            if field <= before:
                raise ValueError("its fields are out of order")  # a second one would count for some programs only
            if field not in wanted:
                self._pass(kind, depth)
                continue
            expected, inner = wanted[field]
            if kind != expected:
                raise ValueError(f"its field {field} has the type {kind}")
            if kind in (I32, I64):
                found[field] = self.number(32 if kind == I32 else 64)
            elif kind == STRUCT:
                found[field] = self.struct(inner, depth + 1)
            elif kind == LIST:
                found[field] = self.structs(inner)
            else:
                self._pass(kind, depth)
                found[field] = True
        return found

    def _pass(self, kind: int, depth: int, in_list: bool = False) -> None:
        if kind in BOOLEANS:
            self.skip(int(in_list))
        elif kind == BYTE:
            self.skip(1)
        elif kind in INTEGERS:
            self.varint()
        elif kind == DOUBLE:
            self.skip(8)
        elif kind == BINARY:
            self.skip(self.varint())
        elif kind in LISTS:
            count, inner = self.head_of_list()
            for _ in range(count):
                self._pass(inner, self._deeper(depth), in_list=True)
        elif kind == MAP:
            count = self.varint()
            kinds = self.byte() if count else 0
            if count > len(self.data) - self.at:
                raise _Cut("it ends too early")
            for _ in range(count):
                self._pass(kinds >> 4, self._deeper(depth), in_list=True)
                self._pass(kinds & 15, self._deeper(depth), in_list=True)
        elif kind == STRUCT:
            self.struct({}, depth + 1)
        else:
            raise ValueError(f"it holds the unknown type {kind}")

    def _deeper(self, depth: int) -> int:
        if depth > MAX_NESTING:
            raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")
        return depth + 1


CHILDREN = {5: (I32, None)}  # SchemaElement: num_children
COLUMN = {
    4: (I32, None),
    5: (I64, None),
    7: (I64, None),
    9: (I64, None),
    11: (I64, None),
}  # ColumnMetaData: codec, values, bytes, first page, dictionary
PLACE = {1: (BINARY, None), 3: (STRUCT, COLUMN)}  # ColumnChunk: another file, ColumnMetaData
FOOTER = {2: (LIST, CHILDREN), 4: (LIST, {1: (LIST, PLACE)})}  # FileMetaData: schema, row groups
COUNT = {1: (I32, None), 2: (I32, None)}  # DataPageHeader, DictionaryPageHeader: values, encoding
COUNT_2 = {1: (I32, None), 4: (I32, None)}  # DataPageHeaderV2
PAGE = {1: (I32, None), 2: (I32, None), 3: (I32, None), 5: (STRUCT, COUNT), 7: (STRUCT, COUNT), 8: (STRUCT, COUNT_2)}  # PageHeader


def chunks_of(read: Read, size: int) -> list[list[Chunk]]:
    """Return the column chunks of each row group, in the order of the leaves of the schema.

    Args:
        read: Returns bytes of the file.
        size: Of the file.

    Raises:
        ValueError: It is no parquet file, or one that says two things.
    """
    tail = read(size - 8, 8) if size >= 12 else b""
    if tail[4:] != MAGIC:
        raise ValueError("no footer at its end")
    length = int.from_bytes(tail[:4], "little")
    if length > min(size - 12, MAX_FOOTER):
        raise ValueError("its footer is larger than the file, or than 32 MiB")
    footer = _Compact(read(size - 8 - length, length)).struct(FOOTER)
    leaves = _leaves([element.get(5, 0) for element in footer.get(2, [])])
    groups = [[_chunk(column, size) for column in group.get(1, [])] for group in footer.get(4, [])]
    if any(len(group) != leaves for group in groups):
        raise ValueError("a row group has another number of columns than the schema")
    return groups


def _leaves(children: list[int]) -> int:
    """Return the number of leaves of a schema, which is given as the number of children of each element in its order (0: a leaf)."""
    open_ = [1]
    for number in children:
        if not open_:
            raise ValueError("its schema has more than one root")
        open_[-1] -= 1
        if number < 0 or len(open_) > MAX_NESTING:
            raise ValueError(f"its schema is nested more than {MAX_NESTING} levels deep")
        if number:
            open_.append(number)
        while open_ and not open_[-1]:
            open_.pop()
    return sum(not number for number in children[1:])


def _chunk(column: Mapping[int, Any], size: int) -> Chunk:
    about = column.get(3, {})
    if 1 in column or not {4, 5, 7, 9} <= about.keys():
        raise ValueError("a column lies in another file, or nobody knows where")
    if about[5] == 0:
        return Chunk(0, 0, 0)  # without a value there is no page either, and some writers say nothing of use about its place
    start = min(about[9], about[11]) if about.get(11, 0) > 0 else about[9]
    stop = start + about[7]
    if not 4 <= start <= stop <= size or about[5] < 0:
        raise ValueError("a column lies outside of the file")
    return Chunk(start, stop, about[5], about[4])


def pages_of(chunk: Chunk, read: Read, size: int, whole: bool) -> Pages:
    """Return what is said by the heads of the pages of a column chunk.

    Args:
        chunk: The column chunk.
        read: Returns bytes of the file.
        size: Of the file.
        whole: A row may have any number of values, and one piece all of them.

    Raises:
        ValueError: A head is damaged.
    """
    at, stop, seen = chunk.start, min(size, chunk.stop + PADDING), 0
    largest = most = total = longest = coded = memory = 0
    dictionary, stretched = None, False
    while seen < chunk.values and at < stop:
        page, used = _head(read, at, size)
        kind, unpacked, packed = page[1], page[2], page[3]
        about = page.get({DATA: 5, DICTIONARY: 7, DATA_2: 8}.get(kind, 0), {})
        count, encoding = about.get(1, 0), about.get(4 if kind == DATA_2 else 2, -1)
        if min(unpacked, packed, count) < 0:
            raise ValueError("a page has less than nothing")
        at += used
        longest = max(longest, unpacked)
        if kind == DICTIONARY:
            if dictionary:
                raise ValueError("a column has two dictionaries")
            dictionary, memory = (at, packed, unpacked), unpacked + DICTIONARY_VALUE * count
        else:
            largest, most, total = max(largest, unpacked), max(most, count), total + unpacked
        if kind in (DATA, DATA_2):
            seen += count
            coded += count if encoding in PLACES else 0
            stretched |= encoding not in (PLAIN, LENGTHS_FIRST, *PLACES)
        at += packed
    return Pages(memory + largest + VALUE * (seen if whole else most), total, longest, seen, coded, dictionary, stretched)


def longest_in(pages: Pages, chunk: Chunk, read: Read, limit: int) -> int:
    """Return a number of bytes that no text of a dictionary exceeds: the length of the longest, if that is at most `limit`."""
    if pages.dictionary is None:
        return 0
    at, packed, unpacked = pages.dictionary
    if unpacked <= limit or chunk.codec not in CODECS:
        return unpacked
    data, codec = read(at, packed), CODECS[chunk.codec]
    if codec is not None:
        data = pa.decompress(data, decompressed_size=unpacked, codec=codec, asbytes=True)
    place = longest = 0
    while place + 4 <= len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        place, longest = place + 4 + length, max(longest, length)
        if longest > limit:
            return unpacked
    return longest


def _head(read: Read, at: int, size: int) -> tuple[dict[int, Any], int]:
    """Return the head of the page at a place of the file, and its length."""
    length = HEAD
    while True:
        protocol = _Compact(read(at, min(length, size - at)))
        try:
            page = protocol.struct(PAGE)
        except _Cut:
            if length >= min(MAX_HEAD, size - at):
                raise
            length *= 8
            continue
        if not {1, 2, 3} <= page.keys():
            raise ValueError("a page does not say how large it is")
        return page, protocol.at
