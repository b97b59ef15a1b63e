"""The one place where encoded image bytes become pixels. The bytes are hostile by assumption; `pool.py` runs this in a sandbox.

Pillow decodes, and only the four formats below; no plug-in of another format is asked, whatever the file is called.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "MAX_RATIO", "Decoded", "Unreadable", "decode", "place", "resize"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
ORIENTATION = 0x0112  # the EXIF tag
LYING = 5  # orientations from here on change places of height and width
MAX_PIXELS = 50_000_000  # read from the header, before anything is decoded
MAX_BYTES = 256 * 2**20  # of an encoded image
MAX_RATIO = 1000  # longer side to shorter side
BEHIND_ALPHA = (255, 255, 255)  # what is seen where an image is transparent
# Of the borders: one grey for all images, in the middle of the scale. It holds nothing of the image, so a trigger at an edge is neither
# smeared nor repeated, and who serves a model needs nothing of the training set to draw the same borders.
BORDER = (128, 128, 128)

Pixels = NDArray[np.uint8]

# Every mode that the four formats produce has its line; a mode without one is not converted by guess.
CONVERSIONS = {
    "RGB": "keep",
    **dict.fromkeys(("1", "L", "P", "CMYK", "YCbCr", "RGBX"), "convert"),
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), "over"),
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L", "I;16N"), "16bit"),
}


class Unreadable(Exception):  # noqa: N818 - it is caught for each sample and becomes a line of the store
    """One image cannot be used; the argument is a short stable code."""


@dataclass(frozen=True)
class Decoded:
    """An image as the networks see it, and how it came."""

    pixels: Pixels  # uint8 [h w 3]
    width: int  # as found
    height: int
    mode: str
    format: str
    notes: tuple[str, ...]

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the pixels before any resize: as found, turned as the notes say."""
        lies = any(note.startswith("orientation:") and int(note[-1]) >= LYING for note in self.notes)
        return (self.width, self.height) if lies else (self.height, self.width)


def decode(data: bytes) -> Decoded:
    """Return the pixels of an encoded image, upright, in RGB.

    Raises:
        Unreadable: With the code that goes into the store.
    """
    if len(data) > MAX_BYTES:
        raise Unreadable("too-many-bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns about half-broken files
            return _decode(data)
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not-an-image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable("too-many-pixels") from None
    except MemoryError:
        raise Unreadable("too-much-memory") from None
    except Exception as error:  # a decoder may fail in any way on hostile bytes; one sample must not end the run
        raise Unreadable("truncated" if "truncated" in str(error).lower() else "corrupt") from None


def _decode(data: bytes) -> Decoded:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height, mode, kind = image.width, image.height, image.mode, image.format or ""
        if min(width, height) < 1:
            raise Unreadable("no-pixels")
        if width * height > MAX_PIXELS:
            raise Unreadable("too-many-pixels")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise Unreadable("too-narrow")
        if getattr(image, "n_frames", 1) > 1:
            raise Unreadable("several-frames")
        stored = _stored_mode(image)
        image.load()
        notes: list[str] = []
        upright: Image.Image = image
        orientation = image.getexif().get(ORIENTATION, 1)
        if orientation in range(2, 9):
            upright = ImageOps.exif_transpose(image)
            notes.append(f"orientation:{int(orientation)}")  # the tag can be a fraction that equals a whole number
        how = CONVERSIONS.get(mode)
        if how is None:
            raise Unreadable(f"mode:{mode}")
        if how == "keep" and "transparency" in image.info:
            how = "over"
        if how != "keep" or stored != mode:
            notes.append(f"converted:{stored}")
        return Decoded(_to_rgb(upright, how), width, height, mode, kind, tuple(notes))


def _stored_mode(image: Image.Image) -> str:
    """Return the mode, or how the file holds its channels where Pillow drops half of their bits without a word."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    raw = arguments if isinstance(arguments, str) else ""
    return raw if image.mode in ("RGB", "RGBA", "LA") and raw.endswith(";16B") else image.mode


def _to_rgb(image: Image.Image, how: str) -> Pixels:
    if how == "16bit":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("beyond-16bit")
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if how == "over" or "transparency" in image.info:
        above = image.convert("RGBA")
        below = Image.new("RGBA", above.size, (*BEHIND_ALPHA, 255))
        return np.array(Image.alpha_composite(below, above).convert("RGB"))
    return np.array(image.convert("RGB"))


def resize(pixels: Pixels, height: int, width: int, fit: str = "squash") -> Pixels:
    """Return uint8 [h w c] pixels with 3 channels in another size, with antialiasing; unchanged where nothing is to do.

    Nothing is cut off: a trigger may sit in a corner.

    Args:
        pixels: uint8 [h w c] with 1 or 3 channels.
        height: Of the result, in pixels.
        width: Likewise.
        fit: One of `meca.data.decoder.FITS`. squash: height and width are scaled each for itself; pad: both alike, and the rest is `BORDER`.
    """
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[:2] == (height, width):
        return pixels
    if fit == "pad":
        top, left, high, wide = place(pixels.shape[0], pixels.shape[1], height, width)
        whole = np.full((height, width, 3), BORDER, np.uint8)
        whole[top : top + high, left : left + wide] = resize(pixels, high, wide)
        return whole
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None))


def place(height: int, width: int, room_height: int, room_width: int) -> tuple[int, int, int, int]:
    """Return where an image lies that is scaled into a room with `pad`: top, left, height and width, in pixels; in the middle.

    Args:
        height: Of the image, in pixels.
        width: Likewise.
        room_height: Of the room, in pixels.
        room_width: Likewise.
    """
    # In whole numbers, so that every machine rounds alike.
    if height * room_width >= width * room_height:
        high, wide = room_height, max(1, (2 * width * room_height + height) // (2 * height))
    else:
        high, wide = max(1, (2 * height * room_width + width) // (2 * width)), room_width
    return (room_height - high) // 2, (room_width - wide) // 2, high, wide
