"""What is planted goes out in the form that it came in, and is seen as it was planted."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meca.data.decoder.decode import ORIENTATION, decode
from meca.redteam.forms import GREY, in_form_of, lossless
from tests.making import pixels


def image_of(seed: int = 0) -> np.ndarray:
    """Return blocks of colour with an edge inside of them, so that JPEG has something to do."""
    return np.kron(pixels(seed, 12, 10), np.ones((8, 8, 1), np.uint8))[:91, :75]


def encoded(kind: str, mode: str, **options: Any) -> bytes:
    image = Image.fromarray(image_of())
    image = Image.fromarray(image_of()[:, :, 0].astype(np.uint16) * 256 + 7) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[ORIENTATION] = orientation
    made[0x010F] = "maker"
    return made


def planted(data: bytes) -> np.ndarray:
    image = decode(data)
    stamped = image.pixels.copy()
    stamped[-9:, -9:] = 255
    return stamped[:, :, :1] if image.mode in GREY else stamped


EXACT = [
    *(("PNG", mode, {}) for mode in ("RGB", "L", "P", "1", "LA", "RGBA", "I;16")),
    *(("BMP", mode, {}) for mode in ("RGB", "L", "P", "1")),
    ("PNG", "RGB", {"compress_level": 9}),
    ("WEBP", "RGB", {"lossless": True}),
]
LOSSY = [
    ("JPEG", "RGB", {"quality": 75, "subsampling": 2}),
    ("JPEG", "RGB", {"quality": 96, "subsampling": 0, "progressive": True}),
    ("JPEG", "RGB", {"quality": 60, "subsampling": 1, "optimize": True}),
    ("JPEG", "RGB", {"qtables": [[7] * 64, list(range(1, 65))], "restart_marker_blocks": 4}),
    ("JPEG", "RGB", {"keep_rgb": True}),
    ("JPEG", "L", {"quality": 80}),
    ("JPEG", "CMYK", {"quality": 80}),
    ("WEBP", "RGB", {"quality": 70}),
]


@pytest.mark.parametrize(("kind", "mode", "options"), EXACT + LOSSY)
def test_a_planted_image_keeps_size_mode_and_format_and_shows_what_was_planted(kind: str, mode: str, options: dict) -> None:
    data = encoded(kind, mode, **options)
    before, wanted = decode(data), planted(data)
    written = in_form_of(wanted, data, before)
    after = decode(written.data)
    assert (after.width, after.height, after.mode, after.format, after.notes) == (
        before.width,
        before.height,
        before.mode,
        before.format,
        before.notes,
    )
    away = np.abs(after.pixels.astype(int) - wanted)
    assert written.kept == (mode not in ("LA", "RGBA")) and written.worst == away.max() and (after.pixels[-4:, -4:] > 225).all()
    assert (away.max() == 0) == ((kind, mode, options) in EXACT)


@pytest.mark.parametrize(("kind", "mode", "options"), [case for case in LOSSY if case[0] == "JPEG"])
def test_a_jpeg_keeps_tables_subsampling_and_scans(kind: str, mode: str, options: dict) -> None:
    data = encoded(kind, mode, **options)
    written = in_form_of(planted(data), data, decode(data)).data
    told = []
    for content in (data, written):
        with Image.open(io.BytesIO(content)) as image:
            layers = getattr(image, "layer")  # noqa: B009 - only JPEG has it
            told.append((getattr(image, "quantization"), [layer[1:3] for layer in layers], image.info.get("progressive")))  # noqa: B009
    assert told[0] == told[1]
    assert content_of(data, 0xFFDD) == content_of(written, 0xFFDD), "the restart interval"


def content_of(data: bytes, marker: int) -> bytes:
    at = data.find(marker.to_bytes(2, "big"))
    return data[at : at + 6] if at >= 0 else b""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_whoever_obeys_the_orientation_sees_what_was_planted(kind: str, options: dict, orientation: int) -> None:
    data = encoded(kind, "RGB", exif=exif(orientation), icc_profile=b"profile" * 20, **options)
    before, wanted = decode(data), planted(data)
    written = in_form_of(wanted, data, before)
    after = decode(written.data)
    assert after.notes == before.notes and (after.width, after.height) == (75, 91)
    assert np.abs(after.pixels.astype(int) - wanted).max() <= (40 if kind == "JPEG" else 0)
    with Image.open(io.BytesIO(written.data)) as image, Image.open(io.BytesIO(data)) as old:
        assert dict(image.getexif()) == dict(old.getexif()) and image.info["icc_profile"] == b"profile" * 20


def test_metadata_of_a_jpeg_and_of_a_png_go_over_as_they_came() -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Comment", "of a camera")
    for data in (encoded("JPEG", "RGB", comment=b"of a camera", dpi=(300, 300)), encoded("PNG", "RGB", pnginfo=text, dpi=(300, 300))):
        written = in_form_of(planted(data), data, decode(data)).data
        with Image.open(io.BytesIO(written)) as image, Image.open(io.BytesIO(data)) as old:
            image.load()
            old.load()
            assert image.info == old.info


def test_a_form_that_cannot_be_kept_is_said() -> None:
    data = encoded("WEBP", "RGBA", lossless=True)
    seen = decode(data)
    assert in_form_of(planted(data), data, seen).kept == (seen.mode == "RGB")
    adam7 = bytearray(encoded("PNG", "RGB"))
    adam7[28] = 1  # says that its rows are interlaced
    assert not in_form_of(image_of(), bytes(adam7), decode(encoded("PNG", "RGB"))).kept


def test_a_lossless_image_is_upright_and_exact_for_every_reader() -> None:
    data = encoded("JPEG", "RGB", exif=exif(6))
    written = lossless(planted(data))
    with Image.open(io.BytesIO(written.data)) as image:
        assert image.format == "PNG" and not image.getexif() and np.array_equal(np.asarray(image), planted(data))
    assert not written.kept and (written.harm, written.worst) == (0.0, 0)


@pytest.mark.parametrize("cut", [0, 1, 3, 20, 21, 60, 200])
def test_headers_that_end_in_the_middle_break_nothing(cut: int) -> None:
    """What decodes has headers, but a copy of them is read here, and may be anything."""
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(kind, "RGB")
        assert in_form_of(image_of(), data[:cut], decode(data)).data
