"""The rows of results/*.jsonl: read, added, and where each of them comes from. What a row has is in README.md.

Importing this needs no YAML reader, so that a machine with a GPU and little else can add rows.
"""

import importlib.metadata
import json
import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any

from meca.files import SOURCE
from meca.files import code_digest as files_digest
from meca.params import Params
from tasks.benchmark.rows import Row, append, identity, newest, read_rows
from tasks.benchmark.rows import provenance as origin

__all__ = ["CELL", "KEYS", "PROVENANCE", "RESULTS", "ROOT", "code_digest", "conclude", "provenance", "read", "speed", "write"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("meca", "tasks", "flows", "infra", "benchmarks", "tests")  # a campaign may run any of it
PROVENANCE = ("command", "commit", "date", "hardware", "torch", "seed", "seconds")  # of every row; newer ones say more
KEYS = {
    "quality": ("experiment", "dataset", "n_train", "attack", "preset", "acc", "asr_k", "asr_n", "no_defence_acc", "no_defence_asr", "verdict"),
    "detection": ("experiment", "dataset", "n_train", "attack", "preset", "until", "verdict", "flagged_share", "p_values"),
    "benchmark": ("key", "status", "experiment", "dataset", "attack", "rate", "preset", "acc", "asr_k", "asr_n"),
    "detectors": ("name", "experiment", "attack", "tpr", "fpr", "auroc", "auroc_target", "tpr_at"),
    "speed": ("name", "unit", "value"),
    "reliability": ("name", "tried", "as_specified"),
    "services": ("name", "tried", "passed"),
}
CELL = ("experiment", "attack", "preset", "seed")  # what names the cell of a row of quality.jsonl
# What makes a row the same measurement as another one.
IDENTITY = {
    "quality": ("experiment", "dataset", "n_train", "network", "stem", "attack", "poison_rate", "preset", "seed"),
    "detection": CELL,
    "benchmark": ("command",),  # one cell; measured with other code it is still the same
    "detectors": ("name", "experiment", "attack", "seed"),
}


def read(folder: Path, every: bool = False) -> dict[str, list[Row]]:
    """Return the rows of every file, the newest of each measurement only: a repeated seed must not count twice.

    Args:
        folder: With the files.
        every: Return the older rows too.

    Returns:
        Rows by kind. Those of quality.jsonl without figures stand apart, as `failed`, where no other row of their cell has any.

    Raises:
        MecaError: A line is no JSON object.
        ValueError: A row lacks a key of the schema.
    """
    found: dict[str, list[Row]] = {}
    for kind, keys in KEYS.items():
        file = folder / f"{kind}.jsonl"
        rows = read_rows(file)
        for at, row in enumerate(rows, 1):
            if lacks := [key for key in (*keys, *PROVENANCE) if key not in row]:
                raise ValueError(f"{file.name}:{at}: lacks {', '.join(lacks)}; an unknown value is null, never left out.")
        if kind == "quality":
            done = [row for row in rows if row.get("status", "done") == "done"]
            measured = newest(done, *CELL)
            found["failed"] = [row for name, row in newest(rows, *CELL).items() if name not in measured]
            rows = done
        elif kind == "detection":
            rows = [row for row in rows if row.get("status", "done") == "done"]
        names = IDENTITY.get(kind, ("name", "unit", "hardware", "ratio_to"))
        latest: dict[str, Row] = {}
        for row in rows:
            name = identity({key: row.get(key) for key in names}, names)
            latest.pop(name, None)  # a row stands where its newest one does
            latest[name] = row
        found[kind] = rows if every else list(latest.values())
    return found


def provenance(command: str, seconds: float, seed: int | None = 0, params: Params | None = None, **more: Any) -> Row:
    """Return what every row says of its origin: the command, the code, the parameters, the machine, the time.

    Args:
        command: Measures it again.
        seconds: Wall time.
        seed: Of what is drawn.
        params: In force; None where there are none, or not one set of them.
        **more: Further keys, or other values of these.
    """
    from meca.machine import processor  # pyright: ignore[reportPrivateUsage]

    return {
        **origin(command, seed, code_digest(), params.digest() if params else None),
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "torch": importlib.metadata.version("torch").split("+")[0],
        "python": platform.python_version(),
        "seconds": round(seconds, 1),
        "load": os.getloadavg()[0],
        **more,
    }


@cache
def code_digest(root: Path = ROOT) -> str:
    """Return the SHA-256 over all code of the project: of a campaign nobody can say which part of it makes the figure."""
    files = (file for package in PACKAGES for file in (root / package).rglob("*"))
    return files_digest(root, [file for file in files if file.suffix in (*SOURCE, ".yaml") and file.is_file()])


def write(file: str, row: Row) -> None:
    """Add a row to one of the results files, and show it."""
    append(RESULTS / file, row)
    shown = ("name", "value", "unit", "tried", "as_specified", "lost", "passed", "notes")
    print(json.dumps({key: row[key] for key in shown if key in row}), flush=True)


def conclude(row: Row, started: float, command: str, dry: bool, params: Params | None = None) -> None:
    """Add the row of a campaign with its provenance, or print it where `dry`; ends the program with 1 if samples were lost."""
    row |= provenance(command, time.perf_counter() - started, params=params)
    if dry:
        print(json.dumps(row, indent=1))
    else:
        write("reliability.jsonl", row)
    if row["lost"]:
        raise SystemExit(1)


def speed(name: str, value: float, command: str, n: int = 1, params: Params | None = None, **more: Any) -> None:
    """Add a row of speed.jsonl: seconds, or `n` of something per second where a further `unit` says so."""
    empty = dict.fromkeys(("floor", "ratio_to", "ratio", "ratio_low", "ratio_high"))
    row = {"name": name, "unit": "s", "value": round(value, 2), **empty, "n": n}
    write("speed.jsonl", row | provenance(command, value if more.get("unit", "s") == "s" else n / value, params=params) | more)
