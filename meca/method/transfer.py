"""What a difference between images does to other images: trigger estimates and flip rates."""

import torch
from torch import Tensor, nn

from meca.training.trainer import as_input

__all__ = ["flip_rate", "median_flip_rate", "target_share", "trigger_estimate"]


def trigger_estimate(images: Tensor, flagged: Tensor, clean: Tensor, content: Tensor, classes: int) -> Tensor:
    """Return what the flagged samples have in common beyond their content: float32 [h w c] in [-1, 1].

    The mean of the flagged samples minus the mean of clean samples with the same mixture of contents.

    Args:
        images: uint8 [n h w c].
        flagged: bool [n], the suspects of one class.
        clean: bool [n], the kept samples.
        content: int64 [n], what the clean model sees in each sample.
        classes: Number of classes.
    """
    suspects = images[flagged].float().mean(0)
    matched = torch.zeros_like(suspects)
    weight = 0.0
    for c in range(classes):
        share = float((content[flagged] == c).float().mean())
        rows = clean & (content == c)
        if share > 0 and bool(rows.any()):
            matched += share * images[rows].float().mean(0)
            weight += share
    return (suspects - matched / max(weight, 1e-9)) / 255 if weight > 0 else torch.zeros_like(suspects)


def flip_rate(model: nn.Module, images: Tensor, difference: Tensor, content: Tensor, target: int, without: float) -> float:
    """Return the share of images that a difference flips to `target`, 0 where the content of the class explains it.

    After projecting out the class direction, the remainder must flip more images than the class direction scaled to the same norm: on
    images that are alike, what a class looks like flips many.

    Args:
        model: In eval mode.
        images: uint8 [b h w c], none of class `target`.
        difference: float32 [h w c], the mean of the suspects minus that of the rest of their class.
        content: float32 [h w c], the class direction: the mean of that rest minus that of all other classes.
        target: The class.
        without: Share of the images that the model gives to `target` without the difference.
    """
    direction = content / content.norm().clamp(min=1e-12)
    change = difference - (difference * direction).sum().clamp(min=0) * direction
    rate = target_share(model, images, target, change) - without
    by_content = target_share(model, images, target, direction * difference.norm()) - without
    return rate if rate > max(0.0, by_content) else 0.0


def median_flip_rate(model: nn.Module, images: Tensor, sources: Tensor, difference: Tensor, content: Tensor, target: int) -> float:
    """Return the flip rate of a difference beyond its content: the median over the classes that the images are of.

    A trigger works on images of any class. What the odd samples of a class show works on images that it suits: the odd bags of
    Fashion-MNIST flip most shoes, and no shirt.

    Args:
        model: In eval mode.
        images: uint8 [b h w c], one at least, none of class `target`.
        sources: int64 [b], their classes.
        difference: As of `flip_rate`.
        content: As of `flip_rate`.
        target: The class.
    """
    rates = [
        max(0.0, flip_rate(model, each, difference, content, target, target_share(model, each, target)))
        for each in (images[sources == source] for source in sources.unique())
    ]
    return float(torch.tensor(rates, dtype=torch.float64).quantile(0.5))


@torch.inference_mode()
def target_share(model: nn.Module, images: Tensor, target: int, added: Tensor | None = None, batch_size: int = 256) -> float:
    """Return the share of images that the model gives to `target`, 0 where there are none.

    Args:
        model: In eval mode.
        images: uint8 [b h w c].
        target: The class.
        added: float32 [h w c] in [-1, 1], what is added to every image.
        batch_size: Samples a pass.
    """
    count, delta = 0, None if added is None else added.permute(2, 0, 1)
    for i in range(0, len(images), batch_size):
        x = as_input(images[i : i + batch_size])
        count += int((model(x if delta is None else (x + delta).clamp(0, 1)).argmax(1) == target).sum())
    return count / max(1, len(images))
