"""The tables II to VII of the paper (arXiv 2405.12719) and its figures, from the rows of benchmark runs, as Markdown and SVG.

The layout is the paper's, the figures are ours: ACC is on the full test set, ASR on all triggered test images of another
class than the target. What has no row is "not run", never a number.
"""

import html
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from meca.files import atomic_write
from meca.metrics import BINS, ROC_AT
from meca.report.numbers import UNKNOWN, percent
from tasks.benchmark.grid import EIGHT
from tasks.benchmark.rows import Row, cell, known, newest, number, origins, read_rows, table
from tasks.mlflow.figures import PIXELS, drawn

__all__ = ["FIGURES", "figures", "line", "render", "unequal", "write"]

BASIC, ADAPTIVE = EIGHT[:5], EIGHT[5:]
RATE = 0.05  # of all tables but V
RATES = (0.1, 0.15, 0.2)  # of table V
NETWORKS = ("resnet34", "mobilenet_v2")  # of table VI
WEAK = 0.5  # an attack whose undefended ASR is lower did not work, so defeating it proves nothing
NOT_RUN = "not run"
LONG = 30  # characters of settings, above which a cell names them by a number

Pair = Callable[[Row], tuple[float | None, float | None]]  # ACC and ASR
Setting = tuple[str, int, str, str, str]  # data set, training images, network, stem, further settings


def final(row: Row) -> tuple[float | None, float | None]:
    """Return ACC and ASR of the model that goes out: after relabelling."""
    return row.get("acc"), row["asr_k"] / row["asr_n"] if row.get("asr_n") else None


def before(row: Row) -> tuple[float | None, float | None]:
    """Return those of the model before relabelling."""
    return row.get("clean_acc"), row.get("clean_asr")


def undefended(row: Row) -> tuple[float | None, float | None]:
    """Return those of the same recipe trained on all samples."""
    return row.get("no_defence_acc"), row.get("no_defence_asr")


def oracle(row: Row) -> tuple[float | None, float | None]:
    """Return those of the same recipe trained on the truly clean samples."""
    return row.get("oracle_acc"), row.get("oracle_asr")


def line(row: Row) -> str:
    """Return a row in a few words."""
    if row.get("until"):
        where = ", ".join(map(str, row["flagged_classes"])) or "no class"
        found = f"{row['verdict']}, {percent(row['flagged_share'], 2)} flagged in {where}, TPR {percent(row['tpr'])}, FPR {percent(row['fpr'], 2)}"
        return f"{found}, {number(row['cost'])} plain trainings, {row['seconds']} s"
    return f"{row['verdict']}, ACC/ASR {_pair([row], final)}, TPR {percent(row['tpr'])}, FPR {percent(row['fpr'], 2)}, {row['seconds']} s"


def render(rows: Sequence[Row], svg_stem: str = "", own: Sequence[Row] | None = None, standing: str = "") -> str:
    """Return the tables as Markdown, with headings of level 2.

    Args:
        rows: Failed ones are named as such.
        svg_stem: How the names of the SVG files begin, relative to the page; empty leaves the figures out.
        own: The rows whose origin stands below, where others have theirs beside a table of their own; None for all.
        standing: What else to know of the rows, in sentences.
    """
    rows = list(rows)
    drawn = figures(rows) if svg_stem else {}
    embedded = {name: f"![{title}]({svg_stem}-{name}.svg)\n\n" if name in drawn else "" for name, title in FIGURES.items()}
    parts = [
        "## Tables II to VII\n",
        "In the layout of arXiv 2405.12719; cells are ACC/ASR in percent, as mean ± standard deviation where there are several seeds. "
        "*No defence*: the same recipe trained on all samples; *oracle*: trained on the truly clean ones. Without a defence an attack marked † "
        f"succeeds in less than half of the cases, so it is in no mean; ‡: measured with code that differs from its commit. "
        f"“{NOT_RUN}”: there is no row.\n",
        f"{standing}\n" if standing else "",
        "### Table II: the five basic attacks at 5 % poison\n",
        _defences(rows, BASIC),
        "### Table III: the three adaptive attacks at 5 % poison\n",
        _defences(rows, ADAPTIVE),
        "### Table IV: before and after relabelling\n",
        _relabelling(rows),
        "### Table V: poison rates, preset default\n",
        _by_rate(rows),
        "### Table VI: networks, preset default, 5 % poison\n",
        _by_network(rows),
        "### Table VII: without an attack, and the mean over the attacks at 5 %\n",
        _clean(rows),
        "### Detection, time and memory at 5 % poison\n",
        _detection(rows),
        "### Figures\n",
        "Fig. 7 is about the partition rate, the share of the samples that is taken for clean. What the paper draws in its Figs. 4 and 6 is not "
        "recorded in this project; in their place stand the two views of its core claim that our runs keep: how the suspicion of poison and of "
        "clean samples is spread, and which detection rate it allows at which rate of false alarms.\n",
        "#### In the place of Fig. 4: suspicion of clean and of poisoned samples\n",
        embedded["suspicion"] + _suspicion(rows),
        "#### In the place of Fig. 6: poison found at a rate of false alarms\n",
        embedded["roc"] + _roc(rows),
        "#### Fig. 7: partition rate\n",
        embedded["partition"] + _partition(rows),
        _failures(rows),
        origins(mine) if (mine := _done(rows if own is None else own)) else "",
    ]
    return _shortened("\n".join(part for part in parts if part), rows) + _legend(rows)


def unequal(rows: Sequence[Row]) -> str:
    """Return how many rows do not say that their references had as many passes as the model that goes out; empty where all do."""
    mine = _done(rows)
    found = sum(not row.get("equal_passes") for row in mine)
    if not found:
        return ""
    return f"Of {len(mine)} rows {found} do not say that the references had as many passes as the model that goes out: in older ones they had fewer."


def write(results: Path) -> list[Path]:
    """Write the tables and the figures beside a results file and return their paths; figures without data are removed."""
    rows = list(newest(read_rows(results), "command").values())  # figures of older code must not count beside those of newer
    page, stem = results.with_suffix(".md"), results.with_suffix("")
    drawn = figures(rows)
    for name in FIGURES:
        if name not in drawn:
            stem.with_name(f"{stem.name}-{name}.svg").unlink(missing_ok=True)
    written = {
        page: f"# {cell(stem.name)}\n\n{render(rows, stem.name, standing=unequal(rows))}",
        **{stem.with_name(f"{stem.name}-{n}.svg"): t for n, t in drawn.items()},
    }
    for path, text in written.items():
        atomic_write(path, text)
    return list(written)


# Which rows a table is about


def _done(rows: Iterable[Row]) -> list[Row]:
    # What goes until `split` alone has nothing to say in a table of the paper.
    return [row for row in rows if row.get("status", "done") == "done" and not row.get("until")]


def _setting(row: Row) -> Setting:
    told = ", ".join(f"{key}={value}" for key, value in sorted((row.get("settings") or {}).items()))
    return str(row["dataset"]), int(row.get("n_train") or 0), str(row.get("network")), str(row.get("stem")), told


def _settings(rows: Sequence[Row]) -> list[Setting]:
    return sorted({_setting(row) for row in _done(rows)})


def _data(setting: Setting, network: bool = True) -> str:
    name, n, net, stem, told = setting
    return cell(", ".join(part for part in (f"{name} ({n:,})", f"{net} {stem}" if network else "", told) if part))


def _numbered(rows: Sequence[Row]) -> dict[str, str]:
    """Return a short name for each set of settings that is too long for a cell."""
    told = [setting[4] for setting in _settings(rows)]
    return {cell(text): f"settings {i}" for i, text in enumerate((text for text in dict.fromkeys(told) if len(text) > LONG), 1)}


def _shortened(text: str, rows: Sequence[Row]) -> str:
    for long, short in sorted(_numbered(rows).items(), key=lambda item: -len(item[0])):
        text = text.replace(long, short)
    return text


def _legend(rows: Sequence[Row]) -> str:
    return "".join(f"\n{short[0].upper()}{short[1:]}: {long}\n" for long, short in _numbered(rows).items())


def _rate(row: Row) -> float | None:
    # As asked for; a row that does not say it has the rate that was reached, which a cap may have lowered.
    rate = row.get("rate", row.get("poison_rate"))
    return None if rate is None or row["attack"] == "none" else round(float(rate), 3)


def _chosen(rows: Iterable[Row], setting: Setting, rate: float | None = None, **wanted: Any) -> list[Row]:
    """Return the rows of one cell of a table; the partition rate is that of params.yaml."""
    return [
        row
        for row in rows
        if all(row.get(key) == value for key, value in wanted.items())
        and (rate is None or row["attack"] == "none" or _rate(row) == rate)
        and _belongs(row, setting)
        and row.get("partition_rate_given") is None
    ]


def _belongs(row: Row, setting: Setting) -> bool:
    mine = _setting(row)
    if row.get("status") == "failed":  # it never learnt how many training samples there are
        return (mine[0], *mine[2:]) == (setting[0], *setting[2:]) and row.get("train_limit") in (0, setting[1])
    return mine == setting


# What stands in a cell


def _pair(rows: Sequence[Row], pair: Pair) -> str:
    """Return `ACC/ASR` in percent over the seeds; a dash for what is not known of a run, words where there is no run."""
    if not _done(rows):
        return "failed" if rows else NOT_RUN
    values = list(zip(*(pair(row) for row in _done(rows)), strict=True))
    return ("/" if len(_done(rows)) == 1 else " / ").join(_mean_of([x for x in each if x is not None]) for each in values)


def _mean_of(values: Sequence[float]) -> str:
    if not values:
        return UNKNOWN
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _once(rows: Iterable[Row]) -> list[Row]:
    """Return one row a seed: the references are the same for every preset."""
    rows = [row for row in rows if row.get("status") == "failed" or row.get("no_defence_acc") is not None]
    return list({row["seed"]: row for row in sorted(rows, key=lambda row: (row.get("status") != "failed", row["preset"] == "default"))}.values())


def _is_weak(rows: Sequence[Row]) -> bool:
    """Tell whether an attack did not work without a defence, or nobody knows whether it did."""
    values = known(_done(rows), "no_defence_asr")
    return bool(_done(rows)) and (not values or statistics.mean(values) < WEAK)


def _attack(name: str, rows: Sequence[Row]) -> str:
    return ("no attack" if name == "none" else cell(name) + " †" * _is_weak(rows)) + " ‡" * any(row.get("dirty") for row in rows)


def _mean(groups: Sequence[Sequence[Row]], pair: Pair) -> str:
    """Return the mean over attacks of the means over seeds, and over how many where some have no row."""
    ran = [_done(group) for group in groups if _done(group)]
    found = [[[x for x in each if x is not None] for each in zip(*(pair(row) for row in group), strict=True)] for group in ran]
    means = [[statistics.mean(each[i]) for each in found if each[i]] for i in (0, 1)]
    told = "/".join(f"{100 * statistics.mean(each):.1f}" if each else UNKNOWN for each in means)
    return NOT_RUN if not ran else told if len(ran) == len(groups) else f"{told} ({len(ran)} of {len(groups)})"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], text: int = 2) -> str:
    """Return a table whose first `text` columns are words."""
    if not lines:
        return f"{NOT_RUN[0].upper()}{NOT_RUN[1:]}.\n"
    return table(heads, lines, "l" * text + "r")


# The tables


def _defences(rows: Sequence[Row], attacks: Sequence[str]) -> str:
    lines: list[list[str]] = []
    for setting in _settings(rows):
        columns: list[tuple[Callable[[str], list[Row]], Pair]] = []
        for preset, pair in ((None, undefended), ("paper", final), ("default", final), (None, oracle)):

            def of(attack: str, setting: Setting = setting, preset: str | None = preset) -> list[Row]:
                found = _chosen(rows, setting=setting, attack=attack, rate=RATE, **({"preset": preset} if preset else {}))
                return found if preset else _once(found)

            columns.append((of, pair))
        every = {attack: _chosen(rows, setting=setting, attack=attack, rate=RATE) for attack in attacks}
        if not any(_done(found) for found in every.values()):
            continue
        for attack, found in every.items():
            seeds = sorted({len(_done(of(attack))) for of, _ in columns} - {0})
            lines.append(
                [
                    _data(setting),
                    _attack(attack, found),
                    " to ".join(str(n) for n in dict.fromkeys((*seeds[:1], *seeds[-1:]))) or "0",
                    *(_pair(of(attack), pair) for of, pair in columns),
                ]
            )
        strong = [attack for attack, found in every.items() if _done(found) and not _is_weak(found)]
        if len(strong) > 1:
            means = [_mean([of(attack) for attack in strong], pair) for of, pair in columns]
            lines.append([_data(setting), f"*mean of {len(strong)} attacks*", "", *means])
    return _table(("data (training images)", "attack", "seeds", "no defence", "paper", "default", "oracle"), lines)


def _relabelling(rows: Sequence[Row]) -> str:
    lines = []
    for setting in _settings(rows):
        for attack in EIGHT:
            found = {preset: _chosen(rows, setting=setting, attack=attack, rate=RATE, preset=preset) for preset in ("paper", "default")}
            if any(_done(each) for each in found.values()):
                figures = [_pair(each, pair) for each in found.values() for pair in (before, final)]
                lines.append([_data(setting), _attack(attack, [row for each in found.values() for row in each]), *figures])
    return _table(("data (training images)", "attack", "paper, before", "paper, after", "default, before", "default, after"), lines)


def _by_rate(rows: Sequence[Row]) -> str:
    mine = [row for row in rows if row.get("preset") == "default" and row["attack"] in EIGHT]
    rates = sorted({*RATES, *(rate for row in _done(mine) if (rate := _rate(row)) and rate != RATE)})
    lines = []
    for setting in _settings(mine):
        for attack in EIGHT:
            found = [_chosen(mine, setting=setting, attack=attack, rate=rate) for rate in rates]
            if any(_done(each) for each in found):
                told = [_pair(each, final) + " †" * _is_weak(each) for each in found]
                lines.append([_data(setting), cell(attack), *told])
    return _table(("data (training images)", "attack", *(f"{100 * rate:g} %" for rate in rates)), lines)


def _by_network(rows: Sequence[Row]) -> str:
    mine = [row for row in rows if row.get("preset") == "default"]
    kinds = sorted({(setting[2], setting[3]) for setting in _settings(mine)})
    kinds += [(name, "cifar") for name in NETWORKS if name not in {kind[0] for kind in kinds}]
    lines = []
    for data in sorted({(s[0], s[1], s[4]) for s in _settings(mine)}):
        for attack in ("none", *EIGHT):
            found = [_chosen(mine, setting=(data[0], data[1], *kind, data[2]), attack=attack, rate=RATE) for kind in kinds]
            if any(_done(each) for each in found):
                told = [_pair(each, final) + " †" * (attack != "none" and _is_weak(each)) for each in found]
                lines.append([_data((data[0], data[1], "", "", data[2]), network=False), _attack(attack, []), *told])
    return _table(("data (training images)", "attack", *(f"{name} {stem}" for name, stem in kinds)), lines)


def _clean(rows: Sequence[Row]) -> str:
    lines = []
    for setting in _settings(rows):
        quiet = {preset: _chosen(rows, setting=setting, attack="none", preset=preset) for preset in ("paper", "default")}
        everything = _once([row for found in quiet.values() for row in found])
        lines.append([_data(setting), "no attack", _pair(everything, undefended), *(_pair(found, final) for found in quiet.values())])
        strong = [attack for attack in EIGHT if _done(found := _chosen(rows, setting=setting, attack=attack, rate=RATE)) and not _is_weak(found)]
        if not strong:
            lines.append([_data(setting), "*no attack that works*", *[UNKNOWN] * 3])
            continue
        told = [_mean([_once(_chosen(rows, setting=setting, attack=attack, rate=RATE)) for attack in strong], undefended)]
        told += [_mean([_chosen(rows, setting=setting, attack=a, rate=RATE, preset=p) for a in strong], final) for p in ("paper", "default")]
        lines.append([_data(setting), f"*mean of {len(strong)} attacks of 8*", *told])
    return _table(("data (training images)", "attack", "no defence", "paper", "default"), lines)


def _detection(rows: Sequence[Row]) -> str:
    lines = []
    for setting in _settings(rows):
        for attack in (*EIGHT, "none"):
            for preset in ("paper", "default"):
                if found := _done(_chosen(rows, setting=setting, attack=attack, rate=RATE, preset=preset)):
                    rates = [percent(_average(found, key), digits) for key, digits in (("tpr", 1), ("fpr", 2))]
                    rates.append(percent(_average(found, "fpr_flagged")) if any("fpr_flagged" in row for row in found) else "not recorded")
                    auroc = _average(found, "auroc")
                    cost = [f"{value:,.0f}" if value is not None else UNKNOWN for value in (_working(found), _average(found, "peak_mib"))]
                    told = [*rates, UNKNOWN if auroc is None else f"{auroc:.3f}", *cost]
                    lines.append([_data(setting), _attack(attack, found), preset, *told])
    return _table(
        ("data (training images)", "attack", "preset", "TPR", "FPR", "FPR inside flagged classes", "AUROC", "seconds, without evaluate", "peak MiB"),
        lines,
        text=3,
    )


def _working(rows: Sequence[Row]) -> float | None:
    """Return the seconds of a run but for `evaluate`, which trains the references once for several runs."""
    values = [sum(each.values()) - each.get("evaluate", 0.0) for row in rows if (each := row.get("stage_seconds"))]
    return statistics.mean(values) if values else None


def _average(rows: Sequence[Row], key: str) -> float | None:
    values = known(rows, key)
    return statistics.mean(values) if values else None


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row.get("status") == "failed"]
    lines = [[cell(row["dataset"]), cell(row["attack"]), cell(row["preset"]), cell(row["seed"]), cell(row["error"])] for row in failed]
    return "### Failed\n\n" + _table(("data", "attack", "preset", "seed", "why"), lines, text=5) if failed else ""


# The figures

FIGURES = {
    "suspicion": "Suspicion of clean and of poisoned samples",
    "roc": "Poison found at a rate of false alarms",
    "partition": "ACC and ASR over the partition rate",
}
WHERE = ("partition", "final")


def _arms(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each attack and preset with a name, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        rate = _rate(row)
        told = [_data(_setting(row)), str(row["attack"]), *([f"{100 * rate:g} %"] if rate else []), str(row["preset"])]
        found.setdefault(" · ".join(told), []).append(row)
    return sorted(found.items())


def _separated(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    mine = [row for row in _done(rows) if row.get("separation") and row["separation"]["final"]["roc"] and row.get("partition_rate_given") is None]
    return _arms(mine)


def _shares(rows: Sequence[Row], where: str, kind: str) -> list[float]:
    """Return the share of the samples of a kind in each bin, all seeds together."""
    counts = [sum(each) for each in zip(*(row["separation"][where][kind] for row in rows), strict=True)]
    return [count / max(1, sum(counts)) for count in counts]


def _recall_at(rows: Sequence[Row], where: str) -> list[float]:
    return [statistics.mean(each) for each in zip(*(row["separation"][where]["roc"] for row in rows), strict=True)]


def _suspicion(rows: Sequence[Row]) -> str:
    lines = []
    for name, found in _separated(rows):
        for where in WHERE:
            above = [f"{100 * sum(_shares(found, where, kind)[BINS // 2 :]):.1f} %" for kind in ("poison", "clean")]
            lines.append([name, where, *above])
    return _table(("run", "suspicion of", "poison above 0.5", "clean above 0.5"), lines)


def _roc(rows: Sequence[Row]) -> str:
    kept = [ROC_AT.index(rate) for rate in (0.001, 0.01, 0.05, 0.1)]
    lines = [[name, where, *(percent(_recall_at(found, where)[i]) for i in kept)] for name, found in _separated(rows) for where in WHERE]
    return _table(("run", "suspicion of", *(f"TPR at FPR {100 * ROC_AT[i]:g} %" for i in kept)), lines)


def _swept(rows: Iterable[Row]) -> list[tuple[str, dict[float, list[Row]]]]:
    """Return the rows of each arm by partition rate, of the arms that have several."""
    found = []
    for name, members in _arms(row for row in _done(rows) if row.get("partition_rate") is not None):
        shares: dict[float, list[Row]] = {}
        for row in members:
            # What params.yaml says, given once more by hand, is the same run and counts once a seed.
            at = shares.setdefault(float(row["partition_rate"]), [])
            if row["seed"] not in {other["seed"] for other in at}:
                at.append(row)
        if len(shares) > 1:
            found.append((name, dict(sorted(shares.items()))))
    return found


def _partition(rows: Sequence[Row]) -> str:
    lines = [[name, f"{share:g}", str(len(found)), _pair(found, final)] for name, shares in _swept(rows) for share, found in shares.items()]
    return _table(("run", "partition rate", "seeds", "ACC/ASR"), lines, text=1)


WIDTH, HEIGHT, ACROSS = 300, 210, 3  # pixels of a panel, panels in a line
INK, FAINT, CLEAN, POISON = "#1d252c", "#e1e5e8", "#1b4f80", "#c6431d"
STYLE = {  # of matplotlib: keys of its rc file
    "font.size": 8.5, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.labelpad": 1, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.titlepad": 4, "axes.grid": True, "axes.grid.axis": "x",
    "axes.axisbelow": True, "grid.color": FAINT, "xtick.color": INK, "ytick.color": INK, "xtick.major.size": 0, "ytick.major.size": 0,
    "lines.linewidth": 1.5, "legend.frameon": False, "legend.labelcolor": "linecolor", "legend.handlelength": 1, "legend.borderpad": 0.1,
}  # fmt: skip
Curve = tuple[str, str, list[tuple[float, float]]]  # name, colour, points with both coordinates in [0, 1]
Panel = tuple[str, list[Curve], Sequence[str], str]  # name, curves, what stands below the axis at even distances, what at its upper end


def figures(rows: Sequence[Row]) -> dict[str, str]:
    """Return the figures that there are data for, by name, as SVG; the same rows give the same bytes."""
    separated, swept = _separated(rows), _swept(rows)
    edges = [i / BINS for i in range(BINS + 1)]

    def steps(shares: Sequence[float], top: float) -> list[tuple[float, float]]:
        return [point for i, share in enumerate(shares) for point in ((edges[i], share / top), (edges[i + 1], share / top))]

    histograms: list[Panel] = []
    for name, found in separated:
        shares = {kind: _shares(found, "final", kind) for kind in ("clean", "poison")}
        top = max(max(each) for each in shares.values())
        curves = [(kind, colour, steps(shares[kind], top)) for kind, colour in (("clean", CLEAN), ("poison", POISON))]
        histograms.append((name, curves, ("0", "0.5", "1"), percent(top, 0)))
    # The square root of the rate of false alarms opens the part near zero, where a defence has to work.
    rocs: list[Panel] = [
        (
            name,
            [
                (where, colour, [(math.sqrt(x), y) for x, y in zip(ROC_AT, _recall_at(found, where), strict=True)])
                for where, colour in zip(WHERE, (CLEAN, POISON), strict=True)
            ],
            ("0", "25 %", "100 %"),
            "100 %",
        )
        for name, found in separated
    ]
    lines: list[Panel] = []
    for name, shares in swept:
        pairs = {share: [_plain(found, i) for i in (0, 1)] for share, found in shares.items()}
        curves = [
            (what, colour, [(share, value) for share, both in pairs.items() if (value := both[i]) is not None])
            for i, (what, colour) in enumerate((("ACC", CLEAN), ("ASR", POISON)))
        ]
        lines.append((name, curves, ("0", "0.5", "1"), "100 %"))
    axes = {"suspicion": "suspicion", "roc": "false alarms (square root)", "partition": "partition rate"}
    panels = {"suspicion": histograms, "roc": rocs, "partition": lines}
    panels = {name: [(_shortened(panel[0], rows), *panel[1:]) for panel in each] for name, each in panels.items()}
    return {name: _svg(FIGURES[name], axes[name], each) for name, each in panels.items() if each}


def _plain(rows: Sequence[Row], which: int) -> float | None:
    values = [value for row in rows if (value := final(row)[which]) is not None]
    return statistics.mean(values) if values else None


def _svg(title: str, axis: str, panels: Sequence[Panel]) -> str:
    across, down = min(ACROSS, len(panels)), -(-len(panels) // ACROSS)
    width, height = WIDTH * across, 30 + HEIGHT * down

    def draw(figure: Any) -> None:
        figure.text(12 / width, 1 - 20 / height, title, weight="bold")
        for i, (name, curves, ticks, top) in enumerate(panels):
            left, upper = WIDTH * (i % ACROSS) + 46, 30 + HEIGHT * (i // ACROSS) + 40
            w, h = WIDTH - 68, HEIGHT - 84
            axes = figure.add_axes((left / width, 1 - (upper + h) / height, w / width, h / height))
            axes.spines["left"].set_gid(f"axis-{i}")
            axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[j / (len(ticks) - 1) for j in range(len(ticks))], xticklabels=ticks, xlabel=axis)
            axes.set(yticks=[1], yticklabels=[top])
            shown = html.unescape(name).replace("\\|", "|")  # a name is written for a table
            axes.set_title("\n".join(text[:44] for text in shown.split(" · ", 1)))
            for what, colour, points in (curve for curve in curves if curve[2]):
                axes.plot(*zip(*points, strict=True), color=colour, clip_on=False, label=what, gid=f"{what}-{i}")
            axes.legend()

    return drawn(draw, width / PIXELS, height / PIXELS, STYLE)
