"""Which tests `make test-fast` leaves out: those that took more than half a second, as measured.

    python -m pytest -q --durations=0 -vv > FILE
    python -m tests.slow FILE       write tests/slow.txt

A line of slow.txt is a test function, whose parameters and fixtures count together. A new test is fast until it is measured.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

SLOW = Path(__file__).with_name("slow.txt")
SECONDS = 0.5


def listed() -> frozenset[str]:
    """Return the functions that are slow: path below the project, two colons, name."""
    return frozenset(SLOW.read_text(encoding="utf-8").split())


def measured(text: str) -> list[str]:
    """Return the functions that took more than `SECONDS` by what `pytest --durations=0` printed."""
    total = Counter[str]()
    for seconds, name in re.findall(r"^([\d.]+)s (?:call|setup|teardown)\s+(tests/[^\s\[]+::[^\s\[]+)", text, re.MULTILINE):
        total[name] += float(seconds)
    return sorted(name for name, seconds in total.items() if seconds > SECONDS)


def main() -> None:
    """Write the list."""
    parser = argparse.ArgumentParser(prog="python -m tests.slow", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="what pytest printed")
    names = measured(parser.parse_args().file.read_text(encoding="utf-8"))
    if not names:
        raise SystemExit("Expected the durations of a run of pytest with --durations=0, found none.")
    SLOW.write_text("\n".join(names) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
