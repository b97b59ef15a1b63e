"""Hostile parquet files with images: types that do not fit, labels without sense, footers that lie, values that unpack to far too much."""

import io
import json
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.case import Case, Expected, keep, quarantine, refuse, usage
from tests.hostile.parts import CANARY, encoded, write

__all__ = ["CASES"]

N = 6
NAME = "train.parquet"
KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(N)]
LABELS = [0, 1] * (N // 2)


def table(names: Any = None, **columns: Any) -> pa.Table:
    """Return a table of good images; `columns` replaces or adds some, `names` are the class names in the metadata."""
    found = {"image": pa.array(IMAGES, KIND), "label": pa.array(LABELS)} | columns
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {} if names is None else {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table({name: value for name, value in found.items() if value is not None}).replace_schema_metadata(metadata)


def packed(content: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(content, buffer, **options)
    return buffer.getvalue()


def file(id: str, threat: str, what: str, expected: Expected, data: Callable[[], pa.Table | bytes], **settings: Any) -> Case:
    def make(root: Path) -> Path:
        found = data()
        write(root, {NAME: packed(found) if isinstance(found, pa.Table) else found})
        return root / NAME

    return Case(f"parquet-{id}", threat, what, expected, make, settings)


def images(values: list[Any]) -> pa.Array:
    return pa.array(values, KIND)


TYPES = [
    file("floats", "T28", "images as lists of floats", refuse("to hold encoded images"), lambda: table(image=pa.array([[0.0, float("nan")]] * N))),
    file(
        "nested",
        "T28",
        "images as lists of lists of bytes",
        refuse("to hold encoded images"),
        lambda: table(image=pa.array([[[1, 2]]] * N, pa.list_(pa.list_(pa.uint8())))),
    ),
    file(
        "fixed-size",
        "T28",
        "images as 3,072 raw bytes",
        refuse("to hold encoded images"),
        lambda: table(image=pa.array([bytes(3072)] * N, pa.binary(3072))),
    ),
    file(
        "list-of-images",
        "T28",
        "a list of images in each row",
        refuse("to hold encoded images"),
        lambda: table(image=pa.array([[image] for image in IMAGES], pa.list_(KIND))),
    ),
    file(
        "image-is-text",
        "T31",
        "images as paths: a list of files without columns of its own",
        refuse("to hold encoded images"),
        lambda: table(image=pa.array(["../secret.png"] * N)),
        format="parquet",
    ),
    file(
        "struct-without-bytes",
        "T31",
        "images as structs of paths",
        refuse("to hold encoded images"),
        lambda: table(image=pa.array([{"path": "/etc/passwd"}] * N)),
    ),
    file(
        "bytes-twice",
        "T28",
        "a struct with two members `bytes`",
        refuse("to hold encoded images"),
        lambda: table(image=pa.StructArray.from_arrays([pa.array([b"x"] * N), pa.array([encoded(0)] * N)], names=["bytes", "bytes"])),
    ),
    file(
        "dictionary-type",
        "T28",
        "images as a dictionary type",
        refuse("to hold encoded images"),
        lambda: table(image=pa.array([encoded(i) for i in range(N)]).dictionary_encode()),
    ),
    file(
        "two-images",
        "T30",
        "two columns `image`",
        refuse("Expected columns of different names"),
        lambda: pa.Table.from_arrays([images(IMAGES), images(IMAGES), pa.array(LABELS)], names=["image", "image", "label"]),
    ),
    file(
        "two-labels",
        "T30",
        "two columns `label`",
        refuse("Expected columns of different names"),
        lambda: pa.Table.from_arrays([images(IMAGES), pa.array(LABELS), pa.array(LABELS)], names=["image", "label", "label"]),
    ),
    file(
        "path-instead-of-bytes",
        "T31",
        "a row with a path and no bytes: nothing is opened",
        quarantine(N, {f"{NAME}#{N:07d}": "no-bytes"}),
        lambda: table(image=images([*IMAGES, {"bytes": None, "path": f"../{CANARY}/secret.png"}]), label=pa.array([*LABELS, 0])),
    ),
    file(
        "address-instead-of-bytes",
        "T33",
        "a row with an address and no bytes",
        quarantine(N, {f"{NAME}#{N:07d}": "no-bytes"}),
        lambda: table(image=images([*IMAGES, {"bytes": None, "path": "http://169.254.169.254/"}]), label=pa.array([*LABELS, 0])),
    ),
    file(
        "null-image",
        "T30",
        "a row without an image",
        quarantine(N, {f"{NAME}#{N:07d}": "no-bytes"}),
        lambda: table(image=images([*IMAGES, None]), label=pa.array([*LABELS, 0])),
    ),
    file(
        "empty-bytes",
        "T21",
        "a row with no bytes in the image",
        quarantine(N, {f"{NAME}#{N:07d}": "not-an-image"}),
        lambda: table(image=images([*IMAGES, {"bytes": b"", "path": None}]), label=pa.array([*LABELS, 0])),
    ),
    file(
        "path-upwards-beside-bytes",
        "T10",
        "bytes whose path climbs out: a text, never opened",
        keep(N),
        lambda: table(image=images([image | {"path": "../../evil.png"} for image in IMAGES])),
    ),
]

LABELLED = [
    file("label-float", "T30", "labels that are floats", refuse("to hold integers, got double"), lambda: table(label=pa.array([0.0, 1.0] * 3))),
    file(
        "label-bool", "T30", "labels that are true and false", refuse("to hold integers, got bool"), lambda: table(label=pa.array([True, False] * 3))
    ),
    file("label-text", "T30", "labels that are texts", refuse("to hold integers, got string"), lambda: table(label=pa.array(["a", "b"] * 3))),
    file("label-list", "T30", "a list of labels", refuse("to hold integers, got list"), lambda: table(label=pa.array([[0], [1]] * 3))),
    file("label-null", "T30", "a row without a label", refuse("found none in row 1"), lambda: table(label=pa.array([0, None] * 3))),
    file(
        "label-negative", "T30", "a label -1", refuse("Expected labels in 0..1, got -1 in row 5"), lambda: table(label=pa.array([0, 1, 0, 1, 0, -1]))
    ),
    file(
        "label-beyond-names",
        "T30",
        "a label beyond the names",
        refuse("Expected labels in 0..1, got 2 in row 5"),
        lambda: table(["a", "b"], label=pa.array([0, 1, 0, 1, 0, 2])),
    ),
    file(
        "label-of-a-billion-classes",
        "T30",
        "a label 10^9",
        refuse("Expected at most 100000 classes, found a label 1000000000"),
        lambda: table(label=pa.array([0, 1, 0, 1, 0, 10**9])),
    ),
    file(
        "label-beyond-63-bits",
        "T30",
        "a label of 64 bits",
        refuse("to fit into 64 bits with a sign"),
        lambda: table(label=pa.array([0, 1, 0, 1, 0, 2**64 - 1], pa.uint64())),
    ),
    file("label-missing", "T30", "no column of labels", refuse("Expected the columns image"), lambda: table(label=None)),
    file(
        "label-class-skipped",
        "T30",
        "a class without a sample",
        refuse("The class '1' has no training sample"),
        lambda: table(label=pa.array([0, 2] * 3)),
    ),
    file("names-twice", "T16", "a class name twice", refuse("to be different strings"), lambda: table(["a", "a"])),
    file("names-number", "T30", "a number in place of the class names", refuse("to be different strings"), lambda: table(5)),
    file("names-text", "T30", "a text in place of the class names", refuse("to be different strings"), lambda: table("ab")),
    file("names-half-character", "T32", "a class name with half a character", refuse("without half a character"), lambda: table(["\ud800", "b"])),
    file("names-without-end", "T17", "a class name of 100 kB", refuse("names of at most 255 characters"), lambda: table(["x" * 100_000, "b"])),
    file(
        "metadata-depth-bomb",
        "T06",
        "metadata of 100,000 lists inside each other: no class names",
        keep(N, classes=("0", "1")),
        lambda: table().replace_schema_metadata({"huggingface": "[" * 100_000}),
    ),
    file(
        "metadata-no-json",
        "T06",
        "metadata that is no JSON: no class names",
        keep(N, classes=("0", "1")),
        lambda: table().replace_schema_metadata({"huggingface": b"\xff\xfe{"}),
    ),
    file(
        "metadata-other-shape",
        "T06",
        "metadata of another shape: no class names",
        keep(N, classes=("0", "1")),
        lambda: table().replace_schema_metadata({"huggingface": '{"info": []}'}),
    ),
    file(
        "extension-with-pickle", "T01", "a column of the extension type whose metadata old versions of Arrow unpickled", keep(N), lambda: extension()
    ),
    file(
        "column-named-like-markup",
        "T40",
        "columns named like markup, a formula and an escape",
        keep(N),
        lambda: table(**{"<script>alert(1)</script>": pa.array([1] * N), "=cmd|' /C calc'!A0": pa.array([1] * N), "\x1b]0;x\x07": pa.array([1] * N)}),
    ),
    file(
        "column-with-a-dot",
        "T30",
        "a column called label.x beside `label`",
        keep(N),
        lambda: table(**{"label.x": pa.array(["dot"] * N), "image.bytes": pa.array(["dot"] * N)}),
    ),
]


def extension() -> pa.Table:
    """Return a table with a column that says it is of a type to be unpickled."""
    evil = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch RAN\x85R."
    field = pa.field("more", pa.int64(), metadata={"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": evil})
    found = table(more=pa.array([1] * N))
    return found.cast(pa.schema([found.schema.field("image"), found.schema.field("label"), field]))


# --- files that lie --------------------------------------------------------------------------------------------------


def footer(change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(packed(table()))
    size = int.from_bytes(data[-8:-4], "little")
    part = data[-8 - size : -8]
    change(part)
    return bytes(data[: -8 - size] + part + data[-8:])


@cache
def more_rows() -> bytes:
    """Return a file whose footer promises 63 rows where there are 6: found by trying, since only a writer of footers could say the place."""
    data = packed(table())
    size = int.from_bytes(data[-8:-4], "little")
    places = [at for at in range(len(data) - 8 - size, len(data) - 8) if data[at] == 2 * N]  # thrift writes 6 as 12
    for chosen in combinations(places, 2):  # of the file and of its row group
        changed = bytearray(data)
        for at in chosen:
            changed[at] = 2 * 63
        try:
            about = pq.ParquetFile(io.BytesIO(changed)).metadata
            if about.num_rows == 63 and about.row_group(0).num_rows == 63:
                return bytes(changed)
        except (OSError, pa.ArrowException, ValueError):
            continue
    raise AssertionError("no such place")


def shared_image() -> bytes:
    """Return 100,000 rows that share one image of 1 MiB: less than a megabyte that unpacks to 100 GB."""
    image = encoded(0) + bytes(2**20)
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array([image]))
    kind = pa.StructArray.from_arrays([cells], names=["bytes"])
    return packed(pa.table({"image": kind, "label": pa.array([0, 1] * 50_000, pa.int8())}), compression="zstd", store_schema=False)


def shared_text() -> bytes:
    """Return good images, each of them 1,000 times, with one text of 4 MiB in every row."""
    rows = 1000 * N
    image = pa.StructArray.from_arrays(
        [pa.DictionaryArray.from_arrays(pa.array(list(range(N)) * 1000, pa.int32()), pa.array([i["bytes"] for i in IMAGES]))], names=["bytes"]
    )
    more = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 2**22]))
    return packed(pa.table({"image": image, "label": pa.array(LABELS * 1000, pa.int8()), "more": more}), compression="zstd", store_schema=False)


def many_rows() -> bytes:
    """Return 21 million rows of nothing in a few kilobytes."""
    million = pa.table({"image": pa.nulls(10**6, pa.binary()), "label": pa.repeat(pa.scalar(0, pa.int8()), 10**6)})
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, million.schema, compression="zstd") as writer:
        for _ in range(21):
            writer.write_table(million)
    return buffer.getvalue()


def zeros() -> bytes:
    """Return two images of 130 MiB of zeros in 30 kB."""
    found = table(image=images([*IMAGES[:4], *({"bytes": bytes(130 * 2**20), "path": None} for _ in range(2))]))
    return packed(found, compression="zstd", use_dictionary=False, write_statistics=False)  # which would take seconds


def flipped(at: int) -> bytes:
    data = bytearray(packed(table(), compression="snappy"))
    data[at : at + 40] = bytes(b ^ 0xFF for b in data[at : at + 40])
    return bytes(data)


LIES = [
    file("cut", "T21", "a file without its end", refuse("is not a readable parquet file"), lambda: packed(table())[:-20]),
    file("empty", "T21", "an empty file", refuse("is not a readable parquet file"), lambda: b""),
    file("magic-only", "T21", "nothing but the magic bytes", refuse("is not a readable parquet file"), lambda: b"PAR1" + bytes(4) + b"PAR1"),
    file("no-parquet", "T08", "a PNG called train.parquet", refuse("is not a readable parquet file"), lambda: encoded(0)),
    file("encrypted-footer", "T03", "an encrypted footer", refuse("is not a readable parquet file"), lambda: packed(table())[:-4] + b"PARE"),
    file(
        "footer-longer-than-file",
        "T03",
        "a footer of 4 GB",
        refuse("is not a readable parquet file"),
        lambda: packed(table())[:-8] + b"\xff\xff\xff\xffPAR1",
    ),
    file(
        "footer-of-noise",
        "T03",
        "a footer of noise",
        refuse("is not a readable parquet file"),
        lambda: footer(lambda part: part.__setitem__(slice(None), b"\xff" * len(part))),
    ),
    file(
        "footer-of-zeros",
        "T03",
        "a footer of zeros",
        refuse("is not a readable parquet file"),
        lambda: footer(lambda part: part.__setitem__(slice(None), bytes(len(part)))),
    ),
    file(
        "footer-depth-bomb",
        "T06",
        "a footer of structs inside each other",
        refuse("is not a readable parquet file"),
        lambda: footer(lambda part: part.__setitem__(slice(None), b"\x1c" * len(part))),
    ),
    file(
        "level-lies",
        "T03",
        "a footer whose levels and statistics disagree: asked the wrong way, Arrow ends the process",
        refuse("is damaged"),
        lambda: packed(table()).replace(b"%\x02\x18\x05label", b"%\x00\x18\x05label"),
    ),
    file(
        "more-rows-than-there-are",
        "T13",
        "a footer that promises 63 rows where there are 6",
        refuse("promises 63 rows in row group 0 and holds 6"),
        more_rows,
    ),
    file("pages-of-noise", "T03", "noise where a page begins", refuse("is damaged"), lambda: flipped(20)),
    file("image-in-many-rows", "T13", "100,000 rows that share one image of 1 MiB", refuse("unpacks to more than 20 times its size"), shared_image),
    file(
        "text-in-many-rows",
        "T13",
        "6,000 rows that share one text of 4 MiB in a further column",
        refuse("unpacks to more than 20 times its size"),
        shared_text,
    ),
    file("rows-without-end", "T17", "21 million rows in a few kilobytes", refuse("Expected at most 20000000 rows"), many_rows),
    file("zeros-without-end", "T13", "two images of 130 MiB of zeros", refuse("unpacks to more than 20 times its size"), zeros),
    file("no-rows", "T30", "no row", refuse("Expected training samples in the source, found none"), lambda: table().slice(0, 0)),
]


def shards(id: str, threat: str, what: str, expected: Expected, content: dict[str, pa.Table]) -> Case:
    return Case(f"parquet-{id}", threat, what, expected, lambda root: write(root, {name: packed(data) for name, data in content.items()}))


SHARDS = [
    shards(
        "shards-of-other-columns",
        "T30",
        "shards whose columns differ",
        refuse("but train-1.parquet has others"),
        {"train-0.parquet": table(), "train-1.parquet": table(more=pa.array([1] * N))},
    ),
    shards(
        "shards-of-other-names",
        "T30",
        "shards whose class names differ",
        refuse("but train-1.parquet has others"),
        {"train-0.parquet": table(["a", "b"]), "train-1.parquet": table(["b", "a"])},
    ),
    shards(
        "shards-without-split",
        "T74",
        "a shard that is named after no split",
        usage("Expected the name of every shard to begin with"),
        {"train-0.parquet": table(), "more.parquet": table()},
    ),
    shards(
        "shards-for-evaluation-only",
        "T74",
        "no shard of split train",
        refuse("Expected a shard of split train"),
        {"test-0.parquet": table(), "val-0.parquet": table()},
    ),
    Case(
        "parquet-shard-is-a-link",
        "T12",
        "a shard that is a link to outside",
        refuse("Nothing to read in"),
        lambda root: ((root / "train.parquet").symlink_to(root.parent / CANARY / "train.parquet"), root)[1],
    ),
    Case(
        "parquet-folder-named-like-a-shard",
        "T12",
        "a folder called train.parquet",
        refuse("Nothing to read in"),
        lambda root: ((root / "train.parquet").mkdir(), root)[1],
    ),
]

CASES = [*TYPES, *LABELLED, *LIES, *SHARDS]
