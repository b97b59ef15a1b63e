"""Install everything that runs on a schedule on a Prefect server: work pool, limit, deployments, automations.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.deploy
    MECA_WORKSPACE=/path/to/workspace prefect worker start --pool meca

What is installed stands in `infra/prefect.yaml`; run again, this brings the server to what the file and the options say.
"""

import argparse
import contextlib
import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import meca
from meca.errors import MecaError, UsageError
from meca.text import plain
from tasks import environment

__all__ = ["DEAD", "Options", "install", "main"]

ROOT = Path(meca.__file__).parents[1]
FILE = Path("infra/prefect.yaml")
TYPES = ("process", "docker", "kubernetes")
CRASHED, TOLD = "meca: a run without a sign of life has crashed", "meca: tell of a run that has crashed unseen"
DEAD = "No sign of life for too long: the process, its machine or its network is gone."
PATIENCE = 120  # seconds of silence; a run shows every 30 that it is alive
LONGEST = 120.0  # seconds for Prefect's own command


class Options(argparse.Namespace):
    """What the command line says."""

    pool: str
    cron: str
    watch: int
    promote: bool
    gpu: int | None
    patience: int
    image: str


def install(options: Options) -> list[str]:
    """Bring the server in force to what `infra/prefect.yaml` and the options say, and return a line for each thing.

    Raises:
        UsageError: No server is set, or there is no checkout.
        MecaError: The server does not answer or refuses.
    """
    plan = _plan(options)
    pool = plan["work_pools"][options.pool]
    from prefect.client.orchestration import get_client

    from tasks.prefect import server

    server.reach(5)
    with _explained(), get_client(sync_client=True) as client:
        said = [_pool(client, pool, options.pool), *_limit(client, options.gpu)]
        _deploy(plan)
        said += [f"deployment {item['entrypoint'].rsplit('.', 1)[1]}/{item['name']}{_when(item)}" for item in plan["deployments"]]
        said += _automations(client, options)
    return said


def _plan(options: Options) -> dict[str, Any]:
    """Return infra/prefect.yaml with what the options replace."""
    import yaml

    from tasks.prefect.slots import server_url

    if server_url() is None:
        raise UsageError("Expected the address of a Prefect server in PREFECT_API_URL, found none; `make services` starts one.")
    if not (ROOT / FILE).is_file():
        raise UsageError(f"Expected {FILE} in {ROOT}, found none; install meca from its repository (pip install -e).")
    plan: dict[str, Any] = yaml.safe_load((ROOT / FILE).read_text(encoding="utf-8"))
    pool = plan["work_pools"][options.pool]
    for item in plan["deployments"]:
        item["work_pool"] = {"name": pool["name"], "job_variables": copy.deepcopy(pool["job_variables"])}
        if item["name"] == "sanitize":
            item["schedules"] = [item["schedules"][0] | ({"cron": options.cron} if options.cron != "none" else {"active": False})]
        if item["name"] == "watch" and options.watch:
            item["schedules"] = [item["schedules"][0] | {"cron": f"*/{options.watch} * * * *", "active": True}]
        if item["name"] == "promote":
            item["triggers"] = [trigger | {"enabled": options.promote} for trigger in item["triggers"]]
    variables = {"MECA_IMAGE": options.image, "MECA_GPU_LIMIT": environment.gpu_limit() or "none"}
    if options.pool == "docker":
        if not (workspace := os.environ.get("MECA_WORKSPACE")):
            raise UsageError("Expected the folder that containers work in in MECA_WORKSPACE, found none.")
        variables["MECA_WORKSPACE"] = str(Path(workspace).resolve())
    for item in plan["deployments"]:
        item["work_pool"]["job_variables"] = _filled(item["work_pool"]["job_variables"], variables)
    return plan


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    """Return a tree of YAML in which `{{ $NAME }}` is replaced."""
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    for name, text in variables.items():
        value = value.replace(f"{{{{ ${name} }}}}", text) if isinstance(value, str) else value
    return value


def _when(item: Mapping[str, Any]) -> str:
    active = [schedule["cron"] for schedule in item.get("schedules", ()) if schedule["active"]]
    return f", at {active[0]} UTC" if active else ""


def _pool(client: Any, pool: Mapping[str, Any], kind: str) -> str:
    """Make the work pool; one that is there keeps its name and type and gets the template."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    template = _template(kind)
    if kind == "kubernetes":
        spec = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
        spec |= pool["pod"]
        spec["containers"][0] |= pool["container"]
    try:
        found = client.read_work_pool(pool["name"])
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=pool["name"], type=kind, base_job_template=template))
        return f"work pool {pool['name']} ({kind})"
    if found.type != kind:
        raise MecaError(f"The work pool {pool['name']} is of type {plain(found.type)} here, expected {kind}; delete or rename it.")
    if found.base_job_template != template:
        client.update_work_pool(pool["name"], WorkPoolUpdate(base_job_template=template))
    return f"work pool {pool['name']} ({kind})"


def _template(kind: str) -> dict[str, Any]:
    """Return Prefect's default job of a type of pool, as it was packaged: a server asks GitHub for newer ones."""
    import json

    views = files("prefect.server.api") / "collections_data" / "views" / "aggregate-worker-metadata.json"
    packages = json.loads(views.read_text(encoding="utf-8"))
    return next(workers[kind]["default_base_job_configuration"] for workers in packages.values() if kind in workers)


def _limit(client: Any, slots: int | None) -> list[str]:
    """Make the limit for stages that need a GPU; without a number only where this host has one, and no limit is changed."""
    from prefect.exceptions import ObjectNotFound

    name = environment.gpu_limit()
    if name is None or (slots is None and not environment.has_gpu()):
        return []
    with contextlib.suppress(ObjectNotFound):
        if slots is None:
            return [f"limit {name}, {client.read_global_concurrency_limit_by_name(name).limit} at a time"]
    client.upsert_global_concurrency_limit_by_name(name, slots or 1)
    return [f"limit {name}, {slots or 1} at a time"]


def _deploy(plan: Mapping[str, Any]) -> None:
    """Hand the deployments to Prefect's own command, which checks and templates them."""
    import yaml

    with tempfile.TemporaryDirectory(prefix="meca-deploy-") as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in plan.items() if key != "work_pools"}, sort_keys=False), encoding="utf-8")
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and files
                [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"],
                cwd=ROOT,
                env=environment.child_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired:
            raise MecaError(f"`prefect deploy` did not end within {LONGEST:.0f} s; is the server overloaded?") from None
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split()[-80:])
        raise MecaError(f"`prefect deploy` ended with exit code {done.returncode}: {environment.without_secrets(said)}")


def _automations(client: Any, options: Options) -> list[str]:
    """Make what closes dead runs and, with an address for notices, what tells of them: nobody else is left to do either."""
    from prefect.events.actions import CallWebhook, ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.states import StateType

    from tasks.prefect import notify

    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling")}
    wanted = [
        AutomationCore(
            name=CRASHED,
            description=f"A run of meca that is silent for {options.patience} s is marked Crashed. Installed by flows.deploy.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat"} | ended,
                match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
                # Others' flows on the same server have a beat of their own, and may be slower.
                match_related=ResourceSpecification({"prefect.resource.id": "prefect.tag.meca", "prefect.resource.role": "tag"}),
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=options.patience),
            ),
            # Not forced: the server refuses to make a run that has ended Crashed, which is what a beat behind its end asks for.
            actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=DEAD, force=False)],
        )
    ]
    address = notify.address_from_environment()
    if address:
        wanted.append(
            AutomationCore(
                name=TOLD,
                description=f"Calls the webhook of the block {notify.BLOCK}. Installed by flows.deploy.",
                trigger=EventTrigger(
                    expect={"prefect.flow-run.Crashed"},
                    match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*", "prefect.state-message": DEAD}),
                    match_related=ResourceSpecification({"prefect.resource.id": "prefect.tag.meca", "prefect.resource.role": "tag"}),
                    for_each={"prefect.resource.id"},
                    posture=Posture.Reactive,
                    threshold=1,
                ),
                actions=[CallWebhook(block_document_id=_block(address), payload=notify.template("crashed", DEAD))],
            )
        )
    for automation in wanted:
        found = client.read_automations_by_name(automation.name)
        if not found:
            client.create_automation(automation)
        for one in found:  # only what differs is written: an update forgets what a trigger has seen
            if one.model_dump(exclude={"id", "enabled"}) != automation.model_dump(exclude={"enabled"}):
                client.update_automation(one.id, automation)
    return [f"automation {automation.name!r}" for automation in wanted]


def _block(address: str) -> Any:
    """Keep the address for notices on the server and return the block's id."""
    from prefect.blocks.webhook import Webhook

    from tasks.prefect import notify

    saved: Any = Webhook(url=address).save(notify.BLOCK, overwrite=True)  # pyright: ignore[reportArgumentType]
    return saved


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what Prefect's client raises into one sentence."""
    import httpx
    from prefect.exceptions import PrefectException

    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = environment.without_secrets(" ".join(str(error).split()))[:400]
        told = "refuses the password (PREFECT_API_AUTH_STRING)" if status in (401, 403) else f"does not do what it is asked ({said})"
        raise MecaError(f"The Prefect server {told}.") from None


def main() -> None:
    """Install on the server in force."""
    parser = argparse.ArgumentParser(prog="python -m flows.deploy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pool", choices=TYPES, default="process", help="where runs take place")
    parser.add_argument("--cron", default=os.environ.get("MECA_CRON") or "0 3 * * *", help="when sanitize starts, as five cron fields, or `none`")
    parser.add_argument("--watch", type=int, default=0, metavar="MINUTES", help="look this often whether the bucket has changed (1 to 59)")
    parser.add_argument("--promote", action="store_true", help="promote after every sanitize that completes, if the gates hold")
    parser.add_argument("--gpu", type=int, metavar="SLOTS", help="how many stages share this host's GPUs at a time (one, where it has a GPU)")
    parser.add_argument("--patience", type=int, default=PATIENCE, metavar="SECONDS", help="silence after which a run is crashed (at least 60)")
    parser.add_argument("--image", default=f"meca-worker:{meca.__version__}", help="the image of the pools docker and kubernetes")
    options = parser.parse_args(namespace=Options())
    environment.prepare()
    try:
        if options.patience < 60 or not 0 <= options.watch < 60 or (options.gpu is not None and options.gpu < 1):
            raise UsageError("Expected --patience of at least 60 s (two beats), --watch of 1 to 59 minutes and --gpu of at least one slot.")
        for line in install(options):
            print(line)
    except MecaError as error:
        print(f"meca: {plain(error, 2000)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(f"Next: MECA_WORKSPACE=<folder> prefect worker start --pool {'meca' if options.pool == 'process' else f'meca-{options.pool}'}")


if __name__ == "__main__":
    main()
