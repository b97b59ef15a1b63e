"""The measures, defined once. Fractions are in [0, 1] and come with their counts.

* ACC: correct / all test images, with the recall of every class.
* ASR: triggered test images that are called the target class / test images of another class. RA: those called rightly.
* TPR, FPR, AUROC: of the flags and the suspicion, against the truth; AUROC also inside the target class.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["accuracy", "attack_success", "detection", "wilson"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval of k successes in n trials (Wilson, 1927); (0, 1) where there was no trial."""
    if n == 0:
        return 0.0, 1.0
    q = k / n
    centre = (q + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(q * (1 - q) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(predicted: Ints, labels: Ints, classes: int) -> dict[str, Any]:
    """Return ACC, the recall of every class (None for a class without test images) and the confusion matrix.

    Args:
        predicted: int64 [n].
        labels: int64 [n], the true ones.
        classes: Number of classes.
    """
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    sizes = confusion.sum(1)
    recall = [float(confusion[c, c] / sizes[c]) if sizes[c] else None for c in range(classes)]
    correct = int(np.trace(confusion))
    return {"acc": correct / len(labels), "correct": correct, "n": len(labels), "recall": recall, "confusion": confusion.tolist()}


def attack_success(triggered: Ints, clean: Ints, labels: Ints, target: int) -> dict[str, Any]:
    """Return ASR as k of n with its interval, RA and the base rate; images of the target class are left out of all.

    Args:
        triggered: int64 [n], predictions for the test images with the trigger.
        clean: int64 [n], predictions for the same images without it.
        labels: int64 [n], the true ones.
        target: The class that the backdoor leads to.
    """
    others = labels != target
    n, k = int(others.sum()), int((triggered[others] == target).sum())
    share = max(n, 1)
    return {
        "asr": k / share,
        "asr_k": k,
        "asr_n": n,
        "asr_interval": list(wilson(k, n)),
        "ra": float((triggered[others] == labels[others]).sum() / share),
        "base_rate": float((clean[others] == target).sum() / share),
    }


def detection(flagged: Bools, suspicion: NDArray[np.float64], poisoned: Bools, covers: Bools, labels: Ints, target: int) -> dict[str, Any]:
    """Return what the flags found. Covers count neither as poison nor as false alarms: removing one is harmless.

    Args:
        flagged: bool [n], the verdict of `split`; a flag that is taken back later still counts.
        suspicion: float64 [n], high is suspicious.
        poisoned: bool [n], the truth.
        covers: bool [n], the truth.
        labels: int64 [n], as given.
        target: The class that the backdoor leads to.
    """
    clean = ~poisoned & ~covers
    return {
        "tpr": float(flagged[poisoned].mean()) if poisoned.any() else None,
        "fpr": float(flagged[clean].mean()) if clean.any() else None,
        "auroc": auroc(suspicion, poisoned, clean | poisoned),
        "auroc_target": auroc(suspicion, poisoned, (clean | poisoned) & (labels == target)),
        "poisoned": int(poisoned.sum()),
        "poison_left": int((poisoned & ~flagged).sum()),
        "flagged": int(flagged.sum()),
        "covers_flagged": int((covers & flagged).sum()),
    }


def auroc(score: NDArray[np.float64], positive: Bools, among: Bools) -> float | None:
    """Return the AUROC of a score over the chosen samples; None where one kind is missing."""
    kinds = positive[among]
    if kinds.all() or not kinds.any():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(kinds, score[among]))
