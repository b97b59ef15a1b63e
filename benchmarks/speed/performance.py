"""docs/performance.md and its plot, from the rows of speed.jsonl that have a group."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.experiments import ABLATIONS, CUTS
from benchmarks.quality.seeds import LOOKED_AT, read_seeds
from meca.report.numbers import UNKNOWN, percent
from meca.text import plain
from tasks.benchmark.rows import Row, cell, number, origins, table
from tasks.mlflow.figures import PIXELS, drawn

INTRODUCTION = """# Performance

Rendered by `python -m benchmarks.render` from the rows in `benchmarks/results/speed.jsonl`; no figure is typed by hand. How they
are measured, in full: [benchmarks/README.md](../benchmarks/README.md).

![Ratios to the usual loops, and the stages between floor and target](performance.svg)

**How to read a ratio.** Two arms do the same work in one process, in turn (A B A B), after a warm-up of both. Each pair gives
one ratio of their times; the table has the median over the pairs and its 95 % bootstrap interval. 3 means that ours needs a third of the
time. An interval that contains 1 shows no difference. A ratio holds for the machine, network, batch and image size of its line: where
a step of the network takes longest, a faster data path gains little.

**Floor** is what the work takes at least: its counted operations (and on a GPU its bytes) over what the machine reaches in
one large product, convolution or copy; in the unit of its line, so for a rate it is the highest one. **Share** is
operations over time, as part of that ceiling. **Target** is what we set out to reach, before measuring. **Cold** is the first run of
a process, **warm** the runs after it.

**Sets that stay in their files.** Training pixels beyond `engine.resident` (params.yaml) are not held in memory: a batch is read from the file when
it is used, and the next ones meanwhile. The figure is how far the anonymous memory of a process rises during a part of the work (the page cache does
not count: the system takes it back), the ratio is the speed against the same set in memory. A part that computes gradients works on some of the
images, spread over the whole set; on the largest sets only what reads every pixel and is cheap is measured.

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
        "images a second": _of("samples_per_s"), "peak MiB": _of("peak_mib"), "runs": _of("n"),
    }),
    "micro": ("The parts", RATES),
    "scaling": ("How the cost grows", {
        "what": _name, "exponent": _value, "least..most": lambda row: f"{number(row.get('lowest'))}..{number(row.get('highest'))}",
        "limit": _limit, "sweeps": _of("n"), "seconds at each size": lambda row: ", ".join(f"{number(x)}: {number(y)}" for x, y in row["points"]),
    }),
    "memory": ("Memory", {"what": _name, "measured": _value, "limit": _limit, "grown by MiB": _of("peak_mib")}),
    "streaming": ("Sets that stay in their files, against sets in memory", {
        "what": _name, "peak": _value, "set in memory, MiB": _of("resident_mib"), "pixels, MiB": _of("pixels_mib"),
        "images a second": _of("samples_per_s"), "speed against the set in memory": _interval, "limit": _limit, "worked on": _of("handled"),
    }),
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

    def of_whole(row: Row) -> tuple[Any, ...]:
        return (row["experiment"].removesuffix(LOOKED_AT), row["attack"], row["seed"], row["commit"] if same_commit else None)

    whole = {of_whole(row): row for row in quality if row["preset"] == "default"}
    settings = sorted({(row["experiment"].split(", ")[0], row["attack"], row["seed"]) for row in less})
    for name, attack, seed in settings:
        mine = [row for row in less if (row["experiment"].split(", ")[0], row["attack"], row["seed"]) == (name, attack, seed)]
        full = whole.get((name, attack, seed, mine[-1]["commit"] if same_commit else None))
        for words, row in [*([("all", full)] if full else []), *((row["experiment"].split(", ", 1)[1], row) for row in mine)]:
            told = str(seed) + ", looked at" * (not read_seeds().is_report(row))
            seconds = sum(row["stage_seconds"].get(stage, 0.0) for stage in ("partition", "enhance", "split"))
            asr = UNKNOWN if not row["asr_n"] else percent(row["asr_k"] / row["asr_n"])
            auroc = UNKNOWN if row["auroc"] is None else f"{row['auroc']:.4f}"
            lines.append([
                *(cell(name), cell(attack), told, cell(words), percent(row["tpr"]), percent(row["fpr"], 2), auroc),
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
    """One line of the plot."""

    label: str
    value: float
    span: tuple[float, float] | None = None  # drawn through the value
    floor: float | None = None
    target: float | None = None


WIDTH, LEFT, RIGHT, ROW, ABOVE, BELOW = 940, 490, 40, 22, 30, 30  # pixels: of the plot, beside the axes, of a line, above and below the lines
INK, FAINT, OURS, AIM = "#1d252c", "#e1e5e8", "#1b4f80", "#c6431d"
STYLE = {  # of matplotlib: keys of its rc file
    "font.size": 8.5, "text.color": INK, "axes.grid": True, "axes.grid.axis": "x", "axes.axisbelow": True, "grid.color": FAINT, "xtick.color": INK,
    "ytick.color": INK, "ytick.labelsize": 8, "xtick.major.size": 0, "xtick.minor.size": 0, "ytick.major.size": 0, "axes.spines.left": False,
    "axes.spines.right": False, "axes.spines.top": False, "axes.spines.bottom": False, "legend.frameon": False, "legend.borderpad": 0,
    "legend.handlelength": 1.2,
}  # fmt: skip
MARKS: dict[str, dict[str, Any]] = {
    "measured, with its 95 % interval": {"marker": "o", "color": OURS, "markersize": 7},
    "floor": {"marker": "|", "color": INK, "markersize": 11, "markeredgewidth": 1.5},
    "target": {"marker": "D", "color": AIM, "markersize": 6.5, "markerfacecolor": "none", "markeredgewidth": 1.5},
}


def plot(rows: Sequence[Row]) -> str:
    """Return the plot as SVG; the same rows give the same bytes."""
    panels: list[tuple[str, list[Line], float | None]] = []
    for hardware in _hardware(rows):
        mine = [row for row in rows if row.get("hardware") == hardware]
        ratios = [
            Line(f"{row['name']}, to {row['ratio_to']}", row["ratio"], (row["ratio_low"], row["ratio_high"]), None, row.get("target_ratio"))
            for row in mine
            if row["group"] == "ratio"
        ]
        panels.append((f"{hardware}: times as fast as the usual loop", ratios, 1.0))
        staged = [row for row in mine if row["group"] == "stage"]
        warm = [row for row in staged if row.get("state") == "warm"] or staged
        stages = [Line(str(row["name"]), row["value"], None, row.get("floor"), row.get("target")) for row in warm]
        panels.append((f"{hardware}: seconds of the stages", stages, None))
    panels = [panel for panel in panels if panel[1]]
    height = ABOVE + sum(ABOVE + ROW * len(lines) + BELOW for _, lines, _ in panels)

    def draw(figure: Any) -> None:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], linestyle="", label=what, **mark) for what, mark in MARKS.items()]
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(6 / WIDTH, 1 - 8 / height), ncols=len(handles))
        top = ABOVE
        for title, lines, least in panels:
            high = ROW * len(lines)
            figure.text(12 / WIDTH, 1 - (top + 20) / height, plain(title), weight="bold")
            place = (LEFT / WIDTH, 1 - (top + ABOVE + high) / height, (WIDTH - LEFT - RIGHT) / WIDTH, high / height)
            _panel(figure.add_axes(place), lines, least)
            top += ABOVE + high + BELOW

    return drawn(draw, WIDTH / PIXELS, height / PIXELS, STYLE)


def _panel(axes: Any, lines: Sequence[Line], least: float | None) -> None:
    """Draw lines below each other on a logarithmic axis, which reaches to `least` where the lines do not."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    seen = [x for line in lines for x in (line.value, line.floor, line.target, *(line.span or ()), least) if x]
    low, high = math.floor(math.log10(min(seen)) * 4) / 4, math.ceil(math.log10(max(seen)) * 4) / 4
    axes.set(xscale="log", xlim=(10**low, 10 ** max(high, low + 0.25)), ylim=(len(lines) - 0.5, -0.5))
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(lines)), [plain(line.label, 84) for line in lines])
    for y, line in enumerate(lines):
        if line.span:
            axes.plot(line.span, (y, y), color=OURS, linewidth=2.2, clip_on=False)
        for mark, value in zip(MARKS.values(), (line.value, line.floor, line.target), strict=True):
            if value:
                axes.plot(value, y, linestyle="", clip_on=False, **mark)
