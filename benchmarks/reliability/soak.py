"""Many runs in a row against real servers: what they leave behind, and what a run costs beside its stages; docs/faults.md.

    python -m benchmarks.reliability.soak            100 runs (an hour or two), one row in reliability.jsonl and one in speed.jsonl
    python -m benchmarks.reliability.soak --runs 3   a rehearsal: no rows

PostgreSQL, S3, MLflow and Prefect are started for it as plain processes (`infra.local`), and ended after it. The workspace is
small; before each run one parameter of the page changes, so that DVC runs `report` and `track` and skips the rest, and every
tenth run also pushes to the bucket. After each run nothing may be left of it: no process, no held lock, no open run in
Prefect or MLflow, no slot of a limit.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.reliability.operations import FEW, SMALL, params_of, program
from benchmarks.rows import provenance, speed, write

WARM = 5  # runs whose times are not in the medians of the beginning
PUSHED = 10  # every so many runs
KEPT = 100  # thumbnails on the page, one more each run; never the number of the first run, whose page DVC would bring back
OPEN = ("RUNNING", "PENDING", "CANCELLING", "PAUSED")


def soak(room: Path, runs: int) -> tuple[dict[str, Any], list[float], list[float]]:
    """Make the runs and return the columns of the row, and for each run its seconds and those beside its stages."""
    from infra.local import process, services
    from infra.local.place import Place
    from tasks.dvc.workspace import create

    folder = room / "services"
    services.start(folder, free_ports=True)
    try:
        env = Place.of(folder).client() | {"PREFECT_HOME": str(room / "prefect-home")}
        place = create(room / "workspace", SMALL | FEW)
        program(place, "flows.sanitize", "--push", **env)  # every stage, and what is only made once
        seconds, beside, wrong = [], [], []
        before = memory(process.members(folder))
        for i in range(runs):
            create(place, SMALL | FEW | {"report.kept_pictures": KEPT + i})
            push = ["--push"] if i % PUSHED == PUSHED - 1 else []
            took, said = program(place, "flows.sanitize", *push, check=False, **env)
            stages = json.loads(found[0])["stages"] if (found := re.findall(r"^\{\n.*?^\}", said, re.DOTALL | re.MULTILINE)) else {}
            seconds.append(took)
            beside.append(took - sum(stage["seconds"] for stage in stages.values()))
            left = behind(room, place, env, i + 2)
            left += [] if [name for name, stage in stages.items() if stage["outcome"] == "ran"] == ["report", "track"] else ["other stages ran"]
            print(f"run {i + 1}: {took:.1f} s, {beside[-1]:.1f} s beside its stages{''.join(f'; {text}' for text in left)}", flush=True)
            wrong += [f"run {i + 1}: {'; '.join(left)}"] if left else []
        after = memory(process.members(folder))
    finally:
        services.stop(folder, tell=lambda line: None)
    for line in wrong:
        print(line, file=sys.stderr)
    notes = (
        "".join(f"{line}; " for line in wrong[:3])
        + f"servers {before:.0f} MiB before and {after:.0f} MiB after; {runs // PUSHED} runs pushed to the bucket"
    )
    row = {
        "name": "runs in a row against the servers leave nothing behind",
        "tried": runs,
        "as_specified": runs - len(wrong),
        "lost": 0,
        "notes": notes,
    }
    return row, seconds, beside


def behind(room: Path, workspace: Path, env: dict[str, str], runs: int) -> list[str]:
    """Return what the last of so many runs left behind; a moment is given to what is just ending."""
    deadline = time.monotonic() + 10
    while (left := _processes(room) + _locks(workspace) + _open_runs(env, runs)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _processes(room: Path) -> list[str]:
    """Return the processes that work in the room or were started for it, but for its servers."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            home = process.environ().get("PREFECT_HOME") == str(room / "prefect-home")
            if home or Path(process.cwd()).is_relative_to(room / "workspace"):
                found.append(f"process {process.pid} ({' '.join(process.cmdline())[:80]})")
    return found


def _locks(workspace: Path) -> list[str]:
    """Return the files of the workspace that somebody holds a lock on."""
    held = {line.split()[5].rpartition(":")[2] for line in Path("/proc/locks").read_text(encoding="ascii").splitlines() if "->" not in line}
    return [f"lock on {file.name}" for file in workspace.rglob("*") if file.is_file() and str(file.stat().st_ino) in held]


def _open_runs(env: dict[str, str], runs: int) -> list[str]:
    """Return what is not closed in Prefect and MLflow."""
    user, _, password = env["PREFECT_API_AUTH_STRING"].partition(":")
    address = env["PREFECT_API_URL"]
    with httpx.Client(auth=(user, password), timeout=30) as client:

        def count(what: str, **query: Any) -> int:
            return int(client.post(f"{address}/{what}/count", json=query).raise_for_status().json())

        states = {"state": {"type": {"any_": OPEN}}}
        found = [f"{n} open flow runs" for n in [count("flow_runs", flow_runs=states)] if n]
        found += [f"{n} open task runs" for n in [count("task_runs", task_runs=states)] if n]
        completed = count("flow_runs", flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}})
        found += [] if completed == runs else [f"{completed} of {runs} runs are completed"]
        limits = client.post(f"{address}/v2/concurrency_limits/filter", json={}).raise_for_status().json()
        found += [f"slots of {limit['name']}" for limit in limits if limit["active_slots"]]
    auth = (env["MLFLOW_TRACKING_USERNAME"], env["MLFLOW_TRACKING_PASSWORD"])
    with httpx.Client(auth=auth, timeout=30) as client:
        api = f"{env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow"
        experiments = [e["experiment_id"] for e in client.get(f"{api}/experiments/search", params={"max_results": 100}).json()["experiments"]]
        query = {"experiment_ids": experiments, "filter": "attributes.status = 'RUNNING'", "max_results": 10}
        running = client.post(f"{api}/runs/search", json=query).raise_for_status().json().get("runs", [])
    return found + ([f"{len(running)} MLflow runs are RUNNING"] if running else [])


def memory(processes: list[psutil.Process]) -> float:
    """Return what processes hold, in MiB."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 2**20


def main() -> int:
    """Make the runs; exit 1 if one left something behind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="fewer than 20 write no rows")
    arguments = parser.parse_args()
    from tasks import environment

    environment.prepare()
    started = time.perf_counter()
    room = Path(tempfile.mkdtemp(prefix="meca-soak-")).resolve()
    room.chmod(0o755)  # PostgreSQL runs as another user when we are root
    try:
        row, seconds, beside = soak(room, arguments.runs)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    early, late = seconds[WARM : WARM + 10], seconds[-10:]
    print(f"{row['as_specified']} of {row['tried']} runs left nothing behind; {row['notes']}")
    print(f"median {statistics.median(seconds):.1f} s a run, {statistics.median(beside):.1f} s beside its stages")
    if arguments.runs >= 20:
        command, params = f"python -m benchmarks.reliability.soak --runs {arguments.runs}", params_of(SMALL | FEW)
        row["notes"] += f"; median {statistics.median(early):.1f} s a run at the beginning and {statistics.median(late):.1f} s at the end"
        write("reliability.jsonl", row | provenance(command, time.perf_counter() - started, params=params))
        speed("a run against PostgreSQL, S3, MLflow and Prefect, beside its stages", statistics.median(beside), command, len(beside), params)
    return int(row["as_specified"] < row["tried"])


if __name__ == "__main__":
    sys.exit(main())
