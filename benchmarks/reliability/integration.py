"""What holds against real services, counted: the tests of tests/services and those of faults on the way, a row for each promise.

    python -m benchmarks.reliability.integration         all of them (half an hour), rows in services.jsonl
    python -m benchmarks.reliability.integration --dry   no rows

It calls `make services` and `make integration` and, for what needs a fault at an exact place of a transfer, tests of `make test` against moto,
SQLite and a proxy. A promise that no test stands behind any more, a test that fails, and one that was skipped are failures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.rows import ROOT, provenance, write


@dataclass(frozen=True)
class Case:
    """One test that ran."""

    name: str  # tests.services.test_s3::test_…[…]
    passed: bool
    seconds: float
    value: float | None  # what it measured


@dataclass(frozen=True)
class Promise:
    """What a row says, and the tests that stand behind it, by the beginning of their names."""

    notes: str
    tests: Sequence[str]
    unit: str | None = None  # of what one of them measured


def _in(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{module}::test_{name}" for name in names)


MLFLOW, PREFECT, S3 = "tests.services.test_mlflow", "tests.services.test_prefect", "tests.services.test_s3"
SPOOL, FETCH, PUBLISH, REMOTE = "tests.integration.test_spool", "tests.tasks.test_s3", "tests.tasks.test_publishing", "tests.tasks.test_remote"
PLATFORM, RUNTIME = "tests.integration.test_platform", "tests.stages.test_runtime"

PROMISES: Mapping[str, Promise] = {
    "make integration: every test against PostgreSQL, S3, MLflow and Prefect": Promise("", ("tests.services.",)),
    "a scheduled run fires on time and a worker does it": Promise(
        "value: seconds between the time of the schedule and the start of the run; the worker asks every two", _in(PREFECT, "a_schedule_starts"), "s"
    ),
    "promotion, refusal, rollback, and a clean process that serves the champion": Promise(
        "MLflow with a password, artifacts through its proxy in S3; also two machines that promote at once",
        _in(MLFLOW, "champion_challenger", "two_machines"),
    ),
    "a changed bucket is one run": Promise("polling sensor", _in(PREFECT, "one_change_of_the_bucket")),
    "two runs side by side never share the GPU; a dead run's slot comes back": Promise(
        "limit `gpu` of Prefect's server", _in(PREFECT, "two_runs_side_by_side", "a_slot_of_the_gpu")
    ),
    "DVC push and pull against S3, verified by SHA-256": Promise(
        "an object with another file's MD5 is refused", _in(S3, "what_was_pushed", "a_push_that")
    ),
    "F09 S3: 503, resets, short and changed bodies, timeouts, 403 midway, a crash, a hang": Promise(
        "a proxy before moto, and Swift killed and stopped: bounded retries, no half object, the same bytes",
        (
            *_in(FETCH, "a_broken_transfer", "a_network_that_stays_away", "killed_in_the_middle", "a_refused_key", "an_object_that_changes"),
            *_in(PUBLISH, "a_network_that_fails", "a_key_that_is_withdrawn", "what_does_not_read_back", "an_upload_in_parts_that_fails"),
            *_in(REMOTE, "through_a_network", "an_object_with_other_bytes"),
            *_in(S3, "a_server_that_crashes", "a_server_that_hangs", "a_wrong_secret"),
        ),
    ),
    "F10 an upload is killed between parts or before its pointer": Promise(
        "before each request in turn, and SIGKILL at three moments against Swift: the old set or the new one, never half",
        (
            *_in(PUBLISH, "wherever_it_stops", "wherever_the_first_one", "of_two_that_publish"),
            *_in(S3, "a_publisher_that_is_killed", "of_two_publishers"),
        ),
    ),
    "F11 MLflow is down, slow, dies midway, answers 401, 413, 504; PostgreSQL or S3 behind it is away": Promise(
        "the run ends as without; what was kept is told once when it is back",
        (
            *_in(SPOOL, "a_server_that_does_not_take_it", "what_was_kept", "a_stage_that_cannot_tell", "neither_a_full_disk"),
            *_in(MLFLOW, "a_wrong_password", "a_service_that_is_away", "a_server_that_hangs", "a_server_that_dies"),
        ),
    ),
    "F12 a run that a killed process left open; two that record into a fresh database": Promise(
        "no run is there twice, none stays RUNNING",
        (
            *_in(SPOOL, "what_a_killed_process", "a_request_that_was_obeyed_twice"),
            *_in(PLATFORM, "two_that_record", "a_half_logged"),
            *_in(MLFLOW, "a_recording_process"),
        ),
    ),
    "F13 Prefect: server or worker's run killed, a run that fell silent": Promise(
        "results unchanged, the flow run ends as Crashed or Completed, no process is left",
        (
            *_in(PREFECT, "a_run_that_is_killed", "a_run_that_fell_silent", "a_server_that_is_killed", "a_server_that_stays_dead"),
            *_in(PLATFORM, "a_flow_that_is_ended"),
        ),
    ),
    "F14 two runs at once": Promise(
        "one output: one owner, the other is told; 2 to 16 of them are a campaign under Reliability",
        (
            *_in(RUNTIME, "a_second_run_of_one_output"),
            *_in(REMOTE, "two_that_push"),
            *_in(PUBLISH, "of_two_that_publish"),
            *_in(MLFLOW, "two_machines"),
        ),
    ),
    "F15 DVC is cut off in a push, its lock is damaged": Promise(
        "the next push finishes it; a lock that is none is refused with the command that mends it; kills in repro are under Reliability",
        (*_in(S3, "a_push_that"), *_in(PLATFORM, "a_damaged_lock")),
    ),
}


def services() -> dict[str, Any]:
    """Start the services as a user would, ask whether they answer, end them; return the columns of a row."""
    started, codes = time.perf_counter(), list[int]()
    codes.append(subprocess.run(["make", "services"], cwd=ROOT, check=False).returncode)
    seconds = time.perf_counter() - started
    codes += [subprocess.run(["make", target], cwd=ROOT, check=False).returncode for target in ("services-status", "services-stop")]
    name = "make services, services-status, services-stop"
    row = {"name": name, "tried": 3, "passed": codes.count(0), "value": round(seconds, 1), "unit": "s", "seconds": time.perf_counter() - started}
    return row | {"notes": "value: seconds until every service answers, with what has to be installed for Swift the first time"}


def run(command: Sequence[str], folder: Path) -> list[Case]:
    """Run tests in a process of their own and return how each ended."""
    report = folder / f"{len(list(folder.iterdir()))}.xml"
    subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": f"-p no:cacheprovider -o junit_family=xunit1 --junitxml={report}"}, check=False
    )
    return read(report)


def read(report: Path) -> list[Case]:
    """Return the tests in a report of pytest's."""
    cases: list[Case] = []
    for found in ElementTree.parse(report).iter("testcase"):
        passed = not any(child.tag in ("failure", "error", "skipped") for child in found)
        measured = [each.get("value") for each in found.iter("property") if each.get("name") == "value"]
        value = float(measured[0]) if measured and measured[0] else None
        cases.append(Case(f"{found.get('classname')}::{found.get('name')}", passed, float(found.get("time") or 0), value))
    return cases


def judge(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the columns of a row for each promise.

    Raises:
        ValueError: No test stands behind a name.
    """
    rows: list[dict[str, Any]] = []
    for name, promise in PROMISES.items():
        found: dict[str, Case] = {}
        for begin in promise.tests:
            hits = {case.name: case for case in cases if case.name.startswith(begin)}
            if not hits:
                raise ValueError(f"{name}: no test is called {begin}…")
            found |= hits
        values = [case.value for case in found.values() if case.value is not None]
        failed = sorted(case.name for case in found.values() if not case.passed)
        notes = "; ".join([part for part in (promise.notes, f"failed: {', '.join(failed)}" if failed else "") if part])
        value = round(max(values), 1) if values and promise.unit else None
        row = {"name": name, "tried": len(found), "passed": len(found) - len(failed), "value": value, "unit": promise.unit if values else None}
        rows.append(row | {"notes": notes, "seconds": round(sum(case.seconds for case in found.values()), 1)})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests, write the rows, exit 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.integration", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="print the rows")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    modules = {begin.split("::")[0] for promise in PROMISES.values() for begin in promise.tests}
    others = sorted(f"{module.replace('.', '/')}.py" for module in modules if not module.startswith("tests.services"))
    rows = [services()]
    with tempfile.TemporaryDirectory(prefix="meca-integration-") as folder:
        cases = run(["make", "integration"], Path(folder)) + run([sys.executable, "-m", "pytest", "-q", *others], Path(folder))
    rows += judge(cases)
    for row in rows:
        if arguments.dry:
            print(json.dumps(row, indent=1))
        else:
            write("services.jsonl", provenance("python -m benchmarks.reliability.integration", time.perf_counter() - started, None) | row)
    return int(any(row["passed"] != row["tried"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
