"""What the terminal shows of a run: the verdict, the figures, any nested value. Lines of text, nothing of them markup."""

from collections.abc import Mapping
from typing import Any

from meca.report.numbers import interval, percent
from meca.report.text import plain

__all__ = ["evaluation_lines", "nested_lines", "verdict_lines"]


def nested_lines(value: Any, name: str = "", depth: int = 0) -> list[str]:
    """Return a nested value as indented lines."""
    pad = "  " * depth
    if isinstance(value, dict):
        head = [f"{pad}{plain(name)}"] if name else []
        return head + [line for key, item in value.items() for line in nested_lines(item, str(key), depth + bool(name))]
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return [f"{pad}{plain(name)}", *(line for item in value for line in nested_lines(item, "-", depth + 1))]
    shown = ", ".join(plain(item) for item in value) if isinstance(value, list | tuple) else plain(value, 2000)
    return [f"{pad}{plain(name)}: {shown}" if name != "-" else f"{pad}- {shown}"]


def verdict_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the verdict and what became of the samples."""
    counts = summary["counts"]
    lines = [summary["sentence"]]
    if summary.get("reason") and summary["reason"] not in summary["sentence"]:
        lines.append(summary["reason"])
    lines.append(
        "Samples       " + ", ".join(f"{counts[key]} {key}" for key in ("kept", "relabelled", "removed", "quarantined")) + f" of {counts['input']}"
    )
    if summary.get("target_class"):
        lines.append(f"Target class  {plain(summary['target_class']['name'])} (label {summary['target_class']['label']})")
    return lines + [f"Warning       {warning}" for warning in summary.get("warnings") or ()]


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the figures of every model that was evaluated, and what cannot be known."""
    lines = [f"{'model':<12} {'ACC':>8} {'ASR':>8}  {'successful attacks':<18} {'95 % interval':<16}"]
    for key in ("no_defence", "oracle", "enhanced", "clean", "final"):
        figures = evaluation.get(key)
        if figures:
            attacks = f"{figures['asr_k']} of {figures['asr_n']}" if figures.get("asr_n") else "unknown"
            lines.append(
                f"{key.replace('_', ' '):<12} {percent(figures.get('acc')):>8} {percent(figures.get('asr')):>8}  "
                f"{attacks:<18} {interval(figures.get('asr_interval')):<16}".rstrip()
            )
    if len(lines) == 1:
        lines = ["There is no test split: no accuracy can be given."]
    detection = evaluation.get("detection") or {}
    lines += [f"{key.upper():<12} {percent(detection[key])}" for key in ("tpr", "fpr") if detection.get(key) is not None]
    if detection.get("auroc") is not None:
        lines.append(f"{'AUROC':<12} {detection['auroc']:.3f}")
    unknown = evaluation.get("unknown") or []
    return lines + [f"Cannot be known without the truth: {plain(item)}" for item in unknown]
