"""Writing files so that a reader sees the old bytes or the new ones, never half, and never through a link that somebody put there.

Names that meca derives itself (`.NAME.meca`, `NAME.tmp`, locks) may be taken already: a supplier can ship anything beside the data.
What lies there is refused where it is a link or somebody else's, before anything is written, removed or followed.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Generator, Iterable
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

from meca.errors import MecaError, UsageError
from meca.text import plain

__all__ = [
    "atomic_write",
    "canonical_json",
    "code_digest",
    "copy_folder",
    "fresh_folder",
    "lock",
    "make_folder",
    "need_room",
    "open_named",
    "open_new",
    "open_plain",
    "own_folder",
    "read_json",
    "refuse_foreign",
    "replace_folder",
    "sha256_file",
    "sha256_tree",
    "sync",
]

SOURCE = (".py", ".html", ".css", ".js")  # what can change a result or a page; numbers are told apart
AWAY = "Remove it, or choose another place to write to."  # ends the sentences about what is in the way


def sync(path: Path) -> None:
    """Push a file or a folder entry to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a whole file: temporary neighbour, fsync, rename. What lay there, a link too, is replaced and never written through.

    Raises:
        UsageError: A folder has its name.
    """
    make_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open_new(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except UsageError:  # a folder is in its place
        raise
    except BaseException:  # a signal comes at any moment, too
        temporary.unlink(missing_ok=True)  # on a full disk it would be in the way of the next try
        raise
    try:
        os.replace(temporary, path)
    except IsADirectoryError:
        temporary.unlink()
        raise UsageError(f"{path} is a folder, and meca writes a file there. {AWAY}") from None
    sync(path.parent)


@contextlib.contextmanager
def open_new(path: Path) -> Generator[BufferedWriter]:
    """Open a file for writing that is not there yet: what has its name is unlinked, so that neither a link nor a second name is written through.

    Raises:
        UsageError: A folder has its name.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except FileExistsError:
        if stat.S_ISDIR(path.lstat().st_mode):
            raise UsageError(f"{path} is a folder, and meca writes a file there. {AWAY}") from None
        path.unlink()
        handle = os.open(path, flags, 0o666)
    with open(handle, "wb") as file:
        yield file


def open_plain(path: Path) -> BufferedReader:
    """Open a file for reading that may be anything by now; a pipe would wait for a writer for ever.

    Raises:
        FileNotFoundError: There is none.
        UsageError: It is no file, or a link.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a link, which meca does not follow. {AWAY}") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UsageError(f"{path} is no file. {AWAY}")
    return open(handle, "rb")


def open_named(path: Path, limit: int, what: str) -> BufferedReader:
    """Open a file that the user named: a link of theirs is followed, a pipe not waited for, and what is too large is not begun.

    Args:
        path: Where it should be.
        limit: Bytes.
        what: What should be there.

    Raises:
        UsageError: Nothing is there that can be read, or it is no file, or larger.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        found = "none" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or "a name that no file can have"
        raise UsageError(f"Expected {what} at {plain(path)}, found {found}; name a file that can be read.") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(handle)
        found = f"{status.st_size:,} bytes" if stat.S_ISREG(status.st_mode) else "a folder" if stat.S_ISDIR(status.st_mode) else "no file"
        raise UsageError(f"Expected {what} of at most {limit:,} bytes at {plain(path)}, found {found}; name another file.")
    return open(handle, "rb")


def make_folder(path: Path) -> None:
    """Make a folder and those above it; after a power failure too it is there.

    Raises:
        UsageError: A file has its name.
    """
    if not path.is_dir():
        make_folder(path.parent)
        try:
            path.mkdir(exist_ok=True)
        except FileExistsError:
            raise UsageError(f"{path} is no folder, and meca needs one there. {AWAY}") from None
        sync(path.parent)


def refuse_foreign(path: Path, below: bool = False) -> None:
    """Refuse what has the name of a folder of meca's and is none of this user's. Nothing there is fine.

    Args:
        path: Itself; a link in the folders above it is the user's own business.
        below: Look at all that lies in it, too: folders and files of this user alone may.

    Raises:
        UsageError: It is a link, is no folder, belongs to another user, or cannot be looked at.
    """
    left, mine = [str(path)], {os.geteuid()}
    while left:
        place = left.pop()
        try:
            status = os.lstat(place)
            folder = stat.S_ISDIR(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                raise UsageError(f"{place} is a link, which meca does not follow. {AWAY}")
            if not folder and (place == str(path) or not stat.S_ISREG(status.st_mode)):
                raise UsageError(f"{place} is no folder{'' if place == str(path) else ' and no file'}. {AWAY}")
            if status.st_uid not in mine and status.st_uid != _owner_of_new(Path(place).parent):
                raise UsageError(f"{place} belongs to another user, so meca neither trusts nor replaces it. {AWAY}")
            mine.add(status.st_uid)
            if folder and below:
                left += (entry.path for entry in os.scandir(place))
        except FileNotFoundError:
            continue  # never there, or another process has just removed it
        except OSError as error:
            raise UsageError(f"{place} cannot be looked at ({error.strerror}). {AWAY}") from None


def _owner_of_new(folder: Path) -> int:
    """Return whose a file is that this process makes in a folder: some network disks call all files those of one user, whoever makes them."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid


def own_folder(path: Path, top: Path) -> Path:
    """Make the folder `path`, with those down to it from `top`, and return it. Of these none may be a link or another user's.

    Raises:
        UsageError: One of them is.
    """
    for folder in reversed([path, *path.parents][: len(path.relative_to(top).parts) + 1]):
        refuse_foreign(folder)
        make_folder(folder)
    return path


def fresh_folder(path: Path) -> Path:
    """Make an empty folder and return it; what a killed run left there is removed.

    Raises:
        UsageError: What is there is a link, no folder, or another user's.
    """
    refuse_foreign(path)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    make_folder(path)
    return path


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

    Raises:
        UsageError: The older one is a link, no folder, or another user's.
    """
    refuse_foreign(final)
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
        old = final.with_name(f".{final.name}.old")  # hidden, as all that is not the user's to name
        refuse_foreign(old)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(old)
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
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def code_digest(root: Path = Path(__file__).parent, files: Iterable[Path] | None = None) -> str:
    """Return the SHA-256 over names and contents of source files: the one answer to "which code was this?".

    Args:
        root: Names are relative to it; the package `meca` if left out.
        files: Which files; all source below `root` if None.
    """
    if files is None:
        files = (path for path in root.rglob("*") if path.suffix in SOURCE and path.is_file())
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        digest.update(f"{name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def lock(path: Path, what: str) -> Generator[None]:
    """Hold `path` exclusively; a second holder fails at once instead of writing over the first.

    The kernel releases the lock when the holder dies, however it dies.

    Raises:
        MecaError: Another process holds it.
        UsageError: The lock is no file of its own: a link, or a second name of some other file, which would lose what it holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(_opened(path), "r+", encoding="ascii", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read(20).strip() or "unknown"
            raise MecaError(f"{what} is being written by process {owner} (lock {path}); wait for it or end it.") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _opened(path: Path) -> int:
    """Return a descriptor of a lock, which is made if it is not there."""
    sentence = f"The lock {path} is no file of its own (a link, a second name, a pipe), and meca would write into what it leads to. Remove it."
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise UsageError(sentence) from None
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise UsageError(sentence)
    return handle
