"""The whole pipeline with real DVC, real Prefect and real MLflow: what ran once does not run again, what failed is seen.

The tests share one workspace and run in the order of this file; each leaves it up to date.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from meca.errors import Inconclusive, MecaError, UsageError
from meca.files import read_json
from tasks import environment
from tasks.dvc import remote
from tasks.dvc.stage import Pipeline, StageFailed
from tasks.dvc.workspace import ROOT, create
from tasks.mlflow import registry, tracking
from tasks.mlflow.client import open_client
from tests.integration.conftest import quick_settings, run
from tests.integration.small import receiver

pytestmark = [pytest.mark.platform, pytest.mark.slow, pytest.mark.xdist_group("platform"), pytest.mark.filterwarnings("default")]

STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


def records(workspace: Path) -> list[tuple[str, str]]:
    """Return name and state of every MLflow run."""
    with sqlite3.connect(workspace / "mlflow.db") as database:
        return database.execute("select name, status from runs").fetchall()


def counts(workspace: Path) -> dict[str, int]:
    with sqlite3.connect(workspace / "mlflow.db") as database:
        tables = ("runs", "metrics", "params", "inputs", "logged_models", "model_versions")
        return {table: database.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}


def rerun(log: str) -> list[str]:
    return [line.split("'")[1] for line in log.splitlines() if line.startswith("Running stage")]


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    result = json.loads(done.stdout[done.stdout.index("{\n") :])
    return {name: stage["outcome"] for name, stage in result["stages"].items()}


def stale(workspace: Path) -> set[str]:
    pipeline = Pipeline(workspace)
    return {stage.name for stage in pipeline.stages if pipeline.is_stale(stage.name)}


def test_dvc_repro_runs_every_stage_once_and_then_none(workspace):
    assert sorted(rerun((workspace / "first.log").read_text())) == sorted(STAGES)
    assert rerun(run(workspace, "dvc", "repro").stdout) == []
    assert len(records(workspace)) == len(STAGES)  # a run per stage but `track`, and their parent
    assert {status for _, status in records(workspace)} == {"FINISHED"}


def test_the_record_of_a_run_says_what_its_control_found(workspace):
    with sqlite3.connect(workspace / "mlflow.db") as database:
        query = "select m.key, m.value, t.value from metrics m left join tags t on t.run_uuid = m.run_uuid and t.key = 'mlflow.parentRunId'"
        told = {key: value for key, value, parent in database.execute(query) if parent is None and key.startswith("control.")}
    assert told == {f"control.{name}": 0 for name in ("ran", "tries", "found", "learnt", "missed")}


def test_dvc_draws_every_curve_that_there_is_and_names_a_model_that_there_is(workspace):
    declared = yaml.safe_load((workspace / "dvc.yaml").read_text(encoding="utf-8"))
    plots = [name for entry in declared["plots"] for name in entry]
    drawn = json.loads(run(workspace, "dvc", "plots", "show", "--json").stdout)["data"]
    there = sorted(path.relative_to(workspace).as_posix() for path in (workspace / "work" / "track" / "curves").iterdir())
    assert sorted(name for name in plots if drawn[name]) == there, "a training that was not needed has no curve"
    assert (workspace / declared["artifacts"]["clean-model"]["path"]).is_file()


def test_the_flow_takes_its_order_from_dvc(workspace):
    pipeline = Pipeline(workspace)
    assert [stage.name for stage in pipeline.stages] == STAGES
    place = {stage.name: number for number, stage in enumerate(pipeline.stages)}
    assert all(place[above] < place[stage.name] for stage in pipeline.stages for above in stage.upstream)
    assert pipeline["split"].upstream == ("enhance", "partition", "poison")


def test_the_flow_against_a_server_finds_nothing_to_do(workspace, server):
    before = counts(workspace)
    for _ in range(2):
        assert set(outcomes(run(workspace, "flows.sanitize", PREFECT_API_URL=server)).values()) == {"unchanged"}
    assert rerun(run(workspace, "dvc", "repro").stdout) == []
    assert counts(workspace) == before


def test_the_server_has_the_runs_the_names_and_the_artifacts(workspace, server):
    import httpx

    verdict = read_json(workspace / "published" / "summary.json")["verdict"]
    runs = httpx.post(f"{server}/flow_runs/filter", json={}).json()
    assert runs and all(run["state_type"] == "COMPLETED" and run["name"].endswith(f"-{verdict}") for run in runs)
    tasks = httpx.post(f"{server}/task_runs/filter", json={}).json()
    assert {task["name"] for task in tasks} == set(STAGES)
    artifacts = httpx.post(f"{server}/artifacts/latest/filter", json={}).json()
    assert sorted(artifact["type"] for artifact in artifacts) == ["markdown", "markdown", "table"]  # a link is stored as text


def test_a_parameter_reruns_what_depends_on_it_and_nothing_else(workspace):
    text = (workspace / "params.yaml").read_text()
    tree = yaml.safe_load(text)
    try:
        tree["promote"]["min_acc"] = 0.1
        (workspace / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        assert stale(workspace) == set(), "no stage reads the gates"
        tree["report"]["kept_pictures"] += 1
        (workspace / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        assert stale(workspace) == {"report"}
        assert set(rerun(run(workspace, "dvc", "repro").stdout)) == {"report", "track"}
    finally:
        (workspace / "params.yaml").write_text(text)
    # Another result: a parent and a run for `report`; the other stages are told by the runs they have.
    assert len(records(workspace)) == len(STAGES) + 2
    pipeline = Pipeline(workspace)  # one, as in the flow
    result = {stage.name: pipeline.run(stage.name)["outcome"] for stage in pipeline.stages}
    assert {name for name, outcome in result.items() if outcome != "unchanged"} == {"report", "track"}
    assert result["report"] == "restored"  # DVC's own cache of runs
    assert len(records(workspace)) == len(STAGES) + 2


def test_changed_code_reruns_the_stages_that_import_it(workspace):
    file = workspace / "meca" / "stages" / "report.py"
    text = file.read_text()
    try:
        file.write_text(text + "# changed\n")
        assert stale(workspace) == {"report"}
    finally:
        file.write_text(text)
    assert stale(workspace) == set()


def test_recording_again_changes_nothing(workspace):
    before = counts(workspace)
    told = tracking.record(workspace)
    assert tracking.record(workspace) == told
    assert counts(workspace) == before


def test_two_that_record_into_a_fresh_database_make_one_set_of_runs(workspace, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    variables = {**environment.child_environment(), "MLFLOW_TRACKING_URI": uri}
    program = "from tasks.mlflow.tracking import record; record()"
    both = [
        subprocess.Popen([sys.executable, "-c", program], cwd=workspace, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(records(tmp_path)) == len(STAGES)


def test_a_half_logged_run_is_completed(workspace):
    told = tracking.record(workspace)
    before = counts(workspace)
    with sqlite3.connect(workspace / "mlflow.db") as database:
        stage, parent = told["runs"]["train_clean"], told["parent"]
        database.execute("delete from tags where key = 'meca.complete' and run_uuid in (?, ?)", (stage, parent))
        database.execute("delete from metrics where run_uuid = ? and rowid % 2", (stage,))
        database.execute("update runs set status = 'RUNNING', end_time = null where run_uuid in (?, ?)", (stage, parent))
    assert tracking.record(workspace) == told
    assert counts(workspace) == before
    assert {status for _, status in records(workspace)} == {"FINISHED"}


def test_a_run_has_parameters_curves_files_and_data_sets(workspace):
    told = tracking.record(workspace)
    summary = read_json(workspace / "published" / "summary.json")
    with open_client(workspace) as client:
        parent = client.get_run(told["parent"])
        stage = client.get_run(told["runs"]["train_clean"])
        assert stage.data.tags["mlflow.parentRunId"] in {found.info.run_id for found in client.search_runs(["1"])}
        assert parent.data.tags["meca.verdict"] == summary["verdict"]
        assert parent.data.tags["meca.run.train_clean"] == told["runs"]["train_clean"]
        assert parent.data.params["seed"] == "0"
        names = {file.path for file in client.list_artifacts(told["parent"])}
        assert {"verdicts.parquet", "summary.json", "manifest.json", "README.md", "report.html", "suspicion.svg"} <= names
        assert "curves.svg" in {file.path for file in client.list_artifacts(told["runs"]["train_clean"])}
        inputs = {}
        for given in parent.inputs.dataset_inputs:
            tags = {tag.key: tag.value for tag in given.tags}
            inputs[tags["mlflow.data.context"]] = tags["meca.dataset.sha256"]
        assert inputs == {"training": summary["input_sha256"], "output": summary["sanitized_sha256"]}
        curve = next(name for name in stage.data.metrics if "." in name and not name.startswith("seconds"))
        assert client.get_metric_history(stage.info.run_id, curve)


def test_the_model_loads_without_pickle_and_predicts_the_same(workspace, monkeypatch):
    import mlflow
    import numpy as np
    import torch

    from meca.models import load_model

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    told = tracking.record(workspace)
    with open_client(workspace):
        model = mlflow.pyfunc.load_model(told["models"]["relabel_finetune"])
    said = read_json(workspace / "work" / "relabel_finetune" / "model.json")
    images = np.random.default_rng(1).integers(0, 256, (4, said["height"], said["width"], said["channels"]), dtype=np.uint8)
    with torch.inference_mode():
        logits = load_model(workspace / "work" / "relabel_finetune")(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    given, names = model.predict(images), said["class_names"]
    assert given["label"].tolist() == logits.argmax(1).tolist() and list(given["class_name"]) == [names[label] for label in given["label"]]
    np.testing.assert_allclose(given["confidence"], logits.softmax(1).max(1).values.numpy(), rtol=1e-5)
    files = [file.suffix for file in (workspace / "mlruns").rglob("*") if file.is_file()]
    assert ".safetensors" in files
    assert not {".pkl", ".pickle", ".pt", ".pth", ".pt2", ".bin"} & set(files)


def test_a_lost_record_is_told_again(workspace):
    assert tracking.is_recorded(workspace)
    (workspace / "mlflow.db").rename(workspace / "away.db")
    try:
        assert not tracking.is_recorded(workspace)
    finally:
        (workspace / "away.db").rename(workspace / "mlflow.db")
    assert tracking.is_recorded(workspace)


def with_gates(workspace: Path, **gates):
    from meca.params import read_params, with_settings

    return with_settings(read_params(workspace / "params.yaml"), {f"promote.{name}": value for name, value in gates.items()})


def test_a_refusal_names_the_gate_and_the_distance(workspace):
    with pytest.raises(Inconclusive, match=r"below 1\.5 \[promote\.min_acc\]") as refusal:
        registry.promote(workspace, with_gates(workspace, min_acc=1.5))
    assert refusal.value.exit_code == 5
    assert counts(workspace)["model_versions"] == 0


def test_a_promotion_moves_the_alias_once(workspace):
    first = registry.promote(workspace)
    assert (first["version"], first["alias"], first["previous"], first["new"]) == ("1", "champion", None, True)
    again = registry.promote(workspace)
    assert (again["version"], again["new"], again["moved"]) == ("1", False, False)
    with open_client(workspace) as client:
        version = client.get_model_version_by_alias(first["model"], "champion")
        other = client.create_model_version(first["model"], version.source, version.run_id)
        client.set_registered_model_alias(first["model"], "champion", other.version)
        assert version.tags["meca.sanitized_sha256"] == read_json(workspace / "published" / "summary.json")["sanitized_sha256"]
    with pytest.raises(Inconclusive, match="was not registered by meca"):
        registry.promote(workspace)
    back = registry.promote(workspace, uncompared=True, why="somebody else's model")
    assert (back["version"], back["previous"], back["new"], back["moved"]) == ("1", str(other.version), False, True)
    with open_client(workspace) as client:
        assert str(client.get_model_version_by_alias(first["model"], "previous").version) == str(other.version)


def test_a_model_that_was_not_evaluated_is_not_promoted(workspace):
    file = workspace / "work" / "relabel_finetune" / "model.json"
    text = file.read_text()
    file.chmod(0o644)
    try:
        file.write_text(text + " ")
        with pytest.raises(MecaError, match="not the one that was evaluated"):
            registry.promote(workspace)
    finally:
        file.write_text(text)
    assert stale(workspace) == set()


def test_the_promotion_flow_exits_5_when_a_gate_does_not_hold(workspace, server):
    with receiver() as (address, notices):
        moved = json.loads(run(workspace, "flows.promote", PREFECT_API_URL=server, MECA_WEBHOOK=address).stdout)["moved"]
        text = (workspace / "params.yaml").read_text()
        try:
            tree = yaml.safe_load(text)
            tree["promote"]["min_acc"] = 1.5
            (workspace / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
            refused = run(workspace, "flows.promote", check=False, PREFECT_API_URL=server, MECA_WEBHOOK=address)
        finally:
            (workspace / "params.yaml").write_text(text)
    assert refused.returncode == 5
    assert "promote.min_acc" in refused.stderr
    assert [notice["event"] for notice in notices] == ["promoted"] * moved + ["refused"]
    assert "promote.min_acc" in notices[-1]["message"]


def test_what_was_pushed_comes_back_and_a_tampered_object_does_not(workspace, server, tmp_path):
    run(workspace, "flows.sanitize", "--push", PREFECT_API_URL=server)
    sent = sorted((workspace / "remote").rglob("*"))
    remote.push(workspace)
    assert sorted((workspace / "remote").rglob("*")) == sent
    clone = tmp_path / "one" / "two"
    create(clone, quick_settings())
    shutil.copy(workspace / "dvc.lock", clone)
    shutil.copytree(workspace / "remote", clone / "remote")
    remote.pull(clone)
    assert (clone / "published" / "summary.json").read_bytes() == (workspace / "published" / "summary.json").read_bytes()
    victim = max(
        (file for file in (clone / "remote" / "files").rglob("*") if file.is_file() and file.suffix != ".dir"), key=lambda file: file.stat().st_size
    )
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    for folder in ("data", "published", "work", "report", ".dvc/cache"):
        shutil.rmtree(clone / folder)
    with pytest.raises(MecaError, match="pull"):
        remote.pull(clone)


def failing(tmp_path: Path, body: str) -> Path:
    """Make a workspace of two stages of which the second runs `body`."""
    create(tmp_path, quick_settings(), code=False)
    (tmp_path / "program.py").write_text(f"import os, sys, time\nfrom pathlib import Path\n{body}\n")
    (tmp_path / "first.py").write_text("from pathlib import Path\nPath('a').write_text('a')\n")
    stages = {"first": {"cmd": "python first.py", "outs": ["a"]}, "second": {"cmd": "python program.py", "deps": ["a"], "outs": ["b"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    return tmp_path


def test_a_failing_stage_fails_the_flow_with_its_last_lines_and_code(tmp_path, server):
    place = failing(tmp_path, "print('the reason'); sys.exit(3)")
    done = run(place, "flows.sanitize", check=False, PREFECT_API_URL=server)
    assert done.returncode == 3
    assert "Stage second ended with exit code 3" in done.stderr
    assert "the reason" in done.stderr
    assert stale(place) == {"second"}


@pytest.mark.parametrize(
    "damage", [lambda text: text[: text.rindex("md5") + 2], lambda text: "", lambda text: "stages: 3\n"], ids=["cut", "empty", "other"]
)
def test_a_damaged_lock_is_named_with_the_command_that_mends_it(tmp_path, damage):
    place = failing(tmp_path, "Path('count').open('a').write('x'); Path('b').write_text('b')")
    assert "second" in run(place, "dvc", "repro").stdout
    (place / "dvc.lock").write_text(damage((place / "dvc.lock").read_text()))
    with pytest.raises(UsageError, match=r"dvc\.lock.*`git checkout -- dvc\.lock`.*`rm dvc\.lock`; what DVC's cache holds is not computed again\."):
        Pipeline(place)
    with pytest.raises(MecaError, match=r"dvc push failed.*`rm dvc\.lock`"):
        remote.push(place)
    (place / "dvc.lock").unlink()
    run(place, "dvc", "repro")
    assert (place / "count").read_text() == "x", "the second stage ran again"


@pytest.mark.parametrize(("code", "temporary"), [(75, True), (1, False), (2, False)])
def test_only_exit_code_75_is_worth_another_try(tmp_path, code, temporary):
    pipeline = Pipeline(failing(tmp_path, f"sys.exit({code})"))
    pipeline.run("first")
    with pytest.raises(StageFailed, match=f"exit code {code}") as failure:
        pipeline.run("second")
    assert failure.value.is_temporary is temporary


def started_by(workspace: Path) -> list[int]:
    """Return the processes that work in a workspace."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == workspace:
                found.append(process.pid)
        except psutil.Error:
            pass
    return found


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])  # DVC's choice; Debian's sh stays between DVC and the stage
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_flow_that_is_ended_leaves_nothing_running(tmp_path, server, signum, shell):
    place = failing(
        tmp_path, "from meca.stages.runtime import die_with_parent\ndie_with_parent()\nPath('started').touch()\ntime.sleep(120)"
    ).resolve()
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.sanitize"],
        cwd=place,
        env={**environment.child_environment(), "PREFECT_API_URL": server, "SHELL": shell},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (place / "started").exists():
            assert flow.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        assert len(started_by(place)) >= 3
        flow.send_signal(signum)
        assert flow.wait(30) != 0
        deadline = time.monotonic() + 10
        while started_by(place) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert started_by(place) == []
    finally:
        flow.kill()
        flow.wait()


def test_a_gpu_limit_of_this_host_lets_one_stage_in(server):
    program = """
import sys, time, threading
from tasks import environment
from tasks.prefect import slots
environment.prepare()
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
with get_client(sync_client=True) as client:
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=environment.gpu_limit(), limit=1))
inside, most = [], []
def work():
    with slots.gpu_slot():
        inside.append(1); most.append(len(inside)); time.sleep(0.5); inside.pop()
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print(most)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment.child_environment(), "PREFECT_API_URL": server},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split("\n")[-2] == "[1, 1]", done.stderr


def test_without_a_server_prefect_brings_its_own_and_takes_it_away(workspace):
    before = {process.pid for process in psutil.process_iter()}
    done = run(workspace, "flows.sanitize")
    assert set(outcomes(done).values()) == {"unchanged"}
    left = [
        process for process in psutil.process_iter(["cmdline"]) if process.pid not in before and "prefect" in " ".join(process.info["cmdline"] or [])
    ]
    assert left == []


def test_a_schedule_needs_a_server(workspace):
    refused = run(workspace, "flows.serve", "--cron", "0 3 * * *", check=False)
    assert refused.returncode == 4
    assert "PREFECT_API_URL" in refused.stderr


def test_a_schedule_is_a_deployment_with_a_cron_line(workspace, server):
    import httpx

    serving = subprocess.Popen(
        [sys.executable, "-m", "flows.serve", "--cron", "0 3 * * *"],
        cwd=workspace,
        env={**environment.child_environment(), "PREFECT_API_URL": server},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (found := httpx.post(f"{server}/deployments/filter", json={}).json()):
            assert serving.poll() is None and time.monotonic() < deadline
            time.sleep(0.3)
        assert found[0]["name"] == "sanitize"
        assert [schedule["schedule"]["cron"] for schedule in found[0]["schedules"]] == ["0 3 * * *"]
    finally:
        serving.terminate()
        try:
            serving.wait(30)
        except subprocess.TimeoutExpired:
            serving.kill()
            serving.wait()


TOGETHER = """
import sys, time
from pathlib import Path
Path(sys.argv[1] + ".started").touch()
for _ in range(600):  # each ends only when the other has begun
    if Path(sys.argv[2] + ".started").exists():
        Path(sys.argv[1]).write_text("x")
        break
    time.sleep(0.1)
else:
    sys.exit("the other one never began")
"""


def test_stages_side_by_side_do_not_wait_for_each_other(tmp_path):
    create(tmp_path, quick_settings(), code=False)
    (tmp_path / "program.py").write_text(TOGETHER)
    (tmp_path / "shared").write_text("x")
    stages = {one: {"cmd": f"python program.py {one} {other}", "deps": ["shared"], "outs": [one]} for one, other in ("ab", "ba")}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    pipeline = Pipeline(tmp_path)
    threads = [threading.Thread(target=pipeline.run, args=(name,)) for name in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stale(tmp_path) == set()
