"""The two plots that MLflow shows beside a run: curves over steps, the histogram of suspicion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["curves", "histogram"]


def curves(points: Sequence[tuple[str, int, float]], path: Path) -> None:
    """Draw every curve (name, step, value) into an SVG; curves of one quantity share a panel."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, step, value in points:
        phase, _, quantity = name.rpartition(".")
        panels.setdefault(quantity, {}).setdefault(phase, []).append((step, value))
    figure = _figure(width=4.0 * min(len(panels), 3), height=3.0 * -(-len(panels) // 3))
    for place, (quantity, phases) in enumerate(sorted(panels.items()), start=1):
        axes = figure.add_subplot(-(-len(panels) // 3), min(len(panels), 3), place)
        for phase, line in phases.items():
            axes.plot(*zip(*line, strict=True), label=phase, marker="." if len(line) < 30 else "")
        axes.set(xlabel="step", title=quantity)
        axes.legend(fontsize="small")
    _save(figure, path)


def histogram(verdicts: Path, path: Path, bins: int = 50) -> None:
    """Draw how suspicion is spread over the samples of each verdict: counted first, never a point per sample."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(verdicts, columns=["suspicion", "verdict"])
    suspicion = np.asarray(table["suspicion"].to_numpy(), dtype=float)
    verdict = np.asarray(table["verdict"].to_pylist(), dtype=object)
    figure = _figure(width=6.0, height=3.0)
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, bins + 1)
    for name in ("clean", "review", "poisoned"):
        values = suspicion[(verdict == name) & np.isfinite(suspicion)]
        if values.size:
            axes.stairs(np.histogram(values, edges)[0], edges, label=f"{name} ({values.size})", fill=True, alpha=0.5)
    axes.set(xlabel="suspicion (high = suspicious)", ylabel="samples", yscale="symlog")
    axes.legend(fontsize="small")
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, bottom=0.5 / height, top=1 - 0.3 / height, wspace=0.3, hspace=0.5)
    return figure


def _save(figure: Any, path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "meca"}):  # same numbers, same bytes
        figure.savefig(path, format="svg", metadata={"Date": None})
