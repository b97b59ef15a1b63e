"""Plots as SVG, drawn from aggregated bins and never a point per sample; the same numbers give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meca.report.images import data_uri

__all__ = ["COLOURS", "curves", "histogram", "rounds", "thin"]

# After Okabe and Ito (2008), chosen to be told apart with colour blindness; every use has a text beside it.
COLOURS = {
    "keep": "#3b76af",
    "relabel": "#e8a21c",
    "remove": "#c6431d",
    "quarantine": "#8c8c8c",
    "final": "#1b4f80",
    "asr": "#c6431d",
    "no_defence": "#8c8c8c",
    "oracle": "#2a8f6d",
}
NAMES = {"keep": "kept", "relabel": "relabelled", "remove": "removed", "quarantine": "quarantined"}
_LINES = ("#1b4f80", "#c6431d", "#2a8f6d", "#8a5a9e", "#b07d12", "#555555")
_STYLE: Any = {  # of matplotlib: keys of its rc file
    "svg.fonttype": "none",  # the reader's own sans-serif; nothing is embedded or loaded
    "svg.hashsalt": "meca",  # ids of clip paths are random otherwise
    "font.size": 10,
    "text.parse_math": False,  # a `$` in a name is a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": "#3c4650",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": "#1d252c",
    "xtick.color": "#5b6670",
    "ytick.color": "#5b6670",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def histogram(bins: np.ndarray, counts: Mapping[str, np.ndarray]) -> str:
    """Return the stacked histogram of the suspicion by action, logarithmic, as a data URI.

    Args:
        bins: Edges, [b + 1].
        counts: Action to counts [b].
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        total = np.zeros(len(bins) - 1)
        # On a logarithmic axis a stack would lie about its upper parts, so the bars stand behind one another.
        for action in ("keep", "relabel", "remove", "quarantine"):
            found = counts.get(action)
            if found is not None and found.any():
                axes.stairs(found, bins, fill=True, color=COLOURS[action], alpha=0.75, label=f"{NAMES[action]} ({int(found.sum()):,})")
                total += found
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, max(2.0, float(total.max()) * 2 if len(total) else 2.0))
        axes.set_xlim(bins[0], bins[-1])
        axes.yaxis.set_major_formatter(_plain_numbers())
        axes.set(xlabel="suspicion (high = suspicious)", ylabel="samples, logarithmic")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", ncols=2)

    return _svg(draw, (7.2, 3.1))


def rounds(names: Sequence[str], acc: Sequence[float | None], asr: Sequence[float | None], references: Mapping[str, float | None]) -> str:
    """Return ACC and ASR per checkpoint of the pipeline as a data URI.

    Args:
        names: One per checkpoint.
        acc: Fractions; None where unknown.
        asr: Likewise.
        references: ACC without a defence and of the oracle; drawn as lines.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        x = np.arange(len(names))
        label = {"no_defence": "ACC without defence", "oracle": "ACC of the oracle"}
        for key, value in references.items():
            if value is not None:
                axes.axhline(100 * value, color=COLOURS[key], linestyle=(0, (4, 3)), linewidth=1.3, label=f"{label[key]} {100 * value:.1f} %")
        series = (("ACC", acc, COLOURS["final"], "o", 8), ("ASR", asr, COLOURS["asr"], "s", -15))
        for what, values, colour, marker, shift in series:
            known = [i for i, value in enumerate(values) if value is not None]
            percents = [100 * float(values[i] or 0.0) for i in known]
            if known:
                axes.plot(x[known], percents, color=colour, marker=marker, label=what)
            for i, value in zip(known, percents, strict=True):
                up = shift if 12 < value < 92 else (8 if value <= 12 else -15)
                axes.annotate(f"{value:.1f}", (x[i], value), (0, up), textcoords="offset points", ha="center", color=colour, fontsize=9)
        axes.set_xticks(x, names)
        axes.set_xlim(-0.4, len(names) - 0.6)
        axes.set_ylim(-3, 108)
        axes.set_ylabel("percent of test images")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)

    return _svg(draw, (7.2, 3.3))


def curves(panels: Sequence[tuple[str, str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]]) -> str:
    """Return small panels side by side as a data URI.

    Args:
        panels: Title, label of the x axis, and line name to x and y values.
    """

    def draw(figure: Any) -> None:
        columns = min(3, len(panels))
        grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, x_name, lines) in zip(grid.flat, panels, strict=False):
            for colour, (name, (x, y)) in zip(_LINES * (len(lines) // len(_LINES) + 1), lines.items(), strict=False):
                axes.plot(x, y, color=colour, label=name, marker="o" if len(x) < 3 else None)
            axes.set_title(title)
            axes.set_xlabel(x_name)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if len(lines) > 1:
                axes.legend(fontsize=8.5)

    return _svg(draw, (9.6, 2.7 * -(-len(panels) // 3)))


def thin(x: Sequence[float], y: Sequence[float], most: int = 120) -> tuple[list[float], list[float]]:
    """Return at most `most` points of a curve: means over equal runs."""
    if len(x) <= most:
        return list(x), list(y)
    parts = np.array_split(np.arange(len(x)), most)
    return [float(np.asarray(x)[p].mean()) for p in parts], [float(np.asarray(y)[p].mean()) for p in parts]


def _plain_numbers() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,.0f}")


def _svg(draw: Any, size: tuple[float, float]) -> str:
    """Draw on a fresh figure and return it as a data URI. An image cannot run scripts or load anything."""
    import warnings

    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's font draws it, not matplotlib's
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans'")
    return data_uri(text.encode(), "image/svg+xml")
