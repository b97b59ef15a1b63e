"""A run ends well whatever MLflow does; what it was not told is kept, and told later without anything being there twice."""

import errno
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.canary import hits
from flows import cli
from meca.errors import UsageError
from tasks import environment
from tasks.mlflow import client, recorder, result, spool, tracking
from tasks.mlflow.client import open_client
from tests.proxy import Fault, proxy
from tests.workspaces import STAGES, finished, receipt_of

pytestmark = [pytest.mark.platform, pytest.mark.filterwarnings("default")]

SECRET = "canary0f4b1e6a"
seeds = itertools.count(500)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    environment.prepare()
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str) -> Iterator[Path]:
    environment.prepare()
    for name, value in (("MAX_RETRIES", "1"), ("BACKOFF_FACTOR", "0"), ("BACKOFF_JITTER", "0"), ("TIMEOUT", "2")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    yield finished(tmp_path / "w", seed=next(seeds), **{"track.experiment": tmp_path.name})


def tell(workspace: Path) -> dict[str, Any]:
    return tracking._tell(workspace, result.read_result(workspace))


def runs(workspace: Path, state: str = "") -> list[Any]:
    """Return the runs of the workspace's experiment."""
    with open_client(workspace) as client:
        found = client.get_experiment_by_name(workspace.parent.name)
        return list(client.search_runs([found.experiment_id], f"attributes.status = '{state}'" if state else "")) if found else []


def answer(status: str, body: bytes = b"") -> Fault:
    return Fault(
        answer=b"HTTP/1.1 %b\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status.encode(), len(body), body)
    )


FAULTS = {
    "refuses the password": answer("401 Unauthorized", b"You are not authenticated."),
    "forbids": answer("403 Forbidden"),
    "finds it too large": answer("413 Request Entity Too Large", b"<html>nginx</html>"),
    "fails": answer("500 Internal Server Error"),
    "is busy": answer("503 Service Unavailable"),
    "is another program": answer("200 OK", b"<html>Welcome!</html>"),
    "breaks off": Fault(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"),
    "hangs up": Fault(answer=b""),
    "is slow": Fault(delay=5.0, answer=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_does_not_take_it_costs_nothing_but_the_record(fault, workspace, database, monkeypatch, capfd):
    with proxy(("127.0.0.1", 9)) as between:
        between.faults = [FAULTS[fault]] * 1000
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:{between.port}")
        started = time.monotonic()
        told = tell(workspace)
        assert time.monotonic() - started < 60, "it waited for what never answers"
        assert told["told"] is False and not tracking.is_recorded(workspace)
    said = capfd.readouterr().err
    assert "told by the next run" in said and SECRET not in said and SECRET not in json.dumps(told) and hits(workspace, {"password": SECRET}) == []
    if fault in ("refuses the password", "forbids"):
        assert "MLFLOW_TRACKING_USERNAME" in said
    (kept,) = spool.untold(workspace)
    tell_again = tell  # the same result, still untold: nothing is kept twice
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tell_again(workspace)["told"] is False and spool.untold(workspace) == [kept]


def test_what_was_kept_is_told_once_also_when_the_files_are_others_by_now(workspace, database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tell(workspace)["told"] is False
    before = time.time()
    later = finished(workspace.parent / "w2", seed=next(seeds), confused=(2,), **{"track.experiment": workspace.parent.name})
    first = json.loads((workspace / "work/evaluate/evaluation.json").read_text())["final"]["acc"]
    for name in ("work", "published", "report", "data"):  # the next run writes over all of it
        (workspace / name).rename(workspace.parent / f"old-{name}")
        (later / name).rename(workspace / name)
    assert tell(workspace)["told"] is False and len(spool.untold(workspace)) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    time.sleep(1.1)
    assert "told" not in tell(workspace) and spool.untold(workspace) == []
    found = runs(workspace)
    parents = [run for run in found if "meca.result_key" in run.data.tags]
    assert len(found) == 2 * (len(STAGES) + 1) and {run.info.status for run in found} == {"FINISHED"}
    assert sorted(run.data.metrics["acc"] for run in parents) == [pytest.approx(2 / 3), first]
    old = next(run for run in parents if run.data.metrics["acc"] == first)
    assert old.info.end_time / 1000 < before + 1, "it ended when it was kept, not when it was told"
    with open_client(workspace) as client:
        assert {"report.html", "manifest.json", "verdicts.parquet", "suspicion.svg"} <= {f.path for f in client.list_artifacts(old.info.run_id)}
        assert len(client.search_logged_models([old.info.experiment_id])) == 2
    tell(workspace)
    assert len(runs(workspace)) == len(found)


def test_a_stage_that_cannot_tell_ends_well_and_the_command_tells_it(workspace, database, capsys):
    def track(**variables: str) -> subprocess.CompletedProcess[str]:
        program = ["-m", "tasks.dvc.stage", "track", "--force"]
        return subprocess.run(
            [sys.executable, *program], cwd=workspace, env=environment.child_environment() | variables, capture_output=True, text=True
        )

    gone = track(MLFLOW_TRACKING_URI=f"http://me:{SECRET}@127.0.0.1:1")
    assert (
        gone.returncode == 0 and "MLflow was not told; kept in .meca/spool" in gone.stdout + gone.stderr and SECRET not in gone.stdout + gone.stderr
    )
    record = json.loads((workspace / "work/track/track.json").read_text())
    assert record["told"] is False and record["uri"] == "http://127.0.0.1:1" and (workspace / "work/track/curves/relabel_finetune.csv").is_file()
    assert cli.run(["track", str(workspace), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recorded": True, "told": 1, "left": 0}
    assert tracking.is_recorded(workspace) and len(runs(workspace, "FINISHED")) == len(STAGES) + 1
    assert cli.run(["track", str(workspace)]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        assert cli.run(["track", str(workspace)]) == 2 and "1 results are still kept" in capsys.readouterr().err


def test_a_request_that_was_obeyed_twice_leaves_one_run(workspace):
    told = tracking.record(workspace)
    by_id = {run.info.run_id: run for run in runs(workspace)}
    with open_client(workspace) as client:
        copies = []
        for run in (by_id[told["parent"]], by_id[told["runs"]["evaluate"]]):
            tags = {key: value for key, value in run.data.tags.items() if key != "meca.complete"}
            copies.append(client.create_run(run.info.experiment_id, start_time=run.info.start_time, tags=tags).info.run_id)
            copies.append(client.create_run(run.info.experiment_id, start_time=1, tags=tags | {"meca.workspace": "another"}).info.run_id)
    assert tracking.record(workspace) == told
    left = {run.info.run_id for run in runs(workspace)} - set(by_id)
    assert left == {copies[1], copies[3]}, "those of another workspace are not ours to remove"


def test_what_a_killed_process_left_open_is_closed(workspace):
    told = tracking.record(workspace)
    experiment = runs(workspace)[0].info.experiment_id
    with open_client(workspace) as client:
        tags = {"meca.workspace": recorder.owner_of(workspace), "meca.stage_key": "of other parameters"}
        mine = client.create_run(experiment, tags=tags).info.run_id
        theirs = client.create_run(experiment, tags={"meca.workspace": "another"}).info.run_id
        client.update_run(told["parent"], status="RUNNING")  # killed between its last two calls
    tracking.record(workspace)
    states = {run.info.run_id: run.info.status for run in runs(workspace)}
    assert (states[mine], states[theirs], states[told["parent"]]) == ("KILLED", "RUNNING", "FINISHED")


def test_the_manifest_is_uploaded_last(workspace, monkeypatch):
    from mlflow.tracking import MlflowClient  # two seconds, which a worker that only collects does without

    uploaded: list[str] = []
    log = MlflowClient.log_artifact

    def fails_at_the_manifest(self: Any, run_id: str, path: str, *more: Any) -> None:
        uploaded.append(Path(path).name)
        if Path(path).name == "manifest.json":
            raise ConnectionError(errno.ECONNRESET, "reset")
        log(self, run_id, path, *more)

    monkeypatch.setattr(MlflowClient, "log_artifact", fails_at_the_manifest)
    with pytest.raises(client.TrackingUnavailable, match="reset"):
        tracking.record(workspace)
    assert uploaded[-1] == "manifest.json" and {"report.html", "verdicts.parquet", "summary.json", "suspicion.svg"} <= set(uploaded)
    (open_,) = runs(workspace, "RUNNING")
    assert "meca.complete" not in open_.data.tags
    monkeypatch.undo()


def test_neither_a_full_disk_nor_the_clock_breaks_a_run(workspace, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr("shutil.copyfile", full)
    assert tell(workspace)["told"] is False and "not kept either (No space left on device)" in capsys.readouterr().err
    assert spool.untold(workspace) == []
    monkeypatch.undo()
    monkeypatch.setenv("MECA_TRACKING_SECONDS", "0.01")
    with pytest.raises(client.TrackingUnavailable, match="MECA_TRACKING_SECONDS"):
        tracking.record(workspace, seconds=client.patience())
    assert client.patience() == 0.01
    monkeypatch.setenv("MECA_TRACKING_SECONDS", "soon")
    with pytest.raises(UsageError, match="'soon'"):
        client.patience()
    monkeypatch.setenv("MECA_TRACKING_SECONDS", "0")
    assert client.patience() is None and os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]


def test_no_address_keeps_its_password_in_a_message_or_in_the_spool(workspace):
    address = f"http://meca:{SECRET}@127.0.0.1/api?token={SECRET}"
    with pytest.raises(client.TrackingUnavailable) as refused, client.explained(address):
        raise OSError(f"no route to {address}")
    folder = spool.spool(workspace, result.read_result(workspace), f"{refused.value}; {address}")
    assert "http://127.0.0.1/api" in str(refused.value) and SECRET not in str(refused.value)
    assert hits(folder, {"password": SECRET}) == []


def test_a_result_is_kept_once_with_the_time_of_the_first_try(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    tell(workspace)
    [folder] = spool.untold(workspace)
    kept = (folder / spool.SPOOLED).read_bytes()
    tell(workspace)
    assert spool.untold(workspace) == [folder] and (folder / spool.SPOOLED).read_bytes() == kept


def test_what_cannot_be_told_now_either_is_kept_and_said(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    tell(workspace)
    with pytest.raises(client.TrackingUnavailable):
        tracking.replay(workspace)
    assert len(spool.untold(workspace)) == 1


def test_a_server_that_answers_slowly_is_given_up_at_the_deadline(workspace):
    with pytest.raises(client.TrackingUnavailable, match=r"within -1 s \(MECA_TRACKING_SECONDS\)"):
        tracking.record(workspace, seconds=-1)
    assert runs(workspace) == [], "a call went out after the deadline"


def test_every_file_is_uploaded_with_the_time_of_its_size(workspace, monkeypatch):
    real, sizes = client.time_for, []
    monkeypatch.setattr(recorder, "time_for", lambda size: (sizes.append(size), real(size))[1])
    tell(workspace)
    files = [*(workspace / "published" / name for name in result.PARENT_FILES), workspace / "report" / "report.html"]
    wanted = [file.stat().st_size for file in files if file.is_file()]
    assert wanted and not set(wanted) - set(sizes)


def test_an_upload_has_the_time_that_its_size_needs(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with client.time_for(100 * 2**20):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "110"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "500")
    with client.time_for(2**20):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "500"


def kept(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let MLflow be away, and return the folder of what it was not told."""
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        tell(workspace)
    [folder] = spool.untold(workspace)
    return folder


@pytest.mark.parametrize("how", ["of a supplier", "other figures", "other places", "another file", "copied", "a link in it"])
def test_what_somebody_else_put_into_the_spool_is_not_told(workspace, monkeypatch, capsys, how):
    """It would be told with the user's password; and `places` could name any file of the user's."""
    folder = kept(workspace, monkeypatch)
    if how == "of a supplier":
        monkeypatch.setenv("MECA_STATE_DIR", str(workspace.parent / "another"))
    elif how == "other figures":
        record = json.loads((folder / receipt_of("evaluate")).read_text())
        (folder / receipt_of("evaluate")).write_text(json.dumps({**record, "metrics": {"acc": 0.123}}))
    elif how == "other places":
        record = json.loads((folder / spool.SPOOLED).read_text())
        record["places"]["report"] = "../../../../etc"
        (folder / spool.SPOOLED).write_text(json.dumps(record))
    elif how == "another file":
        (folder / "published" / "more").write_text("x")
    elif how == "copied":
        folder.rename(folder.with_name("0" * 24))
        folder = folder.with_name("0" * 24)
    else:
        (folder / "published" / "link").symlink_to("/etc")
    assert spool.untold(workspace) == [] and tracking.replay(workspace) == 0 and runs(workspace) == []
    assert f"{folder} was not written by this user's meca, so MLflow is not told of it; remove it." in capsys.readouterr().err
    assert folder.is_dir(), "it may be somebody's"


def test_what_was_kept_is_told_from_where_the_workspace_lies_now(workspace, monkeypatch):
    kept(workspace, monkeypatch)
    moved = workspace.rename(workspace.parent / "moved")
    assert len(spool.untold(moved)) == 1 and tracking.replay(moved) == 1 and len(runs(moved)) == len(STAGES) + 1
    assert list((moved / spool.SPOOL).iterdir()) == []


@pytest.mark.parametrize("name", [".meca", ".meca/spool", ".meca/locks"])
def test_a_link_where_the_spool_lies_is_refused(workspace, monkeypatch, name):
    mine = workspace.parent / "mine"
    mine.mkdir()
    (workspace / name).parent.mkdir(exist_ok=True)
    (workspace / name).symlink_to(mine)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match=rf"{name} is a link, which meca does not follow"):
        tracking.replay(workspace) if name == ".meca/locks" else spool.spool(workspace, result.read_result(workspace), "away")
    assert list(mine.iterdir()) == []
