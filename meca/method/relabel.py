"""`relabel_finetune`: what happens to the flagged samples, and a test of the final model that needs no truth.

Rule 6 of the paper gives every flagged sample the label that the clean model sees in it. Preset `default` does so only where
the clean model is confident and contradicts the given label. Where it agrees with it, the sample is clean, or of a clean-label attack and would bring
its trigger back under the label that the attacker wants. Which of the two depends on how its class was proven (`meca.method.proofs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meca.errors import check_fields
from meca.method.proofs import CONFIRMED, Confirmed, Proof
from meca.training.trainer import Recipe

__all__ = ["RelabelParams", "Relabelled", "relabel"]


@dataclass(frozen=True)
class RelabelParams:
    """Group `relabel_finetune` of params.yaml."""

    recipe: Recipe
    confidence: float  # of the clean model, in [0, 1], below which a flagged sample is removed; of two classes, of what is above one half
    remove_above: float  # suspicion from which a flagged sample is removed although the clean model confirms its label, where its proof has a border
    probe: int  # samples of other classes in the leak test

    def __post_init__(self) -> None:
        """Refuse a test that asks nobody."""
        check_fields(self, ("probe", ">= 1", self.probe >= 1), ("confidence", ">= 0", self.confidence >= 0))


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
