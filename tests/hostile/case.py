"""A hostile data set: how it is made, which threat it stands for, and what meca owes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Case", "Expected", "Make", "keep", "quarantine", "refuse", "usage"]

Make = Callable[[Path], Path]  # fills an empty folder and returns what meca is pointed to


@dataclass(frozen=True)
class Expected:
    """The one outcome that is right."""

    kind: Literal["REFUSE", "USAGE", "QUAR", "KEPT"]
    says: str = ""  # REFUSE (exit 3), USAGE (exit 4): what stands in the message
    reasons: Mapping[str, str] = field(default_factory=dict)  # QUAR: why, by the name of the sample; all others are kept
    kept: int = 0  # QUAR, KEPT: samples that are read
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by the name of the sample, without `resized:…`
    classes: tuple[str, ...] | None = None  # exactly these, where names are what it is about
    odd: tuple[str, ...] = ()  # what `meca inspect` names as not read
    warns: str = ""  # what stands in a warning of `meca inspect`

    def __str__(self) -> str:
        """Return it in a line."""
        if self.says:
            return f"{self.kind}: “{self.says}”"
        parts = [f"{reason} ({list(self.reasons.values()).count(reason)})" for reason in dict.fromkeys(self.reasons.values())]
        parts += [f"{self.kept} kept"]
        parts += dict.fromkeys(note for notes in self.notes.values() for note in notes)
        return f"{self.kind}: {', '.join(parts)}"


def refuse(says: str) -> Expected:
    """The whole set is turned away: exit 3, nothing is written."""
    return Expected("REFUSE", says)


def usage(says: str) -> Expected:
    """meca asks, or a parameter is wrong: exit 4, nothing is written."""
    return Expected("USAGE", says)


def quarantine(kept: int, reasons: Mapping[str, str], **more: Any) -> Expected:
    """Single samples are named and set aside, the others are kept."""
    return Expected("QUAR", reasons=reasons, kept=kept, **more)


def keep(kept: int, **more: Any) -> Expected:
    """Everything is read; hostile text is neutralised where it is shown, and exact where it is stored."""
    return Expected("KEPT", kept=kept, **more)


@dataclass(frozen=True)
class Case:
    """One hostile data set, or one hostile parameter file over a good set."""

    id: str
    threat: str
    what: str
    expected: Expected
    make: Make
    settings: Mapping[str, Any] = field(default_factory=dict)  # of group ingest
    options: tuple[str, ...] = ()  # of the command line; {params} is what `make` returned, and a good set is read
