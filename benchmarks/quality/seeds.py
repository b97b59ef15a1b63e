"""Which seeds may be reported: written down in seeds.toml before a report runs, and held against every cell and every row.

A row is a report where its seed is one of the data set's `report` and its experiment does not say that it was looked at. Everything
else proves nothing of data that no rule was set on, and stands apart on every page.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from meca.errors import UsageError
from tasks.benchmark.rows import Row

__all__ = ["FILE", "LOOKED_AT", "Seeds", "headline", "read_seeds", "refuse"]

FILE = Path(__file__).with_name("seeds.toml")
LOOKED_AT = ", seeds that were looked at while tuning"  # ends the experiment of what is run while numbers and rules are set
KEYS = ("looked_at", "report")


@dataclass(frozen=True)
class Seeds:
    """The lists, by data set; of `before` by experiment."""

    looked_at: Mapping[str, frozenset[int]]
    report: Mapping[str, frozenset[int]]
    before: Mapping[str, frozenset[int]]  # of rows that are older than the lists

    def is_report(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row, or what is given of a cell, is a report."""
        return row["seed"] in self.report.get(str(row.get("dataset", row.get("source"))), ()) and not str(row["experiment"]).endswith(LOOKED_AT)

    def is_looked_at(self, row: Row) -> bool:
        """Tell whether the experiment of a row says that its seed was looked at: by its name, or because the row is older than the lists."""
        name = str(row["experiment"])
        return name.endswith(LOOKED_AT) or ("dirty" not in row and row["seed"] in self.before.get(name, ()))


@cache
def read_seeds(file: Path = FILE) -> Seeds:
    """Return the lists.

    Raises:
        UsageError: They are no lists of seeds, or a seed stands in both.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file.name}: expected lists of seeds as TOML ({error}).") from None
    before, found = tables.pop("before", {}), {key: dict[str, frozenset[int]]() for key in KEYS}
    for name, table in tables.items():
        if not isinstance(table, dict) or set(table) != set(KEYS):
            raise UsageError(
                f"{file.name}: [{name}] expected {' and '.join(KEYS)}, got {', '.join(table) if isinstance(table, dict) else repr(table)}."
            )
        for key in KEYS:
            found[key][name] = _seeds(table[key], f"{file.name}: [{name}] {key}")
        if twice := found["looked_at"][name] & found["report"][name]:
            raise UsageError(
                f"{file.name}: [{name}] expected no seed in both lists, got {_told(twice)}; one that was looked at is never reported, "
                "so take it out of `report`."
            )
    return Seeds(found["looked_at"], found["report"], {name: _seeds(value, f"{file.name}: [before] {name}") for name, value in before.items()})


def _seeds(value: object, where: str) -> frozenset[int]:
    if not isinstance(value, list) or any(type(seed) is not int or seed < 0 for seed in value) or len(set(value)) != len(value):
        raise UsageError(f"{where}: expected a list of seeds (0, 1, 2, …), each once, got {value!r}.")
    return frozenset(value)


def refuse(given: Iterable[Mapping[str, Any]], rows: Iterable[Row], seeds: Seeds | None = None) -> None:
    """Refuse cells whose seeds are not for them.

    Args:
        given: `experiment`, `source` and `seed` of each cell. A name that ends with `LOOKED_AT` is no report.
        rows: All that have been measured: a seed that was once run to be looked at is spent, whatever the lists say today.
        seeds: The lists; those of the project if None.

    Raises:
        UsageError: A report with a seed that is not listed for one or was looked at, or a look at one that is kept for reports.
    """
    lists = seeds or read_seeds()
    spent = {(str(row.get("dataset")), row["seed"]) for row in rows if lists.is_looked_at(row)}
    wrong: dict[tuple[str, bool], set[int]] = {}
    for cell in given:
        name, seed, tuning = str(cell["source"]), int(cell["seed"]), str(cell["experiment"]).endswith(LOOKED_AT)
        listed = lists.looked_at if tuning else lists.report
        if seed not in listed.get(name, ()) or (not tuning and (name, seed) in spent):
            wrong.setdefault((name, tuning), set()).add(seed)
    for (name, tuning), found in sorted(wrong.items()):
        if tuning:
            kept = ", which are kept for reports" if found & lists.report.get(name, frozenset()) else ""
            raise UsageError(
                f"Expected seeds of {name} that {FILE.name} lists as looked_at ({_told(lists.looked_at.get(name, ()))}), got {_told(found)}{kept}; "
                "add them to that list first: from then on they are never reported."
            )
        raise UsageError(
            f"Expected seeds of {name} that {FILE.name} lists as report ({_told(lists.report.get(name, ()))}) and that were never looked at, got "
            f"{_told(found)}; choose others, or run it with --looked-at, as what it is."
        )


def _told(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds)) or "none"


def headline(rows: Sequence[Row], seeds: Seeds | None = None) -> list[Row]:
    """Return the rows that a summary is made of: of each experiment its reports; where it has none, what was one before there were lists.

    Rows whose code differed from their commit are no part of it: nobody can run them again.
    """
    lists = seeds or read_seeds()
    clean = [row for row in rows if not row.get("dirty") and not str(row["experiment"]).endswith(LOOKED_AT)]
    reported = {str(row["experiment"]) for row in clean if lists.is_report(row)}
    return [row for row in clean if lists.is_report(row) or str(row["experiment"]) not in reported]
