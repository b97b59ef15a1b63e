"""The python batches of CIFAR-10 and CIFAR-100, in the layout of the official files, so that their readers read ours.

The official files are pickles of protocol 2 with Python 2 strings; Python 3's pickler cannot write such strings, and the
readers depend on them. The few opcodes are written out here.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meca.data.store import Store
from meca.data.writers.entry import Entries
from meca.errors import MecaError

__all__ = ["write"]

FOLDER, FOLDER_100 = "cifar-10-batches-py", "cifar-100-python"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
UINT8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"


def write(store: Store, entries: Entries, out: Path) -> None:
    """Write the batches of split train and their meta file below `out`."""
    fine = "coarse_of" in store.info.source["options"]
    folder = out / (FOLDER_100 if fine else FOLDER)
    folder.mkdir()
    columns: Any = store.columns
    titles = columns["filename"].to_pylist() if columns is not None else None
    batches = [batch for batch in store.info.source["options"]["batches"] if batch["split"] == "train"]
    for batch in batches:
        if batch["name"] != "train" and (not batch["name"].startswith("data_batch_") or not batch["name"][11:].isdigit()):
            raise MecaError(f"Expected batches named data_batch_<number>, got {batch['name']!r}; ingest the data again.")
        mine = entries.of_file(batch["name"])
        rows = [store.original(entry.line).transpose(2, 0, 1).tobytes() for entry in mine]
        names = [titles[entry.at] if titles is not None else f"{place}.png" for place, entry in enumerate(mine)]
        content = {
            "batch_label": _string(batch["batch_label"]),
            **({"coarse_labels": _list(_coarse(store, mine))} if fine else {}),
            "fine_labels" if fine else "labels": _list([_int(entry.label) for entry in mine]),
            "data": ARRAY + _int(len(rows)) + _int(3072) + b"\x86" + UINT8 + _bytes(b"".join(rows)) + b"tb",
            "filenames": _list([_string(name) for name in names]),
        }
        (folder / batch["name"]).write_bytes(_pickle(content))
    names = _list([_string(name) for name in store.info.class_names])
    if fine:
        superclasses = _list([_string(name) for name in store.info.source["options"]["coarse_names"]])
        (folder / "meta").write_bytes(_pickle({"fine_label_names": names, "coarse_label_names": superclasses}))
        return
    largest = max((len(entries.of_file(batch["name"])) for batch in batches), default=0)
    meta = {"num_cases_per_batch": _int(largest), "label_names": names, "num_vis": _int(3072)}
    (folder / "batches.meta").write_bytes(_pickle(meta))


def _coarse(store: Store, entries: Entries) -> list[bytes]:
    """Return the superclass of each sample: its own, or that of its new class."""
    columns: Any = store.columns
    own, given, of_class = columns["coarse"].to_pylist(), columns["label"].to_pylist(), store.info.source["options"]["coarse_of"]
    return [_int(own[e.at] if e.label == given[e.at] or of_class[e.label] < 0 else of_class[e.label]) for e in entries]


def _pickle(content: dict[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(_string(key) + value for key, value in content.items()) + b"u."


def _list(items: Sequence[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _string(value: str) -> bytes:
    return _bytes(value.encode())


def _bytes(value: bytes) -> bytes:
    assert len(value) <= np.iinfo(np.int32).max, "a batch beyond 2 GB cannot have been read"
    return b"T" + struct.pack("<i", len(value)) + value
