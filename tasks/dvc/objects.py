"""Where the objects of a DVC repository lie: its cache, a cache of the user's own, and one remote.

A repository comes with its configuration, from whoever supplied it. Of that only the addresses are taken, and no file of
settings and no command, of which each could run a program; what the user has set for all repositories is obeyed as it
stands. Nothing is ever written to any of these places, and what is read there is for the reader to compare with its MD5.
"""

import configparser
import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meca.data.readers.files import NotRegular, read_capped
from meca.errors import InputRefused, MecaError, system_failure
from meca.text import plain
from tasks import environment
from tasks.dvc import remote
from tasks.dvc.stage import chain

__all__ = ["Place", "Places", "Read", "Wrong", "opened", "places"]

MAX_FILE = 64 * 2**10  # bytes of a configuration: those of DVC have some hundred
MAX_LINE = 2048  # characters of one of its lines
BLOCK = 8 * 2**20  # bytes that a storage is asked for at once
SCHEMES = ("s3", "https", "http")  # of remotes that a repository may name, beside folders
ADDRESS = {  # what is taken of such a remote
    "url", "endpointurl", "region", "profile", "access_key_id", "secret_access_key", "session_token", "allow_anonymous_login", "use_ssl",
    "auth", "user", "password",
}  # fmt: skip
YES = {"true", "yes", "on", "1"}  # as DVC understands it

Read = Callable[[int], bytes]


class Wrong(Exception):  # noqa: N818 - it is caught and becomes a sentence
    """Something is not what it should be; the argument goes on after a name, as in "is a link"."""


@dataclass(frozen=True)
class Place:
    """A cache or a remote."""

    name: str  # as a message calls it
    open: Callable[[str], contextlib.AbstractContextManager[Read]]  # an object by MD5; FileNotFoundError where it has none


@dataclass(frozen=True)
class Places:
    """Where to look, in this order, and why not elsewhere."""

    found: Sequence[Place]
    left_out: Sequence[str]


@dataclass(frozen=True)
class _Settings:
    core: Mapping[str, Any]
    cache: Mapping[str, Any]
    remotes: Mapping[str, Mapping[str, Any]]


def places(file: Path) -> Places:
    """Return where the objects may lie that a .dvc file names; MECA_REMOTE_URL stands before any other remote.

    Raises:
        InputRefused: The configuration of the repository is not what DVC writes.
    """
    found, left_out = list[Place](), list[str]()
    root, own = _root(file), _own_settings()
    theirs = _settings(root / ".dvc") if root else _Settings({}, {}, {})
    if root is None:
        left_out.append(f"{plain(file.name, 100)} lies in no DVC repository")
    else:
        folder = root / ".dvc" / _expanded(theirs.cache.get("dir") or "cache")
        if Path(os.path.realpath(folder)).is_relative_to(root):
            found.append(_local("the cache", folder, root))
        else:
            left_out.append(f"the cache of the repository, {plain(folder, 200)}, lies outside of it and is not read")
    if "dir" in own.cache:
        found.append(_local(f"the cache {plain(own.cache['dir'], 200)}", Path(own.cache["dir"])))
    name = str(theirs.core.get("remote") or own.core.get("remote") or "")
    called = f"the remote {plain(name, 60)!r}"
    try:
        if url := os.environ.get("MECA_REMOTE_URL"):
            found.append(_remote("the remote of MECA_REMOTE_URL", {"url": url}, Path()))
        elif root is not None and "url" in theirs.remotes.get(name, {}):
            found.append(_remote(called, _address(theirs.remotes[name]), root / ".dvc"))
        elif "url" in own.remotes.get(name, {}):
            found.append(_remote(called, own.remotes[name], Path()))
        elif root is not None:
            left_out.append(f"{called} has no url there" if name else "no remote is configured there")
    except Wrong as why:
        left_out.append(f"{called} {why}")
    return Places(found, left_out)


def _root(file: Path) -> Path | None:
    """Return the folder of the DVC repository that a file lies in."""
    start = Path(os.path.realpath(file.parent))
    for folder in (start, *start.parents):
        place = folder / ".dvc"
        if place.is_symlink():
            raise InputRefused(f"{plain(place)} is a link, so the repository that {plain(file.name, 100)} lies in is not read.")
        if place.is_dir():
            return folder
    return None


def _own_settings() -> _Settings:
    """Return what the user and this machine have set for all repositories."""
    environment.prepare()
    from dvc.config import Config

    with remote.explained("pull"):
        found = Config()
    return _Settings(found["core"], found["cache"], found["remote"])


def _settings(folder: Path) -> _Settings:
    """Return the configuration in a folder `.dvc`; config.local counts more."""
    core, cached, remotes = dict[str, str](), dict[str, str](), dict[str, dict[str, str]]()
    for name in ("config", "config.local"):
        for section, values in _sections(folder / name).items():
            if match := re.fullmatch(r"'?remote\s*\"([^\"]*)\"'?", section):
                remotes.setdefault(match[1].lower(), {}).update(values)
            elif section in ("core", "cache"):
                (core if section == "core" else cached).update(values)
    if "remote" in core:
        core["remote"] = core["remote"].lower()
    return _Settings(core, cached, remotes)


def _sections(file: Path) -> dict[str, dict[str, str]]:
    """Return a configuration by section. Not with DVC's own parser, whose patterns take hours for lines that are made for it."""
    if not os.path.lexists(file):
        return {}
    try:
        lines = read_capped(file, MAX_FILE).decode("utf-8").splitlines()
        if any(len(line) > MAX_LINE or "\0" in line for line in lines):
            raise ValueError(f"it has a line of more than {MAX_LINE} characters, or a NUL")
        parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), default_section="\0")
        parser.read_string("\n".join(line.strip() for line in lines))
    except NotRegular as problem:
        raise InputRefused(f"Expected {plain(file)} to be a file of at most {MAX_FILE // 2**10} KiB, but it is refused ({problem}).") from None
    except (ValueError, configparser.Error) as error:
        raise InputRefused(f"{plain(file)} is no configuration of DVC: {plain(' '.join(str(error).split()), 200)}.") from None
    return {section: {key: _unquoted(value) for key, value in parser[section].items()} for section in parser.sections()}


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _address(given: Mapping[str, str]) -> dict[str, str]:
    """Return what is taken of a remote that a repository names.

    Raises:
        Wrong: It leads to a storage that such a remote may not name, or one whose objects have other names.
    """
    url = given["url"]
    try:
        parts = urlsplit(url if "://" in url else "")
    except ValueError:
        raise Wrong("is not read: its address is none") from None
    if parts.scheme and parts.scheme != "file":
        if parts.scheme not in SCHEMES:
            allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise Wrong(f"is not read: a repository may name folders and {allowed}, and this one names {plain(parts.scheme, 20)}://")
        if parts.query or parts.fragment or parts.username is not None or not parts.netloc:
            raise Wrong("is not read: its address holds more than host and path")
    if any(given.get(option, "").lower() in YES for option in ("version_aware", "worktree")):
        raise Wrong("is not read: it keeps versions of files under their names (version_aware, worktree)")
    return {option: value for option, value in given.items() if option in ADDRESS}


def _remote(name: str, address: Mapping[str, Any], base: Path) -> Place:
    """Return a remote; a relative path is one below `base`."""
    url = str(address["url"])
    if "://" not in url or url.startswith("file://"):
        return _local(name, base / _expanded(url.removeprefix("file://")))

    @cache
    def connected() -> Any:
        from dvc.fs import get_cloud_fs

        found: Any = get_cloud_fs({}, **address)
        kind, settings, path = found
        return kind(**settings), path

    @contextlib.contextmanager
    def begun(digest: str) -> Generator[Read]:
        file = None
        with _used(name):
            storage, path = connected()
            try:
                file = storage.open(storage.join(path, "files", "md5", digest[:2], digest[2:]), "rb", block_size=BLOCK)
            except FileNotFoundError as error:
                # So it is called, too, when the server was not reached or said no.
                if not all(isinstance(link, FileNotFoundError) or remote.status(link) == 404 for link in chain(error)):
                    raise
        if file is None:
            raise FileNotFoundError

        def read(size: int) -> bytes:
            with _used(name):  # not what happens to the copy, which is of this machine
                return file.read(size)

        with file:
            yield read

    return Place(name, begun)


@contextlib.contextmanager
def _used(name: str) -> Generator[None]:
    """Turn what a storage raises into a sentence: for an address that somebody made up, its libraries raise anything."""
    try:
        with remote.explained("pull"):
            yield
    except MecaError:
        raise
    except Exception as error:
        if system_failure(error):
            raise
        said = plain(environment.without_secrets(str(error)), 200)
        raise MecaError(f"{name[0].upper()}{name[1:]} cannot be used: {type(error).__name__}: {said}") from None


def _expanded(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises where there is no such user


def _local(name: str, folder: Path, root: Path | None = None) -> Place:
    """Return a cache or a remote that is a folder; with `root` nothing that lies outside of that is taken for its own."""

    @cache
    def within(place: Path) -> bool:
        return root is None or Path(os.path.realpath(place)).is_relative_to(root)

    @contextlib.contextmanager
    def begun(digest: str) -> Generator[Read]:
        place = folder / "files" / "md5" / digest[:2]
        if not within(place):
            raise Wrong("lies behind a link that leads out of the repository")
        with opened(place / digest[2:]) as file:
            yield file.read

    return Place(name, begun)


@contextlib.contextmanager
def opened(path: Path) -> Generator[BufferedReader]:
    """Open a regular file: a pipe would block, and a link could lead anywhere.

    Raises:
        FileNotFoundError: There is none.
        Wrong: It is something else, or cannot be opened.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ENOTDIR):
            raise FileNotFoundError from None
        if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # the file is not to blame
            raise
        raise Wrong("is a link" if problem.errno == errno.ELOOP else f"cannot be opened ({problem.strerror})") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise Wrong("is no regular file")
    with open(number, "rb") as file:
        yield file
