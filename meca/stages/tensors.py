"""Between the files of the stages and the tensors of the method."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from meca.data.sizing import size_record
from meca.data.store import Store, open_store, read_parquet
from meca.errors import MecaError
from meca.models import Description, NetworkParams
from meca.stages.runtime import Context
from meca.training.device import Device
from meca.training.images import Images, let_go, mapped

__all__ = [
    "EVERYTHING",
    "KEPT",
    "column",
    "describe_network",
    "epoch_notes",
    "hold",
    "open_train",
    "read_rows",
    "rows_digest",
    "scores_table",
]

BLOCK = 4 << 20  # bytes of pixels that are copied or counted at once
FLAT = 1e-6  # least variance of a channel, of pixels in [0, 1]: where all are alike, a network would divide by zero
EVERYTHING = "everything"  # below the folder of `split`: a network that was trained fully on everything
KEPT = "kept"  # likewise: one that was trained fully on what is not flagged, where it has been asked and nothing was found in it


def open_train(path: Path, device: Device) -> tuple[Store, Images, Tensor]:
    """Return the store, its training images uint8 [n h w c] and their labels int64 [n], on the device; images that do not fit there are streamed."""
    store = open_store(path)
    labels = torch.from_numpy(np.array(store.labels[store.train])).to(device.name)
    return store, hold(store.images[store.train], device), labels


def hold(images: np.ndarray, device: Device, sets: int = 1) -> Images:
    """Return images on the device: as a tensor where they fit, else from their file, batch by batch.

    Args:
        images: uint8 [n h w c], a map of a file.
        device: From `prepare`.
        sets: So many of this size have to fit.
    """
    if sets * images.nbytes > device.resident:
        return mapped(images, device.name)
    held = torch.empty(images.shape, dtype=torch.uint8, device=device.name)
    each = max(1, BLOCK // max(1, images[:1].nbytes))
    source = mapped(images, "cpu")
    for i in range(0, len(images), each):
        held[i : i + each] = source[i : i + each]
    let_go(images)  # beside the tensor the pages would stay as long as the store is open
    return held


def describe_network(store: Store, images: Images, network: NetworkParams) -> Description:
    """Return the description of a network for a store: normalization by mean and deviation of its training images.

    Args:
        store: The store.
        images: uint8 [n h w c], see `open_train`.
        network: The network.
    """
    counts = np.zeros((images.shape[3], 256), dtype=np.int64)
    for block in images.split(max(1, BLOCK // images.shape[1:].numel())):  # counting widens the pixels to eight bytes each
        counts += np.stack([torch.bincount(block[..., c].flatten(), minlength=256).cpu().numpy() for c in range(len(counts))])
    levels = np.arange(256) / 255
    mean = (counts * levels).sum(1) / counts.sum(1)
    std = np.sqrt(np.maximum((counts * levels**2).sum(1) / counts.sum(1) - mean**2, FLAT))
    info = store.info
    return Description(
        network.built(info.height, info.width),
        info.class_names,
        info.height,
        info.width,
        info.channels,
        tuple(round(float(m), 6) for m in mean),
        tuple(round(float(s), 6) for s in std),
        fit=size_record(info.source)["fit"],  # pyright: ignore[reportArgumentType]
    )


def scores_table(store: Store, columns: dict[str, np.ndarray]) -> pa.Table:
    """Return a table with a line for every training row: row, sample_id and the columns (float64 becomes float32)."""
    n = store.info.n_train
    data: dict[str, Any] = {"row": pa.array(np.arange(n), pa.int64()), "sample_id": store.readable["sample_id"].slice(0, n)}
    data |= {name: pa.array(values.astype(np.float32) if values.dtype == np.float64 else values) for name, values in columns.items()}
    return pa.table(data)


def read_rows(path: Path, names: Sequence[str], n: int) -> pa.Table:
    """Return a table that a stage wrote about the n training rows, in their order.

    Raises:
        MecaError: The file is missing, lacks one of the named columns, or is about other rows.
    """
    table = read_parquet(path)
    missing = [name for name in ("row", *names) if name not in table.column_names]
    if missing:
        raise MecaError(f"{path} lacks the columns {missing}; run the stage that writes it again.")
    table = table.sort_by("row")
    if not np.array_equal(table["row"].to_numpy(), np.arange(n)):
        raise MecaError(f"Expected the rows 0..{n - 1} once each in {path}; run the stage that writes it again.")
    return table


def rows_digest(chosen: np.ndarray) -> str:
    """Return the SHA-256 of which rows are chosen, bool [n]."""
    return hashlib.sha256(np.ascontiguousarray(chosen, dtype=np.uint8).tobytes()).hexdigest()


def column(path: Path, name: str, n: int) -> np.ndarray:
    """Return one column of `read_rows`."""
    return read_rows(path, [name], n)[name].to_numpy()


def epoch_notes(ctx: Context, phase: str, total: int) -> Callable[[int, float, float], None]:
    """Return what tells the curves and the progress about an epoch.

    A resumed training tells of the epochs before the kill too, so the curve ends in the same lines.
    """

    def note(epoch: int, loss: float, accuracy: float) -> None:
        ctx.curve(phase=phase, epoch=epoch, loss=round(loss, 6), accuracy=round(accuracy, 6))
        ctx.progress(f"{ctx.name}: {phase}", epoch, total, f"loss {loss:.3f} accuracy {accuracy:.3f}")

    return note
