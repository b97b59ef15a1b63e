"""ImageFolder: every kept file under the name it had, a relabelled one in the folder of its new class."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from meca.data.readers.files import MAX_NAME, clean_name
from meca.data.store import Store
from meca.data.writers.entry import Entries
from meca.errors import MecaError

__all__ = ["place", "write"]


def write(store: Store, entries: Entries, out: Path) -> None:
    """Write the files below `out`."""
    depth = 1 if store.info.source["options"]["split_folders"] else 0
    root = out.resolve()
    targets = place([(e.line["source"], store.info.class_names[e.label], e.line["sample_id"]) for e in entries], depth)
    for entry, target in zip(entries, targets, strict=True):
        path = root / target
        if not path.resolve().is_relative_to(root):
            raise MecaError(f"{entry.line['source']!r} would be written outside of the output folder; this is a bug, please report it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:  # x: nothing is ever written over
            file.write(store.payload(entry.line["offset"], entry.line["bytes"]))


def place(samples: Sequence[tuple[str, str, str]], depth: int) -> list[PurePosixPath]:
    """Return a relative path for each sample `(source, class name, id)`; no two are one file on any usual system.

    Args:
        samples: What to place.
        depth: Which part of the source is the class folder: 1 below a split folder, else 0.
    """
    wanted: list[tuple[PurePosixPath, bool]] = []
    for source, class_name, _ in samples:
        parts = source.split("/")
        moved = parts[depth] != class_name
        parts[depth] = class_name
        wanted.append((PurePosixPath(*(clean_name(part) for part in parts)), moved))
    placed: list[PurePosixPath | None] = [None] * len(samples)
    taken: set[str] = set()
    # Files that stay have the first claim to their name; those that move give way.
    for at in sorted(range(len(samples)), key=lambda at: wanted[at][1]):
        path, number = wanted[at][0], 0
        while _key(path) in taken:
            mark = samples[at][2][:12] + (f"-{number}" if number else "")
            path, number = _marked(wanted[at][0], mark), number + 1
        taken.add(_key(path))
        placed[at] = path
    return [path for path in placed if path is not None]


def _key(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


def _marked(path: PurePosixPath, mark: str) -> PurePosixPath:
    stem = path.stem
    while len(f"{stem}~{mark}{path.suffix}".encode()) > MAX_NAME and stem:
        stem = stem[:-1]
    return path.with_name(f"{stem}~{mark}{path.suffix}")
