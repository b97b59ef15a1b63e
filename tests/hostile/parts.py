"""What hostile sets are built of: a good set, and the pieces of formats that no library writes wrongly on purpose."""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tests.making import encode, pixels

__all__ = ["CANARY", "GOOD", "chunk", "encoded", "folder", "good", "png", "saved", "write"]

CLASSES = ("cat", "dog")
GOOD = 6  # samples of a good set
CANARY = "canary"  # a folder beside the set that no path may lead to


def encoded(seed: int = 0, kind: str = "PNG", **options: Any) -> bytes:
    return encode(pixels(seed, 9, 12), kind, **options)


def good(prefix: str = "", suffix: str = "png") -> dict[str, bytes]:
    """Return `GOOD` small images of two classes by name."""
    return {f"{prefix}{name}/{i}.{suffix}": encoded(10 * c + i) for c, name in enumerate(CLASSES) for i in range(3)}


def write(root: Path, content: Mapping[str, bytes]) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def folder(root: Path, more: Mapping[str, bytes] | None = None) -> Path:
    """Write a good image folder, and more files."""
    return write(root, good() | dict(more or {}))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes | None = None, before: bytes = b"", after: bytes = b"", interlace: int = 0
) -> bytes:
    """Return a PNG: what its header says, and rows that need not fit; zeros that do where none are given."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    if rows is None:
        rows = bytes(height * (1 + -(-width * channels * depth // 8)))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(rows, 9)) + after + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
