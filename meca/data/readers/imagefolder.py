"""ImageFolder: `<class>/*`, or the same below `train/`, `val/`, `test/`.

`train` is what is sanitized; `val` and `test` are for evaluation only. Order is that of the names' bytes, links are not
followed, and a file that is not an image is a sample that cannot be read, not a file that is overlooked.
"""

import functools
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from meca.data.decoder.decode import MAX_BYTES
from meca.data.readers.beside import Beside, is_table
from meca.data.readers.files import OTHER_SUFFIXES, SUFFIXES, NotRegular, clean_name, open_below, read_capped, text
from meca.data.readers.questions import Contents, question
from meca.data.readers.source import Found, Source
from meca.data.readers.splits import SPLITS, refuse_beside, seeming
from meca.errors import InputRefused

__all__ = ["LITTER", "OTHER_SUFFIXES", "SUFFIXES", "class_folders", "only_folder", "open_imagefolder", "refuse_twins", "walk"]

LITTER = ("thumbs.db", "desktop.ini")  # file managers leave them behind
MAX_DEPTH = 16
LOOKS_LIKE_SPLIT = 3  # folders below one that looks like a split: class folders, below one or two of the same name
MAX_FILES = 20_000_000


def class_folders(root: Path) -> set[str]:
    """Return the names of the folders, at the root or below a split folder, that hold a file named like an image.

    One that only looks like a split is among them where images lie further down: they are somebody's, and what it is has to be asked.
    """
    found: set[str] = set()
    folders = [entry for entry in _entries(root) if entry.is_dir(follow_symlinks=False)]
    splits = seeming(entry.name for entry in folders).keys() - SPLITS.keys()
    for entry in folders:
        inner = _entries(Path(entry.path))
        if _holds_image(inner) or (entry.name in splits and _holds_image(inner, LOOKS_LIKE_SPLIT)):
            found.add(entry.name)
        if entry.name in SPLITS:
            found |= {deep.name for deep in inner if deep.is_dir(follow_symlinks=False) and _holds_image(_entries(Path(deep.path)))}
    return found


def _holds_image(entries: list[os.DirEntry[str]], depth: int = 0) -> bool:
    """Say whether a file named like an image is among the entries of a folder, or in folders at most `depth` below it."""
    if any(entry.name.lower().endswith((*SUFFIXES, *OTHER_SUFFIXES)) for entry in entries):
        return True
    folders = (entry for entry in entries if depth and entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."))
    return any(_holds_image(_entries(Path(folder.path)), depth - 1) for folder in folders)


def only_folder(root: Path) -> Path | None:
    """Return the one folder that a folder holds, hidden ones aside; None where there are others, or none."""
    folders = [entry for entry in _entries(root) if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
    return Path(folders[0].path) if len(folders) == 1 else None


def open_imagefolder(root: Path) -> Source:
    """Return the source of a folder of class folders.

    Raises:
        InputRefused: A class is empty, a link, or hard to tell from another one by name; a test class is unknown.
        UsageError: Class folders and split folders stand side by side.
    """
    odd: list[str] = []
    splits = _splits(root, odd)
    folders = {folder: _classes(root / folder, odd, root) for folder in splits}
    class_names = sorted({name for folder in splits if SPLITS.get(folder, "train") == "train" for name in folders[folder]}, key=os.fsencode)
    if not class_names:
        raise InputRefused(f"Expected class folders with images below {root.name}{'/train' if splits != [''] else ''}, found none.")
    refuse_twins(class_names)
    number = {name: label for label, name in enumerate(class_names)}
    listed: dict[str, list[tuple[Path, str, int]]] = {"train": [], "test": []}
    for folder in splits:
        split = SPLITS.get(folder, "train")
        for name in folders[folder]:
            if name not in number:
                raise InputRefused(f"Expected the classes of {folder}/ to be those of train/, but {text(name)!r} is not among them.")
            files = list(walk(root / folder / name, odd, root))
            if not files and split == "train":
                where = "/".join(part for part in (folder, text(name)) if part)
                raise InputRefused(f"Expected images in the class folder {where!r}, found none; add images or delete the folder.")
            listed[split] += [(path, text(path.relative_to(root).as_posix()), number[name]) for path in files]
            if len(listed[split]) > MAX_FILES:
                raise InputRefused(f"Expected at most {MAX_FILES} files below {root.name}, found more.")
    for split in listed:
        listed[split].sort(key=lambda item: os.fsencode(item[0]))

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        for (path, name, label), wanted in zip(listed[split], take, strict=True):
            if wanted:
                yield _read(path, name, label)

    names = [name for _, name, _ in listed["train"]]

    def asked() -> str | None:
        beside = [
            Beside(name, functools.partial(open_below, root, PurePosixPath(name))) for name in (*odd, *(name for name in names if is_table(name)))
        ]
        return question(Contents(text(root.resolve().name), "imagefolder", class_names, 0 if splits == [""] else 1, names, beside))

    return Source(
        format="imagefolder",
        name=text(root.resolve().name),
        class_names=tuple(class_names),
        labels={split: np.array([label for _, _, label in items], np.int64) for split, items in listed.items()},
        read=read,
        options={"split_folders": splits != [""]},
        odd=tuple(odd),
        question=asked,
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise InputRefused(f"The folder {text(folder.name)!r} cannot be listed: {error.strerror}.") from None


def _splits(root: Path, odd: list[str]) -> list[str]:
    """Return the split folders, or the empty name where the class folders stand at the root."""
    names = [e.name for e in _entries(root) if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
    found = [name for name in names if name in SPLITS]
    # A class may be called `test`; a split folder holds folders, not images.
    found = [name for name in found if any(e.is_dir(follow_symlinks=False) for e in _entries(root / name))]
    if not found:
        return [""]
    others = [name for name in names if name not in found]
    if others:
        refuse_beside(text(root.resolve().name), found, others, packed=False)
    if "train" not in found:
        raise InputRefused(f"Expected a folder train/ beside {', '.join(found)}; only split train is sanitized.")
    odd += [text(e.name) for e in _entries(root) if not e.is_dir(follow_symlinks=False)]
    return found


def _classes(folder: Path, odd: list[str], root: Path) -> list[str]:
    names: list[str] = []
    for entry in _entries(folder):
        where = text(Path(entry.path).relative_to(root).as_posix())
        if entry.is_symlink() and Path(entry.path).is_dir():
            raise InputRefused(f"The class folder {where!r} is a link, and links are not followed; put the folder itself there.")
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            odd.append(where)
        elif text(entry.name) != entry.name or clean_name(entry.name) != entry.name:
            raise InputRefused(f"Expected class folders named in UTF-8, without control characters and backslashes, got {where!r}; rename it.")
        else:
            names.append(entry.name)
    return names


def refuse_twins(names: Iterable[str]) -> None:
    """Refuse class folders that are one folder on a system without case or with other Unicode rules, or that look like one."""
    seen: dict[str, str] = {}
    for name in names:
        # Characters that are not shown go, and so do blanks and dots at the end, as Windows has it.
        shown = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
        key = unicodedata.normalize("NFC", shown.casefold()).rstrip(" .")
        if key in seen:
            raise InputRefused(f"The class folders {seen[key]!r} and {name!r} are one folder on some systems, or look like one; rename one of them.")
        seen[key] = name


def walk(folder: Path, odd: list[str], root: Path, depth: int = 0) -> Iterator[Path]:
    """Yield what lies below `folder` and is no folder, in the order of the names; hidden files and litter go into `odd`."""
    if depth > MAX_DEPTH:
        raise InputRefused(f"Expected at most {MAX_DEPTH} folders inside each other, found more below {text(folder.name)!r}.")
    for entry in _entries(folder):
        if entry.name.startswith(".") or entry.name.lower() in LITTER:
            odd.append(text(Path(entry.path).relative_to(root).as_posix()))
        elif entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path), odd, root, depth + 1)
        else:
            yield Path(entry.path)


def _read(path: Path, name: str, label: int) -> Found:
    try:
        data = read_capped(path, MAX_BYTES)
    except NotRegular as problem:
        return Found(name, label, reason=str(problem))
    return Found(name, label, data=data, reason="name-not-utf8" if text(path.name) != path.name else None)
