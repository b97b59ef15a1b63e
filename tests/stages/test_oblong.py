"""Images need not be square: the whole pipeline on a store of 24 x 40 pixels, with borders, every attack and the control."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from meca import pipeline
from meca.attacks import ATTACKS
from meca.data.store import open_store
from meca.models import load_model, read_description
from meca.params import with_settings
from meca.release.verification import verify
from tests.making import encode, params, settings
from tests.method.tiny import samples
from tests.stages.chain import QUICK, quick, step

HIGH, WIDE = 24, 40
SHORT = {
    "control.when": "always", "control.kinds": ["badnet"], "control.rates": [0.1], "control.min_planted": 2, "control.probe": 8,
    "evaluate.references": False, "poison.attack": "none",
}  # fmt: skip


def folder_of_images(root: Path, n: int = 12) -> Path:
    """Write images of 12 x 48 pixels, of four classes: with `pad` they lie in the middle of 24 x 40."""
    for split in ("train", "test"):
        images, labels = samples(4 * n, seed=5 if split == "train" else 6, size=48)
        for i, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
            place = root / split / f"class {label}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:02d}.png").write_bytes(encode(np.ascontiguousarray(image[::4])))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    root = tmp_path_factory.mktemp("oblong")
    sizes = {"ingest.source": str(folder_of_images(root / "in")), "ingest.size": f"{HIGH}x{WIDE}", "ingest.fit": "pad"}
    chosen = with_settings(settings(**{key.replace(".", "__"): value for key, value in {**QUICK, **SHORT}.items()}), sizes)
    pipeline.run(root / "run", chosen)
    return root / "run"


def test_every_stage_takes_a_store_that_is_no_square(folder: Path) -> None:
    store = open_store(folder / "data" / "store")
    assert store.images.shape[1:] == (HIGH, WIDE, 3) and store.info.source["size"]["fit"] == "pad"
    assert (store.images[:, :7] == 128).all() and (store.images[:, 17:] == 128).all(), "10 x 40 pixels in the middle"
    assert verify(folder / "published") == []
    record = json.loads((folder / "published" / "summary.json").read_text())["judged_at"]
    assert record == {
        "height": HIGH, "width": WIDE, "largest": {"height": 12, "width": 48}, "images_reduced": 48,
        "chosen": "given", "reason": "ingest.size is 24x40.", "fit": "pad",
    }  # fmt: skip
    said = json.loads((folder / "work" / "control" / "control.json").read_text())
    assert said["ran"] and any(max(line["planted"]) for line in said["lines"])


def test_the_page_shows_it_as_it_is(folder: Path) -> None:
    page = (folder / "report" / "report.html").read_text()
    assert f"stored at {WIDE} × {HIGH} with borders" in page and "<dd>ingest.size is 24x40.</dd>" in page
    assert re.search(r"<img[^>]*data:image/png", page)


def test_the_model_says_what_it_takes(folder: Path) -> None:
    made = read_description(folder / "published" / "model")
    assert (made.height, made.width, made.fit, made.resampling) == (HIGH, WIDE, "pad", "bilinear")
    logits = load_model(folder / "published" / "model")(torch.zeros(2, 3, HIGH, WIDE))
    assert logits.shape == (2, 4)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_plants_its_trigger(attack: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "data" / "ingested", tmp_path / "data" / "ingested")
    step("poison", tmp_path, quick(attack=attack, **{"poison.rate": 0.2, "poison.cover_rate": 0.1}))
    before, after = (open_store(tmp_path / "data" / name) for name in ("ingested", "store"))
    assert after.images.shape == before.images.shape
    poisoned = pq.read_table(tmp_path / "data" / "truth" / "truth.parquet")["is_poisoned"].to_numpy(zero_copy_only=False)
    changed = (np.asarray(after.images[after.train]) != np.asarray(before.images[before.train])).any(axis=(1, 2, 3))
    assert poisoned.any() and changed[poisoned].any(), attack


def test_pixels_without_a_file_come_back_without_their_borders(tmp_path: Path) -> None:
    """What an attack changes in a source of arrays is published in the size that the array had."""
    from meca.data.ingest import read_source
    from meca.data.store import rewrite

    read_source(params(source="digits", size=f"{HIGH}x{WIDE}", fit="pad", train_limit=20, test_limit=10), 0, tmp_path / "a")
    store = open_store(tmp_path / "a")
    image = np.array(store.images[0])
    image[:, 8:32] = 255 - image[:, 8:32]  # the digit is 24 x 24 in the middle
    rewrite(store, tmp_path / "b", {0: (image, 1)})
    changed = open_store(tmp_path / "b")
    line = changed.readable.to_pylist()[0]
    found, was = changed.original(line).astype(int), store.original(store.readable.to_pylist()[0]).astype(int)
    assert found.shape == was.shape == (8, 8, 1) and abs(found - (255 - was)).mean() < 25, "the negative of the digit, and no grey border"
