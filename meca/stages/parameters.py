"""All numbers that stages use, so that a wrong one shows before the first hour of work and not after it."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from meca.errors import UsageError
from meca.models import DetectorParams, NetworkParams
from meca.models.weights import look
from meca.params import Params
from meca.stages.graph import graph
from meca.stages.runtime import numbers

__all__ = ["validate"]

RULES = {"two_outputs": "tests", "unlearn": "misclassified"}  # what `enhance` does, and the rule that can read it


def validate(params: Params, modules: Iterable[ModuleType] | None = None) -> None:
    """Read every group of some stages once, of all if None.

    Raises:
        UsageError: A group has unknown, missing or impossible fields, two groups do not fit together, or the weights that the network starts
            from are none.
    """
    for module in modules or [importlib.import_module(f"meca.stages.{name}") for name in graph()]:
        numbers(module, params)
    network = params.group("network", NetworkParams)
    params.group("detector", DetectorParams).resolve(network)
    if network.weights:
        look(Path(network.weights))
    method, rule = params.raw("enhance")["method"], params.raw("split")["rule"]
    if RULES[method] != rule:
        raise UsageError(f"{params.origin}: expected split.rule {RULES[method]!r} with enhance.method {method!r}, got {rule!r}.")
