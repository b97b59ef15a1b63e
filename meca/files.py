"""Writing files so that a reader sees the old bytes or the new ones, never half."""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from meca.errors import MecaError

__all__ = [
    "atomic_write",
    "canonical_json",
    "copy_folder",
    "lock",
    "make_folder",
    "need_room",
    "read_json",
    "replace_folder",
    "sha256_file",
    "sha256_tree",
    "sync",
]


def sync(path: Path) -> None:
    """Push a file or a folder entry to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a whole file: temporary neighbour, fsync, rename."""
    make_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a signal comes at any moment, too
        temporary.unlink(missing_ok=True)  # on a full disk it would be in the way of the next try
        raise
    os.replace(temporary, path)
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; after a power failure too it is there."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def need_room(folder: Path, size: int, what: str) -> None:
    """Refuse work that the disk of `folder` cannot hold, before it has begun.

    Args:
        folder: Where it would be written.
        size: Bytes.
        what: Begins the message.

    Raises:
        MecaError: Less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MecaError(
            f"{what} needs about {size / 2**20:,.1f} MiB on the disk of {folder}, where {free / 2**20:,.1f} MiB are free; "
            "make room there or choose another --output."
        )


def copy_folder(source: Path, target: Path, copy: Callable[[Path, Path], object] = shutil.copyfile) -> None:
    """Copy the files below `source` into the folder `target`, and stop at the first failure, which `shutil.copytree` does not.

    Args:
        source: A folder.
        target: A folder that need not exist; no file in it may have the name of a copy.
        copy: Copies one file.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        else:
            copy(path, place)


def canonical_json(value: Any, indent: int | None = 2) -> str:
    """Return JSON with sorted keys: equal values give equal bytes. NaN is refused, because JSON has none."""
    return json.dumps(value, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Return the parsed content of a JSON file that meca wrote.

    Raises:
        MecaError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MecaError(f"Expected the file {path}, which does not exist; run the stage that writes it.") from None
    except ValueError as error:
        raise MecaError(f"{path} is not JSON ({error}); run the stage that writes it again.") from None


def replace_folder(temporary: Path, final: Path) -> None:
    """Put a finished folder in the place of an older one.

    A reader sees the old folder or the new one, at any moment and after any kill. Where the system cannot swap two folders
    (other than Linux, some network file systems) there is a moment in which it finds none, never a mixed one.
    """
    # Once for each file, at the end; and the folders, without which a file may be there and its name not.
    for path in (*sorted(temporary.rglob("*")), temporary):
        sync(path)
    make_folder(final.parent)
    if not final.exists():
        os.replace(temporary, final)
    elif _exchange(temporary, final):
        sync(final.parent)  # the old one goes only when the swap is on the disk
        shutil.rmtree(temporary)
    else:
        old = final.with_name(final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
        os.replace(temporary, final)
        shutil.rmtree(old)
    sync(final.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step and return True, or return False where that is not possible."""
    if first.is_symlink() or second.is_symlink():
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(path: Path) -> str:
    """Return one SHA-256 for a file or for all files below a folder (relative name and content, sorted by name)."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise MecaError(f"Expected a file or a folder at {path}, found neither.")
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def lock(path: Path, what: str) -> Generator[None]:
    """Hold `path` exclusively; a second holder fails at once instead of writing over the first.

    The kernel releases the lock when the holder dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise MecaError(f"{what} is being written by process {owner} (lock {path}); wait for it or end it.") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
