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

from benchmarks.quality import campaign_tables, detector_tables, goals
from benchmarks.quality.experiments import ABLATIONS, CUTS
from benchmarks.quality.seeds import headline, read_seeds
from benchmarks.reliability import hostile
from benchmarks.rows import ROOT, read
from benchmarks.speed import performance
from meca.metrics import wilson
from meca.report.numbers import UNKNOWN, interval, percent
from tasks.benchmark import tables
from tasks.benchmark.rows import ENOUGH, Row, cell, difference, known, number, origins, spread, t_interval, table
from tasks.benchmark.tables import WEAK

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOT_RECORDED = "not recorded"
MARKS = {
    "†": "† weak: without a defence it succeeds in less than half of the cases, so it is in no mean over attacks.",
    "‡": "‡ measured with code that differs from its commit, so nobody can run it again: it is in no summary.",
}


def render(rows: Mapping[str, Sequence[Row]]) -> str:
    """Return docs/results.md."""
    reports = [row for row in rows["quality"] if read_seeds().is_report(row)]
    campaign = headline(rows["detection"]), headline(rows["quality"])
    parts = [
        "# Results\n",
        "Rendered by `python -m benchmarks.render` from the rows in `benchmarks/results/`. ACC and ASR are on the full test set; "
        "ASR counts triggered test images whose true class is not the target. *No defence*: the same recipe trained on all samples; "
        "*oracle*: trained on the truly clean ones. Values are means over seeds with min..max and standard deviation (s.d.). Intervals of 95 % are "
        "of the mean over seeds (t), since the images of one run are no independent trials; of a single run it is Wilson's. A difference below "
        f"two points is told on at least {ENOUGH} seeds or not at all.\n",
        goals.campaign(*campaign),
        goals.section(headline(rows["quality"])),
        campaign_tables.section(*campaign),
        quality(reports),
        performance.ablations(rows["quality"]),
        detector_tables.section(headline(rows["detectors"]), rows["quality"]),
        tables.render(measured, "results", rows["benchmark"], _standing(measured)) if (measured := paper_rows(rows)) else "",
        looked_at(rows["quality"]),
        _table("Speed", [row for row in rows["speed"] if not row.get("group")], _speed_columns, ("name", "hardware", "unit")),
        "How fast the work itself is, with floors and ratios: [performance.md](performance.md).\n" if rows["speed"] else "",
        _table("Reliability", rows["reliability"], _reliability_columns, ("name",)),
        _table("Services", rows["services"], _services_columns, ("name",)),
    ]
    body = "\n".join(part for part in parts if part)
    return body if any(rows.values()) else body + "\nNo row has been measured yet.\n"


def paper_rows(rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return the rows that the paper's tables are made of: whole runs of what ships, of which a summary may be made (`headline`).

    Of quality.jsonl those are the experiments without a further word, and those whose further word is the poison rate.
    """
    every = headline([*rows["quality"], *rows.get("failed", ())])
    whole = [row for row in every if re.fullmatch(r"[^,]+(, [\d.]+ % poison)?", str(row["experiment"]))]
    axes = ("dataset", "n_train", "network", "stem", "attack", "preset", "seed")

    def cell_of(row: Row) -> tuple[Any, ...]:
        rate = row.get("rate", row["poison_rate"])
        return (*(row.get(name) for name in axes), round(rate, 3) if rate else None)

    # A cell of the grid that the flow measured too must not count twice.
    measured = headline(rows["benchmark"])
    again = {cell_of(row) for row in measured if not row.get("settings") and row.get("partition_rate_given") is None}
    return [*(row for row in whole if cell_of(row) not in again), *measured]


def _standing(rows: Sequence[Row]) -> str:
    """Return what to know of rows that a summary is made of: how many are no reports, and whose references may have had fewer passes."""
    seeds, n, told = read_seeds(), len(rows), list[str]()
    if earlier := sum(not seeds.is_report(row) for row in rows):
        told.append(f"Of {n} rows {earlier} are of seeds that have been looked at since: they stand here until something newer is measured.")
    return " ".join(text for text in (*told, tables.unequal(rows)) if text)


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
        "inside flagged classes",
        "verdict",
    )
    lines: list[list[str]] = []
    shown = headline([row for row in rows if row["preset"] == "default" and "," not in row["experiment"]])  # no seeds of tuning, no ablations
    for (_, dataset, n_train, *_rest), group in _grouped(shown, _setting):
        for (attack, *_), found in _grouped(group, _arm):
            acc, asr = percent(_mean(found, "acc")), percent(_average(_asrs(found)))
            lines.append([
                f"{cell(dataset)} ({n_train:,})",
                _attack(attack, found),
                f"{len(found)}{'' if all(read_seeds().is_report(row) for row in found) else ', looked at'}",
                f"{acc} ({percent(_mean(found, 'no_defence_acc'))}, {percent(_mean(found, 'oracle_acc'))})",
                f"{asr} ({percent(_mean(found, 'no_defence_asr'))}, {percent(_mean(found, 'oracle_asr'))})",
                percent(_mean(found, "tpr")),
                percent(_mean(found, "fpr"), 2),
                _recorded(found, "fpr_flagged", lambda values: percent(_average(values))),
                _verdicts(found),
            ])  # fmt: skip
    if not lines:
        return "No row has been measured yet.\n"
    text, told = table(heads, lines, "llrrrrrrl"), _standing(shown)
    return (
        text
        + _note(text)
        + (f"\n{told}\n" if told else "")
        + "\nEvery figure with its command, hardware and seeds: [docs/results.md](docs/results.md).\n"
    )


def _note(text: str) -> str:
    told = [words for sign, words in MARKS.items() if sign in text]
    return "".join(f"\n{words}\n" for words in told)


def quality(rows: Sequence[Row], level: str = "##") -> str:
    """Return the tables of defended runs, one per experiment and setting.

    Args:
        rows: Of quality.jsonl.
        level: Of the headings.
    """
    parts: list[str] = []
    # Runs with less work stand in performance.md, ablations in a section of their own.
    rows = [row for row in rows if not any(row["experiment"].endswith(f", {name}") for name in (*CUTS, *ABLATIONS))]
    experiments = _grouped(rows, lambda row: (str(row["experiment"]),))
    for (experiment,), members in experiments:
        parts.append(f"{level} {cell(experiment)}\n")
        for (_, dataset, n_train, network, stem, n_test), group in _grouped(members, _setting):
            tested = f", {n_test:,} test images" if n_test else ""
            parts.append(f"**{cell(dataset)}**, {n_train:,} training images{tested}, network {cell(network)}, stem {cell(stem)}\n")
            parts.append(_quality_table(group))
            parts.append(_near(group))
            parts.append(origins(group))
    return "\n".join(part for part in parts if part)


def looked_at(rows: Sequence[Row]) -> str:
    """Return the tables of the runs that are no reports, empty where there are none."""
    found = quality([row for row in rows if not read_seeds().is_report(row)], "###")
    return found and (
        "## Seeds that were looked at\n\nNumbers were set, or rules were changed, after these runs or others with their seeds had been seen "
        "(`benchmarks/quality/seeds.toml`). They show what was tried and where it failed, not what to expect of data that no rule was set on.\n\n"
        + found
    )


def _quality_table(group: Sequence[Row]) -> str:
    heads = ["attack", "rate", "preset", "seeds", "ACC", "no defence", "oracle", "ACC against the oracle", "references"]
    heads += ["ASR", "k of n", "interval", "no defence", "oracle", "TPR", "FPR", "FPR inside flagged classes", "AUROC", "verdict"]
    lines: list[list[str]] = []
    arms = _grouped(group, lambda row: (*_arm(row), row.get("equal_passes")))
    for (attack, rate, preset, equal), found in arms:
        k, n, each = _total(found, "asr_k"), _total(found, "asr_n"), _asrs(found)
        pairs = [(row["acc"], row["oracle_acc"]) for row in found if row["acc"] is not None and row.get("oracle_acc") is not None]
        lines.append([
            *(_attack(attack, found), percent(rate) if rate else UNKNOWN, cell(preset), str(len(found))),
            *(spread(known(found, key)) for key in ("acc", "no_defence_acc", "oracle_acc")),
            difference([ours for ours, _ in pairs], [oracle for _, oracle in pairs]),
            "equal passes" if equal else NOT_RECORDED if "equal_passes" not in found[0] else UNKNOWN,
            *(spread(each), f"{k:,} of {n:,}" if n else UNKNOWN, _asr_interval(k, n, each)),
            *(spread(known(found, key)) for key in ("no_defence_asr", "oracle_asr", "tpr")),
            spread(known(found, "fpr"), 2),
            *(_recorded(found, "fpr_flagged", spread), _plain_mean(found, "auroc"), _verdicts(found)),
        ])  # fmt: skip
    text = table(heads, [*lines, *_means(arms)], "lrlrrrrrlrrrrrrrrrl")
    return text + _note(text)


def _asr_interval(k: int, n: int, each: Sequence[float]) -> str:
    """Return the interval of the mean over seeds, of a single run that of its images."""
    if not n:
        return UNKNOWN
    bounds = wilson(k, n) if len(each) == 1 else t_interval(each)
    return interval([min(1.0, max(0.0, bound)) for bound in bounds])


def _means(arms: Sequence[tuple[tuple[Any, ...], list[Row]]]) -> list[list[str]]:
    """Return a line per preset and kind of references: the mean over the attacks that work."""
    lines: list[list[str]] = []
    for preset, equal in sorted({(str(key[2]), bool(key[3])) for key, _ in arms}):
        strong = [found for key, found in arms if (key[2], bool(key[3])) == (preset, equal) and key[0] != "none" and not _is_weak(found)]
        if len(strong) < 2:
            continue

        def over(what: Callable[[list[Row]], float | None], members: list[list[Row]] = strong) -> float | None:
            return _average([value for found in members if (value := what(found)) is not None])

        keys = ("acc", "tpr", "fpr", "fpr_flagged", "auroc", "no_defence_acc", "oracle_acc", "no_defence_asr", "oracle_asr")
        of = {key: over(lambda found, key=key: _mean(found, key)) for key in keys}
        auroc = UNKNOWN if of["auroc"] is None else f"{of['auroc']:.3f}"
        lines.append([
            *(f"*mean of {len(strong)} attacks*", "", cell(preset), ""),
            *(percent(of[key]) for key in ("acc", "no_defence_acc", "oracle_acc")),
            *("", "equal passes" if equal else NOT_RECORDED, percent(over(lambda found: _average(_asrs(found)))), "", ""),
            *(percent(of[key]) for key in ("no_defence_asr", "oracle_asr", "tpr")),
            *(percent(of["fpr"], 2), percent(of["fpr_flagged"]) if any("fpr_flagged" in found[0] for found in strong) else NOT_RECORDED, auroc, ""),
        ])  # fmt: skip
    return lines


def _near(group: Sequence[Row]) -> str:
    """Return how near each decision was, empty where no row says it."""
    if not any(row.get("evidence") for row in group):
        return ""

    def told(entries: Sequence[Mapping[str, Any]]) -> str:
        texts = [f"{entry['label']}: " + ", ".join(f"{key} {value:g}" for key, value in entry.items() if key != "label") for entry in entries]
        return cell("; ".join(texts) or None)

    lines: list[list[str]] = []
    for row in group:
        found, seed = row.get("evidence"), str(row["seed"])
        if not found:
            lines.append([cell(row["attack"]), cell(row["preset"]), seed, NOT_RECORDED, UNKNOWN, UNKNOWN])
            continue
        flagged = [f"{label}: {count:,}" for label, count in found["flagged"].items()]
        mine = [entry for entry in found["strongest"] if str(entry["label"]) in found["flagged"]]
        others = [entry for entry in found["strongest"] if entry not in mine]
        more = found["left_out"]["flagged"]
        lines.append([
            *(cell(row["attack"]), cell(row["preset"]), seed, cell(", ".join(flagged) + f" and {more} more" * bool(more) or None)),
            *(told(mine[:2]), told(others[:1])),
        ])  # fmt: skip
    heads = ("attack", "preset", "seed", "flagged (class: samples)", "evidence of flagged classes", "of the next class")
    return f"How near the decisions were:\n\n{table(heads, lines, 'llrlll')}"


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
    return _average(known(rows, key))


def _plain_mean(rows: Sequence[Row], key: str) -> str:
    mean = _mean(rows, key)
    return UNKNOWN if mean is None else f"{mean:.3f}"


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _recorded(rows: Sequence[Row], key: str, told: Callable[[Sequence[float]], str]) -> str:
    """Return what `told` says of the values of a key that older rows do not have."""
    return told(known(rows, key)) if any(key in row for row in rows) else NOT_RECORDED


def _total(rows: Sequence[Row], key: str) -> int:
    return int(sum(known([row for row in rows if row.get("asr_n")], key)))


def _asrs(rows: Sequence[Row]) -> list[float]:
    return [row["asr_k"] / row["asr_n"] for row in rows if row.get("asr_n")]


def _is_weak(rows: Sequence[Row]) -> bool:
    undefended = _mean(rows, "no_defence_asr")
    return undefended is None or undefended < WEAK


def _attack(name: str, rows: Sequence[Row]) -> str:
    return cell(name) + " †" * (name != "none" and _is_weak(rows)) + " ‡" * any(row.get("dirty") for row in rows)


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
