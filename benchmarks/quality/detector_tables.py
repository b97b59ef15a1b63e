"""The section of docs/results.md about published detectors, beside the default preset on the same samples."""

from collections.abc import Callable, Sequence

from benchmarks.quality.seeds import read_seeds
from meca.metrics import ROC_AT
from meca.report.numbers import UNKNOWN
from tasks.benchmark.rows import Row, cell, known, origins, table
from tasks.benchmark.tables import WEAK

FALSE_ALARMS = 0.05  # the rate at which all are compared
DETECTORS = ("spectral", "clusters", "isolation", "transforms", "scaling")
OURS = "meca, default"

Cell = Callable[[Row], tuple[float | None, ...]]


def section(rows: Sequence[Row], quality: Sequence[Row]) -> str:
    """Return the section, empty where no detector has been run.

    Args:
        rows: Of detectors.jsonl, those of which a summary may be made (`benchmarks.quality.seeds.headline`).
        quality: Of quality.jsonl; those of the default preset on the same data, attack and seed stand beside the detectors.
    """
    if not rows:
        return ""
    parts = [
        "## Published detectors on the same samples\n",
        "Detectors that need no clean data, with the numbers of their papers, one configuration for all attacks (what they are: "
        "`meca/defenses/detectors.py`). They look at the network that was trained without a defence, or train their own; `spectral` is told "
        "the poison rate. Means are over attacks that succeed in at least half of the cases without a defence.\n",
    ]
    for experiment in sorted({str(row["experiment"]) for row in rows}):
        mine = [row for row in rows if row["experiment"] == experiment]
        cells = {(row["attack"], row["seed"]) for row in mine}
        ours = [row for row in quality if row["experiment"] == experiment and row["preset"] == "default" and (row["attack"], row["seed"]) in cells]
        undefended = {attack: known([row for row in ours if row["attack"] == attack], "no_defence_asr") for attack, _ in cells}
        strong = {attack for attack, values in undefended.items() if values and sum(values) / len(values) >= WEAK}
        attacks = sorted({attack for attack, _ in cells})
        every = {OURS: ours} | {name: [row for row in mine if row["name"] == name] for name in DETECTORS}
        parts.append(f"### {cell(experiment)}\n")
        if not all(read_seeds().is_report(row) for row in mine):
            parts.append("Of seeds that have been looked at since.\n")
        for title, pick, scale in TABLES:
            heads = [f"{cell(attack)}{'' if attack in strong or attack == 'none' else ' †'}" for attack in attacks]
            lines: list[list[str]] = []
            for name, found in every.items():
                by_attack = [_mean([pick(row) for row in found if row["attack"] == attack]) for attack in attacks]
                mean = _mean([values for attack, values in zip(attacks, by_attack, strict=True) if attack in strong and values is not None])
                lines.append([cell(name), *(_written(values, scale) for values in (*by_attack, mean))])
            parts.append(f"{title}\n\n{table(('detector', *heads, 'mean'), lines, 'lr')}")
        parts.append(origins(mine))
    return "\n".join(parts)


def _roc(row: Row) -> float | None:
    if "tpr_at" in row:
        return row["tpr_at"]
    points = ((row.get("separation") or {}).get("final") or {}).get("roc")
    return None if points is None else points[ROC_AT.index(FALSE_ALARMS)]


TABLES: tuple[tuple[str, Cell, float], ...] = (
    ("Poison found / false alarms by the detector's own rule, in percent:", lambda row: (row["tpr"], row["fpr"]), 100),
    (f"Poison found where {100 * FALSE_ALARMS:.0f} % of the clean samples are flagged, in percent:", lambda row: (_roc(row),), 100),
    ("AUROC over all samples / inside the target class:", lambda row: (row["auroc"], row["auroc_target"]), 1),
)


def _mean(values: Sequence[Sequence[float | None]]) -> tuple[float | None, ...] | None:
    if not values:
        return None
    columns = [[value for value in column if value is not None] for column in zip(*values, strict=True)]
    return tuple(sum(column) / len(column) if column else None for column in columns)


def _written(values: Sequence[float | None] | None, scale: float) -> str:
    if values is None:
        return "not run"
    digits = 1 if scale == 100 else 3
    return "/".join(UNKNOWN if value is None else f"{scale * value:.{digits}f}" for value in values)
