"""Progress: a bar on a terminal, otherwise a plain line every few seconds, or silence."""

import os
import sys
import time
from types import TracebackType
from typing import Any

from meca.text import plain

__all__ = ["Progress"]


class Progress:
    """Shows how far the work is, on stderr. Text that comes from data is never interpreted as markup."""

    def __init__(self, quiet: bool = False, every: float = 5.0) -> None:
        """Choose the form once: Rich on a terminal without CI and NO_COLOR, plain lines otherwise."""
        self.quiet = quiet
        self.every = every
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        plain = not sys.stderr.isatty() or bool(os.environ.get("CI")) or bool(os.environ.get("NO_COLOR"))
        if not quiet and not plain:
            try:
                from rich.console import Console
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
                from rich.progress import Progress as Bar
            except ImportError:
                return
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> "Progress":
        """Start drawing."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop drawing."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` parts of `what` are finished."""
        if self.quiet:
            return
        what, note = plain(what), plain(note)
        if self._bar is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total)
            self._bar.update(self._tasks[what], completed=done, total=total, description=f"{what} {note}".strip())
            return
        now = time.monotonic()
        if done >= total or now - self._last.get(what, -1e9) >= self.every:
            self._last[what] = now
            print(f"{what} {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(plain(text, 2000), markup=False, highlight=False)
        else:
            print(plain(text, 2000), file=sys.stderr, flush=True)
