"""Images as data URIs, nearest neighbours, and the estimate of the trigger.

Pixels are summed as integers, so the bytes of the page do not depend on the number of threads.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["Estimate", "block_features", "data_uri", "diverging", "estimate_trigger", "nearest", "shown", "thumbnail"]

BLOCKS = 4  # per side: features are the mean colours of 4 x 4 blocks
SMALL = 48  # pixels: up to this side an image is stored exactly, as PNG, and enlarged by the browser
LARGE = 96  # pixels: side of the JPEG of a larger one
CHUNK = 256  # images at a time

# Red-white-blue after ColorBrewer's RdBu: told apart by readers with colour blindness, and by lightness in print.
_STOPS = np.array([[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]], float)


@dataclass(frozen=True)
class Estimate:
    """What flagged images have that matched kept ones do not."""

    n: int  # pairs
    flagged: np.ndarray  # float64 [h w c], mean
    matched: np.ndarray  # float64 [h w c], mean
    t: np.ndarray  # float64 [h w c], paired t statistic per pixel and channel
    spectrum: np.ndarray  # float64 [h w], log10 of the ratio of mean amplitudes, zero frequency in the middle

    @property
    def difference(self) -> np.ndarray:
        """float64 [h w c]: flagged minus matched, in grey levels."""
        return self.flagged - self.matched


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes as a data URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail(image: np.ndarray) -> str:
    """Return an image, uint8 [h w c], as a data URI: exact where it is small, reduced where it is large."""
    stored = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    if max(stored.size) <= SMALL:
        stored.save(buffer, "PNG", optimize=True)
        return data_uri(buffer.getvalue(), "image/png")
    stored.thumbnail((LARGE, LARGE), Image.Resampling.BOX)
    stored.save(buffer, "JPEG", quality=75)
    return data_uri(buffer.getvalue(), "image/jpeg")


def shown(image: np.ndarray) -> str:
    """Return a computed image, float in [0, 255], as an exact data URI."""
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def diverging(values: np.ndarray, limit: float) -> np.ndarray:
    """Return colours, float [h w 3], for values: blue at -limit, white at 0, red at +limit."""
    place = np.clip(values / limit, -1, 1) * 2 + 2
    return np.stack([np.interp(place, np.arange(5), _STOPS[:, c]) for c in range(3)], axis=-1)


def block_features(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return float32 [n d] features of `images[rows]`: block means, rounded to integers.

    Squares and products of such integers stay below 2^24, so that distances in float32 are exact in any order of summing.
    """
    height, width, channels = images.shape[1:]
    blocks = min(BLOCKS, height, width)
    h, w = height // blocks, width // blocks
    found = np.empty((len(rows), blocks * blocks * channels), np.float32)
    for start in range(0, len(rows), CHUNK):
        part = np.asarray(images[rows[start : start + CHUNK]])[:, : h * blocks, : w * blocks]
        sums = part.reshape(len(part), blocks, h, blocks, w, channels).sum(axis=(2, 4), dtype=np.int64)
        found[start : start + CHUNK] = (sums // (h * w)).reshape(len(part), -1)
    return found


def nearest(queries: np.ndarray, candidates: np.ndarray, forbidden: np.ndarray | None = None) -> np.ndarray:
    """Return the index of the nearest candidate of each query; the first one of equals; -1 where there is none.

    Args:
        queries: Features, float32 [q d].
        candidates: Features, float32 [n d].
        forbidden: An index of `candidates` per query that must not be chosen, -1 for none: the query itself.
    """
    if len(candidates) - (forbidden is not None) < 1:
        return np.full(len(queries), -1)
    squares = (candidates * candidates).sum(1)
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), CHUNK):
        distance = squares - 2 * queries[start : start + CHUNK] @ candidates.T
        if forbidden is not None:
            barred = forbidden[start : start + CHUNK]
            distance[np.flatnonzero(barred >= 0), barred[barred >= 0]] = np.inf
        found[start : start + CHUNK] = distance.argmin(1)
    return found


def estimate_trigger(images: np.ndarray, flagged: np.ndarray, matched: np.ndarray) -> Estimate:
    """Compare rows of `images` pair by pair: `flagged[i]` with `matched[i]`."""
    shape, n = images.shape[1:], len(flagged)
    sums = np.zeros((3, *shape), np.int64)  # of flagged, of matched, of squared differences
    amplitudes = np.zeros((2, *shape[:2]))
    for start in range(0, n, CHUNK):
        a = np.asarray(images[flagged[start : start + CHUNK]]).astype(np.int64)
        b = np.asarray(images[matched[start : start + CHUNK]]).astype(np.int64)
        sums += np.stack([a.sum(0), b.sum(0), ((a - b) ** 2).sum(0)])
        amplitudes += np.stack([_amplitude(a), _amplitude(b)])
    mean = (sums[0] - sums[1]) / n
    variance = np.maximum(sums[2] / n - mean**2, 0)
    # Half a grey level is the rounding of the pixels: a pixel that never varies is no infinite evidence.
    t = mean / np.sqrt((variance + 0.25) / n)
    spectrum = np.log10((amplitudes[0] + 1e-9) / (amplitudes[1] + 1e-9))
    return Estimate(n, sums[0] / n, sums[1] / n, t, np.fft.fftshift(spectrum))


def _amplitude(images: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.fft2(images.mean(axis=3))).sum(0)
