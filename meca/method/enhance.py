"""`enhance`: a model in which the backdoor, if there is one, stands out.

`two_outputs` (preset `default`). Every class gets two outputs, `suspect` and `plain`. The network of `partition` learns to
tell the most suspicious samples of each class from the least suspicious half; the samples between take no part. In a
class without poison that is a distinction between easy and hard pictures, a matter of degree. In a poisoned class it is the
distinction between pictures with and without the trigger: the simplest feature there is, and it carries over to samples
that the network has not seen. So the set is cut in two folds, each is judged by the network that was trained on the
other one, and the judgement (the margin between the two outputs) seeds the next round, as the paper rescores the set before
every round. The rounds are run three times: with the fast learnt samples as suspects (`low`), and with those at either end of the
main axis of their class (`ahead`, `behind`). On an easy data set the clean task is learnt before a rare trigger or beside it, so that
the order of learning says nothing; the features of a network that has learnt the trigger still say it.

`unlearn` (preset `paper`). Formula 4 of the paper: `L = CE(f, D_rest) - 0.05 CE(f, D_c)`, over rounds with a growing share
`alpha_t`, the set rescored before each. What the paper leaves open (rounds, schedule, learning rate) is in params.yaml.

Pu, Chen, Zhou, Feng, Li, Hu, Ji, 2024, https://arxiv.org/abs/2405.12719.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from meca.errors import check_fields
from meca.models import Description, build
from meca.training.device import Device
from meca.training.engine import predict, train
from meca.training.seeds import generator
from meca.training.trainer import Recipe

__all__ = ["SIDES", "EnhanceParams", "TwoOutputs", "folds", "suspects_first", "two_outputs", "unlearn", "widen"]

SIDES = ("low", "ahead", "behind")


@dataclass(frozen=True)
class EnhanceParams:
    """Group `enhance` of params.yaml."""

    method: Literal["two_outputs", "unlearn"]
    rounds: int  # two_outputs: passes over both folds; unlearn: T
    recipe: Recipe  # of one training; unlearn: epochs are those of one round
    core: float  # two_outputs: share of a class that seeds `suspect` in the first round
    plain: float  # two_outputs: share of a class that is `plain`
    unlearning: float  # unlearn: coefficient of D_c
    alpha_start: float  # unlearn: share of D_c in the first round
    alpha_end: float  # unlearn: in the last round

    def __post_init__(self) -> None:
        """Refuse numbers with which no round can be run."""
        check_fields(
            self,
            ("rounds", ">= 1", self.rounds >= 1),
            ("core", "in (0, 1)", 0 < self.core < 1),
            ("plain", "in (0, 1)", 0 < self.plain < 1),
            ("alpha_start", "in [0, 1]", 0 <= self.alpha_start <= 1),
            ("alpha_end", "in [0, 1]", 0 <= self.alpha_end <= 1),
        )


@dataclass(frozen=True)
class TwoOutputs:
    """The result of one side."""

    margin: Tensor  # float32 [n]: logit of `suspect` minus logit of `plain`, by the network that has not seen the sample
    called: Tensor  # bool [n]: of all outputs, that network chose `suspect` of the given class
    model: nn.Module  # of the last training; outputs: K plain, then K suspect
    description: Description  # of that model


def suspects_first(suspicious: Tensor, axis: Tensor) -> dict[str, Tensor]:
    """Return per side what its first round orders the samples of a class by, float32 [n], high is suspicious.

    Args:
        suspicious: [n], from the order of learning.
        axis: [n], see `meca.method.partition.main_axis`.
    """
    return dict(zip(SIDES, (suspicious.float(), axis.float(), -axis.float()), strict=True))


def folds(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return bool [n]: a random half of every class."""
    half = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        rows = torch.nonzero(labels == c)[:, 0]
        half[rows[torch.randperm(len(rows), generator=rng)[: len(rows) // 2]]] = True
    return half


def widen(description: Description, model: nn.Module, rng: torch.Generator) -> tuple[Description, nn.Module]:
    """Return the network with twice the outputs; all weights are taken over, the last layer's for both halves."""
    names = description.class_names
    wide = dataclasses.replace(description, class_names=(*names, *(f"{name} (suspect)" for name in names)))
    grown = build(wide, rng)
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in grown.state_dict().items():
            tensor.copy_(state[name] if tensor.shape == state[name].shape else torch.cat([state[name], state[name]]))
    return wide, grown


def _targets(labels: Tensor, order_by: Tensor, learn: Tensor, classes: int, params: EnhanceParams, first: bool) -> Tensor:
    """Return int64 [n]: the output that each sample is taught, -1 for those that take no part."""
    target = torch.full_like(labels, -1)
    for c in range(classes):
        rows = torch.nonzero((labels == c) & learn)[:, 0]
        order = rows[torch.sort(order_by[rows], descending=True, stable=True).indices]
        plain = int(params.plain * len(order))
        if first:
            core = int(params.core * len(order))
        else:
            # Never fewer than a twentieth, or a class without a cluster would leave its second output untrained.
            core = min(max(int((order_by[order] > 0).sum()), len(order) // 20), len(order) - plain)
        target[order[len(order) - plain :]] = c
        target[order[: max(1, core)]] = classes + c
    return target


def two_outputs(
    model: nn.Module,
    description: Description,
    images: Tensor,
    labels: Tensor,
    order_by: Tensor,
    params: EnhanceParams,
    seed: int,
    side: str,
    checkpoints: Path | None = None,
    on_training: Callable[[int, float, float], None] | None = None,
    device: Device | None = None,
) -> TwoOutputs:
    """Return the margins of all samples after the rounds of one side.

    Args:
        model: The network of `partition`; not changed.
        description: Its description.
        images: uint8 [n h w c].
        labels: int64 [n], as given.
        order_by: float32 [n], high is suspicious, see `suspects_first`.
        params: Shares, rounds, recipe.
        seed: Of the run.
        side: Its name, part of every draw's key.
        checkpoints: Folder to resume from.
        on_training: Told the number of the training, its last loss and its last accuracy.
        device: Says how a step is computed.
    """
    classes = len(description.class_names)
    half = folds(labels.cpu(), generator(seed, "enhance", "folds")).to(labels.device)
    margin, called = order_by.clone(), torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    wide, grown = description, model
    for number in range(2 * params.rounds):
        held = half if number % 2 == 0 else ~half
        target = _targets(labels, order_by, ~held, classes, params, first=number < 2)
        wide, grown = widen(description, model, generator(seed, "enhance", side, number))
        grown = grown.to(images.device)
        last = [0.0, 0.0]

        def note(epoch: int, loss: float, accuracy: float, last: list[float] = last) -> None:
            last[:] = [loss, accuracy]

        place = None if checkpoints is None else checkpoints / f"{side}-{number}.safetensors"
        # A class of one sample is in one fold alone, so that a tiny set can leave nothing to learn: then nothing stands apart.
        if int((target >= 0).sum()) >= 2:
            train(grown, images, target.clamp(min=0), target >= 0, params.recipe, seed, f"enhance {side} {number}", place, note, device)
        grown.eval()
        rows = torch.nonzero(held)[:, 0]
        logits = predict(grown, images[rows])
        each = torch.arange(len(rows), device=rows.device)
        margin[rows] = logits[each, labels[rows] + classes] - logits[each, labels[rows]]
        called[rows] = logits.argmax(1) == labels[rows] + classes
        if number % 2 == 1:
            order_by = margin.clone()
        if on_training is not None:
            on_training(number + 1, last[0], last[1])
    return TwoOutputs(margin=margin, called=called, model=grown, description=wide)


def unlearn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    likely_clean: Tensor,
    params: EnhanceParams,
    seed: int,
    number: int,
    checkpoint: Path | None = None,
    device: Device | None = None,
) -> tuple[nn.Module, float]:
    """Run one round of the paper's enhancement in place: learn `D_rest`, unlearn `D_c`. Returns the model and the last mean loss.

    A batch holds samples of both parts as they come, so the two terms are weighted by their share of the set.

    Args:
        model: The model so far.
        images: uint8 [n h w c].
        labels: int64 [n].
        likely_clean: bool [n], D_c of this round.
        params: Coefficient and recipe.
        seed: Of the run.
        number: Of the round, from 1.
        checkpoint: File to resume from.
        device: Says how a step is computed.
    """
    weight = torch.where(likely_clean, -params.unlearning, 1.0)
    last = [0.0]

    def note(epoch: int, loss: float, accuracy: float) -> None:
        last[0] = loss

    everything = torch.ones_like(likely_clean)
    train(model, images, labels, everything, params.recipe, seed, f"enhance {number}", checkpoint, note, device, weight)
    return model, last[0]
