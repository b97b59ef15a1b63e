"""Two clusters in every class, of the inputs of the last layer of a network that was trained on everything.

They are those of activation clustering: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI 2019.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["smaller_clusters"]

COMPONENTS = 10  # of the features; the paper keeps as many
STARTS = 10  # of k-means; the best is taken, since a start can end in a worse division
FEW = 20  # samples of a class, below which it is not divided: a cluster of a few would be chance

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


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
