"""Two clusters in every class, and whether the smaller one holds a trigger that changes one class to another.

The clusters are those of activation clustering (Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI
2019): of the inputs of the last layer of a network that was trained on everything, class by class. Their size alone proves nothing, since a class
with two kinds of images has two clusters, too. So the smaller one must flip images: its mean, minus that of another class, is added to images
of that class. Where every class is the target of one other (all-to-all), this is what the cluster is made of, images of that class with a trigger.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from meca.method.transfer import flip_rate, target_share
from meca.training.engine import Data
from meca.training.seeds import generator

__all__ = ["Asked", "Pairs", "changed_pairs", "smaller_clusters"]

COMPONENTS = 10  # of the features; the paper keeps as many
STARTS = 10  # of k-means; the best is taken, since a start can end in a worse division
FEW = 20  # samples of a class, below which it is not divided: a cluster of a few would be chance
NEAREST = 5  # other classes that a cluster may come from, by the distance of the means: all would be the square of the classes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """Of which clusters the flip rate is measured."""

    most: float  # share of its class that a smaller cluster may be; larger ones are kinds of images
    least: int  # samples of a cluster: the mean of fewer still shows single images
    probe: int  # images for each class, at most, shared by the classes that the cluster may come from


@dataclass(frozen=True)
class Pairs:
    """The smaller cluster of each class, and its flip rate."""

    small: Bools  # [n], the sample lies in the smaller cluster of its class
    nearer: Floats  # [n] in [-1, 1], see `smaller_clusters`
    flip_rates: Floats  # [classes], share of images of one other class that it flips to its own, the largest over those classes

    @property
    def depth(self) -> Floats:
        """How deep a sample lies in the smaller cluster of its class, [n] in [0, 1]: 0 at the border to the larger one, 1 at the far end."""
        return np.clip(self.nearer, 0, 1)


def smaller_clusters(values: Floats, labels: Ints, seed: int) -> tuple[Bools, Floats]:
    """Return which samples lie in the smaller of the two clusters of their class, bool [n], and how much nearer they are to it, float64 [n].

    The second is the distance to the larger centre minus that to the smaller one, over the distance of the two. Classes of fewer than 20 samples
    are not divided: nothing of them is in a smaller cluster, and all are 0 nearer.

    Args:
        values: Features, float64 [n f].
        labels: int64 [n], as given.
        seed: Of the starts of k-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    small, nearer = np.zeros(len(labels), dtype=bool), np.zeros(len(labels))
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        # Of features that are all alike k-means finds one cluster, and complains.
        if len(rows) < FEW or float(np.ptp(values[rows], axis=0).max()) == 0.0:
            continue
        low = PCA(min(COMPONENTS, values.shape[1]), svd_solver="full").fit_transform(values[rows])
        means = KMeans(2, n_init=STARTS, random_state=seed % 2**32)  # pyright: ignore[reportArgumentType]
        cluster = np.asarray(means.fit_predict(low))
        smaller = int(np.bincount(cluster, minlength=2).argmin())
        small[rows] = cluster == smaller
        centres = np.asarray(means.cluster_centers_)
        to = np.linalg.norm(low[:, None] - centres[None], axis=2)
        nearer[rows] = (to[:, 1 - smaller] - to[:, smaller]) / max(float(np.linalg.norm(centres[0] - centres[1])), 1e-12)
    return small, nearer


def changed_pairs(model: nn.Module, data: Data, values: Floats, classes: int, asked: Asked, seed: int) -> Pairs:
    """Return the smaller clusters and the share of images of one other class that each flips to its own, beyond what content explains.

    Args:
        model: In eval mode, trained on everything.
        data: The set, labels as given.
        values: Inputs of the model's last layer, float64 [n f].
        classes: Number of classes.
        asked: Which clusters, and on how many images.
        seed: Of the run; the same one draws the same images.
    """
    images, labels = data.images, data.labels.cpu().numpy()
    small, nearer = smaller_clusters(values, labels, seed)
    flip_rates, rest = np.zeros(classes), {int(c): np.flatnonzero((labels == c) & ~small) for c in np.unique(labels)}
    means = {c: _mean(images, rows) for c, rows in rest.items() if len(rows)}
    for c in means:
        mine = np.flatnonzero((labels == c) & small)
        if len(mine) < max(1, asked.least) or len(mine) > asked.most * (len(mine) + len(rest[c])):
            continue
        centre = _mean(images, mine)
        sources = sorted((k for k in means if k != c), key=lambda k: round(float((centre - means[k]).norm()), 6))[:NEAREST]
        for k in sources:
            order = torch.randperm(len(rest[k]), generator=generator(seed, "clusters", c, k))[: max(1, asked.probe // NEAREST)]
            tried = images[torch.from_numpy(rest[k])[order].to(images.device)]
            rate = flip_rate(model, tried, centre - means[k], means[c] - means[k], c, target_share(model, tried, c))
            flip_rates[c] = max(flip_rates[c], rate)
    return Pairs(small, nearer, flip_rates)


def _mean(images: Tensor, rows: Ints) -> Tensor:
    return images[torch.from_numpy(rows).to(images.device)].float().mean(0) / 255
