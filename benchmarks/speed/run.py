"""The rows of speed.jsonl about the work itself (benchmarks/reliability/operations.py has those about running it).

    python -m benchmarks.speed                          two cores, at most ten minutes; what `make bench` runs
    python -m benchmarks.speed --quick --out FILE       a rehearsal of the same in under a minute, not among the results
    python -m benchmarks.speed --gpu                    one GPU, at most nine minutes
    python -m benchmarks.speed --only peers             a part of it

A part that fails says so and the others go on; the exit code is 1 then.
"""

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.rows import ROOT
from benchmarks.speed import micro, peers, scaling
from benchmarks.speed.harness import FILE, Bench


def ceilings(bench: Bench) -> None:
    """Write what this machine reaches at most."""
    for name, value in bench.ceilings.measured.items():
        unit, scale = ("GB/s", 1e9) if name == "copy" else ("GF/s", 1e9)
        bench.row("ceiling", f"ceiling, {name}", unit, value / scale, n=7)


def apart(bench: Bench, what: str, *options: str) -> None:
    """Run a part of benchmarks.speed.stages in a fresh process, so that cold is cold and its memory is its own."""
    command = [sys.executable, "-m", "benchmarks.speed.stages", what, "--out", str(bench.out.resolve()), "--command", bench.command, *options]
    subprocess.run(command + ["--quick"] * bench.quick, cwd=ROOT, check=True)


def stages(bench: Bench) -> None:
    """Write the rows of the five stages."""
    if bench.device == "cpu":
        budget = 0 if bench.quick else min(220, bench.left() - 10)
        apart(bench, "stages", "--n", "256" if bench.quick else "4000", "--budget", str(budget))
        return
    apart(bench, "stages", "--network", "resnet18", "imagenet", "--n", "50000", "--budget", "40")
    apart(bench, "stages", "--network", "resnet18", "cifar", "--n", "50000", "--budget", "80")


def memory(bench: Bench) -> None:
    """Write the peaks of memory over store and model."""
    n = "2000" if bench.quick else "50000"
    apart(bench, "memory", "--n", n)
    if bench.device == "cpu":
        apart(bench, "program-memory", "--n", n)


def scenarios(bench: Bench) -> None:
    """Write the rows of quality.jsonl for as many attacks as the time allows, each a whole run with both references."""
    from benchmarks.quality import experiments

    wanted = experiments.chosen(experiments.ON_GPU, presets=("default",), seeds=(experiments.FIRST,), command=bench.command)
    grid = experiments.grid(wanted, bench.machine.threads)
    longest = 30.0
    with grid.locked():
        for cell in grid.cells:
            if bench.left() < 1.2 * longest:
                print(f"no time is left for {cell.name}", file=sys.stderr)
                continue
            begun = time.monotonic()
            grid.run(cell.key)
            longest = max(longest, time.monotonic() - begun)


Part = Callable[[Bench], None]
CPU: dict[str, Part] = {
    "ceilings": ceilings,
    "correctness": micro.correct,
    "micro": micro.run,
    "peers": peers.run,
    "scaling": scaling.run,
    "memory": memory,
    "stages": stages,
}
GPU: dict[str, Part] = {
    "ceilings": ceilings,
    "correctness": micro.correct,
    "micro": micro.run,
    "stages": stages,
    "peers": peers.run,
    "memory": memory,
    "scenarios": scenarios,
}
MINUTES = {"cpu": 10, "gpu": 9}


def main() -> None:
    """Run the parts of this kind of machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="the parts for one GPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; needs --out")
    parser.add_argument("--only", action="append", choices=sorted(CPU | GPU), help="a part; may be given again")
    parser.add_argument("--out", type=Path, default=FILE, help="file that the rows are appended to")
    arguments = parser.parse_args()
    if arguments.quick and arguments.out == FILE:
        parser.error("--quick measures nothing that may stand among the results: say where with --out")
    kind, parts = ("gpu", GPU) if arguments.gpu else ("cpu", CPU)
    command = "python -m benchmarks.speed" + " --gpu" * arguments.gpu + " --quick" * arguments.quick
    bench = Bench(arguments.out, command, arguments.quick, time.monotonic() + 60 * MINUTES[kind])
    if arguments.gpu and bench.device != "cuda":
        parser.error("--gpu needs a GPU that torch can use")
    failed = []
    for name, part in parts.items():
        if arguments.only and name not in arguments.only:
            continue
        begun = time.monotonic()
        try:
            part(bench)
        except Exception:  # one part must not take the others with it
            failed.append(name)
            traceback.print_exc()
        print(f"-- {name}: {time.monotonic() - begun:.0f} s, {bench.left():.0f} s left", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    sys.exit(1 if failed else 0)
