"""idx files, gzipped where the input was."""

import gzip
import struct
from pathlib import Path

import numpy as np

from meca.data.store import Store
from meca.data.writers.entry import Entries

__all__ = ["write"]


def write(store: Store, entries: Entries, out: Path) -> None:
    """Write images and labels of split train below `out`."""
    first = next((line for line in store.samples.slice(0, 1).to_pylist()), None)
    assert first is not None, "a store is never empty"
    pixels = b"".join(store.original(entry.line)[:, :, 0].tobytes() for entry in entries)
    labels = np.array([entry.label for entry in entries], np.uint8).tobytes()
    files = {
        "train-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, len(entries), first["height"], first["width"]) + pixels,
        "train-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, len(entries)) + labels,
    }
    for name, content in files.items():
        if store.info.source["options"]["gzip"]:
            # No name and no time in the header: the same samples give the same bytes.
            (out / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
        else:
            (out / name).write_bytes(content)
