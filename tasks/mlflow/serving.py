"""How MLflow loads a model of meca: by name of this module and from safetensors, so nothing is unpickled.

    python -m tasks.mlflow.serving NAME ALIAS     load what the alias names, in this clean process, and let it predict

The program that loads it needs meca installed; `mlflow.pyfunc.load_model` finds `_load_pyfunc` here. That function of MLflow
runs whatever module the entry of a registry names: load what `tasks.mlflow.registry.fetch_alias` has looked at, or a model that you trust.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meca.errors import MecaError
from meca.text import plain
from tasks import environment

__all__ = ["Classifier", "check"]

IMAGES = 8  # that the check lets it see
PATIENCE = 300.0  # seconds for the whole check, of which importing torch and MLflow takes most


class Classifier:
    """A classifier as MLflow wants it: images in, labels with their names out."""

    def __init__(self, folder: Path) -> None:
        """Load the model of a folder (`model.safetensors`, `model.json`)."""
        from meca.models import load_model, read_description

        self.description = read_description(folder)
        self.model = load_model(folder).eval()

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `label` (int64), `class_name` and `confidence` (of the label, in [0, 1]) of each image.

        Args:
            images: uint8 [n h w c], upright and with 1 or 3 channels, as the files have them. Those of another size than the model's are
                resized as they were for its training (model.json: height, width, fit); another type is refused.
            params: Nothing is read from it.
        """
        import numpy as np
        import torch

        from meca.training.engine import predict

        images = np.asarray(images)
        channels = sorted({1, self.description.channels})
        if images.dtype != np.uint8 or images.ndim != 4 or min(images.shape[1:3]) < 1 or images.shape[3] not in channels:
            expected = f"uint8 [n, height, width, {' or '.join(map(str, channels))}]"
            raise ValueError(f"expected {expected}, got {images.dtype} {list(images.shape)}")
        images = self.description.preprocess(images)
        with torch.inference_mode():
            confidence, label = predict(self.model, torch.from_numpy(np.require(images, requirements=("C", "W")))).softmax(1).max(1)
        names = np.array(self.description.class_names, dtype=object)
        return {"label": label.numpy(), "class_name": names[label.numpy()], "confidence": confidence.numpy().astype(np.float64)}


def _load_pyfunc(path: str) -> Classifier:
    """Return what `mlflow.pyfunc.load_model` wraps."""
    return Classifier(Path(path))


def check(workspace: Path, name: str, alias: str) -> dict[str, Any]:
    """Let a clean process load what an alias names, and predict; return what it says.

    Args:
        workspace: Where MLflow's records are, unless MLFLOW_TRACKING_URI says otherwise.
        name: The registered model.
        alias: One of its aliases.

    Returns:
        `model`, `version`, `alias`, `sha256` (of the model), `classes`, `labels` (that it gave to images of noise), `seconds`.

    Raises:
        MecaError: It cannot be loaded, is not what was registered, or does not predict.
    """
    variables = environment.child_environment() | {"MLFLOW_TRACKING_URI": environment.tracking_uri(workspace)}
    # The package that runs now, and not a copy of it in the working directory (-P).
    variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "tasks.mlflow.serving", "--", name, alias],
            cwd=workspace, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MecaError(f"The check of {plain(name)}@{plain(alias)} took longer than {PATIENCE:.0f} s; is the server slow?") from None
    if done.returncode:
        last = environment.without_secrets(done.stderr.strip()).splitlines()[-1:] or ["it said nothing"]
        raise MecaError(f"{plain(name)}@{plain(alias)} cannot be served: {plain(last[0].removeprefix('meca: '), 1000)}")
    return json.loads(done.stdout.splitlines()[-1])


def _check(name: str, alias: str) -> dict[str, Any]:
    environment.prepare()
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # whatever the user has set
    import mlflow
    import numpy as np

    from tasks.mlflow import registry

    started = time.perf_counter()
    with TemporaryDirectory() as temporary:
        version, folder = registry.fetch_alias(Path(), name, alias, Path(temporary))
        served = mlflow.pyfunc.load_model(str(folder.parents[1]))  # what was looked at, and not what the alias may name by now
        direct = Classifier(folder)
        size = (direct.description.height, direct.description.width, direct.description.channels)
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, *size), dtype=np.uint8)
        given = served.predict(images)
        names = direct.description.class_names
        labels = [int(label) for label in given["label"]]
        expected = direct.predict(images)
        if labels != expected["label"].tolist() or list(given["class_name"]) != [names[label] for label in labels]:
            raise MecaError("what MLflow serves answers otherwise than the model itself.")
        if not all(0 <= value <= 1 for value in given["confidence"]):
            raise MecaError("it gives confidences that are none.")
        digest = registry.model_digest(folder)
    return {
        "model": name, "version": version, "alias": alias, "sha256": digest, "classes": list(names), "labels": labels,
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def main() -> None:
    """Check one alias in this process."""
    parser = argparse.ArgumentParser(prog="python -m tasks.mlflow.serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="the registered model")
    parser.add_argument("alias", help="one of its aliases")
    arguments = parser.parse_args()
    try:
        print(json.dumps(_check(arguments.name, arguments.alias)))
    except MecaError as error:
        print(f"meca: {plain(error, 2000)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        print(f"meca: {type(error).__name__}: {plain(environment.without_secrets(' '.join(str(error).split())), 1000)}", file=sys.stderr)
        raise SystemExit(MecaError.exit_code) from None


if __name__ == "__main__":
    main()
