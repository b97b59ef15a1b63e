"""The measures, defined once. Fractions are in [0, 1] and come with their counts.

* ACC: correct / all test images, with the recall of every class.
* ASR: triggered test images that are called the target class / test images of another class. RA: those called rightly.
  Of source-specific attacks: among images of the source class; all others, and those of neither class (leak), stand beside it.
  Of several triggers: the largest. Of a trigger that leads classes to different ones, as all-to-all: each image against its own target.
* TPR, FPR, AUROC: of the flags and the suspicion, against the truth; AUROC also inside the target class. Covers and wrong
  labels are counted apart. FPR inside flagged classes: of the clean samples of those classes alone, since all others dilute it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ATTACK_KEYS", "BINS", "ROC_AT", "accuracy", "attack_figures", "attack_success", "detection", "separation", "share", "wilson"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ATTACK_KEYS = ("asr", "asr_k", "asr_n", "asr_interval", "ra", "base_rate", "target_recall", "predicted_target")  # of every attack
BINS = 20  # of the histograms of a suspicion, over [0, 1]
# False positive rates at which a ROC curve is kept: dense where a defence has to work, a few numbers a run instead of one a sample.
ROC_AT = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def wilson(k: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson interval of k successes in n trials (Wilson, 1927), 95 % for the default z; (0, 1) where there was no trial."""
    if n == 0:
        return 0.0, 1.0
    q = k / n
    centre = (q + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(q * (1 - q) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(k: int, n: int) -> dict[str, float]:
    """Return `{value, low, high}`: k of n, at least 1, with its Wilson interval."""
    low, high = wilson(k, n)
    return {"value": k / n, "low": low, "high": high}


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


def attack_success(triggered: Ints, clean: Ints, labels: Ints, target: int | Ints, among: Bools | None = None) -> dict[str, Any]:
    """Return ASR as k of n with its interval, RA and the base rate; images of their target class are left out of all.

    Args:
        triggered: int64 [n], predictions for the test images with the trigger.
        clean: int64 [n], predictions for the same images without it.
        labels: int64 [n], the true ones.
        target: The class that the backdoor leads to; int64 [n] where it differs from image to image.
        among: bool [n], the images that count; None for all.
    """
    targets = np.broadcast_to(target, labels.shape)
    others = (labels != targets) & (True if among is None else among)
    n, k = int(others.sum()), int((triggered == targets)[others].sum())
    share = max(n, 1)
    return {
        "asr": k / share,
        "asr_k": k,
        "asr_n": n,
        "asr_interval": list(wilson(k, n)),
        "ra": float((triggered[others] == labels[others]).sum() / share),
        "base_rate": float((clean == targets)[others].sum() / share),
    }


def attack_figures(
    triggered: Sequence[Ints],
    clean: Ints,
    labels: Ints,
    classes: int,
    targets: Sequence[int | Sequence[int]],
    source: int | Sequence[Sequence[int] | None] | None = None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what an attack achieves, by the rules of its kind: the keys of `ATTACK_KEYS`, and further ones.

    * `asr_all`, `asr_leak` (source-specific attacks): every image of another class than the target; those not of the source.
    * `per_trigger` (several triggers): the figures of each; the headline is the one with the largest ASR.
    * `target_recall`, `predicted_target`: the recall of the target class and how many images of the whole test set are called
      so, without a trigger: 0 says that the class was lost and an ASR of 0 means nothing. None without one target.

    Args:
        triggered: int64 [n] for each trigger, predictions for the test images that carry it.
        clean: int64 [n], predictions for the same images without a trigger.
        labels: int64 [n], the true ones.
        classes: Number of classes.
        targets: The class that each trigger leads to, or the one that it leads each class to, [classes]; empty for all-to-all.
        source: The only class whose images the backdoor is meant for, or for each trigger the only classes; None for all.
        names: Of the attack of each trigger; empty where there is one attack.
    """
    targets = targets or [[(c + 1) % classes for c in range(classes)]]
    sources: Sequence[Sequence[int] | None] = (
        [None if source is None else [source]] * len(targets) if source is None or isinstance(source, int) else source
    )
    each = [
        _of_trigger(found, clean, labels, target, mine) | ({"attack": name} if len(set(names)) > 1 else {})
        for found, target, mine, name in zip(triggered, targets, sources, names or [""] * len(targets), strict=True)
    ]
    worst = {key: value for key, value in max(each, key=lambda figures: figures["asr"]).items() if key not in ("target_class", "attack")}
    return worst | ({"per_trigger": each} if len(each) > 1 else {})


def _of_trigger(triggered: Ints, clean: Ints, labels: Ints, target: int | Sequence[int], sources: Sequence[int] | None) -> dict[str, Any]:
    leads = target if isinstance(target, int) else np.asarray(target, dtype=np.int64)[labels]
    among = None if sources is None else np.isin(labels, sources)
    figures = {"target_class": target if isinstance(target, int) else None} | attack_success(triggered, clean, labels, leads, among)
    figures |= _of_target(clean, labels, target) if isinstance(target, int) else {"target_recall": None, "predicted_target": None}
    if among is not None:
        for name, others in (("all", None), ("leak", ~among)):
            found = attack_success(triggered, clean, labels, leads, others)
            figures |= {key.replace("asr", f"asr_{name}", 1): value for key, value in found.items() if key.startswith("asr")}
    return figures


def _of_target(clean: Ints, labels: Ints, target: int) -> dict[str, Any]:
    mine = labels == target
    recall = float((clean[mine] == target).mean()) if mine.any() else None
    return {"target_recall": recall, "predicted_target": int((clean == target).sum())}


def detection(
    flagged: Bools,
    suspicion: NDArray[np.float64],
    poisoned: Bools,
    covers: Bools,
    labels: Ints,
    target: int | Sequence[int] | None,
    noise: Bools | None = None,
) -> dict[str, Any]:
    """Return what the flags found. Covers and wrong labels are neither poison nor clean: flagging one is harmless.

    Args:
        flagged: bool [n], the verdict of `split`; a flag that is taken back later still counts.
        suspicion: float64 [n], high is suspicious.
        poisoned: bool [n], the truth.
        covers: bool [n], the truth.
        labels: int64 [n], as given.
        target: The class or classes that the backdoor leads to; None where there is none.
        noise: bool [n], the samples whose label is wrong by chance; None for none.
    """
    noise = np.zeros(len(flagged), dtype=bool) if noise is None else noise
    clean = ~poisoned & ~covers & ~noise
    inside = clean & np.isin(labels, labels[flagged])
    targets = np.atleast_1d(np.array([] if target is None else target, dtype=np.int64))
    return {
        "tpr": float(flagged[poisoned].mean()) if poisoned.any() else None,
        "fpr": float(flagged[clean].mean()) if clean.any() else None,
        "fpr_flagged": float(flagged[inside].mean()) if inside.any() else None,
        "auroc": auroc(suspicion, poisoned, clean | poisoned),
        "auroc_target": auroc(suspicion, poisoned, (clean | poisoned) & np.isin(labels, targets)),
        "poisoned": int(poisoned.sum()),
        "poison_left": int((poisoned & ~flagged).sum()),
        "flagged": int(flagged.sum()),
        "covers": int(covers.sum()),
        "covers_flagged": int((covers & flagged).sum()),
        "noise": int(noise.sum()),
        "noise_flagged": int((noise & flagged).sum()),
    }


def auroc(score: NDArray[np.float64], positive: Bools, among: Bools) -> float | None:
    """Return the AUROC of a score over the chosen samples; None where one kind is missing."""
    kinds = positive[among]
    if kinds.all() or not kinds.any():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(kinds, score[among]))


def separation(suspicion: NDArray[np.float64], poisoned: Bools, clean: Bools) -> dict[str, Any]:
    """Return how a suspicion tells poison from clean samples, small enough to be kept for every run and drawn later.

    Args:
        suspicion: float64 [n] in [0, 1], high is suspicious.
        poisoned: bool [n], the truth.
        clean: bool [n], the truth; covers and wrong labels are in neither.

    Returns:
        `poison` and `clean`: counts in `BINS` equal bins over [0, 1]. `roc`: for each rate in `ROC_AT` the largest TPR among
        the thresholds whose FPR is not above it; None where one kind is missing.
    """
    counts = {name: np.histogram(suspicion[rows], BINS, (0.0, 1.0))[0].tolist() for name, rows in (("poison", poisoned), ("clean", clean))}
    if not poisoned.any() or not clean.any():
        return counts | {"roc": None}
    # A threshold admits everything above it: equal suspicions pass together, so a tie gives no credit.
    levels = np.unique(suspicion[poisoned | clean])[::-1]
    found, false = (
        np.concatenate([[0], np.searchsorted(np.sort(-suspicion[rows]), -levels, side="right")]) / rows.sum() for rows in (poisoned, clean)
    )
    return counts | {"roc": [float(found[false <= rate].max()) for rate in ROC_AT]}
