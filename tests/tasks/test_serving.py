"""What is served takes images of any size, and brings them to the model's as stage ingest did for its training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from meca.models import Architecture, build, read_description, save_model
from meca.training.seeds import generator
from tasks.mlflow.serving import Classifier
from tests.making import encode, ingest, pixels
from tests.method.tiny import description

HIGH, WIDE = 12, 20


def model(folder: Path, fit: str = "squash") -> Path:
    made = dataclasses.replace(description(Architecture("compact", "s2d", 4)), height=HIGH, width=WIDE, fit=fit)  # pyright: ignore[reportArgumentType]
    save_model(build(made, generator("test", 1)), made, folder)
    return folder


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_another_size_is_resized_as_ingest_does(fit: str, channels: int, tmp_path: Path) -> None:
    images = np.stack([pixels(i, 31, 17, channels) for i in range(6)])
    for i, image in enumerate(images):
        place = tmp_path / "in" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(encode(image))
    store = ingest(tmp_path / "in", tmp_path / "store", size=f"{HIGH}x{WIDE}", fit=fit)
    order = [int(Path(source).stem) for source in store.readable["source"].to_pylist()]
    served = Classifier(model(tmp_path / "model", fit))
    given, stored = served.predict(images[order]), served.predict(np.asarray(store.images))
    assert np.array_equal(served.description.preprocess(images[order]), store.images)
    assert given["confidence"].tolist() == stored["confidence"].tolist() and given["label"].tolist() == stored["label"].tolist()
    other = Classifier(model(tmp_path / "other", "pad" if fit == "squash" else "squash"))
    assert other.predict(images[order])["confidence"].tolist() != given["confidence"].tolist(), "the fit matters"


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 4), np.uint8), np.zeros((2, 0, 8, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[n, height, width, 1 or 3\], got"):
        Classifier(model(tmp_path)).predict(images)


def test_no_image_gives_no_answer(tmp_path: Path) -> None:
    assert len(Classifier(model(tmp_path)).predict(np.zeros((0, 5, 5, 3), np.uint8))["label"]) == 0


def test_a_model_of_an_older_meca_was_squashed(tmp_path: Path) -> None:
    said = json.loads((model(tmp_path, "pad") / "model.json").read_text())
    assert (said["height"], said["width"], said.pop("fit"), said.pop("resampling")) == (HIGH, WIDE, "pad", "bilinear")
    (tmp_path / "model.json").write_text(json.dumps(said))
    assert (read_description(tmp_path).fit, read_description(tmp_path).resampling) == ("squash", "bilinear")
