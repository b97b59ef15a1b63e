"""What `flows.deploy` puts on a real Prefect server, what is tried again, what is told, and what is closed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tasks import environment
from tasks.dvc.workspace import ROOT
from tasks.prefect import dead_runs, notify
from tests.integration.small import receiver, small, until

pytestmark = [pytest.mark.platform, pytest.mark.slow, pytest.mark.xdist_group("platform"), pytest.mark.filterwarnings("default")]


def program(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` at the root of the project."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**environment.child_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=200,
    )


def found(server: str, what: str, **query: Any) -> list[dict[str, Any]]:
    return httpx.post(f"{server}/{what}/filter", json=query).raise_for_status().json()


def installed(server: str) -> dict[str, list[tuple[str, str, str]]]:
    """Return id and time of the last change of what was installed, but for what Prefect's own command makes anew."""
    kinds = ("work_pools", "deployments", "automations", "v2/concurrency_limits")
    everything = {kind: {item["name"]: item for item in found(server, kind)} for kind in kinds}
    own = {kind: sorted((name, item["id"], "") for name, item in items.items()) for kind, items in everything.items()}
    own["automations"] = sorted((name, item["id"], item["updated"]) for name, item in everything["automations"].items() if name.startswith("meca: "))
    return own


def test_everything_is_installed_once_and_a_second_time_changes_nothing(server):
    options = ("--cron", "15 2 * * *", "--gpu", "3", "--promote")
    variables = {"PREFECT_API_URL": server, "MECA_WEBHOOK": "http://127.0.0.1:9/hook?token=canary-token", "MECA_GPU_LIMIT": "gpu:of-a-test"}
    done = program("flows.deploy", *options, **variables)
    assert done.returncode == 0, done.stderr
    assert "deployment sanitize/sanitize, at 15 2 * * * UTC" in done.stdout
    deployments = {item["name"]: item for item in found(server, "deployments")}
    assert set(deployments) == {"sanitize", "watch", "promote", "benchmark"}
    for item in deployments.values():
        assert item["work_pool_name"] == "meca"
        assert item["tags"] == ["meca"]
        assert item["global_concurrency_limit"]["limit"] == 1
        assert item["pull_steps"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $MECA_WORKSPACE }}"}}]
    assert [s["schedule"]["cron"] for s in deployments["sanitize"]["schedules"] if s["active"]] == ["15 2 * * *"]
    assert not any(s["active"] for s in deployments["benchmark"]["schedules"])
    limits = {item["name"]: item["limit"] for item in found(server, "v2/concurrency_limits")}
    assert limits["gpu:of-a-test"] == 3
    automations = {item["name"]: item for item in found(server, "automations")}
    assert automations["meca promote after sanitize"]["enabled"]
    crashed = automations["meca: a run without a sign of life has crashed"]
    assert (crashed["trigger"]["posture"], crashed["trigger"]["within"]) == ("Proactive", 120.0)
    assert [(action["type"], action["state"], action["force"]) for action in crashed["actions"]] == [("change-flow-run-state", "CRASHED", False)]
    assert "canary-token" not in json.dumps(found(server, "block_documents"))
    before = installed(server)
    assert program("flows.deploy", *options, **variables).returncode == 0
    assert installed(server) == before


def test_the_environment_of_a_run_is_set_before_prefect_is_imported():
    pools = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text(encoding="utf-8"))["work_pools"]
    wanted = {name: value for name, value in environment.DEFAULTS.items() if name in ("DO_NOT_TRACK", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY")}
    assert len(wanted) == 2
    for pool in pools.values():
        assert wanted.items() <= pool["job_variables"]["env"].items()


@pytest.mark.parametrize(
    ("name", "variables", "code", "told"),
    [
        ("flows.deploy", {}, 4, "PREFECT_API_URL"),
        ("flows.watch", {}, 4, "PREFECT_API_URL"),
        ("flows.deploy", {"PREFECT_API_URL": "http://me:canary-word@127.0.0.1:9/api"}, 2, "does not answer"),
    ],
)
def test_without_a_server_it_says_so(name, variables, code, told):
    done = program(name, **variables)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "canary-word" not in done.stderr + done.stdout


def start(workspace: Path, server: str, **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.sanitize"],
        cwd=workspace,
        env={**environment.child_environment(), "PREFECT_API_URL": server, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )


def test_doctor_closes_the_run_of_a_dead_process_and_no_other(server, tmp_path, monkeypatch):
    dead, alive = (small(tmp_path / name, "Path('started').touch(); time.sleep(120)") for name in ("dead", "alive"))
    flows = [start(place, server) for place in (dead, alive)]
    try:
        until(lambda: (dead / "started").exists() and (alive / "started").exists())

        def running() -> list[tuple[str, str]]:
            runs = found(server, "flow_runs", flow_runs={"state": {"type": {"any_": ["RUNNING"]}}})
            return sorted((run["labels"]["meca.process"].split("/")[-2], run["id"]) for run in runs)

        assert sorted(pid for pid, _ in running()) == sorted(str(flow.pid) for flow in flows)
        flows[0].kill()
        flows[0].wait()
        ids = dict(running())
        done = program("tasks.prefect.dead_runs", PREFECT_API_URL=server)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == 1
        assert [pid for pid, _ in running()] == [str(flows[1].pid)]
        state = httpx.get(f"{server}/flow_runs/{ids[str(flows[0].pid)]}").json()
        assert (state["state_type"], state["state"]["message"]) == ("CRASHED", dead_runs.MESSAGE)
        tasks = found(server, "task_runs", flow_runs={"id": {"any_": [state["id"]]}})
        assert {task["state_type"] for task in tasks} <= {"CRASHED", "COMPLETED"}
        assert json.loads(program("tasks.prefect.dead_runs", PREFECT_API_URL=server).stdout) == []
    finally:
        for flow in flows:
            flow.kill()
            flow.wait()
    monkeypatch.setenv("PREFECT_API_URL", server)
    assert dead_runs.examine() == (True, "1 closed whose process on this host was dead: shapes-badnet")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    ok, told = dead_runs.examine()
    assert (ok, "does not answer" in told) == (False, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda host, boot, space, pid, started: ("elsewhere", boot, space, pid, "1"),
        lambda host, boot, space, pid, started: (host, boot, "1", pid, "1"),
        lambda host, boot, space, pid, started: (host, boot, space, pid, "?"),
        lambda host, boot, space, pid, started: (host, boot, space, pid, started),
        lambda *_: ("",),
        lambda *_: ("a/b",),
    ],
    ids=["another host", "another container", "unknown", "alive", "none", "broken"],
)
def test_what_may_live_is_not_dead(change):
    assert not dead_runs.is_dead("/".join(change(*dead_runs.identity().split("/"))))


def test_what_is_gone_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = dead_runs.identity(child.pid)
    assert not dead_runs.is_dead(name)
    child.kill()
    until(lambda: dead_runs.is_dead(name), 10)  # before anybody has waited for it
    child.communicate()
    assert dead_runs.is_dead(name)
    host, _, space, pid, started = dead_runs.identity().split("/")
    assert dead_runs.is_dead("/".join([host, "another-boot", space, pid, started]))
    assert dead_runs.is_dead("/".join([host, dead_runs.identity().split("/")[1], space, pid, "1"])), "a later process of that number"


def test_a_verdict_that_decides_nothing_is_told_and_the_run_completes(server, tmp_path):
    place = small(tmp_path / "undecided", verdict="inconclusive", sentence="No answer can be defended.")
    with receiver() as (address, notices):
        flow = start(place, server, MECA_WEBHOOK=address)
        assert flow.wait(120) == 0
    [notice] = notices
    assert (notice["event"], notice["flow"], notice["message"]) == ("inconclusive", "sanitize", "No answer can be defended.")


def test_a_failed_run_is_told_through_the_address_that_the_server_keeps(server, tmp_path):
    place = small(tmp_path / "failing", "print('the reason, canary-word'); sys.exit(3)")
    program_text = "import sys; from flows import deploy; from tasks import environment; environment.prepare(); deploy._block(sys.argv[1])"
    with receiver() as (address, notices):
        env = {**environment.child_environment(), "PREFECT_API_URL": server}
        subprocess.run([sys.executable, "-c", program_text, address], cwd=ROOT, env=env, check=True, timeout=100)
        flow = start(place, server, SOME_PASSWORD="canary-word")
        assert flow.wait(120) == 3
    [notice] = notices
    assert notice["event"] == "failed"
    assert "Stage first ended with exit code 3" in notice["message"]
    assert "the reason, ***" in notice["message"]


def test_a_run_that_was_taken_for_dead_still_ends_as_what_it_was(server, tmp_path):
    place = small(tmp_path / "slow", "Path('started').touch(); time.sleep(4)")
    flow = start(place, server)
    until((place / "started").exists)
    [run] = [r for r in found(server, "flow_runs") if r["labels"].get("meca.process", "/").split("/")[-2] == str(flow.pid)]
    httpx.post(f"{server}/flow_runs/{run['id']}/set_state", json={"state": {"type": "CRASHED"}}).raise_for_status()
    assert httpx.get(f"{server}/flow_runs/{run['id']}").json()["state_type"] == "CRASHED"
    assert flow.wait(120) == 0
    assert httpx.get(f"{server}/flow_runs/{run['id']}").json()["state_type"] == "COMPLETED"


def test_every_flow_says_where_it_runs_and_tells_of_its_failure():
    from flows.benchmark import benchmark
    from flows.promote import promote
    from flows.sanitize import sanitize
    from flows.watch import watch

    for each in (sanitize, promote, benchmark, watch):
        assert each.on_running_hooks == [dead_runs.mark]
        assert (each.on_failure_hooks, each.on_crashed_hooks) == ([notify.failed], [notify.crashed])
    for each in (sanitize, promote):
        assert each.on_completion_hooks == [notify.completed]
