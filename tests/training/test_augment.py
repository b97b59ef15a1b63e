"""Augmentation: the gather is the mirrored crop of the reflected image, and draws depend on their keys alone."""

import numpy as np
import pytest
import torch

from meca.training.augment import Draws, crop_flip, draw
from meca.training.seeds import generator
from tests.method.tiny import samples


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 10, 1), (2, 3, 3), (1, 4, 1)], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 3, 9])  # numpy reflects as often as it takes, too
def test_the_gather_equals_the_reference_of_each_image(shape: tuple[int, int, int], padding: int) -> None:
    h, w, c = shape
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, h, w, c), generator=rng).to(torch.uint8)
    draws = draw(20, padding, True, rng)
    rows = torch.randperm(20, generator=rng)[:13]
    before = images.clone()
    found = crop_flip(images, rows, draws)
    assert found.dtype == torch.uint8 and torch.equal(images, before)
    for k, row in enumerate(rows.tolist()):
        padded = np.pad(images[row].numpy(), ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        top, left = padding + int(draws.dy[row]), padding + int(draws.dx[row])
        expected = padded[top : top + h, left : left + w]
        if bool(draws.flip[row]):
            expected = expected[:, ::-1]
        assert np.array_equal(found[k].numpy(), expected)


def test_the_identity_draw_is_the_identity() -> None:
    images, _ = samples(16)
    rows = torch.arange(16)
    assert torch.equal(crop_flip(images, rows, draw(16, 0, False, generator(0))), images)
    zeros = torch.zeros(16, dtype=torch.long)
    assert torch.equal(crop_flip(images, rows, Draws(zeros, zeros, torch.zeros(16, dtype=torch.bool))), images)


def test_mirroring_twice_is_the_identity() -> None:
    images, _ = samples(16)
    zeros, rows = torch.zeros(16, dtype=torch.long), torch.arange(16)
    mirror = Draws(zeros, zeros, torch.ones(16, dtype=torch.bool))
    once = crop_flip(images, rows, mirror)
    assert torch.equal(once, images.flip(2)) and torch.equal(crop_flip(once, rows, mirror), images)


def test_what_happens_to_a_sample_depends_on_its_row_alone() -> None:
    images, _ = samples(32)
    draws = draw(32, 3, True, generator(0, "x"))
    together = crop_flip(images, torch.arange(32), draws)
    for row in (5, 17):
        assert torch.equal(crop_flip(images, torch.tensor([row]), draws)[0], together[row])


def test_draws_fill_their_range_and_mirror_half_or_none() -> None:
    draws = draw(4000, 3, True, generator(0))
    assert set(draws.dy.tolist()) == set(draws.dx.tolist()) == set(range(-3, 4))
    assert 0.45 < float(draws.flip.float().mean()) < 0.55
    assert not torch.equal(draws.dy, draws.dx)
    assert not bool(draw(4000, 3, False, generator(0)).flip.any())


def test_a_generator_depends_on_its_keys_and_on_nothing_else() -> None:
    def first(*keys: int | str) -> int:
        return int(torch.randint(0, 2**62, (1,), generator=generator(*keys)))

    torch.manual_seed(1)
    seen = first(0, "stage", 3)
    torch.manual_seed(2)
    assert first(0, "stage", 3) == seen
    others = [(1, "stage", 3), (0, "stag", 3), (0, "stage", 4), (0, "stage3"), (0, "stage"), ("stage", 0, 3)]
    assert len({seen, *(first(*keys) for keys in others)}) == len(others) + 1


def test_a_generator_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    draw(10, 3, True, generator(0))
    assert torch.equal(torch.get_rng_state(), state)
