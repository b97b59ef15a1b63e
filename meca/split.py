"""`split`: which samples are poisoned, and whether there is evidence of poisoning at all.

`two_clusters` (preset `default`). The margins of `enhance` are looked at class by class. Where they fall into two heaps with
an empty valley between, the class holds two kinds of pictures that a network tells apart without having seen them; that is
the mark of a trigger. Everything beyond the heap of plain samples is flagged there, and nothing anywhere else, so that a
class can never be thrown away as a whole. No class with two heaps: no evidence. Margins in between, or a cap that is
reached: inconclusive, and nothing is removed.

`misclassified` (preset `paper`). What the enhanced model misclassifies is clean, the rest is poisoned (Pu et al., 2024).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Decision", "Evidence", "SplitParams", "by_misclassification", "by_two_clusters", "evidence"]

FEW = 100  # samples of a class, below which no run of ours has shown that two heaps would be seen; changes a sentence, no verdict

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SplitParams:
    """Group `split` of params.yaml."""

    rule: Literal["two_clusters", "misclassified"]
    max_valley: float  # two heaps: at most this share of a class lies in the middle fifth of its range
    doubt_valley: float  # up to here it is neither one heap nor two
    min_range: float  # logits: two heaps are at least so far apart
    doubt_range: float  # from here on it is neither one heap nor two
    spread: float  # standard deviations of the plain heap that are still plain
    cap_flagged: float  # of all samples: more are not believed
    cap_left: float  # of the smaller of a class's size and the median kept count: fewer may not be left


@dataclass(frozen=True)
class Evidence:
    """What the margins of one class on one side look like."""

    label: int
    side: str
    n: int
    valley: float  # share of the samples in the middle fifth of the range
    range: float  # logits between the 4 % and the 96 % quantile
    threshold: float  # margin above which a sample is flagged
    flagged: int


@dataclass(frozen=True)
class Decision:
    """The result for the whole set."""

    verdict: str  # no_evidence | poisoned | inconclusive
    reason: str
    flagged: Bools  # [n]
    suspicion: Floats  # [n] in [0, 1]
    target_class: int | None
    caps: list[dict[str, Any]]
    evidence: list[Evidence]


def evidence(margin: Floats, label: int, side: str, spread: float) -> Evidence:
    """Describe the margins of one class.

    The range leaves out 4 % at both ends, the valley is the middle fifth of the range: two heaps leave it nearly empty, one
    heap fills it with a fifth (uniform) or more.

    Args:
        margin: float64 [n] of one class, high is suspicious.
        label: The class.
        side: Where the margins come from.
        spread: Standard deviations, see `SplitParams`.
    """
    if len(margin) < 10:
        return Evidence(label, side, len(margin), 1.0, 0.0, float("inf"), 0)
    low, high = np.quantile(margin, [0.04, 0.96])
    width = float(high - low)
    middle = (margin > low + 0.4 * width) & (margin < low + 0.6 * width)
    plain = margin[margin < (low + high) / 2]
    # The lower half of the plain heap is free of poison, so its width is measured there.
    centre = float(np.median(plain)) if len(plain) else float(low)
    sigma = centre - float(np.quantile(plain, 0.16)) if len(plain) else 0.0
    threshold = min(float(low + high) / 2, centre + spread * sigma)
    return Evidence(label, side, len(margin), float(middle.mean()), width, threshold, int((margin > threshold).sum()))


def by_two_clusters(margins: dict[str, Floats], labels: Ints, classes: int, params: SplitParams) -> Decision:
    """Decide by the shape of the margins.

    Args:
        margins: Per side float64 [n], high is suspicious.
        labels: int64 [n], as given.
        classes: Number of classes.
        params: Thresholds and caps.
    """
    found: list[Evidence] = []
    best: dict[int, Evidence] = {}
    for c in range(classes):
        mine = labels == c
        per_side = [evidence(margin[mine], c, side, params.spread) for side, margin in margins.items()]
        found += per_side
        # The side whose suspects are told apart more clearly: on the other one the heaps, if any, have changed places.
        best[c] = max(per_side, key=lambda e: e.range * (1 - e.valley))
    certain = {c: e for c, e in best.items() if e.range >= params.min_range and e.valley <= params.max_valley}
    doubtful = [c for c, e in best.items() if c not in certain and e.range >= params.doubt_range and e.valley <= params.doubt_valley]

    flagged = np.zeros(len(labels), dtype=bool)
    suspicion = np.zeros(len(labels))
    for c, e in best.items():
        mine = np.flatnonzero(labels == c)
        margin = margins[e.side][mine]
        if c in certain:
            flagged[mine] = margin > e.threshold
            suspicion[mine] = 1 / (1 + np.exp(-np.clip(margin - e.threshold, -30, 30)))
        else:
            order = np.argsort(np.argsort(margin, kind="stable"), kind="stable")
            suspicion[mine] = 0.4 * order / max(1, len(mine) - 1)  # below every flagged sample: a rank, not a probability
    caps = _caps(flagged, labels, classes, params)
    target = max(certain.values(), key=lambda e: e.flagged).label if certain else None
    broken = [cap for cap in caps if not cap["holds"]]
    if broken:
        verdict, reason = (
            "inconclusive",
            f"{broken[0]['name']} is {broken[0]['value']:.3f}, beyond its limit {broken[0]['limit']:.3f}: so much poison is not believed",
        )
    elif certain:
        n_classes = "one class" if len(certain) == 1 else f"{len(certain)} classes"
        verdict, reason = "poisoned", f"{int(flagged.sum())} samples of {n_classes} share a feature that the rest of their class lacks"
    elif doubtful:
        verdict, reason = "inconclusive", f"{len(doubtful)} of {classes} classes are neither one heap nor two"
    else:
        verdict, reason = "no_evidence", "in no class does a part of the samples stand apart from the rest"
        smallest = int(np.bincount(labels, minlength=classes).min())
        if smallest < FEW:
            reason += f"; the smallest class has {smallest} samples, so that the test has little power"
    return Decision(verdict, reason, flagged, suspicion, target, caps, found)


def by_misclassification(predicted: Ints, confidence: Floats, labels: Ints, classes: int) -> Decision:
    """Decide by rule 5 of the paper. It knows neither caps nor "no evidence"; the caps are reported and not applied.

    Args:
        predicted: int64 [n], of the enhanced model.
        confidence: float64 [n], its probability of the given label.
        labels: int64 [n], as given.
        classes: Number of classes.
    """
    flagged = predicted == labels
    counts = np.bincount(labels[flagged], minlength=classes)
    verdict = "poisoned" if flagged.any() else "no_evidence"
    reason = f"the enhanced model gives {int(flagged.sum())} of {len(labels)} samples their label"
    return Decision(verdict, reason, flagged, confidence, int(counts.argmax()) if flagged.any() else None, [], [])


def _caps(flagged: Bools, labels: Ints, classes: int, params: SplitParams) -> list[dict[str, Any]]:
    share = float(flagged.mean()) if len(flagged) else 0.0
    sizes = np.bincount(labels, minlength=classes)
    kept = np.bincount(labels[~flagged], minlength=classes)
    present = sizes > 0
    floor = np.minimum(sizes, np.median(kept[present])) if present.any() else sizes
    left = np.where(present & (floor > 0), kept / np.maximum(floor, 1), 1.0)
    worst = int(left.argmin())
    return [
        {"name": "flagged share of all samples", "value": share, "limit": params.cap_flagged, "holds": share <= params.cap_flagged},
        {
            "name": f"what is left of class {worst}",
            "value": float(left[worst]),
            "limit": params.cap_left,
            "holds": bool(left[worst] >= params.cap_left),
        },
    ]
