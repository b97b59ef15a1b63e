"""What a test could have found here: the outcome of the positive control (stage `control`), and what it makes of a verdict.

A set in which nothing was found is only as clean as the test is strong. The control plants triggers into copies of the set and tests them
in the same way; each is a line of its record, by kind and rate.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["FINDS", "STATES", "found_lines", "is_weak", "line", "not_run", "sentence"]

FINDS = ("no_evidence", "weak")  # the verdicts of a set in which nothing was found: the control says which of the two
STATES = ("found", "missed", "not learnt", "not measured", "not planted")
KINDS = {"badnet": "patch", "blend": "pattern", "sig": "wave"}  # what a person sees of a planted trigger


def not_run(reason: str) -> dict[str, Any]:
    """Return the record of a control that was not run.

    Args:
        reason: Why, as part of a sentence.
    """
    return {"ran": False, "reason": reason, "lines": []}


def line(kind: str, rate: float, samples: int, tries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what became of one kind at one rate.

    Args:
        kind: The attack.
        rate: What was asked for, of all samples.
        samples: In a copy.
        tries: For each try `planted` (samples, 0 where none could be), `found` and `learnt` (None where nobody measured it).

    Returns:
        `kind`, `rate`, `planted` (samples in each try), `achieved` (their share, the smallest), `tries` that were planted, how many of these
        were `found`, `learnt` and `missed` (learnt, not found), and the `state`.
    """
    planted = [each for each in tries if each["planted"]]
    # What is found where nothing was found before has been learnt, also where nobody measured it.
    learnt = [each for each in planted if each["learnt"] or (each["learnt"] is None and each["found"])]
    missed = sum(not each["found"] for each in learnt)
    counts = {"tries": len(planted), "found": sum(bool(each["found"]) for each in planted), "learnt": len(learnt), "missed": missed}
    if not planted:
        state = "not planted"
    elif missed:
        state = "missed"
    elif counts["found"]:
        state = "found"
    else:
        state = "not measured" if any(each["learnt"] is None for each in planted) else "not learnt"
    least = min((each["planted"] for each in planted), default=0)
    return {"kind": kind, "rate": rate, "planted": [each["planted"] for each in tries], "achieved": least / max(samples, 1), **counts, "state": state}


def is_weak(control: Mapping[str, Any] | None) -> bool:
    """Tell whether a control says that the test is weak here: something that works was not found, or nothing that works was."""
    if control is None or not control["ran"]:
        return False
    lines: Sequence[Mapping[str, Any]] = control["lines"]
    return any(each["missed"] > 0 for each in lines) or not any(each["learnt"] > each["missed"] for each in lines)


def sentence(control: Mapping[str, Any] | None) -> str:
    """Return what follows "no evidence of a backdoor was found": how much that says here, to the full stop."""
    if control is None or not control["ran"]:
        reason = f" ({control['reason']})" if control is not None and control["reason"] else ""
        return f"; this does not prove that there is none, and the power of the test was not measured{reason}."
    lines: Sequence[Mapping[str, Any]] = control["lines"]
    if not is_weak(control):
        return f"; this does not prove that there is none. Power of the test here: {_told(lines)}."
    if not any(each["tries"] for each in lines):
        return ", but the test is weak here: the set is too small, or its images are too uniform, to plant a trigger that could be found."
    return f", but the test is weak here: {_told(lines)}."


def found_lines(control: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the lines of a table for people: what was planted, at which share, how many samples, how many tries of it were found."""
    return [
        {
            "kind": f"{KINDS.get(each['kind'], each['kind'])} ({each['kind']})",
            "rate": _percent(each),
            "planted": ", ".join(map(str, each["planted"])),
            "found": f"{each['found']} of {each['tries']}",
            "learnt": f"{each['learnt']} of {each['tries']}",
            "state": each["state"],
        }
        for each in (control or {}).get("lines", ())
    ]


def _told(lines: Iterable[Mapping[str, Any]]) -> str:
    kinds: dict[str, list[str]] = {}
    first = True
    for each in sorted(lines, key=lambda each: -each["rate"]):
        kinds.setdefault(each["kind"], []).append(f"at {_percent(each)}{' of all samples' if first else ''} {_outcome(each, first)}")
        first = False
    return "; ".join(f"of a planted {KINDS.get(kind, kind)} {', '.join(told)}" for kind, told in kinds.items())


def _percent(each: Mapping[str, Any]) -> str:
    """Return the share that was planted: what was asked for, unless a cap bit."""
    asked, achieved = each["rate"], each["achieved"]
    return f"{100 * (asked if not each['tries'] or achieved > 0.95 * asked else achieved):.2g} %"


def _outcome(each: Mapping[str, Any], first: bool) -> str:
    tries, learnt = each["tries"], each["learnt"]
    it, works = ("it", "works") if tries == 1 else ("them", "work")
    if not tries:
        return "nothing could be planted"
    said = f"{each['found']} of {tries}" + (f" {'was' if tries == 1 else 'were'} found" if first else "")
    if each["missed"]:
        return f"{said} although {'it' if tries == 1 else 'they' if learnt == tries else f'{learnt} of them'} {works}"
    if each["state"] == "not measured":
        return f"{said}, and whether {'it' if tries == 1 else 'they'} {works} was not measured"
    if learnt == tries:
        return said
    return f"{said}, {f'since the network did not learn {it}' if learnt == 0 else f'since the network learnt only {learnt} of {it}'}"
