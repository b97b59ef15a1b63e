"""Starts workers quickly: a process that has imported what decoding takes makes copies of itself, and each copy is a worker.

An interpreter needs ten times as long to start, and to import numpy and Pillow, as a copy needs to confine itself. The
process that is copied stays until this one ends. It sees no image and no answer about one, and gets nothing from here but
descriptors for its copies; so a worker holds what one that had started by itself would hold, and no worker holds anything of
another. It has its memory at the same addresses as its siblings, though: one that failed may have been attacked by guesses at
them, and what it taught must be worth nothing. `Process.retire` sees to that.
"""

import atexit
import contextlib
import functools
import os
import resource
import socket
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import ClassVar

from meca.data.decoder.worker import CODE, GRACE

__all__ = ["Process", "start"]

PATIENCE = 60.0  # seconds for the end of a process that was killed
MAX_TEXT = 2**20


class Process:
    """A worker, as seen by whoever asked for it."""

    def __init__(self, starter: "_Starter", ends: socket.socket, errors: int) -> None:
        self.starter = starter
        self.code: int | None = None  # how it ended, as `subprocess` writes it; None: it has not, or nobody knows
        self._ends = ends  # on which it is told to end, and how it ended is told
        self._errors = open(errors, "rb", buffering=0)

    def deafen(self) -> None:
        """Listen no longer to what it prints."""
        self._errors.close()

    def end(self, grace: float = 0.0) -> int | None:
        """End it if it has not ended by itself after seconds of grace, and return its code; None where nobody knows."""
        if self._ends.fileno() >= 0:
            told = b""
            try:
                self._ends.settimeout(grace + PATIENCE)
                self._ends.sendall(GRACE.pack(grace))
                told = self._ends.recv(CODE.size)
            except TimeoutError:
                self.starter.kill()
            except OSError:  # what starts workers is gone, and so are they
                pass
            if len(told) == CODE.size:
                [self.code] = CODE.unpack(told)
            self._release()
        return self.code

    def drop(self) -> None:
        """End it, and wait for nothing: one that never was ready may be late for ever."""
        self._release()
        self.deafen()

    def retire(self) -> None:
        """See to it that no further worker has its memory where this one has it."""
        with _Starter.lock:
            self.starter.retire()

    def last_words(self) -> str:
        """Return why it did not start: what it said itself, or what the process said that should have started it."""
        self.end()
        said = _last_line(self._errors.read(MAX_TEXT) or b"")
        if not said and self.code is None:
            self.starter.kill()
            return self.starter.said
        return said or f"it ended with {self.code}"

    def forget(self) -> None:
        """Let go of it in a copy of the process that asked for it."""
        self._ends.close()

    def _release(self) -> None:
        with _Starter.lock:
            self._ends.close()
            self.starter.processes.discard(self)
            self.starter.end_if_idle()


class _Starter:
    """The process that is copied."""

    lock: ClassVar = threading.RLock()  # not a plain one: the garbage collector may end a forgotten worker at any time
    alive: ClassVar["set[_Starter]"] = set()

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.made_of = _made_of(command, environment)
        self.processes: weakref.WeakSet[Process] = weakref.WeakSet()
        self.is_retired = False
        self.said = ""  # at last, once it has ended
        self.control, theirs = socket.socketpair()
        end, pipe, nowhere = theirs.fileno(), subprocess.PIPE, subprocess.DEVNULL
        with theirs:
            try:
                self.process = subprocess.Popen(  # noqa: S603 - our own program
                    command, stdin=end, stdout=nowhere, stderr=pipe, cwd="/", env=environment, start_new_session=True
                )
            except OSError:
                self.control.close()
                raise
        _tidy_up()
        _Starter.alive.add(self)

    def copy(self) -> tuple[Process, socket.socket]:
        """Return a worker and the socket to it."""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as sent:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            sent.callback(theirs.close)
            ends, their_ends = socket.socketpair()
            undo.callback(ends.close)
            sent.callback(their_ends.close)
            errors, their_errors = os.pipe()
            sent.callback(os.close, their_errors)
            process = Process(self, ends, errors)
            undo.callback(process.deafen)
            # Where nobody takes them, they are closed, and that shows when the worker is listened to.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self.control, [b"+"], [theirs.fileno(), their_errors, their_ends.fileno()])
            self.processes.add(process)
            undo.pop_all()
        return process, ours

    def retire(self) -> None:
        """Start no more workers; those that are there may go on."""
        self.is_retired = True
        self.end_if_idle()

    def end_if_idle(self) -> None:
        """End it when it may start no more workers and has none."""
        if self.is_retired and not self.processes:
            self.kill()

    def kill(self) -> None:
        """End it; what it started ends with it."""
        self.is_retired = True
        self.control.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            with self.process.stderr as errors:
                self.said = _last_line(errors.read(MAX_TEXT)) or f"it ended with {self.process.returncode}"
        _Starter.alive.discard(self)

    def forget(self) -> None:
        """Let go of it in a copy of the process that started it, which neither asks for workers nor keeps them alive."""
        self.is_retired, self.process.returncode = True, 0  # it is no child of this process
        self.control.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        for process in list(self.processes):
            process.forget()
        self.processes.clear()


@functools.cache
def _tidy_up() -> None:
    """Leave nothing behind when this process ends, and hand nothing on to its copies."""
    atexit.register(_end_all)
    os.register_at_fork(after_in_child=_forget_all)


def _end_all() -> None:
    for starter in list(_Starter.alive):
        starter.kill()


def _forget_all() -> None:
    _Starter.lock = threading.RLock()  # whoever held it is not in this process
    for starter in list(_Starter.alive):
        starter.forget()
    _Starter.alive.clear()


def start(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Process, socket.socket]:
    """Start a worker and return it, with the socket to it.

    Args:
        command: What starts the process that is copied. It calls `worker.main`.
        environment: All that it and the worker know of an environment.

    Raises:
        OSError: The system has no room for it. What fails later shows when the worker is listened to.
    """
    with _Starter.lock:
        wanted = _made_of(command, environment)
        for starter in list(_Starter.alive):
            if starter.process.poll() is not None:
                starter.kill()
            elif starter.made_of != wanted:
                starter.retire()
            else:
                starter.end_if_idle()
        ready = [starter for starter in _Starter.alive if not starter.is_retired]
        return (ready[0] if ready else _Starter(command, environment)).copy()


def _made_of(command: Sequence[str], environment: Mapping[str, str]) -> tuple[object, ...]:
    """Return what a process hands on to its copies: nobody gets a worker under wider limits than this process has."""
    limits = [(name, resource.getrlimit(getattr(resource, name))[1]) for name in dir(resource) if name.startswith("RLIMIT_")]
    return tuple(command), tuple(sorted(environment.items())), tuple(limits)


def _last_line(said: bytes) -> str:
    return (said.decode(errors="replace").strip().splitlines() or [""])[-1]
