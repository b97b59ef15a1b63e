"""Programs that stand in for the worker: the real one with a decoder that misbehaves on certain bytes, and one that lies."""

from meca.data.decoder import pool

_START = pool.PATHS + "\n"

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
worker.main(*map(int, sys.argv[2:5]))
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
worker.main(*map(int, sys.argv[2:5]))
"""
)


def liar(answer: str, hello: str = '{"level": "full", "seccomp": true}') -> str:
    """Return a worker that greets and then answers every request by the bytes of an expression over `number`, `height` and `width`."""
    return (
        _START
        + f"""
import os
from meca.data.decoder.worker import REPLY, REQUEST
os.write(1, {hello!r}.encode() + b"\\n")
requests = open(0, "rb")
number = 0
while header := requests.read(REQUEST.size):
    length, height, width, wanted = REQUEST.unpack(header)
    requests.read(length)
    said = {answer}
    while said:
        said = said[os.write(1, said):]
    number += 1
"""
    )
