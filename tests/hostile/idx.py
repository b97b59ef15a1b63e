"""Hostile idx files: headers that lie about size, type and number, gzip streams that are cut or unpack to too much."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import Case, Expected, keep, refuse
from tests.hostile.parts import CANARY, write
from tests.making import pixels

__all__ = ["CASES"]

N = 6
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(*shape: int, data: bytes | None = None, magic: bytes | None = None) -> bytes:
    size = 1
    for side in shape:
        size *= side
    content = pixels(1, 1, size, 1).tobytes() if data is None else data
    return (magic or bytes([0, 0, 8, len(shape)])) + struct.pack(f">{len(shape)}I", *shape) + content


GOOD = {IMAGES: idx(N, 5, 4), LABELS: idx(N, data=bytes(i % 3 for i in range(N)))}


def idx_files(id: str, threat: str, what: str, expected: Expected, **files: bytes | None) -> Case:
    """Good files of which some are replaced (`images`, `labels`), or taken away (None)."""
    given = {IMAGES: files.get("images", GOOD[IMAGES]), LABELS: files.get("labels", GOOD[LABELS])}
    return Case(
        f"idx-{id}", threat, what, expected, lambda root: write(root, {name: data for name, data in given.items() if data is not None}), {"size": 0}
    )


def packed(id: str, threat: str, what: str, expected: Expected, images: Callable[[], bytes]) -> Case:
    """Good labels, and images that are made when the case is: a bomb takes a while."""
    return Case(
        f"idx-gz-{id}",
        threat,
        what,
        expected,
        lambda root: write(root, {f"{IMAGES}.gz": images(), f"{LABELS}.gz": gzip.compress(GOOD[LABELS], mtime=0)}),
        {"size": 0},
    )


def linked(root: Path) -> Path:
    write(root, {LABELS: GOOD[LABELS]})
    (root / IMAGES).symlink_to(root.parent / CANARY / IMAGES)
    return root


CASES = [
    idx_files(
        "size-beyond-the-file",
        "T13",
        "a header of 2^31 images in 140 bytes",
        refuse("promises the shape"),
        images=idx(2**31, 2**15, 2**15, data=bytes(120)),
    ),
    idx_files(
        "size-that-wraps", "T13", "a header whose product is 0 in 64 bits", refuse("promises the shape"), images=idx(2**31, 2**31, 4, data=bytes(120))
    ),
    idx_files("no-images", "T29", "a header of 0 images", refuse("promises the shape"), images=idx(0, 5, 4, data=b"")),
    idx_files("no-pixels", "T29", "images of 0 x 4 pixels", refuse("promises the shape"), images=idx(N, 0, 4, data=b"")),
    idx_files("too-wide", "T29", "images of 1 x 1,200 pixels", refuse("at most 1000 times as long as wide"), images=idx(N, 1, 1200)),
    idx_files("cut", "T21", "a file that lacks a byte", refuse("Expected 120 bytes after the header"), images=GOOD[IMAGES][:-1]),
    idx_files("more", "T13", "a file with a byte too many", refuse("found more"), images=GOOD[IMAGES] + b"\0"),
    idx_files("empty", "T21", "an empty file", refuse("got nothing"), images=b""),
    idx_files("header-only", "T21", "the first 10 bytes", refuse("to begin as an idx file"), images=GOOD[IMAGES][:10]),
    idx_files("floats", "T28", "a header that says floats", refuse("to begin as an idx file of bytes"), images=idx(N, 5, 4, magic=b"\0\0\x0d\x03")),
    idx_files("doubles", "T28", "a header that says doubles", refuse("to begin as an idx file of bytes"), images=idx(N, 5, 4, magic=b"\0\0\x0e\x03")),
    idx_files(
        "two-dimensions", "T28", "a header of two dimensions", refuse("to begin as an idx file of bytes"), images=idx(N, 20, magic=b"\0\0\x08\x02")
    ),
    idx_files(
        "255-dimensions", "T28", "a header of 255 dimensions", refuse("to begin as an idx file of bytes"), images=idx(N, 5, 4, magic=b"\0\0\x08\xff")
    ),
    idx_files("labels-too-few", "T30", "fewer labels than images", refuse("Expected as many labels as images, got 5"), labels=idx(5, data=bytes(5))),
    idx_files(
        "labels-with-a-gap", "T30", "a label 255 and none between", refuse("has no training sample"), labels=idx(N, data=bytes([0, 1, 2, 0, 1, 255]))
    ),
    idx_files(
        "labels-are-images",
        "T30",
        "images in the place of the labels",
        refuse("to begin as an idx file of bytes with 1 dimension"),
        labels=GOOD[IMAGES],
    ),
    idx_files("labels-missing", "T30", "no labels", refuse("found only one of them"), labels=None),
    idx_files("no-idx", "T08", "a PNG in the place of the images", refuse("to begin as an idx file"), images=b"\x89PNG\r\n\x1a\n" + bytes(50)),
    Case(
        "idx-link", "T12", "images that are a link to outside", refuse("Expected train-images-idx3-ubyte to be a regular file"), linked, {"size": 0}
    ),
    packed("cut", "T21", "a gzip stream that is cut", refuse("is damaged"), lambda: gzip.compress(GOOD[IMAGES], mtime=0)[:-12]),
    packed(
        "wrong-checksum",
        "T13",
        "a gzip stream whose checksum does not fit",
        refuse("is damaged"),
        lambda: gzip.compress(GOOD[IMAGES], mtime=0)[:-8] + bytes(8),
    ),
    packed("no-gzip", "T08", "a plain file called .gz", refuse("is damaged"), lambda: GOOD[IMAGES]),
    packed(
        "bomb-behind-the-header",
        "T13",
        "a small header and 100 MB behind it",
        refuse("found more"),
        lambda: gzip.compress(GOOD[IMAGES] + bytes(100 * 2**20), 9, mtime=0),
    ),
    packed(
        "promises-more-than-gzip-can",
        "T13",
        "a header of 1 GB in 40 bytes",
        refuse("promises the shape"),
        lambda: gzip.compress(idx(2**10, 2**10, 2**10, data=b""), mtime=0),
    ),
    packed(
        "too-large",
        "T20",
        "one image of 60 million pixels in 60 kB",
        refuse("at most 50000000 pixels"),
        lambda: gzip.compress(idx(1, 7746, 7746, data=bytes(7746 * 7746)), 9, mtime=0),
    ),
    packed(
        "two-streams",
        "T13",
        "two gzip streams, one behind the other: read as one",
        keep(N),
        lambda: gzip.compress(GOOD[IMAGES][:50], mtime=0) + gzip.compress(GOOD[IMAGES][50:], mtime=0),
    ),
]
