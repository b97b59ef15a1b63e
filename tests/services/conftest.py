"""Real servers for the tests of this folder: PostgreSQL, S3 (Swift), MLflow, Prefect, started once per session by infra/local.

The fixture `services` gives

    services.env               variables for a child process or `monkeypatch`: MLFLOW_TRACKING_URI, _USERNAME, _PASSWORD,
                               PREFECT_API_URL, PREFECT_API_AUTH_STRING, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …,
                               MECA_S3_BUCKET, MECA_REMOTE_URL
    services.folder            where they live: logs/, secrets.json, …
    services.restart(name)     and stop, start: `postgres`, `s3`, `mlflow`, `prefect`; ports and data stay
    services.kill(name)        SIGKILL to every process of it, as a crash
    services.pause(name)       SIGSTOP to every process of it; resume(name)
    services.status()          {name: "answers" | "no answer" | "paused" | "half" | "stopped"}

A test that stops or pauses something brings it back itself (`with services.paused(name):`, `with services.stopped(name):`);
the fixture does it for those that fail before. Nothing is put into this process's own environment.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.local import postgres, process
from meca.errors import MecaError

ROOT = Path(__file__).resolve().parents[2]


class Services:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env: dict[str, str] = {}

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `python -m infra.local …` on this place, as a user would."""
        done = subprocess.run(
            [sys.executable, "-m", "infra.local", "--folder", str(self.folder), *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert not check or done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *names: str) -> str:
        told = self.command("start", *names, "--free-ports").stdout
        self.env = json.loads(self.command("env", "--json").stdout)
        return told

    def stop(self, *names: str) -> None:
        self.command("stop", *names)

    def restart(self, *names: str) -> None:
        self.command("restart", *names, "--free-ports")

    def pause(self, *names: str) -> None:
        self.command("pause", *names)

    def resume(self, *names: str) -> None:
        self.command("resume", *names)

    def kill(self, name: str) -> None:
        for program in Path(self.folder / "run").glob(f"{name}*.json"):
            for member in process.members(self.folder, program.stem):
                with contextlib.suppress(psutil.Error):
                    member.kill()
                    member.wait(10)

    def status(self) -> dict[str, str]:
        return {line["service"]: line["state"] for line in json.loads(self.command("status", "--json", check=False).stdout)}

    @contextlib.contextmanager
    def paused(self, *names: str) -> Iterator[None]:
        self.pause(*names)
        try:
            yield
        finally:
            self.resume(*names)

    @contextlib.contextmanager
    def stopped(self, *names: str) -> Iterator[None]:
        self.stop(*names)
        try:
            yield
        finally:
            self.start(*names)


def missing() -> str:
    """Return why the services cannot run here, or nothing."""
    try:
        postgres.find()
    except MecaError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def place(prefix: str) -> Iterator[Services]:
    """Give a folder for services whose processes end with the block, and with this process however it ends."""
    if why := missing():
        # `make integration` promises that these tests ran.
        (pytest.fail if os.environ.get("MECA_SERVICES_TESTS") else pytest.skip)(why)
    # Not below pytest's own folder: it is closed to others, and PostgreSQL runs as another user when we are root.
    folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    folder.chmod(0o755)
    guard = subprocess.Popen([sys.executable, "-m", "tests.services.guard", str(folder)], cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield Services(folder)
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(120)
        left = [member.cmdline() for member in process.members(folder)]
        shutil.rmtree(folder, ignore_errors=True)
        assert left == []


@pytest.fixture(scope="session")
def running() -> Iterator[Services]:
    with place("meca-services-") as found:
        found.start()
        yield found


@pytest.fixture
def services(running: Services) -> Iterator[Services]:
    yield running
    if set(running.status().values()) != {"answers"}:  # the test failed halfway
        running.resume()
        running.start()
