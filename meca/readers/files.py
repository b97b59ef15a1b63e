"""Opening files of a folder that nobody vouches for: regular files only, no links, sizes capped."""

import os
import stat
import unicodedata
from pathlib import Path

from meca.errors import InputRefused

__all__ = ["MAX_NAME", "NotRegular", "clean_name", "read_capped", "read_whole", "text"]

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
    except OSError:
        raise NotRegular("link" if path.is_symlink() else "cannot-open") from None
    with open(number, "rb") as file:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular("not-a-file")
        if status.st_size > limit:
            raise NotRegular("too-many-bytes")
        try:
            data = file.read(limit + 1)
        except OSError:
            raise NotRegular("cannot-read") from None
    if len(data) > limit:
        raise NotRegular("too-many-bytes")
    return data


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
