"""The generated set: the same from the same seed, sample by sample, and no easier than it should be."""

import numpy as np
import pytest

from meca.data.readers import shapes
from meca.data.readers.shapes import CLASS_NAMES, generate


def test_a_sample_depends_on_seed_split_and_index_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = generate(40, 3, 16)
    few, first = generate(13, 3, 16)
    assert np.array_equal(images[:13], few) and np.array_equal(labels[:13], first)
    for other in (generate(40, 4, 16), generate(40, 3, 16, "test")):
        assert not np.array_equal(images, other[0])
    monkeypatch.setattr(shapes, "CHUNK", 7)
    assert np.array_equal(generate(40, 3, 16)[0], images), "the chunk in which a sample is rendered must not matter"


def test_classes_are_balanced_and_shapes_are_as_promised() -> None:
    images, labels = generate(100, 0, 32)
    assert images.shape == (100, 32, 32, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [10] * len(CLASS_NAMES)
    assert generate(0, 0)[0].shape == (0, 32, 32, 3)


def test_no_two_samples_are_alike() -> None:
    images, _ = generate(300, 0, 16)
    assert len({image.tobytes() for image in images}) == 300


def test_colours_alone_do_not_tell_the_class() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    images, labels = generate(1500, 0, 16)
    means = np.concatenate([images.reshape(1500, -1, 3).mean(1), images.reshape(1500, -1, 3).std(1)], axis=1) / 255
    model = linear.LogisticRegression(max_iter=2000).fit(means[:1000], labels[:1000])
    assert model.score(means[1000:], labels[1000:]) < 0.35
