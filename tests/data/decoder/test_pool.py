"""The pool gives what decoding in this process would give; a worker that dies, hangs or lies costs one image at most, never the run."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meca.data.decoder import pool
from meca.data.decoder.decode import Decoded, Unreadable, decode, resize
from meca.data.decoder.pool import Decoder
from meca.data.decoder.worker import samples
from meca.errors import MecaError
from tests.data.decoder.programs import DIFFERENT, EVIL, FULL, liar, processes, state
from tests.making import encode, pixels

ROOT = Path(__file__).parents[3]


def run(items: list[bytes], workers: int = 2, **options: Any) -> list[Any]:
    """Return the outcomes of encoded images, and check that every item came back in its place."""
    with Decoder(workers) as decoder:
        found = list(decoder.map(items, lambda data: data, **options))
    assert [item for item, _ in found] == items
    return [outcome for _, outcome in found]


def here(data: bytes, side: tuple[int, int] | None = None) -> Any:
    """Return what decoding in this process comes to."""
    try:
        image = decode(data)
    except Unreadable as problem:
        return str(problem)
    return described(image, resize(image.pixels, *side) if side else image.pixels)


def described(image: Decoded, found: np.ndarray) -> tuple[Any, ...]:
    return image.width, image.height, image.mode, image.format, image.notes, found.shape, str(found.dtype), found.tobytes()


def there(outcome: Any) -> Any:
    return described(outcome, outcome.pixels) if isinstance(outcome, Decoded) else outcome


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded_images() -> list[bytes]:
    """Return images of every format and mode, odd and broken ones among them."""
    photo = Image.fromarray(np.kron(pixels(1, 9, 40), np.ones((20, 20, 1), np.uint8)))  # 800 wide: WebP would use a second thread
    kinds = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {})]
    frames = [Image.fromarray(pixels(i)) for i in range(3)]
    several = [saved(frames[0], kind, save_all=True, append_images=frames[1:]) for kind in ("PNG", "WEBP", "GIF", "MPO")]
    deep = saved(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG")
    clear = saved(photo.convert("P"), "PNG", transparency=bytes(range(256)))
    return [
        *samples(),
        *(saved(photo, kind, **options) for kind, options in kinds),
        *several,
        deep,
        clear,
        saved(photo, "TIFF"),
        b"",
        b"\0" * 40,
        b"GIF89a",
    ]


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [None, (5, 7), (8, 640)])
def test_the_pool_gives_what_decoding_here_gives(side: tuple[int, int] | None) -> None:
    items = encoded_images()
    found = run(items, side=(lambda: side) if side else None)
    assert [there(outcome) for outcome in found] == [here(data, side) for data in items]
    assert sum(isinstance(outcome, Decoded) for outcome in found) > 20 and {"several-frames", "not-an-image", "corrupt"} < set(map(here, items))
    assert all(outcome.pixels.flags.writeable for outcome in found if isinstance(outcome, Decoded))


def test_damaged_images_come_to_the_same_here_and_there() -> None:
    # Each kind of damage takes another way through Pillow; one that imports or opens something on it would fail there alone.
    rng = np.random.default_rng(0)
    items: list[bytes] = []
    for data in encoded_images():
        for _ in range(25):
            damaged = bytearray(data)
            for at in rng.integers(0, max(1, min(len(data), 200)), 3):
                damaged[at : at + 1] = rng.bytes(int(rng.integers(0, 3)))
            items.append(bytes(damaged))
    assert [there(outcome) for outcome in run(items)] == [here(data) for data in items]


def test_without_pixels_all_else_is_known() -> None:
    items = encoded_images()
    found = run(items, pixels=False)
    assert [there(o)[:5] if isinstance(o, Decoded) else o for o in found] == [h if isinstance(h := here(d), str) else h[:5] for d in items]
    assert {outcome.pixels.size for outcome in found if isinstance(outcome, Decoded)} == {0}


def test_what_needs_no_decoding_passes_in_its_place_and_starts_nothing() -> None:
    with Decoder() as decoder:
        assert list(decoder.map([1, 2, 3], lambda _: None)) == [(1, None), (2, None), (3, None)]
        assert decoder.level is None
        mixed = [i if i % 3 else encode(pixels(i)) for i in range(100)]
        found = list(decoder.map(mixed, lambda item: item if isinstance(item, bytes) else None))
        assert [item for item, _ in found] == mixed
        assert [isinstance(outcome, Decoded) for _, outcome in found] == [isinstance(item, bytes) for item in mixed]
        assert decoder.level and decoder.level["level"] in ("full", "basic")


def test_the_first_readable_image_can_set_the_size_of_the_others() -> None:
    items = [b"none", b"", encode(pixels(1, 6, 9)), *(encode(pixels(i, 8, 8)) for i in range(20))]
    chosen: list[tuple[int, int]] = []
    ahead: list[int] = []
    shapes = []

    def reading() -> Iterator[bytes]:
        for at, item in enumerate(items):
            if not chosen:
                ahead.append(at - len(shapes))
            yield item

    with Decoder(2) as decoder:
        for _, outcome in decoder.map(reading(), lambda data: data, lambda: chosen[0] if chosen else None):
            shapes.append(outcome.pixels.shape if isinstance(outcome, Decoded) else outcome)
            if isinstance(outcome, Decoded) and not chosen:
                chosen.append(outcome.upright)
    assert shapes == ["not-an-image"] * 2 + [(6, 9, 3)] * 21
    assert ahead == [0, 0, 0], "more than one image was on its way before the size was known"


def test_an_error_among_the_items_comes_after_those_before_it() -> None:
    def reading() -> Iterator[bytes]:
        yield from (encode(pixels(i)) for i in range(30))
        raise MecaError("the archive ends here")

    seen = 0
    with Decoder(2) as decoder, pytest.raises(MecaError, match="the archive ends here"):
        for _, outcome in decoder.map(reading(), lambda data: data):
            assert isinstance(outcome, Decoded)
            seen += 1
    assert seen == 30


def test_a_map_that_is_left_early_leaves_nothing_for_the_next() -> None:
    items = [encode(pixels(i, 8, 8 + i % 5)) for i in range(300)]
    with Decoder(2) as decoder:
        for _ in range(3):
            for item, outcome in decoder.map(items, lambda data: data):
                assert there(outcome) == here(item)
                if item == items[7]:
                    break
        found = list(decoder.map(items[100:], lambda data: data))
    assert [there(outcome) for _, outcome in found] == [here(item) for item in items[100:]]


def test_a_second_worker_starts_only_when_the_first_has_enough() -> None:
    with Decoder(2) as decoder:
        for n, started in ((20, 1), (1000, 2)):
            assert len(list(decoder.map([encode(pixels(1))] * n, lambda data: data))) == n
            assert len(decoder._workers) == started


def test_the_level_is_that_of_the_weakest() -> None:
    full, basic = {"level": "full", "seccomp": False}, {"level": "basic", "seccomp": True}
    assert pool._weaker(None, full) == full and pool._weaker(full, full) == full
    assert pool._weaker(full, basic) == pool._weaker(basic, full) == {"level": "basic", "seccomp": False}


# --- memory of this process ------------------------------------------------------------------------------------------


def test_pixels_that_wait_for_their_turn_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", EVIL)
    monkeypatch.setattr(pool, "HELD_BYTES", 5_000_000)
    monkeypatch.setattr(pool, "SECONDS", 1)
    held: list[int] = []
    turn = Decoder._turn

    def watched(self: Decoder, head: Any) -> None:
        turn(self, head)
        held.append(self._held)

    monkeypatch.setattr(Decoder, "_turn", watched)
    large = saved(Image.new("RGB", (1000, 1000)), "PNG")
    found = run([b"spin", *[large] * 80])
    assert found[0] == "too-slow" and {outcome.pixels.shape for outcome in found[1:]} == {(1000, 1000, 3)}
    assert 3_000_000 <= max(held) <= 5_000_000 + 3_000_000


def test_the_items_are_not_read_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "AHEAD_BYTES", 100_000)
    data = saved(Image.fromarray(pixels(1, 100, 100)), "BMP")
    read, ahead = 0, []

    def reading() -> Iterator[bytes]:
        nonlocal read
        for _ in range(200):
            read += 1
            yield data

    with Decoder(2) as decoder:
        for given, (_, outcome) in enumerate(decoder.map(reading(), lambda item: item)):
            assert isinstance(outcome, Decoded)
            ahead.append((read - given) * len(data))
    assert max(ahead) <= 2 * 2 * 100_000 + 2 * len(data) and given == 199


# --- F25: workers that die, hang, lie --------------------------------------------------------------------------------


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with each worker that is started."""
    found: list[int] = []
    begin = pool._Worker.__init__

    def counted(self: Any) -> None:
        found.append(1)
        begin(self)

    monkeypatch.setattr(pool._Worker, "__init__", counted)
    return found


def test_a_worker_that_is_killed_costs_no_image() -> None:
    items = [encode(pixels(i, 8, 8 + i % 7)) for i in range(600)]
    killed = 0
    with Decoder(2) as decoder:
        for at, (item, outcome) in enumerate(decoder.map(items, lambda data: data)):
            assert item == items[at] and there(outcome) == here(item), f"image {at}"
            if at == 50:  # once: the image that a worker is at may die with it only once
                for worker in processes(decoder):
                    os.kill(worker, signal.SIGKILL)
                    killed += 1
    assert at == 599 and killed == 2


def test_an_idle_worker_that_dies_is_replaced() -> None:
    with Decoder(1) as decoder:
        for i in range(3):
            [(item, outcome)] = decoder.map([encode(pixels(i))], lambda data: data)
            assert there(outcome) == here(item)
            [worker] = processes(decoder)
            os.kill(worker, signal.SIGKILL)
            while state(worker) != "Z":
                time.sleep(0.01)


def test_a_worker_that_is_stopped_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [encode(pixels(i)) for i in range(300)]
    with Decoder(1) as decoder:
        for at, (item, outcome) in enumerate(decoder.map(items, lambda data: data)):
            assert there(outcome) == here(item)
            if at == 10:
                os.kill(processes(decoder)[0], signal.SIGSTOP)
                stopped = decoder._workers[0]
                monkeypatch.setattr(pool, "PATIENCE", 2.0)
    assert at == 299 and stopped.process.code == -signal.SIGKILL


@pytest.mark.parametrize(
    ("data", "reason"), [(b"crash", "decoder-died"), (b"spin", "too-slow"), (b"hang", "too-slow"), (b"greedy", "too-much-memory")]
)
def test_an_image_that_ends_its_decoder_twice_is_unreadable_and_no_other(
    data: bytes, reason: str, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PROGRAM", EVIL)
    if data == b"spin":
        monkeypatch.setattr(pool, "SECONDS", 1)
        monkeypatch.setattr(pool, "PATIENCE", 100_000.0)  # the kernel ends it, not the watchdog
    if data == b"hang":
        monkeypatch.setattr(pool, "PATIENCE", 2.0)
    good = [encode(pixels(i)) for i in range(40)]
    items = [*good[:20], data, *good[20:]]
    found = run(items, workers=1)
    assert [there(outcome) for outcome in found] == [reason if item == data else here(item) for item in items]
    assert len(starts) == (1 if data == b"greedy" else 3)


def test_the_time_is_counted_anew_for_each_image(starts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SECONDS", 1)
    large = saved(Image.new("RGBA", (3000, 3000)), "PNG")
    started = time.process_time()
    expected = here(large, (8, 8))
    n = int(3 / (time.process_time() - started)) + 2  # more than the limit in all, less for each
    assert {there(outcome) for outcome in run([large] * n, workers=1, side=lambda: (8, 8))} == {expected}
    assert len(starts) == 1


def test_an_image_beyond_the_memory_is_unreadable_and_the_next_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = encode(pixels(1)), saved(Image.new("RGB", (7000, 7000)), "PNG")
    assert isinstance(run([large], pixels=False)[0], Decoded)
    monkeypatch.setattr(pool, "MEMORY", 600 * 2**20)
    found = run([small, large, small])
    assert [there(outcome) for outcome in found] == [here(small), "too-much-memory", here(small)]


@pytest.mark.slow
def test_the_largest_image_finds_the_memory_that_it_needs() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    largest = saved(Image.new("RGBA", (7071, 7071)), "WEBP", exif=exif, quality=1, method=0)  # of all formats and modes it takes the most
    [found] = run([largest], side=lambda: (4, 4))
    assert isinstance(found, Decoded) and (found.width, found.pixels.shape) == (7071, (4, 4, 3))


IMAGE = "REPLY.pack(number, 1, len(text), height * width * 3, 8, 8) + text + bytes(height * width * 3)"
LIES = {
    "another number": "REPLY.pack(number + 1, 0, 7, 0, 0, 0) + b'corrupt'",
    "an unknown reason": "REPLY.pack(number, 0, 7, 0, 0, 0) + b'becauxe'",
    "a reason with an escape": "REPLY.pack(number, 0, 9, 0, 0, 0) + b'corrupt\\x1b['",
    "a reason with pixels": "REPLY.pack(number, 0, 7, 48, 0, 0) + b'corrupt' + bytes(48)",
    "a reason of another byte": "REPLY.pack(number, 0, 7, 0, 0, 0) + b'corrup\\xff'",
    "neither image nor reason": "REPLY.pack(number, 2, 7, 0, 0, 0) + b'corrupt'",
    "a text without end": "REPLY.pack(number, 0, 2**32 - 1, 0, 0, 0) + b'a' * 100",
    "pixels without end": "REPLY.pack(number, 1, 7, 2**60, 8, 8) + b'RGB\\nPNG' + bytes(9999)",
    "too few pixels": "REPLY.pack(number, 1, 7, 47, 8, 8) + b'RGB\\nPNG' + bytes(47)",
    "no pixels": "REPLY.pack(number, 1, 7, 0, 8, 8) + b'RGB\\nPNG'",
    "another format": IMAGE.replace("text", "b'RGB\\nGIF'"),
    "another mode": IMAGE.replace("text", "b'HSV\\nPNG\\nconverted:HSV'"),
    "a mode that was not converted": IMAGE.replace("text", "b'L\\nPNG'"),
    "a note about another mode": IMAGE.replace("text", "b'L\\nPNG\\nconverted:P'"),
    "another orientation": IMAGE.replace("text", "b'RGB\\nPNG\\norientation:9'"),
    "another note": IMAGE.replace("text", "b'RGB\\nPNG\\n<script>'"),
    "an image without width": IMAGE.replace("text", "b'RGB\\nPNG'").replace("8, 8", "0, 8"),
    "too many pixels": IMAGE.replace("text", "b'RGB\\nPNG'").replace("8, 8", "8000, 8000"),
    "an image that is too narrow": IMAGE.replace("text", "b'RGB\\nPNG'").replace("8, 8", "8008, 8"),
    "another greeting": 'b\'{"level": "full", "seccomp": true}\\n\'',
}


@pytest.mark.parametrize("lie", LIES)
def test_a_worker_that_lies_is_not_believed(lie: str, starts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", liar(LIES[lie]))
    monkeypatch.setattr(pool, "PATIENCE", 20.0)
    assert run([b"one", b"two"], workers=1, side=lambda: (4, 4)) == ["decoder-lied", "decoder-lied"]
    assert len(starts) == 4


def test_bytes_that_answer_nothing_end_the_worker_and_cost_no_image(starts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", liar(IMAGE.replace("text", "b'RGB\\nPNG'") + " + bytes(40)"))
    found = run([b"one", b"two", b"three"], workers=1, side=lambda: (4, 4))
    assert all(isinstance(outcome, Decoded) for outcome in found) and len(starts) == 3


def test_a_fake_worker_that_does_not_lie_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the test above would pass whatever the fake says.
    monkeypatch.setattr(pool, "PROGRAM", liar(IMAGE.replace("text", "b'L\\nPNG\\norientation:6\\nconverted:L'")))
    found = run([b"one", b"two"], workers=1, side=lambda: (4, 4))
    assert [(o.notes, o.pixels.shape) for o in found] == [(("orientation:6", "converted:L"), (4, 4, 3))] * 2


def test_pixels_as_found_must_be_those_of_the_size_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "REPLY.pack(number, 1, len(text), 72, 6, 4) + text + bytes(72)"
    for text, expected in (("b'RGB\\nPNG'", (4, 6, 3)), ("b'RGB\\nPNG\\norientation:8'", (6, 4, 3)), ("b'RGB\\nPNG\\norientation:3'", (4, 6, 3))):
        monkeypatch.setattr(pool, "PROGRAM", liar(told.replace("text", text)))
        assert run([b"one"])[0].pixels.shape == expected
    monkeypatch.setattr(pool, "PROGRAM", liar(told.replace("text", "b'RGB\\nPNG'").replace("6, 4", "6, 5")))
    assert run([b"one"]) == ["decoder-lied"]
    monkeypatch.setattr(pool, "PROGRAM", liar(told.replace("text", "b'RGB\\nPNG'")))
    assert run([b"one"], pixels=False) == ["decoder-lied"]


def test_a_worker_that_says_half_and_leaves_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", liar("REPLY.pack(number, 1, 7, 48, 8, 8) + b'RGB\\nPNG' + bytes(20)").replace("number += 1", "break"))
    assert run([b"one", b"two"], workers=1, side=lambda: (4, 4)) == ["decoder-died"] * 2


def test_an_answer_that_dribbles_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pool, "PROGRAM", liar("b''").replace("number += 1", "import time\n        while True: os.write(1, bytes(1)); time.sleep(0.5)")
    )
    monkeypatch.setattr(pool, "PATIENCE", 2.0)
    assert run([b"one"], workers=1) == ["too-slow"]


# --- start and end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("import no_such_module", "cannot be started here: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit(7)", "cannot be started here: it ended with 7"),
        (FULL, "cannot be started here: no room for one more"),
        (liar("b''", hello="hello"), "did not say what confines it"),
        (liar("b''", hello="[1]"), "did not say what confines it"),
        (liar("b''", hello='{"level": "none", "seccomp": true}'), "did not say what confines it"),
        (liar("b''", hello="a" * 5000), "did not say what confines it"),
        ("import time; time.sleep(60)", "no answer within 2 s"),
    ],
)
def test_workers_that_cannot_be_started_are_one_sentence(program: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", program)
    monkeypatch.setattr(pool, "START", 2.0 if "sleep" in program else 60.0)
    with pytest.raises(MecaError, match=sentence):
        run([encode(pixels(1))])


def test_an_interpreter_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(MecaError, match="cannot be started here: No such file"):
        run([encode(pixels(1))])


def test_too_few_descriptors_are_named_with_the_limit_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", full)
    monkeypatch.setattr(pool, "SECONDS", 9)  # nobody has started what makes workers with this limit
    with pytest.raises(MecaError, match=r"Could not go on: too many files are open in this process; raise the limit \(`ulimit -n`\)"):
        run([encode(pixels(1))])


def test_a_decoder_that_differs_behind_the_walls_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", DIFFERENT)
    with pytest.raises(MecaError, match="images are decoded differently in the sandbox"):
        run([encode(pixels(1))])


PARENT = """
import threading, time
from meca.data.decoder import pool
from tests.data.decoder.programs import EVIL, processes
pool.PROGRAM = EVIL
decoder = pool.Decoder(1)
threading.Thread(target=lambda: list(decoder.map([b"hang"] * 3, lambda data: data)), daemon=True).start()
while decoder.level is None:
    time.sleep(0.1)
time.sleep(1)
print(*processes(decoder), flush=True)
time.sleep(600)
"""


def test_no_worker_outlives_a_parent_that_is_killed() -> None:
    # It hangs inside an image, so that the end of its socket tells it nothing.
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
    assert state(worker) in "RSD"
    parent.kill()
    parent.wait()
    for _ in range(200):
        if state(worker) in "ZX":
            break
        time.sleep(0.1)
    assert state(worker) in "ZX"


def test_the_context_ends_all_workers() -> None:
    with Decoder(2) as decoder:
        list(decoder.map([encode(pixels(1))] * 500, lambda data: data))
        workers = processes(decoder)
        assert len(workers) == 2 and all(state(worker) in "RSD" for worker in workers)
    assert all(state(worker) == "X" for worker in workers)
