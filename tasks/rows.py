"""What the rendered pages share: a cell, a number, and where the figures of a table come from."""

from collections.abc import Sequence
from typing import Any

from meca.report.numbers import UNKNOWN

Row = dict[str, Any]


def cell(value: Any) -> str:
    """Return text that cannot break a table."""
    return UNKNOWN if value is None else " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


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


def provenance(rows: Sequence[Row]) -> str:
    """Return the commands of some rows and what they ran on."""

    def distinct(key: str) -> list[str]:
        return sorted(
            {cell(row[key]) for row in rows if row.get(key) is not None}, key=lambda text: (text.isdigit(), len(text) * text.isdigit(), text)
        )

    seconds = known(rows, "seconds")
    time = f"; {min(seconds):,.0f} to {max(seconds):,.0f} s a run" if seconds else ""
    commits = ", ".join(commit[:12] for commit in distinct("commit")) or UNKNOWN
    dates = distinct("date")
    when = f"; {dates[0][:10]}" + (f" to {dates[-1][:10]}" if dates[-1][:10] != dates[0][:10] else "") if dates else ""
    commands = "".join(f"    {command}\n" for command in distinct("command"))
    hardware, torch, seeds = (", ".join(distinct(key)) or UNKNOWN for key in ("hardware", "torch", "seed"))
    told = f"{hardware}; torch {torch}; commit {commits}{when}{time}; seeds {seeds}"
    return f"{commands}\n{told}\n" if commands else f"{told}\n"
