"""Pixels in the form of a file: what a planted image is encoded like, so that its form does not tell it from its neighbours.

The headers are read here, as bytes; nothing is decoded but what this module has encoded itself. Metadata goes over as it came: EXIF
with its orientation, colour profile, text. So pixels are turned back before they are encoded, and whoever obeys the tag sees them
upright. A thumbnail inside of EXIF stays that of the clean image.
"""

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meca.data.decoder.decode import Decoded
from meca.data.store import png_bytes

__all__ = ["GREY", "Written", "in_form_of", "lossless"]

Pixels = NDArray[np.uint8]

GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")  # modes without colour
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
PALETTE = 256
BACK = {  # what undoes an orientation of EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip
SOF, DHT, DQT, DRI, SOS, COM, APP0, APP14 = (0xC0, 0xC1, 0xC2), 0xC4, 0xDB, 0xDD, 0xDA, 0xFE, 0xE0, 0xEE
BARE = (0x01, *range(0xD0, 0xD9))  # markers without a length
RGB_IDS = (82, 71, 66)  # components that are called R, G, B
SUBSAMPLING: dict[tuple[tuple[int, int], ...], int] = {((1, 1), (1, 1), (1, 1)): 0, ((2, 1), (1, 1), (1, 1)): 1, ((2, 2), (1, 1), (1, 1)): 2}
ZIGZAG = sorted(range(64), key=lambda at: (s := at // 8 + at % 8, at // 8 if s % 2 else at % 8))
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
NOT_COPIED = (b"tRNS", b"hIST", b"sBIT", b"acTL", b"fcTL", b"fdAT")  # chunks that speak of pixels as they were
LEVELS = (1, 4, 6, 9)  # of zlib, by what its header says of the level


@dataclass(frozen=True)
class Written:
    """An image as it goes out."""

    data: bytes
    kept: bool  # it has the form that it came in, as far as this module knows forms
    harm: float  # mean distance of what a reader sees from what was planted, in grey levels
    worst: int  # the largest, of one pixel and channel


def lossless(pixels: Pixels) -> Written:
    """Return uint8 [h w c] pixels as a PNG without metadata: every reader sees what was planted, whatever it does with EXIF."""
    return Written(png_bytes(pixels), False, 0.0, 0)


def in_form_of(pixels: Pixels, original: bytes, image: Decoded) -> Written:
    """Return pixels encoded like another image: format, mode, metadata, and what its format has beside these.

    * JPEG: quantisation tables, subsampling, progressive or not, optimised Huffman tables or not, restart intervals.
    * PNG: depth, palette or not, strength of the compression. WebP: lossless, or lossy at about the size that the file had.

    Args:
        pixels: uint8 [h w c], upright, with 1 channel where the mode has no colour (`GREY`), else 3.
        original: The file that the pixels were made of.
        image: What its decoding came to.
    """
    turned = next((int(note[-1]) for note in image.notes if note.startswith("orientation:")), 1)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture = picture.transpose(BACK[turned]) if turned in BACK else picture
    data, seen, kept = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "BMP": _bmp}[image.format](picture, original, image.mode)
    away = np.abs(np.asarray(seen.convert(picture.mode)).astype(np.int16) - np.asarray(picture).astype(np.int16))
    return Written(data, kept and not any(note.endswith(";16B") for note in image.notes), float(away.mean()), int(away.max()))


Form = tuple[bytes, Image.Image, bool]  # the file, what a reader sees of it, whether the form is that of the original


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _seen(data: bytes) -> Image.Image:
    """Return what a reader sees of a file that was encoded here, without anything of the original in it."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.copy()


# JPEG


@dataclass(frozen=True)
class _Frame:
    """What the headers of a JPEG say."""

    kind: int  # marker of its frame
    tables: tuple[tuple[int, ...], ...]  # of each component, 64 steps in the order of the rows
    sampling: tuple[tuple[int, int], ...]  # of each component, across and down
    restart: int  # blocks between two marks
    huffman: frozenset[bytes]
    is_rgb: bool  # its components are R, G, B and not luma and chroma


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and whole bytes of each segment before the first scan."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if marker in (0xFF, 0x00) or marker in BARE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == SOS:
            return
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at : at + 2 + max(size, 2)]
        at += 2 + max(size, 2)


def _frame(data: bytes) -> _Frame:
    steps: dict[int, tuple[int, ...]] = {}
    kind, restart, components, huffman = 0, 0, list[tuple[int, int, int]](), set[bytes]()
    jfif, adobe = False, -1
    for marker, segment in _segments(data):
        body = segment[4:]
        if marker == DQT:
            steps |= _steps(body)
        elif marker in SOF and len(body) >= 6:
            kind = marker
            components = [(body[at], body[at + 1], body[at + 2]) for at in range(6, min(len(body) - 2, 6 + 3 * body[5]), 3)]
        elif marker == DRI and len(body) >= 2:
            restart = int.from_bytes(body[:2], "big")
        elif marker == DHT:
            huffman.add(body)
        elif marker == APP0:
            jfif |= body.startswith(b"JFIF\0")
        elif marker == APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
    # As libjpeg decides it.
    is_rgb = len(components) == 3 and not jfif and (adobe == 0 if adobe >= 0 else tuple(c[0] for c in components) == RGB_IDS)
    tables = tuple(steps.get(table, (1,) * 64) for _, _, table in components)
    return _Frame(kind, tables, tuple((factors >> 4, factors & 15) for _, factors, _ in components), restart, frozenset(huffman), is_rgb)


def _steps(body: bytes) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    at = 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        size = 128 if wide else 64
        part = body[at + 1 : at + 1 + size]
        if len(part) < size:
            break
        values = struct.unpack(">64H" if wide else "64B", part)
        rows = [0] * 64
        for place, value in zip(ZIGZAG, values, strict=True):
            rows[place] = value
        found[number] = tuple(rows)
        at += 1 + size
    return found


@cache
def _usual_huffman() -> frozenset[bytes]:
    """Return the tables of every JPEG that is not optimised."""
    return _split(_frame(_saved(Image.new("RGB", (16, 16)), "JPEG")).huffman)


def _split(tables: frozenset[bytes]) -> frozenset[bytes]:
    """Return tables one by one: a segment may hold several."""
    found: set[bytes] = set()
    for body in tables:
        at = 0
        while at + 17 <= len(body):
            size = 17 + sum(body[at + 1 : at + 17])
            found.add(body[at : at + size])
            at += size
    return frozenset(found)


def _jpeg(picture: Image.Image, original: bytes, mode: str) -> Form:
    frame = _frame(original)
    tables = frame.tables[: 1 if len(set(frame.tables)) == 1 else 2 if len(set(frame.tables[1:])) == 1 else 4]
    options: dict[str, Any] = {"qtables": [list(table) for table in tables] or None, "subsampling": SUBSAMPLING.get(frame.sampling, -1)}
    options |= {"restart_marker_blocks": frame.restart, "keep_rgb": frame.is_rgb, "progressive": frame.kind == SOF[2]}
    options["optimize"] = not _split(frame.huffman) <= _usual_huffman()
    if mode == "CMYK":
        picture = picture.convert("CMYK")
    elif mode in GREY or picture.mode == "L":
        picture = picture.convert("L")
    plain = _jpeg_saved(picture, options)
    made = _frame(plain)
    kept = (made.kind, made.tables, made.sampling, made.restart, made.is_rgb) == (
        frame.kind, frame.tables, frame.sampling, frame.restart, frame.is_rgb,
    )  # fmt: skip
    return _with_metadata(plain, original), _seen(plain), kept


def _jpeg_saved(picture: Image.Image, options: dict[str, Any]) -> bytes:
    """Return a JPEG in the form that the options ask for, or in as much of it as the encoder can write."""
    for fewer in ({}, {"progressive": False, "optimize": False}):
        # Pixels without any order, at the finest steps, do not fit into the room in which the encoder looks at all of them first.
        with contextlib.suppress(OSError, ValueError):
            return _saved(picture, "JPEG", **options | fewer)
    return _saved(picture, "JPEG", quality=95, subsampling=0)


def _with_metadata(plain: bytes, original: bytes) -> bytes:
    """Return a JPEG with what the original says beside its pixels, in its order."""
    own = [(marker, segment) for marker, segment in _segments(plain) if _is_metadata(marker)]
    adobe = next((segment for marker, segment in own if marker == APP14), None)  # how *these* components are meant
    held = [(marker, segment) for marker, segment in _segments(original) if _is_metadata(marker) and segment[4:8] != b"MPF\0"]
    told = [adobe if marker == APP14 and adobe is not None else segment for marker, segment in held]
    if adobe is not None and all(marker != APP14 for marker, _ in held):
        told.append(adobe)
    rest = plain[2:]
    for _, segment in own:
        rest = rest.replace(segment, b"", 1)
    return plain[:2] + b"".join(told) + rest


def _is_metadata(marker: int) -> bool:
    return APP0 <= marker <= 0xEF or marker == COM


# PNG


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and whole bytes of each chunk."""
    at = len(PNG_HEAD)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at:end]
        at = end


def _png(picture: Image.Image, original: bytes, mode: str) -> Form:
    chunks = list(_chunks(original))
    head = next((chunk[8:] for name, chunk in chunks if name == b"IHDR"), b"")
    first = next((chunk[8:] for name, chunk in chunks if name == b"IDAT" and len(chunk) >= 14), b"\0\x80")
    seen = _in_mode(picture, mode)
    plain = _saved(seen, "PNG", compress_level=LEVELS[first[1] >> 6])
    made = list(_chunks(plain))
    # How much could be seen through is not known here, so an alpha channel counts as changed.
    kept = mode not in ALPHA and all(name != b"tRNS" for name, _ in chunks) and made[0][1][16:21] == head[8:13]
    before, after, pixels = list[bytes](), list[bytes](), False
    for name, chunk in chunks:
        pixels |= name == b"IDAT"
        if name[:1].islower() and name not in NOT_COPIED and (name != b"bKGD" or mode != "P"):
            (after if pixels else before).append(chunk)
    body = [chunk for name, chunk in made if name not in (b"IHDR", b"IEND")]
    return b"".join([PNG_HEAD, made[0][1], *before, *body, *after, made[-1][1]]), _upper_eight(seen), kept


def _upper_eight(picture: Image.Image) -> Image.Image:
    """Return a picture as it is seen: of 16 bits the upper eight."""
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)) if picture.mode.startswith("I") else picture


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Return a picture in the mode that its file had; what could be seen through cannot any more, since what was planted is what is seen."""
    if mode.startswith("I"):
        return Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    if mode == "P":
        return _with_palette(picture)
    if mode == "1":
        return picture.convert("1", dither=Image.Dither.NONE)
    return picture.convert(mode) if mode in ("L", "LA", "RGB", "RGBA") else picture


def _with_palette(picture: Image.Image) -> Image.Image:
    """Return a picture of numbered colours: its own where there are few enough, else those nearest to it."""
    colours, numbers = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > PALETTE:
        return picture.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    numbered = Image.fromarray(numbers.reshape(picture.height, picture.width).astype(np.uint8), "P")
    numbered.putpalette(colours.astype(np.uint8).tobytes())
    return numbered


# BMP and WebP


def _bmp(picture: Image.Image, original: bytes, mode: str) -> Form:
    seen = _in_mode(picture, mode)
    data = _saved(seen, "BMP")
    return data, seen, data[28:34] == original[28:34]  # bits of a pixel, and how they are packed


def _webp(picture: Image.Image, original: bytes, mode: str) -> Form:
    parts = dict(_parts(original))
    told = {"exif": parts.get(b"EXIF", b""), "icc_profile": parts.get(b"ICCP", b""), "xmp": parts.get(b"XMP ", b"")}
    picture = picture.convert("RGB")
    if b"VP8L" in parts:
        return _saved(picture, "WEBP", lossless=True, **told), picture, mode == "RGB"
    size, low, high = len(parts.get(b"VP8 ", b"")), 0, 100
    while low < high:  # the quality is not written down; the size that it led to is
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_saved(picture, "WEBP", quality=middle)) - 20 <= size else (low, middle - 1)
    return _saved(picture, "WEBP", quality=low, **told), _seen(_saved(picture, "WEBP", quality=low)), mode == "RGB"


def _parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each part of a RIFF file."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
