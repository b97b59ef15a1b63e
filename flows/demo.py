"""The demonstration: a data set is poisoned, cleaned, tracked and promoted in a workspace of its own, by the Prefect flow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meca.errors import Inconclusive
from meca.files import read_json
from meca.report.console import evaluation_lines, verdict_lines

__all__ = ["ATTACK", "lines", "play", "settings_for"]

ATTACK: Mapping[str, Any] = {"poison.attack": "badnet", "poison.rate": 0.05}
# What two cores finish while a person waits: a minute for the generated set, half an hour for the photographs. The narrow
# network learns the usual patch of three pixels by chance, one of five always.
LIMITED: Mapping[str, Mapping[str, Any]] = {
    "shapes": {
        "train_clean.epochs": 8,
        "train_clean.min_steps": 500,
        "network.width": 16,
        "detector.width": 16,
        "poison.patch_size": 5,
        "control.patch_size": 5,
    },
    "cifar10": {"ingest.train_limit": 10_000},
}
# The positive control would take as long again for each copy: here it is one patch in one copy, and only where nothing was found.
CONTROL: Mapping[str, Any] = {"control.kinds": ["badnet"], "control.rates": [0.05]}


def settings_for(data: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the demonstration on `data`; what is given wins."""
    is_path = Path(data).exists()
    source = str(Path(data).resolve()) if is_path else data
    watched = {"ingest.watch": source} if is_path else {}
    return {
        **({"preset": given["preset"]} if "preset" in given else {}),
        "ingest.source": source,
        **watched,
        **ATTACK,
        **CONTROL,
        **LIMITED.get(data, {}),
        **given,
    }


def play(data: str, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Run the flow on `data` in the workspace `folder`, promote the model, and return all that is to be told.

    Returns:
        The keys of summary.json, and `evaluation`, `stages`, `promotion` (`refused` says why there is no version), `report`.
    """
    from flows import sanitize
    from tasks.dvc import workspace
    from tasks.mlflow import registry

    place = workspace.create(folder, settings_for(data, given))
    outcome = sanitize.run(place)
    try:
        promotion = registry.promote(place)
    except Inconclusive as refusal:
        promotion = {"refused": str(refusal)}
    return {
        **read_json(place / "published" / "summary.json"),
        "evaluation": read_json(place / "work" / "evaluate" / "evaluation.json"),
        "stages": outcome["stages"],
        "promotion": promotion,
        "report": str(place / "report" / "report.html"),
    }


def lines(outcome: Mapping[str, Any]) -> list[str]:
    """Return what a person reads at the end; the last line is the path of the page."""
    promotion = outcome["promotion"]
    told = promotion.get("refused") or f"{promotion['model']} version {promotion['version']} is {promotion['alias']}: every gate holds."
    return [
        "",
        *verdict_lines(outcome),
        _of_control(outcome.get("control")),
        "",
        *evaluation_lines(outcome["evaluation"]),
        "",
        *(f"{name:<17} {stage['seconds']:7.1f} s  {stage['outcome']}" for name, stage in outcome["stages"].items()),
        "",
        told,
        outcome["report"],
    ]


def _of_control(control: Mapping[str, Any] | None) -> str:
    """Return that the control of a demonstration is smaller than what `meca clean` does, and whether it ran."""
    small = "small in a demonstration: one patch at 5 % of all samples, in one copy"
    why = "" if control is None or control["ran"] else f"; not run, because {control['reason']}"
    return f"Control       {small}{why}"
