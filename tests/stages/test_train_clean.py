"""Stage train_clean: trained from scratch on what is kept, and on nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meca.data.store import open_store, read_parquet, rewrite
from meca.errors import MecaError
from meca.models import build, load_model, read_description
from meca.params import PRESETS
from meca.stages.tensors import KEPT
from meca.training.seeds import generator
from tests.method.tiny import same
from tests.stages.chain import N_TRAIN, NOTHING, quick, step, with_inputs

Finished = Callable[..., Path]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_model_counts_what_it_was_trained_on(preset: str, finished: Finished) -> None:
    out = finished(preset) / "work" / "train_clean"
    words = read_parquet(finished(preset) / "work" / "split" / "decisions.parquet")["verdict"].to_pylist()
    assert json.loads((out / "metrics.json").read_text()) == {"kept": words.count("clean")} != {"kept": N_TRAIN}
    assert read_description(out).class_names == open_store(finished(preset) / "data" / "store").info.class_names


def test_labels_of_flagged_samples_never_reach_the_model(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("train_clean", finished(), tmp_path)
    store = open_store(folder / "data" / "store")
    words = read_parquet(folder / "work" / "split" / "decisions.parquet")["verdict"].to_pylist()
    flagged = [row for row, word in enumerate(words) if word != "clean"]
    changed = {row: (np.array(store.images[row]), (int(store.labels[row]) + 1) % 4) for row in flagged}
    rewrite(store, tmp_path / "other", changed)
    (folder / "data" / "store").rename(tmp_path / "gone")
    (tmp_path / "other").rename(folder / "data" / "store")
    step("train_clean", folder, quick())
    assert same(load_model(folder / "work" / "train_clean"), load_model(finished() / "work" / "train_clean"))


@pytest.mark.parametrize("word", ["poisoned", "review"])
def test_what_is_not_clean_is_not_learnt(word: str, finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("train_clean", finished(), tmp_path)
    file = folder / "work" / "split" / "decisions.parquet"
    table = read_parquet(file)
    words = [word if row % 2 else "clean" for row in range(N_TRAIN)]
    pq.write_table(table.set_column(table.column_names.index("verdict"), "verdict", pa.array(words)), file)
    step("train_clean", folder, quick())
    assert json.loads((folder / "work" / "train_clean" / "metrics.json").read_text()) == {"kept": N_TRAIN // 2}


def test_nothing_left_to_train_on_leaves_the_model_untrained(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("train_clean", finished(), tmp_path)
    file = folder / "work" / "split" / "decisions.parquet"
    table = read_parquet(file)
    pq.write_table(table.set_column(table.column_names.index("verdict"), "verdict", pa.array(["poisoned"] * N_TRAIN)), file)
    step("train_clean", folder, quick())
    assert json.loads((folder / "work" / "train_clean" / "metrics.json").read_text()) == {"kept": 0}
    fresh = build(read_description(folder / "work" / "train_clean"), generator(quick().seed, "train_clean", "init"))
    assert same(load_model(folder / "work" / "train_clean"), fresh)


@pytest.fixture(scope="module")
def nothing_found(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run until `split` in which no class is proven, so that its network is the clean model."""
    folder = with_inputs("split", finished(), tmp_path_factory.mktemp("nothing"))
    step("split", folder, quick(**NOTHING))
    return folder


def test_the_network_of_split_is_taken_over_and_is_the_one_that_would_be_trained(nothing_found: Path, tmp_path: Path) -> None:
    models, curves = [], []
    for name, keep in (("over", True), ("anew", False)):
        folder = with_inputs("train_clean", nothing_found, tmp_path / name)
        if not keep:
            shutil.rmtree(folder / "work" / "split" / KEPT)
        receipt = step("train_clean", folder, quick(**NOTHING))
        curves.append((folder / "work" / "train_clean" / "curves.jsonl").read_text())
        assert ("train" in receipt["timings"]) != keep, "it was trained once"
        models.append(load_model(folder / "work" / "train_clean"))
    assert curves[0] == curves[1] and same(*models) and same(models[0], load_model(nothing_found / "work" / "split" / KEPT))


def test_another_architecture_is_trained_whatever_detection_used(nothing_found: Path, tmp_path: Path) -> None:
    folder = with_inputs("train_clean", nothing_found, tmp_path)
    step("train_clean", folder, quick(**NOTHING, network__width=6))
    assert read_description(folder / "work" / "train_clean").network.width == 6
    with pytest.raises(MecaError, match=r"model\.safetensors"):
        (folder / "work" / "split" / KEPT / "model.safetensors").unlink()
        step("train_clean", folder, quick(**NOTHING))


def test_a_network_that_was_trained_on_other_samples_is_not_taken_over(nothing_found: Path, tmp_path: Path) -> None:
    folder = with_inputs("train_clean", nothing_found, tmp_path)
    file = folder / "work" / "split" / "decisions.parquet"
    table = pq.read_table(file)
    words = ["poisoned", *table["verdict"].to_pylist()[1:]]
    file.unlink()
    pq.write_table(table.set_column(table.column_names.index("verdict"), "verdict", pa.array(words)), file)
    receipt = step("train_clean", folder, quick(**NOTHING))
    assert "train" in receipt["timings"] and receipt["metrics"]["kept"] == N_TRAIN - 1
