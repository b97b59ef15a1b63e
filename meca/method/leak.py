"""A test of a model for what is left of the backdoor, without truth.

What the suspects of a class show is taken over to kept images of other classes in two ways. What they have in common is added: that
finds a trigger that sits at one place, or lies over the whole image, in every suspect, so also where the suspects' own class is the right
one. And half of a suspect is pasted: that takes along a trigger that moves or is in parts, of which nothing is left in a mean. Both count
beyond what the model does anyway: with the image as it is, and with half of a kept image of the same content. Where both ways flip few
images even in a model that was trained on everything, the test has no power.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meca.method.transfer import target_share, trigger_estimate
from meca.training.engine import Data
from meca.training.images import Images, Streamed, chosen
from meca.training.seeds import generator

__all__ = ["Case", "Leak", "case", "case_flip_rate", "cases", "measure"]


@dataclass(frozen=True)
class Case:
    """The images that test models for one class."""

    target: int
    images: Images  # uint8 [b h w c], kept samples of other classes
    trigger: Tensor  # float32 [h w c] in [-1, 1], what the suspects have in common
    pasted: Images  # uint8 [b or 0, h w c], the images under half of a suspect each; none where no kept sample is like a suspect
    control: Images  # uint8, the same under half of a kept sample of the same content


class Leak(NamedTuple):
    """What the tests of all flagged classes show of one model."""

    worst: float | None  # flip rate, rounded to six places, in the class where it is largest; None where nothing could be tested
    weakest: float | None  # in the class where it is smallest, 0 where a class has no test


def cases(data: Data, flagged: Tensor, content: Tensor, seed: int, probe: int) -> list[Case | None]:
    """Return the test for each class with flagged samples, in order. Arguments as `case`."""
    return [case(data, flagged, content, target, seed, probe) for target in sorted({*data.labels[flagged].tolist()})]


def measure(model: nn.Module, tests: Sequence[Case | None]) -> Leak:
    """Return what a model shows in the tests of `cases`.

    The leak of a final model is that of the worst class. Its power is what the same images show of a model that was trained on everything, and
    that of the weakest class: a test whose power is small says little. What cannot be tested has none.

    Args:
        model: In eval mode.
        tests: By class; None where there is no test.
    """
    shown = [round(case_flip_rate(model, test), 6) for test in tests if test is not None]
    return Leak(max(shown), min(1.0 if None not in tests else 0.0, *shown)) if shown else Leak(None, None)


def case(data: Data, flagged: Tensor, content: Tensor, target: int, seed: int, probe: int) -> Case | None:
    """Return the test for one class; None where there are no images for it, or no kept sample shows what a suspect shows.

    The images are of all other classes, but of one alone where most suspects that do not show the target show that one (TaCT, all-to-all).

    Args:
        data: The set, labels as given.
        flagged: bool [n], those of `target` are the suspects.
        content: int64 [n], what the clean model sees in each sample.
        target: The class.
        seed: Of the run; the same one draws the same images.
        probe: Images at most.
    """
    images, labels = data.images, data.labels
    classes = int(torch.maximum(labels, content).max()) + 1  # the clean model may see a class that no sample is labelled with
    suspects, kept = flagged & (labels == target), ~flagged
    others = torch.nonzero(kept & (labels != target) & (content != target))[:, 0]
    foreign = torch.bincount(content[suspects & (content != target)], minlength=classes)
    source = int(foreign.argmax())
    alone = others[(labels[others] == source) & (content[others] == source)]
    # A trigger may work on images of one class only; those of the others would hide that it does.
    if 2 * int(foreign[source]) > int(foreign.sum()) and len(alone):
        others = alone
    trigger = trigger_estimate(images, suspects, kept, content, classes)
    if len(others) == 0 or not bool(trigger.any()):
        return None
    others = others[torch.randperm(len(others), generator=generator(seed, "leak"))[:probe].to(others.device)]
    tried, rng = chosen(images, others), generator(seed, "leak", "halves", target)
    alike = [torch.nonzero(kept & (labels == shown) & (content == shown))[:, 0] for shown in range(classes)]
    usable = torch.nonzero(suspects)[:, 0]
    usable = usable[torch.tensor([len(alike[shown]) > 0 for shown in content[usable].tolist()], device=usable.device, dtype=torch.bool)]
    if len(usable) == 0:
        return Case(target, tried, trigger, images[:0], images[:0])
    drawn = usable[torch.randint(len(usable), (len(tried),), generator=rng).to(usable.device)]
    like = [alike[shown][int(torch.randint(len(alike[shown]), (), generator=rng))] for shown in content[drawn].tolist()]
    return Case(target, tried, trigger, _pasted(tried, chosen(images, drawn)), _pasted(tried, chosen(images, torch.stack(like))))


def case_flip_rate(model: nn.Module, test: Case, batch_size: int = 256) -> float:
    """Return the share of images, in [0, 1], that a model gives to the target because of what suspects show: the larger of both ways.

    Args:
        model: In eval mode.
        test: The images.
        batch_size: Samples a pass.
    """
    added = target_share(model, test.images, test.target, test.trigger, batch_size) - target_share(model, test.images, test.target, None, batch_size)
    pasted = target_share(model, test.pasted, test.target, None, batch_size) - target_share(model, test.control, test.target, None, batch_size)
    return max(0.0, added, pasted)


def _pasted(images: Images, halves: Images) -> Images:
    """Return the images, each under half of another (top, bottom, left, right, in turn): a trigger off the middle lies whole in two of the four."""
    if isinstance(images, Tensor) and isinstance(halves, Tensor):
        return _over(images, halves, torch.arange(len(images), device=images.device))

    def fill(places: Tensor, out: Tensor) -> None:
        out.copy_(_over(images[places].cpu(), halves[places].cpu(), places))

    return Streamed(fill, torch.Size(images.shape), images.device)


def _over(images: Tensor, halves: Tensor, places: Tensor) -> Tensor:
    """Return uint8 [b h w c]; whose turn it is says the place, int64 [b]."""
    height, width = images.shape[1] // 2, images.shape[2] // 2
    over = images.clone()
    for turn, (rows, columns) in enumerate(
        (
            (slice(None, height), slice(None)),
            (slice(height, None), slice(None)),
            (slice(None), slice(None, width)),
            (slice(None), slice(width, None)),
        )
    ):
        mine = places % 4 == turn
        over[mine, rows, columns] = halves[mine, rows, columns]
    return over
