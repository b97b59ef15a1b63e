"""A folder of class folders in a zip or tar archive, read in place: members are streamed, nothing is extracted.

Names are data and lead nowhere; one that would leave the folder refuses the archive. Only regular files are samples:
links, devices, encrypted members, names that occur twice and members that unpack to far more than they are packed in are
quarantined. Archives inside the archive are not opened. A zip and a plain tar archive are read in the order of the names,
as a folder is; a gzipped one in its own order, because it cannot be read in another.
"""

import dataclasses
import functools
import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.decoder.decode import MAX_BYTES
from meca.data.readers.beside import Beside, is_table, needed
from meca.data.readers.files import NotRegular, inside, open_below, open_regular, text
from meca.data.readers.imagefolder import LITTER, OTHER_SUFFIXES, refuse_twins
from meca.data.readers.imagefolder import SUFFIXES as IMAGES
from meca.data.readers.questions import Contents, question
from meca.data.readers.source import Found, Source
from meca.data.readers.splits import SPLITS, refuse_beside
from meca.data.readers.tar_members import Member, Tar, is_gzip
from meca.errors import InputRefused, UsageError

__all__ = ["ARCHIVES", "TARS", "archives_of", "looks_of", "open_tar", "open_zip"]

TARS = (".tar", ".tar.gz", ".tgz")
ARCHIVES = (*TARS, ".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
MAX_DIRECTORY = 192 * 2**20  # bytes of a zip archive's list of members
SMALL = 2**20  # bytes: below, a ratio says nothing
FREE = 256 * 2**20
MAX_RATIO, MAX_RATIO_OF_ALL = 200, 20  # unpacked to packed: of a member, of the archive
PEEK, PEEK_BYTES = 2000, 64 * 2**20  # how far `looks_of` looks


@dataclass(frozen=True)
class _Sample:
    path: PurePosixPath
    label: str
    member: int  # which member of the archive


def archives_of(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the archives that `path` names: itself, or those in the folder."""
    if path.is_file():
        return [path] if path.name.lower().endswith(tuple(suffixes)) else []
    if not path.is_dir():
        return []
    found = [file for file in path.iterdir() if file.name.lower().endswith(tuple(suffixes)) and file.is_file() and not file.is_symlink()]
    return sorted(found, key=os.fsencode)


def looks_of(path: Path) -> dict[str, bool]:
    """Say whether the first members of a tar archive look like class folders (tar), and like samples with their labels (webdataset)."""
    images: dict[str, str] = {}
    labelled: set[str] = set()
    try:
        with Tar(path) as archive:
            for number, member in enumerate(archive):
                if number >= PEEK or member.offset > PEEK_BYTES:
                    break
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                if f".{extension.lower()}" in IMAGES:
                    images[f"{folder}/{key}"] = folder
                elif extension.lower() in ("cls", "json"):
                    labelled.add(f"{folder}/{key}")
    except InputRefused:
        return {"tar": True, "webdataset": False}  # whoever opens it says what is wrong
    webdataset = bool(labelled & images.keys())
    return {"tar": not webdataset or len(set(images.values()) - {""}) > 1, "webdataset": webdataset}


def open_zip(path: Path) -> Source:
    """Return the source of a zip archive.

    Raises:
        InputRefused: It is damaged, a name leads out, members overlap, it unpacks to far too much, or it has no class folders.
        UsageError: It is not clear which archive, or whether folders are splits or classes.
    """
    file = _one(path, (".zip",))
    members = _zip_members(file)
    layout = _layout(text(file.name), [info.filename for info in members], [_zip_kind(info) for info in members])

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        with open_regular(file) as opened, zipfile.ZipFile(opened) as archive:
            for sample, name, label, reason in layout.wanted(split, take):
                info = members[sample.member]
                reason = reason or _refused(info)
                if reason is not None:
                    yield Found(name, label, reason=reason)
                    continue
                try:
                    with archive.open(info) as content:
                        data = content.read(min(info.file_size, MAX_BYTES) + 1)
                except Exception:  # hostile bytes: the library fails in more ways than it says, and one member must not end the run
                    yield Found(name, label, reason="corrupt")
                else:
                    yield Found(name, label, data=data)

    def columns(split: str, take: NDArray[np.bool_]) -> pa.Table:
        infos = [members[sample.member] for sample, _, _, _ in layout.wanted(split, take)]
        return pa.table(
            {
                "at": pa.array([sample.member for sample, _, _, _ in layout.wanted(split, take)], pa.int64()),
                "time": pa.array([list(info.date_time) for info in infos], pa.list_(pa.int64())),
                "method": pa.array([info.compress_type for info in infos], pa.int64()),
                "attributes": pa.array([info.external_attr for info in infos], pa.int64()),
                "system": pa.array([info.create_system for info in infos], pa.int64()),
            }
        )

    def content(at: int, limit: int) -> BinaryIO:
        if _refused(members[at]) is not None:
            raise NotRegular("refused")
        with open_regular(file) as opened, zipfile.ZipFile(opened) as archive:
            try:
                with archive.open(members[at]) as member:
                    return io.BytesIO(member.read(limit))
            except Exception:  # as above
                raise NotRegular("corrupt") from None

    return layout.source("zip", file, read, columns, _asked(path, file, layout, "zip", content))


def _zip_members(file: Path) -> list[zipfile.ZipInfo]:
    name = text(file.name)
    with open_regular(file) as opened:
        size = opened.seek(0, 2)
        opened.seek(0)
        try:
            with zipfile.ZipFile(_Limited(opened)) as archive:  # pyright: ignore[reportArgumentType]
                members = archive.infolist()
        except _TooLong:
            raise InputRefused(f"Expected the list of members of {name} to have at most {MAX_DIRECTORY // 2**20} MiB, but it is longer.") from None
        except Exception as problem:  # hostile bytes: the library fails in more ways than it says
            raise InputRefused(f"{name} is not a readable zip archive ({problem}); get it again.") from None
    if sum(info.file_size for info in members) > max(FREE, MAX_RATIO_OF_ALL * size):
        raise InputRefused(f"{name} unpacks to more than {MAX_RATIO_OF_ALL} times its size; unpack it yourself if you trust it.")
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise InputRefused(f"Members of {name} overlap ({info.filename[:200]!r} begins inside another one), which happens only by intent.")
        end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
    for info in members:
        if "\0" in info.orig_filename:
            raise InputRefused(f"The member {info.orig_filename[:200]!r} of {name} holds a NUL character; expected ordinary names.")
    return members


class _TooLong(Exception):  # noqa: N818 - it becomes an InputRefused
    """A read of more bytes than a list of members may have."""


class _Limited:
    """A file that does not read more than `MAX_DIRECTORY` bytes at once."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell, self.close, self.seekable = file.seek, file.tell, file.close, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise _TooLong
        return self._file.read(MAX_DIRECTORY if size < 0 else size)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.filename.endswith("/"):  # `is_dir` fails on an empty name
        return "other" if info.file_size else "folder"
    kind = info.external_attr >> 28  # the file type of Unix, where the archive comes from there; 0 elsewhere
    return {0: "file", 0o10: "file", 0o12: "link", 0o4: "folder"}.get(kind, "other")


def _refused(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression:{info.compress_type}"
    if info.file_size > MAX_BYTES:
        return "too-many-bytes"
    if info.file_size > max(SMALL, MAX_RATIO * info.compress_size):
        return "unpacks-to-too-much"
    return None


def open_tar(path: Path) -> Source:
    """Return the source of a tar archive, plain or gzipped.

    Raises:
        InputRefused: As `open_zip`.
        UsageError: As `open_zip`.
    """
    file = _one(path, TARS)
    with Tar(file) as archive:
        members = list(archive)
    layout = _layout(text(file.name), [member.name for member in members], [member.kind for member in members], by_name=not is_gzip(file))

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        with Tar(file) as archive:
            for sample, name, label, reason in layout.wanted(split, take):
                member = members[sample.member]
                reason = reason or ("too-many-bytes" if member.size > MAX_BYTES else None)
                yield Found(name, label, reason=reason) if reason else Found(name, label, data=archive.read(member))

    def columns(split: str, take: NDArray[np.bool_]) -> pa.Table:
        at = [sample.member for sample, _, _, _ in layout.wanted(split, take)]
        return pa.table({"at": pa.array(at, pa.int64()), "header": pa.array([members[number].header for number in at], pa.large_binary())})

    def content(at: int, limit: int) -> BinaryIO:
        with Tar(file) as archive:
            return io.BytesIO(archive.read(dataclasses.replace(members[at], size=min(members[at].size, limit))))

    return layout.source("tar", file, read, columns, _asked(path, file, layout, "tar", content), gzip=is_gzip(file), padded=_padded(file, members))


def _asked(path: Path, file: Path, layout: "_Layout", format: str, content: Callable[[int, int], BinaryIO]) -> Callable[[], str | None]:
    """Return the question of an archive; where a folder was named, a list beside the archive counts, too."""

    def asked() -> str | None:
        beside = [Beside(name, functools.partial(content, at, needed(name))) for name, at in layout.beside]
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir() if is_table(entry.name) and text(entry.name) == entry.name)
            beside += [Beside(name, functools.partial(open_below, path, PurePosixPath(name))) for name in names]
        paths = [str(sample.path) for sample in layout.samples["train"]]
        return question(Contents(text(file.name), format, layout.class_names, layout.depth, paths, beside))

    return asked


def _padded(file: Path, members: list[Member]) -> bool:
    """Say whether a plain archive ends with a full record, as most programs write it."""
    return not members or is_gzip(file) or file.stat().st_size % 10240 == 0


def _one(path: Path, suffixes: Sequence[str]) -> Path:
    found = archives_of(path, suffixes)
    if not found:
        raise InputRefused(f"Expected an archive ({', '.join(suffixes)}) at {text(path.name)}, found none.")
    if len(found) > 1:
        raise UsageError(
            f"{text(path.name)} holds the archives {' and '.join(text(file.name) for file in found[:2])}: which one counts? Point to that file."
        )
    return found[0]


@dataclass(frozen=True)
class _Layout:
    class_names: tuple[str, ...]
    samples: dict[str, list[_Sample]]
    reasons: dict[int, str]  # by member: why it is no sample that can be read
    depth: int  # which part of a path is the class folder
    names: dict[int, str]  # by member: the name of the sample
    odd: tuple[str, ...]
    beside: list[tuple[str, int]]  # what could be a list of the images: name and member

    def wanted(self, split: str, take: NDArray[np.bool_]) -> Iterator[tuple[_Sample, str, int, str | None]]:
        """Yield sample, name, label and reason of those of a split that are wanted."""
        number = {name: label for label, name in enumerate(self.class_names)}
        for at in np.flatnonzero(take):
            sample = self.samples[split][at]
            yield sample, self.names[sample.member], number[sample.label], self.reasons.get(sample.member)

    def source(self, format: str, file: Path, read: Any, columns: Any, question: Callable[[], str | None], **options: Any) -> Source:
        """Return the source over this layout."""
        number = {name: label for label, name in enumerate(self.class_names)}
        return Source(
            format=format,
            name=text(file.name),
            class_names=self.class_names,
            labels={split: np.array([number[sample.label] for sample in samples], np.int64) for split, samples in self.samples.items()},
            read=read,
            columns=columns,
            options={"archive": text(file.name), "depth": self.depth, **options},
            odd=self.odd,
            question=question,
        )


def _layout(archive: str, names: list[str], kinds: list[str], by_name: bool = True) -> _Layout:
    """Return which members are samples of which class; `by_name` orders them as the files of a folder."""
    odd: list[str] = []
    files: list[tuple[PurePosixPath, int]] = []
    reasons: dict[int, str] = {}
    for at, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        path = _inside(name, archive)
        if kind == "folder" or path is None:
            continue
        if any(part.startswith(".") or part == "__MACOSX" for part in path.parts) or path.name.lower() in LITTER:
            odd.append(_shown(path))
        elif path.name.lower().endswith(ARCHIVES):
            odd.append(_shown(path))  # an archive in an archive is not opened
        else:
            files.append((path, at))
            if kind != "file":
                reasons[at] = "link" if kind == "link" else "not-a-file"
            elif _shown(path) != str(path):
                reasons[at] = "name-not-utf8"
    depth = _common(files)
    beside = [(path, at) for path, at in files if at not in reasons and (is_table(path.name) or len(path.parts) < depth + 2)]
    outside = [path for path, _ in files if len(path.parts) < depth + 2]
    odd += [_shown(path) for path in outside]
    files = [(path, at) for path, at in files if len(path.parts) >= depth + 2]
    split_of = _split_folders(archive, files, depth)
    inner = depth + (1 if split_of else 0)
    if split_of:
        odd += [_shown(path) for path, _ in files if len(path.parts) < inner + 2]
        files = [(path, at) for path, at in files if len(path.parts) >= inner + 2]
    samples: dict[str, list[_Sample]] = {"train": [], "test": []}
    for path, at in sorted(files, key=lambda item: os.fsencode(item[0])) if by_name else files:
        split = split_of[path.parts[depth]] if split_of else "train"
        samples[split].append(_Sample(path, path.parts[inner], at))
    class_names = tuple(sorted({sample.label for sample in samples["train"]}, key=os.fsencode))
    if not class_names:
        raise InputRefused(f"Expected class folders with images in {archive}, found none; another layout has to be unpacked first.")
    unclear = next((name for name in class_names if text(name) != name), None)
    if unclear is not None:
        raise InputRefused(f"Expected class folders named in UTF-8 in {archive}, got {text(unclear)!r}; rename it.")
    refuse_twins(class_names)
    unknown = next((sample for sample in samples["test"] if sample.label not in class_names), None)
    if unknown is not None:
        raise InputRefused(
            f"Expected the classes of the test split of {archive} to be those of train/, but {text(unknown.label)!r} is not among them."
        )
    times = Counter(path for path, _ in files)
    reasons |= {at: "name-twice" for path, at in files if times[path] > 1}
    return _Layout(class_names, samples, reasons, inner, _sample_names(files), tuple(odd), [(_shown(path), at) for path, at in beside])


def _inside(name: str, archive: str) -> PurePosixPath | None:
    if name.rstrip("/") in ("", "."):
        return None
    try:
        return inside(name)
    except ValueError as problem:
        raise InputRefused(f"The member {name[:200]!r} of {archive} {problem}; expected names below one folder, written with /.") from None


def _shown(path: PurePosixPath) -> str:
    return text(str(path))


def _sample_names(files: list[tuple[PurePosixPath, int]]) -> dict[int, str]:
    seen: Counter[PurePosixPath] = Counter()
    names: dict[int, str] = {}
    for path, at in files:
        seen[path] += 1
        names[at] = _shown(path) + (f"#{seen[path]}" if seen[path] > 1 else "")
    return names


def _common(files: list[tuple[PurePosixPath, int]]) -> int:
    """Return how many folders all images lie in together, above the class folders: an archive of a folder has its name in front."""
    images = [path.parts for path, _ in files if path.name.lower().endswith((*IMAGES, *OTHER_SUFFIXES))]
    depth = 0
    while images and len({parts[depth] for parts in images}) == 1 and images[0][depth] not in SPLITS and all(len(p) >= depth + 3 for p in images):
        depth += 1
    return depth


def _split_folders(archive: str, files: list[tuple[PurePosixPath, int]], depth: int) -> dict[str, str]:
    """Return the split of each split folder; nothing where the class folders stand alone."""
    tops = {path.parts[depth] for path, _ in files}
    found = sorted({path.parts[depth] for path, _ in files if len(path.parts) >= depth + 3} & set(SPLITS))
    if not found:
        return {}
    others = sorted(tops - set(found))
    if others:
        refuse_beside(archive, found, others, packed=True)
    if "train" not in found:
        raise InputRefused(f"Expected a folder train/ beside {', '.join(found)} in {archive}; only split train is sanitized.")
    return {name: SPLITS[name] for name in found}
