"""What the samples of a class look like to networks that have never seen the class.

The classes are cut in groups by lot. For each group a network is trained on all other classes, and asked which of them it sees in the
samples of the group. Samples of a clean class look like their few neighbours, each a little. A sample that got its label together with a
trigger still shows what it is: it looks like its true class as surely as a sample of that class does, and such samples come from most
classes. So the share of a class that looks *typical* of the classes it is least like is the share of it that is wrongly labelled, whatever
the trigger: the network that sees it has met neither label nor trigger. The covers of an adaptive attack have their true label and play no part.

How sure is sure depends on the data, so it is measured. A part of the samples is kept aside, and how typical a sample is of class j is the
share of the samples of j aside that look less like j to the same network: a conformal p-value (Vovk, Gammerman, Shafer, "Algorithmic
Learning in a Random World", 2005).
"""

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meca.models import Description, build
from meca.training.engine import Data, Session, predict, side_by_side
from meca.training.images import chosen
from meca.training.trainer import Recipe

__all__ = ["Content", "foreign_share", "look_without", "lower_mean"]

ASIDE = 0.2  # share of the samples of every network's classes that it is not trained on: what is typical of a class is measured on them
FEW = 10  # samples aside, below which a class borrows those of all others: of so few it cannot be said what is typical

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Content:
    """What networks that have not seen a sample's class see in it."""

    seen: Ints  # [n]: the class, -1 where nobody was asked
    typical: Floats  # [n] in (0, 1]: share of the samples of that class, set aside, that look less like it
    known: Bools  # [classes classes]: the network that was asked about a class (row) knew another one (column)


def look_without(session: Session, data: Data, description: Description, recipe: Recipe, groups: int) -> Content:
    """Train a network without each group of classes, and return what it sees in them.

    Args:
        session: Of the run.
        data: The set, labels as given.
        description: Of a network for all classes.
        recipe: Of one training.
        groups: Into so many groups the classes are cut, of one class at least.
    """
    classes, n = len(description.class_names), len(data)
    content = Content(np.full(n, -1, dtype=np.int64), np.full(n, 1.0), np.zeros((classes, classes), dtype=bool))
    order = torch.randperm(classes, generator=session.draws("split", "groups"))
    aside = torch.rand(n, generator=session.draws("split", "aside")) < ASIDE
    count = min(groups, classes)
    jobs = [partial(_look, session, data, description, recipe, order[k::count], aside, k) for k in range(count)]
    for rows, seen, typical, left_out, known in side_by_side(jobs, session.device):
        content.seen[rows], content.typical[rows] = seen, typical
        content.known[np.ix_(left_out, known)] = True
    return content


def _look(
    session: Session, data: Data, description: Description, recipe: Recipe, left_out: Tensor, aside: Tensor, number: int
) -> tuple[Ints, Ints, Floats, Ints, Ints]:
    """Return the samples of the classes that are left out, what a network without them sees there and how typical it is, and the classes."""
    labels = data.labels.cpu()
    sizes = torch.bincount(labels, minlength=len(description.class_names))
    known = torch.tensor([c for c in range(len(sizes)) if sizes[c] > 0 and not bool((left_out == c).any())], dtype=torch.int64)
    is_known = torch.isin(labels, known)
    keep = is_known & ~aside
    rows = torch.nonzero(torch.isin(labels, left_out))[:, 0]
    nothing = np.zeros(0, dtype=np.int64)
    if len(known) < 2 or len(rows) == 0 or int(keep.sum()) < 2:
        return nothing, nothing, np.zeros(0), nothing, nothing
    place = torch.zeros(len(sizes), dtype=torch.int64)
    place[known] = torch.arange(len(known))
    device = data.device
    fewer = dataclasses.replace(description, class_names=tuple(description.class_names[int(c)] for c in known))
    model = build(fewer, session.draws("split", "without", number)).to(device)
    numbered = dataclasses.replace(data, labels=place[labels].to(device))
    session.train(model, numbered, recipe, f"split without {number}", keep.to(device))
    held = torch.nonzero(is_known & aside)[:, 0]
    mine, theirs = (predict(model, chosen(data.images, r.to(device))).double().log_softmax(1).cpu().numpy() for r in (rows, held))
    seen = mine.argmax(1)
    own = place[labels[held]].numpy()
    of_own = theirs[np.arange(len(held)), own]
    pooled = np.sort(of_own)
    typical = np.ones(len(rows))
    for j in range(len(known)):
        reference = np.sort(of_own[own == j])
        reference = reference if len(reference) >= FEW else pooled
        here = np.flatnonzero(seen == j)
        typical[here] = (np.searchsorted(reference, mine[here, j], side="right") + 1) / (len(reference) + 1)
    present = np.array([int(c) for c in left_out if sizes[c] > 0], dtype=np.int64)
    return rows.numpy(), known.numpy()[seen], typical, present, known.numpy()


def foreign_share(content: Content, labels: Ints, kept: Bools, strictness: float) -> Floats:
    """Return how much of class t looks typical of class j, over what a sample drawn from all classes would: float64 [classes classes].

    If a share s of class t were drawn at random from the known classes, all entries of row t would be s beyond what its own content
    adds. NaN where the network that was asked about t did not know j.

    Args:
        content: See `look_without`.
        labels: int64 [n], as given.
        kept: bool [n], the samples that count.
        strictness: In (0, 1): a sample is typical of a class if at least this share of the samples of that class looks less like it.
    """
    classes = len(content.known)
    sizes = np.bincount(labels[kept], minlength=classes).astype(np.float64)
    shares = np.full((classes, classes), np.nan)
    counts = kept & (content.seen >= 0) & (content.typical >= strictness)
    for t in range(classes):
        known = np.flatnonzero(content.known[t] & (sizes > 0))
        if sizes[t] == 0 or len(known) == 0:
            continue
        hits = np.bincount(content.seen[counts & (labels == t)], minlength=classes)[known]
        shares[t, known] = hits / sizes[t] / (sizes[known] / sizes[known].sum()) / (1 - strictness)
    return shares


def lower_mean(values: Floats, share: float) -> float:
    """Return the mean of the lowest share of the values that are no NaN, 0 where there are none."""
    values = np.sort(values[np.isfinite(values)])
    return float(values[: max(1, int(np.ceil(len(values) * share)))].mean()) if len(values) else 0.0
