"""What `flows.deploy` puts on a real Prefect server, what is tried again, what is told, and what is closed."""

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest
import yaml

from tasks import environment
from tasks.workspace import ROOT

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
    assert set(deployments) == {"sanitize", "promote", "benchmark"}
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
    ("variables", "code", "told"),
    [({}, 4, "PREFECT_API_URL"), ({"PREFECT_API_URL": "http://me:canary-word@127.0.0.1:9/api"}, 2, "does not answer")],
)
def test_without_a_server_deploying_says_so(variables, code, told):
    done = program("flows.deploy", **variables)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "canary-word" not in done.stderr + done.stdout
