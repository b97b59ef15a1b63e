"""Poison whose labels are right, in a class that a common feature proves: trained networks find it, and none of it is handed back."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from meca.attacks.sig import sig
from meca.data.store import open_store, read_parquet
from meca.method.enhance import SIDES
from meca.method.transfer import target_share
from meca.metrics import share
from meca.models import build, load_model, read_description
from meca.stages.tensors import EVERYTHING
from meca.training.device import Device
from meca.training.engine import Data, Session
from meca.training.seeds import generator
from meca.training.trainer import Recipe
from tests.method.tiny import CLASSES
from tests.stages.chain import make_store, quick, step

N, POISON, TARGET = 500, 40, 1
# One round whose order is that of the margins; the limit of the proof is that of params.yaml.
RECIPE = {"recipe__epochs": 12, "recipe__batch_size": 16, "recipe__augment": "none"}
PARAMS = {
    "network__width": 8, "detector__width": 8, "split__min_range": 1e9, "second_look__min_classes": 6, "second_look__rounds": 1,
    "second_look__margin_weight": 5.0, **{f"second_look__{name}": value for name, value in RECIPE.items()},
    "train_clean__epochs": 24, "train_clean__augment": "none", "train_clean__label_smoothing": 0.0,
    "relabel_finetune__recipe__augment": "none", "relabel_finetune__confidence": 0.5,
}  # fmt: skip
# A network that is trained briefly on everything learns the trigger before the stripes.
BRIEF = {**PARAMS, "train_clean__epochs": 3, "train_clean__lr": 0.05}


def waved(images: np.ndarray) -> np.ndarray:
    return sig(images, 60.0, 4)


def striped(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [n h w c] and int64 [n]: the class is the quarter with faint stripes, on noise and light of any strength.

    The stripes begin anywhere, so that the mean of a class shows nothing of them: else content would explain the trigger, which the first
    samples of the target class carry.
    """
    rng = torch.Generator().manual_seed(0)
    labels = torch.randperm(n, generator=rng) % CLASSES
    images = 128 + torch.randn(n, 16, 16, 3, generator=rng) * (10 + 20 * torch.rand(n, 1, 1, 1, generator=rng))
    images += 30 * torch.randn(n, 1, 1, 1, generator=rng)
    for i, c in enumerate(labels.tolist()):
        top, left = divmod(c, 2)
        stripes = 14 * torch.sin(2 * math.pi * (torch.arange(8) / 4 + torch.rand(1, generator=rng)))
        images[i, top * 8 : (top + 1) * 8, left * 8 : (left + 1) * 8] += stripes[:, None, None]
    waved_images, given = images.clamp(0, 255).to(torch.uint8).numpy(), labels.numpy()
    chosen = np.flatnonzero(given == TARGET)[:POISON]
    waved_images[chosen] = waved(waved_images[chosen])
    return waved_images, given


def trust_least(poisoned: np.ndarray, folder: Path) -> None:
    """Write the scores of an `enhance` that learns the poison last, and to which nothing stands apart."""
    margin = poisoned + np.random.default_rng(0).normal(0, 0.1, N)
    margins = {f"margin_{side}": pa.array(margin if side == "behind" else np.zeros(N), pa.float32()) for side in SIDES}
    rows = {"row": np.arange(N), "sample_id": open_store(folder / "data" / "store").ids, "suspicion": pa.array(np.zeros(N), pa.float32())}
    (folder / "work" / "enhance").mkdir(parents=True)
    pq.write_table(pa.table(rows | margins), folder / "work" / "enhance" / "scores.parquet")


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Return a run from `partition` to `relabel_finetune`, and which samples are poisoned."""
    folder = tmp_path_factory.mktemp("clean-label")
    labels = make_store(folder / "data" / "store", N, 0, striped).labels
    poisoned = np.isin(np.arange(N), np.flatnonzero(labels == TARGET)[:POISON])
    trust_least(poisoned, folder)
    for name, changes in (("partition", PARAMS), ("split", BRIEF), ("train_clean", PARAMS), ("relabel_finetune", PARAMS)):
        step(name, folder, quick(**changes))
    return folder, poisoned


def test_no_clean_label_poison_that_a_common_feature_proves_is_handed_back(cleaned: tuple[Path, np.ndarray]) -> None:
    folder, poisoned = cleaned
    table = read_parquet(folder / "work" / "relabel_finetune" / "decisions.parquet").sort_by("row")
    assert {proof for proof, poison in zip(table["proof"].to_pylist(), poisoned, strict=True) if poison} == {"common-feature"}, "all is flagged"
    assert (table["clean_pred"].to_numpy() == table["label"].to_numpy())[poisoned].mean() > 0.7, "the clean model confirms it: its labels are right"
    actions, flagged = np.array(table["action"].to_pylist()), table["proof"].is_valid().to_numpy()
    assert "keep" not in actions[flagged] and set(actions[~flagged]) == {"keep"}
    assert (actions[poisoned] == "remove").mean() > 0.7
    assert not any("confirmed" in codes for codes in table["reasons"].to_pylist())


def test_what_is_not_handed_back_counts_as_poison(cleaned: tuple[Path, np.ndarray]) -> None:
    verdict = json.loads((cleaned[0] / "work" / "relabel_finetune" / "verdict.json").read_text())
    flagged = read_parquet(cleaned[0] / "work" / "split" / "decisions.parquet")["proof"].is_valid().to_numpy()
    assert (verdict["verdict"], verdict["target_class"]) == ("poisoned", TARGET) and verdict["estimated_rate"] == share(int(flagged.sum()), N)


def test_a_network_that_is_trained_on_what_goes_out_does_not_learn_the_trigger(cleaned: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = cleaned
    store = open_store(folder / "data" / "store")
    images = torch.from_numpy(store.pixels(store.train))
    others = torch.from_numpy(waved(images.numpy()[store.labels != TARGET]))
    learnt, final = (load_model(folder / "work" / name) for name in (f"split/{EVERYTHING}", "relabel_finetune"))
    assert target_share(learnt.eval(), others, TARGET) > 0.5 and target_share(final.eval(), others, TARGET) < 0.2
    table = read_parquet(folder / "work" / "relabel_finetune" / "decisions.parquet").sort_by("row")
    labels = torch.tensor(
        [given if new is None else new for new, given in zip(table["new_label"].to_pylist(), table["label"].to_pylist(), strict=True)]
    )
    kept = torch.tensor([action != "remove" for action in table["action"].to_pylist()])
    victim, recipe = build(read_description(folder / "work" / "train_clean"), generator("victim")), quick(**BRIEF).group("train_clean", Recipe)
    Session(0, Device("cpu"), tmp_path).train(victim, Data(images, labels), recipe, "victim", kept)
    assert target_share(victim.eval(), others, TARGET) < 0.2
