"""Prefect as it runs for a team: on PostgreSQL behind a password, with a worker, a schedule, limits, and things that die.

The pipeline is one of three tiny stages; the flows, DVC, the worker, the server and the bucket are real.
"""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest

from tasks import environment
from tasks.dvc.workspace import ROOT
from tasks.prefect import slots
from tests.integration.small import published, receiver, small, until

pytestmark = [pytest.mark.platform, pytest.mark.slow]

HOOK = "MECA_WEBHOOK"


class Server:
    """The Prefect server of the services, and programs that speak to it."""

    def __init__(self, services: Any, home: Path) -> None:
        self.services, self.home = services, home

    @property
    def env(self) -> dict[str, str]:
        clean = {
            name: value for name, value in environment.child_environment().items() if not name.startswith(("PREFECT_API", "AWS_", "MLFLOW_TRACK"))
        }
        wanted = ("PREFECT_", "AWS_", "MECA_S3")
        given = {name: value for name, value in self.services.env.items() if name.startswith(wanted)}
        return {**clean, **given, "PREFECT_HOME": str(self.home), "PYTHONPATH": str(ROOT), "PREFECT_LOGGING_COLORS": "false"}

    def ask(self, what: str, method: str = "POST", **query: Any) -> Any:
        user, _, password = self.services.env["PREFECT_API_AUTH_STRING"].partition(":")
        address = f"{self.services.env['PREFECT_API_URL']}/{what}"
        return httpx.request(method, address, json=query or None, auth=(user, password), timeout=30).raise_for_status().json()

    def runs(self) -> list[dict[str, Any]]:
        return self.ask("flow_runs/filter", sort="START_TIME_DESC")

    def run(self, run_id: str) -> dict[str, Any]:
        return self.ask(f"flow_runs/{run_id}", "GET")

    def of(self, workspace: Path) -> dict[str, Any] | None:
        """Return the run whose process works in a workspace."""
        pids = {str(process.pid) for process in working_in(workspace)}
        for run in self.ask("flow_runs/filter"):
            if str((run["labels"] or {}).get("meca.process", "/")).split("/")[-2] in pids:
                return run
        return None

    def deploy(self, *options: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.deploy", *options], cwd=ROOT, env={**self.env, **variables}, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def program(self, workspace: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        log = open(workspace / "log", "a")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=workspace,
                env={**self.env, **variables},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,
            )

    def start(self, deployment: str, workspace: Path, **body: Any) -> dict[str, Any]:
        """Ask for a run of a deployment in a workspace."""
        found = self.ask(f"deployments/name/{deployment}", "GET")
        variables = {"env": {**found["job_variables"]["env"], "MECA_WORKSPACE": str(workspace)}}
        return self.ask(f"deployments/{found['id']}/create_flow_run", job_variables=variables, **body)


def working_in(workspace: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == workspace:
                found.append(process)
    return found


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Leave nothing of a process and its group behind."""
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture
def server(services, tmp_path_factory) -> Server:
    return Server(services, tmp_path_factory.mktemp("prefect-home"))


@pytest.fixture
def worker(server, tmp_path) -> Iterator[Path]:
    """A worker of the pool, and the workspace that its runs work in unless told otherwise."""
    place = small(tmp_path / "workspace")
    server.deploy("--cron", "none")
    with start_worker(server, place):
        yield place


@contextmanager
def start_worker(server: Server, place: Path, **variables: str) -> Iterator[subprocess.Popen[Any]]:
    home = place.parent / "worker"
    home.mkdir(exist_ok=True)
    with open(home / "log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "meca"],
            cwd=home,
            env={**server.env, "MECA_WORKSPACE": str(place), "PREFECT_WORKER_QUERY_SECONDS": "2", **variables},
            stdout=log,
            stderr=log,
            process_group=0,
        )
    with ended(process):
        yield process


def test_a_schedule_starts_a_run_on_time_and_a_worker_does_it(server, worker, record_property):
    server.deploy("--cron", "* * * * *")
    try:

        def scheduled() -> list[dict[str, Any]]:
            return [run for run in server.runs() if run["auto_scheduled"] and run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]

        [run, *_] = until(scheduled, 150)
    finally:
        server.deploy("--cron", "none")
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["tags"] and set(run["tags"]) >= {"meca"}
    expected, started = (datetime.datetime.fromisoformat(run[name]) for name in ("expected_start_time", "start_time"))
    assert expected.second == 0
    late = (started - expected).total_seconds()
    record_property("value", late)
    assert abs(late) < 30
    assert published(worker)["verdict"] == "no_evidence"
    assert not [run for run in server.runs() if run["state_type"] == "SCHEDULED" and run["auto_scheduled"]], "a schedule that is off has runs ahead"


def test_what_completes_is_promoted_if_that_is_wanted(server, worker):
    server.deploy("--cron", "none", "--promote")
    promote = server.ask("deployments/name/promote/promote", "GET")["id"]
    run = server.start("sanitize/sanitize", worker)
    [started] = until(lambda: [each for each in server.runs() if each["deployment_id"] == promote], 120)
    assert server.run(run["id"])["state_type"] == "COMPLETED"
    until(lambda: server.run(started["id"])["state_type"] == "FAILED", 120)  # the tiny pipeline has no model
    server.deploy("--cron", "none")
    assert not server.ask("automations/filter", automations={"name": {"any_": ["meca promote after sanitize"]}})[0]["enabled"]


def test_a_run_that_is_killed_under_a_worker_is_crashed_and_leaves_no_process(server, worker, tmp_path):
    place = small(tmp_path / "long", "Path('started').touch(); time.sleep(300)")
    run = server.start("sanitize/sanitize", place)
    until((place / "started").exists, 90)
    label = until(lambda: (server.run(run["id"])["labels"] or {}).get("meca.process"))
    os.kill(int(label.split("/")[-2]), signal.SIGKILL)
    until(lambda: server.run(run["id"])["state_type"] == "CRASHED", 60)
    until(lambda: not working_in(place), 20)


def test_two_runs_side_by_side_never_share_the_gpu(server, tmp_path):
    name = "gpu:side-by-side"
    server.deploy("--cron", "none", "--gpu", "1", MECA_GPU_LIMIT=name)
    body = f"open({str(tmp_path / 'times')!r}, 'a').write(f'in {{time.time()}}\\n'); time.sleep(3); "
    body += f"open({str(tmp_path / 'times')!r}, 'a').write(f'out {{time.time()}}\\n')"
    places = [small(tmp_path / letter, body, gpu=True) for letter in "ab"]
    with ended(server.program(places[0], "flows.sanitize", MECA_GPU_LIMIT=name)) as first:
        with ended(server.program(places[1], "flows.sanitize", MECA_GPU_LIMIT=name)) as second:
            assert [first.wait(150), second.wait(150)] == [0, 0]
    words = [line.split()[0] for line in sorted((tmp_path / "times").read_text().splitlines(), key=lambda line: float(line.split()[1]))]
    assert words == ["in", "out", "in", "out"]
    until(lambda: server.ask(f"v2/concurrency_limits/{name}", "GET")["active_slots"] == 0)


def test_a_slot_of_the_gpu_comes_back_after_its_run_and_the_server_were_killed(server, services, tmp_path):
    name = "gpu:killed"
    server.deploy("--cron", "none", "--gpu", "1", MECA_GPU_LIMIT=name)
    place = small(tmp_path / "workspace", "Path('started').touch(); time.sleep(300)", gpu=True)

    def held() -> int:
        return server.ask(f"v2/concurrency_limits/{name}", "GET")["active_slots"]

    with ended(server.program(place, "flows.sanitize", MECA_GPU_LIMIT=name)) as flow:
        until((place / "started").exists, 90)
        assert held() == 1
        flow.kill()
        flow.wait()
    services.kill("prefect")
    services.start("prefect")
    assert held() == 1, "the lease is what this test is about"
    until(lambda: held() == 0, slots.LEASE + 60)


def test_a_run_that_fell_silent_is_crashed_by_the_server_which_tells_of_it(server, tmp_path):
    with receiver() as (address, notices):
        server.deploy("--cron", "none", "--patience", "60", **{HOOK: address})
        done = small(tmp_path / "done")
        with ended(server.program(done, "flows.sanitize")) as flow:
            assert flow.wait(120) == 0
        place = small(tmp_path / "workspace", "Path('started').touch(); time.sleep(300)")
        with ended(server.program(place, "flows.sanitize")) as flow:
            until((place / "started").exists, 90)
            run = server.of(place)
            assert run is not None
            flow.kill()
            flow.wait()
        until(lambda: server.run(run["id"])["state_type"] == "CRASHED", 150)
        [notice] = until(lambda: [notice for notice in notices if notice["id"] == run["id"]], 60)
    assert (notice["event"], notice["flow"], notice["run"]) == ("crashed", "sanitize", run["name"])
    wrong = [run["name"] for run in server.runs() if run["state_type"] == "CRASHED" and run["end_time"] and run["name"].endswith("-no_evidence")]
    assert wrong == [], "a run that had ended was made Crashed"


def test_a_server_that_is_killed_and_comes_back_changes_nothing(server, services, tmp_path):
    place = small(tmp_path / "workspace", "Path('started').touch(); time.sleep(8)")
    with ended(server.program(place, "flows.sanitize")) as flow:
        until((place / "started").exists, 90)
        run = server.of(place)
        assert run is not None
        services.kill("prefect")
        time.sleep(3)
        services.start("prefect")
        assert flow.wait(150) == 0, (place / "log").read_text()[-3000:]
    assert server.run(run["id"])["state_type"] == "COMPLETED"
    assert published(place)["input"] == "one"


def test_a_server_that_stays_dead_changes_no_result_and_the_run_is_closed_later(server, services, tmp_path):
    place = small(tmp_path / "workspace", "Path('started').touch(); time.sleep(5)")
    server.deploy("--cron", "none", "--patience", "3600")  # it is doctor's turn here, and not the automation's
    with ended(server.program(place, "flows.sanitize", PREFECT_CLIENT_MAX_RETRIES="1")) as flow:
        until((place / "started").exists, 90)
        run = server.of(place)
        assert run is not None
        with services.stopped("prefect"):
            said, _ = flow.communicate(timeout=300)
            assert flow.returncode == 0, (place / "log").read_text()[-3000:]
        assert json.loads(said)["verdict"] == "no_evidence"
        assert "meca doctor" in (place / "log").read_text()
    assert published(place)["input"] == "one"
    assert server.run(run["id"])["state_type"] == "RUNNING"
    closed = subprocess.run([sys.executable, "-m", "tasks.prefect.dead_runs"], cwd=ROOT, env=server.env, capture_output=True, text=True, timeout=120)
    assert json.loads(closed.stdout) == [run["name"]], closed.stderr
    assert server.run(run["id"])["state_type"] == "CRASHED"


def bucket(services: Any) -> Any:
    env = services.env
    keys = {"aws_access_key_id": env["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name=env["AWS_DEFAULT_REGION"], **keys)


def test_one_change_of_the_bucket_is_one_run(server, services, worker, tmp_path):
    client, name = bucket(services), services.env["MECA_S3_BUCKET"]
    client.put_object(Bucket=name, Key="watched/a.txt", Body=b"first ")
    client.put_object(Bucket=name, Key="watched/b.txt", Body=b"second")
    # The runs that are started work in the workspace of the worker: the same as the one that is watched.
    place = small(worker, origin=f"s3://{name}/watched")

    def look() -> dict[str, Any]:
        with ended(server.program(place, "flows.watch")) as flow:
            said, _ = flow.communicate(timeout=120)
            assert flow.returncode == 0, (place / "log").read_text()[-3000:]
        return json.loads(said)

    def becomes(text: str) -> str:
        found = look()
        assert found["changed"]
        assert look() == found, "the same change, seen twice"
        until(lambda: server.run(found["run"])["state_type"] in ("COMPLETED", "FAILED", "CRASHED"), 120)
        assert server.run(found["run"])["state_type"] == "COMPLETED"
        assert published(place)["input"] == text
        assert look() == {"changed": False}
        return found["run"]

    seen = [becomes("first second")]
    for body, text in ((b"third", "first third"), (b"second", "first second"), (b"third", "first third")):
        client.put_object(Bucket=name, Key="watched/b.txt", Body=body)
        seen.append(becomes(text))
    assert len(set(seen)) == 4


def test_the_network_is_tried_again_and_nothing_else(server, services, tmp_path):
    client, name = bucket(services), services.env["MECA_S3_BUCKET"]
    client.put_object(Bucket=name, Key="late/a.txt", Body=b"late")
    place = small(tmp_path / "workspace", origin=f"s3://{name}/late")

    def tries(run: dict[str, Any]) -> dict[str, int]:
        found = server.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        return {task["name"]: task["run_count"] for task in found}

    with ended(server.program(place, "flows.sanitize")) as flow:
        with services.stopped("s3"):
            run = until(lambda: server.of(place), 90)
            until(lambda: [task for task in server.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
                           if task["state"]["name"] == "AwaitingRetry"], 90)  # fmt: skip
        assert flow.wait(200) == 0, (place / "log").read_text()[-3000:]
    assert published(place)["input"] == "late"
    until(lambda: tries(run).get("report") == 1)
    assert tries(run)["first"] == 1
    assert next(count for task, count in tries(run).items() if task.startswith("fetch")) in (2, 3)


@pytest.mark.parametrize(("code", "count"), [(75, 2), (1, 1)])
def test_a_stage_is_tried_again_on_exit_code_75_alone(server, tmp_path, code, count):
    again = f"first_time = not Path('tried').exists(); Path('tried').touch(); first_time and sys.exit({code})"
    place = small(tmp_path / "workspace", again)
    with ended(server.program(place, "flows.sanitize")) as flow:
        run = until(lambda: server.of(place), 90)
        assert (flow.wait(150) == 0) == (code == 75)
    [task] = until(lambda: [task for task in server.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
                            if task["name"] == "first" and task["state_type"] in ("COMPLETED", "FAILED")])  # fmt: skip
    assert task["run_count"] == count


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_other_pools_are_installed_with_their_jobs(server, kind):
    try:
        server.deploy("--pool", kind, "--cron", "none", "--image", "registry.example/meca:1", MECA_WORKSPACE="/srv/work")
        pool = server.ask(f"work_pools/meca-{kind}", "GET")
        job = server.ask("deployments/name/sanitize/sanitize", "GET")
    finally:
        server.deploy("--cron", "none")
    assert pool["type"] == kind
    assert job["work_pool_name"] == pool["name"]
    assert job["job_variables"]["image"] == "registry.example/meca:1"
    assert job["job_variables"]["env"]["MECA_WORKSPACE"] == "/workspace"
    known = set(pool["base_job_template"]["variables"]["properties"])
    assert set(job["job_variables"]) <= known
    if kind == "docker":
        assert job["job_variables"]["volumes"] == ["/srv/work:/workspace", "meca-seals:/seals"]
    else:
        container = pool["base_job_template"]["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "meca", "optional": True}}]
        assert container["image"] == "{{ image }}"
