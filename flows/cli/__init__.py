"""The command `meca`: parses, hands over, turns every outcome into a text and an exit code.

Only the standard library and cyclopts are imported here; each verb imports what it needs when it runs, so that `--help`,
`--version` and a usage error answer at once, and the verbs of the core work where Prefect, MLflow and DVC are missing.
"""

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from cyclopts import CycloptsError

from flows.cli import core, platform  # noqa: F401 - their verbs register themselves
from flows.cli.console import complain
from flows.cli.options import DONE, FAILED, INTERRUPTED, TERMINATED, USAGE, app
from meca.errors import MecaError, system_failure
from meca.text import plain

__all__ = ["main"]


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; no exception but an exit gets out."""
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except CycloptsError as error:
        complain(f"{plain(error, 600)} `meca --help` shows the verbs, `meca VERB --help` their options.")
        return USAGE
    except MecaError as error:
        complain(plain(error, 2000))
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted; the same command continues.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`meca inspect … | head`). The interpreter would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # every unforeseen failure is a 2; 1 would say "poison found"
        from tasks.environment import without_secrets

        failure, words = system_failure(error), plain(without_secrets(str(error)), 600)
        complain(plain(failure, 2000) if failure else f"failed with {type(error).__name__}: {words} {_keep_traceback()}")
        return FAILED


def main() -> NoReturn:
    """The console script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under `nohup`
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        # In the C locale a class name outside ASCII must not end the run.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    code = run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not turn the code into another one
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _keep_traceback() -> str:
    from tasks.environment import without_secrets

    text = without_secrets(traceback.format_exc())
    if os.environ.get("MECA_DEBUG"):
        print(text, file=sys.stderr)
        return "(traceback above)"
    try:
        handle, name = tempfile.mkstemp(prefix="meca-", suffix=".traceback.txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        print(text, file=sys.stderr)
        return "(traceback above)"
    return f"(traceback in {name}; what is finished is kept, the same command continues)"
