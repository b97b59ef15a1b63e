"""docs/results.md, docs/performance.md, docs/hostile.md and the table in README.md from the rows in benchmarks/results/; no figure is typed by hand.

    python -m benchmarks.render            write them
    python -m benchmarks.render --check    exit 1 if one of them is not what the rows say

The same rows give the same bytes. The schema of the rows is in benchmarks/README.md.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality import detector_tables, goals
from benchmarks.quality.experiments import ABLATIONS, CUTS
from benchmarks.reliability import hostile
from benchmarks.rows import ROOT, read
from benchmarks.speed import performance
from meca.metrics import wilson
from meca.report.numbers import UNKNOWN, interval, percent
from tasks.benchmark import tables
from tasks.benchmark.rows import Row, cell, known, number, origins, table
from tasks.benchmark.tables import WEAK

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def render(rows: Mapping[str, Sequence[Row]]) -> str:
    """Return docs/results.md."""
    parts = [
        "# Results\n",
        "Rendered by `python -m benchmarks.render` from the rows in `benchmarks/results/`. ACC and ASR are on the full test set; "
        "ASR counts triggered test images whose true class is not the target. *No defence*: the same recipe trained on all samples; "
        "*oracle*: trained on the truly clean ones. Values are means over seeds with min..max; intervals of ASR are 95 % Wilson "
        "intervals of all seeds together.\n",
        goals.section(rows["quality"]),
        quality(rows["quality"]),
        performance.ablations(rows["quality"]),
        detector_tables.section(rows["detectors"], rows["quality"]),
        tables.render(measured, "results", rows["benchmark"]) if (measured := paper_rows(rows)) else "",
        _table("Speed", [row for row in rows["speed"] if not row.get("group")], _speed_columns, ("name", "hardware", "unit")),
        "How fast the work itself is, with floors and ratios: [performance.md](performance.md).\n" if rows["speed"] else "",
        _table("Reliability", rows["reliability"], _reliability_columns, ("name",)),
        _table("Services", rows["services"], _services_columns, ("name",)),
    ]
    body = "\n".join(part for part in parts if part)
    return body if any(rows.values()) else body + "\nNo row has been measured yet.\n"


def paper_rows(rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return the rows that the paper's tables are made of: whole runs of what ships, on seeds that are reported.

    Of quality.jsonl those are the experiments without a further word, and those whose further word is the poison rate.
    """
    every = [*rows["quality"], *rows.get("failed", ())]
    whole = [row for row in every if re.fullmatch(r"[^,]+(, [\d.]+ % poison)?", str(row["experiment"]))]
    axes = ("dataset", "n_train", "network", "stem", "attack", "preset", "seed")

    def cell_of(row: Row) -> tuple[Any, ...]:
        rate = row.get("rate", row["poison_rate"])
        return (*(row.get(name) for name in axes), round(rate, 3) if rate else None)

    # A cell of the grid that the flow measured too must not count twice.
    again = {cell_of(row) for row in rows["benchmark"] if not row.get("settings") and row.get("partition_rate_given") is None}
    return [*(row for row in whole if cell_of(row) not in again), *rows["benchmark"]]


def short(rows: Sequence[Row]) -> str:
    """Return the table for README.md: the default preset, a line per data set and attack."""
    heads = (
        "data (training images)",
        "attack",
        "seeds",
        "ACC (no defence, oracle)",
        "ASR (no defence, oracle)",
        "poison found",
        "false alarms",
        "verdict",
    )
    lines: list[list[str]] = []
    shown = [row for row in rows if row["preset"] == "default" and "," not in row["experiment"]]  # no seeds of tuning, no ablations
    for (_, dataset, n_train, *_rest), group in _grouped(shown, _setting):
        for (attack, *_), found in _grouped(group, _arm):
            acc, asr = percent(_mean(found, "acc")), percent(_asr(found))
            lines.append([
                f"{cell(dataset)} ({n_train:,})",
                _attack(attack, found),
                str(len(found)),
                f"{acc} ({percent(_mean(found, 'no_defence_acc'))}, {percent(_mean(found, 'oracle_acc'))})",
                f"{asr} ({percent(_mean(found, 'no_defence_asr'))}, {percent(_mean(found, 'oracle_asr'))})",
                percent(_mean(found, "tpr")),
                percent(_mean(found, "fpr"), 2),
                _verdicts(found),
            ])  # fmt: skip
    if not lines:
        return "No row has been measured yet.\n"
    text = table(heads, lines, "llrrrrrl")
    return text + _note(text) + "\nEvery figure with its command, hardware and seeds: [docs/results.md](docs/results.md).\n"


def _note(text: str) -> str:
    return "\n† weak: without a defence it succeeds in less than half of the cases, so it is in no mean over attacks.\n" if "†" in text else ""


def quality(rows: Sequence[Row]) -> str:
    """Return the tables of defended runs, one per experiment and setting."""
    parts: list[str] = []
    # Runs with less work stand in performance.md, ablations in a section of their own.
    rows = [row for row in rows if not any(row["experiment"].endswith(f", {name}") for name in (*CUTS, *ABLATIONS))]
    experiments = _grouped(rows, lambda row: (str(row["experiment"]),))
    for (experiment,), members in experiments:
        parts.append(f"## {cell(experiment)}\n")
        for (_, dataset, n_train, network, stem, n_test), group in _grouped(members, _setting):
            tested = f", {n_test:,} test images" if n_test else ""
            parts.append(f"**{cell(dataset)}**, {n_train:,} training images{tested}, network {cell(network)}, stem {cell(stem)}\n")
            parts.append(_quality_table(group))
            parts.append(origins(group))
    return "\n".join(parts)


def _quality_table(group: Sequence[Row]) -> str:
    heads = ["attack", "rate", "preset", "seeds", "ACC", "no defence", "oracle", "ASR", "k of n", "interval", "no defence", "oracle"]
    heads += ["TPR", "FPR", "AUROC", "verdict"]
    lines: list[list[str]] = []
    arms = _grouped(group, _arm)
    for (attack, rate, preset), found in arms:
        k, n = _total(found, "asr_k"), _total(found, "asr_n")
        asr = [percent(_asr(found)), *((f"{k:,} of {n:,}", interval(wilson(k, n))) if n else (UNKNOWN, UNKNOWN))]
        lines.append([
            *(_attack(attack, found), percent(rate) if rate else UNKNOWN, cell(preset), str(len(found))),
            *(_spread(found, key) for key in ("acc", "no_defence_acc", "oracle_acc")),
            *asr,
            *(_spread(found, key) for key in ("no_defence_asr", "oracle_asr", "tpr")),
            *(_spread(found, "fpr", 2), _plain_mean(found, "auroc"), _verdicts(found)),
        ])  # fmt: skip
    text = table(heads, [*lines, *_means(arms)], "lrlrrrrrrrrrrrrl")
    return text + _note(text)


def _means(arms: Sequence[tuple[tuple[Any, ...], list[Row]]]) -> list[list[str]]:
    """Return a line per preset: the mean over the attacks that work."""
    lines: list[list[str]] = []
    for preset in sorted({str(key[2]) for key, _ in arms}):
        strong = [found for (attack, _, name), found in arms if name == preset and attack != "none" and not _is_weak(found)]
        if len(strong) < 2:
            continue

        def over(what: Callable[[list[Row]], float | None], members: list[list[Row]] = strong) -> float | None:
            values = [value for found in members if (value := what(found)) is not None]
            return sum(values) / len(values) if values else None

        figures = {key: over(lambda found, key=key: _mean(found, key)) for key in ("acc", "tpr", "fpr", "auroc")}
        references = {key: over(lambda found, key=key: _mean(found, key)) for key in ("no_defence_acc", "oracle_acc", "no_defence_asr", "oracle_asr")}
        auroc = UNKNOWN if figures["auroc"] is None else f"{figures['auroc']:.3f}"
        lines.append([
            *(f"*mean of {len(strong)} attacks*", "", cell(preset), ""),
            *(percent(value) for value in (figures["acc"], references["no_defence_acc"], references["oracle_acc"], over(_asr))),
            *("", ""),
            *(percent(value) for value in (references["no_defence_asr"], references["oracle_asr"], figures["tpr"])),
            *(percent(figures["fpr"], 2), auroc, ""),
        ])  # fmt: skip
    return lines


def _setting(row: Row) -> tuple[Any, ...]:
    return (str(row["experiment"]), str(row["dataset"]), int(row["n_train"]), row.get("network"), row.get("stem"), row.get("n_test"))


def _arm(row: Row) -> tuple[Any, ...]:
    rate = row.get("poison_rate")
    # The reached rate varies with the seed in the last digits; the arm is the rate as planned.
    return (str(row["attack"]), None if rate is None else round(float(rate), 3), str(row["preset"]))


def _grouped(rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return sorted(found.items(), key=lambda item: tuple((part is not None, part if part is not None else 0) for part in item[0]))


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = known(rows, key)
    return sum(values) / len(values) if values else None


def _plain_mean(rows: Sequence[Row], key: str) -> str:
    mean = _mean(rows, key)
    return UNKNOWN if mean is None else f"{mean:.3f}"


def _spread(rows: Sequence[Row], key: str, digits: int = 1) -> str:
    values = known(rows, key)
    text = percent(_mean(rows, key), digits)
    return text if len(values) < 2 else f"{text} ({100 * min(values):.{digits}f}..{100 * max(values):.{digits}f})"


def _total(rows: Sequence[Row], key: str) -> int:
    return int(sum(known([row for row in rows if row.get("asr_n")], key)))


def _asr(rows: Sequence[Row]) -> float | None:
    n = _total(rows, "asr_n")
    return _total(rows, "asr_k") / n if n else None


def _is_weak(rows: Sequence[Row]) -> bool:
    undefended = _mean(rows, "no_defence_asr")
    return undefended is None or undefended < WEAK


def _attack(name: str, rows: Sequence[Row]) -> str:
    return cell(name) + (" †" if name != "none" and _is_weak(rows) else "")


def _verdicts(rows: Sequence[Row]) -> str:
    names = [str(row["verdict"]).replace("_", " ") for row in rows]
    return ", ".join(name if len(rows) == names.count(name) else f"{names.count(name)} {name}" for name in sorted(set(names)))


def _table(title: str, rows: Sequence[Row], columns: Callable[[Row], dict[str, str]], order: Sequence[str]) -> str:
    if not rows:
        return ""
    sorted_rows = sorted(rows, key=lambda row: tuple(str(row.get(key)) for key in order))
    cells = [columns(row) for row in sorted_rows]
    heads = list(cells[0])
    lines = [[line[head] for head in heads] for line in cells]
    align = "".join("l" if head in ("name", "notes") else "r" for head in heads)
    return f"## {title}\n\n{table(heads, lines, align)}\n{origins(rows)}"


def _speed_columns(row: Row) -> dict[str, str]:
    low, high = row.get("ratio_low"), row.get("ratio_high")
    ratio = (
        UNKNOWN if row.get("ratio") is None else f"{row['ratio']:.2f}" + (f" ({low:.2f}..{high:.2f})" if low is not None and high is not None else "")
    )
    return {
        "name": cell(row["name"]),
        "value": f"{number(row['value'])} {cell(row['unit'])}",
        "floor": number(row.get("floor")),
        "ratio": ratio,
        "to": cell(row.get("ratio_to")),
        "n": number(row.get("n")),
        "hardware": cell(row.get("hardware")),
    }


def _reliability_columns(row: Row) -> dict[str, str]:
    tried = [number(row[key]) for key in ("tried", "as_specified")]
    return {
        "name": cell(row["name"]),
        "tried": tried[0],
        "as specified": tried[1],
        "lost": number(row.get("lost")),
        "notes": cell(row.get("notes")),
    }


def _services_columns(row: Row) -> dict[str, str]:
    value = UNKNOWN if row.get("value") is None else f"{number(row['value'])} {cell(row.get('unit') or '')}".strip()
    return {
        "name": cell(row["name"]),
        "tried": number(row["tried"]),
        "passed": number(row["passed"]),
        "value": value,
        "notes": cell(row.get("notes")),
    }


def between_markers(text: str, content: str) -> str:
    """Return `text` with what stands between the two markers replaced.

    Raises:
        ValueError: The markers are not there once each, in this order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md: expected {BEGIN} and {END} once each, in this order.")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{content}{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write or check the documents; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document is stale")
    arguments = parser.parse_args(argv)
    rows = read(root / "benchmarks" / "results")
    docs, speed = root / "docs", [row for row in rows["speed"] if row.get("group")]
    wanted = {
        docs / "results.md": render(rows),
        docs / "performance.md": performance.page(speed, read(root / "benchmarks" / "results", every=True)["quality"]),
        docs / "performance.svg": performance.plot(speed),
        docs / "hostile.md": hostile.page(hostile.outcomes(root / "benchmarks" / "results"), rows["reliability"]),
        **{docs / f"results-{name}.svg": figure for name, figure in tables.figures(paper_rows(rows)).items()},
    }
    readme = root / "README.md"
    if readme.is_file() and BEGIN in readme.read_text(encoding="utf-8"):
        wanted[readme] = between_markers(readme.read_text(encoding="utf-8"), short(rows["quality"]))
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    stale += [path for name in tables.FIGURES if (path := docs / f"results-{name}.svg") not in wanted and path.is_file()]
    for path in stale:
        if arguments.check:
            print(f"{path.relative_to(root)} is not what the rows say; run `python -m benchmarks.render`.", file=sys.stderr)
        elif path not in wanted:
            path.unlink()
            print(f"{path.relative_to(root)} removed: its rows are gone")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
            print(f"{path.relative_to(root)} written")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
