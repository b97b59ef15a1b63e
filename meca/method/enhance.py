"""`enhance`: a model in which the backdoor, if there is one, stands out.

`two_outputs` (preset `default`). Every class gets two outputs, `suspect` and `plain`. The network of `partition` learns to
tell the most suspicious samples of each class from the least suspicious half; the samples between take no part. In a
class without poison that is a distinction between easy and hard images, a matter of degree. In a poisoned class it is the
distinction between images with and without the trigger: the simplest feature there is, and it shows in samples that the
network has not seen, too. So the set is cut in two folds, each is judged by the network that was trained on the
other one, and the judgement (the margin between the two outputs) seeds the next round, as the paper rescores the set before
every round. The rounds are run three times: with the fast learnt samples as suspects (`low`), and with those at either end of the
principal axis of their class (`ahead`, `behind`). On an easy data set the clean task is learnt before a rare trigger or beside it, so that
the order of learning says nothing; the features of a network that has learnt the trigger still say it.

`unlearn` (preset `paper`). The paper's `L = CE(f, D_rest) - 0.05 CE(f, D_c)`, over rounds with a growing share `alpha_t`. What the
paper leaves open (rounds, schedule, learning rate, what is scored anew, what the terms are means over) is in params.yaml.

Pu, Chen, Zhou, Feng, Li, Hu, Ji, 2024, https://arxiv.org/abs/2405.12719.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from meca.errors import check_fields
from meca.method.partition import PartitionParams, choose, signals, suspicion
from meca.models import Description, Network, build
from meca.training.engine import Data, Session, predict
from meca.training.images import chosen
from meca.training.trainer import Recipe

__all__ = ["SIDES", "TAILS", "EnhanceParams", "Round", "TwoOutputs", "folds", "in_rounds", "suspects_first", "two_outputs", "unlearn", "widen"]

SIDES = ("low", "ahead", "behind")
TAILS = (0.04, 0.96)  # quantiles between which the range of margins lies: the few samples beyond them are outliers of any class
LEAST_CORE = 20  # a class over this number is taught as `suspect` at least, or one without a cluster would leave its second output untrained


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
    alpha_growth: float  # unlearn: share of the rounds over which it grows; it stays as it is in those after them
    rescore: Literal["rest", "all", "never"]  # unlearn: what is scored anew after a round, and may come into D_c or leave it
    mean_over: Literal["batch", "parts"]  # unlearn: what the two terms of the loss are means over

    def __post_init__(self) -> None:
        """Refuse numbers with which no round can be run."""
        check_fields(
            self,
            ("rounds", ">= 1", self.rounds >= 1),
            ("core", "in (0, 1)", 0 < self.core < 1),
            ("plain", "in (0, 1)", 0 < self.plain < 1),
            ("alpha_start", "in [0, 1]", 0 <= self.alpha_start <= 1),
            ("alpha_end", "in [0, 1]", 0 <= self.alpha_end <= 1),
            ("alpha_growth", "in (0, 1]", 0 < self.alpha_growth <= 1),
            ("alpha_end", "not below alpha_start where rescore is rest", self.rescore != "rest" or self.alpha_end >= self.alpha_start),
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
        axis: [n], see `meca.method.partition.principal_axis`.
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
            core = min(max(int((order_by[order] > 0).sum()), len(order) // LEAST_CORE), len(order) - plain)
        target[order[len(order) - plain :]] = c
        target[order[: max(1, core)]] = classes + c
    return target


def two_outputs(session: Session, network: Network, data: Data, order_by: Tensor, params: EnhanceParams, side: str) -> TwoOutputs:
    """Return the margins of all samples after the rounds of one side.

    Args:
        session: Its note is told the number of each training, its last loss and its last accuracy.
        network: That of `partition`; not changed.
        data: The set, labels as given.
        order_by: float32 [n], high is suspicious, see `suspects_first`.
        params: Shares, rounds, recipe.
        side: Its name, part of every draw's key.
    """
    labels, classes = data.labels, len(network.description.class_names)
    half = folds(labels.cpu(), session.draws("enhance", "folds")).to(labels.device)
    margin, called = order_by.clone(), torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    wide, grown = network.description, network.model
    for number in range(2 * params.rounds):
        held = half if number % 2 == 0 else ~half
        target = _targets(labels, order_by, ~held, classes, params, first=number < 2)
        wide, grown = widen(network.description, network.model, session.draws("enhance", side, number))
        grown = grown.to(data.device)
        last = [0.0, 0.0]

        def note(epoch: int, loss: float, accuracy: float, last: list[float] = last) -> None:
            last[:] = [loss, accuracy]

        # A class of one sample is in one fold alone, so that a tiny set can leave nothing to learn: then nothing stands apart.
        if int((target >= 0).sum()) >= 2:
            taught = Data(data.images, target.clamp(min=0))
            dataclasses.replace(session, note=note).train(grown, taught, params.recipe, f"enhance {side} {number}", target >= 0)
        grown.eval()
        rows = torch.nonzero(held)[:, 0]
        logits = predict(grown, chosen(data.images, rows))
        each = torch.arange(len(rows), device=rows.device)
        margin[rows] = logits[each, labels[rows] + classes] - logits[each, labels[rows]]
        called[rows] = logits.argmax(1) == labels[rows] + classes
        if number % 2 == 1:
            order_by = margin.clone()
        if session.note is not None:
            session.note(number + 1, last[0], last[1])
    return TwoOutputs(margin=margin, called=called, model=grown, description=wide)


@dataclass(frozen=True)
class Round:
    """One round of the paper's enhancement."""

    number: int  # from 1
    alpha: float  # share of the set that was unlearnt
    likely_clean: Tensor  # bool [n]: those samples, D_c
    loss: float  # mean, of the last epoch
    fitted: float  # share of the samples whose given label the model predicts
    suspicion: Tensor  # [n] in [0, 1]: the order after it, by the model or, where nothing is scored anew, by `partition`


def in_rounds(session: Session, model: nn.Module, data: Data, suspicious: Tensor, params: EnhanceParams, scoring: PartitionParams) -> Iterator[Round]:
    """Run the paper's T rounds on a model in place; yield them as they end.

    After a round the samples are scored with the model as it is then, and the next D_c is the share of them with the lowest suspicion
    (`params.rescore` is `all`). With `rest` what is in D_c stays there, and the share is filled up from the rest, which alone is scored anew.
    With `never` the order of `partition` is kept.

    Args:
        session: Of the run.
        model: The network of `partition`; changed.
        data: The set, labels as given.
        suspicious: [n], by `partition`, high is suspicious.
        params: Rounds, shares, coefficient and recipe.
        scoring: How the set is scored, and what the share of D_c is of.
    """
    growing = max(1, round(params.alpha_growth * params.rounds))
    clean = torch.zeros_like(data.labels, dtype=torch.bool)
    for number in range(1, params.rounds + 1):
        share = params.alpha_start + (params.alpha_end - params.alpha_start) * min(1.0, (number - 1) / max(1, growing - 1))
        settled = clean if params.rescore == "rest" else torch.zeros_like(clean)
        clean = choose(torch.where(settled, -1, suspicious), data.labels, share, scoring.alpha_of)
        loss = unlearn(session, model, data, clean, params, number)
        if params.rescore != "never":
            asked = ~clean if params.rescore == "rest" else torch.ones_like(clean)
            images = chosen(data.images, asked) if params.rescore == "rest" else data.images  # where all are asked none is copied
            rescored = signals(model, images, data.labels[asked], scoring, session.draws("enhance", "masks", number))
            suspicious = torch.zeros(len(data), dtype=torch.float64, device=clean.device)  # of what is settled
            suspicious[asked] = suspicion(rescored, scoring.signals)
        fitted = float((predict(model, data.images).argmax(1) == data.labels).float().mean())
        yield Round(number, share, clean, loss, fitted, suspicious)


def unlearn(session: Session, model: nn.Module, data: Data, likely_clean: Tensor, params: EnhanceParams, number: int) -> float:
    """Run one round of the paper's enhancement in place: learn `D_rest`, unlearn `D_c`. Returns the last mean loss.

    A batch holds samples of both parts as they come. With `params.mean_over` `batch` both terms are sums over a batch, divided by its size:
    each part weighs as much as its share of the set. With `parts` each term is the mean over its part of the set, whatever the part's size.

    Args:
        session: Of the run.
        model: The model so far.
        data: The set.
        likely_clean: bool [n], D_c of this round.
        params: Coefficient and recipe.
        number: Of the round, from 1.
    """
    last = [0.0]

    def note(epoch: int, loss: float, accuracy: float) -> None:
        last[0] = loss

    learn, forget = 1.0, -params.unlearning
    if params.mean_over == "parts":
        n, many = len(data), int(likely_clean.sum())
        learn, forget = learn * n / max(1, n - many), forget * n / max(1, many)
    weighted = dataclasses.replace(data, weight=torch.where(likely_clean, forget, learn))
    dataclasses.replace(session, note=note).train(model, weighted, params.recipe, f"enhance {number}")
    return last[0]
