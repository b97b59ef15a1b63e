"""Prefect's own temporary server, which Prefect starts when there is no other, and which must not outlive its flow."""

import contextlib
import os
import signal
import subprocess
import sys

from tasks import environment
from tasks.slots import server_url

__all__ = ["ensure"]

_watchers: list[subprocess.Popen[bytes]] = []  # kept, because dropping one would close its pipe


def ensure() -> str:
    """Return the address of a server: the one in force, else a temporary one that ends with this process.

    Prefect ends its temporary server at the exit of the process, which a killed process never reaches. So a watcher that
    holds nothing but a pipe to us ends it then.
    """
    if url := server_url():
        return url
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # one per process: the flow finds this one
    if server.server_process is None:
        server.start()
        assert server.server_process is not None
        _watchers.append(
            subprocess.Popen(  # noqa: S603 - our own interpreter and numbers
                [sys.executable, "-m", "tasks.server", str(server.server_process.pid)],
                stdin=subprocess.PIPE,
                env=environment.child_environment(),
                start_new_session=True,  # an interrupt from the terminal must not end it before its time
            )
        )
    return server.api_url


def watch(pid: int) -> None:
    """Wait until the process at the other end of standard input is gone, then end the server if it still runs."""
    sys.stdin.buffer.read()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
