"""Everything that meca raises on purpose, and the exit code that each becomes.

* `MecaError` (2): meca failed, the state is resumable
  + `InputRefused` (3): the data cannot be read or must not be used
  + `UsageError` (4): a wrong option, path argument or parameter
  + `Inconclusive` (5): no answer can be defended, or a gate does not hold

A message is one sentence or two: what was expected, what came, where to change it.
"""

import difflib
import errno
from collections.abc import Collection

__all__ = ["Inconclusive", "InputRefused", "MecaError", "UsageError", "check_choice", "check_fields", "system_failure"]

# What ends a run through no fault of the data or of the code: what it is, and what helps.
_SYSTEM = {
    errno.ENOSPC: ("the disk is full", "make room (`df -h`; `df -i` for inodes)"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("files may not be so large here", "raise the limit (`ulimit -f`) or choose another disk"),
    errno.EIO: ("the disk reports an error", "look into the system's log and choose another disk"),
    errno.EROFS: ("the disk is read-only", "mount it for writing or choose another one"),
    errno.EMFILE: ("too many files are open in this process", "raise the limit (`ulimit -n`)"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.ENOMEM: ("the machine is out of memory", "close other programs"),
}


class MecaError(Exception):
    """meca could not do its work; started again, it continues."""

    exit_code = 2


class InputRefused(MecaError):  # noqa: N818 - the name says what happened to the input
    """The input as a whole is turned away before any work is done on it."""

    exit_code = 3


class UsageError(MecaError):
    """The command line, an environment variable or params.yaml is wrong."""

    exit_code = 4


class Inconclusive(MecaError):  # noqa: N818
    """The evidence allows no verdict, or a promotion gate does not hold."""

    exit_code = 5


def check_fields(group: object, *rules: tuple[str, str, bool]) -> None:
    """Refuse a group of params.yaml with fields out of range.

    Args:
        group: Its dataclass.
        rules: Name of a field, what it should be, and whether it is.

    Raises:
        ValueError: Names every field whose rule does not hold; `Params.group` says where it stands.
    """
    wrong = [f"expected {name} {words}, got {getattr(group, name)}" for name, words, holds in rules if not holds]
    if wrong:
        raise ValueError(", ".join(wrong))


def check_choice(where: str, value: str, choices: Collection[str]) -> None:
    """Refuse a name that is not in a registry.

    Raises:
        UsageError: Names the choices, and the nearest of them.
    """
    if value not in choices:
        near = difflib.get_close_matches(value, choices, 1)
        raise UsageError(
            f"params.yaml: expected {where} to be one of {', '.join(choices)}, got {value!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
        )


def system_failure(error: BaseException) -> MecaError | None:
    """Return in a sentence what a failed system call means to whoever started meca; None for any other error."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _SYSTEM:
            what, help_ = _SYSTEM[link.errno]
            place = f" at {link.filename}" if link.filename else ""
            return MecaError(f"Could not go on{place}: {what}; {help_}. The same command continues, and nothing half-written is published.")
        link = link.__cause__ or link.__context__
    return None
