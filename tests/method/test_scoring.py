"""The score against a reference that takes one image after the other, in double precision, as the formula says."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from meca.method.scoring import folded, masks_by_sample, patch_masks, ranks, score
from meca.models import Architecture
from meca.training.engine import predict
from meca.training.seeds import generator
from tests.method.tiny import copied, network, samples, unchanged

EPS = 8 / 255


@pytest.fixture
def setting() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    images, labels = samples(24)
    images[0], images[1] = 0, 255  # where the clip shows
    model = network()
    with torch.no_grad():
        next(module for module in model.modules() if isinstance(module, nn.Linear)).weight.mul_(20)  # or all scores are tiny
    return model, images, labels, patch_masks(3, 8, 8, 2, 0.3, generator("masks"))


def reference(model: nn.Module, image: Tensor, label: int, masks: Tensor, eps: float) -> float:
    model = copy.deepcopy(model).double()
    x = (image.double() / 255).permute(2, 0, 1)[None].requires_grad_()
    logits = model(x)[0]
    log_p = logits - torch.logsumexp(logits, 0)
    (gradient,) = torch.autograd.grad(-log_p[label], x)
    total = 0.0
    for mask in masks.double():
        moved = torch.clip(x.detach() + mask * eps * torch.sign(gradient), 0, 1)
        z = model(moved)[0].detach()
        p, q = torch.exp(log_p.detach()), torch.softmax(z, 0)
        total += sum(float(p[c]) * (float(torch.log(p[c])) - float(torch.log(q[c]))) for c in range(len(p)))
    return total / len(masks)


def test_the_score_equals_the_reference(setting: tuple) -> None:
    model, images, labels, masks = setting
    found, logits = score(model, images, labels, masks, EPS)
    expected = [reference(model, image, int(label), masks, EPS) for image, label in zip(images, labels, strict=True)]
    assert np.ptp(expected) > 1e-3
    assert np.allclose(found.numpy(), expected, rtol=1e-3, atol=1e-7)
    assert torch.equal(logits, predict(model, images))
    assert found.dtype == logits.dtype == torch.float32


@pytest.mark.parametrize("share", [0, 0.3])
def test_with_masks_by_sample_the_score_is_that_of_each_image_with_its_own(share: float, setting: tuple) -> None:
    model, images, labels, _ = setting
    own = masks_by_sample(2, 8, 8, 2, share, generator("own"))(24)
    expected = [reference(model, images[i], int(labels[i]), own[:, i], EPS) for i in range(24)]
    for batch_size in (0, 7, 1):
        found, logits = score(model, images, labels, masks_by_sample(2, 8, 8, 2, share, generator("own")), EPS, batch_size)
        assert np.allclose(found.numpy(), expected, rtol=1e-3, atol=1e-7), batch_size
        assert logits.shape == (24, 4)


def test_no_step_and_an_empty_mask_give_zero(setting: tuple) -> None:
    model, images, labels, masks = setting
    assert torch.equal(score(model, images, labels, masks, 0.0)[0], torch.zeros(24))
    assert torch.equal(score(model, images, labels, torch.zeros_like(masks), EPS)[0], torch.zeros(24))


def test_a_score_is_not_negative_but_for_rounding(setting: tuple) -> None:
    model, images, labels, masks = setting
    for eps in (1e-5, EPS, 0.5):
        assert float(score(model, images, labels, masks, eps)[0].min()) >= -1e-6


def test_permuting_samples_permutes_scores(setting: tuple) -> None:
    model, images, labels, masks = setting
    order = torch.randperm(24, generator=generator("order"))
    found, logits = score(model, images, labels, masks, EPS)
    moved, moved_logits = score(model, images[order], labels[order], masks, EPS)
    assert torch.allclose(moved, found[order], rtol=1e-4, atol=1e-8) and torch.allclose(moved_logits, logits[order], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 24])
def test_the_batch_size_changes_nothing_but_rounding(setting: tuple, batch_size: int) -> None:
    model, images, labels, masks = setting
    found = score(model, images, labels, masks, EPS)[0]
    assert torch.allclose(score(model, images, labels, masks, EPS, batch_size)[0], found, rtol=1e-4, atol=1e-8)


def test_the_score_is_the_mean_over_the_masks_in_any_order(setting: tuple) -> None:
    model, images, labels, masks = setting
    found = score(model, images, labels, masks, EPS)[0]
    assert torch.allclose(score(model, images, labels, masks.flip(0), EPS)[0], found, rtol=1e-5)
    single = torch.stack([score(model, images, labels, mask[None], EPS)[0] for mask in masks])
    assert torch.allclose(single.mean(0), found, rtol=1e-5)


def test_renaming_the_classes_changes_no_score(setting: tuple) -> None:
    model, images, labels, masks = setting
    names = torch.tensor([2, 0, 3, 1])  # the new name of each class
    renamed = copy.deepcopy(model)
    (last,) = [module for module in renamed.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        last.weight[names] = last.weight.clone()
        last.bias[names] = last.bias.clone()
    found, logits = score(model, images, labels, masks, EPS)
    again, renamed_logits = score(renamed, images, names[labels], masks, EPS)
    assert torch.allclose(again, found, rtol=1e-4, atol=1e-8) and torch.allclose(renamed_logits[:, names], logits, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_model_flags_and_input_as_they_were(setting: tuple, training: bool) -> None:
    model, images, labels, masks = setting
    model.train(training)
    frozen = next(model.parameters()).requires_grad_(False)
    weights, before = copied(model), (images.clone(), labels.clone(), masks.clone())
    score(model, images, labels, masks, EPS)
    assert unchanged(model, weights)
    assert all(module.training is training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [p is not frozen for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip((images, labels, masks), before, strict=True))
    assert torch.is_grad_enabled()


def test_the_mode_of_the_model_does_not_matter(setting: tuple) -> None:
    model, images, labels, masks = setting
    found = score(model.eval(), images, labels, masks, EPS)[0]
    assert torch.equal(score(model.train(), images, labels, masks, EPS)[0], found)


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 2), (7, 9, 3), (8, 8, 1)])
def test_a_share_of_zero_is_one_square(height: int, width: int, patch: int) -> None:
    masks = patch_masks(1000, height, width, patch, 0, generator("one"))
    assert masks.shape == (1000, 1, height, width) and masks.dtype == torch.float32
    corners = set()
    for mask in masks[:, 0]:
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert len(rows) == patch * patch
        assert rows.max() - rows.min() == columns.max() - columns.min() == patch - 1
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) == (height - patch + 1) * (width - patch + 1), "every place is drawn"


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 2), (7, 9, 3)])
def test_a_mask_is_made_of_whole_patches_of_a_grid(height: int, width: int, patch: int) -> None:
    masks = patch_masks(200, height, width, patch, 0.25, generator("grid"))
    assert masks.shape == (200, 1, height, width) and set(masks.unique().tolist()) == {0.0, 1.0}
    for i in range(height):
        for j in range(width):
            assert torch.equal(masks[:, 0, i, j], masks[:, 0, i - i % patch, j - j % patch])
    assert abs(float(masks[:, :, ::patch, ::patch].mean()) - 0.25) < 0.03
    assert torch.equal(patch_masks(2, height, width, patch, 1.0, generator("all")), torch.ones(2, 1, height, width))


SHAPES = {"count": st.integers(1, 3), "height": st.integers(3, 9), "width": st.integers(3, 9), "patch": st.integers(1, 3)}


@examples(derandomize=True, deadline=None)
@given(**SHAPES, share=st.sampled_from([0, 0.4, 1]), sizes=st.lists(st.integers(0, 9), max_size=5))
def test_the_masks_of_a_sample_do_not_depend_on_its_batch(count: int, height: int, width: int, patch: int, share: float, sizes: list[int]) -> None:
    about = count, height, width, patch, share
    drawn = masks_by_sample(*about, generator("own"))
    parts, whole = [drawn(b) for b in sizes], masks_by_sample(*about, generator("own"))(sum(sizes))
    assert whole.shape == (count, sum(sizes), 1, height, width) and whole.dtype == torch.float32
    assert torch.equal(torch.cat([*parts, whole[:, :0]], 1), whole)
    for mask in whole.flatten(0, 2):
        if share == 0:
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert len(rows) == patch * patch and rows.max() - rows.min() == columns.max() - columns.min() == patch - 1
        else:
            assert torch.equal(mask, mask[::patch, ::patch].repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width])
            assert share < 1 or mask.all()


def test_masks_by_sample_differ_between_samples_reach_every_place_and_depend_on_their_generator_alone() -> None:
    torch.manual_seed(1)
    first = masks_by_sample(2, 7, 9, 2, 0, generator("a"))(1000)
    torch.manual_seed(2)
    assert torch.equal(masks_by_sample(2, 7, 9, 2, 0, generator("a"))(1000), first)
    assert not torch.equal(masks_by_sample(2, 7, 9, 2, 0, generator("b"))(1000), first)
    for masks in first:
        assert len(masks.unique(dim=0)) == 6 * 8, "every place is drawn"
    assert not torch.equal(first[0], first[1])
    grids = masks_by_sample(1, 8, 8, 2, 0.25, generator("a"))(1000)
    assert len(grids.unique(dim=1)[0]) > 500 and abs(float(grids.mean()) - 0.25) < 0.02


def test_masks_depend_on_their_generator_alone() -> None:
    torch.manual_seed(1)
    first = patch_masks(4, 8, 8, 2, 0.5, generator("a"))
    torch.manual_seed(2)
    assert torch.equal(patch_masks(4, 8, 8, 2, 0.5, generator("a")), first)
    assert not torch.equal(patch_masks(4, 8, 8, 2, 0.5, generator("b")), first)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_scipy_scaled_to_one(seed: int) -> None:
    from scipy.stats import rankdata

    values = torch.randint(0, 12, (30,), generator=torch.Generator().manual_seed(seed)).float()
    expected = (rankdata(values.numpy(), method="average") - 1) / 29
    assert np.allclose(ranks(values).numpy(), expected)


def test_ranks_of_one_and_of_none() -> None:
    assert torch.equal(ranks(torch.tensor([5.0])), torch.zeros(1, dtype=torch.float64)) and ranks(torch.empty(0)).shape == (0,)


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "imagenet"), ("resnet18", "cifar"), ("mobilenet_v2", "imagenet")])
def test_folding_leaves_no_batch_norm_and_the_same_logits(name: str, stem: str) -> None:
    model = network(network=Architecture(name, stem, 4), size=32)  # pyright: ignore[reportArgumentType]
    before, (images, labels) = copied(model), samples(4, size=32)
    lean = folded(model)
    assert lean is not model and not any(isinstance(module, nn.BatchNorm2d) for module in lean.modules())
    assert torch.allclose(predict(lean, images), predict(model, images), rtol=1e-3, atol=1e-4)
    assert unchanged(model, before) and all(p.requires_grad for p in model.parameters())
    assert torch.equal(score(model, images, labels, torch.ones(1, 1, 32, 32), 0.0)[0], torch.zeros(4))


class Wilful(nn.Module):
    """A network whose path depends on the pixels."""

    def __init__(self, choose: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.norm, self.choose = nn.BatchNorm2d(3), choose

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean((2, 3)) * self.choose(x)


@pytest.mark.parametrize("choose", [lambda x: 1 if x.sum() > 0 else 2, lambda x: int(x.sum()), lambda x: len(x), lambda x: sum(1 for _ in x)])
def test_a_network_whose_path_depends_on_the_pixels_is_scored_as_it_is(choose: Callable[[Tensor], Any]) -> None:
    model = Wilful(choose).eval()
    assert folded(model) is model and model(torch.ones(2, 3, 4, 4)).shape == (2, 3)


def test_what_cannot_be_folded_is_scored_as_it_is() -> None:
    for model in (network(), network().train(), nn.Linear(1, 1).eval()):
        assert folded(model) is model


def test_a_network_that_is_broken_is_said_and_not_passed_over() -> None:
    broken = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3)).eval()
    with pytest.raises(RuntimeError, match=r"size of tensor a \(4\) must match the size of tensor b \(3\)"):
        folded(broken)
