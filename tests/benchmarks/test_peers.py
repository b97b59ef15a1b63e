"""Both arms of a ratio do the same: the same scores, the same law of the images, a training that goes down."""

import dataclasses

import pytest
import torch

from benchmarks.speed import micro, peers
from benchmarks.speed.harness import MEAN, STD, Bench, describe, network, random_set
from meca.method.scoring import patch_masks, score
from meca.models import Normalize
from meca.training.augment import crop_flip, draw
from meca.training.seeds import generator
from meca.training.trainer import as_input


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("stem", ["s2d", "conv3"])
def test_the_naive_scores_are_ours_to_rounding(stem: str, batch_size: int):
    images, labels = random_set(8, 16)
    model = network(describe("compact", stem, 16, width=8)).eval()
    mask = patch_masks(1, 16, 16, 2, 0.5, generator("mask"))
    ours, _ = score(model, images, labels, mask, 8 / 255)
    theirs = peers.naive_score(model, images, labels, mask[0], 8 / 255, batch_size)
    assert ours.abs().max() > 1e-6
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-7)


def every_outcome(size: int, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one image, and all that the batched augmentation can make of it, normalised."""
    images, _ = random_set(1, size)
    shifts = [(dy, dx, flip) for dy in range(-padding, padding + 1) for dx in range(-padding, padding + 1) for flip in (False, True)]
    dy, dx, flip = (torch.tensor(values) for values in zip(*shifts, strict=True))
    many = images.repeat(len(shifts), 1, 1, 1)
    draws = dataclasses.replace(draw(len(shifts), padding, True, generator("x")), dy=dy, dx=dx, flip=flip)
    return images, Normalize(MEAN, STD)(as_input(crop_flip(many, torch.arange(len(shifts)), draws)))


def test_the_pil_chain_draws_from_the_same_images_as_the_gather():
    images, ours = every_outcome(8, 1)
    chain = peers.PilSet(images, torch.zeros(1, dtype=torch.int64), 1)
    torch.manual_seed(0)
    nearest = torch.stack([(ours - chain[0][0]).flatten(1).abs().amax(1) for _ in range(200)])
    assert nearest.min(1).values.max() < 1e-5  # each is one of ours
    assert len(nearest.argmin(1).unique()) == len(ours)  # and each of ours turns up


def test_the_pil_loader_gives_batches_of_the_same_shape():
    images, labels = random_set(20, 8)
    x, y = next(iter(peers.pil_loader(images, labels, dataclasses.replace(peers.RECIPE, batch_size=4), 0)))
    assert x.shape == (4, 3, 8, 8) and x.dtype == torch.float32 and y.shape == (4,)


def test_the_pattern_learns():
    images, labels = random_set(64, 8, 2)
    images[labels == 1] //= 4
    model = network(describe("compact", "s2d", 8, 2, 8))
    loader = peers.pil_loader(images, labels, dataclasses.replace(peers.RECIPE, batch_size=8, padding=1), 0)
    losses = [peers.pil_epoch(model, loader, peers.RECIPE, "cpu") for _ in range(4)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_slice_rotates_and_never_leaves_the_set():
    images, labels = random_set(10, 8)
    parts = peers._rotating(images, labels, 4)
    found = [next(parts) for _ in range(20)]
    assert all(len(x) == len(y) == 4 for x, y in found)
    assert len({x.sum().item() for x, _ in found}) > 1


def test_steps_and_scores_agree_with_float64(tmp_path):
    micro.correctness(Bench(tmp_path / "rows", "x", quick=True), "compact", "s2d", batch=16)
    assert len((tmp_path / "rows").read_text().splitlines()) == 3
