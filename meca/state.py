"""What an earlier run left is used only where this user's meca wrote it: seals by a secret that lies outside of every folder with data.

A supplier can put anything beside the data, also what looks like the folder of a run that has finished, and hashes that are
public prove nothing. So receipts, checkpoints, records of a fetch and results that wait to be told carry a seal: an HMAC-SHA256
over their name, their place and their bytes. What has none that fits is made anew.

    $MECA_STATE_DIR/secret      else $XDG_STATE_HOME/meca/secret, else ~/.local/state/meca/secret: 32 bytes, for this user alone
    FILE.seal                   beside a file, or in `.meca/seals`: the seals of what is to be there and of what was there before

Seals are no outputs: they stay on this machine, and nothing that is published depends on them.
"""

import contextlib
import functools
import hashlib
import hmac
import json
import os
import secrets
import stat
from pathlib import Path

from meca.errors import UsageError
from meca.files import atomic_write, open_plain, sync

__all__ = ["fits", "lasts", "of_checkpoint", "read", "seal", "write"]

SIZE = 32  # bytes of the secret
LIMIT = 4 * 2**30  # bytes of what is read back at most: no checkpoint is larger


class _Refused(Exception):  # noqa: N818 - it is caught here and becomes a sentence
    """Why there is no secret that lasts."""


def lasts() -> str:
    """Return "" where seals outlive this process, else the sentence that says why they do not."""
    _, why = _secret(os.environ.get("MECA_STATE_DIR", ""), os.environ.get("XDG_STATE_HOME", ""), os.environ.get("HOME", ""))
    return why and (
        f"meca has no secret of its own here ({why}), so it cannot tell what it wrote itself from what somebody else put there: nothing of an "
        "earlier run is used. Set MECA_STATE_DIR to a folder for you alone, apart from all data."
    )


def seal(data: bytes, *name: str) -> str:
    """Return the seal of some bytes as 64 hex digits.

    Args:
        data: What it is.
        name: Of what kind it is, and where it belongs: the seal fits nothing else.
    """
    return _seal(hashlib.sha256(data).hexdigest(), name)


def fits(told: object, data: bytes, *name: str) -> bool:
    """Tell whether `told` is the seal of these bytes under this name."""
    return isinstance(told, str) and hmac.compare_digest(told.encode(errors="replace"), seal(data, *name).encode())


def of_checkpoint(path: Path) -> tuple[str, ...]:
    """Return the name under which a checkpoint is sealed; its folder is named after the stage, its output and its key."""
    return "checkpoint", path.parent.name, path.name


def write(path: Path, data: bytes, *name: str, seals: Path | None = None) -> None:
    """Write a file whole, with its seal.

    The seal comes first and leaves that of the older file standing, so that a kill at any moment leaves a file with a seal that fits.

    Args:
        path: The file.
        data: Its bytes.
        name: As `seal`.
        seals: The file of its seals; the one beside it if None.
    """
    _add(seals or _beside(path), seal(data, *name))
    atomic_write(path, data)


def read(path: Path, *name: str, seals: Path | None = None) -> bytes | None:
    """Return the bytes of a file that carries a seal; None where it has none that fits, or is not there. Arguments as `write`."""
    told = _read_seals(seals or _beside(path))
    if not told:
        return None
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_size > LIMIT:
                return None
            # Hashed before it is held: what is not ours may be of any size.
            right = _seal(hashlib.file_digest(file, "sha256").hexdigest(), name)
            if not any(hmac.compare_digest(each, right) for each in told):
                return None
            file.seek(0)
            return file.read()
    except (OSError, UsageError):
        return None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal")


def _add(seals: Path, new: str) -> None:
    before = [each for each in _read_seals(seals)[:1] if each != new]
    atomic_write(seals, "".join(f"{each}\n" for each in (new, *before)))


def _read_seals(seals: Path) -> list[str]:
    try:
        with open_plain(seals) as file:
            return [line for line in file.read(4096).decode("ascii").split() if len(line) == 64][:2]
    except (OSError, UsageError, UnicodeDecodeError):
        return []


def _seal(digest: str, name: tuple[str, ...]) -> str:
    key, _ = _secret(os.environ.get("MECA_STATE_DIR", ""), os.environ.get("XDG_STATE_HOME", ""), os.environ.get("HOME", ""))
    return hmac.new(key, json.dumps(["meca.seal/1", *name, digest]).encode(), hashlib.sha256).hexdigest()


@functools.cache
def _secret(given: str, base: str, home: str) -> tuple[bytes, str]:
    """Return the secret, and why it ends with this process where it does; by the variables that say where it lies."""
    try:
        return _lasting(_place(given, base)), ""
    except _Refused as error:
        return secrets.token_bytes(SIZE), str(error)
    except OSError as error:
        return secrets.token_bytes(SIZE), f"{error.filename}: {error.strerror}"


def _place(given: str, base: str) -> Path:
    """Return the file of the secret."""
    if given:
        if not Path(given).is_absolute():  # it would lie in the working directory, which may be a supplier's
            raise _Refused(f"MECA_STATE_DIR is {given!r}, which is no absolute path")
        return Path(given) / "secret"
    try:
        # The XDG specification: a relative path is to be ignored.
        folder = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:
        raise _Refused("this user has no home") from None
    if not folder.is_absolute():
        raise _Refused(f"the home of this user is {str(Path.home())!r}, which is no absolute path")
    return folder / "meca" / "secret"


def _lasting(file: Path) -> bytes:
    """Return the secret in a file, which is made at the first use."""
    folder = file.parent
    if not os.path.lexists(folder):
        above = next(parent for parent in folder.parents if parent.exists())
        if os.geteuid() == 0 != above.stat().st_uid:  # as with `sudo`: what root made there its owner could not read
            raise _Refused(f"{above} belongs to another user")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise _Refused(f"{folder} is {'a link' if stat.S_ISLNK(status.st_mode) else 'no folder'}")
    if status.st_uid != os.geteuid():
        raise _Refused(f"{folder} belongs to another user")
    if status.st_mode & 0o022:
        raise _Refused(f"others may write to {folder}: chmod go-w")
    if not os.path.lexists(file):
        _make(file)
    try:
        opened = open_plain(file)
    except UsageError:
        raise _Refused(f"{file} is a link, or no file") from None
    with opened:
        status, secret = os.fstat(opened.fileno()), opened.read(SIZE + 1)
    if status.st_uid != os.geteuid():
        raise _Refused(f"{file} belongs to another user")
    if status.st_mode & 0o077:
        raise _Refused(f"others may read {file}, and may have: remove it")
    if len(secret) != SIZE:
        raise _Refused(f"{file} is damaged: remove it")
    return secret


def _make(file: Path) -> None:
    """Write a new secret, whole or not at all; of two processes that begin side by side, one wins."""
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as opened:
            opened.write(secrets.token_bytes(SIZE))
            opened.flush()
            os.fsync(handle)
        try:
            os.link(temporary, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without links; there a second process may win by a hair, which costs it a resume
            os.replace(temporary, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    sync(file.parent)
