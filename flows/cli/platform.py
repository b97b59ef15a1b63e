"""The verbs that need Prefect, MLflow, DVC or a bucket."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flows.cli.console import complain, say, say_json
from flows.cli.options import (
    DONE,
    FAILED,
    INCONCLUSIVE,
    Attestation,
    Json,
    ParamsFile,
    Preset,
    Settings,
    Why,
    Workspace,
    app,
    as_settings,
    existing_folder,
    prepare_platform,
    refuse_unlike_copy,
)
from meca.errors import MecaError, UsageError
from meca.text import plain

__all__ = ["benchmark", "check_serving", "demo", "doctor", "fetch", "promote", "publish", "pull", "push", "track"]


@app.command
def fetch(
    source: Annotated[str, Parameter(help="s3://bucket/prefix; keys come from the AWS variables.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the copy; fetched again, it takes only what changed.")],
    as_json: Json = False,
) -> int:
    """Copy data from a bucket to this machine, with version and SHA-256 of every object. `clean` does so itself."""
    from dataclasses import asdict

    from meca.progress import Progress
    from tasks.s3.download import fetch as copy

    refuse_unlike_copy(output)
    with Progress() as progress:
        found = asdict(copy(source, output, progress))
    found["path"] = str(found["path"])
    size = f"{found['objects']} objects, {found['bytes']} bytes, {found['downloaded']} of them fetched now"
    if as_json:
        say_json(found)
    else:
        say(f"Copy          {found['path']}", f"Objects       {size}", f"SHA-256       {found['root']}")
        if found["version"]:
            say(f"Version       {found['version']}, a published set: `meca verify {output} --key KEY` says whose.")
    return DONE


@app.command
def publish(
    run: Annotated[Path, Parameter(help="The output of `clean`, or a workspace.")],
    url: Annotated[str, Parameter(help="s3://bucket/prefix; keys come from the AWS variables.")],
    /,
    *,
    key: Annotated[Path | None, Parameter(help="An Ed25519 public key (PEM) that must have signed the folder.")] = None,
    attestation: Annotated[Path | None, Parameter(name="--attestation", help="The signed statement, where it is not in the folder.")] = None,
    as_json: Json = False,
) -> int:
    """Bring a published folder to a bucket: every object is read back, and then one pointer names the set. `fetch` follows it."""
    from dataclasses import asdict

    from meca.progress import Progress
    from tasks.s3.upload import publish as send
    from tasks.s3.upload import published_folder

    if attestation is not None and key is None:
        raise UsageError("Expected --key beside --attestation: without a key nothing can be said about a signature.")
    with Progress() as progress:
        found = asdict(send(published_folder(existing_folder(run)), url, key, attestation, progress))
    if as_json:
        say_json(found)
    else:
        say(f"Pointer       {found['url']}" + ("" if found["moved"] else ", which named this version already"), f"Version       {found['version']}")
        say(f"Objects       {found['objects']}, {found['bytes']} bytes, {found['sent']} of them sent now, all read back")
        if found["guarded"] is False:
            say("This server ignores conditions on writes: let only one publish to this prefix at a time.")
    return DONE


@app.command
def promote(
    run: Annotated[Path, Parameter(help="A workspace whose run is tracked; without it the working directory.")] = Path(),
    /,
    *,
    why: Why = "",
    key: Annotated[Path | None, Parameter(help="An Ed25519 public key (PEM) that must have signed the published folder.")] = None,
    attestation: Attestation = None,
    uncompared: Annotated[
        bool, Parameter(negative="", show_default=False, help="Replace a champion that cannot be measured on this data; needs --why.")
    ] = False,
    rollback: Annotated[
        bool,
        Parameter(name=["--rollback", "--undo"], negative="", show_default=False, help="Give the alias back to the version before; needs --why."),
    ] = False,
    history: Annotated[bool, Parameter(negative="", show_default=False, help="Print who moved the alias, when, why, and change nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Register the clean model and move the alias, if every gate in params.yaml holds and the champion is no better. Else exits 5."""
    prepare_platform()
    from tasks.mlflow import registry

    if rollback + history + uncompared > 1 or ((rollback or history) and (key is not None or attestation is not None)):
        raise UsageError("Expected one of --rollback, --history, or a promotion with its options.")
    if history:
        events = registry.history(existing_folder(run))
        say_json(events) if as_json else say(*_moves(events) or ["The alias was never moved."])
        return DONE
    if rollback:
        outcome = registry.rollback(existing_folder(run), why=why)
        sentences = [f"Version {outcome['undone']} is {outcome['alias']} no more."]
    else:
        outcome = registry.promote(existing_folder(run), why=why, key=key, attestation=attestation, uncompared=uncompared)
        sentences = [*(gate["sentence"] for gate in outcome["gates"]), *(f"Warning: {warning}" for warning in outcome["warnings"])]
    if as_json:
        say_json(outcome)
    else:
        say(f"{outcome['model']} version {outcome['version']} is {outcome['alias']}.", *sentences)
    return DONE


def _moves(events: Iterable[dict[str, Any]]) -> list[str]:
    return [
        f"{e.get('when')}  {e['action']:<8} {e['from'] or '-':>4} -> {e['to']:<4} {e.get('who')}: {e.get('why') or 'no reason given'}" for e in events
    ]


@app.command
def check_serving(
    run: Annotated[Path, Parameter(help="A workspace, whose params.yaml names the registered model; without it the working directory.")] = Path(),
    /,
    *,
    alias: Annotated[str | None, Parameter(help="Without it the one in params.yaml.")] = None,
    as_json: Json = False,
) -> int:
    """Load what the alias names in a clean process, with unpickling forbidden, and let it predict. Exits 2 if it cannot be served."""
    prepare_platform()
    from meca.params import read_params
    from tasks.mlflow.serving import check

    params = read_params(existing_folder(run) / "params.yaml")
    found = check(run, str(params.raw("track")["registered_model"]), alias or str(params.raw("promote")["alias"]))
    if as_json:
        say_json(found)
    else:
        say(
            f"{found['model']} version {found['version']} is {found['alias']}, and answers: labels {', '.join(map(str, found['labels']))} for noise.",
            f"SHA-256 of the model {found['sha256']}, {len(found['classes'])} classes, {found['seconds']} s.",
        )
    return DONE


@app.command
def track(
    run: Annotated[Path, Parameter(help="A workspace with a finished run; without it the working directory.")] = Path(), /, *, as_json: Json = False
) -> int:
    """Tell MLflow what it was not told: this result, and those kept while it was away. Takes the time that it takes; exits 2 if it cannot."""
    prepare_platform()
    from tasks.dvc.stage import Pipeline
    from tasks.mlflow.spool import untold
    from tasks.mlflow.tracking import is_recorded

    os.environ["MECA_TRACKING_SECONDS"] = "0"
    before = len(untold(existing_folder(run)))
    if not is_recorded(run):
        Pipeline(run).run("track", force=True, log=complain)
    left = len(untold(run))
    if not is_recorded(run):
        raise MecaError(f"MLflow was not told everything; {left} results are still kept, the lines above say why.")
    say_json({"recorded": True, "told": before, "left": left}) if as_json else say(f"MLflow knows this result, and {before} that were kept.")
    return DONE


@app.command
def push(run: Workspace = Path(), /) -> int:
    """Send what the DVC remote lacks: data, models, verdicts, run cache. MECA_REMOTE_URL names another remote, such as s3://bucket/prefix."""
    prepare_platform()
    from tasks.dvc.remote import push as send

    send(existing_folder(run))
    say("The remote has all of it.")
    return DONE


@app.command
def pull(run: Workspace = Path(), /) -> int:
    """Fetch what dvc.lock names from the DVC remote, and compare it with the SHA-256 that the stages wrote down. Exits 2 if it differs."""
    prepare_platform()
    from tasks.dvc.remote import pull as receive

    receive(existing_folder(run))
    say("Everything is here, and as the stages wrote it.")
    return DONE


@app.command
def demo(
    *,
    data: Annotated[str, Parameter(help="shapes (generated), digits (bundled scans), cifar10 (MECA_DATA or download), or a path.")] = "shapes",
    folder: Annotated[Path | None, Parameter(help="The workspace; without it .demo/<data>.")] = None,
    preset: Preset = None,
    settings: Settings = (),
    as_json: Json = False,
) -> int:
    """Poison a data set, clean it, train, track, publish and promote: the main job as a Prefect flow, with no server."""
    prepare_platform()
    from flows.demo import lines, play

    given = {**as_settings(settings), **({"preset": preset} if preset else {})}
    outcome = play(data, folder or Path(".demo") / Path(data).name, given)
    if as_json:
        say_json(outcome)
    else:
        say(*lines(outcome))
    # Poison was planted, so finding it is success here; only a refused promotion is not.
    return DONE if outcome["promotion"].get("version") else INCONCLUSIVE


@app.command
def benchmark(
    *,
    data: Annotated[
        tuple[str, ...], Parameter(negative="", help="shapes, digits, cifar10, fashion-mnist, or a path; `:n` behind it takes n samples.")
    ] = ("shapes",),
    attack: Annotated[tuple[str, ...], Parameter(negative="", show_default=False, help="Without it the paper's eight, and none.")] = (),
    rate: Annotated[tuple[float, ...], Parameter(negative="", help="Poisoned / all training samples.")] = (0.05,),
    seed: Annotated[tuple[int, ...], Parameter(negative="", help="Chooses the samples, the weights, every draw.")] = (1,),
    preset: Annotated[tuple[str, ...], Parameter(negative="")] = ("default", "paper"),
    network: Annotated[
        tuple[str, ...], Parameter(negative="", help="compact, resnet18, resnet34, mobilenet_v2; `:stem` behind it chooses the stem.")
    ] = ("compact",),
    partition_rate: Annotated[
        tuple[float, ...], Parameter(negative="", show_default=False, help="Share taken for clean; without it what params.yaml says.")
    ] = (),
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="JSON lines; the tables stand beside it, as .md.")] = Path("benchmark.jsonl"),
    workers: Annotated[int, Parameter(help="Runs at a time; 0: one for each core, or one on a GPU.")] = 0,
    keep: Annotated[bool, Parameter(negative="", show_default=False, help="Keep the folders of finished runs.")] = False,
    params: ParamsFile = None,
    settings: Settings = (),
    as_json: Json = False,
) -> int:
    """Measure data x attack x rate x seed x preset as a Prefect flow, into one file with tables. Lists repeat their option."""
    prepare_platform()
    from flows.benchmark import run as measure
    from meca.params import PACKAGED, read_params
    from tasks.benchmark.grid import Plan

    given = {"attacks": attack} if attack else {}
    plan = Plan(
        data=data,
        rates=rate,
        seeds=seed,
        presets=preset,
        networks=network,
        partition_rates=partition_rate,
        settings=as_settings(settings),
        tree=read_params(params or PACKAGED).tree,
        **given,
    )
    outcome = measure(plan, output, workers, keep, say=complain if as_json else say)
    say_json(outcome) if as_json else say(outcome["results"], *outcome["tables"])
    return DONE


@app.command
def doctor(*, as_json: Json = False) -> int:
    """Say what is here: versions, devices, disk, servers, telemetry. Exits 2 if something that meca needs is missing."""
    from flows.doctor import examine

    checks = examine()
    if as_json:
        say_json({"ok": all(check["ok"] for check in checks), "checks": checks})
    else:
        for check in checks:
            say(f"{'ok ' if check['ok'] else 'BAD'} {check['name']:<12} {plain(check['found'])}")
            say(*(f"    {'warning:':<12} {plain(warning)}" for warning in check["warnings"]))
            if check["next"]:
                say(f"    {'next:':<12} {plain(check['next'])}")
    return DONE if all(check["ok"] for check in checks) else FAILED
