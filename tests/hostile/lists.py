"""Hostile lists of files: paths that lead out, text that is no text, rows without sense, in CSV, JSON lines and parquet."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.case import Case, Expected, keep, quarantine, refuse, usage
from tests.hostile.parts import CANARY, encoded, write

__all__ = ["CASES", "ROWS"]

IMAGES = {f"images/{i}.png": encoded(i) for i in range(6)}
ROWS = [(path, ("cat", "dog")[i % 2]) for i, path in enumerate(IMAGES)]
IMAGES |= {"images/more.png": encoded(9)}
N = len(ROWS)


def as_csv(rows: Sequence[tuple[str, str]], end: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows([("path", "label"), *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


def as_json(rows: Sequence[tuple[str, Any]]) -> bytes:
    return "".join(json.dumps({"path": path, "label": label}) + "\n" for path, label in rows).encode()


def as_parquet(columns: dict[str, Any] | pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), buffer, **options)
    return buffer.getvalue()


def parquet_rows(rows: Sequence[tuple[str, str]]) -> bytes:
    return as_parquet({"path": [path for path, _ in rows], "label": [label for _, label in rows]})


WRITERS: dict[str, Callable[[Sequence[tuple[str, str]]], bytes]] = {"csv": as_csv, "jsonl": as_json, "parquet": parquet_rows}


def listed(id: str, threat: str, what: str, expected: Expected, data: Callable[[], bytes], name: str = "list.csv", **settings: Any) -> Case:
    """Good images beside a list; meca is pointed to the list."""

    def make(root: Path) -> Path:
        write(root, IMAGES)
        (root / name).write_bytes(data())
        return root / name

    return Case(id, threat, what, expected, make, {"format": "manifest"} | settings)


def leads(id: str, path: str, what: str, says: str, threat: str = "T31") -> list[Case]:
    """A row whose path leads elsewhere, in each of the three kinds of list."""
    return [
        listed(f"{kind}-{id}", threat, f"{what} ({kind})", refuse(says), lambda kind=kind: WRITERS[kind]([*ROWS, (path, "cat")]), f"list.{kind}")
        for kind in WRITERS
    ]


def leads_once(id: str, path: str, what: str, says: str, threat: str = "T31", kind: str = "csv") -> Case:
    return listed(f"{kind}-{id}", threat, what, refuse(says), lambda: WRITERS[kind]([*ROWS, (path, "cat")]), f"list.{kind}")


def missing(id: str, path: str, what: str) -> Case:
    """A path that is a plain name, though it looks like more: there is no such file."""
    return listed(f"path-{id}", "T31", what, quarantine(N, {path: "missing"}), lambda: as_csv([*ROWS, (path, "cat")]))


PATHS = [
    *leads("path-upwards", f"../{CANARY}/secret.png", "a path with ..", "leaves the folder"),
    *leads("path-absolute", "/etc/passwd", "an absolute path", "is absolute"),
    *leads("path-file-address", "file:///etc/passwd", "an address file://", "is an address"),
    leads_once("path-upwards-inside", f"images/../../{CANARY}/secret.png", "a path that goes in and out again", "leaves the folder"),
    leads_once("path-dummy", "dummy/../..", "the variant dummy/../.. of the advisory", "leaves the folder", kind="jsonl"),
    leads_once("path-local-address", "local://etc/passwd", "the variant local:// of the advisory", "is an address", kind="jsonl"),
    leads_once(
        "path-metadata-service", "http://169.254.169.254/latest/meta-data/", "the address of a cloud's metadata service", "is an address", "T33"
    ),
    leads_once("path-https", "https://evil.example/x.png", "an address in the net", "is an address", "T33", "parquet"),
    leads_once("path-bucket", "s3://bucket/x.png", "an address of a bucket", "is an address", "T33", "jsonl"),
    leads_once("path-data-address", "data:image/png;base64,iVBORw0KGgo=", "an address that holds its data", "is an address", "T33"),
    leads_once("path-chain", "zip://x.png::https://evil.example/x.zip", "a chain of addresses, as fsspec has them", "is an address", "T33"),
    leads_once("path-pipe", "pipe:cat /etc/passwd", "an address that some readers run in a shell", "is an address", "T05"),
    leads_once("path-share", "//host/share/x.png", "a path on another host", "is absolute"),
    leads_once("path-drive", "C:/Windows/x.png", "a path with a drive", "is an address or begins with a drive", "T10"),
    leads_once("path-backslash", "..\\secret.png", "a path with backslashes", "holds a backslash", "T10"),
    leads_once("path-nul", "images/0.png\0.txt", "a path with a NUL", "holds a NUL character", "T10", "jsonl"),
    leads_once("path-escape", "images/\x1b]0;owned\x07.png", "a path that names the terminal's window", "holds control characters", "T43"),
    leads_once("path-bidi", "images/\u202egnp.exe", "a path that turns the text around", "holds control characters", "T16", "jsonl"),
    leads_once("path-newline", "images/0\n.png", "a path of two lines", "holds control characters", "T43", "parquet"),
    leads_once("path-deep", "a/" * 33 + "x.png", "a path of 33 folders", "has more than 32 folders", "T17"),
    leads_once("path-long", "x" * 5000, "a path of 5,000 characters", "is too long", "T17"),
    leads_once("path-long-name", "é" * 128 + ".png", "a name of 260 bytes", "a name that is too long", "T17"),
    leads_once("path-of-the-folder", ".", "a path that is the folder itself", "names no file"),
    leads_once("path-of-the-list", "list.csv", "a path that is the list itself", "names the list itself"),
    leads_once("path-half-character", "images/\ud800.png", "half a character in a path", "holds half a character", "T32", "jsonl"),
    missing("home", "~/secret.png", "a path that a shell would take for the home"),
    missing("percent-encoded", "%2e%2e/secret.png", "a path that a browser would read as .."),
    missing("wide-dots", "\uff0e\uff0e/secret.png", "a path whose dots are wide ones"),
    missing("variable", "$HOME/secret.png", "a path with a variable"),
    missing("shell", "`touch RAN`.png", "a path that a shell would run"),
    missing("pattern", "images/*.png", "a path that is a pattern"),
]


def with_links(root: Path) -> Path:
    write(root, IMAGES)
    (root / "away").symlink_to(root.parent / CANARY)
    (root / "link.png").symlink_to(root.parent / CANARY / "secret.png")
    os.mkfifo(root / "pipe.png")
    names = ("away/secret.png", "link.png", "pipe.png", "images", "images/0.png/x.png", "gone.png")
    (root / "list.csv").write_bytes(as_csv([*ROWS, *((name, "cat") for name in names)]))
    return root / "list.csv"


LINKED = {
    "away/secret.png": "link",
    "link.png": "link",
    "pipe.png": "not-a-file",
    "images": "not-a-file",
    "images/0.png/x.png": "link",
    "gone.png": "missing",
}


def text(id: str, what: str, says: str, data: bytes, name: str = "list.csv", threat: str = "T32") -> Case:
    return listed(id, threat, what, refuse(says), lambda: data, name)


HEAD, BODY = b"path,label\n", as_csv(ROWS)
TEXTS = [
    text("csv-utf16", "UTF-16 with its mark", "holds the byte 0xff; save it as UTF-8", "path,label\nimages/0.png,cat\n".encode("utf-16")),
    text("csv-utf16-without-mark", "UTF-16 without its mark", "holds a NUL character", "path,label\nimages/0.png,cat\n".encode("utf-16-le")),
    text("csv-latin1", "a label in Latin-1", "holds the byte 0xe9; save it as UTF-8", BODY + "images/0.png,émeu\n".encode("latin-1")),
    text("csv-overlong-utf8", "a slash in two bytes", "holds the byte 0xc0", BODY + b"..\xc0\xafsecret.png,cat\n"),
    text("csv-nul", "a NUL in a row", "line 8 holds a NUL character", BODY + b"images/0.png\0,cat\n"),
    text("csv-quote-never-closed", "a quote that is never closed", "is no row of CSV", BODY + b'"images/0.png,cat\n' + b"x,y\n" * 40_000),
    text("csv-quote-inside", "text behind a closing quote", "is no row of CSV", BODY + b'"images/0.png"x,cat\n'),
    text("csv-line-without-end", "a line of more than 1 MiB", "line 8 of list.csv is longer", BODY + b"x" * (2**20 + 1)),
    text("csv-field-without-end", "a field of 200,000 characters", "is no row of CSV", BODY + b"x" * 200_000 + b",cat\n"),
    text("csv-header-without-end", "a header of 2 MiB", "line 1 of list.csv is longer", b"path,label," + b"x" * 2**21 + b"\n"),
    text("csv-more-fields", "a row with a field more", "Expected 2 fields in row 7 of list.csv, got 3", BODY + b"images/0.png,cat,dog\n"),
    text("csv-fewer-fields", "a row with a field less", "Expected 2 fields in row 7 of list.csv, got 1", BODY + b"images/0.png\n"),
    text("csv-doubled-column", "two columns `label`", "Expected columns of different names", b"path,label,label\nimages/0.png,cat,dog\n"),
    text("csv-without-label", "no column of labels", "Expected a column 'label'", b"path,kind\nimages/0.png,cat\n"),
    text("csv-header-only", "a header and no row", "Expected training samples in the source, found none", HEAD),
    text("csv-empty", "an empty file", "Expected a column 'file_name'", b""),
    text("csv-empty-label", "a row without a label", "Expected a label (text or a whole number) in row 7", BODY + b"images/0.png,\n", threat="T30"),
    text("csv-empty-path", "a row without a path", "Expected a path in row 7", BODY + b",cat\n", threat="T30"),
    text(
        "csv-label-is-a-caption",
        "labels of 300 characters",
        "found a label of 300 characters",
        BODY + b"images/0.png," + b"x" * 300 + b"\n",
        threat="T30",
    ),
    listed(
        "csv-classes-without-end",
        "T30",
        "100,001 classes",
        refuse("found 100001 classes"),
        lambda: HEAD + b"".join(b"images/0.png,c%d\n" % i for i in range(100_001)),
    ),
    listed("csv-byte-order-mark", "T32", "a byte order mark and line ends of Windows", keep(N), lambda: b"\xef\xbb\xbf" + as_csv(ROWS, "\r\n")),
    listed("csv-byte-order-mark-twice", "T32", "two byte order marks", refuse("Expected a column 'file_name'"), lambda: b"\xef\xbb\xbf" * 2 + BODY),
    listed(
        "csv-split-unknown", "T30", "a split that there is not", refuse("got 'dev' in row 1"), lambda: b"path,label,split\nimages/0.png,cat,dev\n"
    ),
    listed(
        "csv-two-labels",
        "T30",
        "two columns that could be the label",
        usage("could both be the label"),
        lambda: b"path,label,class\nimages/0.png,cat,dog\n",
    ),
    listed(
        "csv-two-paths",
        "T30",
        "two columns that could be the path",
        usage("could both be the path"),
        lambda: b"path,filename,label\nimages/0.png,x,dog\n",
    ),
    listed(
        "csv-one-file-two-labels",
        "T14",
        "one file in two rows, under two labels",
        quarantine(N - 1, {"images/0.png": "listed-twice", "images/0.png#2": "listed-twice"}),
        lambda: as_csv([*ROWS, ("images/0.png", "dog")]),
    ),
    listed(
        "csv-one-file-two-spellings",
        "T14",
        "one file as images/0.png and as ./images//0.png",
        quarantine(N - 1, {"images/0.png": "listed-twice", "images/0.png#2": "listed-twice"}),
        lambda: as_csv([*ROWS, ("./images//0.png", "cat")]),
    ),
    Case(
        "csv-counted-name",
        "T14",
        "a file whose name is that of the second mention of another one",
        refuse("a source name of its own"),
        lambda root: (
            write(root, IMAGES | {"images/0.png#2": encoded(8), "list.csv": as_csv([*ROWS, ("images/0.png", "cat"), ("images/0.png#2", "cat")])})
            / "list.csv"
        ),
        {"format": "manifest"},
    ),
    Case(
        "list-of-links",
        "T12",
        "rows that name links, a pipe, a folder, and what lies behind them",
        quarantine(N, LINKED),
        with_links,
        {"format": "manifest"},
    ),
    Case(
        "list-with-unknown-test-class",
        "T30",
        "a class of test.csv that train.csv does not have",
        refuse("'yak' of 'images/1.png' is not among them"),
        lambda root: write(root, IMAGES | {"train.csv": as_csv([ROWS[0], ROWS[3]]), "test.csv": as_csv([("images/1.png", "yak")])}),
        {"format": "manifest"},
    ),
    Case(
        "two-lists",
        "T30",
        "two lists side by side",
        usage("which one counts? Point to that file"),
        lambda root: write(root, IMAGES | {"a.csv": BODY, "b.csv": BODY}),
    ),
    Case(
        "two-metadata-files",
        "T30",
        "metadata.csv beside metadata.jsonl",
        usage("which one counts? Move the other one away"),
        lambda root: write(
            root,
            {name.removeprefix("images/"): data for name, data in IMAGES.items()}
            | {"metadata.csv": b"file_name,label\n0.png,cat\n", "metadata.jsonl": b'{"file_name": "0.png", "label": "dog"}\n'},
        ),
    ),
    Case(
        "metadata-is-a-link",
        "T12",
        "a metadata.csv that is a link",
        refuse("Nothing to read in"),
        lambda root: (write(root, {"0.png": encoded(0)}), (root / "metadata.csv").symlink_to(root.parent / CANARY / "secret.csv"), root)[2],
    ),
    Case(
        "metadata-upwards",
        "T31",
        "a metadata folder whose file_name climbs out",
        refuse("leaves the folder"),
        lambda root: write(root, {"0.png": encoded(0), "metadata.csv": f"file_name,label\n0.png,cat\n../{CANARY}/secret.png,dog\n".encode()}),
    ),
]


def line(id: str, what: str, says: str, data: str | bytes, threat: str = "T30") -> Case:
    """A last line of JSON lines."""
    more = data if isinstance(data, bytes) else data.encode()
    return listed(f"jsonl-{id}", threat, what, refuse(says), lambda: as_json(ROWS) + more + b"\n", "list.jsonl")


def labelled(label: str) -> str:
    return f'{{"path": "images/0.png", "label": {label}}}'


JSON = [
    line("depth-bomb", "a label of 100,000 lists inside each other", "nested too deeply", labelled("[" * 100_000), "T06"),
    line("object-bomb", "100,000 objects inside each other", "nested too deeply", '{"a":' * 100_000, "T06"),
    line("many-keys", "an object of 110,000 keys", "Expected a path in row 7", "{" + ",".join(f'"{i}":1' for i in range(100_000)) + "}", "T06"),
    line("doubled-key", "a key twice", "the key 'label' twice", '{"path": "images/0.png", "label": "cat", "label": "dog"}', "T35"),
    line("nan", "a label NaN", "NaN is no JSON", labelled("NaN")),
    line("infinity", "a label -Infinity", "-Infinity is no JSON", labelled("-Infinity")),
    line("beyond-double", "a label 1e999", "got inf", labelled("1e999")),
    line("number-of-5000-digits", "a label of 5,000 digits", "is no JSON object", labelled("9" * 5000), "T06"),
    line("number-of-400-digits", "a label of 400 digits", "found a label of 400 characters", labelled("9" * 400)),
    line("half-character-label", "half a character as label", "half a character", labelled('"\\ud800"'), "T32"),
    line("label-true", "a label true", "got True", labelled("true")),
    line("label-null", "a label null", "got none", labelled("null")),
    line("label-float", "a label 1.5", "got 1.5", labelled("1.5")),
    line("label-list", "a list of labels", "got ['cat', 'dog']", labelled('["cat", "dog"]')),
    line("label-object", "an object as label", "got {'$ref': '/etc/passwd'}", labelled('{"$ref": "/etc/passwd"}')),
    line("label-blank", "a label of blanks", "Expected a label", labelled('"  "')),
    line("path-list", "a list of paths", "Expected a path in row 7", '{"path": ["images/0.png"], "label": "cat"}'),
    line("array", "a line that is no object", "is no JSON object (no object)", "[1, 2]"),
    line("two-objects", "two objects in a line", "more behind the object", labelled('"cat"') + " {}"),
    line("single-quotes", "an object as Python writes it", "is no JSON object", "{'path': 'images/0.png', 'label': 'cat'}"),
    line("cut", "a line that is cut", "is no JSON object", '{"path": "images/0.png", "lab'),
    line("not-utf8", "a byte that is no UTF-8", "holds the byte 0xff", b'{"path": "images/0.png", "label": "\xff"}', "T32"),
    listed(
        "jsonl-label-negative",
        "T30",
        "a label -1: a class of that name",
        keep(N + 1, classes=("-1", "cat", "dog")),
        lambda: as_json([*ROWS, ("images/more.png", -1)]),
        "list.jsonl",
    ),
]


def broken_footer() -> bytes:
    data = bytearray(parquet_rows(ROWS))
    size = int.from_bytes(data[-8:-4], "little")
    data[-8 - size : -8] = b"\xff" * size
    return bytes(data)


def long_paths() -> bytes:
    """Return a list of 300,000 rows with one path of 1 MiB: a few kilobytes that unpack to 300 GB."""
    path = pa.DictionaryArray.from_arrays(pa.array([0] * 300_000, pa.int32()), pa.array(["x" * 2**20]))
    return as_parquet({"path": path, "label": pa.array([0] * 300_000)}, compression="zstd")


TABLES = [
    listed(
        "list-parquet-footer-broken",
        "T03",
        "a parquet list whose footer is noise",
        refuse("is not a readable parquet file"),
        broken_footer,
        "list.parquet",
    ),
    listed(
        "list-parquet-level-lies",
        "T03",
        "a parquet list whose footer and statistics disagree: asked the wrong way, Arrow ends the process",
        refuse("is damaged"),
        lambda: parquet_rows(ROWS).replace(b"%\x02\x18\x04path", b"%\x00\x18\x04path"),
        "list.parquet",
    ),
    listed(
        "list-parquet-dictionary-bomb",
        "T13",
        "a parquet list of 300,000 rows that share one path of 1 MiB",
        refuse("unpack"),
        long_paths,
        "list.parquet",
    ),
    listed(
        "list-parquet-doubled-column",
        "T30",
        "a parquet list with two columns `path`",
        refuse("Expected columns of different names"),
        lambda: as_parquet(
            pa.Table.from_arrays([pa.array(["images/0.png"]), pa.array(["images/1.png"]), pa.array(["cat"])], names=["path", "path", "label"])
        ),
        "list.parquet",
    ),
    listed(
        "list-parquet-binary-label",
        "T30",
        "labels that are bytes",
        refuse("Expected a label"),
        lambda: as_parquet({"path": [path for path, _ in ROWS], "label": [label.encode() for _, label in ROWS]}),
        "list.parquet",
    ),
    listed(
        "list-parquet-nested-label",
        "T30",
        "labels that are lists",
        refuse("Expected a label"),
        lambda: as_parquet({"path": [path for path, _ in ROWS], "label": [[label] for _, label in ROWS]}),
        "list.parquet",
    ),
    listed(
        "list-parquet-text-not-utf8",
        "T32",
        "a label that says it is UTF-8 and is not",
        refuse("Expected list.parquet to be UTF-8"),
        lambda: as_parquet({"path": [path for path, _ in ROWS], "label": pa.array([b"cat"] * 5 + [b"\xff"]).view(pa.string())}),
        "list.parquet",
    ),
    listed(
        "list-parquet-no-path",
        "T30",
        "a row whose path is null",
        refuse("Expected a path in row 2"),
        lambda: as_parquet({"path": ["images/0.png", None], "label": ["cat", "dog"]}),
        "list.parquet",
    ),
]

CASES = [*PATHS, *TEXTS, *JSON, *TABLES]
