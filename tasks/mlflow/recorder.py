"""Writes one result into MLflow: a parent, and a nested run for each stage."""

import json
import math
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meca.data.judged import as_tag, at_size
from meca.files import read_json
from tasks import environment
from tasks.mlflow.client import time_for
from tasks.mlflow.result import MANIFEST, MODEL_FILES, PARENT_FILES, Result, result_key, sha256_text

__all__ = ["METRICS", "PARAMS", "TRAINED", "VALUE_LIMIT", "Recorder", "experiment_id", "owner_of"]


VALUE_LIMIT = 500  # characters of a parameter or tag: what data may have named stays short


PARAMS, METRICS = 100, 900  # in one call: MLflow takes 100 parameters, and 1000 of both


TRAINED = ("partition", "enhance", "train_clean", "relabel_finetune")  # stages that learnt from the input set


def owner_of(workspace: Path) -> str:
    """Return a name of this workspace that says nothing about it: only its own runs are ever closed or removed."""
    return sha256_text(f"{socket.gethostname()}\0{workspace.resolve()}")[:16]


def experiment_id(client: Any, name: str, workspace: Path) -> str:
    """Return the id of an experiment, which is made or restored where it is not active."""
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


class Recorder:
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
        key = result_key(receipts)
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
        power = next((receipt["metrics"] for receipt in receipts if receipt["stage"] == "control"), {})
        counts |= {f"control.{name}": value for name, value in power.items()}
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
            with time_for(file.stat().st_size):
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

        shape = (-1, -1, -1, -1)  # any size, and grey or RGB: the model resizes as its model.json says (`tasks.mlflow.serving`)
        answers = [(DataType.long, "label"), (DataType.string, "class_name"), (DataType.double, "confidence")]
        signature = ModelSignature(Schema([TensorSpec(np.dtype("uint8"), shape)]), Schema([ColSpec(kind, name) for kind, name in answers]))
        self.client.in_time()
        with TemporaryDirectory() as temporary, mlflow.start_run(run_id=run_id), time_for((folder / "model.safetensors").stat().st_size):
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
                pip_requirements=["torch", "numpy", "pillow", "safetensors", "pyyaml"],
                tags={"meca.stage": stage},
            )

    def _models(self, run_id: str) -> list[Any]:
        return list(self.client.search_logged_models([self.experiment], f"source_run_id = '{run_id}'"))

    def _model_uri(self, run_id: str) -> str:
        return next(f"models:/{model.model_id}" for model in self._models(run_id) if str(model.status) == "READY")


def _is_complete(run: Any) -> bool:
    return run.data.tags.get("meca.complete") == "true"


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
