"""The program that decodes, in a process that holds nothing and can reach nothing: requests in, replies out, until the pipe closes.

    request  bytes of the image, height and width that the pixels shall have (0, 0: as found), which of `FITS` brings them to it, whether
             they are wanted; then the bytes
    reply    number of the request, whether it is an image, lengths of text and pixels, width and height as found; then text and pixels

The text is the reason why there is no image, or mode, format and notes of it, a line each. Whoever started the program
believes none of this without a check (`pool.py`).
"""

import contextlib
import io
import json
import math
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, MpoImagePlugin, TiffImagePlugin

from meca.data.decoder import FITS
from meca.data.decoder.confinement import confine
from meca.data.decoder.decode import ORIENTATION, Decoded, Unreadable, decode, resize

__all__ = ["CODE", "GRACE", "REPLY", "REQUEST", "main", "samples", "serve", "work"]

REQUEST = struct.Struct("<QIIII")
REPLY = struct.Struct("<IIIQII")
GRACE, CODE = struct.Struct("<d"), struct.Struct("<i")  # seconds that a worker has to end by itself; how it ended
GIVEN = 3  # descriptors for a worker
PRELOADED = (MpoImagePlugin, TiffImagePlugin)  # Pillow imports them when an image asks for it; then it is too late
WAYS = {  # modes of Pillow that a format can hold, and what its encoder is told
    "PNG": (("1", {}), ("L", {}), ("P", {"transparency": 0}), ("LA", {}), ("RGB", {"transparency": (0, 0, 0)}), ("RGBA", {}), ("I;16", {})),
    "JPEG": (("L", {}), ("RGB", {"progressive": True}), ("CMYK", {})),
    "WEBP": (("RGB", {}), ("RGBA", {"lossless": True})),
    "BMP": (("1", {}), ("L", {}), ("P", {}), ("RGB", {})),
}


@dataclass(frozen=True)
class Request:
    """One image to decode."""

    data: bytes
    height: int
    width: int
    fit: str
    is_wanted: bool  # the pixels; else only what is said about them


def samples() -> Iterator[bytes]:
    """Yield a small image of every format and mode, whole and cut short: whatever decodes them is loaded afterwards."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for kind, ways in WAYS.items():
        for mode, options in ways:
            file = io.BytesIO()
            turned = {"exif": exif} if kind != "BMP" else {}
            Image.new(mode, (640, 8)).save(file, kind, **options, **turned)
            yield file.getvalue()
            yield file.getvalue()[:-24]


def main(memory: int, seconds: int) -> None:
    """Start workers, each a copy of this process, until nobody can ask for one any more and the last has ended.

    For each of them descriptor 0 brings three: for its requests and replies, for its errors, and one on which this process
    is told to end it and says how it ended.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignores it hands that on, and then nobody learns how a worker ended
    known = {data: _describe(data) for data in samples()}  # so a copy has all that decoding loads
    control, parent = socket.socket(fileno=0), os.getpid()
    workers: dict[int, int] = {}  # processes, by the descriptor on which this one is told to end them
    poll = select.poll()
    poll.register(0, select.POLLIN)
    is_asked = True
    while is_asked or workers:
        for end, _ in poll.poll():
            if end != 0:
                poll.unregister(end)
                _end(end, workers.pop(end))
                continue
            is_asked, given = _asked(control)
            if not is_asked:
                poll.unregister(0)
            elif len(given) == GIVEN and (process := _copy(given)) is not None:
                if process == 0:
                    control.detach()
                    _take(given, max(*given, *workers))
                    return work(parent, memory, seconds, known)
                workers[ends := given.pop()] = process
                poll.register(ends, select.POLLIN)
            for descriptor in given:
                os.close(descriptor)


def _asked(control: socket.socket) -> tuple[bool, list[int]]:
    """Return whether a worker was asked for, and the descriptors that came for it."""
    asked, given, _, _ = socket.recv_fds(control, 1, GIVEN)
    return bool(asked), given


def _copy(given: list[int]) -> int | None:
    """Return the number of a new copy, 0 in the copy itself; None if there is none, and then it was said why."""
    try:
        return os.fork()
    except OSError as error:
        os.write(given[1], str(error.strerror).encode())
        return None


def _take(given: list[int], highest: int) -> None:
    """Put what a copy was given where programs expect it, and keep nothing of what the process has that was copied."""
    requests, errors, _ = given
    for ours, theirs in ((requests, 0), (requests, 1), (errors, 2)):
        os.dup2(ours, theirs)
    os.closerange(3, highest + 1)
    os.setsid()  # what ends one is not meant for its siblings


def _end(told: int, process: int) -> None:
    """End a worker that has not ended by itself in the time that it is given, and tell how it ended."""
    asked = b""
    with contextlib.suppress(OSError):  # nobody may be there any more
        asked = os.read(told, GRACE.size)
    until = time.monotonic() + (GRACE.unpack(asked)[0] if len(asked) == GRACE.size else 0)
    while (found := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if time.monotonic() >= until:
            os.kill(process, signal.SIGKILL)
            found = os.waitpid(process, 0)
            break
        time.sleep(0.001)
    with contextlib.suppress(OSError):
        os.write(told, CODE.pack(os.waitstatus_to_exitcode(found[1])))
    os.close(told)


def work(parent: int, memory: int, seconds: int, known: Mapping[bytes, object]) -> None:
    """Confine this process, say what that came to, and answer requests on descriptor 0 by replies on descriptor 1.

    Args:
        parent: The process with which this one dies.
        memory: Bytes of address space.
        seconds: Of the processor, for one image.
        known: Images, and what they are outside of the confinement.
    """
    requests, replies = open(0, "rb", buffering=2**20), open(1, "wb", buffering=2**16)
    active = confine(parent, memory)
    if any(_describe(data) != described for data, described in known.items()):
        raise SystemExit(f"images are decoded differently in the sandbox {active}")
    replies.write(json.dumps(active).encode() + b"\n")
    replies.flush()
    serve(requests, replies, seconds)
    os._exit(0)


def _describe(data: bytes) -> object:
    try:
        image = decode(data)
    except Unreadable as problem:
        return str(problem)
    return _text(image), *(resize(image.pixels, 4, 4, fit).tobytes() for fit in FITS)


def serve(requests: BinaryIO, replies: BinaryIO, seconds: int) -> None:
    """Answer requests in their order, each at once: the first that has no answer is the one at which the process died.

    Args:
        requests: Where they come from.
        replies: Where the answers go.
        seconds: Of the processor, for one image; the kernel ends a process that takes more.
    """
    number = 0
    while header := requests.read(REQUEST.size):
        length, height, width, fit, is_wanted = REQUEST.unpack(header)
        _allow(seconds)
        for part in _answer(number, Request(requests.read(length), height, width, FITS[fit], bool(is_wanted))):
            replies.write(part)
        replies.flush()
        number = (number + 1) % 2**32


def _allow(seconds: int) -> None:
    """Raise the limit of the processor's time by what one image may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = math.ceil(time.process_time()) + seconds
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    if limit != soft:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _answer(number: int, request: Request) -> tuple[bytes, memoryview | bytes]:
    try:
        image = decode(request.data)
        pixels = _pixels(image, request) if request.is_wanted else b""
    except (Unreadable, MemoryError) as problem:
        text = (str(problem) if isinstance(problem, Unreadable) else "too-much-memory").encode()
        return REPLY.pack(number, 0, len(text), 0, 0, 0) + text, b""
    text = _text(image).encode()
    return REPLY.pack(number, 1, len(text), len(pixels), image.width, image.height) + text, pixels


def _pixels(image: Decoded, request: Request) -> memoryview:
    pixels = resize(image.pixels, request.height, request.width, request.fit) if request.height else image.pixels
    return np.ascontiguousarray(pixels).data.cast("B")


def _text(image: Decoded) -> str:
    return "\n".join((image.mode, image.format, *image.notes))
