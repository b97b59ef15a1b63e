"""What the default preset must show at the scale of a CPU, beside what its rows say. The limits are the project's, set before the rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.quality.measures import (
    How,
    Measure,
    acc_below,
    acc_lost,
    asr_over,
    inside_flagged,
    mean,
    number_of,
    percent_of,
    recall_below,
    removed,
    seconds_cost,
    unanswered,
    working,
    worst,
)
from benchmarks.quality.seeds import read_seeds
from meca.report.numbers import UNKNOWN
from tasks.benchmark.rows import ENOUGH, SMALL, Row, table

WHOLE = ("cifar10-10k", "fashion-mnist-20k")
SEEDS = 3
POINTS = " points"


@dataclass(frozen=True)
class Goal:
    """A limit, and the value that the rows give; points and percent are in [0, 100]."""

    data: str
    what: str
    most: bool  # the limit is an upper one
    limit: float
    value: float | None  # None: no row, or none that says it
    unit: str
    rows: Sequence[Row] = ()
    unknown: int = 0  # rows that do not say it
    weak: bool = False  # the attack does not work without a defence, so the value says nothing of the defence

    @property
    def runs(self) -> int:
        """How many rows it is about."""
        return len(self.rows)

    @property
    def met(self) -> bool | None:
        """Whether the value keeps the limit; None where nobody can say: there is no row, one does not tell, or there are too few for it."""
        if self.value is None:
            return None
        keeps = self.value <= self.limit + 1e-9 if self.most else self.value >= self.limit - 1e-9
        return None if keeps and (self.unknown or self.too_few) else keeps

    @property
    def too_few(self) -> bool:
        """Whether it says of less than two points what takes five seeds of each attack to show."""
        return self.unit == POINTS and self.limit < 100 * SMALL and _fewest(self.rows) < ENOUGH

    @property
    def word(self) -> str:
        """What to say of it."""
        told = {None: "open" if self.value is not None else "not recorded" if self.runs else "no row", True: "met", False: "**missed**"}[self.met]
        more = [
            *(["weak attack"] * self.weak),
            *([f"not recorded in {self.unknown}"] * (self.value is not None and bool(self.unknown))),
            *([f"fewer than {ENOUGH} seeds"] * (self.met is None and self.value is not None and self.too_few)),
        ]
        return ", ".join([told, *more])

    @property
    def references(self) -> str:
        """Whether the references that it compares with had as many passes as what goes out."""
        if self.unit != POINTS or not self.runs:
            return ""
        equal = sum(bool(row.get("equal_passes")) for row in self.rows)
        return "equal passes" if equal == self.runs else f"equal passes in {equal}" if equal else "not recorded"


def section(rows: Sequence[Row]) -> str:
    """Return the section of docs/results.md, empty where no row is part of a goal.

    Args:
        rows: Of which a summary may be made (`benchmarks.quality.seeds.headline`).
    """
    found = list(goals(rows))
    if not any(goal.runs for goal in found):
        return ""
    seeds = read_seeds()
    lines: list[list[str]] = []
    for goal in found:
        sign, looked = "≤" if goal.most else "≥", sum(not seeds.is_report(row) for row in goal.rows)
        runs = f"{goal.runs}{', looked at' if looked == goal.runs else f', {looked} looked at'}" if looked else str(goal.runs)
        lines.append([goal.data, goal.what, f"{sign} {goal.limit:g}{goal.unit}", _written(goal), runs, goal.references, goal.word])
    return (
        "## Goals\n\nPreset `default`, one configuration at a time; rows name the commit that they were measured with. Means are over "
        "attacks, of the means over seeds; only attacks count that succeed in at least half of the cases without a defence. Points are "
        "against the oracle of the same data, attack and seed; what is below zero is on its other side. A line on a single attack says "
        "so where that attack is weak: it proves nothing there. The cost is the seconds of the five "
        f"stages over those of `train_clean`, in one run. What is said of less than two points is open on fewer than {ENOUGH} seeds of an attack, "
        "and so is what a run does not tell. Runs *looked at* are of seeds after which rules were changed: they count until there are reports.\n\n"
        + table(("data", "what", "goal", "measured", "runs", "references", ""), lines, "llrrrll")
    )


def goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """Yield every goal with its value."""
    mine = [row for row in rows if row["preset"] == "default"]

    def held(
        data: str, what: str, limit: float, of: Sequence[Row], how: How, measure: Measure, unit: str, most: bool = True, weak: bool = False
    ) -> Goal:
        unknown = sum(measure(row) is None for row in of)
        return Goal(data, what, most, limit, how(of, measure), unit, of, unknown, weak)

    for name in WHOLE:
        every = [row for row in mine if row["experiment"] == name]
        attacked, untouched = working(every), [row for row in every if row["attack"] == "none"]
        attacks = {row["attack"] for row in attacked}
        yield Goal(name, "attacks that work without a defence", False, 6, len(attacks) if attacked else None, " of 8", attacked)
        yield Goal(name, f"of these, attacks with {SEEDS} seeds", False, 6, _repeated(attacked) if attacked else None, "", attacked)
        yield held(name, "ASR above the oracle's, mean", 1.5, attacked, mean, asr_over, POINTS)
        yield held(name, "the same, worst run", 4, attacked, worst, asr_over, POINTS)
        yield held(name, "ACC below the oracle's, mean", 2, attacked, mean, acc_below, POINTS)
        yield held(name, "the same, worst run", 4, attacked, worst, acc_below, POINTS)
        yield held(name, "recall that a class loses, worst class of all runs", 8, attacked, worst, recall_below, POINTS)
        yield held(name, "poison found (TPR), mean", 97, attacked, mean, percent_of("tpr"), " %", most=False)
        yield held(name, "false alarms (FPR), mean", 8, attacked, mean, percent_of("fpr"), " %")
        yield held(name, "false alarms inside flagged classes, mean", 10, attacked, mean, inside_flagged, " %")
        yield held(name, "AUROC, mean", 0.98, attacked, mean, number_of("auroc"), "", most=False)
        answers = [*attacked, *untouched]
        yield Goal(name, "runs without an answer (inconclusive)", True, 0, unanswered(answers), " runs", answers)
        yield held(name, "no attack: ACC below a plain training, worst", 1.5, untouched, worst, acc_lost, POINTS)
        yield held(name, "no attack: removed, worst", 2, untouched, worst, removed, " %")
        yield held(name, "cost in plain trainings, worst run", 6, every, worst, seconds_cost, "")
    noisy = [row for row in mine if row["experiment"] == "cifar10-10k, 10 % wrong labels"]
    name, weak = "cifar10-10k, 10 % wrong labels", bool(noisy) and not working(noisy)
    yield held(name, "ASR above the oracle's, worst", 3, noisy, worst, asr_over, POINTS, weak=weak)
    yield held(name, "ACC below no defence, worst", 0, noisy, worst, acc_lost, POINTS, weak=weak)
    for name in (f"{whole}, 1 % poison" for whole in WHOLE):
        for attack in ("badnet", "blend"):
            found = [row for row in mine if (row["experiment"], row["attack"]) == (name, attack)]
            weak = bool(found) and not working(found)
            yield held(name, f"{attack}: ASR above the oracle's, worst", 5, found, worst, asr_over, POINTS, weak=weak)
    easy = working([row for row in mine if row["experiment"] == "digits" and (row["verdict"] != "inconclusive" or row["removed"])])
    yield held("digits", "ASR above the oracle's, worst", 3, easy, worst, asr_over, POINTS)
    yield held("digits", "ACC below the oracle's, worst", 2, easy, worst, acc_below, POINTS)


def _fewest(rows: Sequence[Row]) -> int:
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(str(row["attack"]), set()).add(row["seed"])
    return min((len(each) for each in seeds.values()), default=0)


def _repeated(rows: Sequence[Row]) -> int:
    return sum(len({row["seed"] for row in rows if row["attack"] == attack}) >= SEEDS for attack in {row["attack"] for row in rows})


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
