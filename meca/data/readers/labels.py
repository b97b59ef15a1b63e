"""Labels that came as text: which classes there are, in which order, and what a label must not be."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from meca.errors import InputRefused

__all__ = ["MAX_CLASSES", "checked", "classes_of", "numbered"]

MAX_CLASSES = 100_000
MAX_LENGTH = 255  # characters; a label is no caption
NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
HALF = re.compile("[\ud800-\udfff]")  # no file and no screen can hold one


def classes_of(labels: Iterable[str], what: str) -> tuple[str, ...]:
    """Return the different labels: by value where all are whole numbers, else by the bytes of their names.

    Raises:
        InputRefused: There are more than `MAX_CLASSES`, or one is longer than a name.
    """
    names = set(labels)
    long = next((name for name in names if len(name) > MAX_LENGTH), None)
    if long is not None or len(names) > MAX_CLASSES:
        found = f"{len(names)} classes" if long is None else f"a label of {len(long)} characters"
        raise InputRefused(
            f"Expected at most {MAX_CLASSES} classes with names of at most {MAX_LENGTH} characters in {what}, found {found}; "
            "is that the label (params.yaml: ingest.label_column)?"
        )
    half = next((name for name in names if HALF.search(name)), None)
    if half is not None:
        raise InputRefused(f"The label {half!r} in {what} holds half a character (a lone surrogate); mend or drop its row.")
    if all(NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names, key=lambda name: name.encode()))


def checked(names: Any, what: str) -> tuple[str, ...]:
    """Return class names that a file lists beside its labels.

    Raises:
        InputRefused: They are no list of different names, or too many, too long, or hold half a character.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise InputRefused(f"Expected {what} to be different strings.")
    if len(names) > MAX_CLASSES or any(len(name) > MAX_LENGTH or HALF.search(name) for name in names):
        raise InputRefused(f"Expected {what} to be at most {MAX_CLASSES} names of at most {MAX_LENGTH} characters, without half a character.")
    return tuple(names)


def numbered(class_names: tuple[str, ...], tests: Mapping[str, str]) -> dict[str, int]:
    """Return the number of each class; `tests` holds the label of every test sample by name.

    Raises:
        InputRefused: A label of the test split is unknown to split train.
    """
    number = {name: label for label, name in enumerate(class_names)}
    unknown = next((where for where, label in tests.items() if label not in number), None)
    if unknown is not None:
        raise InputRefused(f"Expected the classes of split test to be those of split train, but {tests[unknown]!r} of {unknown!r} is not among them.")
    return number
