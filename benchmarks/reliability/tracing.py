"""What a program does to the disk, as strace sees it: record it once, then let one of its system calls kill it or fail.

Traps of strace 6.1, all of them seen: `-P` knows exact paths only, so temporary names have no random part; `when=` counts per call and per
thread; `--seccomp-bpf` switches injection off without a word, so nothing counts but the outcome that was injected; reads of a file are
`openat` too and count.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from meca.errors import UsageError

__all__ = ["CHANGES", "Call", "Fault", "Point", "disorder", "fail", "points", "read_record", "record", "record_network", "require_strace"]

CREATES = ("open", "openat", "creat")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile", "copy_file_range", "splice", "truncate", "ftruncate", "fallocate")
SYNCS = ("fsync", "fdatasync")
LINKS = ("link", "linkat", "symlink", "symlinkat")
RENAMES = ("rename", "renameat", "renameat2", *LINKS)
FOLDERS = ("mkdir", "mkdirat")
REMOVES = ("unlink", "unlinkat", "rmdir")
OTHERS = ("chmod", "fchmod", "fchmodat")
CHANGES = (*CREATES, *WRITES, *SYNCS, *RENAMES, *FOLDERS, *REMOVES, *OTHERS)  # everything that a kill could come before

LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")
DESCRIPTOR = re.compile(r"(?<![\w\"])\d+<((?:[^<>\\]|\\.)*)>")
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Point(NamedTuple):
    """One system call, as strace can be told to find it again: the n-th of its kind on a path, counted in its thread."""

    call: str
    path: str
    ordinal: int


@dataclass(frozen=True)
class Call:
    """A system call of the record."""

    thread: int
    name: str
    paths: tuple[str, ...]  # absolute, in the order of the arguments
    held: tuple[str, ...]  # paths behind descriptors, among them the folder that a relative name stands in
    changes: bool  # false where it failed, and for an `open` that creates and cuts nothing

    @property
    def addresses(self) -> tuple[str, ...]:
        """By what `-P` finds it."""
        return tuple(dict.fromkeys((*self.paths, *self.held)))


class Fault(NamedTuple):
    """What a call answers from the chosen one on, instead of doing its work."""

    error: str
    stays: bool  # a full disk stays full; a bad sector is met once


def require_strace() -> str:
    """Return the path of strace.

    Raises:
        UsageError: It is not installed.
    """
    found = shutil.which("strace")
    if found is None:
        raise UsageError("Expected the program `strace`, which is not installed; install the package `strace` (apt, dnf, apk) and start again.")
    return found


def record(command: Sequence[str], cwd: Path, variables: Mapping[str, str], out: Path, good: Collection[int] = (0,)) -> list[Call]:
    """Run a program to its end and return every call that changes the disk, or could.

    Raises:
        RuntimeError: The program ended with a code that is not among the good ones.
    """
    options = ["-f", "-y", "-qq", "-s", "0", "-o", str(out), "-e", f"trace={','.join('?' + name for name in CHANGES)}"]
    done = _run([require_strace(), *options, *command], cwd, variables)
    if done.returncode not in good:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return read_record(out.read_text(encoding="utf-8", errors="surrogateescape"))


def record_network(command: Sequence[str], cwd: Path, variables: Mapping[str, str], out: Path) -> list[str]:
    """Run a program to its end and return what it asked of a network: calls that are about no local (unix) address."""
    options = ["-f", "-qq", "-s", "64", "--seccomp-bpf", "-o", str(out), "-e", "trace=socket,connect,bind,sendto,sendmsg,sendmmsg"]
    done = _run([require_strace(), *options, *command], cwd, variables)
    if done.returncode not in (0, 1, 5):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    lines = (match for line in out.read_text(errors="replace").splitlines() if (match := LINE.match(line)))
    # A send without an address goes where its socket was connected to, which was a call of its own.
    families = ((match[0], re.findall(r"\b(?:AF|PF)_\w+", match[3])) for match in lines)
    return [line for line, found in families if found and found[0] != "AF_UNIX"]


def read_record(text: str) -> list[Call]:
    """Return the calls of a record in the order in which they began."""
    calls: list[Call] = []
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:  # a call that goes on, a signal, an exit
            continue
        thread, name = int(match[1]), match[2]
        rest, _, answer = match[3].rpartition(" = ") if " = " in match[3] else (match[3], "", "")  # none yet where it goes on
        held = tuple(path for path in DESCRIPTOR.findall(rest) if path.startswith("/"))
        texts = () if name in ("write", "writev", "pwrite64", "pwritev", "pwritev2") else TEXT.findall(rest)
        paths = tuple(path for path in texts if path.startswith("/"))
        if any("\\" in path for path in (*paths, *held)):
            raise ValueError(f"strace wrote a path with an escape, which no -P would match; use a plain folder: {line[:200]}")
        changes = not answer.startswith("-1") and (name not in CREATES or name == "creat" or "O_CREAT" in rest or "O_TRUNC" in rest)
        calls.append(Call(thread, name, paths, held, changes))
    return calls


def points(calls: Iterable[Call], root: Path) -> list[Point]:
    """Return every point below `root`, in order: a call that changes something there, and how to find it again."""
    counted: Counter[tuple[int, str, str]] = Counter()
    found: list[Point] = []
    for call in calls:
        for path in call.addresses:
            counted[call.thread, call.name, path] += 1
        inside = [path for path in call.addresses if _below(path, root)]
        if call.changes and inside:
            found.append(Point(call.name, inside[0], counted[call.thread, call.name, inside[0]]))
    return found


def fail(point: Point, how: Fault | None, command: Sequence[str], cwd: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program whose call at `point` answers with a fault, or kills it before it has an effect (None)."""
    when = f"{point.ordinal}{'+' if how and how.stays else ''}"
    effect = "signal=SIGKILL" if how is None else f"error={how.error}"
    options = ["-f", "-qq", "-o", "/dev/null", "-P", point.path, "-e", f"trace={point.call}", "-e", f"inject={point.call}:{effect}:when={when}"]
    return _run([require_strace(), *options, *command], cwd, variables)


def _run(command: Sequence[str], cwd: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=dict(variables), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=600, check=False
    )


def disorder(calls: Iterable[Call], root: Path) -> list[str]:
    """Return what a power failure could tear, though no kill shows it, because the kernel keeps its pages.

    What is renamed into place must be on the disk before, with its names, and its new name must be there before anything of the old
    one is removed and at the end. A name is in place when no part of it ends in `.tmp`; locks are no data.
    """
    dirty: set[str] = set()  # files with bytes, and folders with names, that are not on the disk
    placed: set[str] = set()  # folders into which something was renamed
    wrong: list[str] = []
    for call in calls:
        inside = [path for path in call.addresses if _below(path, root)]
        if not inside or not call.changes:
            continue
        path = inside[0]
        if call.name in SYNCS:
            dirty.discard(path)
        elif call.name in RENAMES:
            _rename(call, inside, dirty, placed, wrong, root)
        elif call.name in REMOVES:
            dirty.discard(path)
            if torn := sorted(dirty & placed):
                wrong.append(f"{call.name} of {path} before {torn[0]} was synced")
        elif call.name in FOLDERS:
            dirty.add(str(Path(path).parent))
        elif call.name in (*CREATES, *WRITES):
            if not _is_temporary(path, root):
                wrong.append(f"{call.name} writes {path} in its place")
            dirty.add(path)
            if call.name in CREATES:
                dirty.add(str(Path(path).parent))
    return wrong + [f"{path} was never synced after a rename into it" for path in sorted(dirty & placed)]


def _rename(call: Call, inside: Sequence[str], dirty: set[str], placed: set[str], wrong: list[str], root: Path) -> None:
    source, target = inside[0], inside[-1]
    mine = {path for path in dirty if path == source or _below(path, Path(source))}
    if not _is_temporary(target, root):
        wrong += [f"{path} was not synced before {call.name} to {target}" for path in sorted(mine)]
        placed.add(str(Path(target).parent))
    dirty.add(str(Path(target).parent))
    dirty |= {target + path[len(source) :] for path in mine}
    if call.name not in LINKS:
        dirty -= mine


def _below(path: str, root: Path) -> bool:
    return path == str(root) or path.startswith(f"{root}{os.sep}")


def _is_temporary(path: str, root: Path) -> bool:
    parts = Path(path).relative_to(root).parts
    return any(part.endswith(".tmp") for part in parts) or "locks" in parts
