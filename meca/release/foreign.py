"""A folder that somebody else wrote: the one way to open what lies in it, and the one way to read its JSON.

Whatever is opened is a regular file below the folder: no link leads to it, no pipe is waited for, no device is read. What is
read whole is capped, and what JSON becomes in memory is bounded by its size. Whoever names the folder may name a link.
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

from meca.errors import MecaError
from meca.text import plain

__all__ = ["MAX_JSON", "Folder", "Missing", "Unfit", "inside", "parse_object", "read_object"]

MAX_NAME = 4096  # characters of a name with its folders
MAX_DEPTH = 64  # folders inside each other; meca writes at most half as many
MAX_JSON = 256 * 2**20  # bytes
MAX_LEVELS = 32  # of JSON inside JSON
FREE_VALUES = 2**16  # that a small file may hold, however short they are
CHUNK = 2**20  # bytes that are hashed at a time
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder"}
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}  # say nothing about the folder
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # one that does not end reaches to the end, so that each byte is seen once


class Unfit(MecaError):  # noqa: N818 - it becomes a sentence about the folder
    """Something in a folder of somebody else that is not read; the message says what and why."""


class Missing(Unfit):
    """A file that is not there."""


class Folder:
    """An opened folder. Names are relative to it, with `/`; every error about them is `Unfit`, and `Missing` where nothing is there."""

    def __init__(self, path: Path) -> None:
        """Open the folder.

        Raises:
            Unfit: It cannot be opened, or is no folder.
        """
        try:
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            _raise(str(path), error)
        self.path = path
        self._way: list[tuple[str, int]] = []  # the folders that lead to the file before: the next one is often its neighbour

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._back(0)
        os.close(self._root)

    def read(self, name: str, limit: int) -> bytes:
        """Return the bytes of a file that has at most `limit` of them."""
        number, size = self._open(name)
        with open(number, "rb") as file:
            if size > limit:
                raise Unfit(f"{plain(name)} is larger than {limit // 2**20} MiB.")
            try:
                data = file.read(size + 1)  # not the limit: so much memory is taken before a byte is read
            except OSError as error:
                _raise(name, error)
        if len(data) != size:
            raise Unfit(f"{plain(name)} changes while it is read.")
        return data

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file of any size as 64 hex digits."""
        number, left = self._open(name)
        digest = hashlib.sha256()
        try:
            # To the end as it was: a file that grows without end is not followed.
            while left > 0 and (data := os.read(number, min(left, CHUNK))):
                digest.update(data)
                left -= len(data)
        except OSError as error:
            _raise(name, error)
        finally:
            os.close(number)
        return digest.hexdigest()

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        number, size = self._open(name)
        os.close(number)
        return size

    def holds(self, name: str) -> bool:
        """Tell whether anything of this name lies at the top of the folder, whatever it is."""
        try:
            os.lstat(name, dir_fd=self._root)
        except OSError:
            return False
        return True

    def walk(self) -> Iterator[tuple[str, bool]]:
        """Yield the name of everything in the folder, in no order, and whether it is a folder; links are not followed."""
        yield from self._walk(self._root, "", 0)

    def _walk(self, folder: int, above: str, depth: int) -> Iterator[tuple[str, bool]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name, is_folder = above + entry.name, entry.is_dir(follow_symlinks=False)
                    yield name, is_folder
                    if is_folder:
                        yield from self._below(folder, entry.name, name, depth + 1)
        except OSError as error:
            _raise(above.rstrip("/") or "The folder", error)

    def _below(self, folder: int, part: str, name: str, depth: int) -> Iterator[tuple[str, bool]]:
        if depth > MAX_DEPTH:
            raise Unfit(f"{plain(name)} lies more than {MAX_DEPTH} folders deep, where meca writes nothing.")
        try:
            inner = os.open(part, FLAGS | os.O_DIRECTORY, dir_fd=folder)
        except OSError as error:
            _raise(name, error)
        try:
            yield from self._walk(inner, f"{name}/", depth)
        finally:
            os.close(inner)

    def _open(self, name: str) -> tuple[int, int]:
        """Return the descriptor of a regular file, and its size."""
        if not inside(name):
            raise Unfit(f"{plain(name)!r} is no name inside the folder.")
        *folders, last = name.split("/")
        try:
            folder = self._enter(folders, name)
            # Looked at before it is opened: to open a device may do something already.
            _refuse(os.lstat(last, dir_fd=folder), name, "")
            number = os.open(last, FLAGS, dir_fd=folder)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have here
            _raise(name, error)
        status = os.fstat(number)
        try:
            _refuse(status, name, "")
        except Unfit:
            os.close(number)
            raise
        return number, status.st_size

    def _enter(self, folders: list[str], name: str) -> int:
        """Return the descriptor of the folder that a file lies in, entered folder by folder: no part of the way may be a link."""
        known = 0
        while known < min(len(folders), len(self._way)) and self._way[known][0] == folders[known]:
            known += 1
        self._back(known)
        folder = self._way[-1][1] if self._way else self._root
        for part in folders[known:]:
            try:
                inner = os.open(part, FLAGS | os.O_DIRECTORY, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    _refuse(os.lstat(part, dir_fd=folder), name, part)
                raise
            self._way.append((part, inner))
            folder = inner
        return folder

    def _back(self, depth: int) -> None:
        while len(self._way) > depth:
            os.close(self._way.pop()[1])


def _refuse(status: os.stat_result, name: str, behind: str) -> None:
    """Refuse what is no regular file; `behind` names a folder on the way to it."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        where = f"lies behind the link {plain(behind)}" if behind else "is a link"
        raise Unfit(f"{plain(name)} {where}, and links are not followed.")
    if not behind and kind != stat.S_IFREG:
        raise Unfit(f"{plain(name)} is {KINDS.get(kind, 'something else')}, not a regular file.")


def _raise(name: str, error: Exception) -> NoReturn:
    """Raise what a failed call means for `name`; what says nothing about the folder is raised as it is."""
    number = error.errno if isinstance(error, OSError) else None
    if number in OURS:
        raise error
    if number in (errno.ENOENT, errno.ENOTDIR):
        raise Missing(f"{plain(name)} is missing.") from None
    why = error.strerror if isinstance(error, OSError) else "no name that a file can have"
    raise Unfit(f"{plain(name)} cannot be opened ({why}).") from None


def inside(name: str) -> bool:
    """Tell whether a name leads to a place inside the folder, and is written as meca writes names."""
    parts = name[: MAX_NAME + 1].split("/")
    return len(name) <= MAX_NAME and len(parts) <= MAX_DEPTH + 1 and not {"", ".", ".."} & set(parts) and not {"\\", "\0"} & set(name)


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file that others may have written.

    Raises:
        Unfit: The file is missing, is no regular file, is larger than 256 MiB, or holds no JSON object as meca writes it.
    """
    with Folder(file.parent) as folder:
        return parse_object(folder.read(file.name, MAX_JSON), file.name)


def parse_object(data: bytes, name: str, each: int = 8) -> dict[str, Any]:
    """Return the JSON object in `data`: UTF-8, no key twice, finite numbers, at most 32 levels.

    Args:
        data: The content of a file.
        name: What errors call it.
        each: Bytes that a value has on an average, at least; it bounds what the values take in memory to about 200 bytes for so many.

    Raises:
        Unfit: It is something else.
    """
    if _values(data) > FREE_VALUES + len(data) // each and _values(STRING.sub(b"", data)) > FREE_VALUES + len(data) // each:
        _not_json(name, f"it holds more values than there can be in {len(data)} bytes")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        _not_json(name, f"it is nested more than {MAX_LEVELS} levels deep")
    except ValueError as error:
        _not_json(name, plain(error, 100))
    if not isinstance(value, dict):
        raise Unfit(f"{name} holds no object.")
    level: list[Any] = [value]
    for _ in range(MAX_LEVELS):
        level = [inner for each_ in level for inner in _inner(each_) if isinstance(inner, dict | list)]
    if level:
        _not_json(name, f"it is nested more than {MAX_LEVELS} levels deep")
    return value


def _values(data: bytes) -> int:
    return sum(data.count(sign) for sign in (b",", b"[", b"{"))


def _not_json(name: str, why: str) -> NoReturn:
    raise Unfit(f"{name} is not JSON as meca writes it: {why}.") from None


def _inner(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal keys json keeps the last; who reads the file with another program may see the first.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a key twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}, which is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("it holds a number that is too large")
    return value
