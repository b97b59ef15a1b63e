"""What a person reads about a run in Prefect: a sentence, the counts, a table, a name. From files, as text."""

import re
from pathlib import Path
from typing import Any

from meca.data.judged import at_size
from meca.files import read_json
from meca.params import Params
from meca.power import found_lines
from meca.text import plain as shown

__all__ = ["classes", "data_name", "key", "markdown", "plain", "promotion", "read", "run_name", "text"]

MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~&])")


def read(published: Path) -> dict[str, Any]:
    """Return published/summary.json."""
    return read_json(published / "summary.json")


def data_name(params: Params) -> str:
    """Return a short name of the data and the attack planted in it, safe as a name anywhere."""
    source = str(params.raw("ingest")["source"])
    attack = str(params.raw("poison")["attack"])
    return "-".join([plain(Path(source).name or "data", 40), *([] if attack == "none" else [plain(attack, 20)])])


def run_name(data: str, summary: dict[str, Any]) -> str:
    """Return a run's name from that of its data: with the verdict, and with the size where images were reduced for it."""
    return "-".join([data, summary["verdict"], *at_size(summary.get("judged_at")).split()])


def plain(text: str, length: int) -> str:
    """Return text with everything but letters, digits, dot, dash and underscore replaced, cut to a length."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_")[:length] or "_"


def key(name: str) -> str:
    """Return an artifact key (lower case, digits, dashes), as Prefect wants it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def text(value: Any, length: int = 80) -> str:
    """Return a value that data may have named, as one line of Markdown that is text and nothing else."""
    return MARKUP.sub(r"\\\1", shown(" ".join(str(value).split()), length))


def markdown(summary: dict[str, Any], outcomes: list[dict[str, Any]]) -> str:
    """Return the sentence of the verdict, the counts, what the control found and what each stage did."""
    counts = summary["counts"]
    lines = [
        f"**{text(summary['sentence'], 2000)}**",
        "",
        "| " + " | ".join(counts) + " |",
        "|" + " --: |" * len(counts),
        "| " + " | ".join(f"{n}" for n in counts.values()) + " |",
    ]
    if rows := found_lines(summary.get("control")):
        lines += ["", "| planted in a copy | of all samples | found | learnt | outcome |", "| :-- | --: | --: | --: | :-- |"]
        lines += ["| " + " | ".join(text(row[name]) for name in ("kind", "rate", "found", "learnt", "state")) + " |" for row in rows]
    lines += ["", *(f"* {text(warning, 300)}" for warning in summary.get("warnings", []))]
    lines += ["", "| stage | outcome | seconds |", "| :-- | :-- | --: |", *(f"| {o['stage']} | {o['outcome']} | {o['seconds']} |" for o in outcomes)]
    return "\n".join(lines)


def classes(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per class for a table."""
    return [{name: shown(value, 80) if isinstance(value, str) else value for name, value in row.items()} for row in summary["classes"]]


def promotion(outcome: dict[str, Any]) -> str:
    """Return what was promoted and by which gates."""
    lines = [f"**{text(outcome['model'])}** version {outcome['version']} is `{plain(outcome['alias'], 40)}`.", ""]
    said = [*(gate["sentence"] for gate in outcome["gates"]), *outcome["warnings"]]
    return "\n".join(lines + [f"* {text(sentence, 300)}" for sentence in said])
