"""The record of a run in MLflow: one parent run per result of the pipeline, one nested run per stage, each logged once.

    python -m tasks.mlflow.tracking --receipts work/receipts/ingest.json ... --out work/track     the stage `track`

What ran stands in the receipts; MLflow is told, never asked. Runs are found by stage key, so that logging again finds the
run of before: a finished one is left alone, a half-logged one is completed, and nothing is there twice. A stage whose
result two pipeline results share has one run, nested in the first; every parent names the runs of its stages in tags.

A server that is away, slow or refuses never fails a run: what it was not told is kept in `.meca/spool`, whole and sealed, and
told by the next run that reaches it, or by `meca track`. What this user's meca did not put there is not told.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meca import state
from meca.data.judged import as_tag, at_size
from meca.errors import MecaError, UsageError
from meca.files import atomic_write, canonical_json, fresh_folder, lock, own_folder, read_json, refuse_foreign, replace_folder, sha256_tree, sync
from meca.params import read_params
from meca.text import plain, sheet_cell
from tasks import environment
from tasks.environment import without_secrets

__all__ = [
    "Result", "TrackingUnavailable", "explained", "is_recorded", "open_client", "patience", "read_result", "record", "replay", "spool", "untold",
]  # fmt: skip

VALUE_LIMIT = 500  # characters of a parameter or tag: what data may have named stays short
PARAMS, METRICS = 100, 900  # in one call: MLflow takes 100 parameters, and 1000 of both
PARENT_FILES = ("verdicts.parquet", "summary.json", "README.md")  # of `published`, whose images stay in DVC
MANIFEST = "manifest.json"  # uploaded last: where it is, all of the others are
MODEL_FILES = ("model.json", "model.safetensors")
SPOOL = Path(".meca") / "spool"  # in the workspace
SPOOLED = "spooled.json"  # in each folder of the spool: since when and why
PATIENCE = 300.0  # seconds in which a run tells MLflow what it has to tell; MECA_TRACKING_SECONDS says otherwise
RATE = 2**20  # bytes a second that an upload may be as slow as
SPEAKERS = {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "botocore", "boto3"}  # whose errors mean that MLflow could not be told
TRAINED = ("partition", "enhance", "train_clean", "relabel_finetune")  # stages that learnt from the input set


class TrackingUnavailable(MecaError):  # noqa: N818 - the name says what happened
    """MLflow could not be reached, was too slow or refused; another try may help."""

    is_temporary = True


@dataclass(frozen=True)
class Result:
    """Where a result of the pipeline lies."""

    workspace: Path
    receipts: tuple[Path, ...]  # in the order of the pipeline
    store: Path
    work: Path
    published: Path
    report: Path
    out: Path
    params: Path
    when: float | None = None  # seconds since 1970 at which it was finished; now if None


def read_result(workspace: Path, argv: Sequence[str] | None = None) -> Result:
    """Return the paths of a workspace's result, from the command line or from the command of `track` in dvc.yaml.

    Raises:
        UsageError: The workspace has no dvc.yaml with a stage `track`.
    """
    parser = argparse.ArgumentParser(prog="python -m tasks.mlflow.tracking", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--receipts", type=Path, nargs="+", required=True, help="what the stages say of themselves, in order")
    for name, what in {
        "store": "the data as the defender received it",
        "work": "the folder of the stages' folders",
        "published": "the sanitized set",
        "report": "the folder of the page",
        "out": "output",
        "params": "parameter file",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    if argv is None:
        argv = _track_arguments(workspace / "dvc.yaml")
    found = vars(parser.parse_args(argv))
    receipts = tuple(workspace / path for path in found.pop("receipts"))
    return Result(workspace, receipts, **{name: workspace / path for name, path in found.items()})


def _track_arguments(pipeline: Path) -> list[str]:
    import yaml

    try:
        cmd = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]["track"]["cmd"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise UsageError(f"Expected {pipeline} with a stage `track`; make a workspace first.") from None
    return shlex.split(cmd)[3:]


def is_recorded(workspace: Path = Path()) -> bool:
    """Tell, without importing MLflow, whether the result that stands here was told to the MLflow in force."""
    result = read_result(workspace)
    try:
        told = read_json(result.out / "track.json")
        keys = _result_key([read_json(path) for path in result.receipts])
    except MecaError:
        return False
    uri = environment.tracking_uri(workspace)
    if untold(workspace):
        return False
    there = not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()
    return there and told.get("uri_sha256") == _sha256(without_secrets(uri)) and told.get("result_key") == keys


def patience() -> float | None:
    """Return the seconds that telling MLflow may take in a run; None for as long as it takes (MECA_TRACKING_SECONDS=0)."""
    given = os.environ.get("MECA_TRACKING_SECONDS", "")
    try:
        seconds = float(given) if given else PATIENCE
    except ValueError:
        raise UsageError(f"Expected a number of seconds in MECA_TRACKING_SECONDS, got {plain(given, 40)!r}.") from None
    return seconds if seconds > 0 else None


def record(workspace: Path = Path(), result: Result | None = None, seconds: float | None = None) -> dict[str, Any]:
    """Tell MLflow about the result of a workspace and return the names of its runs. Calling it again changes nothing.

    Args:
        workspace: Whose record it is.
        result: What is told, if it lies elsewhere.
        seconds: After which it gives up; never if None.

    Returns:
        `experiment`, `parent` (run id), `runs` (run id per stage), `models` (model URI per stage), `result_key`.

    Raises:
        TrackingUnavailable: MLflow could not be told all of it. What it was told is found again by the next call.
    """
    result = result or read_result(workspace)
    receipts = [read_json(path) for path in result.receipts]
    settings = read_params(result.params).raw("track")
    with open_client(workspace, seconds) as client:
        owner = _owner(workspace)
        recorder = _Recorder(client, _experiment(client, str(settings["experiment"]), workspace), result, owner)
        told = recorder.record(receipts)
        recorder.close_abandoned({told["parent"], *told["runs"].values()})
        return told | {"experiment": str(settings["experiment"])}


def spool(workspace: Path, result: Result, why: str) -> Path:
    """Keep all that MLflow is to be told about a result, as copies: the next run replaces the files. Return the folder.

    Args:
        workspace: Whose spool it is.
        result: What could not be told.
        why: For people.
    """
    receipts = [read_json(path) for path in result.receipts]
    folder = own_folder(workspace / SPOOL, workspace / SPOOL.parent) / _result_key(receipts)[:24]
    if _is_ours(folder):
        return folder
    temporary = fresh_folder(folder.with_name(folder.name + ".tmp"))
    wanted = [*result.receipts, result.params, result.workspace / "dvc.lock", result.report / "report.html"]
    wanted += [result.published / name for name in (*PARENT_FILES, MANIFEST)]
    wanted += [result.work / str(receipt["stage"]) / name for receipt in receipts for name in ("curves.jsonl", *MODEL_FILES)]
    for path in wanted:
        if path.is_file():
            copy = temporary / path.relative_to(result.workspace)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            sync(copy)
    places = {name: value.relative_to(result.workspace).as_posix() for name, value in vars(result).items() if isinstance(value, Path)}
    places["receipts"] = [path.relative_to(result.workspace).as_posix() for path in result.receipts]
    record = {"schema": "meca.spool/1", "when": time.time(), "why": without_secrets(why)[:2000], "places": places}
    atomic_write(temporary / SPOOLED, canonical_json(record))
    state.write(_seal_of(folder), sha256_tree(temporary).encode(), "spool", folder.name)
    replace_folder(temporary, folder)
    return folder


def _seal_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256")


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder of the spool is as this user's meca wrote it, wherever its workspace has come to lie."""
    if not folder.is_dir():
        return False
    try:
        refuse_foreign(folder, below=True)
    except UsageError:
        return False
    return state.read(_seal_of(folder), "spool", folder.name) == sha256_tree(folder).encode()


def _drop(folder: Path) -> None:
    """Remove what was told."""
    if _is_ours(folder):
        shutil.rmtree(folder)
        for beside in folder.parent.glob(f"{folder.name}.sha256*"):
            beside.unlink()


def untold(workspace: Path = Path()) -> list[Path]:
    """Return the folders of the spool that this user's meca wrote, oldest first.

    Raises:
        UsageError: The spool is a link or another user's.
    """
    for folder in (workspace / SPOOL.parent, workspace / SPOOL):
        refuse_foreign(folder)
    found = [(float(read_json(file)["when"]), file.parent) for file in (workspace / SPOOL).glob(f"*/{SPOOLED}") if _is_ours(file.parent)]
    return [folder for _, folder in sorted(found)]


def _foreign(workspace: Path) -> list[Path]:
    """Return what lies in the spool and was not put there by this user's meca."""
    ours = untold(workspace)
    return sorted(path for path in (workspace / SPOOL).glob("*") if path not in ours and not path.name.endswith((".tmp", ".sha256", ".seal")))


def replay(workspace: Path = Path(), seconds: float | None = None) -> int:
    """Tell MLflow what is in the spool, oldest first, and return how many results that were. Each is dropped once it is told.

    Raises:
        TrackingUnavailable: One of them could not be told; those behind it were tried unless nobody answered.
    """
    done, failures = 0, list[TrackingUnavailable]()
    deadline = None if seconds is None else time.monotonic() + seconds
    if foreign := _foreign(workspace):
        why = state.lasts() or f"{foreign[0]} was not written by this user's meca, so MLflow is not told of it; remove it."
        print(f"meca track: {plain(why, 2000)}", file=sys.stderr)
    with _patient_lock(own_folder(_locks(workspace), workspace / SPOOL.parent) / "spool", "The spool of MLflow's record"):
        for folder in untold(workspace):
            kept = read_json(folder / SPOOLED)
            places = {name: folder / place for name, place in kept["places"].items() if name != "receipts"}  # its workspace is the folder
            receipts = tuple(folder / place for place in kept["places"]["receipts"])
            result = Result(**places, receipts=receipts, when=float(kept["when"]))
            left = None if deadline is None else max(1.0, deadline - time.monotonic())
            try:
                record(workspace, result, left)
            except TrackingUnavailable as error:
                failures.append(error)
                if deadline is not None and time.monotonic() > deadline:
                    break
                continue
            _drop(folder)
            done += 1
    if failures:
        raise failures[0]
    return done


def _locks(workspace: Path) -> Path:
    return workspace / SPOOL.parent / "locks"


def _owner(workspace: Path) -> str:
    """Return a name of this workspace that says nothing about it: only its own runs are ever closed or removed."""
    return _sha256(f"{socket.gethostname()}\0{workspace.resolve()}")[:16]


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into one sentence without secrets."""
    try:
        yield
    except MecaError:
        raise
    except Exception as error:
        of_theirs = {cls.__module__.partition(".")[0] for cls in type(error).__mro__} & SPEAKERS
        if not of_theirs and not isinstance(error, OSError):
            raise
        # Without its cause, which a traceback would show: MLflow's message has the address with the password in it.
        said = plain(without_secrets(" ".join(str(error).split())), 300)
        denied = re.search(r"\b(401|403)\b|PERMISSION_DENIED|UNAUTHENTICATED|[Nn]ot authenticated|[Pp]ermission denied", said)
        hint = " Look at MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD." if denied else ""
        raise TrackingUnavailable(f"MLflow ({without_secrets(where)}) could not be used: {type(error).__name__}: {said}{hint}") from None


class _Timed:
    """A client whose calls are refused after a deadline: a server that answers slowly would hold a run up for hours."""

    def __init__(self, client: Any, seconds: float | None) -> None:
        self._client, self._seconds = client, seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def in_time(self) -> None:
        """Raise after the deadline."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TrackingUnavailable(f"MLflow was not told everything within {self._seconds:.0f} s (MECA_TRACKING_SECONDS).")

    def __getattr__(self, name: str) -> Any:
        self.in_time()
        return getattr(self._client, name)


@contextmanager
def _time_for(size: int) -> Iterator[None]:
    """Give an upload the time that its size needs; the short limit of all other requests would cut a large model off."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    usual = os.environ[name]
    os.environ[name] = str(max(int(usual), 10 + size // RATE))
    try:
        yield
    finally:
        os.environ[name] = usual


@contextmanager
def open_client(workspace: Path, seconds: float | None = None) -> Iterator[Any]:
    """Yield an MLflow client with a database that exists and is up to date, while nobody else of this workspace writes.

    Processes that make a new database side by side crash, and two that log side by side would both find no run; hence
    one lock, beside the database, for both.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, refuses, or does something unforeseen, here or in the block.
    """
    environment.prepare()
    uri = environment.tracking_uri(workspace)
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    if database is None:
        own_folder(_locks(workspace), workspace / SPOOL.parent)
    name = database.with_name(database.name + ".lock") if database else _locks(workspace) / f"mlflow-{_sha256(uri)[:16]}"
    with _patient_lock(name), explained(uri):
        import mlflow
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            client = MlflowClient(uri, uri)
            client.search_experiments(max_results=1)  # makes the tables of a new database
        except MlflowException as error:
            if database is None:
                raise
            if "out-of-date" not in str(error):
                raise MecaError(f"{database} is no database of MLflow: {str(error)[:300]}") from error
            _upgrade(uri)
            client = MlflowClient(uri, uri)
        yield _Timed(client, seconds)


def _upgrade(uri: str) -> None:
    import subprocess

    done = subprocess.run(  # noqa: S603 - our own interpreter, the address that the user has set
        [sys.executable, "-m", "mlflow", "db", "upgrade", uri], env=environment.child_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MecaError(f"mlflow db upgrade failed: {done.stderr.strip()[-300:]}")


@contextmanager
def _patient_lock(path: Path, what: str = "MLflow's record", patience: float = 300.0) -> Iterator[None]:
    """Hold a lock as `meca.files.lock` does, but wait for its holder first."""
    deadline = time.monotonic() + patience
    while True:
        held = lock(path, what)
        try:
            held.__enter__()
        except MecaError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            continue
        break
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def _experiment(client: Any, name: str, workspace: Path) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        uri = environment.tracking_uri(workspace)
        # Beside the database, wherever the process runs: MLflow's own default is the working directory.
        place = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlruns").as_uri() if uri.startswith("sqlite:///") else None
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException as error:  # another machine made it meanwhile
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


class _Recorder:
    """Writes one result. Every step can be repeated without a trace; the tag `meca.complete` comes last."""

    def __init__(self, client: Any, experiment: str, result: Result, owner: str) -> None:
        self.client = client
        self.experiment = experiment
        self.result = result
        self.owner = owner
        self.summary: dict[str, Any] = read_json(result.published / "summary.json")
        self.digests = _dvc_digests(result.workspace)

    def record(self, receipts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Log the parent, then every stage, and close the parent when all of it is there."""
        key = _result_key(receipts)
        params = {receipt["stage"]: receipt["params"] for receipt in receipts}
        attack = str(params.get("poison", {}).get("poison", {}).get("attack", "none"))
        source = Path(str(params.get("ingest", {}).get("ingest", {}).get("source", "data"))).name
        found = (self.summary["verdict"], *at_size(self.summary.get("judged_at")).split())
        name = "-".join(_name(part)[:40] for part in (source, attack, *found) if part and part != "none")
        seconds = sum(float(receipt["seconds"]) for receipt in receipts)
        tags = {
            "meca.result_key": key,
            "meca.sanitized_sha256": self.summary["sanitized_sha256"],
            "meca.params_sha256": self.summary["params_sha256"],
        }
        parent = self._run("meca.result_key", key, name, tags, seconds)
        runs: dict[str, str] = {}
        models: dict[str, str] = {}
        for receipt in receipts:
            runs[receipt["stage"]], model = self._stage(receipt, parent.info.run_id)
            if model:
                models[receipt["stage"]] = model
        if not _is_complete(parent):
            self._parent(parent, receipts, runs)
            self._close(parent, seconds)
        elif parent.info.status == "RUNNING":  # killed between the two calls of _close
            self._close(parent, seconds)
        return {"parent": parent.info.run_id, "runs": runs, "models": models, "result_key": key}

    def _run(self, tag: str, key: str, name: str, tags: Mapping[str, str], seconds: float, parent: str | None = None) -> Any:
        """Return the run with this key, or a new one; one that a killed process left open is taken over.

        A request that the server answered too late was sent again, and may have been obeyed twice. The copies are removed.
        """
        found = list(self.client.search_runs([self.experiment], f"tags.`{tag}` = '{key}'", order_by=["attributes.start_time ASC"], max_results=50))
        if found:
            chosen = min(found, key=lambda run: (not _is_complete(run), run.info.start_time, run.info.run_id))
            for run in found:
                if run is not chosen and not _is_complete(run) and run.data.tags.get("meca.workspace") == self.owner:
                    self.client.delete_run(run.info.run_id)
            return chosen
        common = {
            "meca.verdict": self.summary["verdict"],
            "meca.judged_at": as_tag(self.summary.get("judged_at")),
            "meca.preset": self.summary["preset"],
            "mlflow.source.name": "meca",
        }
        common["meca.workspace"] = self.owner
        nested = {"mlflow.parentRunId": parent} if parent else {}
        start = int(((self.result.when or time.time()) - seconds) * 1000)
        return self.client.create_run(
            self.experiment, start_time=start, run_name=name, tags={k: _value(v) for k, v in {**common, **tags, **nested}.items()}
        )

    def close_abandoned(self, known: set[str]) -> None:
        """Close what a killed process of this workspace left open and nobody will come back to: its parameters have changed since."""
        query = f"attributes.status = 'RUNNING' and tags.`meca.workspace` = '{self.owner}'"
        for run in self.client.search_runs([self.experiment], query, max_results=100):
            if run.info.run_id not in known:
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _close(self, run: Any, seconds: float) -> None:
        self.client.set_tag(run.info.run_id, "meca.complete", "true")
        self.client.set_terminated(run.info.run_id, "FINISHED", run.info.start_time + int(seconds * 1000))

    def _stage(self, receipt: dict[str, Any], parent: str) -> tuple[str, str | None]:
        """Log one stage under the parent unless its run is there already; return its run id and its model's address."""
        stage, seconds = str(receipt["stage"]), float(receipt["seconds"])
        folder = self.result.work / stage
        tags = {"meca.stage_key": receipt["key"], "meca.stage": stage}
        tags |= {f"meca.in.{name}": value for name, value in receipt["inputs"].items()}
        tags |= {f"meca.out.{name}": value for name, value in receipt["outputs"].items()}
        tags |= {f"meca.version.{name}": value for name, value in receipt["versions"].items()}
        run = self._run("meca.stage_key", receipt["key"], stage, tags, seconds, parent)
        run_id = run.info.run_id
        has_model = (folder / "model.safetensors").is_file()
        if not _is_complete(run):
            points = list(_curve_points(folder / "curves.jsonl"))
            scalars = {**receipt["metrics"], "seconds": seconds, "peak_mib": receipt["peak_mib"]}
            scalars |= {f"seconds.{name}": value for name, value in receipt["timings"].items()}
            self._numbers(run, _flat(receipt["params"]), scalars, points)
            self._inputs(run_id, stage)
            with TemporaryDirectory() as temporary:
                self._files(run_id, _drawn_curves(Path(temporary), points))
            if has_model:
                self._model(run_id, stage, folder)
            self._close(run, seconds)
        elif run.info.status == "RUNNING":  # killed between the two calls of _close
            self._close(run, seconds)
        return run_id, self._model_uri(run_id) if has_model else None

    def _parent(self, run: Any, receipts: Sequence[dict[str, Any]], runs: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        run_id = run.info.run_id
        parameters: dict[str, str] = {}
        for receipt in receipts:
            parameters |= _flat(receipt["params"])
        evaluated = next((receipt["metrics"] for receipt in receipts if receipt["stage"] == "evaluate"), {})
        counts = {f"samples.{name}": value for name, value in self.summary["counts"].items()}
        self._numbers(run, parameters, {**evaluated, **counts, "seconds": sum(float(receipt["seconds"]) for receipt in receipts)}, [])
        # In one request: a server with passwords hashes one for each, which takes it a tenth of a second.
        self.client.log_batch(run_id, tags=[RunTag(f"meca.run.{stage}", stage_run) for stage, stage_run in runs.items()])
        self._dataset(run_id, "input", self.summary["input_sha256"], "training")
        self._dataset(run_id, "sanitized", self.summary["sanitized_sha256"], "output")
        files = [self.result.published / name for name in PARENT_FILES]
        with TemporaryDirectory() as temporary:
            from tasks.mlflow.figures import histogram

            histogram(self.result.published / "verdicts.parquet", Path(temporary) / "suspicion.svg")
            files += [self.result.report / "report.html", Path(temporary) / "suspicion.svg", self.result.published / MANIFEST]
            self._files(run_id, [file for file in files if file.is_file()])

    def _numbers(self, run: Any, parameters: Mapping[str, str], scalars: Mapping[str, Any], points: Sequence[tuple[str, int, float]]) -> None:
        """Log parameters and metrics; the time is that of the run, so that a second call writes the very same rows."""
        from mlflow.entities import Metric, Param

        stamp = run.info.start_time
        metrics = [Metric(_name(name), float(value), stamp, 0) for name, value in scalars.items() if _is_number(value)]
        metrics += [Metric(name, value, stamp, step) for name, step, value in points]
        params = [Param(_name(name), _value(value)) for name, value in parameters.items()]
        for n in range(max(-(-len(params) // PARAMS), -(-len(metrics) // METRICS))):
            some = {"params": params[n * PARAMS : (n + 1) * PARAMS], "metrics": metrics[n * METRICS : (n + 1) * METRICS]}
            self.client.log_batch(run.info.run_id, **some)

    def _files(self, run_id: str, files: Sequence[Path]) -> None:
        for file in files:
            with _time_for(file.stat().st_size):
                self.client.log_artifact(run_id, str(file))

    def _inputs(self, run_id: str, stage: str) -> None:
        if stage in TRAINED:
            self._dataset(run_id, "input", self.summary["input_sha256"], "training")
        elif stage == "publish":
            self._dataset(run_id, "sanitized", self.summary["sanitized_sha256"], "output")

    def _dataset(self, run_id: str, which: str, sha256: str, context: str) -> None:
        """Name a data set as input of a run without loading it. MLflow has no outputs; the context says it."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        place = (self.result.store if which == "input" else self.result.published).relative_to(self.result.workspace).as_posix()
        # The digest (at most 36 characters) is DVC's, for looking up; what identifies the data is the tag.
        digest = self.digests.get(place, sha256[:36])
        dataset = MetaDataset(CodeDatasetSource({"dvc.path": place}), name=f"meca-{which}", digest=digest)._to_mlflow_entity()
        tags = [InputTag("mlflow.data.context", context), InputTag("meca.dataset.sha256", sha256)]
        self.client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _model(self, run_id: str, stage: str, folder: Path) -> None:
        """Log the model of a stage with its signature; what a killed call left behind is removed first."""
        for model in self._models(run_id):
            if str(model.status) == "READY":
                return
            self.client.delete_logged_model(model.model_id)
        import mlflow
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema, TensorSpec

        size = read_json(folder / "model.json")
        shape = (-1, size["height"], size["width"], size["channels"])
        answers = [(DataType.long, "label"), (DataType.string, "class_name"), (DataType.double, "confidence")]
        signature = ModelSignature(Schema([TensorSpec(np.dtype("uint8"), shape)]), Schema([ColSpec(kind, name) for kind, name in answers]))
        self.client.in_time()
        with TemporaryDirectory() as temporary, mlflow.start_run(run_id=run_id), _time_for((folder / "model.safetensors").stat().st_size):
            data = Path(temporary) / "model"  # only what is needed to predict: the stage's other files name samples
            data.mkdir()
            for name in MODEL_FILES:
                shutil.copyfile(folder / name, data / name)
            mlflow.pyfunc.log_model(
                name="model",
                loader_module="tasks.mlflow.serving",
                data_path=str(data),
                signature=signature,
                # No input example: MLflow would load the model to try it, and with it torch, once more in each run.
                # Named, because finding them out loads the model in a second process. meca is not among them: whoever serves
                # the model installs it from its repository; an index may hold another package of that name.
                pip_requirements=["torch", "numpy", "safetensors", "pyyaml"],
                tags={"meca.stage": stage},
            )

    def _models(self, run_id: str) -> list[Any]:
        return list(self.client.search_logged_models([self.experiment], f"source_run_id = '{run_id}'"))

    def _model_uri(self, run_id: str) -> str:
        return next(f"models:/{model.model_id}" for model in self._models(run_id) if str(model.status) == "READY")


def _is_complete(run: Any) -> bool:
    return run.data.tags.get("meca.complete") == "true"


def _result_key(receipts: Sequence[dict[str, Any]]) -> str:
    return _sha256(json.dumps([[receipt["stage"], receipt["key"]] for receipt in receipts]))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _name(text: str) -> str:
    """Return a key that MLflow takes and that is no path; names come from our code, but hostile data may have passed through."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:200].lstrip(".") or "_"


def _value(value: Any) -> str:
    return str(value)[:VALUE_LIMIT]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = "" if value is None else str(value)
    return flat


def _curve_points(file: Path) -> Iterator[tuple[str, int, float]]:
    """Yield name, step and value of every number in a curves.jsonl."""
    if not file.is_file():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        point = json.loads(line)
        step = next((int(point[name]) for name in ("epoch", "step") if _is_number(point.get(name))), number)
        for name, value in point.items():
            if name not in ("phase", "epoch", "step") and _is_number(value):
                yield _name(f"{point.get('phase', 'run')}.{name}"), step, float(value)


def _drawn_curves(folder: Path, points: Sequence[tuple[str, int, float]]) -> list[Path]:
    if not points:
        return []
    from tasks.mlflow.figures import curves

    curves(points, folder / "curves.svg")
    return [folder / "curves.svg"]


def _dvc_digests(workspace: Path) -> dict[str, str]:
    """Return DVC's hash per output path, from dvc.lock."""
    import yaml

    try:
        stages = yaml.safe_load((workspace / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return {out["path"]: str(out["md5"]) for stage in stages.values() for out in stage.get("outs", []) if "md5" in out}


def _write_curves(result: Result, folder: Path) -> None:
    """Write the curves of every stage as CSV (phase, step, and a column per number) for `dvc plots`."""
    folder.mkdir(parents=True)
    for source in sorted(result.work.glob("*/curves.jsonl")):
        lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        names = sorted({name for line in lines for name in line if name not in ("phase", "epoch", "step")})
        with open(folder / f"{source.parent.name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["phase", "step", *map(sheet_cell, names)])
            for number, line in enumerate(lines):
                step = next((line[name] for name in ("epoch", "step") if name in line), number)
                writer.writerow([sheet_cell(value) for value in (line.get("phase", ""), step, *(line.get(name, "") for name in names))])


def _tell(workspace: Path, result: Result) -> dict[str, Any]:
    """Tell MLflow about a result and about what it was not told before; keep what it cannot be told. Return what track.json says.

    No failure of MLflow's gets out: what the run has found does not depend on who hears of it.
    """
    for path in result.receipts:
        read_json(path)  # a result that is not there is an error, and no failure of MLflow's
    seconds, started, told, why = patience(), time.monotonic(), dict[str, Any](), ""
    try:
        told = record(workspace, result, seconds)
        _drop(workspace / SPOOL / told["result_key"][:24])
        if replayed := replay(workspace, None if seconds is None else max(1.0, seconds - (time.monotonic() - started))):
            print(f"meca track: told MLflow about {replayed} earlier results, too.")
        return told
    except MecaError as error:
        why = without_secrets(str(error))
    except Exception:
        why = without_secrets(traceback.format_exc())
    if told:
        print(f"meca track: earlier results stay in {SPOOL}: {plain(why, 2000)}", file=sys.stderr)
        return told
    print(f"meca track: {why}", file=sys.stderr)
    try:
        kept = f"kept in {spool(workspace, result, why)}, told by the next run or by `meca track`"
    except OSError as error:
        kept = f"not kept either ({error.strerror}); `meca track` tells it from the workspace"
    print(f"meca track: MLflow was not told; {kept}.", file=sys.stderr)
    return {"told": False, "why": plain(why, 2000)}


def main() -> None:
    """Run the stage."""
    from meca.stages.runtime import die_with_parent

    die_with_parent()
    result = read_result(Path(), sys.argv[1:])
    try:
        told = _tell(Path(), result)
        temporary = fresh_folder(result.out.with_name(result.out.name + ".tmp"))
        _write_curves(result, temporary / "curves")
        uri = environment.tracking_uri(Path())
        place = without_secrets(uri)
        atomic_write(temporary / "track.json", canonical_json({"schema": "meca.track/1", "uri": place, "uri_sha256": _sha256(place), **told}))
        replace_folder(temporary, result.out)
    except MecaError as error:
        print(f"meca track: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception:
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
        raise SystemExit(MecaError.exit_code) from None


if __name__ == "__main__":
    main()
