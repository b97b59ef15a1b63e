"""Detectors that need no clean data, each written from its paper. What a number means stands here; which one is in force, in the registry.

Where a network is trained, the order of the samples is drawn over their rows, so other rows are another run of the method.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from meca.defenses.clusters import smaller_clusters
from meca.defenses.contract import Judgement, Scene
from meca.training.engine import features, predict
from meca.training.trainer import as_input

__all__ = ["clusters", "isolation", "rotated", "scaling", "spectral", "transforms"]

BATCH = 128  # samples a step, in ABL and in D-BR
MOMENTUM = 0.9  # what the isolating stages of these methods train with
SHIFT = 0.4  # in coordinates that run from -1 to 1: a fifth of the side
BLOCK = 1024  # images that are changed at a time

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def spectral(scene: Scene, *, times: float, most: float) -> Judgement:
    """Spectral signatures (Tran, Li, Madry, 2018): squared projections of a class's centred features on their first singular vector.

    Args:
        scene: With the poison rate.
        times: Of the count of poison, so many are flagged in every class, for all of it may be in this one.
        most: Share of a class that is flagged at most.
    """
    assert scene.rate is not None
    values, labels = _features(scene), scene.train.labels.cpu().numpy()
    score, flagged = np.zeros(len(labels)), np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        centred = values[rows] - values[rows].mean(0)
        score[rows] = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
        flagged[_highest(score, rows, min(most, times * scene.rate * len(score) / len(rows)))] = True
    return Judgement(score, flagged)


def clusters(scene: Scene, *, smaller: float) -> Judgement:
    """Activation clustering (Chen et al., 2018): two means in ten components of each class; a smaller cluster is flagged where it is small.

    The suspicion is how much nearer a sample is to the smaller cluster than to the larger, over the distance of the two.

    Args:
        scene: What it looks at.
        smaller: Share of its class below which the smaller cluster is flagged.
    """
    labels = scene.train.labels.cpu().numpy()
    small, score = smaller_clusters(_features(scene), labels, scene.seed)
    counts, held = np.bincount(labels), np.bincount(labels, weights=small)
    return Judgement(score, small & (held / np.maximum(1, counts) < smaller)[labels])


def isolation(scene: Scene, *, passes: int, lr: float, weight_decay: float, ascent: float, share: float) -> Judgement:
    """The isolating stage of anti-backdoor learning (Li et al., 2021): the loss of a network that unlearns what it has learnt well.

    Args:
        scene: What it looks at.
        passes: Over all samples.
        lr: For a mean loss.
        weight_decay: Of all weights.
        ascent: Loss of a batch, below which it is unlearnt (local gradient ascent).
        share: Of the samples, those with the lowest loss, that is flagged.
    """

    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        return torch.sign(loss.detach() - ascent) * loss

    model = _trained(scene, scene.fresh("isolation"), passes, lr, weight_decay, step, nesterov=True)
    losses = F.cross_entropy(predict(model, scene.train.images), scene.train.labels, reduction="none")
    return _flagged(-losses.double().cpu().numpy(), share)


def transforms(scene: Scene, *, passes: int, spreading: int, lr: float, weight_decay: float, share: float) -> Judgement:
    """The sensitivity of D-BR (Chen, Wu, Wang, 2022): how far a random rotation with a random shift moves an image's features.

    Args:
        scene: What it looks at.
        passes: Over all samples, with their labels.
        spreading: Passes after them that drive the mean features of the classes apart.
        lr: Of both.
        weight_decay: Of both.
        share: Of the samples, those that move most, that is flagged.
    """

    def spread(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        inputs = _inputs_of_head(model, x)
        centres = F.normalize(torch.stack([inputs[y == c].mean(0) for c in y.unique()]), dim=1)
        cosine = centres @ centres.T
        return (cosine - torch.diag(torch.diagonal(cosine))).mean()

    model, images = scene.fresh("transforms"), scene.train.images
    model = _trained(scene, model, passes, lr, weight_decay, lambda model, x, y: F.cross_entropy(model(x), y))
    model = _trained(scene, model, spreading, lr, weight_decay, spread)
    rng = scene.draws("rotation")
    moved = torch.cat([rotated(block, rng) for block in images.split(BLOCK)])
    return _flagged((features(model, images) - features(model, moved)).double().square().mean(1).cpu().numpy(), share)


def scaling(scene: Scene, *, largest: int, shift: float, above: float) -> Judgement:
    """SCALE-UP (Guo et al., 2023), shifted as by Pal et al. (2024) but without their mask: how often a prediction stays when pixels are scaled.

    Args:
        scene: What it looks at.
        largest: The pixels are multiplied by 2 to this.
        shift: Taken from the pixels, in [0, 1], before.
        above: Suspicion, from -1 (never stays) to 1, above which a sample is flagged.
    """
    images, scales = scene.train.images, range(2, largest + 1)
    before = predict(scene.model, images).argmax(1)
    stays = torch.zeros(len(before), dtype=torch.float64, device=before.device)
    for scale in scales:
        changed = torch.cat([((block.float() / 255 - shift) * scale).clamp(0, 1).mul(255).round().byte() for block in images.split(BLOCK)])
        stays += 2 * (predict(scene.model, changed).argmax(1) == before).double() - 1
    score = (stays / len(scales)).cpu().numpy()
    return Judgement(score, score > above)


def rotated(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return each image turned by up to 180 degrees and shifted by up to a fifth of its side, uint8 [n h w c]; black comes in."""
    n = len(images)
    angle = (2 * torch.rand(n, generator=rng) - 1) * torch.pi
    shift = (2 * torch.rand(n, 2, generator=rng) - 1) * SHIFT
    cos, sin = angle.cos(), angle.sin()
    turns = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1).to(images.device)
    grid = F.affine_grid(turns, [n, images.shape[3], *images.shape[1:3]], align_corners=False)
    turned = F.grid_sample(images.permute(0, 3, 1, 2).float(), grid, align_corners=False)
    return turned.permute(0, 2, 3, 1).round().clamp(0, 255).byte()


def _features(scene: Scene) -> Floats:
    return features(scene.model, scene.train.images).double().cpu().numpy()


def _flagged(score: Floats, share: float) -> Judgement:
    flagged = np.zeros(len(score), dtype=bool)
    flagged[_highest(score, np.arange(len(score)), share)] = True
    return Judgement(score, flagged)


def _highest(score: Floats, rows: Ints, share: float) -> Ints:
    """Return the share of the rows with the highest score; ties go to the earlier row."""
    return rows[np.argsort(-score[rows], kind="stable")[: int(share * len(rows))]]


def _trained(
    scene: Scene,
    model: nn.Module,
    passes: int,
    lr: float,
    weight_decay: float,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    nesterov: bool = False,
) -> nn.Module:
    """Train in place by plain SGD without augmentation, as the isolating stages of these methods do."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, nesterov=nesterov)
    model.train()
    for number in range(passes):
        order = torch.randperm(len(scene.train.labels), generator=scene.draws("order", number)).to(scene.train.labels.device)
        for rows in order.split(BATCH):
            if len(rows) < 2:  # BatchNorm has nothing to average
                continue
            value = loss(model, as_input(scene.train.images[rows]), scene.train.labels[rows])
            optimizer.zero_grad()
            value.backward()  # pyright: ignore[reportUnknownMemberType]
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return model.eval()


def _inputs_of_head(model: nn.Module, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        model(x)
    finally:
        hook.remove()
    return kept[0]
