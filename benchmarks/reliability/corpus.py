"""Campaigns that count: of so many trials, how many ended as specified, and how many samples were lost.

    python -m benchmarks.reliability --hostile    every set of the hostile corpus (tests/hostile); docs/hostile.md shows the outcomes
    python -m benchmarks.reliability --fuzz       every target of tests/fuzz for twenty seconds each; findings stay below .fuzz

Each appends one row to results/reliability.jsonl. A further campaign is a function that returns a `Campaign`, and a line of `CAMPAIGNS`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import ROOT
from meca.files import atomic_write

HOSTILE = "hostile.jsonl"  # a line for each case, of the last campaign


@dataclass(frozen=True)
class Campaign:
    """The columns of a row that are not provenance."""

    name: str
    tried: int
    as_specified: int
    lost: int  # samples
    notes: str


def hostile() -> Campaign:
    """Try every hostile set, and say of each case what became of it in hostile.jsonl."""
    from tests.hostile.corpus import CASES  # only here: it needs everything that can read or write a data set
    from tests.hostile.trial import attempt

    lines: list[dict[str, object]] = []
    lost = 0
    for case in CASES.values():
        with tempfile.TemporaryDirectory(prefix="meca-hostile-") as folder, tempfile.TemporaryDirectory(prefix="meca-state-") as mine:
            os.environ["MECA_STATE_DIR"] = f"{mine}/state"  # nothing is to be opened for writing elsewhere
            trial = attempt(case, Path(folder))
        lost += trial.lost
        lines.append({"id": case.id, "as_specified": not trial.wrong, "outcome": trial.outcome if not trial.wrong else "; ".join(trial.wrong)[:300]})
        if trial.wrong:
            print(f"{case.id}: {'; '.join(trial.wrong)}", file=sys.stderr, flush=True)
    atomic_write(rows.RESULTS / HOSTILE, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    kinds = Counter(case.expected.kind for case in CASES.values())
    notes = ", ".join(f"{kinds[kind]} {word}" for kind, word in WORDS.items())
    return Campaign("hostile-inputs", len(lines), sum(bool(line["as_specified"]) for line in lines), lost, f"expected: {notes}")


def fuzz() -> Campaign:
    """Change valid inputs at random, and read them: a target each reader and each file that people write."""
    from tests.fuzz.__main__ import fuzz as attempt
    from tests.fuzz.targets import TARGETS

    tried, found = 0, list[Path]()
    for name, target in TARGETS.items():
        inputs, findings = attempt(name, target, ROOT / ".fuzz", seed=FUZZ_SEED, seconds=FUZZ_SECONDS)
        print(f"{name}: {inputs} inputs, {len(findings)} findings", file=sys.stderr, flush=True)
        tried, found = tried + inputs, found + findings
    notes = f"{len(TARGETS)} targets, {FUZZ_SECONDS} s each; as specified: read, or refused in a sentence, in time and memory"
    return Campaign("fuzzed inputs", tried, tried - len(found), 0, notes)


FUZZ_SECONDS, FUZZ_SEED = 20, 11
WORDS = {"REFUSE": "refused", "USAGE": "asked about", "QUAR": "with samples set aside", "KEPT": "kept"}
CAMPAIGNS: dict[str, Callable[[], Campaign]] = {"hostile": hostile, "fuzz": fuzz}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaigns that were asked for; exit 1 if a trial did not end as specified."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=(__doc__ or "").splitlines()[0])
    for name, campaign in CAMPAIGNS.items():
        parser.add_argument(f"--{name}", action="store_true", help=(campaign.__doc__ or "").splitlines()[0])
    chosen = [name for name, wanted in vars(parser.parse_args(argv)).items() if wanted]
    if not chosen:
        parser.error(f"expected one of {', '.join(f'--{name}' for name in CAMPAIGNS)}")
    failed = False
    for name in chosen:
        started = time.perf_counter()
        found = CAMPAIGNS[name]()
        seconds, seed = time.perf_counter() - started, FUZZ_SEED if name == "fuzz" else None
        rows.write("reliability.jsonl", asdict(found) | rows.provenance(f"python -m benchmarks.reliability --{name}", seconds, seed))
        failed = failed or found.as_specified < found.tried or found.lost > 0
    return int(failed)
