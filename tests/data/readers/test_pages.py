"""Parquet files that unpack to far more than they are: refused by what their pages say, before one of them is unpacked."""

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.data.readers.pages import Chunk, chunks_of, longest_in, pages_of
from meca.data.readers.tables import MOST_PIECES, Room, Table
from meca.errors import InputRefused

N = 500
LONG = "a" * 2**22
PLACES = pa.array(np.zeros(N, np.int32))
MANY = pa.DictionaryArray.from_arrays(PLACES, pa.array([LONG[: 2**17]]))


def packed(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def everything(data: bytes, room: Room, plain: bool = True) -> pa.Table:
    with Table(data, "x") as table:
        return pa.concat_tables([piece for group in range(len(table.rows)) for piece in table.pieces(table.schema.names, room, group, plain)])


@contextmanager
def counted() -> Iterator[pa.MemoryPool]:
    """Give a pool that knows how much of it was in use at the most."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


def lists(values: pa.Array, *offsets: int) -> pa.Table:
    return pa.table({"x": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)})


ZSTD: dict[str, Any] = {"compression": "zstd", "store_schema": False}
# Made by the test: a process that only collects does without them.
BOMBS: dict[str, tuple[Callable[[], pa.Table], dict[str, Any]]] = {
    "one value": (lambda: pa.table({"x": [LONG]}), {**ZSTD, "use_dictionary": False}),
    "one value in a dictionary": (lambda: pa.table({"x": [LONG]}), {**ZSTD, "dictionary_pagesize_limit": 2**30}),
    "one value in a page of version 2": (lambda: pa.table({"x": [LONG]}), {**ZSTD, "use_dictionary": False, "data_page_version": "2.0"}),
    "a value in many rows": (lambda: pa.table({"x": MANY}), ZSTD),
    "a value many times in one row": (lambda: lists(MANY, 0, N), ZSTD),
    "a value in many lists": (lambda: lists(MANY, *range(N + 1)), ZSTD),
    "a value in many maps": (lambda: pa.table({"x": pa.MapArray.from_arrays(pa.array([0, N], pa.int32()), MANY.cast(pa.string()), PLACES)}), ZSTD),
    "a value in many views": (lambda: pa.table({"x": pa.array([LONG[: 2**17]] * N, pa.string_view())}), {"compression": "zstd"}),
    "a row of numbers": (lambda: lists(pa.array(np.zeros(4_000_000, np.int8)), 0, 4_000_000), ZSTD),
    "rows of numbers": (
        lambda: lists(pa.array(np.zeros(4_000_000, np.int8)), *range(0, 4_000_001, 20_000)),
        {**ZSTD, "write_batch_size": 20_000, "data_page_size": 1},
    ),
    "wide values": (lambda: pa.table({"x": pa.array([bytes(2**16)] * N, pa.binary(2**16))}), ZSTD),
    "empty texts": (lambda: pa.table({"x": pa.array([""] * 1_000_000)}), {**ZSTD, "use_dictionary": False}),
    "values that grow": (
        lambda: pa.table({"x": [LONG[: 2**16 + i] for i in range(N)]}),
        {**ZSTD, "use_dictionary": False, "column_encoding": {"x": "DELTA_BYTE_ARRAY"}},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_does_not_fit_is_not_unpacked(name: str) -> None:
    make, options = BOMBS[name]
    table = make()
    data = packed(table, **options)
    assert len(data) < 20_000
    with counted() as pool, pytest.raises(InputRefused, match=r"unpacks to more than 20 times its size|DeltaByteArray"):
        everything(data, Room("x", 2**20))
    assert pool.max_memory() < 4 * 2**20, "four times the room, whatever the pages say"
    if name != "values that grow":  # which Arrow cannot read into a dictionary
        assert everything(data, Room("x", 2**31)).num_rows == table.num_rows


def mixed() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "few": [f"x{i % 50}" if i % 7 else None for i in range(N)],
            "each": [f"u{i:07d}" for i in range(N)],
            "number": rng.integers(0, 9, N),
            "map": pa.array([[("a", 1.0), ("b", 2.0)] if i % 3 else [] for i in range(N)], pa.map_(pa.string(), pa.float32())),
            "list": pa.array([["x"] * (i % 4) for i in range(N)], pa.list_(pa.string())),
            "struct": pa.array(
                [{"bytes": b"123" * i, "path": None} for i in range(N // 5)] * 5, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            ),
            "truth": [i % 2 == 0 for i in range(N)],
            "fixed": pa.array([b"1234"] * N, pa.binary(4)),
            "nothing": pa.nulls(N),
            "view": pa.array(["v"] * N, pa.string_view()),
        }
    )


WAYS = list(itertools.product(["1.0", "2.6"], ["1.0", "2.0"], ["NONE", "SNAPPY", "GZIP", "ZSTD", "BROTLI", "LZ4"], [True, False], [70, N]))


@pytest.mark.parametrize(("version", "pages", "compression", "dictionary", "rows"), WAYS)
def test_what_arrow_writes_comes_back(version: Any, pages: Any, compression: str, dictionary: bool, rows: int) -> None:
    table = mixed()
    data = packed(
        table, version=version, data_page_version=pages, compression=compression, use_dictionary=dictionary, row_group_size=rows,
        write_page_index=dictionary, write_page_checksum=dictionary, data_page_size=300, dictionary_pagesize_limit=100,
    )  # fmt: skip
    assert everything(data, Room("x", 2**24)).equals(table)
    assert everything(data, Room("x", 600_000)).equals(table), "also where there is little room, and texts are read as places in a dictionary"


def test_text_is_read_as_it_is_where_it_fits_and_as_places_in_a_dictionary_where_it_may_not() -> None:
    data = packed(pa.table({"x": MANY}), **ZSTD)
    assert everything(data, Room("x", 2**30), plain=False).schema.field("x").type == pa.string()
    with Table(data, "x") as table:
        with counted() as pool, pytest.raises(InputRefused, match="unpacks to more than"):
            list(table.pieces(["x"], Room("x", N * 2**17), 0, plain=False))
        assert pool.max_memory() < 2**20, "it does not fit, and stands in memory once"
    few = packed(pa.table({"x": pa.DictionaryArray.from_arrays(PLACES, pa.array(["short"]))}), **ZSTD)
    assert everything(few, Room("x", 2**20), plain=False).schema.field("x").type == pa.string()


def test_dictionaries_are_handed_over_a_few_times() -> None:
    """Arrow hands all values over that it has met in a row group, with each piece: more pieces, more copies of them."""
    rows = 200_000
    words = pa.DictionaryArray.from_arrays(pa.array(np.arange(rows, dtype=np.int32) // (rows - 1)), pa.array(["short", LONG[: 2**17]]))
    with Table(packed(pa.table({"x": words}), **ZSTD), "x") as table:
        pieces = list(table.pieces(["x"], Room("x", 2**26), 0, plain=False))
    assert sum(piece.num_rows for piece in pieces) == rows and len(pieces) <= MOST_PIECES + 1
    assert pa.types.is_dictionary(pieces[0].schema.field("x").type)


def test_the_longest_text_of_a_dictionary_is_found_without_arrow() -> None:
    for compression in ("none", "snappy", "gzip", "zstd", "brotli"):
        words = ["", "a" * 17, "ab", None] * 100
        data = packed(pa.table({"x": words}), compression=compression)

        def read(at: int, size: int, data: bytes = data) -> bytes:
            return data[at : at + size]

        ((chunk,),) = chunks_of(read, len(data))
        pages = pages_of(chunk, read, len(data), whole=False)
        assert pages.values == pages.coded == 400 and pages.dictionary is not None and pages.dictionary[2] == 3 * 4 + 19
        assert longest_in(pages, chunk, read, 17) == 17
        assert longest_in(pages, chunk, read, 16) == pages.dictionary[2], "longer than asked for: then the page is the bound"


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def closed(footer: bytes) -> bytes:
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


LEAF = b"\x48\x01x\x00"  # SchemaElement: name
ROOT = b"\x48\x01x\x15\x02\x00"  # and one child
MILLION = b"\xfc" + varint(999_999)  # a list of so many structures
FOOTERS = {
    "a million columns": (closed(b"\x15\x02\x19" + MILLION + bytes(4000)), "it ends too early"),
    "a million row groups": (closed(b"\x15\x02\x19\x1c" + LEAF + b"\x16\x00\x19" + MILLION + b"\x19" + MILLION + bytes(4000)), "it ends too early"),
    "a deep schema": (closed(b"\x15\x02\x19\xfc" + varint(900) + ROOT * 899 + LEAF + b"\x00"), "its schema is nested more than 32"),
    "two roots": (closed(b"\x15\x02\x19\x2c" + LEAF + LEAF + b"\x00"), "more than one root"),
    "deep structures": (closed(b"\x1c" * 3000), "it is nested more than 32 levels deep"),
    "deep lists": (closed(b"\x59" + b"\x19" * 3000), "it is nested more than 32 levels deep"),
    "a field twice": (closed(b"\x15\x02\x05\x02\x02\x00"), "its fields are out of order"),
    "another type": (closed(b"\x15\x02\x15\x02\x00"), "its field 2 has the type 5"),
    "a long number": (closed(b"\x15" + b"\xff" * 20), "a number of more than 64 bits"),
    "an unknown type": (closed(b"\x1e\x00"), "the unknown type 14"),
    "a footer that is too long": (b"PAR1" + bytes(8) + (2**31).to_bytes(4, "little") + b"PAR1", "its footer is larger than the file"),
    "nothing": (b"", "no footer"),
    "no end": (packed(pa.table({"x": [1]}))[:-1], "no footer"),
}


@pytest.mark.parametrize("name", FOOTERS)
def test_a_footer_that_lies_is_refused_before_arrow_sees_it(name: str) -> None:
    data, sentence = FOOTERS[name]
    with counted() as pool, pytest.raises(InputRefused, match=f"x is not a readable parquet file .*{sentence}"):
        Table(data, "x")
    assert pool.max_memory() < 2**20


PAGE = b"\x15\x00\x15\x0a\x15\x0a\x2c\x15\x02\x15\x00\x00\x00"  # PageHeader: a data page of 5 bytes with 1 value


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (PAGE[:-3], "it ends too early"),
        (PAGE.replace(b"\x0a", b"\x09", 1) + bytes(5), "a page has less than nothing"),
        (b"\x15\x00\x00", "a page does not say how large it is"),
        (PAGE[:3] + b"\xfe\xff\xff\xff\xff\x01" + PAGE[4:], "a number of more than 32 bits"),
        ((b"\x15\x04\x15\x02\x15\x02\x4c\x15\x00\x15\x00\x00\x00" + bytes(1)) * 2, "a column has two dictionaries"),
    ],
)
def test_a_damaged_head_of_a_page_is_named(data: bytes, sentence: str) -> None:
    assert pages_of(Chunk(0, len(PAGE), 1), lambda at, size: (PAGE + bytes(9))[at : at + size], len(PAGE) + 9, whole=False).values == 1
    with pytest.raises(ValueError, match=sentence):
        pages_of(Chunk(0, len(data), 9), lambda at, size: data[at : at + size], len(data), whole=False)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_end_in_pages_or_in_a_sentence(data: bytes, footer: bool) -> None:
    data = closed(data) if footer else data

    def read(at: int, size: int) -> bytes:
        return data[at : at + size]

    try:
        groups = chunks_of(read, len(data)) if footer else [[Chunk(0, len(data), 10**9)]]
        for chunk in itertools.chain.from_iterable(groups):
            pages_of(chunk, read, len(data), whole=True)
    except ValueError as problem:
        assert str(problem)
