"""docs/hostile.md: every hostile case with what it is, what meca owes it, and what became of it in the last campaign."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.reliability.corpus import HOSTILE, WORDS
from meca.report.numbers import UNKNOWN
from tasks.benchmark.rows import Row, cell, origins, table

TITLES = {
    "images": "Pictures",
    "folders": "Folders",
    "names": "Names and labels",
    "lists": "Lists of files",
    "parquet": "Parquet",
    "archives": "Archives",
    "webdataset": "WebDataset",
    "cifar": "CIFAR",
    "idx": "idx",
    "settings": "Parameters",
}


def outcomes(results: Path) -> dict[str, Row]:
    """Return the line of each case in the last campaign, by id."""
    file = results / HOSTILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {row["id"]: row for row in map(json.loads, lines)}


def page(found: Mapping[str, Row], campaigns: Sequence[Row]) -> str:
    """Return the page: the cases of the registry, and their outcomes in `found`.

    Args:
        found: What `outcomes` returned.
        campaigns: The rows of reliability.jsonl.
    """
    from tests.hostile.corpus import CASES, MODULES  # only here: it needs everything that can read or write a data set

    done = [found[name] for name in CASES if name in found]
    right = sum(bool(row["as_specified"]) for row in done)
    kinds = Counter(case.expected.kind for case in CASES.values())
    parts = [
        "# Hostile inputs\n",
        "Rendered by `python -m benchmarks.render` from the registry in `tests/hostile` and the last `python -m benchmarks.reliability --hostile`. "
        "A case is a data set, or a parameter file over a good set, that code makes; it is read by the stage `ingest` and given to the command "
        "line. REFUSE: the set is turned away with a sentence that holds the words quoted, exit code 3, and nothing is published. USAGE: meca "
        "asks, or a parameter is wrong, exit code 4. QUAR: single samples are named with their reason, all others are kept. KEPT: all are "
        "kept; what a name says stays exact in the files and is harmless on a screen. In no case a file outside of the output changes, a name "
        "is looked up, a program is started, or an exception gets out.\n",
        f"{len(CASES)} cases ({', '.join(f'{kinds[kind]} {word}' for kind, word in WORDS.items())}); "
        f"{right} of {len(done)} that were tried ended as specified.\n",
    ]
    for module, title in TITLES.items():
        lines: list[list[str]] = []
        for case in MODULES[module]:
            row = found.get(case.id)
            outcome = UNKNOWN if row is None else "as specified" if row["as_specified"] else f"**{cell(row['outcome'])}**"
            lines.append([case.id, case.threat, cell(case.what), cell(case.expected), outcome])
        parts.append(f"## {title}\n\n" + table(("case", "threat", "what it is", "expected", "outcome"), lines, "l"))
    rows = [row for row in campaigns if row["name"] == "hostile-inputs"]
    return "\n".join(parts) + (f"\n{origins(rows)}" if rows else "")
