"""docs/performance.md and its picture, from the rows of speed.jsonl that have a group."""

import html
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.experiments import ABLATIONS, CUTS
from meca.report.numbers import UNKNOWN, percent
from tasks.rows import Row, cell, number, origins, table

INTRODUCTION = """# Performance

Rendered by `python -m benchmarks.render` from the rows in `benchmarks/results/speed.jsonl`; no figure is typed by hand. How they
are measured, in full: [benchmarks/README.md](../benchmarks/README.md).

![Ratios to the usual loops, and the stages between floor and target](performance.svg)

**How to read a ratio.** Two arms do the same work in one process, in turn (A B A B), after a warm-up of both. Each pair gives
one ratio of their times; the table has the median over the pairs and its 95 % bootstrap interval. 3 means that ours needs a third of the
time. An interval that contains 1 shows no difference. A ratio holds for the machine, network, batch and picture size of its line: where
a step of the network takes longest, a faster data path gains little.

**Floor** is what the work takes at least: its counted operations (and on a GPU its bytes) over what the machine reaches in
one large product, convolution or copy; in the unit of its line, so for a rate it is the highest one. **Share** is
operations over time, as part of that ceiling. **Target** is what we set out to reach, before measuring. **Cold** is the first run of
a process, **warm** the runs after it.

‡ other programs used the cores: the process got less than 90 % of its threads' time.
"""
MARK = "‡"
Columns = dict[str, Callable[[Row], str]]


def _value(row: Row) -> str:
    return f"{number(row['value'])} {cell(row['unit'])}{f' {MARK}' if row.get('contended') else ''}"


def _interval(row: Row) -> str:
    return UNKNOWN if row.get("ratio") is None else f"{row['ratio']:.2f} ({row['ratio_low']:.2f}..{row['ratio_high']:.2f})"


def _wanted(row: Row) -> str:
    wanted = row.get("target_ratio")
    return UNKNOWN if wanted is None else f"≥ {number(wanted)}: {'yes' if row['ratio'] >= wanted else 'no'}"


def _target(row: Row) -> str:
    wanted = row.get("target")
    if wanted is None:
        return UNKNOWN
    return f"{number(wanted)}: {'yes' if (row['value'] <= wanted) == (row['unit'] == 's') or row['value'] == wanted else 'no'}"


def _limit(row: Row) -> str:
    holds = row.get("holds")
    return UNKNOWN if holds is None else f"{number(row['limit'])}: {'yes' if holds else 'no'}"


def _of(key: str) -> Callable[[Row], str]:
    return lambda row: number(row.get(key))


def _name(row: Row) -> str:
    return cell(row["name"])


RATES: Columns = {
    "what": _name, "measured": _value, "floor": _of("floor"), "target": _target,
    "share": lambda row: percent(row.get("mfu"), 0), "ratio": _interval, "to": lambda row: cell(row.get("ratio_to")),
}  # fmt: skip
TABLES: dict[str, tuple[str, Columns]] = {
    "ratio": ("Against the usual loops", {
        "what": _name, "ours": _value, "other arm": _of("other"), "ratio": _interval, "wanted": _wanted, "pairs": _of("n"),
        "to": lambda row: cell(row["ratio_to"]), "notes": lambda row: cell(row.get("notes")),
    }),
    "stage": ("The five stages of preset `default`, where the first look proves the trigger", {
        "stage": _name, "seconds": _value, "floor": _of("floor"), "target": _target, "share": lambda row: percent(row.get("mfu"), 0),
        "pictures a second": _of("samples_per_s"), "peak MiB": _of("peak_mib"), "runs": _of("n"),
    }),
    "micro": ("The parts", RATES),
    "scaling": ("How the cost grows", {
        "what": _name, "exponent": _value, "least..most": lambda row: f"{number(row.get('lowest'))}..{number(row.get('highest'))}",
        "limit": _limit, "sweeps": _of("n"), "seconds at each size": lambda row: ", ".join(f"{number(x)}: {number(y)}" for x, y in row["points"]),
    }),
    "memory": ("Memory", {"what": _name, "measured": _value, "limit": _limit, "grown by MiB": _of("peak_mib")}),
    "correctness": ("The same results", {"what": _name, "measured": _value, "limit": _limit}),
    "ceiling": ("What the machine reaches", {"what": _name, "measured": _value}),
}  # fmt: skip


CUTS_INTRODUCTION = """## Less work

What each saving does to detection, one at a time: the line *all* is preset `default` of the same commit with the same data, attack and seed.
Seconds are those of `partition`, `enhance` and `split` on one thread.
"""


ABLATIONS_INTRODUCTION = """## Departures from the paper, taken back one at a time

What they are and why they are there: [method.md](method.md). The line *all* is preset `default` with the same data, attack and seed, of the newest
commit. Seconds are those of `partition`, `enhance` and `split` on one thread.
"""


def cuts(quality: Sequence[Row]) -> str:
    """Return the table of the runs with less work, each below the whole run of the same commit: `quality` has older rows too."""
    return _less(quality, CUTS, CUTS_INTRODUCTION, same_commit=True)


def ablations(quality: Sequence[Row]) -> str:
    """Return the table of the runs with a departure from the paper taken back, each below the newest whole run."""
    return _less(quality, ABLATIONS, ABLATIONS_INTRODUCTION, same_commit=False)


def _less(quality: Sequence[Row], names: Collection[str], introduction: str, same_commit: bool) -> str:
    shown = [row for row in quality if row["preset"] == "default" and any(row["experiment"].endswith(f", {name}") for name in names)]
    less = list({(row["experiment"], row["attack"], row["seed"]): row for row in shown}.values())
    lines: list[list[str]] = []
    seen = ", seeds that were looked at while tuning"  # where rows go whose seed was

    def of_whole(row: Row) -> tuple[Any, ...]:
        return (row["experiment"].removesuffix(seen), row["attack"], row["seed"], row["commit"] if same_commit else None)

    whole = {of_whole(row): row for row in quality if row["preset"] == "default"}
    settings = sorted({(row["experiment"].split(", ")[0], row["attack"], row["seed"]) for row in less})
    for name, attack, seed in settings:
        mine = [row for row in less if (row["experiment"].split(", ")[0], row["attack"], row["seed"]) == (name, attack, seed)]
        full = whole.get((name, attack, seed, mine[-1]["commit"] if same_commit else None))
        for words, row in [*([("all", full)] if full else []), *((row["experiment"].split(", ", 1)[1], row) for row in mine)]:
            seconds = sum(row["stage_seconds"].get(stage, 0.0) for stage in ("partition", "enhance", "split"))
            asr = UNKNOWN if not row["asr_n"] else percent(row["asr_k"] / row["asr_n"])
            auroc = UNKNOWN if row["auroc"] is None else f"{row['auroc']:.4f}"
            lines.append([
                *(cell(name), cell(attack), str(seed), cell(words), percent(row["tpr"]), percent(row["fpr"], 2), auroc),
                *(percent(row["acc"]), asr, cell(row["verdict"]), number(round(seconds, 1))),
            ])  # fmt: skip
    if not lines:
        return ""
    heads = ("data", "attack", "seed", "less", "TPR", "FPR", "AUROC", "ACC", "ASR", "verdict", "s")
    return f"{introduction}\n{table(heads, lines, 'llrlrrrrrlr')}\n{origins(less)}"


def page(rows: Sequence[Row], quality: Sequence[Row] = ()) -> str:
    """Return docs/performance.md."""
    parts = [INTRODUCTION]
    for hardware in _hardware(rows):
        mine = [row for row in rows if row.get("hardware") == hardware]
        parts.append(f"## {cell(hardware)}\n\n{_environment(mine)}")
        for group, (title, columns) in TABLES.items():
            found = [row for row in mine if row["group"] == group]
            if found:
                parts.append(f"### {title}\n\n" + table([*columns], [[show(row) for show in columns.values()] for row in found], "lr"))
        parts.append(origins(mine))
    if less := cuts(quality):
        parts.append(less)
    return "\n".join(parts if rows else [*parts, "No row has been measured yet.\n"])


def _hardware(rows: Sequence[Row]) -> list[str]:
    return sorted({str(row.get("hardware")) for row in rows})


def _environment(rows: Sequence[Row]) -> str:
    def span(key: str) -> str:
        found = sorted({row[key] for row in rows if row.get(key) is not None})
        return UNKNOWN if not found else number(found[0]) + (f" to {number(found[-1])}" if len(found) > 1 else "")

    pythons = ", ".join(sorted({str(row["python"]) for row in rows if row.get("python")})) or UNKNOWN
    disturbed = sum(bool(row.get("contended")) for row in rows)
    return (
        f"Threads {span('threads')}; clock {span('clock_mhz')} MHz; load average {span('load')}; Python {pythons}; "
        f"{disturbed} of {len(rows)} rows marked {MARK}.\n"
    )


@dataclass(frozen=True)
class Line:
    """One line of the picture."""

    label: str
    value: float
    span: tuple[float, float] | None = None  # drawn through the value
    floor: float | None = None
    target: float | None = None


WIDTH, LEFT, RIGHT, ROW = 940, 490, 40, 22
INK, FAINT, OURS, AIM = "#1d252c", "#e1e5e8", "#1b4f80", "#c6431d"


def plot(rows: Sequence[Row]) -> str:
    """Return the picture as SVG; the same rows give the same bytes."""
    parts, top = [], 34
    for hardware in _hardware(rows):
        mine = [row for row in rows if row.get("hardware") == hardware]
        ratios = [
            Line(f"{row['name']}, to {row['ratio_to']}", row["ratio"], (row["ratio_low"], row["ratio_high"]), None, row.get("target_ratio"))
            for row in mine
            if row["group"] == "ratio"
        ]
        parts, top = _panel(parts, top, f"{hardware}: times as fast as the usual loop", ratios, least=1.0)
        staged = [row for row in mine if row["group"] == "stage"]
        warm = [row for row in staged if row.get("state") == "warm"] or staged
        stages = [Line(str(row["name"]), row["value"], None, row.get("floor"), row.get("target")) for row in warm]
        parts, top = _panel(parts, top, f"{hardware}: seconds of the stages", stages)
    key = (
        f'<circle cx="16" cy="16" r="5" fill="{OURS}"/><text x="26" y="20">measured, with its 95 % interval</text>'
        f'<path d="M 262 9 v 14" stroke="{INK}" stroke-width="2"/><text x="270" y="20">floor</text>'
        f'<path d="M 322 10 l 6 6 l -6 6 l -6 -6 z" fill="none" stroke="{AIM}" stroke-width="2"/><text x="334" y="20">target</text>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" '
    head += f'font-family="system-ui, -apple-system, \'Segoe UI\', Roboto, sans-serif" font-size="12" fill="{INK}">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>', key, *parts, "</svg>"]) + "\n"


def _panel(parts: list[str], top: int, title: str, lines: Sequence[Line], least: float | None = None) -> tuple[list[str], int]:
    """Return the parts with those of a panel on a logarithmic axis added, and where the next one begins."""
    if not lines:
        return parts, top
    seen = [x for line in lines for x in (line.value, line.floor, line.target, *(line.span or ()), least) if x]
    low, high = math.floor(math.log10(min(seen)) * 4) / 4, math.ceil(math.log10(max(seen)) * 4) / 4

    def x(value: float) -> float:
        return round(LEFT + (math.log10(max(value, 1e-9)) - low) / max(high - low, 0.25) * (WIDTH - LEFT - RIGHT), 1)

    bottom = top + 30 + ROW * len(lines)
    drawn = [f'<text x="12" y="{top + 18}" font-weight="bold">{html.escape(title)}</text>']
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for tick in (digit * 10.0**exponent for digit in (1, 2, 5)):
            if 10**low * 0.999 <= tick <= 10**high * 1.001:
                drawn.append(f'<path d="M {x(tick)} {top + 26} V {bottom}" stroke="{FAINT}"/>')
                drawn.append(f'<text x="{x(tick)}" y="{bottom + 14}" text-anchor="middle" font-size="11">{tick:g}</text>')
    for i, line in enumerate(lines):
        y = top + 26 + ROW * i + ROW // 2
        label = line.label if len(line.label) <= 84 else line.label[:83] + "…"
        drawn.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end" font-size="11">{html.escape(label)}</text>')
        if line.span:
            drawn.append(f'<path d="M {x(line.span[0])} {y} H {x(line.span[1])}" stroke="{OURS}" stroke-width="3"/>')
        if line.floor:
            drawn.append(f'<path d="M {x(line.floor)} {y - 7} v 14" stroke="{INK}" stroke-width="2"/>')
        if line.target:
            drawn.append(f'<path d="M {x(line.target)} {y - 6} l 6 6 l -6 6 l -6 -6 z" fill="none" stroke="{AIM}" stroke-width="2"/>')
        drawn.append(f'<circle cx="{x(line.value)}" cy="{y}" r="4.5" fill="{OURS}"/>')
    return [*parts, *drawn], bottom + 30
