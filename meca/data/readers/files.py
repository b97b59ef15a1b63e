"""Opening files of a folder that nobody vouches for: regular files only, no links, sizes capped."""

import errno
import os
import re
import stat
import unicodedata
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from meca.errors import InputRefused

__all__ = [
    "MAX_NAME",
    "OTHER_SUFFIXES",
    "SUFFIXES",
    "NotRegular",
    "clean_name",
    "inside",
    "open_below",
    "open_regular",
    "read_below",
    "read_capped",
    "read_whole",
    "text",
]
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp")  # of images
OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm", ".heic", ".avif")

MAX_PATH = 4096  # characters of a path in a list or an archive
MAX_DEPTH = 32
MAX_NAME = 255  # bytes of one name on the usual file systems
DIRECTION = frozenset(map(chr, (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))


class NotRegular(Exception):  # noqa: N818 - it is caught for each sample and becomes a line of the store
    """A file that is no regular file, or is too large; the argument is a short stable code."""


def read_capped(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        NotRegular: It is a link, a device or a pipe, cannot be opened, or is larger than `limit`.
    """
    try:
        # A pipe would block and a link could lead anywhere.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        _raise_ours(problem)
        raise NotRegular("link" if path.is_symlink() else "cannot-open") from None
    return _read(number, limit)


def _raise_ours(problem: OSError) -> None:
    """Raise what says nothing about the file: the process has no descriptor or no memory left, and the sample is not to blame."""
    if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise problem


def _read(number: int, limit: int) -> bytes:
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        os.close(number)
        raise NotRegular("not-a-file")
    with open(number, "rb") as file:
        if status.st_size > limit:
            raise NotRegular("too-many-bytes")
        try:
            data = file.read(status.st_size + 1)  # not the limit: so much memory is taken before a byte is read
        except OSError:
            raise NotRegular("cannot-read") from None
    if len(data) > status.st_size:
        raise NotRegular("cannot-read")  # it grew meanwhile
    return data


def read_below(root: Path, name: PurePosixPath, limit: int) -> bytes:
    """Return the bytes of a regular file below `root`; no part of `name` may be a link.

    Raises:
        NotRegular: As `read_capped`, or the file is missing, or a folder on the way is a link.
    """
    return _read(_open_below(root, name), limit)


def open_below(root: Path, name: PurePosixPath) -> BinaryIO:
    """Return an opened regular file below `root`; no part of `name` may be a link.

    Raises:
        NotRegular: As `read_below`, whatever its size.
    """
    number = _open_below(root, name)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise NotRegular("not-a-file")
    return open(number, "rb")


def _open_below(root: Path, name: PurePosixPath) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Folder by folder from an open one: between a check and the use nobody can put a link in.
        for part in name.parts[:-1]:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name.name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise NotRegular("missing") from None
    except OSError as problem:
        _raise_ours(problem)
        # A link to a folder is "not a directory" here, as a file in the middle of a path is: neither leads to an image.
        raise NotRegular("link" if problem.errno in (errno.ELOOP, errno.ENOTDIR) else "cannot-open") from None
    finally:
        os.close(folder)


def open_regular(path: Path) -> BinaryIO:
    """Return an opened regular file that the source consists of; whoever named it may have named a link.

    Raises:
        InputRefused: It cannot be opened, or is a device or a pipe.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        raise InputRefused(f"{text(path.name)} cannot be opened: {problem.strerror}.") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise InputRefused(f"Expected {text(path.name)} to be a regular file.")
    return open(number, "rb")


def inside(name: str) -> PurePosixPath:
    """Return a name out of a list or an archive as a relative path of ordinary names.

    Raises:
        ValueError: With what is wrong: it leaves the folder, is absolute or an address, or holds what no name should.
    """
    if not name or len(name) > MAX_PATH:
        raise ValueError("is empty" if not name else "is too long")
    if "\0" in name:
        raise ValueError("holds a NUL character")
    if "\\" in name:
        raise ValueError("holds a backslash")
    if name.startswith("/"):
        raise ValueError("is absolute")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
        raise ValueError("is an address or begins with a drive")
    path = PurePosixPath(name)
    if ".." in path.parts:
        raise ValueError("leaves the folder")
    if not path.parts or len(path.parts) > MAX_DEPTH:
        raise ValueError("names no file" if not path.parts else f"has more than {MAX_DEPTH} folders")
    try:
        # What cannot be decoded is a sample of its own (`name-not-utf8`), not a reason to refuse the others.
        shown = text(name).replace("\\x", "x")
    except UnicodeEncodeError:
        raise ValueError("holds half a character") from None
    if any(clean_name(part) != part for part in shown.split("/") if part not in ("", ".")):
        raise ValueError("holds control characters or a name that is too long")
    return path


def read_whole(path: Path, limit: int) -> bytes:
    """Return the bytes of a file without which the source cannot be read.

    Raises:
        InputRefused: As `read_capped`, in a sentence.
    """
    try:
        return read_capped(path, limit)
    except NotRegular as problem:
        raise InputRefused(f"Expected {path.name} to be a regular file of at most {limit / 2**20:.0f} MiB, but it is refused ({problem}).") from None


def text(name: str) -> str:
    """Return a file name as text that can be stored: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def clean_name(part: str) -> str:
    """Return one part of a path as a name that can neither leave its folder nor turn a screen's text around.

    Separators, control characters, line ends and marks of direction are written as `%` and hex digits; an ordinary name
    comes back unchanged.
    """
    if part in ("", ".", ".."):
        return "%2E" * len(part) or "%00"
    cleaned = "".join(f"%{ord(c):02X}" if c in "/\\" or c in DIRECTION or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in part)
    while len(cleaned.encode()) > MAX_NAME:
        cleaned = cleaned[:-1]
    return cleaned
