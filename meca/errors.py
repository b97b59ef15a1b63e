"""Everything that meca raises on purpose, and the exit code that each becomes.

* `MecaError` (2): meca failed, the state is resumable
  + `InputRefused` (3): the data cannot be read or must not be used
  + `UsageError` (4): a wrong option, path argument or parameter
  + `Inconclusive` (5): no answer can be defended, or a gate does not hold

A message is one sentence or two: what was expected, what came, where to change it.
"""

__all__ = ["Inconclusive", "InputRefused", "MecaError", "UsageError"]


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
