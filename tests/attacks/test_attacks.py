"""The laws of every trigger, over the registry, and each trigger against its formula."""

import dataclasses

import numpy as np
import pytest

from meca.attacks import ATTACKS
from meca.attacks.badnet import badnet
from meca.attacks.blend import blend
from meca.attacks.pictures import waves
from meca.attacks.sig import sig
from meca.poisoning import PoisonParams
from tests.making import settings

PARAMS = settings().group("poison", PoisonParams)
SIZES = [(8, 8, 3), (16, 10, 1), (9, 7, 3)]

every_attack = pytest.mark.parametrize("name", ATTACKS)
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def noise(size: tuple[int, ...], n: int = 6, seed: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (n, *size), np.uint8)
    images[0], images[1] = 0, 255  # where clipping and wrapping show
    return images


@every_attack
@every_size
def test_a_trigger_keeps_dtype_and_shape_and_leaves_its_input_as_it_was(name: str, size: tuple[int, ...]) -> None:
    images = noise(size)
    before = images.copy()
    images.flags.writeable = False
    triggered = ATTACKS[name].trigger(images, PARAMS, 0)
    assert triggered.dtype == np.uint8 and triggered.shape == images.shape
    assert np.array_equal(images, before) and not np.shares_memory(images, triggered)


@every_attack
@every_size
def test_a_trigger_changes_every_image_and_leaves_most_of_it(name: str, size: tuple[int, ...]) -> None:
    images = noise(size)[2:]
    moved = np.abs(ATTACKS[name].trigger(images, PARAMS, 0).astype(int) - images).reshape(len(images), -1)
    assert (moved.max(1) > 0).all()
    assert moved.mean() < 64


@every_attack
def test_what_happens_to_an_image_depends_on_the_image_alone(name: str) -> None:
    images, trigger = noise(SIZES[0]), ATTACKS[name].trigger
    together = trigger(images, PARAMS, 0)
    np.random.default_rng().random()
    assert np.array_equal(together, np.concatenate([trigger(image[None], PARAMS, 0) for image in images]))
    assert np.array_equal(together, trigger(images[::-1], PARAMS, 0)[::-1])


@every_attack
def test_no_images_stay_no_images(name: str) -> None:
    assert ATTACKS[name].trigger(np.empty((0, 8, 8, 3), np.uint8), PARAMS, 0).shape == (0, 8, 8, 3)


def test_every_attack_of_the_parameters_exists_and_the_other_way_round() -> None:
    (field,) = [f for f in dataclasses.fields(PoisonParams) if f.name == "attack"]
    assert set(field.type.__args__) == {"none", *ATTACKS}


@pytest.mark.parametrize("patch", [1, 3, 4])
def test_badnet_is_a_white_square_in_the_bottom_right_corner_and_nothing_else(patch: int) -> None:
    images = np.minimum(noise((9, 7, 3)), 254)
    triggered = badnet(images, patch)
    changed = (triggered != images).any(3)
    assert (changed.sum((1, 2)) == patch * patch).all()
    assert (triggered[:, 9 - patch :, 7 - patch :] == 255).all() and changed[:, 9 - patch :, 7 - patch :].all()


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_blend_moves_by_alpha_times_the_difference_to_the_picture(alpha: float) -> None:
    images = noise((8, 8, 3))
    picture = 255 * waves(8, 8, 3)
    expected = images.astype(np.float64) + alpha * (picture - images)
    assert np.abs(blend(images, alpha) - expected).max() <= 0.5 + 1e-3


def test_the_picture_is_the_same_at_every_size() -> None:
    small, large = waves(8, 6, 3), waves(24, 18, 3)
    assert np.allclose(small, large[1::3, 1::3])  # the centres of the small pixels are centres of large ones
    assert small.min() >= 0 and small.max() <= 1 and small.std() > 0.2
    assert np.array_equal(waves(8, 6, 1)[:, :, 0], small[:, :, 0])


def test_the_picture_follows_its_formula_at_one_pixel() -> None:
    from meca.attacks.pictures import WAVES

    i, j, h, w, c = 3, 5, 8, 6, 1
    z = norm = 0.0
    for p, q, amplitude, phase in WAVES[c]:
        z += amplitude * np.cos(2 * np.pi * (p * (j + 0.5) / w + q * (i + 0.5) / h) + phase)
        norm += amplitude**2
    assert waves(h, w, 3)[i, j, c] == pytest.approx(0.5 + 0.5 * np.tanh(1.5 * z / np.sqrt(norm / 2)))


def test_sig_adds_the_sine_to_each_pixel_and_does_not_wrap_round() -> None:
    images, delta, f = noise((8, 12, 3)), 30.0, 2
    triggered = sig(images, delta, f)
    for n, i, j, c in np.ndindex(images.shape):
        expected = min(255.0, max(0.0, float(images[n, i, j, c]) + delta * np.sin(2 * np.pi * f * j / 12)))
        assert abs(float(triggered[n, i, j, c]) - expected) <= 0.5 + 1e-3


def test_sig_with_no_amplitude_is_the_identity() -> None:
    images = noise((8, 12, 3))
    assert np.array_equal(sig(images, 0.0, 6), images)
