"""Whether this code ends in the results of another commit: verdicts, sanitized sets, models and reports, byte for byte or field for field.

    python -m benchmarks.same_results COMMIT                       shapes and digits as `make demo` has them, and one CIFAR-10 cell
    python -m benchmarks.same_results COMMIT --only shapes digits  some of them
    python -m benchmarks.same_results COMMIT --keep FOLDER         keep what was written; started again it resumes

Both trees run the same pipeline with the numbers of their own params.yaml, one after the other, on one thread. What may differ is named in
`IGNORED`: clocks, and hashes of the code itself. Everything else that differs is printed, and the exit code is 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

__all__ = ["CELLS", "compare", "main"]

ROOT = Path(__file__).parents[1]
NARROW = {"train_clean.epochs": 8, "train_clean.min_steps": 500, "network.width": 16, "detector.width": 16, "poison.patch_size": 5}
CELLS: Mapping[str, Mapping[str, Any]] = {
    "shapes": {"ingest.source": "shapes", "poison.attack": "badnet", **NARROW},
    "digits": {"ingest.source": "digits", "poison.attack": "badnet"},
    "cifar10": {"ingest.source": "cifar10", "ingest.train_limit": 10_000, "poison.attack": "badnet", "seed": 1},
}
# Clocks, and hashes over the code or over files that are compared themselves.
IGNORED = {
    "code_sha256", "params_sha256", "meca_version", "key", "seconds", "timings", "peak_mib", "versions", "hardware", "params", "inputs", "outputs",
    "files",
}  # fmt: skip
RESULTS = ("data", "work", "published", "report")
PROGRAM = """
import json, sys
from pathlib import Path
from meca.params import read_params, with_settings
from meca.pipeline import run
run(Path(sys.argv[1]), with_settings(read_params(), json.loads(sys.argv[2])))
"""


def _run(tree: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    variables = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MECA_THREADS": "1", "MECA_DEVICE": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder), json.dumps(settings)], check=True, env=variables, cwd=tree)


def compare(before: Path, after: Path) -> Iterator[str]:
    """Yield what differs between two finished runs, a line each."""
    names = [{path.relative_to(root) for part in RESULTS for path in (root / part).rglob("*") if path.is_file()} for root in (before, after)]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name} is there {'before' if name in names[0] else 'after'} alone"
    for name in sorted(names[0] & names[1]):
        first, second = before / name, after / name
        if first.read_bytes() != second.read_bytes():
            yield from (f"{name}: {what}" for what in _difference(first, second))


def _difference(first: Path, second: Path) -> Iterator[str]:
    if first.suffix == ".json":
        yield from _fields(json.loads(first.read_text()), json.loads(second.read_text()), "")
    elif first.suffix == ".parquet":
        one, other = pq.read_table(first), pq.read_table(second)
        if not one.equals(other):
            yield f"other columns: {one.column_names}, {other.column_names}" if one.schema != other.schema else "other values"
    elif first.suffix in (".html", ".md"):
        # The page and the card repeat hashes of the code and what depends on them.
        if _without_hashes(first) != _without_hashes(second):
            yield "other text"
    else:
        yield "other bytes"


def _without_hashes(file: Path) -> str:
    return re.sub(r"\b[0-9a-f]{12,64}\b", "#", file.read_text(encoding="utf-8"))


def _fields(first: Any, second: Any, where: str) -> Iterator[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted({*first, *second} - IGNORED):
            yield from _fields(first.get(key), second.get(key), f"{where}.{key}".lstrip("."))
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from _fields(one, other, f"{where}[{index}]")
    elif first != second:
        yield f"{where} is {json.dumps(second)[:80]}, was {json.dumps(first)[:80]}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cells in both trees and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_results", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--only", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args(argv)
    differs = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        tree = folder / "tree"
        if not tree.exists():
            git = ["git", "-C", str(ROOT)]
            subprocess.run([*git, "worktree", "add", "--quiet", "--force", "--detach", str(tree), given.commit], check=True)
        try:
            for name in given.only:
                runs = {"before": tree, "after": ROOT}
                for when, code in runs.items():
                    _run(code, folder / when / name, CELLS[name])
                found = list(compare(folder / "before" / name, folder / "after" / name))
                differs += len(found)
                print(f"{name}: {'the same' if not found else f'{len(found)} differences'}", *found, sep="\n  ", flush=True)
        finally:
            if not given.keep:
                subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
    raise SystemExit(1 if differs else 0)


if __name__ == "__main__":
    main()
