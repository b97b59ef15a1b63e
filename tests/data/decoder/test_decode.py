"""One function decodes, and every hostile or odd image ends in a code or in a note, never in an exception of its own."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meca.data.decoder.decode import Unreadable, decode, place, resize
from tests.making import encode, pixels


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b"", *extra: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def reason(data: bytes) -> str:
    with pytest.raises(Unreadable, match=r"^[a-z0-9:-]+") as caught:
        decode(data)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_come_back_bit_for_bit(kind: str) -> None:
    image = pixels(1, 7, 5)
    found = decode(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(found.pixels, image)
    assert (found.width, found.height, found.mode, found.format, found.notes) == (5, 7, "RGB", kind, ())


def test_a_truncated_jpeg_is_unreadable() -> None:
    data = encode(pixels(1, 64, 64), "JPEG")
    assert decode(data).format == "JPEG"
    assert reason(data[: len(data) // 2]) == "truncated"


def test_a_truncated_png_is_unreadable() -> None:
    assert reason(encode(pixels(1, 64, 64))[:-900]) in ("truncated", "corrupt")


@pytest.mark.parametrize("data", [b"", b"\0", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"SIMPLE  =                    T", b"8BPS\0\1", b"<svg/>"])
def test_what_is_no_image_of_the_four_formats_is_not_decoded(data: bytes) -> None:
    assert reason(data) == "not-an-image"


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM"])
def test_other_formats_are_not_decoded_under_any_name(kind: str) -> None:
    assert reason(encode(pixels(1), kind)) == "not-an-image"


def test_a_header_that_promises_a_bomb_is_refused_before_decoding() -> None:
    assert reason(png(7072, 7071, 1, 0)) == "too-many-pixels"
    assert reason(png(10_000, 10_000, 1, 0)) == "too-many-pixels"  # Pillow only warns
    assert reason(png(30_000, 30_000, 1, 0)) == "too-many-pixels"  # Pillow refuses


def test_strange_shapes_are_unreadable() -> None:
    assert reason(png(1001, 1, 8, 0, b"\0" * 1002)) == "too-narrow"
    assert reason(png(0, 5, 8, 0)) in ("no-pixels", "corrupt", "not-an-image")
    assert decode(png(1000, 1, 8, 0, b"\0" * 1001)).width == 1000


def test_a_file_beyond_the_cap_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meca.data.decoder.decode.MAX_BYTES", 10)
    assert reason(encode(pixels(1))) == "too-many-bytes"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_several_frames_are_unreadable(kind: str) -> None:
    frames = [Image.fromarray(pixels(i)) for i in range(3)]
    assert reason(encode(pixels(0), kind, save_all=True, append_images=frames[1:])) == "several-frames"


def test_sixteen_bits_are_scaled_and_noted() -> None:
    values = np.array([[0, 128, 257], [32768, 65407, 65535]])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    found = decode(png(3, 2, 16, 0, rows))
    assert found.pixels[:, :, 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert found.notes == (f"converted:{found.mode}",) and found.mode.startswith("I")


def test_every_other_mode_is_noted() -> None:
    grey = decode(encode(pixels(1, channels=1)))
    assert grey.notes == ("converted:L",) and np.array_equal(grey.pixels, np.repeat(pixels(1, channels=1), 3, axis=2))
    image = Image.fromarray(pixels(1))
    for mode, kind in (("CMYK", "JPEG"), ("P", "PNG"), ("1", "PNG")):
        found = decode(_save(image.convert(mode), kind))
        assert found.notes == (f"converted:{mode}",) and found.pixels.shape == (8, 8, 3)


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_what_is_behind_a_transparent_pixel_is_not_seen() -> None:
    hidden = np.dstack([pixels(1), np.zeros((8, 8), np.uint8)])
    found = decode(_save(Image.fromarray(hidden), "PNG"))
    assert (found.pixels == 255).all() and found.notes == ("converted:RGBA",)
    clear = np.zeros((8, 8, 3), np.uint8)
    found = decode(_save(Image.fromarray(clear), "PNG", transparency=(0, 0, 0)))
    assert (found.pixels == 255).all() and found.notes == ("converted:RGB",)


def test_the_orientation_is_applied_once_and_noted() -> None:
    image = pixels(1, 4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(_save(Image.fromarray(image), "PNG", exif=exif))
    assert np.array_equal(found.pixels, np.rot90(image, -1)) and found.notes == ("orientation:6",)
    assert (found.width, found.height) == (6, 4)


def test_an_orientation_of_another_type_is_noted_as_a_whole_number() -> None:
    tag = struct.pack("<HHHIfI", 1, 0x0112, 11, 1, 6.0, 0)  # float32
    found = decode(_save(Image.fromarray(pixels(1, 4, 6)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + tag))
    assert found.notes == ("orientation:6",) and found.pixels.shape == (6, 4, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_the_pixels(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(_save(Image.fromarray(pixels(1, 4, 6)), "PNG", exif=exif))
    assert found.upright == found.pixels.shape[:2] and (found.width, found.height) == (6, 4)


def test_an_image_for_which_there_is_no_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("meca.data.decoder.decode._decode", full)
    assert reason(encode(pixels(1))) == "too-much-memory"


def test_what_pillow_only_warns_about_is_unreadable() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"  # promises five entries and holds none
    assert reason(_save(Image.fromarray(pixels(1)), "JPEG", exif=exif)) == "corrupt"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]), st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_end_in_an_image_or_in_a_code(kind: str, at: int, noise: bytes) -> None:
    data = bytearray(encode(pixels(3, 16, 16), kind))
    at %= len(data)
    data[at : at + len(noise)] = noise
    try:
        assert decode(bytes(data)).pixels.dtype == np.uint8
    except Unreadable as problem:
        assert str(problem)


def test_resize_leaves_the_right_size_alone_and_smooths_otherwise() -> None:
    image = pixels(1)
    assert resize(image, 8, 8) is image
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = resize(np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8), 8, 8)
    assert abs(small.astype(int) - 127).max() <= 2, "without antialiasing a fine pattern turns into black or white"


sides = st.integers(1, 60)


@given(sides, sides, sides, sides)
def test_padded_images_are_whole_in_the_middle_and_keep_their_aspect(height: int, width: int, room_height: int, room_width: int) -> None:
    top, left, high, wide = place(height, width, room_height, room_width)
    assert high == room_height or wide == room_width, "as large as it fits"
    assert 0 <= top <= room_height - high - top <= top + 1 and 0 <= left <= room_width - wide - left <= left + 1
    scale = min(room_height / height, room_width / width)
    assert abs(high - max(1, height * scale)) <= 0.5 + 1e-9 and abs(wide - max(1, width * scale)) <= 0.5 + 1e-9
    image = pixels(1, height, width)
    made = resize(image, room_height, room_width, "pad")
    assert made.shape == (room_height, room_width, 3)
    assert np.array_equal(made[top : top + high, left : left + wide], resize(image, high, wide)), "what is not border is the whole image"
    border = np.ones((room_height, room_width), bool)
    border[top : top + high, left : left + wide] = False
    assert (made[border] == 128).all()


def test_a_trigger_in_a_corner_survives_the_padding() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[-10:, -10:] = 255
    made = resize(image, 32, 32, "pad")
    assert (made[22:24, 30:32] == 255).all() and (made[:8] == 128).all() and (made[24:] == 128).all()


def test_grey_images_are_padded_too_and_what_has_the_size_stays() -> None:
    image = pixels(2, 4, 8, 1)
    assert np.array_equal(resize(image, 8, 8, "pad")[2:6], np.repeat(image, 3, axis=2))
    assert resize(right := pixels(3), 8, 8, "pad") is right
