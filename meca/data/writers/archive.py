"""Zip and tar archives: the members that stay under the names they had, a relabelled one in the folder of its new class."""

import gzip
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from meca.data.readers.files import clean_name
from meca.data.readers.tar_members import BLOCK, ENCODING
from meca.data.store import Store
from meca.data.writers.entry import Entries, Entry
from meca.data.writers.imagefolder import place
from meca.errors import MecaError

__all__ = ["end_tar", "header_of", "write_member", "write_tar", "write_zip"]


def _placed(store: Store, entries: Entries) -> Iterator[tuple[Entry, str, bool, dict[str, Any]]]:
    """Yield every entry with its name, whether that is the one it had, and its columns, in the order of the archive."""
    depth = store.info.source["options"]["depth"]
    names = place([(e.line["source"], store.info.class_names[e.label], e.line["sample_id"]) for e in entries], depth)
    further: Any = store.columns
    at = further["at"].to_pylist()
    for number in sorted(range(len(entries)), key=lambda number: at[entries[number].at]):
        entry, name = entries[number], str(names[number])
        yield entry, name, name == entry.line["source"], further.slice(entry.at, 1).to_pylist()[0]


def _target(store: Store, out: Path) -> Path:
    name = store.info.source["options"]["archive"]
    if clean_name(name) != name:
        raise MecaError(f"Expected an archive named without folders, got {name!r}; ingest the data again.")
    return out / name


def write_zip(store: Store, entries: Entries, out: Path) -> None:
    """Write the archive; members keep name, time, rights and way of compression."""
    with open(_target(store, out), "xb") as file, zipfile.ZipFile(file, "w") as archive:
        for entry, name, _, column in _placed(store, entries):
            info = zipfile.ZipInfo(name, tuple(column["time"]))
            info.compress_type, info.external_attr, info.create_system = column["method"], column["attributes"], column["system"]
            archive.writestr(info, store.payload(entry.line["offset"], entry.line["bytes"]))


def write_tar(store: Store, entries: Entries, out: Path) -> None:
    """Write the archive; members that stay keep their headers too."""
    options = store.info.source["options"]
    with open(_target(store, out), "xb") as file:
        # No name and no time in the header: the same samples give the same bytes.
        zipped = gzip.GzipFile("", "wb", 6, file, mtime=0) if options["gzip"] else None
        stream: Any = zipped or file
        for entry, name, stays, column in _placed(store, entries):
            data = store.payload(entry.line["offset"], entry.line["bytes"])
            write_member(stream, header_of(column["header"], name, stays, len(data)), data)
        end_tar(stream, options["padded"])
        if zipped:
            zipped.close()


def header_of(header: bytes, name: str, stays: bool, size: int) -> bytes:
    """Return the header blocks of a member: those it came with where neither name (`stays`) nor size changed."""
    info = tarfile.TarInfo.frombuf(header[-BLOCK:], ENCODING, "surrogateescape")
    if stays and info.size == size:
        return header
    info.name, info.size, info.pax_headers = name, size, {}
    return info.tobuf(tarfile.PAX_FORMAT, ENCODING, "surrogateescape")


def write_member(stream: BinaryIO, header: bytes, data: bytes) -> None:
    """Write a header and the content, filled up to whole blocks."""
    stream.write(header)
    stream.write(data)
    stream.write(bytes(-len(data) % BLOCK))


def end_tar(stream: BinaryIO, padded: bool) -> None:
    """Write the two empty blocks that end an archive, and fill up its last record where it was full."""
    stream.write(bytes(2 * BLOCK))
    if padded:
        stream.write(bytes(-stream.tell() % tarfile.RECORDSIZE))
