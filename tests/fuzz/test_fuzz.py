"""The loop finds a planted mistake, keeps its input, says so in its exit code, and draws the same inputs from the same seed."""

import random
from pathlib import Path

import pytest

from meca.errors import InputRefused
from tests.fuzz import __main__ as loop
from tests.fuzz import targets
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import Target


def fragile(data: bytes) -> None:
    """Fail on the bytes that a change must put in."""
    if b"%" in data:
        raise KeyError("planted")
    if b"!" in data:
        raise ZeroDivisionError("planted")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets.TARGETS, "fragile", Target(fragile, lambda: [b"nothing here"] * 2, words=(b"%", b"!")))


@pytest.mark.usefixtures("planted")
def test_a_planted_mistake_is_found_once_with_its_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loop.main(["fragile", "--runs", "400", "--findings", str(tmp_path)]) == 1
    kept = sorted(tmp_path.glob("fragile-*.bin"))
    assert len(kept) == 2, "one input for each of the two mistakes, and none is left behind"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".bin", ".txt", ".txt"]
    for path in kept:
        with pytest.raises((KeyError, ZeroDivisionError), match="planted"):
            loop.main(["fragile", "--again", str(path), "--findings", str(tmp_path)])
        assert "planted" in path.with_suffix(".txt").read_text()
    assert "fragile: 400 inputs, 2 findings" in capsys.readouterr().out


def test_an_input_that_takes_too_long_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 0.2)

    def endless(data: bytes) -> None:
        while data != b"x":
            pass

    _, found = loop.fuzz("endless", Target(endless, lambda: [b"x"]), tmp_path, 0, runs=3)
    assert len(found) == 1 and "TooSlow" in found[0].with_suffix(".txt").read_text()


def test_what_takes_too_much_memory_is_a_finding(tmp_path: Path) -> None:
    _, found = loop.fuzz("large", Target(lambda data: bytearray(2**32 if data != b"x" else 1).clear(), lambda: [b"x"]), tmp_path, 0, runs=20)
    assert len(found) == 1 and "MemoryError" in found[0].with_suffix(".txt").read_text()


def test_a_seed_that_is_refused_for_another_reason_than_ours_stops_the_loop(tmp_path: Path) -> None:
    def refusing(data: bytes) -> None:
        raise InputRefused("not caught by the target")

    with pytest.raises(InputRefused):
        loop.fuzz("refusing", Target(refusing, lambda: [b"x"]), tmp_path, 0, runs=1)


def test_the_same_seed_gives_the_same_inputs() -> None:
    seeds, words = [b"some bytes", b"and others, a few more of them"], (b"word",)

    def inputs(seed: int) -> list[bytes]:
        draw = random.Random(seed)
        return [mutated(draw, seeds, words) for _ in range(300)]

    assert inputs(1) == inputs(1) != inputs(2)
    assert len(set(inputs(1))) > 250 and any(b"word" in data for data in inputs(1)) and max(map(len, inputs(1))) > 30


def test_an_unknown_target_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        loop.main(["nothing"])
    assert "expected a target among all, picture, csv" in capsys.readouterr().err
