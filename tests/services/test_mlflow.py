"""Record, promotion and serving against MLflow with a password, PostgreSQL behind it and its artifacts in S3."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.canary import hits
from meca.errors import Inconclusive
from meca.params import read_params
from tasks import environment
from tasks.mlflow import recorder, registry, result, serving, spool, tracking
from tasks.mlflow.client import open_client
from tests.workspaces import STAGES, finished

pytestmark = [pytest.mark.filterwarnings("default")]

seeds = itertools.count(int(time.time()) % 10**6 * 100)  # the servers outlive a test


@pytest.fixture
def make(services: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return what makes workspaces of an experiment and a registered model of this test's own, with MLflow's variables and no other."""
    environment.prepare()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):  # MLflow's server has them; its clients need none
        monkeypatch.delenv(name, raising=False)
    for name, value in services.env.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    name = f"test-{next(seeds)}"

    def workspace(**how: Any) -> Path:
        how = {"seed": next(seeds), "track.registered_model": name, "track.experiment": name, **how}
        return finished(tmp_path / str(how["seed"]), **how)

    return workspace


def tell(workspace: Path) -> dict[str, Any]:
    return tracking._tell(workspace, result.read_result(workspace))


def model_of(workspace: Path) -> str:
    return str(read_params(workspace / "params.yaml").raw("track")["registered_model"])


def states(workspace: Path) -> Counter[tuple[str, str]]:
    """Return how many runs there are by name and state."""
    with open_client(workspace) as client:
        found = client.get_experiment_by_name(model_of(workspace))
        return Counter((run.info.run_name.split("-")[0], run.info.status) for run in client.search_runs([found.experiment_id]))


def complete(workspace: Path, results: int = 1) -> None:
    """Assert that every run of every result is there, once and finished, with its files and its model."""
    found = states(workspace)
    assert sum(found.values()) == results * (len(STAGES) + 1) and {state for _, state in found} == {"FINISHED"}, found
    with open_client(workspace) as client:
        experiment = client.get_experiment_by_name(model_of(workspace)).experiment_id
        parents = [run for run in client.search_runs([experiment]) if "meca.result_key" in run.data.tags]
        assert len(parents) == len(client.search_logged_models([experiment])) == results
        for parent in parents:
            assert {"manifest.json", "report.html", "suspicion.svg"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}
            assert parent.data.tags["meca.complete"] == "true"


def aliases(workspace: Path) -> dict[str, str]:
    name = model_of(workspace)
    with open_client(workspace) as client:
        return {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}


def test_champion_challenger_rollback_and_a_clean_process_that_serves(make, services):
    first, worse, second = make(), make(confused=(2,)), make()
    registry.promote(first, why="first")
    with pytest.raises(Inconclusive, match=r"\[promote\.max_acc_drop\]"):
        registry.promote(worse)
    assert registry.promote(second, why="second")["champion"] == {"acc": 1.0, "min_recall": 1.0, "leak": None, "n": 30}
    assert aliases(first) == {"champion": "2", "previous": "1"}
    served = serving.check(first, model_of(first), "champion")
    assert served["version"] == "2" and served["sha256"] == registry.model_digest(second / "published" / "model")
    assert registry.rollback(first, why="back")["version"] == "1" and aliases(first) == {"champion": "1"}
    events = registry.history(second)
    assert [(event["action"], event["from"], event["to"], event["why"]) for event in events] == [
        ("promote", None, "1", "first"), ("promote", "1", "2", "second"), ("rollback", "2", "1", "back"),
    ]  # fmt: skip
    assert all(event["who"].startswith(services.env["MLFLOW_TRACKING_USERNAME"]) for event in events)
    for workspace in (first, worse, second):
        assert hits(workspace, {"password": services.env["MLFLOW_TRACKING_PASSWORD"]}) == []


def test_two_machines_that_promote_at_once_end_consistent(make):
    """The lock lies in the workspace: between machines there is none, and these two see each other only through the server."""
    places = [make() for _ in range(2)]
    program = "from flows.cli import main; main()"
    command = [sys.executable, "-c", program, "promote", "--json"]
    both = [subprocess.Popen([*command, str(w)], env=environment.child_environment(), stdout=-1, stderr=-1, text=True) for w in places]
    said = [process.communicate(timeout=300) for process in both]
    codes = [process.returncode for process in both]
    assert set(codes) <= {0, 2} and 0 in codes, said
    now, events = aliases(places[0]), registry.history(places[0])
    winner = json.loads(said[codes.index(0)][0])
    if codes == [0, 0]:
        assert len(events) == 2 and events[-1]["to"] == now["champion"]
    else:
        assert "moved by somebody else" in said[codes.index(2)][1] and now["champion"] == winner["version"] == events[-1]["to"]
    assert all(registry.fetch_alias(places[0], model_of(places[0]), alias, places[0].parent / alias) for alias in now)


def test_a_wrong_password_costs_nothing_but_the_record(make, monkeypatch, services, capfd):
    workspace = make()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary91wrong")
    assert tell(workspace)["told"] is False
    said = capfd.readouterr().err
    assert "MLFLOW_TRACKING_USERNAME" in said and "canary91wrong" not in said and hits(workspace, {"password": "canary91wrong"}) == []
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", services.env["MLFLOW_TRACKING_PASSWORD"])
    assert "told" not in tell(workspace)
    complete(workspace)


@pytest.mark.parametrize("name", ["mlflow", "postgres", "s3"])
def test_a_service_that_is_away_costs_nothing_but_the_record(name, make, services, capfd):
    earlier, workspace = make(), make()
    tell(earlier)
    with services.stopped(name):
        started = time.monotonic()
        assert tell(workspace)["told"] is False
        assert time.monotonic() - started < 90
        assert len(spool.untold(workspace)) == 1
    assert "MLflow was not told; kept in" in capfd.readouterr().err
    assert "told" not in tell(workspace) and spool.untold(workspace) == []
    complete(workspace, 2)


def test_a_server_that_hangs_is_given_up_and_told_once_when_it_comes_back(make, services):
    workspace = make()
    with services.paused("mlflow"):
        started = time.monotonic()
        assert tell(workspace)["told"] is False
        assert time.monotonic() - started < 60
    assert tracking.replay(workspace) == 1
    complete(workspace)


@pytest.mark.parametrize("after", [1, 3])
def test_a_server_that_dies_in_the_middle_is_told_the_rest(after, make, services, monkeypatch):
    workspace = make()
    running = threading.Event()
    real, count = recorder.Recorder._run, itertools.count(1)

    def dies(self: Any, *arguments: Any, **options: Any) -> Any:
        found = real(self, *arguments, **options)
        if next(count) == after:
            services.kill("mlflow")
            running.set()
        return found

    monkeypatch.setattr(recorder.Recorder, "_run", dies)
    assert tell(workspace)["told"] is False and running.is_set()
    monkeypatch.setattr(recorder.Recorder, "_run", real)
    services.start("mlflow")
    assert "told" not in tell(workspace)
    complete(workspace)


def test_a_recording_process_that_is_killed_is_continued(make):
    workspace = make()
    program = "import os, signal; from tasks.mlflow import tracking; old = tracking._Recorder._model; " \
        "tracking._Recorder._model = lambda *a: (old(*a), os.kill(os.getpid(), signal.SIGKILL)); tracking.record()"  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", program], cwd=workspace, env=environment.child_environment(), capture_output=True, timeout=200)
    assert killed.returncode == -9 and any(state == "RUNNING" for _, state in states(workspace))
    tracking.record(workspace)
    complete(workspace)
