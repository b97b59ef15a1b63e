"""What starting from weights brings: `compact`, trained on CIFAR-100, then on a part of CIFAR-10, against from scratch with as many passes.

    python -m benchmarks.quality.from_weights FOLDER

FOLDER keeps the stores and the weights, and a second call takes them from there. A JSON line for each training goes to standard output;
docs/networks.md has the figures. Seeds 0 to 2 of CIFAR-10 and 0 of CIFAR-100 are none of reports (seeds.toml).
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.campaign import data_folder
from meca.data.ingest import read_source
from meca.data.readers import IngestParams
from meca.models import NetworkParams, save_model
from meca.models.weights import start
from meca.params import Params, read_params, with_settings
from meca.stages.tensors import describe_network, open_train
from meca.training.device import EngineParams, prepare
from meca.training.engine import Data, Session, predict
from meca.training.trainer import Recipe

BEFORE, PASSES = 6, 8  # passes over CIFAR-100, and over the part of CIFAR-10
N = 2000  # training images of CIFAR-10, and test images
SEEDS = (0, 1, 2)


def stored(folder: Path, source: str, seed: int, limit: int) -> tuple[Params, Path]:
    """Return the parameters of a set, and its store, which is read where it is not there yet."""
    taken = {"ingest.source": source, "ingest.size": 32, "ingest.train_limit": limit, "ingest.test_limit": limit}
    params = with_settings(read_params(), {"seed": seed, **taken})
    place = folder / f"{Path(source).name}-{seed}"
    if not (place / "store.json").is_file():
        read_source(params.group("ingest", IngestParams), seed, place)
    return params, place


def trained(params: Params, place: Path, passes: int, weights: Path | None, out: Path | None = None) -> dict[str, object]:
    """Train on a store, and return what came of it; `out` is where the model goes."""
    begun = time.process_time()
    settings = {"train_clean.epochs": passes, "train_clean.min_steps": 0, "network.weights": str(weights or "")}
    params = with_settings(params, settings)
    store, images, labels = open_train(place, device := prepare(params.group("engine", EngineParams)))
    network = params.group("network", NetworkParams)
    start_from = start(describe_network(store, images, network), network)
    session = Session(params.seed, device)
    model = start_from.build(session.draws("train_clean", "init")).to(device.name)
    session.train(model, Data(images, labels), params.group("train_clean", Recipe), "train_clean")
    if out is not None:
        save_model(model, start_from.description, out)
    found = predict(model, torch.from_numpy(np.array(store.images[store.test])).to(device.name)).argmax(1).cpu().numpy()
    right = int((found == store.labels[store.test]).sum())
    about = {"set": place.name, "n": store.info.n_train, "passes": passes, "from_weights": weights is not None}
    return {**about, "acc": right / store.info.n_test, "n_test": store.info.n_test, "cpu_seconds": round(time.process_time() - begun, 1)}


def main() -> None:
    """Train, and say each result as a JSON line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("Expected `python -m benchmarks.quality.from_weights FOLDER`, where FOLDER takes the stores and the weights.")
    folder, data = Path(sys.argv[1]), data_folder()
    weights = folder / "weights"
    if not (weights / "model.safetensors").is_file():
        print(json.dumps(trained(*stored(folder, str(data / "cifar100"), 0, 0), BEFORE, None, weights)), flush=True)
    for seed in SEEDS:
        of_seed = stored(folder, str(data / "cifar10"), seed, N)
        for given in (None, weights / "model.safetensors"):
            print(json.dumps(trained(*of_seed, PASSES, given)), flush=True)


if __name__ == "__main__":
    main()
