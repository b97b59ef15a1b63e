"""Prefect's own temporary server, which Prefect starts when there is no other, and which must not outlive its flow."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from meca.errors import MecaError
from tasks import environment
from tasks.prefect.slots import server_url

__all__ = ["ensure", "optional", "outlived", "reach", "without_tags"]

PATIENCE = 20.0  # seconds for a server that is just starting again

_watchers: list[subprocess.Popen[bytes]] = []  # kept, because dropping one would close its pipe


def ensure() -> str:
    """Return the address of a server: the one in force, else a temporary one that ends with this process.

    Prefect ends its temporary server at the exit of the process, which a killed process never reaches. So a watcher that
    holds nothing but a pipe to us ends it then.

    Raises:
        MecaError: A server is set, and does not answer or refuses the password.
    """
    if url := server_url():
        reach()
        return url
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # one per process: the flow finds this one
    if server.server_process is None:
        server.start()
        assert server.server_process is not None
        _watchers.append(
            subprocess.Popen(  # noqa: S603 - our own interpreter and numbers
                [sys.executable, "-m", "tasks.prefect.server", str(server.server_process.pid)],
                stdin=subprocess.PIPE,
                env=environment.child_environment(),
                start_new_session=True,  # an interrupt from the terminal must not end it before its time
            )
        )
    return server.api_url


def reach(patience: float = PATIENCE) -> None:
    """Return when the server in force answers.

    Raises:
        MecaError: It does not within `patience` seconds, or it refuses the password.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    address = environment.without_secrets(server_url() or "")
    deadline = time.monotonic() + patience
    while True:
        try:
            with get_client(sync_client=True) as client:
                client.hello()
            return
        except PrefectHTTPStatusError as error:
            if error.response.status_code in (401, 403):
                raise MecaError(f"The Prefect server at {address} refuses the password; look at PREFECT_API_AUTH_STRING.") from None
            reason = f"answers {error.response.status_code}"
        except httpx.HTTPError as error:
            reason = f"does not answer ({type(error).__name__})"
        if time.monotonic() > deadline:
            raise MecaError(f"The Prefect server at {address} {reason}; look at PREFECT_API_URL, or unset it to run without one.") from None
        time.sleep(1)


@contextlib.contextmanager
def outlived(is_done: Callable[[], bool]) -> Iterator[None]:
    """Take the loss of the server in the middle of a flow for what it is: the work was done or not, and the server's word is not asked.

    Raises:
        MecaError: It was not.
    """
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        address = environment.without_secrets(server_url() or "Prefect's temporary server")
        lost = f"The Prefect server at {address} was lost ({type(error).__name__})"
        if not is_done():
            raise MecaError(f"{lost} before the work was done; the same command continues.") from None
        print(f"meca: {lost}; the work is done, and `meca doctor` closes the run once the server is back.", file=sys.stderr)


@contextlib.contextmanager
def optional(say: Callable[[str], object]) -> Iterator[None]:
    """Go on without what the block tells the server, if the server is away."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        say(f"The Prefect server was not told ({type(error).__name__}).")


@contextlib.contextmanager
def without_tags() -> Iterator[None]:
    """Start tasks that lack the tags of their flow run: for each tag, Prefect asks the server before each task."""
    from prefect.context import TagsContext

    with TagsContext(current_tags=set()):
        yield


def watch(pid: int) -> None:
    """Wait until the process at the other end of standard input is gone, then end the server if it still runs."""
    sys.stdin.buffer.read()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
