"""Programs that stand in for the worker: the real one with a decoder that misbehaves on certain bytes, and one that lies."""

from pathlib import Path
from typing import Any

import psutil

from meca.data.decoder import pool
from meca.data.decoder.pool import Decoder
from meca.data.decoder.worker import samples

_START = pool.PATHS + "\n"
GOOD = next(samples())

# The real worker in its real sandbox; the bytes say what goes wrong.
EVIL = (
    _START
    + """
import ctypes, threading
from meca.data.decoder import worker
honest = worker.decode
def decode(data):
    if data == b"crash":
        ctypes.string_at(0)
    if data == b"spin":
        while True:
            pass
    if data == b"hang":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    if data == b"greedy":
        raise MemoryError
    return honest(data)
worker.decode = decode
worker.main(*map(int, sys.argv[2:4]))
"""
)

# As if a system call that Pillow needs on some machine were not let through.
DIFFERENT = (
    _START
    + """
from meca.data.decoder import worker
def confine(*given):
    worker.decode = refuse
    return {}
def refuse(data):
    raise worker.Unreadable("corrupt")
worker.confine = confine
worker.main(*map(int, sys.argv[2:4]))
"""
)

# Says how many descriptors a worker can reach beside its own three, in the reason of an image.
COUNTING = (
    _START
    + """
import os
from meca.data.decoder import worker
def decode(data):
    n = 0
    for descriptor in range(3, 100):
        try:
            n += os.read(descriptor, 0) == b""
        except OSError:
            pass
    raise worker.Unreadable(f"mode:{n}")
def samples():
    return []
worker.decode, worker.samples = decode, samples
worker.main(*map(int, sys.argv[2:4]))
"""
)

# As if the system had no room for one more process.
FULL = (
    _START
    + """
import errno, os
from meca.data.decoder import worker
def fork():
    raise OSError(errno.EAGAIN, "no room for one more")
os.fork = fork
worker.main(*map(int, sys.argv[2:4]))
"""
)


def liar(answer: str, hello: str = '{"level": "full", "seccomp": true}') -> str:
    """Return a worker that greets and then answers every request by the bytes of an expression over `number`, `height` and `width`."""
    return (
        _START
        + f"""
import os
from meca.data.decoder import worker
from meca.data.decoder.worker import REPLY, REQUEST
def work(*given):
    os.write(1, {hello!r}.encode() + b"\\n")
    requests = open(0, "rb")
    number = 0
    while header := requests.read(REQUEST.size):
        length, height, width, fit, wanted = REQUEST.unpack(header)
        requests.read(length)
        said = {answer}
        while said:
            said = said[os.write(1, said):]
        number += 1
worker.work = work
worker.main(*map(int, sys.argv[2:4]))
"""
    )


def decoded(decoder: Decoder, *items: bytes) -> list[Any]:
    """Return what a decoder makes of encoded images."""
    return [outcome for _, outcome in decoder.map(items, lambda data: data)]


def processes(decoder: Decoder) -> list[int]:
    """Return the numbers of the workers of a decoder; there must be no other one."""
    return sorted(child.pid for starter in starters(decoder) for child in psutil.Process(starter).children())


def starters(decoder: Decoder) -> set[int]:
    """Return the numbers of the processes whose copies the workers of a decoder are."""
    return {worker.process.starter.process.pid for worker in decoder._workers}


def state(process: int) -> str:
    """Return the letter that the kernel has for a process; X where there is none any more."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
