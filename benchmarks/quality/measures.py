"""What a row says of a defence: each measure of one row, and how those of several runs become one figure."""

import math
from collections.abc import Callable, Iterable, Sequence

from tasks.benchmark.rows import Row, known
from tasks.benchmark.tables import WEAK

DEFENCE = ("partition", "enhance", "split", "train_clean", "relabel_finetune")

Measure = Callable[[Row], float | None]  # None: the row does not say it
How = Callable[[Sequence[Row], Measure], float | None]


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
