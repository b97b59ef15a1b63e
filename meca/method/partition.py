"""`partition`: an early look at every sample, and the part that is almost surely clean.

A network is trained on everything, but not for long: a trigger is learnt in the first passes, while the hard part of the
clean task is not, and a saturated network would give ties. Two signals are read from it: the paper's score
(`meca.method.scoring`) and the cross-entropy to the given label, which is low early for poisoned samples (Li, Lyu, Koren, Lyu, Li,
Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data", NeurIPS 2021, https://arxiv.org/abs/2110.11571).

A third signal does not depend on the order of learning: where a sample lies on the principal axis of its class, the first principal
component of the network's features (Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018,
https://arxiv.org/abs/1811.00636, take the distance from the middle as their score). `enhance` starts from both of its ends.

Departures of `default` from the paper, each a parameter: the early stop, the further signals, and a share per class instead
of one over all classes, so that no class is missing from the clean part.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meca.errors import check_fields
from meca.method.scoring import masks_by_sample, patch_masks, ranks, score
from meca.training.images import Images
from meca.training.trainer import Recipe

__all__ = ["PartitionParams", "Signals", "choose", "principal_axis", "signals", "suspicion"]


@dataclass(frozen=True)
class PartitionParams:
    """Group `partition` of params.yaml."""

    recipe: Recipe
    eps: float  # of the signed step, in grey levels of 255
    patch: int  # pixels
    mask_share: float  # share of the patches that are in a mask; 0: one patch
    masks: int  # per sample; the score is their mean
    mask_of: Literal["set", "sample"]  # what a mask is drawn for: the whole set, or each sample
    signals: tuple[str, ...]  # kl, loss; their ranks are added
    alpha: float  # share that becomes likely_clean
    alpha_of: Literal["class", "all"]  # share of every class, or of the whole set

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing can be scored."""
        check_fields(
            self,
            ("eps", "in [0, 255]", 0 <= self.eps <= 255),
            ("patch", ">= 1", self.patch >= 1),
            ("mask_share", "in [0, 1]", 0 <= self.mask_share <= 1),
            ("masks", ">= 1", self.masks >= 1),
            ("signals", "to be one or both of kl, loss", bool(self.signals) and set(self.signals) <= {"kl", "loss"}),
            ("alpha", "in [0, 1]", 0 <= self.alpha <= 1),
        )


@dataclass(frozen=True)
class Signals:
    """What one model says about every training sample."""

    kl: Tensor  # float32 [n], low is suspicious
    loss: Tensor  # float32 [n], low is suspicious while the network is young
    logits: Tensor  # float32 [n classes]


def signals(model: nn.Module, images: Images, labels: Tensor, params: PartitionParams, rng: torch.Generator) -> Signals:
    """Return the raw signals of all samples.

    Args:
        model: Trained on the samples.
        images: uint8 [n h w c].
        labels: int64 [n], as given.
        params: Step, patch, masks.
        rng: Draws the masks.
    """
    draw = patch_masks if params.mask_of == "set" else masks_by_sample
    masks = draw(params.masks, images.shape[1], images.shape[2], params.patch, params.mask_share, rng)
    kl, logits = score(model, images, labels, masks, params.eps / 255)
    return Signals(kl=kl, loss=F.cross_entropy(logits, labels, reduction="none"), logits=logits)


def suspicion(raw: Signals, names: tuple[str, ...]) -> Tensor:
    """Return the mean rank of the named signals, in the order where high is suspicious: float64 [n] in [0, 1]."""
    values = {"kl": raw.kl, "loss": raw.loss}
    return 1 - torch.stack([ranks(values[name]) for name in names]).mean(0)


def principal_axis(features: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """Return where each sample lies on the principal axis of its class, in standard deviations from the mean: float32 [n].

    The positive end is the one with the lower loss, so that the ends of all classes have one meaning and no sign is left to chance.

    Args:
        features: float32 [n f], see `meca.training.engine.features`.
        labels: int64 [n], as given.
        loss: float32 [n].
    """
    place = torch.zeros(len(labels), dtype=torch.float64)
    on_cpu, values = labels.cpu(), ranks(loss.cpu())
    for c in on_cpu.unique():
        rows = torch.nonzero(on_cpu == c)[:, 0]
        mine = features[rows.to(features.device)].double().cpu()
        mine -= mine.mean(0)
        along = mine @ torch.linalg.eigh(mine.T @ mine).eigenvectors[:, -1]
        if float((along * (values[rows] - values[rows].mean())).sum()) > 0:
            along = -along
        place[rows] = along / along.square().mean().sqrt().clamp(min=1e-12)
    return place.float().to(labels.device)


def choose(suspicious: Tensor, labels: Tensor, alpha: float, of: str) -> Tensor:
    """Return `likely_clean`, bool [n]: the share `alpha` with the lowest suspicion; ties go to the earlier row.

    Args:
        suspicious: [n], high is suspicious.
        labels: int64 [n].
        alpha: In [0, 1].
        of: `class`: the share of every class; `all`: of the whole set.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    groups = [torch.arange(len(labels), device=labels.device)] if of == "all" else [torch.nonzero(labels == c)[:, 0] for c in labels.unique()]
    for rows in groups:
        order = rows[torch.sort(suspicious[rows], stable=True).indices]
        chosen[order[: int(alpha * len(rows))]] = True
    return chosen
