"""The rows of measurements: their files, where a figure comes from, and what the rendered pages share."""

import datetime
import fcntl
import json
import math
import os
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import meca
from meca.errors import MecaError
from meca.files import atomic_write, canonical_json
from meca.report.numbers import UNKNOWN, percent
from meca.text import plain

__all__ = [
    "Row",
    "append",
    "cell",
    "difference",
    "identity",
    "known",
    "newest",
    "number",
    "origins",
    "provenance",
    "read_rows",
    "revision",
    "spread",
    "t_interval",
    "table",
]

Row = dict[str, Any]
LONGEST = 10_000  # characters of a cell
SMALL, ENOUGH = 0.02, 5  # a difference below two points is told on five seeds or not at all
ROOT = Path(meca.__file__).parents[1]

# A file of rows


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a results file, oldest first; none where there is no file.

    Raises:
        MecaError: A line is no JSON object.
    """
    rows: list[Row] = []
    for at, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else (), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise MecaError(f"{file.name}:{at}: expected a JSON object on one line ({error}); remove the line or give another --output.") from None
        if not isinstance(row, dict):
            raise MecaError(f"{file.name}:{at}: expected a JSON object on one line, got {type(row).__name__}; is this a file of results?")
        rows.append(row)
    return rows


def append(file: Path, row: Row) -> None:
    """Add a row so that a reader, and a run that is killed, see all of it or nothing of it; two that add at once lose none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        atomic_write(file, before + ("\n" if before and not before.endswith("\n") else "") + canonical_json(row, indent=None))
    finally:
        os.close(folder)


def newest(rows: Iterable[Row], *by: str) -> dict[str, Row]:
    """Return the last row of each cell.

    Args:
        rows: Oldest first.
        by: The keys of a row that name its cell. `key`: a cell with other code or data is another cell; `command`: it is the same
            one, measured anew. A row that lacks one of them is left out.
    """
    return {identity(row, by): row for row in rows if all(name in row for name in by)}


def identity(row: Row, by: Sequence[str]) -> str:
    """Return what names the cell of a row: the value of one key, or those of several as JSON."""
    return str(row[by[0]]) if len(by) == 1 else canonical_json([row[name] for name in by], indent=None)


# Where a row comes from


def provenance(command: str, seed: int | None, code_sha256: str | None, params_sha256: str | None) -> Row:
    """Return what every new row says of its origin, beside its machine and the time that it took.

    Args:
        command: Measures the row again.
        seed: Of all draws; None where nothing is drawn.
        code_sha256: Over the code that the figures depend on.
        params_sha256: Over the parameters in force; None where there are none.
    """
    return {
        "command": command,
        "seed": seed,
        **revision(),
        "code_sha256": code_sha256,
        "params_sha256": params_sha256,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


@cache
def revision(root: Path = ROOT) -> Row:
    """Return `commit` and `dirty`: whether the code was another one than the commit's; both None where there is no history.

    It is asked once a process, before its first figure: what is edited later is not what runs. Rows do not count, for measuring
    adds some; nor do new files, unless they are code. MECA_COMMIT names the commit of a copy without a history.
    """
    if told := os.environ.get("MECA_COMMIT"):
        return {"commit": told, "dirty": None}
    unknown = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return unknown  # an installed package inside of some other repository would get its commit
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout  # noqa: S603, S607
            for arguments in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=all", "--", ".", ":(exclude)benchmarks/results"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return unknown
    return {"commit": commit.strip(), "dirty": any(not line.startswith("??") or line.endswith((".py", '.py"')) for line in changes.splitlines())}


# On a page


def cell(value: Any) -> str:
    """Return text that cannot break a table."""
    return UNKNOWN if value is None else " ".join(plain(value, LONGEST).split()).replace("|", "\\|").replace("<", "&lt;")


def table(heads: Sequence[str], lines: Iterable[Sequence[str]], align: str) -> str:
    """Return a table in Markdown, without blanks that only line it up: one long cell would widen every line of a page.

    Args:
        heads: Of the columns.
        lines: Cells that cannot break it, see `cell`.
        align: A letter a column, `l` or `r`; the last one is that of all further columns.
    """
    from tabulate import DataRow, TableFormat, tabulate  # only here: a machine that only adds rows need not have it

    sides = align.ljust(len(heads), align[-1])
    ruler = f"|{'|'.join({'l': ':--', 'r': '--:'}[side] for side in sides)}|"
    line = DataRow("|", "|", "|")
    layout = TableFormat(None, lambda widths, aligns: ruler, None, None, line, line, padding=1, with_header_hide=None)  # pyright: ignore[reportArgumentType]
    return tabulate(list(lines), heads, tablefmt=layout, stralign=None, disable_numparse=True) + "\n"


def number(value: Any) -> str:
    """Return a number with four digits, thousands apart."""
    return (
        UNKNOWN
        if value is None
        else f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else f"{value:,}"
    )


def known(rows: Sequence[Row], key: str) -> list[float]:
    """Return the known values of a key."""
    return [float(row[key]) for row in rows if row.get(key) is not None]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean of fractions over seeds as percent, with min..max and the standard deviation where there are several."""
    if not values:
        return UNKNOWN
    text = percent(statistics.mean(values), digits)
    if len(values) < 2:
        return text
    return f"{text} ({100 * min(values):.{digits}f}..{100 * max(values):.{digits}f}, s.d. {100 * statistics.stdev(values):.{digits}f})"


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the t-interval of the mean over seeds: of at least two, since one says nothing of the others.

    The images of a run are no independent trials of the method: what varies is the run. An interval over all images of all seeds would be far
    too narrow.
    """
    from scipy.stats import t  # only here: it takes a second, and rows are written without it

    n = len(values)
    if n < 2:
        raise ValueError(f"Expected the values of at least two seeds, got {n}.")
    half = float(t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return statistics.mean(values) - half, statistics.mean(values) + half


def difference(ours: Sequence[float], others: Sequence[float], digits: int = 1) -> str:
    """Return by how many points ours is above others of the same seeds, and whether that is shown: `+2.3 (+1.5..+3.1), higher`.

    Nothing is called a difference whose t-interval over seeds holds zero, nor one of less than two points on fewer than five seeds.

    Args:
        ours: Fractions, one a seed.
        others: Likewise, in the same order.
        digits: After the point.
    """
    each = [a - b for a, b in zip(ours, others, strict=True)]
    if not each:
        return UNKNOWN
    mean, n = statistics.mean(each), len(each)
    text = f"{100 * mean:+.{digits}f}"
    if n < 2:
        return f"{text}, one seed"
    if not any(each):
        return f"{text}, the same"
    low, high = t_interval(each)
    text += f" ({100 * low:+.{digits}f}..{100 * high:+.{digits}f})"
    if low <= 0 <= high:
        return f"{text}, not shown"
    if abs(mean) < SMALL and n < ENOUGH:
        return f"{text}, {n} seeds: too few"
    return f"{text}, {'higher' if mean > 0 else 'lower'}"


def origins(rows: Sequence[Row]) -> str:
    """Return the commands of some rows and what they ran on; a plus behind a commit says that the code differed from it."""

    def ordered(values: Iterable[Any]) -> list[str]:
        texts = {cell(value) for value in values if value is not None}
        return sorted(texts, key=lambda text: (text.isdigit(), len(text) * text.isdigit(), text))

    def distinct(key: str) -> list[str]:
        return ordered(row.get(key) for row in rows)

    seconds = known(rows, "seconds")
    time = f"; {min(seconds):,.0f} to {max(seconds):,.0f} s a run" if seconds else ""
    commits = ordered(f"{row['commit'][:12]}{'+' * bool(row.get('dirty'))}" for row in rows if row.get("commit"))
    dates = distinct("date")
    when = f"; {dates[0][:10]}" + (f" to {dates[-1][:10]}" if dates[-1][:10] != dates[0][:10] else "") if dates else ""
    commands = "".join(f"    {command}\n" for command in distinct("command"))
    hardware, torch, seeds = (", ".join(distinct(key)) or UNKNOWN for key in ("hardware", "torch", "seed"))
    told = f"{hardware}; torch {torch}; commit {', '.join(commits) or UNKNOWN}{when}{time}; seeds {seeds}"
    return f"{commands}\n{told}\n" if commands else f"{told}\n"
