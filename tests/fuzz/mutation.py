"""Bytes changed at random: the mutations of the loop, drawn from one generator, so that a seed gives the same inputs again."""

import random
import struct
from collections.abc import Sequence

__all__ = ["mutated"]

NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    512,
    1000,
    4096,
    2**15 - 1,
    2**15,
    2**16 - 1,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
MAX_BYTES = 2**20


def mutated(draw: random.Random, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """Return a seed with one to eight changes, more often few."""
    data = bytearray(draw.choice(seeds))
    for _ in range(min(8, 1 + int(draw.expovariate(0.7)))):
        _change(draw, data, seeds, words)
    return bytes(data[:MAX_BYTES])


def _change(draw: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = _place(draw, len(data))
    match draw.randrange(10):
        case 0 if data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        case 1 if data:
            data[at % len(data)] = draw.randrange(256)
        case 2:
            data[at:at] = draw.randbytes(draw.randint(1, 8))
        case 3:
            del data[at : at + draw.choice((1, 1, 2, 4, 16, 64, 512))]
        case 4:
            kind = draw.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
            size = struct.calcsize(kind)
            data[at : at + size] = struct.pack(kind, draw.choice(NUMBERS) % 256**size)
        case 5:
            size = draw.choice((1, 4, 16, 64, 512))
            data[at:at] = data[(start := _place(draw, len(data))) : start + size]
        case 6:
            other = draw.choice(seeds)
            start = _place(draw, len(other))
            data[at : at + draw.randint(0, 64)] = other[start : start + draw.randint(1, 64)]
        case 7:
            del data[at:]
        case 8 if words:
            word = draw.choice(words)
            data[at : at + draw.choice((0, len(word)))] = word
        case _:
            data[at : at + 4] = b"%d" % draw.choice(NUMBERS)


def _place(draw: random.Random, size: int) -> int:
    """Return a place; heads and tails, where formats keep their numbers, come more often."""
    if size < 2:
        return 0
    near = min(size, 600)
    return draw.choice((draw.randrange(size), draw.randrange(near), size - 1 - draw.randrange(near)))
