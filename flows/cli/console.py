"""What the command prints."""

import json
import sys
from typing import Any

from meca.text import plain

__all__ = ["complain", "say", "say_json"]


def say(*lines: object) -> None:
    """Print lines, without anything that steers a terminal."""
    for line in lines:
        print(plain(line, 4000))


def say_json(value: Any) -> None:
    """Print one JSON object."""
    # ASCII only: a control or bidi character in a class name reaches the terminal as \u202e, the reader of the JSON as it was.
    print(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True, default=str))


def complain(message: str) -> None:
    """Print a message to stderr, in the name of the command."""
    print(f"meca: {message}", file=sys.stderr, flush=True)
