"""At which size images are judged, and what that leaves unseen: said wherever a verdict is.

The method looks at images of one size, that of the store (`meca.data.sizing`). A larger image is reduced first. A trigger that does
not survive that is in no verdict, and the image is published as it came.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.columns import pc
from meca.data.decoder import FITS
from meca.data.sizing import AUTO, FIRST, GIVEN, size_record
from meca.text import plain

if TYPE_CHECKING:
    from meca.data.store import Store

__all__ = ["as_tag", "at_size", "beside", "fits", "is_reduced", "judged_at", "notice", "of_store", "of_verdicts", "on_their_side", "pixels"]

LYING = r"(?m)^orientation:[5-8]$"  # EXIF orientations that change places of height and width


def judged_at(side: tuple[int, int], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> dict[str, Any]:
    """Return `{height, width, largest: {height, width}, images_reduced}`, the field `judged_at` of summary.json.

    An image is reduced where it is higher or wider than `side`; one that is enlarged loses nothing. `largest` has the largest height
    and the largest width of all images, which need not be those of one image; it is None where there is no image.

    Args:
        side: Height and width at which images are judged, in pixels.
        heights: int64 [n], pixels, of the images as they are looked at: upright.
        widths: int64 [n], likewise.
    """
    height, width = side
    largest = {"height": int(heights.max()), "width": int(widths.max())} if len(heights) else None
    return {"height": height, "width": width, "largest": largest, "images_reduced": int(((heights > height) | (widths > width)).sum())}


def of_store(store: "Store") -> dict[str, Any]:
    """Return `judged_at` of the readable training images of a store, with `chosen`, `reason` and `fit` of `meca.data.sizing`."""
    lines = store.readable.slice(0, store.info.n_train)
    sizes = _upright(lines, on_their_side(lines["notes"].combine_chunks()))
    return {**judged_at((store.info.height, store.info.width), *sizes), **size_record(store.info.source)}


def of_verdicts(verdicts: pa.Table, lies: NDArray[np.bool_], side: tuple[int, int]) -> dict[str, Any]:
    """Return `judged_at` of what was judged of verdicts.parquet.

    Args:
        verdicts: Its columns `verdict`, `width` and `height`.
        lies: What `on_their_side` says of its column `reasons`.
        side: Height and width of the store, in pixels.
    """
    judged = pc.not_equal(verdicts["verdict"], "quarantined").to_numpy()
    heights, widths = _upright(verdicts, lies)
    return judged_at(side, heights[judged], widths[judged])


def fits(record: Mapping[str, Any], computed: Mapping[str, Any]) -> bool:
    """Tell whether a record of somebody else has what was computed, and beside it nothing but where the size comes from."""
    words = {"chosen": (AUTO, FIRST, GIVEN), "fit": FITS}
    said = {name: value for name, value in record.items() if name not in computed}  # nothing in a folder of an older meca
    known = all(said[name] in words[name] if name in words else name == "reason" and isinstance(said[name], str) for name in said)
    return known and {name: record.get(name) for name in computed} == computed


def on_their_side(notes: pa.Array) -> NDArray[np.bool_]:
    """Return which images lie on their side, by a list of notes for each, whose texts may stand in a dictionary; bool [n]."""
    texts = notes.values
    if pa.types.is_dictionary(texts.type):
        told = pc.match_substring_regex(texts.dictionary, LYING).take(texts.indices)
    else:
        told = pc.match_substring_regex(texts, LYING)
    before = np.concatenate([[0], np.cumsum(pc.fill_null(told, False).to_numpy(zero_copy_only=False))])
    ends = notes.offsets.to_numpy()
    return before[ends[1:]] > before[ends[:-1]]


def _upright(lines: pa.Table, lies: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return heights and widths as the networks see the images, int64 [n] each."""
    height, width = (pc.fill_null(lines[name], 0).to_numpy().astype(np.int64) for name in ("height", "width"))
    return np.where(lies, width, height), np.where(lies, height, width)


def is_reduced(record: Mapping[str, Any] | None) -> bool:
    """Tell whether an image lost pixels before it was judged. A summary of an older meca has no record, and nothing is known."""
    return record is not None and record["images_reduced"] > 0


def pixels(size: Mapping[str, int]) -> str:
    """Return width and height as people write them: `32 x 32`."""
    return f"{size['width']} x {size['height']}"


def at_size(record: Mapping[str, Any] | None) -> str:
    """Return the size in short where images were reduced to it, `at 32 px`, and nothing otherwise."""
    if record is None or not is_reduced(record):
        return ""
    return f"at {record['width']} px" if record["width"] == record["height"] else f"at {pixels(record)} px"


def beside(record: Mapping[str, Any] | None) -> str:
    """Return what stands beside a verdict where images were reduced, and nothing otherwise."""
    if record is None or not is_reduced(record):
        return ""
    return f"judged at {pixels(record)} pixels; images are up to {pixels(record['largest'])}"


def as_tag(record: Mapping[str, Any] | None) -> str:
    """Return the size as a tag of a run or of a model."""
    if record is None:
        return "unknown"
    return f"{pixels(record)} pixels" + (f", images up to {pixels(record['largest'])}" if is_reduced(record) else "")


def notice(record: Mapping[str, Any] | None) -> str:
    """Return the warning where images are or would be reduced, as sentences, and nothing otherwise."""
    if record is None or not is_reduced(record):
        return ""
    why = ""
    if record.get("chosen") == AUTO:
        why = f" {plain(record['reason'], 300)} Another size, or a larger ingest.budget, can be set."
    return (
        f"Images are judged at {pixels(record)} pixels (ingest.size). Larger ones: {record['images_reduced']}, up to {pixels(record['largest'])}. "
        f"A trigger that is lost at {pixels(record)} is not seen, and images that are kept keep their own size.{why}"
    )
