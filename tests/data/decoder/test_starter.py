"""What workers are copied from: it saves the start of an interpreter, and gives nobody anything that a worker of its own would not have."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from meca.data.decoder import pool
from meca.data.decoder.decode import Decoded
from meca.data.decoder.pool import Decoder
from tests.data.decoder.programs import COUNTING, EVIL, GOOD, decoded, processes, starters, state
from tests.making import encode, pixels

ROOT = Path(__file__).parents[3]


def is_gone(process: int) -> bool:
    """Wait until a process has ended; False where it does not."""
    for _ in range(200):
        if state(process) in "ZX":
            return True
        time.sleep(0.05)
    return False


def test_each_context_has_workers_of_its_own_from_one_starter() -> None:
    seen = []
    for _ in range(3):
        with Decoder(1) as decoder:
            assert isinstance(decoded(decoder, GOOD)[0], Decoded)
            seen.append((processes(decoder), starters(decoder)))
    assert len({workers[0] for workers, _ in seen}) == 3 and seen[0][1] == seen[1][1] == seen[2][1]


def test_what_follows_a_worker_that_failed_is_copied_from_another_process_and_its_siblings_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", EVIL)
    with Decoder(1) as sibling:
        decoded(sibling, GOOD)
        [worker], [starter] = processes(sibling), starters(sibling)
        with Decoder(1) as decoder:
            decoded(decoder, GOOD)
            assert starters(decoder) == {starter}
            assert isinstance(decoded(decoder, b"crash", GOOD)[1], Decoded)
            [after] = starters(decoder)
        assert after != starter
        assert isinstance(decoded(sibling, GOOD)[0], Decoded) and processes(sibling) == [worker]
    assert state(worker) == state(starter) == "X", "the last sibling ends what it was copied from"


def test_a_worker_reaches_no_descriptor_of_its_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", COUNTING)
    with Decoder(1) as first, Decoder(1) as second, Decoder(1) as third:
        assert [decoded(decoder, GOOD) for decoder in (first, second, third, first)] == [["mode:0"]] * 4
        assert starters(first) == starters(second) == starters(third)


def test_a_starter_that_is_killed_costs_no_image() -> None:
    items = [encode(pixels(i)) for i in range(300)]
    with Decoder(2) as decoder:
        for at, (item, outcome) in enumerate(decoder.map(items, lambda data: data)):
            assert item == items[at] and isinstance(outcome, Decoded)
            if at == 50:
                [killed] = starters(decoder)
                os.kill(killed, signal.SIGKILL)
        assert at == 299 and starters(decoder) != {killed}
        [killed] = starters(decoder)
        os.kill(killed, signal.SIGKILL)
        assert is_gone(killed)
    with Decoder(2) as decoder:
        assert all(isinstance(outcome, Decoded) for outcome in decoded(decoder, *items)), "two were asked of one that is dead"


def test_threads_share_a_starter() -> None:
    found: list[tuple[int, bool]] = []

    def work(seed: int) -> None:
        for i in range(5):
            data = encode(pixels(10 * seed + i))
            with Decoder(1) as decoder:
                [image] = decoded(decoder, data)
            found.append((seed, image.pixels.tobytes() == pixels(10 * seed + i).tobytes()))

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(seed, True) for seed in range(4) for _ in range(5)]


def test_a_decoder_that_nobody_closed_leaves_no_worker() -> None:
    decoder = Decoder(1)
    decoded(decoder, GOOD)
    [worker] = processes(decoder)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del decoder
        gc.collect()
    assert is_gone(worker)


COPIED = """
import os, sys, time
from tests.data.decoder.programs import GOOD, decoded, processes, starters, state
from meca.data.decoder.pool import Decoder
outer = Decoder(1)
decoded(outer, GOOD)
[worker], [starter] = processes(outer), starters(outer)
ready, told = os.pipe()
copy = os.fork()
if copy == 0:
    outer.close()
    with Decoder(1) as inner:
        assert decoded(inner, GOOD)[0].format == "PNG" and starters(inner) != {starter}, "it asks for workers of its parent"
    assert state(worker) in "RS", "it ended a worker of its parent"
    os.write(told, b"x")
    time.sleep(600)
os.close(told)
assert os.read(ready, 1) == b"x"
assert decoded(outer, GOOD)[0].format == "PNG" and processes(outer) == [worker]
print(worker, starter, copy, flush=True)
os._exit(0)
"""

LIMITED = """
import resource
from tests.data.decoder.programs import GOOD, decoded, processes
from meca.data.decoder.pool import Decoder
for limit in (2 * 2**30, 2**30):
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with Decoder(1) as decoder:
        decoded(decoder, GOOD)
        [number] = processes(decoder)
        [line] = [line for line in open(f"/proc/{number}/limits") if line.startswith("Max address space")]
        print(*line.split()[3:5], end=" ")
"""

LEFT = """
import signal, sys
if "ignoring" in sys.argv:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from tests.data.decoder.programs import GOOD, decoded, processes, starters
from meca.data.decoder.pool import Decoder
with Decoder(1) as decoder:
    decoded(decoder, GOOD)
    first = starters(decoder)
decoder = Decoder(1)
assert decoded(decoder, GOOD)[0].format == "PNG" and starters(decoder) == first
print(*processes(decoder), *starters(decoder), flush=True)
"""


def script(program: str, *given: str) -> list[int]:
    """Return the numbers that a program writes in one line, in an interpreter of its own."""
    command, environment = [sys.executable, "-c", program, *given], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        found = [int(word) for word in process.stdout.readline().split()]
    assert process.returncode == 0
    return found


def test_a_copy_of_this_process_has_workers_of_its_own_and_keeps_none_of_ours_alive() -> None:
    worker, starter, copy = script(COPIED)
    try:
        assert state(copy) == "S" and is_gone(worker) and is_gone(starter), "the copy holds what they wait on"
    finally:
        os.kill(copy, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the limits of a process")
def test_a_limit_that_was_lowered_holds_for_the_next_worker() -> None:
    assert script(LIMITED) == [2 * 2**30] * 2 + [2**30] * 2


@pytest.mark.parametrize("given", [[], ["ignoring"]])
def test_nothing_is_left_when_the_process_ends(given: list[str]) -> None:
    # Whoever ignores the end of its children has its children ignore that of theirs.
    worker, starter = script(LEFT, *given)
    assert state(starter) == "X" and is_gone(worker)
