"""Which samples of a proven class are poisoned.

A class is proven by a part of it, or by samples that are typical of other classes. Both are a beginning: the part is one tenth or one half
of the class, and half of the poison need not be typical of anything. What poison has in common is its trigger, and a network that is taught
the surest samples as `suspect` and the least suspicious as `plain` learns it at once. So the class is cut in two folds, each is judged by a
network that was taught on the other one, and the judgement seeds the next round, as in `meca.method.enhance`; here only the proven classes
are taught two outputs. Few of their samples are taught as plain, since most of a class can be poisoned. Images of other classes show the
network what has no trigger, too.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from meca.method.enhance import folds
from meca.models import Description, Network, build
from meca.training.engine import Data, Session, predict
from meca.training.images import chosen
from meca.training.trainer import Recipe

__all__ = ["Seeds", "order_by_features", "separate"]

ROUNDS = 2
SHRINK = 0.01  # inverse strength of the penalty of the logistic regression: there are as many features as samples
OTHERS = 0.5  # share of the samples of every other class that is taught: enough to keep its place

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Seeds:
    """Where to begin in one class."""

    rows: Ints  # [m], its samples that count
    order: Floats  # [m], high is suspicious
    share: float  # of the class that is poisoned, about
    plain: float  # of the class that is taught as plain, the least suspicious


def order_by_features(features: Floats, suspects: Bools) -> Floats:
    """Return how much the features of each sample are those of the suspects: float64 [m], log odds.

    Args:
        features: [m f] of a network that was trained on everything.
        suspects: bool [m], some of them and some not.
    """
    from sklearn.linear_model import LogisticRegression

    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return np.asarray(LogisticRegression(C=SHRINK, max_iter=500).fit(scaled, suspects).decision_function(scaled), dtype=np.float64)


def separate(session: Session, network: Network, data: Data, seeds: Mapping[int, Seeds], recipe: Recipe, name: str) -> dict[int, Floats]:
    """Return for each class the margins of its samples, float64 [m]: above zero where a network that has not seen them calls them suspect.

    Args:
        session: Of the run.
        network: It is started from; not changed.
        data: The set, labels as given.
        seeds: By class.
        recipe: Of one training.
        name: Part of every draw's key.
    """
    labels, names, device = data.labels, network.description.class_names, data.device
    wide = dataclasses.replace(network.description, class_names=(*names, *(f"{names[c]} (suspect)" for c in seeds)))
    half = folds(labels.cpu(), session.draws("split", "folds", name))
    others = torch.rand(len(labels), generator=session.draws("split", "others", name)) < OTHERS
    orders = {c: seed.order for c, seed in seeds.items()}
    margins = {c: np.zeros(len(seed.rows)) for c, seed in seeds.items()}
    for number in range(2 * ROUNDS):
        held = half if number % 2 == 0 else ~half
        target = torch.where(others & ~held, labels.cpu(), -1)
        for place, (c, seed) in enumerate(seeds.items()):
            target[labels.cpu() == c] = -1
            learn = ~held[torch.from_numpy(seed.rows)].numpy()
            order = np.flatnonzero(learn)[np.argsort(-orders[c][learn], kind="stable")]
            suspects, plain = _counts(orders[c][order], seed.share, seed.plain, first=number < 2)
            target[torch.from_numpy(seed.rows[order[:suspects]])] = len(names) + place
            target[torch.from_numpy(seed.rows[order[len(order) - plain :]])] = c
        model = _widened(wide, network.model, list(seeds), session.draws("split", name, number)).to(device)
        if int((target >= 0).sum()) >= 2:
            taught = dataclasses.replace(data, labels=target.clamp(min=0).to(device))
            session.train(model, taught, recipe, f"split {name} {number}", (target >= 0).to(device))
        model.eval()
        for place, (c, seed) in enumerate(seeds.items()):
            asked = held[torch.from_numpy(seed.rows)].numpy()
            logits = predict(model, chosen(data.images, torch.from_numpy(seed.rows[asked]).to(device)))
            margins[c][asked] = (logits[:, len(names) + place] - logits[:, c]).double().cpu().numpy()
        if number % 2 == 1:
            orders = {c: margins[c].copy() for c in seeds}
    return margins


def _counts(order: Floats, share: float, plain_share: float, first: bool) -> tuple[int, int]:
    """Return how many of the most suspicious are taught as suspect, and of the least as plain, of samples in falling order."""
    m = len(order)
    plain = round(m * plain_share)
    suspects = round(m * share / 2) if first else int((order > 0).sum())
    return max(1, min(suspects, m - plain)), max(1, plain)


def _widened(wide: Description, model: nn.Module, classes: list[int], rng: torch.Generator) -> nn.Module:
    """Return a network with more outputs; all weights are taken over, those of the outputs that are new from the classes they belong to."""
    grown = build(wide, rng)
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in grown.state_dict().items():
            tensor.copy_(state[name] if tensor.shape == state[name].shape else torch.cat([state[name], state[name][classes]]))
    return grown
