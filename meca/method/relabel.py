"""`relabel_finetune`: what happens to the flagged samples, and a test of the final model that needs no truth.

Rule 6 of the paper gives every flagged sample the label that the clean model sees in it. Preset `default` does so only where
the clean model is confident and contradicts the given label. Where it agrees with it, the sample is clean, or of a clean-label attack and would bring
its trigger back under the label that the attacker wants. Which of the two depends on how its class was proven (`meca.method.proofs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meca.errors import check_fields
from meca.method.proofs import CONFIRMED, Confirmed, Proof
from meca.training.engine import Recipe, as_input

__all__ = ["RelabelParams", "Relabelled", "called", "everywhere", "relabel", "trigger_estimate", "unexplained"]


@dataclass(frozen=True)
class RelabelParams:
    """Group `relabel_finetune` of params.yaml."""

    recipe: Recipe
    confidence: float  # of the clean model, in [0, 1], below which a flagged sample is removed; of two classes, of what is above one half
    remove_above: float  # suspicion from which a flagged sample is removed although the clean model confirms its label, where its proof has a border
    probe: int  # samples of other classes in the leak test

    def __post_init__(self) -> None:
        """Refuse a test that asks nobody."""
        check_fields(self, ("probe", "of 1 at least", self.probe >= 1), ("confidence", "of 0 at least", self.confidence >= 0))


@dataclass(frozen=True)
class Relabelled:
    """The final decision about every sample."""

    labels: Tensor  # int64 [n]: as given, or new
    keep: Tensor  # bool [n]: stays in the set, under its given or a new label
    changed: Tensor  # bool [n]


def relabel(
    probabilities: Tensor, labels: Tensor, flagged: Tensor, suspicion: Tensor, proofs: Sequence[Proof | None], params: RelabelParams
) -> Relabelled:
    """Decide what happens to each flagged sample; the others keep their label bit for bit.

    Args:
        probabilities: float32 [n classes] of the clean model.
        labels: int64 [n], as given.
        flagged: bool [n].
        suspicion: [n] in [0, 1], high is suspicious.
        proofs: [n], how the class of each flagged sample was proven; None where a sample is not flagged.
        params: The rule.
    """
    confidence, seen = probabilities.max(1)
    # Of two classes one always has half of the probability, so confidence is what it has beyond that.
    sure = confidence >= (0.5 + params.confidence / 2 if probabilities.shape[1] == 2 else params.confidence)
    agrees = seen == labels
    changed = flagged & sure & ~agrees

    def said(word: Confirmed) -> Tensor:
        return torch.tensor([proof is not None and CONFIRMED[proof] == word for proof in proofs], dtype=torch.bool, device=flagged.device)

    confirmed = flagged & sure & agrees & (said("kept") | (said("border") & (suspicion < params.remove_above)))
    return Relabelled(labels=torch.where(changed, seen, labels), keep=~flagged | changed | confirmed, changed=changed)


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


def unexplained(model: nn.Module, images: Tensor, difference: Tensor, content: Tensor, target: int, without: float, batch_size: int = 256) -> float:
    """Return the share of images that a difference turns to `target`, 0 where the content of the class explains it.

    The part of the difference that points from the other classes to this one is taken out, and what is left must turn more images than
    that direction itself does at the length of the difference: on pictures that are alike, what a class looks like turns many.

    Args:
        model: In eval mode.
        images: uint8 [b h w c], none of class `target`.
        difference: float32 [h w c], the mean of the suspects minus that of the rest of their class.
        content: float32 [h w c], the mean of that rest minus that of all other classes.
        target: The class.
        without: Share of the images that the model calls `target` as they are.
        batch_size: Samples a pass.
    """
    direction = content / content.norm().clamp(min=1e-12)
    change = difference - (difference * direction).sum().clamp(min=0) * direction
    turned = called(model, images, target, change, batch_size) - without
    by_content = called(model, images, target, direction * difference.norm(), batch_size) - without
    return turned if turned > max(0.0, by_content) else 0.0


def everywhere(model: nn.Module, images: Tensor, sources: Tensor, difference: Tensor, content: Tensor, target: int, batch_size: int = 256) -> float:
    """Return the share of images that a difference turns to `target` beyond its content: the median over the classes that they are of.

    A trigger works on pictures of any class. What the odd samples of a class show works on pictures that it suits: the odd bags of
    Fashion-MNIST turn most shoes, and no shirt.

    Args:
        model: In eval mode.
        images: uint8 [b h w c], one at least, none of class `target`.
        sources: int64 [b], their classes.
        difference: As of `unexplained`.
        content: As of `unexplained`.
        target: The class.
        batch_size: Samples a pass.
    """
    turned = [
        max(0.0, unexplained(model, each, difference, content, target, called(model, each, target, None, batch_size), batch_size))
        for each in (images[sources == source] for source in sources.unique())
    ]
    return float(torch.tensor(turned, dtype=torch.float64).quantile(0.5))


@torch.inference_mode()
def called(model: nn.Module, images: Tensor, target: int, added: Tensor | None = None, batch_size: int = 256) -> float:
    """Return the share of images that the model calls `target`, 0 where there are none.

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
