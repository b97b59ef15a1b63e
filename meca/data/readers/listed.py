"""Lists of files beside the files: Hugging Face's metadata folder, and a manifest.

* metadata: `metadata.csv`, `.jsonl` or `.parquet` in the folder, or one in each of `train/`, `test/`, with a column `file_name`
* manifest: one CSV, JSON lines or parquet file (or one for each split, named after it) with a column of paths

Paths are relative to the list. One that leaves the folder, is absolute, an address or a drive refuses the list; a link is
never followed, and a file that is missing is a sample that cannot be read. A column `split`, or paths that all begin
with `train/`, `test/`, say which rows are for evaluation only.
"""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.decoder.decode import MAX_BYTES
from meca.data.readers.beside import Beside, is_table
from meca.data.readers.files import NotRegular, clean_name, inside, open_below, read_below, text
from meca.data.readers.imagefolder import OTHER_SUFFIXES, walk
from meca.data.readers.imagefolder import SUFFIXES as IMAGES
from meca.data.readers.labels import classes_of, numbered
from meca.data.readers.questions import question_of_lists
from meca.data.readers.rows import LABELS, PATHS, SUFFIXES, Rows, columns_of, is_list, read_rows
from meca.data.readers.source import Found, Source
from meca.data.readers.splits import SPLITS, by_name, quoted, seeming, splits_of
from meca.data.readers.tables import Room, Table
from meca.errors import InputRefused, UsageError

__all__ = ["manifests_of", "metadata_of", "open_manifest", "open_metadata", "tables_of"]


def metadata_of(path: Path) -> list[Path]:
    """Return the metadata files that `path` names: itself, that of the folder, or those of its split folders."""
    if path.is_file():
        return [path] if path.stem == "metadata" and path.suffix in (".csv", ".jsonl", ".parquet") else []
    places = [path / f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet")]
    found = [place for place in places if _is_file(place)]
    for split in SPLITS:
        found += [path / split / place.name for place in places if _is_file(path / split / place.name)]
    return found


def manifests_of(path: Path, is_meant: bool = False) -> list[Path]:
    """Return the lists of files that `path` names: itself, or those in the folder that are headed like one.

    Where nobody has said that there is a list (`is_meant`), only the usual names of columns count: of all others meca asks.
    """
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    tables = tables_of(path)
    return [file for file in tables if is_list(file)] or [file for file in tables if is_meant and is_list(file, is_meant)]


def tables_of(path: Path) -> list[Path]:
    """Return what a folder holds that has the suffix of a list."""
    if not path.is_dir():
        return []
    files = sorted((file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and _is_file(file)), key=os.fsencode)
    return [file for file in files if file.stem != "metadata"]


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def open_metadata(path: Path, label_column: str = "auto") -> Source:
    """Return the source of a folder with metadata files; `label_column` says which column holds the label.

    Raises:
        InputRefused: A list is damaged, a path leaves the folder, a row has no label, or a test class is unknown.
        UsageError: Two files or columns could be meant.
    """
    found = metadata_of(path)
    if not found:
        raise InputRefused(f"Expected metadata.csv, metadata.jsonl or metadata.parquet in {text(path.name)} or its split folders, found none.")
    root = path.parent if path.is_file() else path
    folders = [file.parent.relative_to(root).as_posix() for file in found]
    twice = next((folder for folder, times in Counter(folders).items() if times > 1), None)
    if twice is not None or ("." in folders and len(found) > 1):
        names = " and ".join(file.relative_to(root).as_posix() for file in found[:2])
        raise UsageError(f"{text(root.resolve().name)} holds {names}: which one counts? Move the other one away.")
    splits = {file: None if folder == "." else SPLITS[folder] for file, folder in zip(found, folders, strict=True)}
    source = _open("metadata", root, splits, label_column)
    if path.is_file():
        return source
    asked = _asked(root, found, source)
    listed = set(source.options.pop("listed"))
    odd: list[str] = []
    for file in walk(root, odd, root):
        name = text(file.relative_to(root).as_posix())
        if name not in listed and name.lower().endswith((*IMAGES, *OTHER_SUFFIXES)):
            odd.append(name)
    return _with(source, odd, asked)


def open_manifest(path: Path, label_column: str = "auto") -> Source:
    """Return the source of a list of files, or of a folder that holds one; `label_column` says which column holds the label.

    Raises:
        InputRefused: As `open_metadata`.
        UsageError: Two files or columns could be meant.
    """
    found = manifests_of(path, is_meant=True)
    if not found:
        others = [f"{text(file.name)} with the columns {', '.join(map(repr, columns_of(file)[:8])) or 'none'}" for file in tables_of(path)[:3]]
        raise InputRefused(
            f"Expected a CSV, JSON lines or parquet file with the columns path and label at {text(path.name)}, found "
            + (
                f"{'; '.join(others)}. Call the column of the paths one of {', '.join(PATHS)}, and that of the labels one of {', '.join(LABELS)} "
                "(params.yaml: ingest.label_column names another one)."
                if others
                else "none."
            )
        )
    root = path.parent if path.is_file() else path
    named = {file: by_name(file.stem) for file in found}
    if len(found) > 1 and None in named.values():
        raise UsageError(
            f"{text(root.resolve().name)} holds the lists {' and '.join(text(file.name) for file in found[:2])}: "
            "which one counts? Point to that file."
        )
    splits: dict[Path, str | None] = dict.fromkeys(found)
    if len(found) > 1:
        by_word = splits_of([text(file.stem) for file in found], "list")
        splits = {file: by_word[text(file.stem)] for file in found}
    source = _open("manifest", root, splits, label_column, is_meant=True)
    return _with(source, [], None if path.is_file() else _asked(root, found, source))


def _with(source: Source, odd: list[str], asked: Callable[[], str | None] | None) -> Source:
    options = {key: value for key, value in source.options.items() if key != "listed"}
    return dataclasses.replace(source, options=options, odd=tuple(odd), question=asked)


def _asked(root: Path, used: list[Path], source: Source) -> Callable[[], str | None]:
    """Return the question of a folder with lists: whether further tables name the same images."""
    paths: list[str] = source.options["listed"]

    def asked() -> str | None:
        names = [file.name for file in root.iterdir() if is_table(file.name) and file not in used and text(file.name) == file.name]
        beside = [Beside(name, functools.partial(open_below, root, PurePosixPath(name))) for name in names]
        shown = [text(file.relative_to(root).as_posix()) for file in used]
        return question_of_lists(text(root.resolve().name), shown, paths, source.class_names, beside)

    return asked


def _open(format: str, root: Path, splits: dict[Path, str | None], label_column: str, is_meant: bool = False) -> Source:
    """Return the source of lists; `splits` gives the split of each list, None where its rows have to say it."""
    if sum(split != "test" for split in splits.values()) != 1:
        raise InputRefused(f"Expected one list for split train below {text(root.resolve().name)}, found {sum(s != 'test' for s in splits.values())}.")
    samples: dict[str, list[tuple[PurePosixPath, str]]] = {"train": [], "test": []}
    kept: list[int] = []  # rows of the list of split train that belong to it
    about: dict[str, Any] = {}
    train, main = Path(), None
    for file, split in splits.items():
        name = text(file.relative_to(root).as_posix())
        if clean_name(file.name) != file.name or text(file.name) != file.name:
            raise InputRefused(f"Expected a list with an ordinary name, got {name!r}; rename it.")
        rows = read_rows(file, name, label_column, is_meant)
        below = file.parent.relative_to(root)
        paths = [_path(value, below, name, number) for number, value in enumerate(rows.paths, 1)]
        given = [split] * len(paths) if split is not None else _row_splits(rows, paths, name)
        for at, (path, label, belongs) in enumerate(zip(paths, rows.labels, given, strict=True)):
            if path == PurePosixPath(name):
                raise InputRefused(f"Row {at + 1} of {name} names the list itself; drop that row.")
            samples[belongs].append((path, label))
            if split != "test" and belongs == "train":
                kept.append(at)
        if split != "test":
            train, main = file, rows
            about = {"name": name, "kind": rows.kind, "head": rows.head, "delimiter": rows.delimiter}
            about |= {"label": rows.label_column, "columns": list(rows.names), "schema": rows.schema}
    assert main is not None, "one list is for split train"
    rows = main
    class_names = classes_of((label for _, label in samples["train"]), about["name"])
    number = numbered(class_names, {str(path): label for path, label in samples["test"]})
    times = Counter(path for listed in samples.values() for path, _ in listed)
    seen: Counter[PurePosixPath] = Counter()
    names = {split: [_unique(path, seen) for path, _ in listed] for split, listed in samples.items()}

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        for at in np.flatnonzero(take):
            path, label = samples[split][at]
            # Which of two rows about one file counts nobody can know.
            yield _read(root, path, names[split][at], number[label], "listed-twice" if times[path] > 1 else None)

    def columns(split: str, take: NDArray[np.bool_]) -> pa.Table:
        chosen = np.flatnonzero(take)
        if rows.kind != "parquet":
            lines = [rows.raw[kept[at]] for at in chosen] if split == "train" else [""] * len(chosen)
            return pa.table({"raw": pa.array(lines, pa.large_string())})
        table = _whole(train, about["name"])
        fields = [field.with_nullable(True) for field in table.schema]
        if split == "train":
            return table.take(pa.array([kept[at] for at in chosen], pa.int64())).cast(pa.schema(fields))
        return pa.Table.from_arrays([pa.nulls(len(chosen), field.type) for field in fields], schema=pa.schema(fields))

    return Source(
        format=format,
        name=text(root.resolve().name),
        class_names=class_names,
        labels={split: np.array([number[label] for _, label in listed], np.int64) for split, listed in samples.items()},
        read=read,
        columns=columns,
        options={"list": about, "label_column": rows.label_column, "listed": [str(path) for listed in samples.values() for path, _ in listed]},
    )


def _whole(file: Path, name: str) -> pa.Table:
    """Return all rows of a parquet list, with all their columns."""
    room = Room.of([file], name)
    with Table(file, name) as table:
        pieces = [piece for group in range(len(table.rows)) for piece in table.pieces(table.schema.names, room, group)]
    return pa.concat_tables(pieces) if pieces else table.schema.empty_table()


def _path(value: str, below: Path, name: str, number: int) -> PurePosixPath:
    try:
        return PurePosixPath(below.as_posix()) / inside(value)
    except ValueError as problem:
        raise InputRefused(
            f"The path {value[:200]!r} in row {number} of {name} {problem}; expected one below the folder of the list, written with /."
        ) from None


def _row_splits(rows: Rows, paths: list[PurePosixPath], name: str) -> list[str]:
    if rows.splits is not None:
        unknown = next((at for at, word in enumerate(rows.splits) if word.lower() not in SPLITS), None)
        if unknown is not None:
            raise InputRefused(f"Expected the split to be one of {', '.join(SPLITS)}, got {rows.splits[unknown]!r} in row {unknown + 1} of {name}.")
        return [SPLITS[word.lower()] for word in rows.splits]
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    words = tops & set(SPLITS)
    if "train" not in words or len(words) == 1:
        unclear = seeming(tops)
        if {"train", "test"} <= set(unclear.values()):
            raise UsageError(
                f"Paths of {name} begin with {quoted(sorted(unclear))}, which look like splits: add a column split that says train or test, "
                "or drop the rows that are not for training."
            )
        return ["train"] * len(paths)
    other = next((path for path in paths if path.parts[0] not in SPLITS or len(path.parts) == 1), None)
    if other is not None:
        raise UsageError(
            f"Paths of {name} begin with the splits {', '.join(sorted(words))}, but {str(other)!r} does not: are they splits or classes? "
            "Add a column split."
        )
    return [SPLITS[path.parts[0]] for path in paths]


def _unique(path: PurePosixPath, seen: Counter[PurePosixPath]) -> str:
    seen[path] += 1
    return str(path) if seen[path] == 1 else f"{path}#{seen[path]}"


def _read(root: Path, path: PurePosixPath, name: str, label: int, reason: str | None) -> Found:
    try:
        return Found(name, label, data=read_below(root, path, MAX_BYTES), reason=reason)
    except NotRegular as problem:
        return Found(name, label, reason=str(problem))
