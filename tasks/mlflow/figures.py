"""Figures as SVG with matplotlib: the two that MLflow shows beside a run, and what those of the benchmark are drawn with.

Text stays text, and the same numbers give the same bytes, with any version of the library that draws the same.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meca.files import atomic_write

__all__ = ["PIXELS", "counts", "curves", "drawn", "histogram"]

PIXELS = 96  # an inch, on a page
Counts = Mapping[str, NDArray[np.int64]]
STYLE: Any = {  # of matplotlib: keys of its rc file
    "svg.fonttype": "none",  # the reader's own sans-serif; nothing is embedded or loaded
    "svg.hashsalt": "meca",  # ids of clip paths are random otherwise
    "font.sans-serif": ["DejaVu Sans"],  # comes with the library, so that what is measured by it is the same everywhere
    "text.parse_math": False,  # a `$` in a name is a dollar sign
}


def curves(points: Sequence[tuple[str, int, float]], path: Path) -> None:
    """Draw every curve (name, step, value) into an SVG; curves of one quantity share a panel."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, step, value in points:
        phase, _, quantity = name.rpartition(".")
        panels.setdefault(quantity, {}).setdefault(phase, []).append((step, value))
    across, down = min(len(panels), 3), -(-len(panels) // 3)

    def draw(figure: Any) -> None:
        for place, (quantity, phases) in enumerate(sorted(panels.items()), start=1):
            axes = figure.add_subplot(down, across, place)
            for phase, line in phases.items():
                axes.plot(*zip(*line, strict=True), label=phase, marker="." if len(line) < 30 else "")
            axes.set(xlabel="step", title=quantity)
            axes.legend(fontsize="small")

    atomic_write(path, drawn(_with_margins(draw), 4.0 * across, 3.0 * down))


def histogram(verdicts: Path, path: Path, bins: int = 50) -> None:
    """Draw how suspicion is spread over the samples of each verdict: counted first, never a point per sample."""
    edges = np.linspace(0, 1, bins + 1)
    found = counts(verdicts, edges)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for name, bars in found.items():
            axes.stairs(bars, edges, label=f"{name} ({bars.sum()})", fill=True, alpha=0.5)
        axes.set(xlabel="suspicion (high = suspicious)", ylabel="samples", yscale="symlog")
        axes.legend(fontsize="small")

    atomic_write(path, drawn(_with_margins(draw), 6.0, 3.0))


def counts(verdicts: Path, edges: NDArray[np.float64]) -> Counts:
    """Return how many samples of each verdict lie between two edges; those without a suspicion lie nowhere.

    Args:
        verdicts: verdicts.parquet.
        edges: float64 [b + 1], the first not above any suspicion, the last not below.

    Returns:
        int64 [b] for each of `clean`, `review` and `poisoned` that has samples.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(verdicts, columns=["suspicion", "verdict"])
    suspicion = np.asarray(table["suspicion"].to_numpy(), dtype=float)
    verdict = np.asarray(table["verdict"].to_pylist(), dtype=object)
    known = {name: suspicion[(verdict == name) & np.isfinite(suspicion)] for name in ("clean", "review", "poisoned")}
    return {name: np.histogram(values, edges)[0] for name, values in known.items() if values.size}


def drawn(draw: Callable[[Any], object], width: float, height: float, style: Any = None) -> str:
    """Return a figure as SVG, on white.

    Args:
        draw: Puts everything on a figure of matplotlib.
        width: In inches.
        height: Likewise.
        style: Further keys of matplotlib's rc file.
    """
    import warnings

    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    buffer = io.StringIO()
    with rc_context(STYLE | (style or {})), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's font draws it, not matplotlib's
        figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans'")
    return text[text.index("<svg") :]  # what stands before it names a file on the web


def _with_margins(draw: Callable[[Any], object]) -> Callable[[Any], object]:
    def both(figure: Any) -> None:
        width, height = figure.get_size_inches()
        figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, bottom=0.5 / height, top=1 - 0.3 / height, wspace=0.3, hspace=0.5)
        draw(figure)

    return both
