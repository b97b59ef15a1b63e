"""What a row says of a defence: each measure of one row, and how those of several runs become one figure."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tasks.benchmark.rows import Row, known
from tasks.benchmark.tables import WEAK

DEFENCE = ("partition", "enhance", "split", "train_clean", "relabel_finetune")

Measure = Callable[[Row], float | None]  # None: the row does not say it
How = Callable[[Sequence[Row], Measure], float | None]
FOUND = 0.5  # share of the poison that is flagged, from which poison was found, where the verdict says so, too
FLAGGED = 0.01  # share of a clean set that is flagged, above which somebody loses more than he would notice
WEAK_TEST = "weak"  # the verdict on a set in which a trigger would not have been seen


def working(rows: Sequence[Row]) -> list[Row]:
    """Return the runs of the attacks that work: without a defence, in the mean over seeds, at least half of the time."""
    undefended = {row["attack"]: known([each for each in rows if each["attack"] == row["attack"]], "no_defence_asr") for row in rows}
    works = {attack for attack, values in undefended.items() if attack != "none" and values and sum(values) / len(values) >= WEAK}
    return [row for row in rows if row["attack"] in works]


def asr_over(row: Row) -> float | None:
    """Return by how many points the ASR is above the oracle's."""
    if not row["asr_n"] or row["oracle_asr"] is None:
        return None
    return float(100 * (row["asr_k"] / row["asr_n"] - row["oracle_asr"]))


def acc_below(row: Row) -> float | None:
    """Return by how many points ACC is below the oracle's."""
    return None if row["oracle_acc"] is None else float(100 * (row["oracle_acc"] - row["acc"]))


def acc_lost(row: Row) -> float | None:
    """Return by how many points ACC is below that without a defence."""
    return None if row["no_defence_acc"] is None else float(100 * (row["no_defence_acc"] - row["acc"]))


def recall_below(row: Row) -> float | None:
    """Return how many points of recall the class loses that loses most, against the oracle."""
    pairs = [(a, b) for a, b in zip(row["oracle_recall"] or (), row["recall"] or (), strict=False) if a is not None and b is not None]
    return 100 * max(a - b for a, b in pairs) if pairs else None


def removed(row: Row) -> float:
    """Return the percentage of the training samples that is removed."""
    # Where no answer can be defended nothing goes out, which costs a user with clean data as much as removing all.
    return 100.0 if row["verdict"] == "inconclusive" else float(100 * row["removed"] / row["n_train"])


def unanswered(rows: Sequence[Row]) -> float | None:
    """Return how many runs are inconclusive."""
    return float(sum(row["verdict"] == "inconclusive" for row in rows)) if rows else None


def seconds_cost(row: Row) -> float | None:
    """Return the seconds of the defence's stages over those of `train_clean`."""
    seconds = row.get("stage_seconds") or {}
    return sum(seconds[stage] for stage in DEFENCE) / seconds["train_clean"] if all(seconds.get(stage) for stage in DEFENCE) else None


def number_of(key: str) -> Measure:
    """Return the measure that is the value of a key."""
    return lambda row: None if row[key] is None else float(row[key])


def percent_of(key: str) -> Measure:
    """Return the measure that is the value of a key in percent."""
    return lambda row: None if row[key] is None else 100 * float(row[key])


def inside_flagged(row: Row) -> float | None:
    """Return the percentage of false alarms inside flagged classes; not a number where nothing is flagged."""
    # Where nothing is flagged there is no such share, and that is known.
    return None if "fpr_flagged" not in row else math.nan if row["fpr_flagged"] is None else 100 * float(row["fpr_flagged"])


def known_values(rows: Iterable[Row], measure: Measure) -> list[float]:
    """Return what a measure gives for the rows of which there is a figure."""
    return [value for row in rows if (value := measure(row)) is not None and not math.isnan(value)]


def worst(rows: Sequence[Row], measure: Measure) -> float | None:
    """Return the largest value over runs."""
    return max(known_values(rows, measure), default=None)


def mean(rows: Sequence[Row], measure: Measure) -> float | None:
    """Return the mean over attacks of the means over their runs."""
    each = [known_values((row for row in rows if row["attack"] == attack), measure) for attack in sorted({str(row["attack"]) for row in rows})]
    means = [sum(values) / len(values) for values in each if values]
    return sum(means) / len(means) if means else None


# Of the campaign: runs on several data sets, of which each with a seed is a set of its own.


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the runs of the attacks that work on their data set, and those of the others; nobody can say it of a run without its reference."""
    strong: list[Row] = []
    for name in dict.fromkeys(str(row["experiment"]) for row in rows):
        strong += working([row for row in rows if row["experiment"] == name])
    return strong, [row for row in rows if row not in strong]


def by_unit(rows: Sequence[Row], measure: Measure) -> list[float]:
    """Return for each data set and seed the mean over attacks, of those of which there is a figure: what an interval over seeds is made of."""
    units: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        units.setdefault((str(row["experiment"]), int(row["seed"])), []).extend(known_values([row], measure))
    return [statistics.mean(each) for each in units.values() if each]


def unit_mean(rows: Sequence[Row], measure: Measure) -> float | None:
    """Return the mean over data sets and seeds of the means over attacks."""
    each = by_unit(rows, measure)
    return statistics.mean(each) if each else None


def counted(rows: Sequence[Row], measure: Measure) -> float | None:
    """Return how many runs a measure is true of."""
    return float(sum(known_values(rows, measure))) if rows else None


def is_found(row: Row) -> bool:
    """Tell whether the poison of a run was found: the verdict says so, and half of it is flagged at least."""
    return row["verdict"] == "poisoned" and (row["tpr"] or 0.0) >= FOUND


def missed(row: Row) -> float:
    """Return 1 where poison was not found."""
    return float(not is_found(row))


def silent(row: Row) -> float:
    """Return 1 where poison was not found and the verdict does not say that the test was weak."""
    return float(not is_found(row) and row["verdict"] != WEAK_TEST)


def verdict_is(word: str) -> Measure:
    """Return the measure that is 1 for one verdict, else 0."""
    return lambda row: float(row["verdict"] == word)


def flags_many(row: Row) -> float:
    """Return 1 where more than a hundredth of the samples is flagged."""
    return float(row["flagged_share"] > FLAGGED)


def fairly(measure: Measure) -> Measure:
    """Return a measure against the oracle that is known only where that had as many passes as what goes out."""
    return lambda row: measure(row) if row.get("equal_passes") else None


def clean_cost(row: Row) -> float | None:
    """Return what a clean set costs in plain trainings, by samples: its detection, and the training after it where the row ends before that.

    A network that detection trained and `train_clean` takes over is counted once: in detection. Rows from before that do not say it.
    """
    found = row.get("cost")
    return None if found is None else float(found) + (bool(row.get("until")) and not row.get("taken_over"))


def p_values_of(rows: Sequence[Row]) -> list[float]:
    """Return the p-values of all classes of all runs."""
    return [float(value) for row in rows for value in row.get("p_values") or () if value is not None]


def uniform(rows: Sequence[Row]) -> Mapping[str, Any]:
    """Return how far the p-values of the classes are from uniform: `n`, `statistic` and `p` of the test of Kolmogorov and Smirnov, `below`.

    Args:
        rows: Of sets without a trigger.

    Returns:
        `below`: the share of p-values up to 0.05. All None but `n` where there is no p-value.
    """
    found = p_values_of(rows)
    if not found:
        return {"n": 0, "statistic": None, "p": None, "below": None}
    from scipy.stats import kstest  # only here: it takes a second

    test = kstest(found, "uniform")
    return {"n": len(found), "statistic": float(test.statistic), "p": float(test.pvalue), "below": sum(p <= 0.05 for p in found) / len(found)}
