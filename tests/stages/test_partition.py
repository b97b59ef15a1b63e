"""Stage partition: a score for every training sample, from a model that is written beside it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from meca.data.store import open_store, read_parquet
from meca.method.partition import PartitionParams, choose, principal_axis
from meca.models import load_model, read_description
from meca.params import PRESETS
from meca.training.engine import features, predict
from tests.stages.chain import N_TRAIN, quick, run

Finished = Callable[..., Path]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_scores_are_those_of_the_model(preset: str, finished: Finished) -> None:
    out, store = finished(preset) / "work" / "partition", open_store(finished(preset) / "data" / "store")
    table, params = read_parquet(out / "scores.parquet"), quick(preset).group("partition", PartitionParams)
    assert table.column_names == ["row", "sample_id", "suspicion", "likely_clean", "kl", "loss", "axis"]
    assert table["row"].to_pylist() == list(range(N_TRAIN)) and table["sample_id"].to_pylist() == store.ids[:N_TRAIN]
    labels = torch.from_numpy(np.array(store.labels[:N_TRAIN]))
    logits = predict(load_model(out), torch.from_numpy(np.array(store.images[:N_TRAIN])))
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert np.allclose(table["loss"].to_numpy(), expected.numpy(), atol=1e-5)
    suspicion = table["suspicion"].to_numpy()
    assert suspicion.dtype == np.float32 and suspicion.min() >= 0 and suspicion.max() <= 1
    assert table["kl"].to_numpy().min() >= -1e-6
    chosen = choose(torch.from_numpy(suspicion.copy()), labels, params.alpha, params.alpha_of)
    assert np.array_equal(table["likely_clean"].to_numpy(zero_copy_only=False), chosen.numpy())
    seen = features(load_model(out), torch.from_numpy(np.array(store.images[:N_TRAIN])))
    assert np.allclose(table["axis"].to_numpy(), principal_axis(seen, labels, expected).numpy(), atol=1e-2)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["train_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert metrics["likely_clean"] == int(chosen.sum())


def test_the_network_normalizes_by_the_training_pixels_alone(finished: Finished) -> None:
    about, store = read_description(finished() / "work" / "partition"), open_store(finished() / "data" / "store")
    pixels = store.images[:N_TRAIN] / 255
    assert np.allclose(about.mean, pixels.mean((0, 1, 2)), atol=1e-5) and np.allclose(about.std, pixels.std((0, 1, 2)), atol=1e-5)
    assert about.class_names == store.info.class_names and (about.height, about.width, about.channels) == (16, 16, 3)


def test_the_curve_has_a_point_for_every_epoch(finished: Finished) -> None:
    lines = [json.loads(line) for line in (finished() / "work" / "partition" / "curves.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [("train", 1), ("train", 2)]


@pytest.mark.parametrize(("preset", "expected"), [("default", "compact"), ("paper", "resnet18")])
def test_the_detector_is_a_network_of_its_own_but_in_the_paper(preset: str, expected: str, tmp_path: Path) -> None:
    params = quick(preset, **{"network.name": "resnet18", "network.stem": "imagenet"})
    folder = run(tmp_path, params, ["poison", "partition"])
    assert read_description(folder / "work" / "partition").network.name == expected
