"""What the default preset must show at the scale of a CPU, beside what its rows say. The limits are the project's, set before the rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.quality.campaign import CAMPAIGN, OF_ITS_CLASS
from benchmarks.quality.campaign import WHOLE as SETS
from benchmarks.quality.measures import (
    FLAGGED,
    How,
    Measure,
    acc_below,
    acc_lost,
    apart,
    asr_over,
    by_unit,
    clean_cost,
    counted,
    fairly,
    flags_many,
    inside_flagged,
    mean,
    missed,
    number_of,
    percent_of,
    recall_below,
    removed,
    seconds_cost,
    silent,
    unanswered,
    uniform,
    unit_mean,
    verdict_is,
    working,
    worst,
)
from benchmarks.quality.seeds import read_seeds
from meca.report.numbers import UNKNOWN
from tasks.benchmark.rows import ENOUGH, SMALL, Row, t_interval, table

WHOLE = ("cifar10-10k", "fashion-mnist-20k")
SEEDS = 3
POINTS = " points"
CLEAN_RUNS = 100
UNIFORM = 0.01  # p-value of the test of Kolmogorov and Smirnov, below which p-values are called not uniform


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
        """Whether there are fewer seeds or runs than it takes to say it."""
        return bool(self.lacking)

    @property
    def lacking(self) -> str:
        """What it lacks: of less than two points is told what five seeds of each attack show."""
        below = self.unit == POINTS and self.limit < 100 * SMALL
        return f"fewer than {ENOUGH} seeds" if below and _fewest(self.rows) < ENOUGH else ""

    @property
    def word(self) -> str:
        """What to say of it."""
        told = {None: "open" if self.value is not None else "not recorded" if self.runs else "no row", True: "met", False: "**missed**"}[self.met]
        more = [
            *(["weak attack"] * self.weak),
            *([f"not recorded in {self.unknown}"] * (self.value is not None and bool(self.unknown))),
            *([self.lacking] * (self.met is None and self.value is not None and self.too_few)),
        ]
        return ", ".join([told, *more])

    @property
    def references(self) -> str:
        """Whether the references that it compares with had as many passes as what goes out."""
        if self.unit != POINTS or not self.runs:
            return ""
        equal = sum(bool(row.get("equal_passes")) for row in self.rows)
        return "equal passes" if equal == self.runs else f"equal passes in {equal}" if equal else "not recorded"


@dataclass(frozen=True)
class Aim(Goal):
    """A goal of the campaign: over several data sets, each of which with a seed is a set of its own."""

    interval: tuple[float, float] | None = None  # t, of the mean over data sets and seeds
    units: int = 0  # data sets and seeds that a mean is made of
    least: int = 1  # runs that it takes

    @property
    def lacking(self) -> str:
        """What it lacks."""
        if self.runs < self.least:
            return f"fewer than {self.least} runs"
        below = self.unit == POINTS and self.limit < 100 * SMALL
        return f"fewer than {ENOUGH} sets" if below and 0 < self.units < ENOUGH else ""


def aims(detection: Sequence[Row], quality: Sequence[Row]) -> Iterator[Aim]:
    """Yield the goals of the campaign with their values.

    Args:
        detection: Rows of detection alone, on clean sets.
        quality: Rows of whole runs.
    """
    clean = [row for row in detection if row["experiment"] in CAMPAIGN and row["attack"] == "none"]
    mine = [row for row in quality if row["experiment"] in CAMPAIGN]
    attacked = apart([row for row in mine if is_at_five(row)])[0]
    shares = apart([row for row in mine if str(row["experiment"]).endswith(OF_ITS_CLASS)])[0]

    def aim(data: str, what: str, limit: float, of: Sequence[Row], how: How, measure: Measure, unit: str, most: bool = True, least: int = 1) -> Aim:
        each = by_unit(of, measure) if how is unit_mean else []
        unknown = sum(measure(row) is None for row in of)
        bounds = t_interval(each) if len(each) > 1 else None
        return Aim(data, what, most, limit, how(of, measure), unit, of, unknown, interval=bounds, units=len(each), least=least)

    data = "clean sets"
    yield Aim(data, "runs", False, CLEAN_RUNS, float(len(clean)) if clean else None, " runs", clean)
    yield aim(data, "called poisoned", 2, clean, counted, verdict_is("poisoned"), " runs", least=CLEAN_RUNS)
    yield aim(data, f"more than {100 * FLAGGED:g} % of the samples flagged", 0, clean, counted, flags_many, " runs", least=CLEAN_RUNS)
    unknown = sum(not row.get("p_values") for row in clean)
    yield Aim(
        data,
        "p-values of the classes are uniform (p of Kolmogorov and Smirnov)",
        False,
        UNIFORM,
        uniform(clean)["p"],
        "",
        clean,
        unknown,
        least=CLEAN_RUNS,
    )
    yield aim(data, "cost in plain trainings, worst run", 3.5, clean, worst, clean_cost, "", least=CLEAN_RUNS)
    data = "attacks at 5 %"
    yield aim(data, "poison not found", 0, attacked, counted, missed, " runs")
    yield aim(data, "poison found (TPR), mean", 97, attacked, unit_mean, percent_of("tpr"), " %", most=False)
    yield aim(data, "false alarms inside flagged classes, mean", 10, attacked, unit_mean, inside_flagged, " %")
    for name, measure, of_all in (("ASR above the oracle's", asr_over, 1), ("ACC below the oracle's", acc_below, 1.5)):
        yield aim(data, f"{name}, mean", of_all, attacked, unit_mean, fairly(measure), POINTS)
        yield aim(data, "the same, worst run", 4, attacked, worst, fairly(measure), POINTS)
    yield aim(data, "recall that a class loses, worst class of all runs", 8, attacked, worst, fairly(recall_below), POINTS)
    data = "poison by its share of the class"
    yield aim(data, "called free of evidence", 0, shares, counted, verdict_is("no_evidence"), " runs")
    yield aim(data, "neither found nor called a weak test", 0, shares, counted, silent, " runs")


def is_at_five(row: Row) -> bool:
    """Tell whether a row of the campaign is of the attacks at 5 %."""
    name = str(row["experiment"])
    return name in SETS or name.endswith(", further attacks")


def campaign(detection: Sequence[Row], quality: Sequence[Row]) -> str:
    """Return the goals of the campaign for docs/results.md, empty where none of its rows is there.

    Args:
        detection: Rows of detection.jsonl of which a summary may be made (`benchmarks.quality.seeds.headline`).
        quality: Likewise, of quality.jsonl.
    """
    found = list(aims(detection, quality))
    if not any(each.runs for each in found):
        return ""
    lines = [
        [
            *(each.data, each.what, f"{'≤' if each.most else '≥'} {each.limit:g}{each.unit}", _written(each)),
            *(UNKNOWN if each.interval is None else f"{each.interval[0]:.1f} to {each.interval[1]:.1f}", str(each.runs), each.word),
        ]
        for each in found
    ]
    return (
        "## Goals of the campaign\n\nPreset `default`, the plans of `benchmarks/quality/campaign.py`. A mean is over data sets and seeds, of the "
        "means over attacks; its interval of 95 % (t) is over these. Attacks that succeed in less than half of the cases without a defence stand "
        "apart, and count nowhere. Points are against the oracle with as many passes. *Found*: the verdict says so, and at least half of the poison "
        "is flagged. The cost is counted in samples that networks saw (a training step 1, a pass with a gradient of the input 2/3, one forward 1/3) "
        "over those of a plain training of everything: that of detection, and one plain training after it. Classes of one run share "
        "networks, so the p of their p-values is smaller than it would be of independent ones.\n\n"
        + table(("of", "what", "goal", "measured", "interval", "runs", ""), lines, "llrrrrl")
    )


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
        else f"{goal.value:.2f}"
        if isinstance(goal, Aim) and not goal.unit
        else f"{goal.value:.0f}"
        if goal.unit == " runs" or (goal.limit == 6 and not goal.most)
        else f"{goal.value:.1f}"
    )
    return f"{value.removeprefix('-') if float(value) == 0 else value}{goal.unit}"
