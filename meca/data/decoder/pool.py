"""A pool of processes that decode: whatever an image does to its decoder, it does to a process that holds nothing.

Encoded bytes go out, pixels of the promised size come back in the order of the images. What a worker says is checked
like any other hostile input. A worker that dies, hangs or lies is replaced; the image it was at gets one more try in a fresh
one, then a reason in place of its pixels, and the images behind it are sent again.
"""

import json
import math
import os
import re
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import PIL

from meca.data.decoder import FITS
from meca.data.decoder.decode import CONVERSIONS, FORMATS, MAX_PIXELS, MAX_RATIO, Decoded
from meca.data.decoder.starter import start
from meca.data.decoder.worker import REPLY, REQUEST
from meca.errors import MecaError, system_failure

__all__ = ["Decoder", "Outcome"]

PATIENCE = 60.0  # seconds of waiting for one answer
START = 60.0  # seconds for a worker to start
SECONDS = 10  # of the processor, for one image
MEMORY = 3 * 2**30  # bytes of address space; 50 million pixels of a WebP with alpha, turned upright, take 1.9 GiB beside the file
WORKERS = 8  # at most; one image after the other has to be read and written anyway
AHEAD, AHEAD_BYTES = 64, 8 * 2**20  # images that a worker is given before the first is answered
HELD_BYTES = 32 * 2**20  # of pixels that wait until it is their turn
CHUNK = 2**20
TICK = 1.0  # seconds: a longer pause is the machine's, not the worker's
TRIES = 2
MAX_TEXT = 200
LEVELS = ("basic", "full")  # the weaker first
REASONS = re.compile(
    "too-many-bytes|not-an-image|too-many-pixels|too-much-memory|truncated|corrupt|no-pixels|too-narrow|several-frames|beyond-16bit|mode:[A-Za-z0-9;]{1,8}"
)
_MODES = "|".join(map(re.escape, CONVERSIONS))
TEXT = re.compile(rf"({_MODES})\n({'|'.join(FORMATS)})((?:\norientation:[2-8])?)((?:\nconverted:(?:\1|(?:RGB|RGBA|LA);16B))?)")

ROOT = Path(__file__).parents[3]
PATHS = "import sys; sys.path[:0] = {sys.argv[1]} - {*sys.path}; sys.path += sys.argv[4:]"  # where meca is, and where numpy and Pillow are
PROGRAM = f"{PATHS}; from meca.data.decoder.worker import main; main(*map(int, sys.argv[2:4]))"

T = TypeVar("T")
Side = tuple[int, int] | None  # height and width; None: as found
Outcome = Decoded | str | None  # an image, the reason why there is none, or None where nothing was to be decoded


@dataclass(eq=False)
class _Job(Generic[T]):
    """One item on its way through the pool."""

    item: T
    data: bytes
    side: Side
    fit: str  # of `FITS`
    is_wanted: bool  # the pixels; else only what is said about them
    outcome: Outcome = None
    is_done: bool = False
    tries: int = 0


class _Failed(Exception):  # noqa: N818 - it ends a worker, not the run
    """A worker must be replaced; the argument is the reason for the image that it was at."""


class Decoder:
    """Decodes images in processes of their own, which start when the first image comes and end with the context."""

    def __init__(self, workers: int | None = None) -> None:
        self._limit = workers or min(_cores(), WORKERS)
        self._workers: list[_Worker] = []
        self._open = 0  # encoded bytes of all items that have not been handed out
        self._held = 0  # bytes of pixels that wait for their turn
        self._false_starts = 0  # in a row
        self._level: dict[str, Any] | None = None

    @property
    def level(self) -> dict[str, Any] | None:
        """What the weakest of its workers had between itself and the machine: `level` and `seccomp`; None before any was there."""
        return self._level

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; new ones start when they are needed."""
        for worker in self._workers:
            worker.stop()
        self._workers, self._open, self._held = [], 0, 0

    def map(
        self,
        items: Iterable[T],
        data_of: Callable[[T], bytes | None],
        side: Callable[[], Side] | None = None,
        pixels: bool = True,
        fit: str = "squash",
    ) -> Iterator[tuple[T, Outcome]]:
        """Yield each item with its outcome, in the order of the items, which are read some way ahead.

        Args:
            items: What to decode. An error among them is raised when those before it have been handed out.
            data_of: Returns the encoded image of an item; None where nothing is to be decoded.
            side: Returns the size that the pixels of the next image shall have. While it returns None, the images go one at a
                time and their pixels come as found, because the first that is readable may set the size of all others.
            pixels: False where it is enough to know what an image is; `Decoded.pixels` is empty then.
            fit: How an image comes to that size, one of `FITS`.

        Raises:
            MecaError: The workers cannot be started. Nothing is ever decoded in this process.
        """
        assert not any(worker.jobs for worker in self._workers), "one map at a time"
        jobs: deque[_Job[T]] = deque()
        source = iter(items)
        is_over, failure = False, None
        try:
            while jobs or not is_over:
                while not is_over and self._has_room(len(jobs), side):
                    try:
                        item = next(source)
                        jobs.append(self._enter(item, data_of(item), side() if side else None, fit, pixels))
                    except StopIteration:
                        is_over = True
                    except Exception as error:
                        is_over, failure = True, error
                if jobs and jobs[0].is_done:
                    job = jobs.popleft()
                    self._open -= len(job.data)
                    self._held -= _size(job.outcome)
                    yield job.item, job.outcome
                elif jobs:
                    self._turn(jobs[0])
            if failure is not None:
                raise failure
        finally:
            if jobs:  # nobody will take the answers that are on their way
                self.close()

    def _has_room(self, n_jobs: int, side: Callable[[], Side] | None) -> bool:
        if side is not None and side() is None:
            return n_jobs == 0
        if n_jobs >= 4 * AHEAD * self._limit or self._open >= 2 * AHEAD_BYTES * self._limit:
            return False
        return len(self._workers) < self._limit or any(worker.has_room for worker in self._workers)

    def _enter(self, item: T, data: bytes | None, side: Side, fit: str, is_wanted: bool) -> _Job[T]:
        job = _Job(item, data or b"", side, fit, is_wanted, is_done=data is None)
        self._open += len(job.data)
        if data is not None:
            self._free().give(job)
        return job

    def _free(self) -> "_Worker":
        """Return the worker with the least to do; a further one only when all have enough."""
        free = [worker for worker in self._workers if worker.has_room]
        if free:
            return min(free, key=lambda worker: len(worker.jobs))
        self._workers.append(_Worker())
        return self._workers[-1]

    def _turn(self, head: _Job[Any]) -> None:
        """Send what can be sent, and wait until something comes.

        The worker with the oldest job is always listened to, the others while there is room for their pixels: so memory is
        bounded, and nobody waits for ever.
        """
        heard = [worker for worker in self._workers if worker.jobs[:1] == [head] or self._held + worker.expected <= HELD_BYTES]
        poll = select.poll()
        for worker in self._workers:
            worker.send()
            events = (select.POLLIN if worker in heard else 0) | (select.POLLOUT if worker.unsent else 0)
            if events:
                poll.register(worker.socket, events)
        patience = max(0.0, min([TICK, *(worker.patience for worker in heard if worker.is_owing)]))
        started = time.monotonic()
        ready = dict(poll.poll(math.ceil(1000 * patience)))
        waited = min(time.monotonic() - started, patience)
        for worker in heard:
            try:
                if ready.get(worker.socket.fileno(), 0) & ~select.POLLOUT:
                    self._held += worker.receive()
                    if worker.level is not None:
                        self._level, self._false_starts = _weaker(self._level, worker.level), 0
                if worker.is_owing:
                    worker.wait(waited)
            except _Failed as problem:
                self._replace(worker, str(problem))
            except MecaError:
                self._false_starts += 1
                if self._false_starts == TRIES:
                    raise
                self._replace(worker, None)

    def _replace(self, worker: "_Worker", reason: str | None) -> None:
        """Put a fresh worker in the place of one that failed; only the image that it was at, if any, pays for that."""
        self._workers.remove(worker)
        worker.stop()
        worker.process.retire()
        jobs = worker.jobs
        if jobs and reason is not None:
            jobs[0].tries += 1
            if jobs[0].tries == TRIES:
                jobs[0].outcome, jobs[0].is_done = reason, True
                del jobs[0]
        if jobs:
            self._workers.append(_Worker())
            for job in jobs:
                self._workers[-1].give(job)


class _Worker:
    """One process, and the jobs that it owes an answer, the oldest first."""

    def __init__(self) -> None:
        self.jobs: list[_Job[Any]] = []
        self.level: dict[str, Any] | None = None  # what it said of itself when it was ready
        self.expected = 0  # bytes of pixels in the answer that is on its way
        self.unsent = bytearray()
        self._inbox = bytearray()
        self._answered = 0
        self._waited = 0.0  # seconds since its last answer
        self._load = 0  # encoded bytes of its jobs
        try:
            self.process, self.socket = start(_command(), _environment())
        except OSError as error:
            raise system_failure(error) or _not_started(str(error.strerror)) from None
        self.socket.setblocking(False)

    @property
    def has_room(self) -> bool:
        """Whether it should be given more."""
        return len(self.jobs) < AHEAD and self._load < AHEAD_BYTES

    @property
    def is_owing(self) -> bool:
        """Whether it has something to say."""
        return bool(self.jobs) or self.level is None

    @property
    def patience(self) -> float:
        """Seconds that are left for its next answer."""
        return (START if self.level is None else PATIENCE) - self._waited

    def give(self, job: _Job[Any]) -> None:
        """Add a job to what it has to do."""
        self.jobs.append(job)
        self._load += len(job.data)
        height, width = job.side or (0, 0)
        self.unsent += REQUEST.pack(len(job.data), height, width, FITS.index(job.fit), job.is_wanted) + job.data

    def send(self) -> None:
        """Send what the socket takes."""
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(memoryview(self.unsent)[:CHUNK])]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):  # it is gone; that shows when it is listened to
            self.unsent.clear()

    def wait(self, seconds: float) -> None:
        """Count time that it had for its next answer.

        Raises:
            _Failed: It was too long.
            MecaError: Likewise, for one that has just been started.
        """
        self._waited += seconds
        if self.patience <= 0:
            raise _not_started(f"no answer within {START:.0f} s") if self.level is None else _Failed("too-slow")

    def receive(self) -> int:
        """Take what has come, and return the bytes of the pixels that were complete.

        Raises:
            _Failed: The process is gone, or says what no decoder says.
            MecaError: It did not even start.
        """
        try:
            data = self.socket.recv(CHUNK)
        except ConnectionResetError:
            data = b""
        if not data:
            raise self._end()
        self._inbox += data
        if self.level is None and not self._greet():
            return 0
        held = 0
        while (job := self._take()) is not None:
            held += _size(job.outcome)
        return held

    def _greet(self) -> bool:
        """Take the first line, in which the process says what it is confined by; False where it is not there yet."""
        line, end, rest = self._inbox.partition(b"\n")
        if not end and len(line) <= MAX_TEXT:
            return False
        try:
            said = json.loads(line[:MAX_TEXT])
            self.level = {"level": LEVELS[LEVELS.index(said["level"])], "seccomp": said["seccomp"] is True}
        except (ValueError, TypeError, KeyError):
            raise _not_started("it did not say what confines it") from None
        self._inbox, self._waited = rest, 0.0
        self.process.deafen()  # what a decoder prints about an image is nobody's business
        return True

    def _take(self) -> _Job[Any] | None:
        """Take one whole answer and return the job that it answers; None where there is none yet."""
        if len(self._inbox) < REPLY.size:
            if self._inbox and not self.jobs:
                raise _Failed("decoder-lied")
            return None
        number, is_image, n_text, n_pixels, width, height = REPLY.unpack_from(self._inbox)
        if not self.jobs or number != self._answered % 2**32 or n_text > MAX_TEXT or n_pixels > _at_most(self.jobs[0]):
            raise _Failed("decoder-lied")
        self.expected = n_pixels
        if len(self._inbox) < REPLY.size + n_text + n_pixels:
            return None
        job = self.jobs[0]
        start = REPLY.size + n_text
        text, pixels = self._inbox[REPLY.size : start].decode("ascii", "replace"), self._inbox[start : start + n_pixels]
        job.outcome, job.is_done = _checked(job, is_image, text, width, height, pixels), True
        del self._inbox[: start + n_pixels], self.jobs[0]
        self._answered += 1
        self._load -= len(job.data)
        self._waited, self.expected = 0.0, 0
        return job

    def _end(self) -> Exception:
        """Return what it means that the process closed its socket."""
        code = self.process.end(1.0)
        if self.level is not None:
            return _Failed("too-slow" if code == -signal.SIGXCPU else "decoder-died")
        return _not_started(self.process.last_words())

    def stop(self) -> None:
        """End the process."""
        if self.level is None:
            self.process.drop()
        else:
            self.process.end()
        self.socket.close()


def _checked(job: _Job[Any], is_image: int, text: str, width: int, height: int, pixels: bytearray) -> Outcome:
    """Return the outcome that an answer stands for.

    Raises:
        _Failed: No decoder answers this.
    """
    if is_image == 0 and REASONS.fullmatch(text) and not pixels:
        return text
    if is_image == 1 and (found := TEXT.fullmatch(text)) and _is_possible(width, height) and (found[1] == "RGB" or found[4]):
        image = Decoded(np.empty((0, 0, 3), np.uint8), width, height, found[1], found[2], tuple(text.split("\n")[2:]))
        shape = (*(job.side or image.upright), 3)
        if len(pixels) == math.prod(shape) * job.is_wanted:
            return replace(image, pixels=np.frombuffer(pixels, np.uint8).reshape(shape)) if job.is_wanted else image
    raise _Failed("decoder-lied")


def _is_possible(width: int, height: int) -> bool:
    return min(width, height) >= 1 and width * height <= MAX_PIXELS and max(width, height) <= MAX_RATIO * min(width, height)


def _at_most(job: _Job[Any]) -> int:
    """Return the bytes of pixels that an answer can have."""
    return 3 * (math.prod(job.side) if job.side else MAX_PIXELS) * job.is_wanted


def _size(outcome: Outcome) -> int:
    return outcome.pixels.nbytes if isinstance(outcome, Decoded) else 0


def _weaker(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any]:
    if first is None:
        return second
    return {"level": min(first["level"], second["level"], key=LEVELS.index), "seccomp": first["seccomp"] and second["seccomp"]}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _command() -> list[str]:
    """Return what starts a worker: this interpreter, this copy of meca, and the packages wherever this process found them."""
    packages = {str(Path(str(package.__file__)).parents[1]) for package in (np, PIL)}
    return [sys.executable, "-I", "-c", PROGRAM, str(ROOT), str(MEMORY), str(SECONDS), *sorted(packages)]


def _environment() -> dict[str, str]:
    """Return all that a worker knows of this process's environment; a second thread would bar it from its namespaces."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}  # without it, some interpreters do not start
    return {"LC_ALL": "C.UTF-8", **threads, **libraries}


def _not_started(why: str) -> MecaError:
    return MecaError(f"Images are decoded in a process of their own, and that cannot be started here: {why}.")
