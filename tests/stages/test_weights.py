"""Weights that the user names: who starts from them, who does not, and that other bytes make a stage stale."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from meca import pipeline
from meca.data.store import open_store, write_parquet
from meca.errors import UsageError
from meca.files import canonical_json
from meca.models import NetworkParams, build, load_model, read_description, save_model
from meca.params import Params
from meca.stages import evaluate
from meca.stages.parameters import validate
from meca.stages.runtime import describe, input_hashes, main, stage_key, weights_digest
from meca.stages.tensors import KEPT, describe_network, open_train, rows_digest
from meca.training.device import Device
from meca.training.engine import Session
from meca.training.seeds import generator
from meca.training.trainer import Recipe
from tests.method.tiny import same
from tests.stages.chain import MODULES, N_TRAIN, NOTHING, paths, quick, run, step

STILL = {"train_clean__epochs": 1, "train_clean__lr": 1e-9, "partition__recipe__epochs": 1, "partition__recipe__lr": 1e-9}
NEAR = {"atol": 1e-5, "rtol": 0.0}


def still(**changes: Any) -> Params:
    """Return parameters under which a training moves its weights by nothing that counts."""
    return quick("default", "none", **{key.replace("__", "."): value for key, value in {**STILL, **changes}.items()})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run until `poison`, and of `split` what train_clean reads: nothing is flagged, and its network is there to be taken over."""
    folder = run(tmp_path_factory.mktemp("run"), quick("default", "none"), ["poison"])
    store = open_store(folder / "data" / "store")
    (folder / "work" / "split").mkdir(parents=True)
    write_parquet(pa.table({"row": np.arange(N_TRAIN), "verdict": ["clean"] * N_TRAIN}), folder / "work" / "split" / "decisions.parquet")
    data, images, _ = open_train(store.path, Device("cpu"))
    about = describe_network(data, images, still().group("network", NetworkParams))
    save_model(build(about, generator("kept")), about, folder / "work" / "split" / KEPT)
    (folder / "work" / "split" / KEPT / "rows.sha256").write_text(rows_digest(np.ones(N_TRAIN, bool)), encoding="utf-8")
    (folder / "work" / "split" / KEPT / "curve.jsonl").write_text(canonical_json({"epoch": 1, "loss": 1.0, "accuracy": 1.0}, indent=None))
    return folder


@pytest.fixture
def there(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place, tmp_path / "run"))


@pytest.fixture
def given(place: Path, tmp_path: Path) -> Path:
    """Return a file of weights for the network of these parameters, with a normalization of its own."""
    about = dataclasses.replace(read_description(place / "work" / "split" / KEPT), mean=(0.3,) * 3, std=(0.5,) * 3)
    save_model(build(about, generator("given")), about, tmp_path / "given")
    return tmp_path / "given" / "model.safetensors"


def learnt(model: nn.Module) -> list[torch.Tensor]:
    return list(model.parameters())


def near(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.allclose(x, y, **NEAR) for x, y in zip(learnt(a), learnt(b), strict=True))


def test_the_clean_model_starts_from_them_and_says_so_and_nothing_is_taken_over(there: Path, given: Path) -> None:
    receipt = step("train_clean", there, still())
    assert "train" not in receipt["timings"] and same(load_model(there / "work" / "train_clean"), load_model(there / "work" / "split" / KEPT))
    receipt = step("train_clean", there, still(network__weights=str(given)))
    model, about = load_model(there / "work" / "train_clean"), read_description(there / "work" / "train_clean")
    assert "train" in receipt["timings"] and near(model, load_model(given.parent))
    assert about.weights_sha256 == receipt["inputs"]["network.weights"] == weights_digest(given) and about.mean == pytest.approx((0.3,) * 3)


def test_another_normalization_is_another_network_that_is_not_taken_over(there: Path) -> None:
    assert "train" in step("train_clean", there, still(network__normalize="imagenet"))["timings"]
    assert read_description(there / "work" / "train_clean").mean == (0.485, 0.456, 0.406)


def test_with_nothing_to_train_on_the_weights_stay_as_they_are(there: Path, given: Path) -> None:
    file = there / "work" / "split" / "decisions.parquet"
    write_parquet(pa.table({"row": np.arange(N_TRAIN), "verdict": ["poisoned"] * N_TRAIN}), file)
    step("train_clean", there, still(network__weights=str(given)))
    assert same(load_model(there / "work" / "train_clean"), load_model(given.parent))


def test_both_references_start_from_them(place: Path, given: Path) -> None:
    params = still(network__weights=str(given))
    recipe = params.group("train_clean", Recipe)
    found: list[nn.Module] = []
    of = (params.group("network", NetworkParams), (recipe, recipe), Device("cpu"))
    kept = {name: np.ones(N_TRAIN, bool) for name in ("no_defence", "oracle")}
    evaluate.references(kept, open_train(place / "data" / "store", of[2]), *of, lambda *_: Session(0, of[2]), lambda model: found.append(model))
    assert len(found) == 4 and all(near(model, load_model(given.parent)) for model in found)


def test_detection_does_not_start_from_them_unless_it_is_asked_to(there: Path, given: Path) -> None:
    out, models = there / "work" / "partition", []
    for settings in ({}, {"network__weights": str(given)}, {"network__weights": str(given), "detector__name": "same", "detector__weights": "same"}):
        step("partition", there, still(**settings))
        models.append(load_model(out))
    assert same(models[0], models[1]) and near(models[2], load_model(given.parent)) and not near(models[0], models[2])
    assert read_description(out).weights_sha256 == weights_digest(given)


def test_split_trains_from_scratch_and_says_so_where_partition_did_not(there: Path, given: Path) -> None:
    """Else its network would be taken over for a clean model that started from the weights."""
    shutil.rmtree(there / "work" / "split")
    params = still(**NOTHING, network__weights=str(given), detector__name="same", detector__weights="same")
    for name in ("partition", "enhance", "split", "train_clean"):
        receipt = step(name, there, params)
    kept, clean = (read_description(there / "work" / name) for name in (f"split/{KEPT}", "train_clean"))
    assert kept.weights_sha256 is None and clean.weights_sha256 == weights_digest(given)
    assert dataclasses.replace(kept, weights_sha256=clean.weights_sha256) == clean and "train" in receipt["timings"]


def test_weights_that_do_not_fit_show_before_the_detection(there: Path, given: Path) -> None:
    for settings in ({"network__width": 6}, {"network__name": "resnet18", "network__stem": "cifar"}):
        with pytest.raises(UsageError, match=r"set network\.name, network\.stem and network\.width to what the weights were trained as"):
            step("partition", there, still(network__weights=str(given), **settings))
    with pytest.raises(UsageError, match=r"found none; name a file that can be read"):
        validate(still(network__weights=str(given.parent / "gone")))
    with pytest.raises(UsageError, match=r"expected detector\.weights same with network\.weights"):
        validate(still(detector__weights="same"))


@pytest.mark.parametrize("name", ["partition", "train_clean", "evaluate"])
def test_other_bytes_make_a_stage_stale_and_its_checkpoints_another_ones(name: str, there: Path, given: Path) -> None:
    params, stage = still(network__weights=str(given)), describe(MODULES[name])
    inputs = {each: there / "data" / "store" for each in stage.inputs}
    before = input_hashes(stage, inputs, params)
    changed = bytearray(given.read_bytes())
    changed[-1] ^= 1
    given.write_bytes(changed)
    after = input_hashes(stage, inputs, params)
    assert {key for key in after if after[key] != before[key]} == {"network.weights"}
    assert stage_key(stage, before, params) != stage_key(stage, after, params)
    assert input_hashes(stage, inputs, still()).keys() == {*stage.inputs}


def test_a_finished_stage_is_run_again_where_the_bytes_have_changed(there: Path, given: Path) -> None:
    params, receipt = still(network__weights=str(given)), there / "receipt.json"
    step("train_clean", there, params, receipt=receipt)
    ask = (MODULES["train_clean"], paths("train_clean", there), params, receipt)
    assert pipeline._finished(*ask)
    save_model(load_model(there / "work" / "split" / KEPT), read_description(given.parent), given.parent)
    assert not pipeline._finished(*ask)


def test_a_stage_that_dvc_starts_wants_dvc_to_see_them_change(
    there: Path, given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meca.stages.runtime.die_with_parent", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("MECA_SCRATCH", str(there / "scratch"))
    file = there / "params.yaml"
    options = [word for key, path in paths("train_clean", there).items() for word in (f"--{key.replace('_', '-')}", str(path))]
    for watch, code in ((".dvcignore", 4), (str(given), None)):
        file.write_text(
            json.dumps(still(network__weights=str(given), network__watch=watch, train_clean__lr=0.01, partition__recipe__lr=0.01).tree)
        )  # JSON is YAML
        if code is None:
            main(MODULES["train_clean"], [*options, "--params", str(file)])
        else:
            with pytest.raises(SystemExit, match="4"):
                main(MODULES["train_clean"], [*options, "--params", str(file)])
            assert "expected network.watch to be network.weights" in capsys.readouterr().err
    assert read_description(there / "work" / "train_clean").weights_sha256 == weights_digest(given)
