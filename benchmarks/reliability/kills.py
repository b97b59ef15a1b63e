"""Kill runs at random moments, start them again until they are through, compare every byte; see docs/faults.md.

    python -m benchmarks.reliability.kills                300 SIGKILLs (an hour or two): `meca clean`, `dvc repro`, stage programs
    python -m benchmarks.reliability.kills --kills 30     fewer
    python -m benchmarks.reliability.kills --minutes 25   no new run after so long; the row says how many it were
    python -m benchmarks.reliability.kills --signals      SIGTERM, SIGHUP, Ctrl-C once and twice instead: their exit codes, and the same bytes

Moments are drawn over the duration of an undisturbed run. A run is killed up to `PER_RUN` times and then left alone; after each kill a
reader must find the old set, the new one or none. Of `dvc repro` the parent alone dies, or its children, or the group.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.reliability import rehearsal
from benchmarks.reliability.faults import Campaign, Cleaning, cleaning
from meca.files import sha256_tree

PER_RUN = 6
SHARES = {"clean": (0.3, 0.3), "dvc": (0.1, 0.3), "stages": (0.6, 0.4)}  # of the kills, of the time
FOLDERS = (
    "data",
    "work/partition",
    "work/enhance",
    "work/split",
    "work/control",
    "work/train_clean",
    "work/relabel_finetune",
    "work/evaluate",
    "published",
    "report",
)


class Clock:
    """How many kills are wanted, and until when a new run may begin."""

    def __init__(self, kills: int, minutes: float) -> None:
        """Start it."""
        self.left, self.until = kills, time.monotonic() + 60 * minutes

    @property
    def goes_on(self) -> bool:
        """Whether another run may begin."""
        return self.left > 0 and time.monotonic() < self.until


def clean(room: Path, clock: Clock, rng: random.Random) -> Campaign:
    """Kill `meca clean`, in every other run over an earlier output."""
    first, campaign = cleaning(room), Campaign()
    older = rehearsal.clean_command(first.source, room / "older", _other(room))
    subprocess.run(older, cwd=room, env=rehearsal.variables(room), capture_output=True, check=False)
    started = time.perf_counter()
    (room / "timed").mkdir()
    first.run(room / "timed" / "out")
    seconds, runs = time.perf_counter() - started, 0
    while clock.goes_on:
        place = room / f"run-{runs}"
        place.mkdir()
        out, old = place / "out", sha256_tree(room / "older") if runs % 2 else None
        if old:
            shutil.copytree(room / "older", out)
        failure = _killed_until_done(first, out, old, seconds, clock, rng, campaign)
        campaign.check(f"run {runs}", failure)  # kills are counted, not runs
        runs += 1
        shutil.rmtree(place)
    campaign.notes = [
        f"{runs} runs, each killed up to {PER_RUN} times in the {seconds:.0f} s that an undisturbed one took, every other one over an older output"
    ]
    return campaign


def _other(room: Path) -> Path:
    from meca.params import PACKAGED, read_params, with_settings

    params = room / "other.json"
    params.write_text(json.dumps(with_settings(read_params(PACKAGED), {**rehearsal.TINY, "seed": 1}).tree))
    return params


def _killed_until_done(
    first: Cleaning, out: Path, old: str | None, seconds: float, clock: Clock, rng: random.Random, campaign: Campaign
) -> str | None:
    for _ in range(PER_RUN):
        process = subprocess.Popen(
            first.command(out), cwd=out.parent, env=rehearsal.variables(out.parent), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, seconds))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        campaign.tried, clock.left = campaign.tried + 1, clock.left - 1
        if (out.exists() and sha256_tree(out) not in (old, first.expected)) or (old and not out.exists()):
            return "a reader finds something that is neither old nor new"
        if not clock.left:
            break
    return first.success(first.run(out), out) or (f"{left} left behind" if (left := [p.name for p in out.parent.rglob("*.tmp")]) else None)


def stages(room: Path, clock: Clock, rng: random.Random) -> Campaign:
    """Kill the programs of the stages without torch, whose runs are short, and run each once more."""
    first = rehearsal.make_run(room / "first")
    other = rehearsal.make_run(room / "other", first / "source", **{"seed": 1, "publish.name": "another"})
    campaign, places = Campaign(), []
    for stage in rehearsal.WITHOUT_TORCH:
        place = rehearsal.set_up(stage, first, room / stage, other if stage == "publish" else None)
        place.reset()
        started = time.perf_counter()
        place.run()
        places.append((place, time.perf_counter() - started))
    while clock.goes_on:
        place, seconds = places[campaign.tried % len(places)]
        place.reset()
        process = subprocess.Popen(place.command, cwd=place.folder, env=place.variables, stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 1) * seconds)  # before that the interpreter is not up
        if process.poll() is not None:
            continue
        process.kill()
        process.wait()
        torn = [*place.torn(), *place.missing()]
        again = place.run()
        wrong = place.difference() if again.returncode == 0 else [again.stderr[-200:]]
        campaign.note(place.stage, f"a reader finds {torn} neither old nor new" if torn else f"{wrong} after the second run" if wrong else None)
        clock.left -= 1
    campaign.notes = [f"stages {', '.join(rehearsal.WITHOUT_TORCH)}"]
    return campaign


def dvc(room: Path, clock: Clock, rng: random.Random) -> Campaign:
    """Kill `dvc repro`: the parent, its children, the group."""
    from tasks.dvc.workspace import create

    source = str(rehearsal.make_data(room / "source"))
    settings = {**rehearsal.TINY, "ingest.source": source, "ingest.watch": source}
    whole = create(room / "whole", settings, code=False)
    started = time.perf_counter()
    done = _repro(whole)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    seconds, expected = time.perf_counter() - started, [sha256_tree(whole / name) for name in FOLDERS]
    campaign, runs, modes, waits = Campaign(), 0, {"parent": 0, "children": 0, "group": 0}, 0
    while clock.goes_on:
        place = create(room / f"run-{runs}", settings, code=False)
        for _ in range(PER_RUN):
            process = subprocess.Popen(**_repro_call(place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, seconds))
            if process.poll() is not None:
                break
            mode = sorted(modes)[campaign.tried % 3]
            modes[mode] += _kill(process, mode)
            campaign.tried, clock.left = campaign.tried + 1, clock.left - 1
            if not clock.left:
                break
        done = _repro(place)
        while done.returncode and (owner := re.search(r"is being written by process (\d+)", done.stdout + done.stderr)):
            waits += 1  # of the shell that DVC started nobody tells the stage that DVC died: it goes on, and the message says so
            while Path(f"/proc/{owner[1]}").exists():
                time.sleep(0.2)
            done = _repro(place)
        alike = not done.returncode and [sha256_tree(place / name) for name in FOLDERS] == expected
        campaign.check(f"run {runs}", None if alike else f"exit code {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
        runs += 1
        shutil.rmtree(place, ignore_errors=True)
    told = ", ".join(f"{name} {count}" for name, count in modes.items())
    campaign.notes = [
        f"{runs} runs, undisturbed {seconds:.0f} s; killed: {told}; {waits} times a stage of the dead parent still ran, and the message named it"
    ]
    return campaign


def _repro_call(place: Path) -> dict[str, Any]:
    environment = rehearsal.variables(place) | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DVC_NO_ANALYTICS": "1",
    }
    return {"args": [sys.executable, "-m", "dvc", "repro", "report"], "cwd": place, "env": environment, "stdin": subprocess.DEVNULL}


def _repro(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**_repro_call(place), capture_output=True, text=True, check=False)


def _kill(process: "subprocess.Popen[bytes]", mode: str) -> int:
    """Kill the parent, its children, or the group; return 1."""
    if mode == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif mode == "parent":
        process.kill()
    else:
        for child in _descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    process.wait()
    return 1


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def signals(room: Path, rounds: int, rng: random.Random) -> Campaign:
    """Send SIGTERM, SIGHUP, Ctrl-C and Ctrl-C twice to `meca clean` at random moments."""
    first, campaign = cleaning(room), Campaign()
    started = time.perf_counter()
    (room / "timed").mkdir()
    first.run(room / "timed" / "out")
    seconds = time.perf_counter() - started
    for number in range(rounds):
        for name, sent, code in (
            ("TERM", [signal.SIGTERM], 143),
            ("HUP", [signal.SIGHUP], 143),
            ("INT", [signal.SIGINT], 130),
            ("INT twice", [signal.SIGINT] * 2, 130),
        ):
            place = room / f"{name.replace(' ', '-')}-{number}"
            place.mkdir()
            process = subprocess.Popen(
                first.command(place / "out"), cwd=place, env=rehearsal.variables(place), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            # Before its handlers are there the interpreter ends by the signal itself.
            while process.poll() is None and not (place / ".out.meca").exists():
                time.sleep(0.01)
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 0.6 * seconds))
            for one in sent:
                process.send_signal(one)
                time.sleep(rng.uniform(0, 0.05))
            errors = process.communicate()[1]
            ended = process.returncode in (code, 0, 1)  # it was through already
            what = None if ended and "Traceback" not in errors else f"exit code {process.returncode}: {errors[-300:]}"
            left = [path.name for path in place.rglob("*.tmp")]
            campaign.note(f"{name} {number}", what or (f"left {left}" if left else None) or first.success(first.run(place / "out"), place / "out"))
            shutil.rmtree(place)
    campaign.notes = ["exit codes 143 and 130, nothing half-written left, the same command continues to the same bytes"]
    return campaign


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign, write its rows, return 2 if a run did not end in the same bytes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="SIGKILLs in all")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new run after so many")
    parser.add_argument("--only", choices=SHARES, help="one of the three, with its share of the kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--signals", type=int, metavar="ROUNDS", help="send the signals that a person or a scheduler sends instead")
    parser.add_argument("--no-row", action="store_true", help="a rehearsal")
    arguments = parser.parse_args(argv)
    parts: dict[str, Any] = {"clean": clean, "dvc": dvc, "stages": stages}
    names = {"clean": "random SIGKILL, `meca clean`", "dvc": "random SIGKILL, `dvc repro`", "stages": "random SIGKILL, stage programs without torch"}
    command, failed = " ".join(["python -m benchmarks.reliability.kills", *(argv if argv is not None else sys.argv[1:])]), False
    for part in ["signals"] if arguments.signals else [arguments.only] if arguments.only else parts:
        room = Path(tempfile.mkdtemp(prefix="meca-kills-")).resolve()
        started = time.perf_counter()
        try:
            if part == "signals":
                done, name = signals(room, arguments.signals, random.Random(arguments.seed)), "SIGTERM, SIGHUP, Ctrl-C once and twice, `meca clean`"
            else:
                kills, minutes = SHARES[part]
                done, name = (
                    parts[part](room, Clock(round(kills * arguments.kills), minutes * arguments.minutes), random.Random(arguments.seed)),
                    names[part],
                )
        finally:
            shutil.rmtree(room, ignore_errors=True)
        failed = failed or bool(done.wrong)
        notes = "; ".join([*done.notes, *done.wrong[:3]])
        if arguments.no_row:
            print(f"{name}: {done.tried - len(done.wrong)} of {done.tried}; {notes}", flush=True)
        else:
            rehearsal.row(
                name, done.tried, done.tried - len(done.wrong), len(done.wrong), notes, command, arguments.seed, time.perf_counter() - started
            )
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
