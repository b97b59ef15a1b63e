"""The binary version of CIFAR-10 and CIFAR-100: the records that stay, a relabelled one with another label byte."""

from pathlib import Path
from typing import Any

from meca.data.readers.cifar_binary import COARSE, FINE, FOLDERS, NAMES, TRAIN, TRAIN_100
from meca.data.store import Store
from meca.data.writers.entry import Entries
from meca.errors import MecaError

__all__ = ["write"]


def write(store: Store, entries: Entries, out: Path) -> None:
    """Write the files of split train and the class names below `out`."""
    options = store.info.source["options"]
    fine: bool = options["fine"]
    folder = out / FOLDERS[fine]
    folder.mkdir()
    columns: Any = store.columns
    coarse, given = columns["coarse"].to_pylist(), columns["label"].to_pylist()
    for batch in options["batches"]:
        if batch["split"] != "train":
            continue
        if batch["name"] not in (*TRAIN, *TRAIN_100):
            raise MecaError(f"Expected batches named as in CIFAR, got {batch['name']!r}; ingest the data again.")
        with open(folder / batch["name"], "xb") as file:
            for entry in entries.of_file(batch["name"]):
                of_class = options["coarse_of"][entry.label] if fine else -1
                # A relabelled sample gets the superclass of its new class; a kept one stays as it came.
                above = of_class if of_class >= 0 and entry.label != given[entry.at] else coarse[entry.at]
                file.write(bytes([above, entry.label] if fine else [entry.label]))
                file.write(store.original(entry.line).transpose(2, 0, 1).tobytes())
    names = {FINE: store.info.class_names, COARSE: options["coarse_names"]} if fine else {NAMES: store.info.class_names}
    for name, lines in names.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
