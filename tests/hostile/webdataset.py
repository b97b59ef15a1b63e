"""Hostile WebDataset shards: members that other readers run, labels without sense, names that lead out, keys that come twice."""

import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.hostile.archives import member, tar_bytes
from tests.hostile.case import Case, Expected, keep, quarantine, refuse, usage
from tests.hostile.parts import CANARY, encoded, write

__all__ = ["CASES"]

N = 6
NAME = "train-000.tar"
ENCODED = encoded(99)
LOADED = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch RAN\x85R."


def shard(kind: str = "cls", start: int = 0) -> dict[str, bytes]:
    """Return the members of a good shard."""
    found: dict[str, bytes] = {}
    for i in range(start, start + N):
        found[f"{i:03d}.png"] = encoded(i)
        found[f"{i:03d}.{kind}"] = b"%d" % (i % 2) if kind == "cls" else json.dumps({"label": i % 2}).encode()
    return found


def web(id: str, threat: str, what: str, expected: Expected, more: Mapping[str, bytes] | Callable[[], bytes], **settings: Any) -> Case:
    """A good shard with further members, or a shard of given bytes."""
    return Case(
        f"webdataset-{id}",
        threat,
        what,
        expected,
        lambda root: write(root, {NAME: more() if callable(more) else tar_bytes(shard() | dict(more))}) / NAME,
        {"format": "webdataset"} | settings,
    )


def loaded(suffix: str, what: str) -> Case:
    """A sample with a member that some reader would unpickle, import or run."""
    return web(
        f"member-{suffix.replace('.', '-')}",
        "T05",
        what,
        quarantine(N, {f"{NAME}#x": f"member:.{suffix}"}),
        {"x.png": ENCODED, "x.cls": b"0", f"x.{suffix}": LOADED},
    )


def labelled(id: str, what: str, says: str, label: bytes, threat: str = "T30", kind: str = "cls") -> Case:
    return web(id, threat, what, refuse(says), {"x.png": ENCODED, f"x.{kind}": label})


MEMBERS = [
    loaded("pkl", "a pickle beside the image"),
    loaded("pyd", "a pickle under the name .pyd"),
    loaded("pickle", "a pickle under the name .pickle"),
    loaded("pth", "torch weights beside the image"),
    loaded("pt", "torch weights under the name .pt"),
    loaded("npy", "an array beside the image"),
    loaded("npz", "packed arrays beside the image"),
    loaded("ten", "tensors beside the image"),
    loaded("msgpack", "a message pack beside the image"),
    loaded("mp4", "a video beside the image"),
    loaded("py", "a program beside the image"),
    loaded("pkl.gz", "a packed pickle beside the image"),
    web("pipe-name", "T05", "a member called pipe:touch RAN", refuse("is an address"), {"pipe:touch RAN.png": ENCODED}),
    web("address-name", "T33", "a member called https://evil.example/x.png", refuse("is an address"), {"https://evil.example/x.png": ENCODED}),
    web(
        "name-upwards",
        "T10",
        "a member whose name climbs out",
        refuse("leaves the folder"),
        {f"../{CANARY}/x.png": ENCODED, f"../{CANARY}/x.cls": b"0"},
    ),
    web("name-absolute", "T10", "a member with an absolute name", refuse("is absolute"), {"/etc/x.png": ENCODED}),
    web("name-escape", "T43", "a member whose name colours the terminal", refuse("holds control characters"), {"\x1b[31mx.png": ENCODED}),
    web(
        "name-not-utf8",
        "T16",
        "a key that is no UTF-8",
        quarantine(N, {f"{NAME}#\\xff": "name-not-utf8"}),
        lambda: tar_bytes(
            [*(member(*item) for item in shard().items()), member("\udcff.png", ENCODED), member("\udcff.cls", b"0")], tarfile.GNU_FORMAT
        ),
    ),
    web(
        "link",
        "T11",
        "an image that is a link",
        quarantine(N, {f"{NAME}#x": "link"}),
        lambda: tar_bytes(
            [*(member(*item) for item in shard().items()), member("x.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), member("x.cls", b"0")]
        ),
    ),
    web(
        "device",
        "T11",
        "an image that is a device",
        quarantine(N, {f"{NAME}#x": "not-a-file"}),
        lambda: tar_bytes([*(member(*item) for item in shard().items()), member("x.png", type=tarfile.CHRTYPE), member("x.cls", b"0")]),
    ),
    web(
        "key-twice",
        "T14",
        "a key that comes back later",
        quarantine(N - 1, {f"{NAME}#000": "name-twice", f"{NAME}#000#2": "name-twice"}),
        lambda: tar_bytes([*(member(*item) for item in shard().items()), member("000.png", ENCODED), member("000.cls", b"1")]),
    ),
    web(
        "extension-in-two-cases",
        "T14",
        "x.png and x.PNG: two images in a sample",
        quarantine(N, {f"{NAME}#x": "name-twice"}),
        {"x.png": ENCODED, "x.PNG": encoded(98), "x.cls": b"0"},
    ),
    web(
        "two-images",
        "T14",
        "a PNG and a JPEG in one sample",
        quarantine(N, {f"{NAME}#x": "several-images"}),
        {"x.png": ENCODED, "x.jpg": encoded(1, "JPEG"), "x.cls": b"0"},
    ),
    web("no-image", "T30", "a label without an image", quarantine(N, {f"{NAME}#x": "no-image"}), {"x.cls": b"0"}),
    web("image-cut", "T21", "half an image", quarantine(N, {f"{NAME}#x": "truncated"}), {"x.png": ENCODED[:100], "x.cls": b"0"}),
    web(
        "key-hidden",
        "T09",
        "members whose names begin with a dot",
        keep(N, odd=(f"{NAME}#.x.png", f"{NAME}#.env")),
        {".x.png": ENCODED, ".env": b"X=1"},
    ),
    web("label-without-json-members", "T30", "text members around the samples", keep(N, odd=(f"{NAME}#README",)), {"README.txt": b"hello"}),
]

LABELS = [
    web("label-missing", "T30", "an image without a label", refuse("Expected a label for the image"), {"x.png": ENCODED}),
    labelled("label-empty", "an empty label", "Expected one line of UTF-8 text as label", b""),
    labelled("label-of-two-lines", "a label of two lines", "Expected one line of UTF-8 text as label", b"0\nmeca: all is well"),
    labelled("label-not-utf8", "a label that is no UTF-8", "Expected one line of UTF-8 text as label", b"\xff\xfe", "T32"),
    labelled("label-nul", "a label with a NUL", "Expected one line of UTF-8 text as label", b"0\0", "T32"),
    labelled("label-is-a-caption", "a label of 300 characters", "found a label of 300 characters", b"x" * 300),
    labelled("label-without-end", "a label of 2 MiB", "of at most 1048576 bytes", b"x" * 2**21, "T13"),
    labelled("label-float", "a label 1.5 in JSON", "Expected a label for the image", b'{"label": 1.5}', kind="json"),
    labelled("label-true", "a label true in JSON", "Expected a label for the image", b'{"label": true}', kind="json"),
    labelled("label-object", "an object as label in JSON", "Expected a label for the image", b'{"label": {"$ref": "x"}}', kind="json"),
    labelled("label-half-character", "half a character as label in JSON", "half a character", b'{"label": "\\ud800"}', "T32", "json"),
    labelled("json-depth-bomb", "JSON of 100,000 lists inside each other", "is no JSON object", b'{"label": ' + b"[" * 100_000, "T06", "json"),
    labelled(
        "json-many-keys",
        "JSON of 100,000 keys",
        "Expected a label for the image",
        b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}",
        "T06",
        "json",
    ),
    labelled("json-doubled-key", "JSON with a key twice", "the key 'label' twice", b'{"label": 0, "label": 1}', "T35", "json"),
    labelled("json-nan", "JSON with NaN", "NaN is no JSON", b'{"label": NaN}', "T06", "json"),
    labelled(
        "json-number-of-5000-digits", "JSON with a number of 5,000 digits", "is no JSON object", b'{"label": ' + b"9" * 5000 + b"}", "T06", "json"
    ),
    labelled("json-not-utf8", "JSON that is no UTF-8", "is no JSON object", b'{"label": "\xff"}', "T32", "json"),
    web(
        "labels-disagree",
        "T30",
        "a label in .cls and another one in .json",
        usage("has the label '0' in cls and '1' in json"),
        {"x.png": ENCODED, "x.cls": b"0", "x.json": b'{"label": 1}'},
    ),
    web(
        "labels-in-two-keys",
        "T30",
        "two keys of JSON that could be the label",
        usage("could all be the label"),
        {"x.png": ENCODED, "x.json": b'{"label": 0, "class": 1}'},
    ),
]


def shards(id: str, threat: str, what: str, expected: Expected, make: Callable[[Path], Path]) -> Case:
    return Case(f"webdataset-{id}", threat, what, expected, make, {"format": "webdataset"})


SHARDS = [
    shards(
        "pattern-backwards",
        "T17",
        "a range of shards that falls",
        refuse("Expected one rising range"),
        lambda root: write(root, {NAME: tar_bytes(shard())}) / "train-{009..000}.tar",
    ),
    shards(
        "pattern-without-end",
        "T17",
        "a range of a billion shards",
        refuse("Expected one rising range"),
        lambda root: write(root, {NAME: tar_bytes(shard())}) / "train-{0..999999999}.tar",
    ),
    shards(
        "pattern-beyond",
        "T30",
        "a range of which one shard is missing",
        refuse("Expected the shard train-001.tar, found none"),
        lambda root: write(root, {NAME: tar_bytes(shard())}) / "train-{000..001}.tar",
    ),
    shards(
        "pattern-to-a-link",
        "T12",
        "a range of which one shard is a link",
        refuse("Expected the shard train-001.tar, found none"),
        lambda root: (
            write(root, {NAME: tar_bytes(shard())}),
            (root / "train-001.tar").symlink_to(root.parent / CANARY / "x.tar"),
            root / "train-{000..001}.tar",
        )[2],
    ),
    shards(
        "shard-with-a-mark",
        "T30",
        "a shard whose name holds the mark of the sample names",
        refuse("ordinary names without #"),
        lambda root: write(root, {"train#0.tar": tar_bytes(shard())}),
    ),
    shards(
        "shard-with-an-escape",
        "T43",
        "a shard whose name colours the terminal",
        refuse("ordinary names without #"),
        lambda root: write(root, {"\x1b[31m.tar": tar_bytes(shard())}),
    ),
    shards(
        "test-class-unknown",
        "T30",
        "a label of val-000.tar that train-000.tar does not have",
        refuse("'9' of 'val-000.tar#x' is not among them"),
        lambda root: write(root, {NAME: tar_bytes(shard()), "val-000.tar": tar_bytes({"x.png": ENCODED, "x.cls": b"9"})}),
    ),
]

CASES = [*MEMBERS, *LABELS, *SHARDS]
