"""What the containers run, run here without containers: the same program, the same roles, real servers."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from infra import secrets
from infra.local import servers
from infra.local.place import Place
from infra.local.s3 import environment
from tests.services.conftest import ROOT, place
from tests.services.test_services import status_of

REDIS = shutil.which("redis-server") or shutil.which("valkey-server")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Team:
    """Containers of a team, as processes of this machine."""

    def __init__(self, folder, postgres):
        self.folder, self.ports = folder, {name: free_port() for name in ("redis", "s3", "mlflow", "prefect")}
        self.secrets = secrets.make(folder / "secrets")
        known = folder / "secrets" / "files" / "postgres"
        known.chmod(0o644)
        known.write_text(postgres.secrets["postgres"] + "\n")
        self.secrets["postgres"] = postgres.secrets["postgres"]
        self.env = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "MECA_STATE_DIR") if name in os.environ},
            "PYTHONPATH": str(ROOT),
            "MECA_SECRETS": str(folder / "secrets" / "files"),
            "MECA_POSTGRES": postgres.address("postgres"),
            "MECA_REDIS": f"127.0.0.1:{self.ports['redis']}",
            "MECA_S3": f"http://127.0.0.1:{self.ports['s3']}",
            "MECA_MLFLOW": f"http://127.0.0.1:{self.ports['mlflow']}",
            "MECA_PREFECT": f"http://127.0.0.1:{self.ports['prefect']}/api",
            "MECA_HOSTS": f"127.0.0.1:{self.ports['mlflow']}",
            "MECA_BIND": "127.0.0.1",
            "MECA_DATA_FOLDER": str(folder / "data"),
            "MECA_SWIFT": str(environment().parent),  # as in the image, where it is made beforehand
        }
        (folder / "data").mkdir()
        self.running = {}

    def environment(self, role):
        return {**self.env, "MECA_STATE": str(self.folder / f"state-{role}"), "MECA_PORT": str(self.ports.get(role, 1))}

    def start(self, role, *argv):
        with (self.folder / f"{role}.log").open("wb") as log:
            self.running[role] = subprocess.Popen(
                argv or [sys.executable, "-m", "infra.serve", role],
                env=self.environment(role),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE if argv else subprocess.DEVNULL,
            )
        return self.running[role]

    def wait(self, role, address):
        deadline = time.monotonic() + 240
        while not servers.answers(address):
            assert self.running[role].poll() is None and time.monotonic() < deadline, (self.folder / f"{role}.log").read_text()
            time.sleep(0.3)

    def once(self, *words):
        done = subprocess.run(
            [sys.executable, "-m", "infra.serve", *words], env=self.environment("once"), cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip().splitlines()[-1]

    def members(self):
        leaders = [psutil.Process(process.pid) for process in self.running.values() if process.poll() is None]
        return [each for leader in leaders for each in (leader, *leader.children(recursive=True))]

    def end(self):
        members = self.members()
        for process in self.running.values():
            process.terminate()
        psutil.wait_procs(members, 20)
        for member in members:
            if member.is_running():
                member.kill()
        for process in self.running.values():
            process.wait(20)


@pytest.fixture(scope="module")
def team():
    if REDIS is None:
        pytest.skip("Expected redis-server or valkey-server, found none; on Debian: apt install redis-server.")
    with place("meca-team-") as found:
        found.start("postgres")
        folder = found.folder / "team"
        folder.mkdir()
        team = Team(folder, Place.of(found.folder))
        try:
            redis = team.start("redis", REDIS, "-")
            redis.stdin.write(f"port {team.ports['redis']}\nbind 127.0.0.1\nrequirepass {team.secrets['redis']}\nsave ''\n".encode())
            redis.stdin.close()
            team.start("s3")
            team.wait("s3", f"{team.env['MECA_S3']}/healthcheck")
            assert [team.once("migrate") for _ in range(2)] == ["databases, tables and buckets are up to date"] * 2
            for role in ("mlflow", "prefect", "prefect-services"):
                team.start(role)
            team.wait("mlflow", f"{team.env['MECA_MLFLOW']}/health")
            team.wait("prefect", f"{team.env['MECA_PREFECT']}/ready")
            yield team
        finally:
            team.end()


def prefect(team, path, body):
    login = base64.b64encode(f"meca:{team.secrets['prefect']}".encode()).decode()
    request = urllib.request.Request(
        team.env["MECA_PREFECT"] + path, json.dumps(body).encode(), {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def test_a_client_beside_the_servers_records_and_fetches(team):
    program = """
import mlflow
with mlflow.start_run() as run:
    mlflow.log_text("kept", "note.txt")
print(mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt"))
"""
    assert team.once("run", sys.executable, "-c", program) == "kept"
    assert status_of(f"{team.env['MECA_MLFLOW']}/api/2.0/mlflow/experiments/search?max_results=1") == 401
    assert status_of(f"{team.env['MECA_PREFECT']}/flow_runs/filter", b"{}") == 401


def test_the_background_services_apart_schedule_what_the_api_was_told(team):
    flow = prefect(team, "/flows/", {"name": "nightly"})["id"]
    schedule = {"active": True, "schedule": {"cron": "0 3 * * *", "timezone": "UTC"}}
    deployment = prefect(team, "/deployments/", {"name": "nightly", "flow_id": flow, "schedules": [schedule]})["id"]
    deadline = time.monotonic() + 120
    # Only the services make runs out of a schedule; the API does not.
    while not (runs := prefect(team, "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})):
        assert team.running["prefect-services"].poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    assert {found["state_type"] for found in runs} == {"SCHEDULED"}
    assert "Traceback" not in (team.folder / "prefect-services.log").read_text()


def test_no_container_shows_a_secret_in_its_command_line_or_log(team):
    lines = [" ".join(member.cmdline()) for member in team.members()]
    assert len(lines) >= 9
    shown = [*lines, *(log.read_text(errors="replace") for log in team.folder.glob("*.log"))]
    assert not [text for text in shown if any(secret in text for secret in team.secrets.values())]


def test_a_missing_secret_is_named(team):
    done = subprocess.run(
        [sys.executable, "-m", "infra.serve", "mlflow"],
        env={**team.environment("none"), "MECA_SECRETS": str(team.folder / "nowhere")}, cwd=team.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 4
    assert "Expected the secret mlflow_database as a file in" in done.stderr


def test_the_s3_server_ends_whole_when_it_is_told_to_and_when_a_part_dies(team):
    def ended(leader, children):
        leader.wait(30)
        psutil.wait_procs(children, 20)
        return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)

    first = team.running["s3"]
    children = psutil.Process(first.pid).children()
    assert len(children) == 4
    first.terminate()
    assert ended(first, children) and first.returncode == 0
    second = team.start("s3")
    team.wait("s3", f"{team.env['MECA_S3']}/healthcheck")
    children = psutil.Process(second.pid).children()
    children[0].kill()
    assert ended(second, children) and second.returncode == 2
    team.start("s3")
    team.wait("s3", f"{team.env['MECA_S3']}/healthcheck")
    assert (
        team.once("run", sys.executable, "-c", "import boto3; print(boto3.client('s3').list_objects_v2(Bucket='mlflow')['KeyCount'] > 0)") == "True"
    )
