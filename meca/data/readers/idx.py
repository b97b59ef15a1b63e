"""idx files, gzipped or not: `train-images-idx3-ubyte(.gz)` and its three companions, as MNIST and Fashion-MNIST have them."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meca.data.decoder.decode import MAX_PIXELS
from meca.data.decoder.decode import MAX_RATIO as MAX_SIDES
from meca.data.readers.files import read_whole
from meca.data.readers.source import Found, Labels, Source
from meca.errors import InputRefused

__all__ = ["FASHION", "folder_of", "open_idx"]

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PREFIX = {"train": "train", "test": "t10k"}
MAX_BYTES = 2 * 2**30  # of a file, and of what it unpacks to
MAX_RATIO = 1032  # no gzip stream unpacks to more: beyond it the header lies


def folder_of(path: Path) -> Path | None:
    """Return the folder that holds the files: `path`, or where torchvision puts them below it."""
    for folder in (path, path / "raw", path / "FashionMNIST" / "raw"):
        if _find(folder, "train-images-idx3-ubyte") is not None:
            return folder
    return None


def _find(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)


def open_idx(path: Path) -> Source:
    """Return the source of a folder of idx files.

    Raises:
        InputRefused: A file is missing, its header and its size disagree, or a label is out of range.
    """
    folder = folder_of(path)
    if folder is None:
        raise InputRefused(f"Expected train-images-idx3-ubyte(.gz) in {path.name}, found none.")
    images: dict[str, NDArray[np.uint8]] = {}
    labels: dict[str, Labels] = {}
    zipped = False
    for split, prefix in PREFIX.items():
        image_file, label_file = (_find(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        if split == "test" and image_file is None and label_file is None:
            images[split], labels[split] = np.empty((0, 1, 1), np.uint8), np.empty(0, np.int64)
            continue
        if image_file is None or label_file is None:
            raise InputRefused(f"Expected {prefix}-images-idx3-ubyte and {prefix}-labels-idx1-ubyte side by side, found only one of them.")
        zipped = zipped or image_file.suffix == ".gz"
        images[split], labels[split] = _array(image_file, 3), _array(label_file, 1).astype(np.int64)
        height, width = images[split].shape[1:]
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDES * min(height, width):
            raise InputRefused(
                f"Expected images of at most {MAX_PIXELS} pixels, at most {MAX_SIDES} times as long as wide, in {image_file.name}, "
                f"got {height}x{width}."
            )
        if len(images[split]) != len(labels[split]):
            raise InputRefused(
                f"Expected as many labels as images, got {len(labels[split])} in {label_file.name} and {len(images[split])} in {image_file.name}."
            )
    fashion = "fashion" in "/".join(folder.resolve().parts[-3:]).lower()
    classes = len(FASHION) if fashion else int(labels["train"].max(initial=0)) + 1
    for split, values in labels.items():
        if values.size and values.max() >= classes:
            row = int(np.flatnonzero(values >= classes)[0])
            raise InputRefused(f"Expected labels in 0..{classes - 1}, got {values[row]} in row {row} of {PREFIX[split]}-labels-idx1-ubyte.")

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        for at in np.flatnonzero(take):
            yield Found(f"{PREFIX[split]}-images-idx3-ubyte#{at:07d}", int(labels[split][at]), pixels=images[split][at][:, :, None])

    return Source(
        format="idx",
        name="fashion-mnist" if fashion else folder.name,
        class_names=FASHION if fashion else tuple(str(label) for label in range(classes)),
        labels=labels,
        read=read,
        options={"gzip": zipped},
    )


def _array(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the uint8 array of an idx file; never unpacks more than its header promises."""
    data = read_whole(file, MAX_BYTES)
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if file.suffix == ".gz" else io.BytesIO(data)
    try:
        head = stream.read(4 + 4 * dimensions)
        if len(head) != 4 + 4 * dimensions or head[:4] != bytes([0, 0, 8, dimensions]):
            raise InputRefused(
                f"Expected {file.name} to begin as an idx file of bytes with {dimensions} dimension(s), got {head[:4].hex() or 'nothing'}."
            )
        shape = struct.unpack(f">{dimensions}I", head[4:])
        size = 1
        for side in shape:
            size *= side
        if size > min(MAX_BYTES, MAX_RATIO * len(data)) or min(shape) < 1:
            raise InputRefused(f"The header of {file.name} promises the shape {list(shape)}, which its {len(data)} bytes cannot hold.")
        content = stream.read(size)
        more = stream.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputRefused(f"{file.name} is damaged ({error}); get the file again.") from None
    if len(content) != size or more:
        found = "more" if more else str(len(content))
        raise InputRefused(f"Expected {size} bytes after the header of {file.name} for the shape {list(shape)}, found {found}.")
    return np.frombuffer(content, np.uint8).reshape(shape)
