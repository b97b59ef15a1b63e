"""params.yaml: every number that changes a result, one group per stage, no unknown keys, no defaults in code.

The groups hold the numbers of preset `default`; group `paper` holds the leaves in which preset `paper` differs, and the field
`preset` says which is in force. What all recipes share stands once, in group `recipe`. The file in the package is the one at the
root of the repository, by a link.
"""

import copy
import dataclasses
import difflib
import hashlib
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from meca.errors import UsageError
from meca.files import canonical_json

__all__ = ["PACKAGED", "PRESETS", "Params", "read_params", "with_settings"]

PACKAGED = Path(__file__).with_name("params.yaml")
PRESETS = ("default", "paper")
OVERLAY = "paper"  # the preset that is a group of its own: the leaves that differ from the default
SHARED = "recipe"  # the group that every recipe takes its missing fields from
WORD_OR_NUMBER = ("ingest.size",)  # fields that hold a text and may hold a number
MAX_BYTES = 2**20  # of a parameter file; the packaged one has 20 kB
MAX_DEPTH = 20
ONE_MEANING = {  # how a value must be written, so that YAML 1.1 and 1.2 take it for the same: not `no`, `017`, `12:30:45`
    "tag:yaml.org,2002:bool": r"(?i:true|false)",
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)",
    "tag:yaml.org,2002:float": r"[-+]?[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[-+]?\.(?i:inf|nan)",
}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Params:
    """A parsed params.yaml."""

    tree: Mapping[str, Any]
    origin: str

    @property
    def preset(self) -> str:
        """`default` or `paper`."""
        preset = self.tree.get("preset")
        if preset not in PRESETS:
            raise UsageError(f"{self.origin}: expected preset to be one of {', '.join(PRESETS)}, got {preset!r}.")
        return preset

    @property
    def seed(self) -> int:
        """The seed that every draw derives from."""
        seed = self.tree.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
            raise UsageError(f"{self.origin}: expected seed to be an integer in [0, 2^31), got {seed!r}.")
        return seed

    @cached_property
    def numbers(self) -> Mapping[str, Any]:
        """The groups as they are in force: with the leaves of [paper] where the preset says so, and what recipes share in each of them."""
        overlay = self.tree.get(OVERLAY)
        tree = {key: value for key, value in self.tree.items() if key not in (OVERLAY, SHARED)}
        if isinstance(overlay, Mapping) and self.preset == OVERLAY:
            tree = self._overlaid(tree, overlay, OVERLAY)
        shared = self.tree.get(SHARED)
        return _with_shared(tree, shared) if isinstance(shared, Mapping) else tree

    def _overlaid(self, base: Mapping[str, Any], overlay: Mapping[str, Any], where: str) -> dict[str, Any]:
        merged = dict(base)
        for key, value in overlay.items():
            if key not in base:
                near = difflib.get_close_matches(key, list(base), 1)
                raise UsageError(f"{self.origin}: [{where}] has unknown {key!r}" + (f" (did you mean {near[0]!r}?)." if near else "."))
            inner = base[key]
            is_group = isinstance(inner, Mapping) and isinstance(value, Mapping)
            merged[key] = self._overlaid(inner, value, f"{where}.{key}") if is_group else value
        return merged

    def raw(self, group: str) -> Mapping[str, Any]:
        """Return the numbers of a group that are in force."""
        block = self.numbers.get(group)
        if not isinstance(block, Mapping):
            raise UsageError(f"{self.origin}: expected a group [{group}], found {'none' if block is None else type(block).__name__}.")
        return block

    def sources(self, group: str) -> list[str]:
        """Return the keys of the file that a group in force is made of, dotted: what DVC watches."""
        by_preset = ["preset", f"{OVERLAY}.{group}"] if self._has_presets(group) else []
        return [group, *by_preset, *([SHARED] if isinstance(self.tree.get(SHARED), Mapping) and _has_recipe(self.raw(group)) else [])]

    def _has_presets(self, group: str) -> bool:
        overlay = self.tree.get(OVERLAY)
        return isinstance(overlay, Mapping) and group in overlay

    def group(self, group: str, cls: type[T]) -> T:
        """Return a group as the dataclass `cls`; unknown, missing and ill-typed fields are errors.

        Only a field with a default may be missing: it is newer than the files of people, and the default is what these mean.

        Raises:
            UsageError: Names the group, the field and what was expected.
        """
        block = self.raw(group)
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
        unknown = [key for key in block if key not in names]
        needed = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]  # pyright: ignore[reportArgumentType]
        missing = [name for name in needed if name not in block]
        if unknown or missing:
            near = {key: difflib.get_close_matches(str(key), names, 1) for key in unknown}
            said = [f"{key!r}" + (f" (did you mean {match[0]!r}?)" if match else "") for key, match in near.items()]
            parts = [f"has unknown {', '.join(said)}"] * bool(said) + [f"lacks {missing}"] * bool(missing)
            raise UsageError(f"{self.origin}: [{group}] {' and '.join(parts)}.")
        values = {name: self._convert(f"{group}.{name}", block[name], hints[name]) for name in names if name in block}
        try:
            return cls(**values)
        except ValueError as error:  # a range that the dataclass checks
            raise UsageError(f"{self.origin}: [{group}] {error}.") from None

    def _convert(self, where: str, value: Any, hint: Any) -> Any:
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
        for option in options:
            origin, args = typing.get_origin(option), typing.get_args(option)
            if option is type(None) and value is None:
                return None
            if origin is typing.Literal and value in args:
                return value
            if dataclasses.is_dataclass(option) and isinstance(option, type) and isinstance(value, Mapping):
                return Params({where: value}, self.origin).group(where, option)
            if origin is tuple and isinstance(value, list):
                return tuple(self._convert(where, item, args[0]) for item in value)
            # Neither infinite nor NaN, which would pass for a number everywhere and end in a record that is no JSON.
            if option is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
                return float(value)
            if option in (int, str, bool) and type(value) is option:
                return value
        expected = " or ".join(str(typing.get_args(o)) if typing.get_origin(o) is typing.Literal else getattr(o, "__name__", str(o)) for o in options)
        raise UsageError(f"{self.origin}: expected {where} to be {expected}, got {value!r}.")

    def in_force(self, groups: Iterable[str]) -> dict[str, Any]:
        """Return the numbers in force: the seed, and the groups as `raw` gives them; the preset too where it has a say in them.

        Receipts, keys of results, the summary's digest and the benchmark's rows hold this and nothing else.
        """
        names = [group for group in groups if group not in ("seed", "preset")]
        by_preset = {"preset": self.preset} if any(self._has_presets(group) for group in names) else {}
        return {"seed": self.seed, **by_preset, **{group: dict(self.raw(group)) for group in names}}

    def digest(self, groups: Iterable[str] | None = None) -> str:
        """Return the SHA-256 of the numbers in force of some groups, of the whole tree if None."""
        numbers = self.tree if groups is None else self.in_force(groups)
        return hashlib.sha256(canonical_json(numbers, indent=None).encode()).hexdigest()


def _has_recipe(node: Any) -> bool:
    return isinstance(node, Mapping) and ("epochs" in node or any(_has_recipe(value) for value in node.values()))


def _with_shared(node: Any, shared: Mapping[str, Any]) -> Any:
    """Return a tree in which every recipe, which is a group with `epochs`, has what it does not say itself from `shared`."""
    if not isinstance(node, Mapping):
        return node
    own = {key: _with_shared(value, shared) for key, value in node.items()}
    return {**shared, **own} if "epochs" in own else own


@cache
def _loader() -> type:
    import yaml  # only here: importing the core needs no YAML reader

    class Strict(yaml.SafeLoader):
        """A SafeLoader that refuses a key given twice, what two readers take for two values, references (ten lines of them are a billion values)."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1} refers to another value; write it out")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise yaml.YAMLError(f"more than {MAX_DEPTH} levels inside each other")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def compose_scalar_node(self, anchor: Any) -> Any:
            node = super().compose_scalar_node(anchor)
            if not re.fullmatch(ONE_MEANING.get(node.tag, "(?s:.*)"), node.value):
                raise yaml.YAMLError(
                    f"{node.value!r} (line {node.start_mark.line + 1}) is another value to another reader; write true, false, or a decimal number"
                )
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key_node, _ in node.value:
                where = f"(line {key_node.start_mark.line + 1})"
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    raise UsageError(f"{node.start_mark.name}: expected a name as key, got {key!r} {where}.")
                if key in seen:
                    raise UsageError(f"{node.start_mark.name}: the key {key!r} stands twice in one group {where}.")
                seen.add(key)
            return super().construct_mapping(node, deep)

    return Strict


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML with the strict loader."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # noqa: S506 - Strict is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits, the 31st of February
        raise UsageError(f"{origin} is not YAML: {error}") from None


def read_params(path: Path = PACKAGED) -> Params:
    """Read a params.yaml.

    Raises:
        UsageError: The file is missing, is no YAML mapping, repeats a key, or has a group that nobody reads.
    """
    tree = _read_tree(path)
    old = next((name for name, block in tree.items() if isinstance(block, dict) and set(block) == set(PRESETS)), None)
    if old is not None:
        raise UsageError(
            f"{path.name} is of an older meca: [{old}] has the blocks default and paper. A group holds the numbers of preset default now, and "
            f"group paper the ones that differ from them; carry what you changed over into a copy of {PACKAGED} (docs/files.md)."
        )
    known = tree if path == PACKAGED else _packaged()
    unknown = next((group for group in tree if group not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, known, 1)
        raise UsageError(f"{path.name} has an unknown group {unknown!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
    return Params(tree=tree, origin=path.name)


@cache
def _packaged() -> dict[str, Any]:
    return _read_tree(PACKAGED)


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")
    except OSError as error:
        found = "none" if isinstance(error, FileNotFoundError | IsADirectoryError) else error.strerror
        raise UsageError(f"Expected a parameter file at {path}, found {found}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"Expected {path} to be UTF-8.") from None
    if len(text) > MAX_BYTES:
        raise UsageError(f"Expected a parameter file of at most {MAX_BYTES} bytes, {path} is larger.")
    tree = _parsed(text, str(path))
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: expected groups of parameters, got {type(tree).__name__}.")
    return copy.deepcopy(tree)


@lru_cache(maxsize=4)
def _parsed(text: str, origin: str) -> Any:
    """Parse what may have been parsed already: a run reads its one file for every stage, and parsing takes a hundred times as long as copying."""
    return parse_yaml(text, origin)


def with_settings(params: Params, settings: Mapping[str, Any]) -> Params:
    """Return a copy with fields replaced; keys are dotted paths that exist already, such as `ingest.source`.

    The value is in force whatever the preset: [paper] loses what it says about the field where it is the preset.
    Strings are read as YAML where the field holds no text, or may hold a number. A text stays as it is: a path may hold `#`, `: ` and quotes.
    """
    tree = copy.deepcopy(dict(params.tree))
    if "preset" in settings:
        tree["preset"] = settings["preset"]
    for key, value in settings.items():
        *groups, name = path = key.split(".")
        known: Any = {**tree, **Params(tree, params.origin).numbers}
        node: Any = tree
        for group in groups:
            known, node = (part.get(group) if isinstance(part, dict) else None for part in (known, node))
        if not isinstance(known, dict) or not isinstance(node, dict) or name not in known:
            near = difflib.get_close_matches(key, _leaves(dict(Params(tree, params.origin).numbers)), 1)
            raise UsageError(f"{params.origin} has no parameter {key!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
        is_yaml = isinstance(value, str) and (key in WORD_OR_NUMBER or not isinstance(known[name], str))
        node[name] = parse_yaml(value, f"--set {key}") if is_yaml else value
        if tree.get("preset") == OVERLAY:
            _forget(tree.get(OVERLAY), path)
    return Params(tree=tree, origin=params.origin)


def _forget(node: Any, path: list[str]) -> None:
    """Remove a dotted path from a tree; a group stays, though empty, because DVC asks for it."""
    *groups, name = path
    for group in groups:
        node = node.get(group) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(name, None)


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}.{key}".lstrip("."))]
