"""Writers: the sanitized set in the format of the input; kept samples keep their bytes.

A writer gets the samples to publish and an empty folder. Sources that are arrays in memory are written as parquet.
"""

from collections.abc import Callable
from pathlib import Path

from meca.data.store import Store
from meca.data.writers import archive, cifar, cifar_binary, idx, imagefolder, listed, parquet, webdataset
from meca.data.writers.entry import Entries
from meca.errors import MecaError

__all__ = ["WRITERS", "Entries", "format_of", "write_sanitized"]

Writer = Callable[[Store, Entries, Path], None]

WRITERS: dict[str, tuple[str, Writer]] = {  # format of the source: format that is written, and by what
    "imagefolder": ("imagefolder", imagefolder.write),
    "metadata": ("metadata", listed.write),
    "manifest": ("manifest", listed.write),
    "zip": ("zip", archive.write_zip),
    "tar": ("tar", archive.write_tar),
    "webdataset": ("webdataset", webdataset.write),
    "parquet": ("parquet", parquet.write),
    "cifar-batches": ("cifar-batches", cifar.write),
    "cifar-binary": ("cifar-binary", cifar_binary.write),
    "idx": ("idx", idx.write),
    "shapes": ("parquet", parquet.write_arrays),
    "digits": ("parquet", parquet.write_arrays),
}


def format_of(source_format: str) -> str:
    """Return the format in which a source is published."""
    if source_format not in WRITERS:
        raise MecaError(f"Expected a source in one of the formats {', '.join(WRITERS)}, got {source_format!r}; ingest the data again.")
    return WRITERS[source_format][0]


def write_sanitized(store: Store, entries: Entries, out: Path) -> None:
    """Write the samples to publish, in the order of the store, below `out`."""
    format_of(store.info.source["format"])
    out.mkdir(parents=True, exist_ok=True)
    WRITERS[store.info.source["format"]][1](store, entries, out)
