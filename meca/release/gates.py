"""Which figures a model must have to be promoted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

__all__ = ["SOME_POWER", "Figures", "Gate", "Gates", "check", "compare"]


SOME_POWER = 0.1  # of the leak test: a share of less would be a matter of chance with a few thousand images


@dataclass(frozen=True)
class Figures:
    """What was measured; None where there is nothing to measure it on."""

    acc: float | None
    min_recall: float | None  # of the worst class
    leak: float | None
    n: int  # test images


@dataclass(frozen=True)
class Gates:
    """Group `promote` of params.yaml."""

    alias: str
    min_acc: float
    min_recall: float
    max_leak: float
    max_leak_of_power: float
    min_leak_power: float
    verdicts: tuple[str, ...]
    max_acc_drop: float
    max_recall_drop: float
    max_leak_rise: float


@dataclass(frozen=True)
class Gate:
    """One condition and what was found."""

    name: str
    value: float | str | None
    limit: float | str
    holds: bool
    sentence: str


def check(gates: Gates, verdict: Mapping[str, Any], figures: Figures) -> list[Gate]:
    """Return every gate with what was found.

    Args:
        gates: The limits.
        verdict: `verdict`, `leak` and `leak_power`, as a summary.json says them.
        figures: Of the same model.
    """
    return [
        _verdict(verdict, gates.verdicts),
        _at_least("min_acc", "the accuracy on the test split", figures.acc, gates.min_acc),
        _at_least("min_recall", "the recall of the worst class on the test split", figures.min_recall, gates.min_recall),
        _leak(verdict, gates.max_leak),
        _left(verdict, gates.max_leak_of_power),
        _power(verdict, gates.min_leak_power),
    ]


def _verdict(verdict: Mapping[str, Any], limit: Sequence[str]) -> Gate:
    found, allowed = str(verdict["verdict"]), ", ".join(limit)
    holds = found in limit
    return Gate("verdicts", found, allowed, holds, f"the verdict is {found}" + ("" if holds else f", which is none of: {allowed}"))


def _at_least(name: str, what: str, value: float | None, limit: float) -> Gate:
    if value is None:
        return Gate(name, None, limit, False, f"{what} is unknown, because there is no test split that covers it; it must be at least {limit:.4g}")
    holds = value >= limit
    return Gate(name, value, limit, holds, f"{what} is {value:.4f}, " + ("at least" if holds else f"{limit - value:.4f} below") + f" {limit:.4g}")


def _leak(verdict: Mapping[str, Any], limit: float) -> Gate:
    what, value = "the leak (docs/files.md) of the final model", verdict.get("leak")
    if value is None:
        holds = verdict["verdict"] != "poisoned"  # nothing is suspected, so there is nothing that could have leaked
        sentence = f"{what} is not measured, because nothing is suspected" if holds else f"{what} is unknown; it must be at most {limit:.4g}"
        return Gate("max_leak", None, limit, holds, sentence)
    holds = value <= limit
    return Gate(
        "max_leak", value, limit, holds, f"{what} is {value:.4f}, " + ("at most" if holds else f"{value - limit:.4f} above") + f" {limit:.4g}"
    )


def _left(verdict: Mapping[str, Any], limit: float) -> Gate:
    what, leak, power = "the leak of the final model, as a share of the power of the test", verdict.get("leak"), verdict.get("leak_power")
    if leak is None or power is None:  # the gates beside this one say whether that is a reason to refuse
        return Gate("max_leak_of_power", None, limit, True, f"{what} is not measured")
    value = round(leak / max(power, SOME_POWER), 6)
    holds = value <= limit
    how = "at most" if holds else f"{value - limit:.4f} above"
    return Gate("max_leak_of_power", value, limit, holds, f"{what} is {value:.4f}, {how} {limit:.4g}")


def _power(verdict: Mapping[str, Any], limit: float) -> Gate:
    what, value = (
        "the power of the leak test (share of images that the same trigger flips in a model trained on all samples)",
        verdict.get("leak_power"),
    )
    if value is None:
        holds = verdict["verdict"] != "poisoned" or limit <= 0
        sentence = f"{what} is not measured" + (", because nothing is suspected" if verdict["verdict"] != "poisoned" else "")
        return Gate("min_leak_power", None, limit, holds, sentence + ("" if holds else f"; it must be at least {limit:.4g}"))
    holds = value >= limit
    how = "at least" if holds else f"{limit - value:.4f} below"
    sentence = f"{what} is {value:.4f}, {how} {limit:.4g}" + ("" if holds else ": a backdoor could have stayed without being seen")
    return Gate("min_leak_power", value, limit, holds, sentence)


def compare(gates: Gates, challenger: Figures, champion: Figures, version: str) -> list[Gate]:
    """Return the gates between two models that were measured on the same evidence.

    Args:
        gates: The limits.
        challenger: The model that wants the alias.
        champion: The model that has it.
        version: The champion's version.
    """
    pairs = [
        ("max_acc_drop", "the accuracy", challenger.acc, champion.acc, gates.max_acc_drop, -1),
        ("max_recall_drop", "the recall of the worst class", challenger.min_recall, champion.min_recall, gates.max_recall_drop, -1),
        ("max_leak_rise", "the leak", challenger.leak, champion.leak, gates.max_leak_rise, 1),
    ]
    compared: list[Gate] = []
    for name, what, mine, theirs, limit, sign in pairs:
        if mine is None or theirs is None:
            continue  # not measured for either: gates of `check` say what that means
        worse = sign * (mine - theirs)
        holds = worse <= limit + 1e-12
        how = f"{abs(worse):.4f} {'worse' if worse > 0 else 'better'}" if worse else "the same"
        sentence = f"{what} is {mine:.4f}, that of version {version} on the same evidence {theirs:.4f}: {how}" + (
            "" if holds else f", more than {limit:.4g}"
        )
        compared.append(Gate(name, worse, limit, holds, sentence))
    return compared
