"""Kill a stage before each of its changes to the disk, run it again, compare every byte; see docs/faults.md.

    python -m benchmarks.reliability.crash_points                  every point of the stages without torch and of the last step of `meca clean`,
                                                          of the other stages a drawn sample
    python -m benchmarks.reliability.crash_points --all            every point of every stage
    python -m benchmarks.reliability.crash_points --stages clean   some of them; a row only if its kind is tried whole
    python -m benchmarks.reliability.crash_points --sample 5       so many points of every stage, and no row

Each point is a system call that changes the stage's folder; the process dies before the call takes effect. What a reader could
find then is checked (the old output, the new one or none), the stage is run again with the same words, and all that it leaves
must be what the undisturbed run left. Needs Linux and `strace`.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.reliability import rehearsal
from benchmarks.reliability.rehearsal import CLEAN, WITH_TORCH, WITHOUT_TORCH, Place
from benchmarks.reliability.tracing import Point, disorder, fail, points, record, require_strace
from meca.errors import UsageError

SAMPLE = 12  # points of a stage with torch, whose start alone takes seconds
KILLED = -9  # strace ends as the program did


@dataclass
class Outcome:
    """What a campaign saw."""

    points: int = 0  # that there are
    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)  # stage, points


def enumerate_points(place: Place) -> tuple[list[Point], list[str]]:
    """Return the points of a stage, and what a power failure could tear."""
    place.reset()
    log = place.folder.with_name(place.folder.name + ".record")
    calls = record(place.command, place.folder, place.variables, log, place.good)
    if wrong := place.difference():
        raise RuntimeError(f"stage {place.stage} writes other bytes under strace: {wrong}")
    return points(calls, place.folder), disorder(calls, place.folder)


def survives(place: Place, point: Point) -> str | None:
    """Kill the stage at a point and run it again; return what is not as it should be, or None."""
    place.reset()
    killed = fail(point, None, place.command, place.folder, place.variables)
    if killed.returncode != KILLED:
        return f"{place.stage} {point}: not killed, exit code {killed.returncode} {killed.stderr[-200:]}"
    if torn := [*place.torn(), *place.missing()]:
        return f"{place.stage} {point}: a reader finds {torn} neither old nor new"
    again = place.run()
    if again.returncode not in place.good:
        return f"{place.stage} {point}: run again it ends with {again.returncode}: {again.stderr[-400:]}"
    if wrong := place.difference():
        return f"{place.stage} {point}: {wrong} differ after the second run"
    return None


def drawn(found: Sequence[Point], sample: int | None, seed: int) -> list[Point]:
    """Return a sample in the order of the points; the last rename of an output is always in it."""
    if sample is None or sample >= len(found):
        return list(found)
    chosen = set(random.Random(seed).sample(range(len(found)), sample - 1))
    chosen.add(max(at for at, point in enumerate(found) if point.call.startswith("rename")))
    return [found[at] for at in sorted(chosen)]


def campaign(room: Path, stages: Sequence[str], sample: int | None, seed: int, runs: tuple[Path, Path], outcome: Outcome) -> Outcome:
    """Try points of some stages: first runs, and for `poison`, `publish`, `report` and `meca clean` also over an earlier output.

    Args:
        room: An empty folder.
        stages: Which.
        sample: Points of a stage; None for all.
        seed: Of the sample.
        runs: Two finished runs of different outputs.
        outcome: Filled.
    """
    finished, other = runs
    for stage in stages:
        for old in (None, other) if stage in ("poison", "publish", "report", CLEAN) else (None,):
            name = f"{stage}{' over an older output' if old else ''}"
            where = room / name.replace(" ", "-")
            place = rehearsal.set_up_clean(finished, where, old) if stage == CLEAN else rehearsal.set_up(stage, finished, where, old)
            found, wrong = enumerate_points(place)
            tried = drawn(found, sample, seed)
            outcome.disorder += [f"{name}: {what}" for what in wrong]
            failures = [failure for point in tried if (failure := survives(place, point))]
            outcome.points, outcome.tried = outcome.points + len(found), outcome.tried + len(tried)
            outcome.wrong += failures
            outcome.found.append(f"{name} {len(tried)} of {len(found)}")
            print(
                f"{name}: {len(found)} points, {len(tried)} tried, {len(failures)} wrong, {len(wrong)} out of order",
                *failures,
                *wrong,
                sep="\n  ",
                flush=True,
            )
            shutil.rmtree(place.folder)
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign, write its rows, return the exit code: 0 when every point is survived, 2 otherwise, 4 without strace."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.crash_points", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every point of the stages with torch, too (hours)")
    parser.add_argument("--stages", nargs="+", choices=(*WITHOUT_TORCH, CLEAN, *WITH_TORCH), help="these alone")
    parser.add_argument("--sample", type=int, help="so many points of every stage; a rehearsal, which writes no row")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--room", type=Path, help="a folder for the runs; a temporary one without it")
    arguments = parser.parse_args(argv)
    try:
        require_strace()
    except UsageError as error:
        print(f"meca: {error}", file=sys.stderr)
        return error.exit_code
    room = Path(tempfile.mkdtemp(prefix="meca-crash-", dir=arguments.room)).resolve()
    command = " ".join(["python -m benchmarks.reliability.crash_points", *(argv if argv is not None else sys.argv[1:])])
    wrong = 0
    try:
        first = rehearsal.make_run(room / "first")
        runs = first, rehearsal.make_run(room / "other", first / "source", **{"seed": 1, "publish.name": "another"})
        for kind, stages, sample in (
            ("stages without torch", WITHOUT_TORCH, arguments.sample),
            ("the last step of `meca clean`", (CLEAN,), arguments.sample),
            ("stages with torch", WITH_TORCH, arguments.sample or (None if arguments.all else SAMPLE)),
        ):
            chosen = [stage for stage in stages if stage in (arguments.stages or stages)]
            if not chosen:
                continue
            started = time.perf_counter()
            outcome = campaign(room / kind.replace(" ", "-").replace("`", ""), chosen, sample, arguments.seed, runs, Outcome())
            wrong += len(outcome.wrong) + len(outcome.disorder)
            if not arguments.sample and len(chosen) == len(stages):
                notes = f"{'; '.join(outcome.found)}; each killed before the call took effect, run again, compared byte by byte"
                notes += f"; order of fsync and rename: {len(outcome.disorder)} faults"
                how = "" if sample is None else ", a drawn sample"  # a kind that is tried whole has a row of its own
                survived, seconds = outcome.tried - len(outcome.wrong), time.perf_counter() - started
                rehearsal.row(f"crash points, {kind}{how}", outcome.tried, survived, len(outcome.wrong), notes, command, arguments.seed, seconds)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
