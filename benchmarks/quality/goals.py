"""What the default preset must show at the scale of a CPU, beside what its rows say. The limits are the project's, set before the rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from meca.report.numbers import UNKNOWN
from tasks.benchmark.rows import Row, known, table
from tasks.benchmark.tables import WEAK

WHOLE = ("cifar10-10k", "fashion-mnist-20k")
SEEDS = 3
DEFENCE = ("partition", "enhance", "split", "train_clean", "relabel_finetune")

Measure = Callable[[Row], float | None]


@dataclass(frozen=True)
class Goal:
    """A limit, and the value that the rows give; points and percent are in [0, 100]."""

    data: str
    what: str
    most: bool  # the limit is an upper one
    limit: float
    value: float | None  # None: no row
    unit: str
    runs: int
    weak: bool = False  # the attack does not work without a defence, so the value says nothing of the defence

    @property
    def met(self) -> bool | None:
        """Whether the value keeps the limit; None where there is none."""
        if self.value is None:
            return None
        return self.value <= self.limit + 1e-9 if self.most else self.value >= self.limit - 1e-9


def section(rows: Iterable[Row]) -> str:
    """Return the section of docs/results.md, empty where no row is part of a goal."""
    found = list(goals(list(rows)))
    if not any(goal.runs for goal in found):
        return ""
    lines: list[list[str]] = []
    for goal in found:
        sign, word = "≤" if goal.most else "≥", {None: "no row", True: "met", False: "**missed**"}[goal.met] + ", weak attack" * goal.weak
        lines.append([goal.data, goal.what, f"{sign} {goal.limit:g}{goal.unit}", _written(goal), str(goal.runs), word])
    return (
        "## Goals\n\nPreset `default`, one configuration at a time; rows name the commit that they were measured with. Means are over "
        "attacks, of the means over seeds; only attacks count that succeed in at least half of the cases without a defence. Points are "
        "against the oracle of the same data, attack and seed; what is below zero is better than the oracle. A line on a single attack says "
        "so where that attack is weak: it proves nothing there. The cost is the seconds of the five "
        "stages over those of `train_clean`, in one run.\n\n" + table(("data", "what", "goal", "measured", "runs", ""), lines, "llrrrl")
    )


def goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """Yield every goal with its value."""
    mine = [row for row in rows if row["preset"] == "default"]
    for name in WHOLE:
        every = [row for row in mine if row["experiment"] == name]
        attacked, untouched = _working(every), [row for row in every if row["attack"] == "none"]
        attacks = {row["attack"] for row in attacked}
        n = len(attacked)
        yield Goal(name, "attacks that work without a defence", False, 6, len(attacks) if n else None, " of 8", n)
        yield Goal(name, f"of these, attacks with {SEEDS} seeds", False, 6, _repeated(attacked) if n else None, "", n)
        yield Goal(name, "ASR above the oracle's, mean", True, 1.5, _mean(attacked, _asr_over), " points", n)
        yield Goal(name, "the same, worst run", True, 4, _worst(attacked, _asr_over), " points", n)
        yield Goal(name, "ACC below the oracle's, mean", True, 2, _mean(attacked, _acc_below), " points", n)
        yield Goal(name, "the same, worst run", True, 4, _worst(attacked, _acc_below), " points", n)
        yield Goal(name, "recall that a class loses, worst class of all runs", True, 8, _worst(attacked, _recall_below), " points", n)
        yield Goal(name, "poison found (TPR), mean", False, 97, _mean(attacked, _percent_of("tpr")), " %", n)
        yield Goal(name, "false alarms (FPR), mean", True, 8, _mean(attacked, _percent_of("fpr")), " %", n)
        yield Goal(name, "AUROC, mean", False, 0.98, _mean(attacked, _of("auroc")), "", n)
        yield Goal(name, "runs without an answer (inconclusive)", True, 0, _unanswered([*attacked, *untouched]), " runs", n + len(untouched))
        n = len(untouched)
        yield Goal(name, "no attack: ACC below a plain training, worst", True, 1.5, _worst(untouched, _acc_lost), " points", n)
        yield Goal(name, "no attack: removed, worst", True, 2, _worst(untouched, _removed), " %", n)
        yield Goal(name, "cost in plain trainings, worst run", True, 6, _worst(every, _cost), "", len(every))
    noisy = [row for row in mine if row["experiment"] == "cifar10-10k, 10 % wrong labels"]
    name, weak = "cifar10-10k, 10 % wrong labels", bool(noisy) and not _working(noisy)
    yield Goal(name, "ASR above the oracle's, worst", True, 3, _worst(noisy, _asr_over), " points", len(noisy), weak)
    yield Goal(name, "ACC below no defence, worst", True, 0, _worst(noisy, _acc_lost), " points", len(noisy), weak)
    for name in (f"{whole}, 1 % poison" for whole in WHOLE):
        for attack in ("badnet", "blend"):
            found = [row for row in mine if (row["experiment"], row["attack"]) == (name, attack)]
            weak = bool(found) and not _working(found)
            yield Goal(name, f"{attack}: ASR above the oracle's, worst", True, 5, _worst(found, _asr_over), " points", len(found), weak)
    easy = _working([row for row in mine if row["experiment"] == "digits" and (row["verdict"] != "inconclusive" or row["removed"])])
    yield Goal("digits", "ASR above the oracle's, worst", True, 3, _worst(easy, _asr_over), " points", len(easy))
    yield Goal("digits", "ACC below the oracle's, worst", True, 2, _worst(easy, _acc_below), " points", len(easy))


def _working(rows: Sequence[Row]) -> list[Row]:
    """Return the runs of the attacks that work: without a defence, in the mean over seeds, at least half of the time."""
    undefended = {row["attack"]: known([each for each in rows if each["attack"] == row["attack"]], "no_defence_asr") for row in rows}
    works = {attack for attack, values in undefended.items() if attack != "none" and values and sum(values) / len(values) >= WEAK}
    return [row for row in rows if row["attack"] in works]


def _repeated(rows: Sequence[Row]) -> int:
    return sum(len({row["seed"] for row in rows if row["attack"] == attack}) >= SEEDS for attack in {row["attack"] for row in rows})


def _asr_over(row: Row) -> float | None:
    if not row["asr_n"] or row["oracle_asr"] is None:
        return None
    return float(100 * (row["asr_k"] / row["asr_n"] - row["oracle_asr"]))


def _acc_below(row: Row) -> float | None:
    return None if row["oracle_acc"] is None else float(100 * (row["oracle_acc"] - row["acc"]))


def _acc_lost(row: Row) -> float | None:
    return None if row["no_defence_acc"] is None else float(100 * (row["no_defence_acc"] - row["acc"]))


def _recall_below(row: Row) -> float | None:
    pairs = [(a, b) for a, b in zip(row["oracle_recall"] or (), row["recall"] or (), strict=False) if a is not None and b is not None]
    return 100 * max(a - b for a, b in pairs) if pairs else None


def _removed(row: Row) -> float:
    # Where no answer can be defended nothing goes out, which costs a user with clean data as much as removing all.
    return 100.0 if row["verdict"] == "inconclusive" else float(100 * row["removed"] / row["n_train"])


def _unanswered(rows: Sequence[Row]) -> float | None:
    return float(sum(row["verdict"] == "inconclusive" for row in rows)) if rows else None


def _cost(row: Row) -> float | None:
    seconds = row.get("stage_seconds") or {}
    return sum(seconds[stage] for stage in DEFENCE) / seconds["train_clean"] if all(seconds.get(stage) for stage in DEFENCE) else None


def _of(key: str) -> Measure:
    return lambda row: None if row[key] is None else float(row[key])


def _percent_of(key: str) -> Measure:
    return lambda row: None if row[key] is None else 100 * float(row[key])


def _values(rows: Iterable[Row], measure: Measure) -> list[float]:
    return [value for row in rows if (value := measure(row)) is not None]


def _worst(rows: Sequence[Row], measure: Measure) -> float | None:
    return max(_values(rows, measure), default=None)


def _mean(rows: Sequence[Row], measure: Measure) -> float | None:
    each = [_values((row for row in rows if row["attack"] == attack), measure) for attack in sorted({str(row["attack"]) for row in rows})]
    means = [sum(values) / len(values) for values in each if values]
    return sum(means) / len(means) if means else None


def _written(goal: Goal) -> str:
    if goal.value is None:
        return UNKNOWN
    value = (
        f"{goal.value:.3f}"
        if goal.limit < 1 and not goal.unit
        else f"{goal.value:.0f}"
        if goal.unit == " runs" or (goal.limit == 6 and not goal.most)
        else f"{goal.value:.1f}"
    )
    return f"{value.removeprefix('-') if float(value) == 0 else value}{goal.unit}"
