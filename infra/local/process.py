"""Programs that outlive the command that started them: found again by a record and a mark, ended with all their children.

A process id alone says nothing after a crash or a restart of the machine. So the record keeps the moment of its start, and
each process carries its place and name in its environment, where its children have them too.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from infra.local.place import write_private

__all__ = ["Program", "members", "recorded", "run_as", "stop"]

PLACE, NAME = "MECA_SERVICE_PLACE", "MECA_SERVICE_NAME"
PATIENCE = 30.0  # seconds that a program has to end by itself: PostgreSQL writes its checkpoint

# All that a server needs to know about whoever starts it. Keys, addresses and passwords of the user are none of it.
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Program:
    """One process of a service, as it is to run.

    `user` is (uid, gid) where it must not be ours, `ending` the signal on which it finishes its work.
    """

    name: str
    place: Path
    argv: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: tuple[int, int] | None = None
    ending: signal.Signals = signal.SIGTERM
    depends_on: str = ""  # text whose change asks for a restart: a configuration file

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.place / "logs" / f"{self.name}.log"

    @property
    def fingerprint(self) -> str:
        """What it runs with, as a hash: another one means that the running process is out of date."""
        text = json.dumps([list(self.argv), dict(self.variables), self.user, self.depends_on])
        return hashlib.sha256(text.encode()).hexdigest()

    def start(self) -> None:
        """Start it in a session of its own and leave the record."""
        folder = self.place / self.name.split("-")[0]
        folder.mkdir(exist_ok=True)
        variables = {name: os.environ[name] for name in INHERITED if name in os.environ}
        with self.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own programs
                list(self.argv),
                env={**variables, **self.variables, PLACE: str(self.place), NAME: self.name},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is not meant for it
                **run_as(self.user),
            )
        record = {"pid": process.pid, "started": _started(process.pid), "fingerprint": self.fingerprint}
        write_private(_record(self.place, self.name), json.dumps(record))

    def pid(self) -> int | None:
        """Return the process that was started, None where it is gone."""
        return recorded(self.place, self.name)[0]

    def is_current(self) -> bool:
        """Tell whether it runs with what it would be started with now."""
        pid, fingerprint = recorded(self.place, self.name)
        return pid is not None and fingerprint == self.fingerprint


def run_as(user: tuple[int, int] | None) -> dict[str, Any]:
    """Return the arguments with which `subprocess` runs a program as another user."""
    return {"user": user[0], "group": user[1], "extra_groups": []} if user else {}


def recorded(place: Path, name: str) -> tuple[int | None, str]:
    """Return the living process of a record and its fingerprint."""
    try:
        found = json.loads(_record(place, name).read_text(encoding="utf-8"))
        pid, started, fingerprint = int(found["pid"]), found["started"], str(found["fingerprint"])
    except (OSError, ValueError, KeyError):  # none, or one that was cut short
        return None, ""
    return (pid if started is not None and _started(pid) == started else None), fingerprint


def members(place: Path, name: str | None = None) -> list[psutil.Process]:
    """Return every living process of a place (or of one of its programs): recorded ones, marked ones, and all their children."""
    names = [name] if name else [file.stem for file in (place / "run").glob("*.json")]
    pids = {pid for pid in (recorded(place, n)[0] for n in names) if pid is not None}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mark = process.environ()
            if mark.get(PLACE) == str(place) and (name is None or mark.get(NAME) == name):
                pids.add(process.pid)
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                found[each.pid] = each
    return [process for process in found.values() if _lives(process)]


def stop(place: Path, name: str, ending: signal.Signals = signal.SIGTERM) -> bool:
    """End a program and all that it started; first by its signal, then by force. Tell whether there was anything to end."""
    found = members(place, name)
    leader, _ = recorded(place, name)
    for process in found:
        _signal(process, signal.SIGCONT)  # a stopped process ends only after it goes on
    # The leader ends its children in order; what it leaves behind is asked next.
    for asked in ([process for process in found if process.pid == leader], found):
        for process in asked:
            _signal(process, ending)
        _wait(asked, PATIENCE)
    for process in {p.pid: p for p in (*found, *members(place, name))}.values():
        _signal(process, signal.SIGKILL)
    _wait(found, PATIENCE)
    _record(place, name).unlink(missing_ok=True)
    return bool(found)


def _record(place: Path, name: str) -> Path:
    return place / "run" / f"{name}.json"


def _started(pid: int) -> int | None:
    """Return when a living process started, in ticks since boot: unlike a date, no change of the clock moves it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):  # psutil looks whether the id is still the same process
        process.send_signal(number)


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
