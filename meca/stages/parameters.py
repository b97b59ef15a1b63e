"""All numbers that stages use, so that a wrong one shows before the first hour of work and not after it."""

import importlib
from collections.abc import Iterable
from types import ModuleType

from meca.errors import UsageError
from meca.params import Params
from meca.stages.graph import graph
from meca.stages.runtime import numbers

__all__ = ["validate"]

RULES = {"two_outputs": "tests", "unlearn": "misclassified"}  # what `enhance` does, and the rule that can read it


def validate(params: Params, modules: Iterable[ModuleType] | None = None) -> None:
    """Read every group of some stages once, of all if None.

    Raises:
        UsageError: A group has unknown, missing or impossible fields, or two groups do not fit together.
    """
    for module in modules or [importlib.import_module(f"meca.stages.{name}") for name in graph()]:
        numbers(module, params)
    method, rule = params.raw("enhance")["method"], params.raw("split")["rule"]
    if RULES[method] != rule:
        raise UsageError(f"{params.origin}: expected split.rule {RULES[method]!r} with enhance.method {method!r}, got {rule!r}.")
