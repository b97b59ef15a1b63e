"""The tables of the campaign: false alarms, attacks at 5 %, rare poison, poison by its share of the class, what was published, what ran where."""

import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.quality.campaign import AGAINST, CAMPAIGN, OF_ITS_CLASS, OWN
from benchmarks.quality.goals import is_at_five
from benchmarks.quality.measures import (
    FLAGGED,
    WEAK_TEST,
    Measure,
    acc_below,
    apart,
    asr_over,
    clean_cost,
    counted,
    fairly,
    flags_many,
    inside_flagged,
    is_found,
    known_values,
    percent_of,
    recall_below,
    uniform,
    worst,
)
from meca.power import FINDS
from meca.report.numbers import UNKNOWN, percent
from tasks.benchmark.rows import Row, cell, known, t_interval, table

ORDER = tuple(CAMPAIGN)


def section(detection: Sequence[Row], quality: Sequence[Row]) -> str:
    """Return the tables, empty where there is no row of the campaign.

    Args:
        detection: Rows of detection.jsonl of which a summary may be made (`benchmarks.quality.seeds.headline`).
        quality: Likewise, of quality.jsonl.
    """
    clean = [row for row in detection if row["experiment"] in CAMPAIGN]
    mine = [row for row in quality if row["experiment"] in CAMPAIGN]
    if not clean and not mine:
        return ""
    own = [row for row in mine if str(row["experiment"]).endswith(OWN)]
    strong, others = apart([row for row in mine if row not in own])
    shares = [row for row in strong if str(row["experiment"]).endswith(OF_ITS_CLASS)]
    usual = [row for row in strong if is_at_five(row)]
    against = [row for row in strong if AGAINST in str(row["experiment"])]
    rare = [row for row in strong if row not in shares and row not in usual and row not in against]
    parts = [
        "## The campaign\n",
        "Figures are means over seeds with their t-interval of 95 %, in percent, or in points against the oracle with as many passes. Sets of which "
        "a part is taken: CIFAR-10 of 50,000, Fashion-MNIST of 60,000, GTSRB of every third frame of its tracks (13,070), CIFAR-100 of a stratified "
        "10,000; the merged ones are these with groups of classes for classes.\n",
        _titled("False alarms on clean sets, detection alone", _clean(clean)),
        _titled("Attacks at 5 %", _attacks(usual)),
        _titled("Poison by its share of the class that it leads to", _shares(shares)),
        _titled("1 % and less", _attacks(rare)),
        _titled("Attacks made against the rule", _attacks(against)),
        _titled("What meca says of what it has published", _own_output(own)),
        _titled("Attacks that do not work without a defence", _weak(others)),
        _titled("What ran where", _origins([*clean, *mine])),
    ]
    return "\n".join(part for part in parts if part)


def _titled(title: str, text: str) -> str:
    return text and f"### {title}\n\n{text}"


def _clean(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for name, found in _by_experiment(rows):
        p, most = uniform(found), max(known(found, "flagged_share"))
        many = counted(found, flags_many) or 0
        test = [UNKNOWN] * 3 if p["statistic"] is None else [percent(p["below"]), f"{p['statistic']:.3f}", f"{p['p']:.3g}"]
        lines.append(
            [cell(name), str(len(found)), verdicts(found), f"{many:.0f}", percent(most, 2), f"{p['n']:,}", *test, _spread(found, clean_cost, 2)]
        )
    heads = ("data", "runs", "verdicts", f"more than {100 * FLAGGED:g} % flagged", "most flagged", "p-values", "of them up to 0.05")
    return table((*heads, "distance from uniform (KS)", "its p", "cost in plain trainings"), lines, "lrlr") if lines else ""


def _attacks(rows: Sequence[Row]) -> str:
    lines = [
        [
            *(cell(name), cell(attack), str(len(found)), percent(_mean(found, "no_defence_asr")), verdicts(found), _of(found, is_found)),
            *(_spread(found, measure) for measure in (percent_of("tpr"), inside_flagged, fairly(asr_over), fairly(acc_below))),
            _number(worst(found, fairly(recall_below))),
        ]
        for name, attack, found in _by_attack(rows)
    ]
    heads = ("data", "attack", "runs", "ASR without a defence", "verdicts", "found", "TPR", "false alarms inside flagged classes")
    return table((*heads, "ASR above the oracle's", "ACC below the oracle's", "recall lost, worst"), lines, "llrrlr") if lines else ""


def _shares(rows: Sequence[Row]) -> str:
    lines = [
        [
            *(cell(name), cell(attack), percent(_mean(found, "poison_share")), percent(_mean(found, "poison_rate"), 2), str(len(found))),
            *(percent(_mean(found, "no_defence_asr")), verdicts(found), _of(found, lambda row: is_found(row) or row["verdict"] == WEAK_TEST)),
            *(_spread(found, measure) for measure in (percent_of("tpr"), inside_flagged, fairly(asr_over), fairly(acc_below))),
        ]
        for name, attack, found in _by_attack(rows)
    ]
    heads = ("data", "attack", "share of its class", "of all", "runs", "ASR without a defence", "verdicts", "found or weak", "TPR")
    return (
        table((*heads, "false alarms inside flagged classes", "ASR above the oracle's", "ACC below the oracle's"), lines, "llrrrrlr") if lines else ""
    )


def _own_output(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for name, attack, found in _by_attack(rows):
        judged = [row["own_output"] for row in found if row.get("own_output")]
        shares = [100 * float(each["flagged_share"]) for each in judged]
        lines.append([
            *(cell(name), cell(attack), str(len(found)), verdicts(found), _of(found, is_found), str(len(judged)), verdicts(judged) or UNKNOWN),
            *(_of(judged, lambda each: each["verdict"] in FINDS), _number(max(shares, default=None), 2)),
        ])  # fmt: skip
    heads = ("data", "attack", "runs", "verdicts", "found", "of them published", "verdicts on that", "nothing found there, as it should be")
    return table((*heads, "most flagged there"), lines, "llrlrrlrr") if lines else ""


def _weak(rows: Sequence[Row]) -> str:
    lines = [
        [
            *(cell(name), cell(attack), percent(_mean(found, "poison_share")), percent(_mean(found, "poison_rate"), 2), str(len(found))),
            *(percent(_mean(found, "no_defence_asr")), verdicts(found), _spread(found, percent_of("tpr")), _spread(found, percent_of("fpr"), 2)),
        ]
        for name, attack, found in _by_attack(rows)
    ]
    heads = ("data", "attack", "share of its class", "of all", "runs", "ASR without a defence", "verdicts", "TPR", "false alarms")
    return table(heads, lines, "llrrrrlr") if lines else ""


def _origins(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for name, found in _by_experiment(rows):
        seconds, dates = known(found, "seconds"), sorted(_distinct(found, "date"))
        machine, torch, commits = (", ".join(_distinct(found, key)) for key in ("hardware", "torch", "commit"))
        lines.append([
            *(cell(name), str(len(found)), machine, torch, commits),
            *(" to ".join(dict.fromkeys((*dates[:1], *dates[-1:]))), f"{min(seconds):,.0f} to {max(seconds):,.0f}" if seconds else UNKNOWN),
            f"`python -m benchmarks.quality --campaign --only {shlex.quote(name)}`",
        ])  # fmt: skip
    return table(("data", "runs", "hardware", "torch", "commit", "date", "seconds a run", "command"), lines, "lrllllrl")


def verdicts(rows: Sequence[Row]) -> str:
    """Return how many runs have which verdict."""
    words = [str(row["verdict"]).replace("_", " ") for row in rows]
    return cell(", ".join(f"{words.count(word)} {word}" for word in sorted(set(words))))


def _distinct(rows: Iterable[Row], key: str) -> list[str]:
    return [cell(value) for value in dict.fromkeys(row.get(key) for row in rows) if value is not None]


def _by_experiment(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = {str(row["experiment"]) for row in rows}
    return [(name, [row for row in rows if row["experiment"] == name]) for name in ORDER if name in names]


def _by_attack(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for name, mine in _by_experiment(rows):
        for row in mine:
            found.setdefault((name, str(row["attack"])), []).append(row)
    return [(name, attack, each) for (name, attack), each in found.items()]


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = known(rows, key)
    return statistics.mean(values) if values else None


def _of(rows: Sequence[Row], holds: Callable[[Row], bool]) -> str:
    return f"{sum(map(holds, rows))} of {len(rows)}"


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return UNKNOWN
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _spread(rows: Sequence[Row], measure: Measure, digits: int = 1) -> str:
    """Return the mean over runs with its t-interval; of one run there is none."""
    values = known_values(rows, measure)
    if not values:
        return UNKNOWN
    text = _number(statistics.mean(values), digits)
    if len(values) < 2:
        return text
    low, high = t_interval(values)
    return f"{text} ({_number(low, digits)} to {_number(high, digits)})"
