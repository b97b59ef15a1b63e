"""The graph of the stages, read from the signatures of their `run`s; the source is parsed, so that nobody has to import torch for it.

    def run(ctx: Context, store: Path, partition: Path, out: Output, *, enhance: EnhanceParams) -> None:

A `Path` is a folder that the stage reads, an `Output` one that it writes. Behind the star stand the groups of params.yaml that it
uses, each as the dataclass that it becomes; where an input has the name already, `partition_params` is group `partition`. Groups
that a stage only records are the default of a parameter of type `Groups`. An input is the output whose folder has its name.
"""

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NewType

__all__ = ["Groups", "Interface", "Output", "Step", "graph", "interface", "place", "read_interface"]

Output = NewType("Output", Path)  # a folder that a stage writes

# The one list of places: where an output lies that is not at work/<stage>. Inputs are found by the last part.
PLACES = {
    ("ingest", "out"): "data/ingested",
    ("poison", "store"): "data/store",
    ("poison", "truth"): "data/truth",
    ("publish", "out"): "published",
    ("report", "out"): "report",
}


class Groups(tuple[str, ...]):
    """Groups of params.yaml whose numbers a stage records without reading them one by one."""

    def __new__(cls, *names: str) -> "Groups":
        """Take the names one by one."""
        return super().__new__(cls, names)


class Interface(NamedTuple):
    """What a `run` says of itself."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, str]  # keyword: the group that it is
    recorded: tuple[str, ...]  # more groups, see `Groups`

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups whose numbers decide about the result."""
        return tuple(dict.fromkeys((*self.recorded, *self.parameters.values())))


class Step(NamedTuple):
    """The folders of a stage, relative to the run's."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


class _Parameter(NamedTuple):
    name: str
    kind: str  # name of the annotation
    is_number: bool  # behind the star
    groups: tuple[str, ...] = ()  # of a `Groups`


def interface(name: str, run: Callable[..., Any]) -> Interface:
    """Return the interface of a `run` that is loaded."""
    return _sorted_out(
        name,
        [
            _Parameter(p.name, getattr(p.annotation, "__name__", ""), p.kind is p.KEYWORD_ONLY, p.default if isinstance(p.default, Groups) else ())
            for p in inspect.signature(run).parameters.values()
        ],
    )


def read_interface(file: Path) -> Interface | None:
    """Return the interface of the `run` in a source file, None where there is none."""
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        if isinstance(node, ast.FunctionDef) and node.name == "run":
            return _sorted_out(file.stem, list(_parsed(node.args)))
    return None


def _parsed(arguments: ast.arguments) -> Iterator[_Parameter]:
    for argument in arguments.args:
        yield _Parameter(argument.arg, ast.unparse(argument.annotation) if argument.annotation else "", False)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        groups = [ast.literal_eval(name) for name in default.args] if isinstance(default, ast.Call) else []
        yield _Parameter(argument.arg, ast.unparse(argument.annotation) if argument.annotation else "", True, tuple(groups))


def _sorted_out(name: str, parameters: list[_Parameter]) -> Interface:
    folders = [p for p in parameters if not p.is_number and p.name != "ctx"]
    return Interface(
        name,
        tuple(p.name for p in folders if p.kind != "Output"),
        tuple(p.name for p in folders if p.kind == "Output"),
        {p.name: p.name.removesuffix("_params") for p in parameters if p.is_number and p.kind != "Groups"},
        tuple(group for p in parameters for group in p.groups),
    )


def place(stage: str, output: str) -> str:
    """Return where an output of a stage lies, relative to the run's folder."""
    return PLACES.get((stage, output), f"work/{stage}")


@cache
def graph(folder: Path = Path(__file__).parent) -> dict[str, Step]:
    """Return what each stage reads and writes, every stage behind those whose outputs it reads.

    Raises:
        ValueError: A stage reads what no stage writes, or what only stages behind it write.
    """
    found = {file.stem: each for file in sorted(folder.glob("*.py")) if (each := read_interface(file))}
    places = {name: tuple(place(name, output) for output in each.outputs) for name, each in found.items()}
    steps: dict[str, Step] = {}
    known: dict[str, str] = {}  # name of an input: the folder
    while len(steps) < len(found):
        ready = next((name for name, each in found.items() if name not in steps and known.keys() >= {*each.inputs}), None)
        if ready is None:
            lost = {name: sorted({*each.inputs} - known.keys()) for name, each in found.items() if name not in steps}
            raise ValueError(f"Expected every input of a stage to be the output of one before it, got {lost}.")
        steps[ready] = Step(tuple(known[name] for name in found[ready].inputs), places[ready])
        known |= {Path(path).name: path for path in places[ready]}
    return steps
