"""Flow runs that nobody is left to end: each says at its start which process it is, and what is dead is closed.

    python -m tasks.prefect.dead_runs        close the dead runs of this host and print them as JSON (`meca doctor` does so)

A process that is killed tells its Prefect server nothing. Where it ran is known for sure only here, on the same host; a
run of another host is closed by the server's automation, for its silence (`flows.deploy`).
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from meca.errors import MecaError
from meca.text import plain
from tasks import environment

__all__ = ["LABEL", "close", "examine", "identity", "is_dead", "mark"]

LABEL = "meca.process"
PAGE = 200  # runs a request, the most that the server gives
LONGEST = 60.0  # seconds for `examine`, which imports Prefect
MESSAGE = "The process of this run is gone; meca closed the run."


def identity(pid: int | None = None) -> str:
    """Return a name of a process that no other one has, on this machine or another, before or after a restart."""
    pid = pid or os.getpid()
    return "/".join([socket.gethostname(), *_space(), str(pid), _started(pid) or "?"])


def _space() -> tuple[str, str]:
    """Return this start of the machine and this space of process ids: a container counts its own."""
    boot = namespace = "?"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return boot, namespace.strip("pid:[]")


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks since the start of the machine; None where there is none (a zombie is none)."""
    try:
        # The name of the program stands in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def is_dead(process: str) -> bool:
    """Tell whether a process that `identity` named is surely gone: it was one of this host, and is not there."""
    parts = process.split("/")
    if len(parts) != 5 or "?" in parts or parts[0] != socket.gethostname():
        return False
    boot, namespace = _space()
    if parts[2] != namespace:
        return False  # another container's; it may live
    return parts[1] != boot or _started(int(parts[3])) != parts[4]


def mark(flow: Any, flow_run: Any, state: Any) -> None:
    """Note at the start of a run which process it is (a hook of Prefect's)."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {LABEL: identity()})


def close() -> list[str]:
    """End the runs of the server in force whose process on this host is gone, and return their names.

    A run that was being cancelled ends as Cancelled, any other as Crashed; its tasks end with it. What a live process holds is
    never touched.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        FlowRunFilterState,
        FlowRunFilterStateType,
        TaskRunFilter,
        TaskRunFilterState,
        TaskRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled, Crashed

    open_types = [StateType.RUNNING, StateType.CANCELLING]
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_types)))
    started = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])))
    closed: list[str] = []
    with get_client(sync_client=True) as client:
        found: list[Any] = []
        while page := client.read_flow_runs(flow_run_filter=unfinished, limit=PAGE, offset=len(found)):
            found += page
        for run in found:
            if not is_dead(str((run.labels or {}).get(LABEL, ""))):
                continue
            cancelled = run.state is not None and run.state.type == StateType.CANCELLING
            answer = client.set_flow_run_state(run.id, (Cancelled if cancelled else Crashed)(message=MESSAGE))
            if answer.status.value != "ACCEPT":
                continue  # somebody was quicker
            closed.append(run.name)
            of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            for task in client.read_task_runs(flow_run_filter=of_run, task_run_filter=started, limit=PAGE):
                client.set_task_run_state(task.id, Crashed(message=MESSAGE), force=True)
    return closed


def examine() -> tuple[bool, str]:
    """Close what is dead in a child process, within a time limit, and return whether that worked and what was found."""
    if not os.environ.get("PREFECT_API_URL"):
        return True, "no server set, so none outlives its flow"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tasks.prefect.dead_runs"], env=environment.child_environment(), capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return False, f"the server did not answer within {LONGEST:.0f} s"
    if done.returncode:
        return False, plain((done.stderr.strip().splitlines() or ["no message"])[-1], 300)
    closed = json.loads(done.stdout.splitlines()[-1])
    told = f": {', '.join(closed[:5])}{' …' if len(closed) > 5 else ''}" if closed else ""
    return True, f"{len(closed)} closed whose process on this host was dead{told}"


def main() -> None:
    """Close what is dead and print what was closed."""
    environment.prepare()
    from tasks.prefect import server
    from tasks.prefect.slots import server_url

    try:
        if server_url() is None:
            print("[]")
            return
        server.reach(0)
        print(json.dumps([plain(name, 80) for name in close()]))
    except MecaError as error:
        print(plain(error, 500), file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
