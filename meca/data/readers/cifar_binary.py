"""The binary version of CIFAR-10 (`data_batch_1.bin`: a label byte and 3,072 pixels a sample) and of CIFAR-100 (`train.bin`: two labels)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.readers.cifar import SIDE, WIDTH, coarse_of, data_set_name, labels_by_split
from meca.data.readers.files import read_whole
from meca.data.readers.source import Found, Labels, Source
from meca.errors import InputRefused, UsageError

__all__ = ["COARSE", "FINE", "FOLDERS", "NAMES", "TRAIN", "TRAIN_100", "folder_of", "open_cifar_binary"]

TRAIN, TEST, NAMES = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), "batches.meta.txt"
TRAIN_100, TEST_100, FINE, COARSE = ("train.bin",), ("test.bin",), "fine_label_names.txt", "coarse_label_names.txt"
FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary")
MAX_BYTES = 2 * 2**30  # of a file; an official one has 154 MB at most


def folder_of(path: Path) -> Path | None:
    """Return the folder that holds the files: `path`, or one of `FOLDERS` in it.

    Raises:
        UsageError: It holds CIFAR-10 and CIFAR-100.
    """
    places = (path, *(path / name for name in FOLDERS))
    ten = [folder for folder in places if (folder / TRAIN[0]).is_file()]
    hundred = [folder for folder in places if (folder / TRAIN_100[0]).is_file() and (folder / FINE).is_file()]
    if len(ten) + len(hundred) > 1:
        raise UsageError(f"{path.name} holds CIFAR-10 and CIFAR-100: which one is meant? Point to the folder of one of them.")
    return (ten or hundred or [None])[0]


def open_cifar_binary(path: Path) -> Source:
    """Return the source of a folder of binary files.

    Raises:
        InputRefused: A file is missing or cut, or a label is out of range.
    """
    folder = folder_of(path)
    if folder is None:
        raise InputRefused(f"Expected data_batch_1.bin, or train.bin and {FINE}, in {path.name} or in its folder {' or '.join(FOLDERS)}, found none.")
    fine = not (folder / TRAIN[0]).is_file()
    given = (("train", TRAIN_100), ("test", TEST_100)) if fine else (("train", TRAIN), ("test", TEST))
    files = {split: [name for name in members if (folder / name).exists()] for split, members in given}
    names = _names(folder / (FINE if fine else NAMES))
    coarse_names = _names(folder / COARSE) if fine else ()
    head = 2 if fine else 1
    images: dict[str, NDArray[np.uint8]] = {}
    labels: dict[str, Labels] = {}
    coarse: dict[str, Labels] = {}
    for name in (name for members in files.values() for name in members):
        data = read_whole(folder / name, MAX_BYTES)
        if len(data) % (head + WIDTH):
            raise InputRefused(f"Expected {name} to hold records of {head + WIDTH} bytes, got {len(data)} bytes; get the file again.")
        records = np.frombuffer(data, np.uint8).reshape(-1, head + WIDTH)
        images[name] = records[:, head:]
        labels[name] = _checked(records[:, head - 1], len(names), name)
        if fine:
            coarse[name] = _checked(records[:, 0], len(coarse_names), name)

    def wanted(split: str, take: NDArray[np.bool_]) -> Iterator[tuple[str, int]]:
        places = ((name, at) for name in files[split] for at in range(len(labels[name])))
        return (place for place, chosen in zip(places, take, strict=True) if chosen)

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        for name, at in wanted(split, take):
            yield Found(f"{name}#{at:05d}", int(labels[name][at]), pixels=images[name][at].reshape(3, SIDE, SIDE).transpose(1, 2, 0))

    def columns(split: str, take: NDArray[np.bool_]) -> pa.Table:
        chosen = list(wanted(split, take))
        above = [int(coarse[name][at]) if fine else 0 for name, at in chosen]
        return pa.table({"coarse": pa.array(above, pa.int64()), "label": pa.array([int(labels[name][at]) for name, at in chosen], pa.int64())})

    options: dict[str, Any] = {"batches": [{"name": name, "split": split} for split, members in files.items() for name in members], "fine": fine}
    if fine:
        options |= {"coarse_names": list(coarse_names), "coarse_of": coarse_of(labels["train.bin"], coarse["train.bin"], len(names))}
    return Source(
        format="cifar-binary",
        name=data_set_name(folder, FOLDERS),
        class_names=names,
        labels=labels_by_split(files, labels),
        read=read,
        columns=columns,
        options=options,
    )


def _names(file: Path) -> tuple[str, ...]:
    if not file.exists():
        raise InputRefused(f"Expected {file.name} with the class names beside the batches, found none.")
    try:
        lines = read_whole(file, 2**20).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputRefused(f"Expected {file.name} to be UTF-8, one class name a line.") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) != len(names) or len(names) > 256:
        raise InputRefused(f"Expected 1 to 256 different class names in {file.name}, one a line, got {len(names)}.")
    return names


def _checked(values: NDArray[np.uint8], classes: int, name: str) -> Labels:
    wrong = np.flatnonzero(values >= classes)
    if wrong.size:
        raise InputRefused(f"Expected labels in 0..{classes - 1}, got {values[wrong[0]]} in row {wrong[0]} of {name}.")
    return values.astype(np.int64)
