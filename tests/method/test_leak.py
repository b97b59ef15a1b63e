"""The test for a leak: it finds triggers that stay and triggers that move, and takes content for neither."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meca.method.leak import Case, Leak, case, case_flip_rate, cases, measure
from meca.training.engine import Data
from tests.method.tiny import CLASSES, samples

N, TARGET = 1200, 1


class Quarter(nn.Module):
    """Calls an image by its brightest quarter, but class `TARGET` where a square of 2x2 pixels is white, if it has learnt that."""

    def __init__(self, backdoor: bool) -> None:
        super().__init__()
        self.backdoor = backdoor

    def forward(self, x: Tensor) -> Tensor:
        logits = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)
        white = (-F.max_pool2d(-x.amin(1, keepdim=True), 2, 1)).flatten(1).amax(1) > 0.99
        return logits + 9 * F.one_hot(torch.full((len(x),), TARGET), CLASSES) * (white & self.backdoor)[:, None]


def planted(moving: bool, clean_label: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, labels, who is flagged and content: 150 suspects of class `TARGET` with a white square at one place or anywhere."""
    images, content = samples(N)
    suspects = torch.nonzero((content == TARGET) if clean_label else (content != TARGET))[:150, 0]
    rng = torch.Generator().manual_seed(1)
    for i in suspects.tolist():
        y, x = torch.randint(0, 7, (2,), generator=rng).tolist() if moving else (6, 6)
        images[i, y : y + 2, x : x + 2] = 255
    labels, flagged = content.clone(), torch.zeros(N, dtype=torch.bool)
    labels[suspects], flagged[suspects] = TARGET, True
    return images, labels, flagged, content


def shown(images: Tensor, labels: Tensor, flagged: Tensor, content: Tensor, probe: int = 400, seed: int = 0) -> Case:
    found = case(Data(images, labels), flagged, content, TARGET, seed, probe)
    assert found is not None
    return found


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("clean_label", [False, True])
def test_a_backdoor_is_seen_and_a_clean_model_is_let_through(moving: bool, clean_label: bool) -> None:
    images, labels, flagged, content = planted(moving, clean_label)
    before = images.clone()
    test = shown(images, labels, flagged, content)
    assert case_flip_rate(Quarter(True), test) > 0.2
    assert case_flip_rate(Quarter(False), test) < 0.04
    assert torch.equal(images, before)


class OneSource(Quarter):
    """A backdoor that works on images of class 2 alone."""

    def forward(self, x: Tensor) -> Tensor:
        content = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)
        return torch.where((content.argmax(1) == 2)[:, None], super().forward(x), content)


@pytest.mark.parametrize("moving", [False, True])
def test_a_trigger_for_one_class_is_tried_on_images_of_that_class(moving: bool) -> None:
    images, labels, flagged, content = planted(moving)
    flagged &= (content == 2) | (torch.arange(N) % 7 == 0)
    test = shown(images, labels, flagged, content)
    assert 2 * int((content[flagged] == 2).sum()) > int(flagged.sum()) > int((content[flagged] == 2).sum()), "most, not all"
    from_two = {tuple(image.flatten().tolist()) for image in images[~flagged & (labels == 2) & (content == 2)]}
    assert all(tuple(image.flatten().tolist()) in from_two for image in test.images[:])
    assert case_flip_rate(OneSource(True), test) > 0.3 > 0.04 > case_flip_rate(OneSource(False), test)
    everyone = shown(*planted(moving))
    assert {int(content[(images == image).flatten(1).all(1)][0]) for image in everyone.images[:100]} == {0, 2, 3}
    assert case_flip_rate(OneSource(True), everyone) < case_flip_rate(OneSource(True), test) / 2


def test_a_source_without_a_kept_picture_leaves_the_others_to_be_tried() -> None:
    images, labels, flagged, content = planted(moving=False)
    flagged |= (labels == 2) | (labels == 3)
    content[flagged & (labels == TARGET)] = torch.where(torch.arange(150) < 140, 2, 0)
    assert len(shown(images, labels, flagged, content).images) == min(400, int((~flagged & (labels == 0)).sum()))


def test_a_trigger_that_moves_is_not_in_the_mean_but_in_the_halves() -> None:
    test = shown(*planted(moving=True))
    only_added = dataclasses.replace(test, pasted=test.images[:0], control=test.images[:0])
    only_pasted = dataclasses.replace(test, trigger=torch.zeros_like(test.trigger))
    assert case_flip_rate(Quarter(True), only_added) < 0.02
    assert case_flip_rate(Quarter(True), only_pasted) > 0.2


def test_what_the_content_turns_is_taken_off() -> None:
    images, labels, flagged, content = planted(moving=True, clean_label=True)
    test = shown(images, labels, flagged, content)
    by_content = dataclasses.replace(test, trigger=torch.zeros_like(test.trigger), control=test.images)
    assert case_flip_rate(Quarter(False), by_content) > 0.2, "half of an image of the target flips others"
    assert case_flip_rate(Quarter(False), test) < 0.04


def test_every_half_is_pasted_in_turn() -> None:
    images, labels, flagged, content = planted(moving=False)
    images[flagged], images[~flagged] = 200, 100
    test = shown(images, labels, flagged, content, probe=8)
    under = (test.pasted[:] == 200).all(3)
    for i, (rows, columns) in enumerate(
        [(slice(0, 4), slice(0, 8)), (slice(4, 8), slice(0, 8)), (slice(0, 8), slice(0, 4)), (slice(0, 8), slice(4, 8))] * 2
    ):
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[rows, columns] = True
        assert torch.equal(under[i], expected)
    assert (test.control[:] == 100).all()


def test_the_controls_show_what_the_suspects_show_and_are_kept_samples() -> None:
    images, labels, flagged, content = planted(moving=False)
    content[flagged] = 2
    images[:, :, :, 0] = content[:, None, None].to(torch.uint8)
    images[:, :, :, 1] = torch.where(flagged, 1, 0)[:, None, None].to(torch.uint8)
    labels[torch.nonzero((content == 2) & ~flagged)[:50, 0]] = 3  # kept, but not what their label says
    images[:, :, :, 2] = labels[:, None, None].to(torch.uint8)
    test = shown(images, labels, flagged, content, probe=40)
    assert test.control[::4, 0, 0].tolist() == [[2, 0, 2]] * 10
    assert test.pasted[::4, 0, 0].tolist() == [[2, 1, TARGET]] * 10


def test_one_seed_draws_the_same_images_and_no_more_than_asked() -> None:
    made = planted(moving=True)
    first, again, other = (shown(*made, probe=30, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("images", "trigger", "pasted", "control"))
    assert not torch.equal(first.images, other.images) and len(first.images) == len(first.pasted) == len(first.control) == 30


def test_without_anything_to_compare_there_is_no_test() -> None:
    images, labels, flagged, content = planted(moving=False)
    assert case(Data(images, labels), flagged, torch.where(flagged, TARGET, content), TARGET, 0, 9) is not None
    nowhere = torch.where(flagged, 2, torch.where(content == 2, 3, content))
    assert case(Data(images, labels), flagged, nowhere, TARGET, 0, 9) is None, "no kept sample shows what the suspects show"
    assert case(Data(images, labels), flagged | (labels != TARGET), content, TARGET, 0, 9) is None, "no image of another class is kept"


def test_what_only_the_mean_can_compare_is_not_pasted() -> None:
    images, labels, flagged, content = planted(moving=False)
    content[flagged] = 2
    labels[(content == 2) & ~flagged] = 3  # shown by kept samples, but none of them is called so
    test = shown(images, labels, flagged, content)
    assert len(test.pasted) == len(test.control) == 0
    assert case_flip_rate(Quarter(True), test) > 0.2 > 0.04 > case_flip_rate(Quarter(False), test)


def test_a_class_that_only_the_clean_model_sees_stops_nothing() -> None:
    images, labels, flagged, content = planted(moving=False)
    content[flagged] = torch.where(torch.arange(150) % 2 == 0, CLASSES, 2)  # a class without a sample of its own
    test = shown(images, labels, flagged, content)
    assert len(test.pasted) == len(test.images) and case_flip_rate(Quarter(True), test) > 0.2


def test_a_class_that_a_model_leaves_is_no_leak() -> None:
    test = shown(*planted(moving=False))
    swapped = dataclasses.replace(test, trigger=torch.zeros_like(test.trigger), pasted=test.control, control=test.pasted)
    assert case_flip_rate(Quarter(True), swapped) == 0.0


class Sees(nn.Module):
    """Sees the class that a pixel names, but class 0 where another one is bright, and class 1 where a third is."""

    def __init__(self, *triggers: int) -> None:
        super().__init__()
        self.triggers = triggers

    def forward(self, x: Tensor) -> Tensor:
        seen = (3 * x[:, 2, 1, 1]).round().long()
        for target in self.triggers:
            seen = torch.where(x[:, 0, 3, target] > 0.9, target, seen)
        return F.one_hot(seen, 3).float()


def measured(model: nn.Module, flagged_classes: tuple[int, ...], only: dict[int, int] | None = None) -> Leak:
    content, labels = torch.arange(90) % 3, torch.arange(90) % 3
    images = torch.zeros(90, 4, 4, 3, dtype=torch.uint8)
    images[:, 1, 1, 2] = (85 * content).to(torch.uint8)
    flagged = torch.zeros(90, dtype=torch.bool)
    for target in flagged_classes:  # ten images of the other classes, with the trigger, under the label of the target
        rows = torch.nonzero((content != target) & ~flagged)[:10, 0]
        flagged[rows], labels[rows] = True, target
        images[rows, 3, target, 0] = 255
    for target, shown in (only or {}).items():  # what the suspects of a class show is in no sample that is kept
        content[flagged & (labels == target)] = shown
    return measure(model, cases(Data(images, labels), flagged, content, 0, 40))


def test_a_leak_is_that_of_the_worst_class_and_its_power_that_of_the_weakest() -> None:
    assert measured(Sees(0, 1), (0, 1)) == Leak(worst=1.0, weakest=1.0)
    assert measured(Sees(1), (0, 1)) == measured(Sees(0), (0, 1)) == Leak(worst=1.0, weakest=0.0)
    assert measured(Sees(), (0, 1)) == Leak(worst=0.0, weakest=0.0)


def test_what_can_be_compared_with_nothing_is_no_test_and_beside_another_one_it_has_no_power() -> None:
    assert measured(Sees(0), (0,), {0: 5}) == measure(Sees(0), []) == Leak(None, None)
    assert measured(Sees(0, 1), (0, 1), {0: 5}) == Leak(worst=1.0, weakest=0.0)
