"""A look at the bucket: when it differs from what the workspace last fetched, the sanitize deployment is started, once.

    python -m flows.watch        in a workspace; installed as a deployment by `python -m flows.deploy --watch MINUTES`

One listing is compared with the record of the last fetch, and no object is read. The run that is started carries a key of
the difference, so that the server starts one run for one change, however often it is seen.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from tasks import environment

environment.prepare()  # before the first import of Prefect, which reads its settings then

from prefect import flow, get_run_logger, tags, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.deployments import run_deployment  # noqa: E402
from prefect.exceptions import ObjectNotFound  # noqa: E402

from meca.errors import MecaError, UsageError  # noqa: E402
from meca.text import plain  # noqa: E402
from tasks.dvc import remote  # noqa: E402
from tasks.prefect import dead_runs, notify, server  # noqa: E402
from tasks.prefect.slots import server_url  # noqa: E402
from tasks.s3 import origin as fetch  # noqa: E402

__all__ = ["DEPLOYMENT", "run", "watch"]

DEPLOYMENT = "sanitize/sanitize"


def _is_temporary(task: Any, task_run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), remote.RemoteUnavailable)


@task(name="look", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[5, 30, 60], retry_condition_fn=_is_temporary)
def look() -> str | None:
    """Compare the bucket with the copy."""
    return fetch.difference(Path())


@flow(name="watch", persist_result=False, on_running=[dead_runs.mark], on_failure=[notify.failed], on_crashed=[notify.crashed])
def watch(deployment: str = DEPLOYMENT) -> dict[str, Any]:
    """Start a deployment if the origin of the workspace (the working directory) holds something else than was last fetched.

    Args:
        deployment: `flow/name` of what is started.

    Raises:
        UsageError: There is no such deployment.
    """
    with server.without_tags():
        key = look()
    if key is None:
        get_run_logger().info("Nothing has changed.")
        return {"changed": False}
    try:
        # timeout=0: it is started and not waited for. The key makes a second look at the same change find the same run.
        started: Any = run_deployment(deployment, timeout=0, as_subflow=False, idempotency_key=key)
    except ObjectNotFound:
        raise UsageError(f"Expected a deployment {deployment}, found none; `python -m flows.deploy` installs it.") from None
    get_run_logger().info("The bucket has changed; %s is %s.", started.name, started.state.name if started.state else "unknown")
    return {"changed": True, "run": str(started.id)}


def run(workspace: Path = Path()) -> dict[str, Any]:
    """Look once.

    Raises:
        UsageError: There is no server to start a run on, or no deployment.
    """
    if server_url() is None:
        raise UsageError("Expected the address of a Prefect server in PREFECT_API_URL, found none; `make services` starts one.")
    with contextlib.chdir(workspace), tags("meca"):
        server.ensure()
        return watch()


def main() -> None:
    """Look once at the working directory's origin."""
    argparse.ArgumentParser(prog="python -m flows.watch", description=(__doc__ or "").splitlines()[0]).parse_args()
    try:
        found = run()
    except MecaError as error:
        print(f"meca: {plain(error, 2000)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
