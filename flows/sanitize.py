"""The pipeline of dvc.yaml as a Prefect flow: same stages, same order, same results, plus schedules, retries and a page.

    python -m flows.sanitize        in a workspace; without PREFECT_API_URL, Prefect's server runs for as long as the flow

DVC says what is stale and keeps what was computed; Prefect only starts it. Delete the decorators and it still runs.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from tasks import environment

environment.prepare()  # before the first import of Prefect, which reads its settings then

from prefect import flow, get_run_logger, tags, task  # noqa: E402
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.futures import wait  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from meca.errors import MecaError  # noqa: E402
from meca.params import read_params  # noqa: E402
from meca.text import plain  # noqa: E402
from tasks.dvc import remote  # noqa: E402
from tasks.dvc.stage import Pipeline, StageFailed  # noqa: E402
from tasks.mlflow import tracking  # noqa: E402
from tasks.prefect import dead_runs, notify, server, slots, summary  # noqa: E402
from tasks.s3 import origin as fetch  # noqa: E402

__all__ = ["run", "sanitize"]

_results: list[dict[str, Any]] = []  # of the flow's body, for the case that the server is lost before it has taken the result
SIDE_BY_SIDE = 2  # the graph is nowhere wider, and a stage uses the cores it finds


def _is_temporary(task: Any, task_run: Any, state: Any) -> bool:
    """Retry only what a network may have caused."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed | remote.RemoteUnavailable) and error.is_temporary


@task(
    name="stage",
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=_is_temporary,
)
def stage(name: str, pipeline: Any) -> dict[str, Any]:
    """Bring one stage up to date."""
    with slots.gpu_slot() if pipeline[name].needs_gpu else contextlib.nullcontext():
        return pipeline.run(name, force=name == "track" and not tracking.is_recorded(pipeline.workspace), log=get_run_logger().info)


@task(name="fetch", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[5, 30, 120], retry_condition_fn=_is_temporary)
def fetch_source() -> None:
    """Bring data that lies in a bucket to where `ingest` reads it."""
    fetch.of_workspace(Path())


@task(name="push", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[5, 30, 120], retry_condition_fn=_is_temporary)
def push() -> None:
    """Send what the remote lacks."""
    remote.push()


@task(name="publish", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[5, 30, 120], retry_condition_fn=_is_temporary)
def publish_set(folder: Path, url: str) -> dict[str, Any]:
    """Bring the sanitized set to a bucket, the pointer last."""
    from dataclasses import asdict

    from tasks.s3.upload import publish  # boto3 takes a second to import

    return asdict(publish(folder, url))


@flow(
    name="sanitize",
    flow_run_name=lambda: summary.data_name(read_params(Path("params.yaml"))),
    task_runner=cast(Any, ThreadPoolTaskRunner(max_workers=SIDE_BY_SIDE)),
    persist_result=False,
    on_running=[dead_runs.mark],
    on_completion=[notify.completed],
    on_failure=[notify.failed],
    on_crashed=[notify.crashed],
)
def sanitize(push_after: bool = False, publish_to: str = "") -> dict[str, Any]:
    """Bring every stage of the workspace (the working directory) up to date and say what came out.

    Args:
        push_after: Send data, models and results to the DVC remote at the end.
        publish_to: `s3://bucket/prefix` to publish the sanitized set to; what MECA_PUBLISH_URL says if empty. An inconclusive
            set is not published: the pointer there stays.
    """
    with server.without_tags():
        result = _pipeline(push_after, publish_to)
    _results.append(result)
    return result


def _pipeline(push_after: bool, publish_to: str) -> dict[str, Any]:
    if read_params(Path("params.yaml")).raw("ingest")["origin"]:
        fetch_source()
    pipeline = Pipeline()
    futures: dict[str, Any] = {}
    submit: Any = stage.submit  # its overloads know no wait_for
    for step in pipeline.stages:
        futures[step.name] = submit(step.name, pipeline, wait_for=[futures[name] for name in step.upstream])
    try:
        wait(list(futures.values()))
    except BaseException:  # an interrupt, a cancellation: the threads would wait for their stages to the end
        pipeline.stop()
        raise
    _raise_first_failure(futures)
    outcomes = [future.result() for future in futures.values()]
    found = summary.read(pipeline.folder("publish"))
    with server.optional(get_run_logger().warning):
        _tell(found, outcomes, summary.data_name(read_params(Path("params.yaml"))), pipeline.folder("report") / "report.html")
    if push_after:
        push()
    url = publish_to or os.environ.get("MECA_PUBLISH_URL", "")
    published = publish_set(pipeline.folder("publish"), url) if url and found["verdict"] != "inconclusive" else None
    return {
        "verdict": found["verdict"],
        "sentence": found["sentence"],
        "judged_at": found["judged_at"],
        "counts": found["counts"],
        "stages": {o["stage"]: {"outcome": o["outcome"], "seconds": o["seconds"]} for o in outcomes},
        "pushed": push_after,
        "published": published,
        "tracked": "track" in futures and tracking.is_recorded(pipeline.workspace),
    }


def _raise_first_failure(futures: dict[str, Any]) -> None:
    """Raise the error of the stage that failed, not of those that could not start because of it."""
    for future in futures.values():
        if future.state.is_failed() or future.state.is_crashed() or future.state.is_cancelled():
            future.result()


def _tell(found: dict[str, Any], outcomes: list[dict[str, Any]], data: str, page: Path) -> None:
    """Leave one text, one table and one link, and name the run after what was found."""
    create_markdown_artifact(summary.markdown(found, outcomes), key=summary.key(f"{data}-summary"), description="What was found and what was done")
    create_table_artifact(summary.classes(found), key=summary.key(f"{data}-classes"), description="Samples per class")
    create_link_artifact(
        page.as_uri(), link_text="report.html", key=summary.key(f"{data}-report"), description="The report, on the machine that ran the flow"
    )
    if flow_run.id:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.id), name=summary.run_name(data, found))


def run(workspace: Path = Path(), push_after: bool = False, publish_to: str = "") -> dict[str, Any]:
    """Run the flow in a workspace and return its result; nothing that it started is left when this process ends.

    Raises:
        StageFailed: A stage ended with a code other than 0.
        MecaError: The Prefect server that is set does not answer.
    """
    with contextlib.chdir(workspace), tags("meca"):
        server.ensure()
        _results.clear()
        with server.outlived(lambda: bool(_results)):
            sanitize(push_after=push_after, publish_to=publish_to)
        return _results.pop()


def main() -> None:
    """Run the flow in the working directory."""
    parser = argparse.ArgumentParser(prog="python -m flows.sanitize", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--push", action="store_true", help="send the results to the DVC remote at the end")
    parser.add_argument("--publish", metavar="URL", default="", help="s3://bucket/prefix for the sanitized set, the pointer last (MECA_PUBLISH_URL)")
    arguments = parser.parse_args()
    try:
        result = run(push_after=arguments.push, publish_to=arguments.publish)
    except MecaError as error:
        print(f"meca: {plain(error, 2000)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
