"""Classes as a person names them: by their name, or by their index."""

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from meca.errors import UsageError
from meca.params import Params, with_settings
from meca.text import plain

__all__ = ["CLASSES", "index_of", "with_indices", "without_names"]

CLASSES = ("target_class", "second_target", "source_class")  # fields of group poison that are a class
BY_INDEX, BY_NAME = "index:", "name:"
SHOWN = 5


def without_names(params: Params, named: Mapping[str, str]) -> Params:
    """Return parameters that can be checked before the classes are known: index 0 stands for every class that has a name.

    Args:
        params: The parameters; a class of group poison may be text.
        named: What the user called the classes, by field of group poison.
    """
    return with_settings(params, {f"poison.{field}": 0 for field in _texts(params, named)})


def with_indices(params: Params, named: Mapping[str, str], class_names: Sequence[str]) -> Params:
    """Return parameters in which every class is an index.

    Args:
        params: The parameters; a class of group poison may be text.
        named: What the user called the classes, by field of group poison; it counts before `params`.
        class_names: Of the data.

    Raises:
        UsageError: There is no class of that name, or a number is the name of one class and the index of another.
    """
    return with_settings(params, {f"poison.{field}": index_of(text, class_names, field) for field, text in _texts(params, named).items()})


def _texts(params: Params, named: Mapping[str, str]) -> dict[str, str]:
    given: Mapping[str, Any] = {**params.raw("poison"), **named}
    return {field: given[field] for field in CLASSES if isinstance(given.get(field), str)}


def index_of(text: str, class_names: Sequence[str], field: str) -> int:
    """Return the index of the class that a text names; `index:3` and `name:3` say which of the two is meant.

    A number that is no name is returned as it is, whether or not there is such a class.

    Raises:
        UsageError: As `with_indices`.
    """
    names = [unicodedata.normalize("NFC", name) for name in class_names]
    wanted = unicodedata.normalize("NFC", text.removeprefix(BY_NAME))
    number = text.removeprefix(BY_INDEX)
    is_number = number.lstrip("-").isascii() and number.lstrip("-").isdigit() and number == str(int(number))
    if text.startswith(BY_INDEX) and is_number:
        return int(number)
    if wanted in names:
        by_name = names.index(wanted)
        if is_number and not text.startswith(BY_NAME) and by_name != int(number) and 0 <= int(number) < len(names):
            raise UsageError(
                f"Expected poison.{field} to mean one class, but {number!r} is the name of class {by_name} and the index of class "
                f"{plain(class_names[int(number)])!r}; say {BY_NAME}{number} or {BY_INDEX}{number}."
            )
        return by_name
    if is_number and not text.startswith(BY_NAME):
        return int(number)
    folded = {name.casefold(): name for name in reversed(names)}
    near = [plain(folded[name]) for name in difflib.get_close_matches(wanted.casefold(), list(folded), 3)]
    shown = ", ".join(plain(name) for name in class_names[:SHOWN]) + (", …" if len(class_names) > SHOWN else "")
    more = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the classes are {shown}."
    raise UsageError(f"Expected poison.{field} to be a class of this data or its index, got {plain(text)!r}; {more}")
