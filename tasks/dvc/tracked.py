"""What one .dvc file tracks, copied here. Whoever supplied that file supplied the repository, its cache and its remote, too.

    <folder>/<name>        the copy; it appears whole
    <folder>.pulling/      the objects that an interrupted copy has so far, by MD5; the next one goes on from them

DVC is not asked to pull: it writes wherever the file, a link or a setting says, and trusts what it finds in a cache. So the
file is read here, and may say no more than what `dvc add` writes; every object is compared with its MD5 as it arrives, from
wherever that is (tasks/dvc/objects.py); and nothing is written but the copy.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from meca.data.readers.files import NotRegular, inside, read_capped
from meca.errors import InputRefused, MecaError, UsageError
from meca.files import lock, make_folder, need_room
from meca.params import parse_yaml
from meca.progress import Progress
from meca.text import plain
from tasks.dvc.objects import Places, Read, Wrong, opened, places

__all__ = ["Tracked", "copy", "read"]

MAX_FILE = 64 * 2**10  # bytes of a .dvc file: those of one file or folder have some hundred
MAX_LIST = 256 * 2**20  # bytes of the list of a folder's files, about two million of them
CHUNK = 2**20
SPARE = 64 * 2**20  # bytes of the disk that stay free
THREADS = 16  # small objects wait for the network, not for a core
AT_ONCE = 4096  # objects in the queue of the threads: a million would take gigabytes there
MD5 = "[0-9a-f]{32}"
# A line of the list as DVC writes it. Possessive, so that a long one is not tried in all its parts.
LINE = re.compile(rf'\{{"md5": "({MD5})", "relpath": ("(?:[ !#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-f]{{4}}){{1,4096}}+")\}}')
# What may stand in a .dvc file beside what is read here: words for people, and what only other commands of DVC heed.
NOTES = {"frozen", "desc", "meta", "md5"}
NOTES_OF_OUT = {"desc", "type", "labels", "meta", "push", "isexec"}


@dataclass(frozen=True)
class Tracked:
    """What a .dvc file says."""

    name: str  # of the file or folder beside it
    md5: str  # of the file, or of the list of the folder's files
    is_folder: bool
    size: int | None  # bytes of all files
    files: int | None  # of a folder


def read(file: Path) -> Tracked:
    """Return what a .dvc file tracks.

    Raises:
        InputRefused: It is no file that `dvc add` writes, or says more than what one file or folder beside it holds.
    """
    shown = plain(file.name, 100)

    def refused(what: str) -> InputRefused:
        return InputRefused(f"{shown} {what}; expected what `dvc add` writes about one file or folder beside it.")

    try:
        tree = parse_yaml(read_capped(file, MAX_FILE).decode("utf-8"), shown)
    except NotRegular as problem:
        words = {"too-many-bytes": f"is larger than {MAX_FILE // 2**10} KiB", "link": "is a link", "not-a-file": "is no regular file"}
        raise refused(words.get(str(problem), f"is refused ({problem})")) from None
    except UnicodeDecodeError:
        raise refused("is not UTF-8") from None
    except UsageError as error:
        raise InputRefused(f"{shown} is not what `dvc add` writes: {plain(error, 250)}") from None
    outs = tree.get("outs") if isinstance(tree, dict) else None
    if not isinstance(outs, list) or not all(isinstance(out, dict) for out in outs):
        raise refused("has no list `outs`")
    if odd := sorted({*tree} - {"outs", *NOTES}):
        raise refused(f"has the key {plain(odd[0], 60)!r}, which is not obeyed")
    if len(outs) != 1:
        raise refused(f"has {len(outs)} outs")
    return _out(outs[0], file.name.removesuffix(".dvc"), refused)


def _out(out: Mapping[str, Any], stem: str, refused: Callable[[str], InputRefused]) -> Tracked:
    if odd := sorted({*out} - {"md5", "hash", "path", "size", "nfiles", *NOTES_OF_OUT}):
        raise refused(f"has the key {plain(odd[0], 60)!r} in `outs`, which is not obeyed")
    try:
        is_plain = str(inside(stem)) == stem and "/" not in stem
    except ValueError:
        is_plain = False
    if not is_plain or out.get("path") != stem:
        raise refused(f"names the path {plain(out.get('path'), 100)!r}, which is not its own name without .dvc")
    if "hash" not in out:
        raise refused("has no `hash: md5`, as those of DVC 1 and 2 (`dvc cache migrate --dvc-files` writes it anew)")
    if out["hash"] != "md5":
        raise refused(f"knows the data by {plain(out['hash'], 40)!r}, and not by md5")
    digest = out.get("md5")
    if not isinstance(digest, str) or not re.fullmatch(rf"{MD5}(\.dir)?", digest):
        raise refused(f"has the md5 {plain(digest, 60)!r}, which is none")
    for name in ("size", "nfiles"):
        if name in out and (type(out[name]) is not int or out[name] < 0):
            raise refused(f"has the {name} {plain(out[name], 40)!r}, which is none")
    return Tracked(stem, digest.removesuffix(".dir"), digest.endswith(".dir"), out.get("size"), out.get("nfiles"))


def copy(file: Path, folder: Path, progress: Progress | None = None) -> Path:
    """Return where the data of a .dvc file lie: beside it, if they are there as it says, else in `folder`, where they are copied.

    Args:
        file: The .dvc file.
        folder: Of meca alone. A copy that is there as the file says stays; what else is there is removed.
        progress: Told what is going on.

    Raises:
        InputRefused: The file, the list of a folder's files or the configuration of the repository is not what DVC writes, or
            an object has another MD5.
        UsageError: Something else lies where the copy belongs.
        RemoteUnavailable: The network was away; another try may help.
        MecaError: An object lies nowhere, the remote cannot be used, or the disk is too small.
    """
    tracked = read(file)
    beside, place = file.with_name(tracked.name), folder / tracked.name
    if _is(beside, tracked):
        return beside
    work, guard = folder.with_name(f"{folder.name}.pulling"), folder.with_name(f"{folder.name}.fetching.lock")
    for own in (folder.parent, folder, work, work / "objects", work / "data", guard):
        if own.is_symlink() or (own.exists() and not (own.is_file() if own == guard else own.is_dir())):
            raise UsageError(f"Expected {plain(own)} to be a {'file' if own == guard else 'folder'} of meca, found something else; remove it.")
    make_folder(folder.parent)
    with lock(guard, f"The copy {plain(folder)}"):
        if not _is(place, tracked):
            if progress and beside.exists():
                progress.say(f"{beside} is not what {file.name} says; it stays as it is, and what the file says is copied and read.")
            _pull(file, tracked, work, progress)
            # Not `replace_folder`: it waits for the disk at each of a million files, and these are read again before they are believed.
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(work / "data", folder)
            shutil.rmtree(work)
    return place


def _is(path: Path, tracked: Tracked) -> bool:
    """Tell whether what lies at a path is what a .dvc file says: the same files by name and MD5, no other, and no link."""
    try:
        if not tracked.is_folder:
            return tracked.size in (None, path.lstat().st_size) and _md5(path) == tracked.md5
        if path.is_symlink() or not path.is_dir():
            return False
        found = sorted(_below(path))
        sizes = (each.lstat().st_size for _, each in found)
        if tracked.files not in (None, len(found)) or tracked.size not in (None, sum(sizes)):
            return False  # before all of it is read
        lines = [{"md5": _md5(each), "relpath": name} for name, each in found]
    except (OSError, Wrong):
        return False
    return _digest(json.dumps(lines).encode()).hexdigest() == tracked.md5  # what DVC would write about it


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield relative name and path of all that is no folder; a link to one is none."""
    waiting = [("", folder)]
    while waiting:
        above, place = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((f"{above}{entry.name}/", Path(entry.path)))
                else:
                    yield above + entry.name, Path(entry.path)


def _digest(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)  # DVC knows objects by nothing else


def _md5(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, _digest).hexdigest()


class _Room:
    """Bytes that may still be written, by all threads together."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Take bytes, or give them back where `size` is negative."""
        with self._lock:
            if size > self._left:
                raise Wrong("is larger than it may be")
            self._left -= size


def _pull(file: Path, tracked: Tracked, work: Path, progress: Progress | None) -> None:
    """Write what is tracked to `data` in `work`, out of objects that were compared with their MD5."""
    objects, data = work / "objects", work / "data"
    shutil.rmtree(data, ignore_errors=True)
    make_folder(objects)
    with os.scandir(objects) as entries:
        is_ours = all(entry.is_file(follow_symlinks=False) for entry in entries)
    if not is_ours:
        shutil.rmtree(objects)
        make_folder(objects)
    make_folder(data)
    if tracked.size is not None:
        need_room(work, tracked.size + SPARE, f"What {plain(file.name, 100)} tracks")
    limit = max(0, shutil.disk_usage(work).free - SPARE) if tracked.size is None else tracked.size
    pull = _Pull(file, objects, places(file), _Room(limit))
    if not tracked.is_folder:
        _agree(file, tracked, 1, pull.fetch(tracked.md5, tracked.name), limit)
        os.replace(objects / tracked.md5, data / tracked.name)
        return
    pull.fetch(f"{tracked.md5}.dir", f"the list of the files of {tracked.name}", _Room(MAX_LIST))
    names = _listed((objects / f"{tracked.md5}.dir").read_bytes(), plain(file.name, 100))
    sizes = pull.fetch_all(names, progress)
    _agree(file, tracked, len(names), sum(sizes[digest] for digest in names.values()), limit)
    (data / tracked.name).mkdir()
    for name, digest in names.items():
        target = data / tracked.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(objects / digest, target)  # two names of one object share it: nobody writes into either
        except OSError:
            shutil.copyfile(objects / digest, target)


def _agree(file: Path, tracked: Tracked, files: int, size: int, limit: int) -> None:
    for what, said, found in (("files", tracked.files, files), ("bytes", tracked.size, size)):
        if said not in (None, found):
            raise InputRefused(f"{plain(file.name, 100)} says {said} {what}, and what it tracks has {found}; it is not read.")
    if size > limit:  # names that share an object cost nothing here, and all the more where they are read
        raise InputRefused(f"What {plain(file.name, 100)} tracks has {size / 2**20:,.0f} MiB, more than the disk has room for; it is not read.")


def _listed(content: bytes, shown: str) -> dict[str, str]:
    """Return the MD5 of each file of a folder by its name, out of a list that was compared with its own MD5."""

    def refused(what: str) -> InputRefused:
        return InputRefused(f"The list of files that {shown} names {what}; expected one that DVC wrote. Nothing was copied.")

    text, names, at = content.decode("latin-1"), dict[str, str](), 1
    is_whole = text == "[]"
    while match := LINE.match(text, at):
        digest, name = match[1], json.loads(match[2])
        try:
            if str(inside(name)) != name:
                raise ValueError("is not written as a path is")
        except ValueError as problem:
            raise refused(f"has the path {plain(name, 100)!r}, which {problem}") from None
        if name in names:
            raise refused(f"has the path {plain(name, 100)!r} twice")
        names[name] = digest
        at = match.end()
        if not text.startswith(", ", at):
            is_whole = text[0] == "[" and text[at:] == "]"
            break
        at += 2
    if not is_whole:
        raise refused(f"is damaged after {len(names)} paths")
    folders = {str(above) for name in names for above in PurePosixPath(name).parents}
    if both := sorted(folders & names.keys()):
        raise refused(f"has {plain(both[0], 100)!r} as a file and as a folder")
    return names


@dataclass(frozen=True)
class _Pull:
    """Brings objects into a folder, under their MD5."""

    file: Path
    objects: Path
    places: Places
    room: _Room

    def fetch_all(self, names: Mapping[str, str], progress: Progress | None) -> dict[str, int]:
        """Fetch every object once and return its size by MD5."""
        wanted = [*{digest: name for name, digest in names.items()}.items()]
        sizes: dict[str, int] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for start in range(0, len(wanted), AT_ONCE):
                    jobs = {pool.submit(self.fetch, *each): each[0] for each in wanted[start : start + AT_ONCE]}
                    for job in as_completed(jobs):
                        sizes[jobs[job]] = job.result()
                        if progress and (len(sizes) % 100 == 0 or len(sizes) == len(wanted)):
                            progress("pull", len(sizes), len(wanted), self.file.name)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return sizes

    def fetch(self, digest: str, name: str, room: _Room | None = None) -> int:
        """Fetch one object from the first place that has it as it should be, and return its size."""
        target, room = self.objects / digest, room or self.room
        with contextlib.suppress(OSError, Wrong):  # of an interrupted copy
            if _md5(target) == digest.removesuffix(".dir"):
                size = target.lstat().st_size
                room.take(size)
                return size
        complaints: list[str] = []
        for place in self.places.found:
            try:
                with place.open(digest) as source:
                    return _kept(source, target, room)
            except FileNotFoundError:
                continue
            except Wrong as wrong:
                complaints.append(f"in {place.name} it {wrong}")
        what = f"{plain(self.file.name, 100)}: the object {digest[:12]} ({plain(name, 100)})"
        if complaints:
            raise InputRefused(f"{what} is not what it should be: {'; '.join(complaints)}. Whoever may write there is not to be trusted.")
        where = " and ".join(place.name for place in self.places.found) or "no place"
        raise MecaError(
            f"{what} was looked for in {where}, and is not there{''.join(f'; {why}' for why in self.places.left_out)}. "
            "Run `dvc push` where the data are, or set MECA_REMOTE_URL to the remote that has them."
        )


def _kept(source: Read, target: Path, room: _Room) -> int:
    """Copy an object whose MD5 is its name, and return its size; what is another leaves nothing behind."""
    part, digest, size = target.with_name(f"{target.name}.part"), _digest(), 0
    part.unlink(missing_ok=True)
    try:
        with open(part, "xb") as file:
            while chunk := source(CHUNK):
                room.take(len(chunk))
                size += len(chunk)
                digest.update(chunk)
                file.write(chunk)
        if (found := digest.hexdigest()) != target.name.removesuffix(".dir"):
            raise Wrong(f"has the MD5 {found[:12]}")
    except BaseException:
        part.unlink(missing_ok=True)
        room.take(-size)
        raise
    os.replace(part, target)
    return size
