"""idx files, gzipped where the input was."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from meca.data.store import Store
from meca.data.writers.entry import Entries

__all__ = ["write"]


def write(store: Store, entries: Entries, out: Path) -> None:
    """Write images and labels of split train below `out`."""
    first = next((line for line in store.samples.slice(0, 1).to_pylist()), None)
    assert first is not None, "a store is never empty"
    pixels = (store.original(entry.line)[:, :, 0].tobytes() for entry in entries)
    labels = (bytes([entry.label]) for entry in entries)
    files = {
        "train-images-idx3-ubyte": (struct.pack(">4B3I", 0, 0, 8, 3, len(entries), first["height"], first["width"]), pixels),
        "train-labels-idx1-ubyte": (struct.pack(">4BI", 0, 0, 8, 1, len(entries)), labels),
    }
    gzipped: bool = store.info.source["options"]["gzip"]
    for name, (head, items) in files.items():
        with open(out / (f"{name}.gz" if gzipped else name), "wb") as file:
            file.write(head if not gzipped else b"")
            file.writelines(_gzip(head, items) if gzipped else items)


def _gzip(head: bytes, items: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a gzip file. No name and no time in its header: the same samples give the same bytes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    yield packer.compress(head)
    for item in items:
        yield packer.compress(item)
    yield packer.flush()
