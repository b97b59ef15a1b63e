"""Fuzz one target, or all of them one after another, and keep what is found.

    python -m tests.fuzz zip --seconds 60 --seed 1
    python -m tests.fuzz all --seconds 60
    python -m tests.fuzz zip --again .fuzz/zip-….bin      one input once more, with its traceback
    python -m tests.fuzz zip --atheris                    coverage-guided, where the package `atheris` is installed; ends with Ctrl-C

A finding is an input whose reading ends in an exception that is none of ours, takes too long or too much memory; it lies below
`.fuzz`. An input that ends the process itself is left there as `TARGET.current`. Exit code 1: something was found.
"""

import argparse
import hashlib
import importlib
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

PATIENCE = 20  # seconds for one input


class TooSlow(Exception):
    """An input took longer than it may."""


def _late(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"after {PATIENCE} s")


@contextmanager
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(name: str, target: "Target", findings: Path, seed: int, seconds: float = float("inf"), runs: float = float("inf")) -> tuple[int, list[Path]]:
    """Return how many inputs were tried, and the files of those that found something: one for each place in the code."""
    from tests.fuzz.mutation import mutated
    from tests.hostile.trial import limited

    draw, seeds = random.Random(seed), target.seeds()
    findings.mkdir(parents=True, exist_ok=True)
    current, found, tried, end = findings / f"{name}.current", dict[str, Path](), 0, time.monotonic() + seconds
    for data in seeds:
        target.one(data)  # a seed that cannot be read is a bug of the target
    with limited():
        while tried < runs and time.monotonic() < end:
            data = target.mend(mutated(draw, seeds, target.words))
            current.write_bytes(data)
            tried += 1
            try:
                with _alarm():
                    target.one(data)
            except Exception as error:
                place = _where(error)
                if place not in found:
                    found[place] = findings / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
                    found[place].write_bytes(data)
                    found[place].with_suffix(".txt").write_text(
                        "".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace"
                    )
                    print(f"{name}: {place}: {type(error).__name__}: {str(error)[:200]!r} ({found[place]})", flush=True)
    current.unlink(missing_ok=True)
    return tried, list(found.values())


def _where(error: Exception) -> str:
    """Return kind and place of an error, so that one mistake is found once."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/meca/" in frame.filename] or traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {Path(frames[-1].filename).name}:{frames[-1].lineno}"


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, and return 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", help="which; `all` takes one after another")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--runs", type=int, help="inputs for each target, in place of a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path(".fuzz"))
    parser.add_argument("--again", type=Path, help="read this input once")
    parser.add_argument("--atheris", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.atheris:
        return _guided(arguments.target, arguments.findings)
    from tests.fuzz.targets import TARGETS

    if arguments.target not in (*TARGETS, "all"):
        parser.error(f"expected a target among all, {', '.join(TARGETS)}")
    if arguments.again:
        TARGETS[arguments.target].one(arguments.again.read_bytes())
        return 0
    amount = ("runs", arguments.runs) if arguments.runs else ("seconds", arguments.seconds)
    if arguments.target == "all":
        return max([_apart(name, arguments.findings, arguments.seed, *amount) for name in TARGETS])
    tried, found = fuzz(arguments.target, TARGETS[arguments.target], arguments.findings, arguments.seed, **dict([amount]))
    print(f"{arguments.target}: {tried} inputs, {len(found)} findings", flush=True)
    return int(bool(found))


def _apart(name: str, findings: Path, seed: int, what: str, amount: float) -> int:
    """Fuzz in a process of its own, which an input may end."""
    command = [sys.executable, "-m", "tests.fuzz", name, f"--{what}", str(amount), "--seed", str(seed), "--findings", str(findings)]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 1):
        print(f"{name}: ended with {code} on {findings / f'{name}.current'}", flush=True)
    return int(code != 0)


def _guided(name: str, findings: Path) -> int:
    atheris = importlib.import_module("atheris")  # no dependency: there are wheels for few versions of Python
    with atheris.instrument_imports(include=["meca.data.readers", "meca.release.decisions", "meca.params"]):
        from tests.fuzz.targets import TARGETS
    seeds = findings / f"{name}-seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for at, data in enumerate(TARGETS[name].seeds()):
        (seeds / str(at)).write_bytes(data)
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], str(seeds), f"-artifact_prefix={findings}/{name}-"], lambda data: target.one(target.mend(data)))
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
