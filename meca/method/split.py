"""`split`: which samples are poisoned, and whether there is evidence of poisoning at all.

`two_clusters` (preset `default`). The margins of `enhance` are looked at class by class, in four steps.

1. Do they fall into two clusters with a valley between? Then the class holds two kinds of images that a network tells
   apart without having seen them. That is the mark of a trigger, but also of a class with two kinds of content.
2. What is the flip rate of the difference? The mean of the upper half of the range minus the mean of the lower is added to images of
   *other* classes, and the network of `partition`, which was trained on everything, is asked what it sees. A trigger flips them to the
   class; the difference between two kinds of content does not. The part whose mean has the trigger is the poisoned one. This proves
   triggers that are added at one place, clean-label attacks among them.
   What a class looks like flips images, too, most of all where images are alike (a garment brightens where a T-shirt is bright). So
   the part of the difference that points from the other classes to this one is taken out, and what is left must flip more images than
   that direction itself does at the same length.
   A difference that flips most images needs no valley: the margins of a weak trigger can run into those of the others. Without a
   valley a class is one cluster cut in two, and the cut alone, easy images against hard ones, flips some; hence the higher limit.
3. Is the cluster foreign? A network is trained without it and asked what it sees. Images that got the label of the class together with
   a trigger are images of many other classes; a second kind of content looks like one or two neighbours at most. This proves triggers
   that move, turn or bend, as long as their samples come from several classes.
4. What is the flip rate of the end? Poison that is a tenth of its class makes no cluster, and half a range in which it lies is mostly
   clean, so that the mean shows little of the trigger. But it lies at the end of a view, and the mean of the end alone shows all of it.
   Where that flips most images, the class is scored again by networks that are taught the end as suspect, and what they call suspect must
   have that flip rate, too: the end of a class's content does not, since what looks like it flips fewer. This cluster is purer than one
   that is cut in the middle, so an end is asked about, too, where a cluster proves a class half-heartedly.

A cluster that is proven by any of these is flagged, and nothing anywhere else, so a class can never be thrown away as a whole. No proven
cluster: no evidence.

A class is *doubtful* if its difference flips between `doubt_flips` and `min_flips` of other images, or if its clusters are beyond
`far_range` and content does not explain them. Content explains them where a network without them sees their own class in them, or few
others. Unless another class is proven, the verdict is then inconclusive and nothing is removed. Beside a proven class a doubtful one is
kept and named. A cap that is reached: inconclusive, too.

`misclassified` (preset `paper`). What the enhanced model misclassifies is clean, the rest is poisoned (Pu et al., 2024).
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meca.errors import check_fields
from meca.method.proofs import Proof

__all__ = [
    "TAILS",
    "UNFLAGGED",
    "Decision",
    "Evidence",
    "Labelling",
    "Questions",
    "SplitParams",
    "by_misclassification",
    "by_two_clusters",
    "caps_of",
    "evidence",
    "ranks",
]

RESCORED = "again"  # the side of a class that is scored once more with its end as suspects, beside those of `enhance`; spelt as in files
LEAST = 10  # samples of a class, below which its margins have no shape
TAILS = (0.04, 0.96)  # quantiles between which the range lies: the few samples beyond them are outliers of any class
VALLEY = (0.4, 0.6)  # of the range: the middle fifth, which one cluster fills with a fifth of the samples or more
BELOW = 0.16  # quantile that lies one standard deviation below the median of a normal distribution
MOST = 2000  # margins to which a mixture is fitted, as quantiles where there are more: it is no better with more, and slow
EQUAL = 1e-9  # of the largest margin: a smaller deviation is rounding
FLOOR = 1e-3  # least variance of a part of the mixture, in variances of all margins: no part may shrink to a single sample
TIMES = 5  # a class is so many times as large as its end at least, or its lower half is not free of it
LOWER = 0.5  # share of a class that its end is compared with: the half at the other end of the margins, into which no end reaches
ENOUGH = 0.5  # of the median class: with fewer samples of a class than that a network does not learn it beside the others
FAR = 30.0  # logits from the line, beyond which a suspicion is 0 or 1 in float32
UNFLAGGED = 0.4  # suspicion of the most suspicious sample that is not flagged: a rank, not a probability, and below every flagged sample's
FEW = 100  # samples of a class, below which no run of ours has shown that two clusters would be seen; changes a sentence, no verdict
MANY = 20  # samples of a cluster: fewer show by chance alone as many classes as they can, which is then no sign of poison
FITTED = 0.995  # share of the samples that the early network fits, from which the order of learning says little: digits with Blend; a sentence, too

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
FlipRate = Callable[[int, Ints, Ints], float]  # class, rows of the suspects, rows of the rest of the class
Unseen = Callable[[list[Bools]], list[Ints]]  # for each set of samples that are left out, the class that a network without them sees in every sample
View = tuple[int, int]  # class, and number of the view
Rescore = Callable[
    [Floats], Floats
]  # ranks in [0, 1) within the class, high is suspicious: margins of networks that were taught their end as suspect


@dataclass(frozen=True)
class SplitParams:
    """Group `split` of params.yaml."""

    rule: Literal["two_clusters", "misclassified"]
    max_valley: float  # two clusters: at most this share of a class lies in the middle fifth of its range
    min_separation: float  # two clusters: their means are at least so many standard deviations apart
    min_range: float  # logits: two clusters are at least so far apart
    far_range: float  # logits: clusters so far apart are doubtful where neither their difference nor their content explains them
    min_flips: float  # flip rate of the difference: from here on it is a trigger
    doubt_flips: float  # from here on it may be one
    strong_flips: float  # the same where the margins are one cluster: from here on it is a trigger
    doubt_strong_flips: float  # from here on it may be one
    min_foreign: float  # share of a cluster in which a network that was trained without it sees other classes: from here on it is poison,
    min_foreign_spread: float  # if they are many: entropy of those classes over that of all, in [0, 1]
    doubt_foreign: float  # a smaller share is content of the class's own,
    doubt_foreign_spread: float  # a smaller entropy content that looks like few neighbours: either explains clusters that are very far apart
    end: float  # share of a class at the end of its margins that is asked about alone; 0: none
    end_flips: float  # flip rate of the end: from here on the class is scored again, and what is then called suspect must have it, too,
    end_over_median: float  # if it is so many times the median flip rate of the ends of the other classes: in some clean sets ends flip many
    min_end: int  # samples of it, at least: the mean of fewer still shows single images; a class that is not five times as large is not asked
    probe: int  # images of other classes that are tried
    spread: float  # standard deviations of the plain cluster that are still plain
    cap_flagged: float  # of all samples: more are not believed
    cap_left: float  # of the smaller of a class's size and the median kept count: fewer may not be left

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing could be asked, or everything would be flagged."""
        check_fields(
            self,
            ("end", "in [0, 0.2]", 0 <= self.end <= 0.2),
            ("min_end", ">= 1", self.min_end >= 1),
            ("probe", ">= 1", self.probe >= 1),
        )


@dataclass(frozen=True)
class Labelling:
    """The label of every sample, and the number of classes."""

    labels: Ints  # [n], as given
    classes: int

    @cached_property
    def rows(self) -> list[Ints]:
        """The samples of each class."""
        return [np.flatnonzero(self.labels == c) for c in range(self.classes)]


@dataclass(frozen=True)
class Questions:
    """What networks are asked."""

    # Adds the mean of the first samples minus the mean of the second to images of other classes, and returns the share that flips to the
    # class, beyond those that are seen as it without the difference.
    flip_rate: FlipRate
    unseen: Unseen  # trains a network without some samples, for each set of them, and returns what it sees in every sample, int64 [n]
    # Scores all samples anew, float64 [n], above zero where a network calls them suspect; asked only if an end flips most images.
    rescore: Rescore


@dataclass(frozen=True)
class Evidence:
    """What the margins of one class on one side look like; verdict.json has these names."""

    label: int
    side: str
    mirrored: bool  # the sign of the margins is changed: the lower cluster is the suspect
    n: int
    valley: float  # share of the samples in the middle fifth of the range
    range: float  # logits between the 4 % and the 96 % quantile
    separation: float  # Ashman's D of a mixture of two normal distributions
    middle: float  # (mirrored) margin in the middle of the range: what lies above it is asked about
    threshold: float  # (mirrored) margin, not above the middle, from which on a sample of a proven cluster is flagged
    suspects: int
    flips: float | None  # flip rate of the difference, see `SplitParams.min_flips`; None where the range is too small to compare its ends
    apart: bool = False  # two clusters with a valley between
    foreign: float | None = None  # see `SplitParams.min_foreign`; None where it was not asked
    foreign_spread: float | None = None  # None, too, where there are two classes
    end: float | None = None  # flip rate of its end alone; None where a cluster flips as many, and as `flips`


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
    code: str = "stands-apart"  # why a sample is flagged, a word of the column `reasons` (docs/files.md, "Reasons")
    foreign: Sequence[Any] = ()  # what the second look saw, see `meca.method.second_look.Foreign`
    doubtful: tuple[int, ...] = ()  # classes with a part that stands apart, but not enough for a proof; kept, unless the verdict is inconclusive
    proofs: Mapping[int, Proof] = field(default_factory=dict[int, Proof])  # by class with flagged samples: how it was proven


def evidence(margin: Floats, label: int, side: str, spread: float, mirrored: bool = False) -> Evidence:
    """Describe the margins of one class.

    The range leaves out 4 % at both ends, the valley is the middle fifth of the range: two clusters leave it nearly
    empty, one fills it with a fifth (uniform) or more. Ashman's D (Ashman, Bird, Zepf, "Detecting Bimodality in Astronomical Datasets",
    The Astronomical Journal 108, 1994) is the distance of the means of two normal distributions over their deviation.

    Args:
        margin: float64 [n] of one class, high is suspicious.
        label: The class.
        side: Where the margins come from.
        spread: Standard deviations, see `SplitParams`.
        mirrored: The caller has changed the sign of the margins.
    """
    if len(margin) < LEAST:
        return Evidence(label, side, mirrored, len(margin), 1.0, 0.0, 0.0, float("inf"), float("inf"), 0, None)
    low, high = np.quantile(margin, TAILS)
    width = float(high - low)
    middle = (margin > low + VALLEY[0] * width) & (margin < low + VALLEY[1] * width)
    plain = margin[margin < (low + high) / 2]
    # The lower half of the plain cluster is free of poison, so its width is measured there.
    centre = float(np.median(plain)) if len(plain) else float(low)
    sigma = centre - float(np.quantile(plain, BELOW)) if len(plain) else 0.0
    half_way = float(low + high) / 2
    threshold = min(half_way, centre + spread * sigma)
    suspects, valley = int((margin > threshold).sum()), float(middle.mean())
    return Evidence(label, side, mirrored, len(margin), valley, width, _separation(margin), half_way, threshold, suspects, None)


def _separation(margin: Floats) -> float:
    """Return Ashman's D of the margins, 0 where they are all but equal; of many, `MOST` quantiles stand for all."""
    values = np.sort(margin if len(margin) <= MOST else np.quantile(margin, (np.arange(MOST) + 0.5) / MOST))
    deviation = float(values.std())
    if deviation < EQUAL * max(1.0, float(np.abs(values).max())):
        return 0.0
    from sklearn.mixture import GaussianMixture

    # Sorted and in units of their own deviation, so that neither order nor scale changes the start of the fit.
    mixture = GaussianMixture(2, random_state=0, reg_covar=FLOOR).fit(((values - values.mean()) / deviation)[:, None])
    (first, second), variances = np.asarray(mixture.means_)[:, 0], np.asarray(mixture.covariances_)[:, 0, 0]
    return float(abs(second - first) / np.sqrt(variances.mean()))


def by_two_clusters(margins: dict[str, Floats], labelling: Labelling, params: SplitParams, ask: Questions, fitted: float = 0.0) -> Decision:
    """Decide by the shape of the margins, by the flip rates of the differences and of the ends, and by whether a cluster is foreign.

    Args:
        margins: Per side float64 [n], high is suspicious.
        labelling: Labels and number of classes.
        params: Thresholds and caps.
        ask: What networks answer.
        fitted: Share of the samples whose given label the network of `partition` predicts.
    """
    shapes = [_shapes(margins, mine, c, params, ask.flip_rate) for c, mine in enumerate(labelling.rows)]
    foreign = _ask_without(shapes, margins, labelling, params, ask.unseen)
    explained = {c for (c, _), answer in foreign.items() if _is_foreign(answer, params)}
    ends = _ask_ends([() if c in explained else judged for c, judged in enumerate(shapes)], margins, labelling, params, ask.flip_rate)
    views, rescored = dict(margins), dict[int, Evidence]()
    if flipping := _flipping_ends(ends, params):
        views[RESCORED] = margin = ask.rescore(ranks(_ends_first(shapes, ends, margins, labelling), labelling.labels))
        rescored = {c: _rescored(margin[mine], mine, c, params, ask.flip_rate) for c, mine in enumerate(labelling.rows) if c in flipping}
    by_class: list[list[Evidence]] = []
    for c, judged in enumerate(shapes):
        of_views: list[Evidence] = []
        for i, e in enumerate(judged):
            share, spread = foreign.get((c, i), (None, None))
            of_views.append(dataclasses.replace(e, foreign=share, foreign_spread=spread, end=ends.get((c, i))))
        by_class.append([*of_views, *([rescored[c]] if c in rescored else [])])
    return _decide(by_class, views, labelling, params, fitted)


def _decide(by_class: list[list[Evidence]], views: dict[str, Floats], labelling: Labelling, params: SplitParams, fitted: float) -> Decision:
    """Return the decision by the evidence in each class; `views` are the margins by side."""
    labels, classes = labelling.labels, labelling.classes
    flagged, suspicion = np.zeros(len(labels), dtype=bool), np.zeros(len(labels))
    certain: list[Evidence] = []
    proofs: dict[int, Proof] = {}
    doubtful: list[Evidence] = []
    for c, mine in enumerate(labelling.rows):
        judged = by_class[c]
        proven = [e for e in judged if _flips_enough(e, params) or _foreign(e, params)]
        # Where several views prove it, the one whose difference flips most has the purest halves, so it draws the line; of those that
        # flip as many, the one whose clusters are further apart in deviations. A wide range says less: it grows with the spread of both.
        best = (
            max(proven, key=lambda e: (e.flips or 0.0, round(e.separation, 6)))
            if proven
            else max((e for e in judged if not e.mirrored and e.side != RESCORED), key=lambda e: round(e.range * (1 - e.valley), 6))
        )
        margin = _view(views, best.side, best.mirrored)[mine]
        if proven:
            certain.append(best)
            proofs[c] = _proof(best, params)
            flagged[mine] = margin > best.threshold
            suspicion[mine] = 1 / (1 + np.exp(-np.clip(margin - best.threshold, -FAR, FAR)))
        else:
            order = np.argsort(np.argsort(margin, kind="stable"), kind="stable")
            suspicion[mine] = UNFLAGGED * order / max(1, len(mine) - 1)
            doubtful += [e for e in judged if _doubtful(e, judged, params)][:1]
    caps = caps_of(flagged, labels, classes, params)
    target = max(certain, key=lambda e: e.suspects).label if certain else None
    broken = [cap for cap in caps if not cap["holds"]]
    verdict, reason = _verdict(certain, doubtful, broken, int(flagged.sum()), params) or ("no_evidence", _nothing(labelling, fitted))
    unproven = tuple(e.label for e in doubtful)
    return Decision(
        verdict, reason, flagged, suspicion, target, caps, list(itertools.chain.from_iterable(by_class)), doubtful=unproven, proofs=proofs
    )


def _shapes(margins: dict[str, Floats], mine: Ints, label: int, params: SplitParams, flip_rate: FlipRate) -> tuple[Evidence, ...]:
    """Return what the margins of one class look like on each side and from both ends, and the flip rate of their difference."""
    judged: list[Evidence] = []
    for side, mirrored in itertools.product(margins, (False, True)):
        margin = _view(margins, side, mirrored)[mine]
        shape = evidence(margin, label, side, params.spread, mirrored)
        if shape.range >= params.min_range:
            suspect = margin > shape.middle  # purer than what will be flagged
            shape = dataclasses.replace(shape, flips=flip_rate(label, mine[suspect], mine[~suspect]), apart=_is_apart(shape, params))
        judged.append(shape)
    return tuple(judged)


def _is_apart(shape: Evidence, params: SplitParams) -> bool:
    return shape.valley <= params.max_valley and shape.separation >= params.min_separation


def _view(margins: dict[str, Floats], side: str, mirrored: bool) -> Floats:
    return -margins[side] if mirrored else margins[side]


def ranks(values: Floats, labels: Ints) -> Floats:
    """Return the rank of each value in its class, in [0, 1); ties go to the earlier sample.

    Args:
        values: float64 [n].
        labels: int64 [n].
    """
    place = np.zeros(len(values))
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        place[rows[np.argsort(values[rows], kind="stable")]] = np.arange(len(rows)) / len(rows)
    return place


def _flips_enough(e: Evidence, params: SplitParams) -> bool:
    least = params.end_flips if e.side == RESCORED else params.min_flips if e.apart else params.strong_flips
    return e.flips is not None and e.flips >= least


def _proof(e: Evidence, params: SplitParams) -> Proof:
    if not _flips_enough(e, params):
        return "foreign-heap"
    return "end" if e.side == RESCORED else "difference"


def _doubtful(e: Evidence, judged: list[Evidence], params: SplitParams) -> bool:
    # A cluster that was made of an end was chosen for what it flips, so it has to flip more.
    least = params.strong_flips if e.side == RESCORED else params.doubt_flips if e.apart else params.doubt_strong_flips
    half_way = e.flips is not None and e.flips >= least
    return half_way or (e.apart and e.range >= params.far_range and not _is_content(judged, params))


def _is_content(judged: list[Evidence], params: SplitParams) -> bool:
    """Tell whether every cluster of a class that was asked about looks like its own class, or like few others: two kinds of images."""
    asked = [e for e in judged if e.foreign is not None]
    few = [e.foreign_spread is not None and e.foreign_spread < params.doubt_foreign_spread for e in asked]
    return bool(asked) and all((e.foreign or 0.0) < params.doubt_foreign or alike for e, alike in zip(asked, few, strict=True))


def _foreign(e: Evidence, params: SplitParams) -> bool:
    return e.foreign is not None and _is_foreign((e.foreign, e.foreign_spread), params)


def _is_foreign(answer: tuple[float, float | None], params: SplitParams) -> bool:
    return answer[0] >= params.min_foreign and (answer[1] or 0.0) >= params.min_foreign_spread


def _ask_without(
    shapes: Sequence[Sequence[Evidence]], margins: dict[str, Floats], labelling: Labelling, params: SplitParams, unseen: Unseen
) -> dict[View, tuple[float, float | None]]:
    """Return `foreign` and `foreign_spread` of two clusters, of the side that tells them best apart, in classes whose difference flips too few.

    Two networks serve all classes: one was trained without the upper clusters, the other without the lower ones. A cluster is not asked
    about if so little of its class would be left that a network does not learn it: to that network everything of the class is foreign.
    """
    labels, rows, classes = labelling.labels, labelling.rows, labelling.classes
    asked: list[View] = []
    left_out = {mirrored: np.zeros(len(labels), dtype=bool) for mirrored in (False, True)}
    enough = ENOUGH * float(np.median([len(mine) for mine in rows]))
    for c, judged in enumerate(shapes):
        apart = [i for i, e in enumerate(judged) if e.apart]
        if not apart or any(_flips_enough(e, params) for e in judged):
            continue
        best = max(apart, key=lambda i: (round(judged[i].separation, 6), -i))
        for i in (i for i in apart if judged[i].side == judged[best].side):
            margin = _view(margins, judged[i].side, judged[i].mirrored)[rows[c]]
            # Where two clusters of one size run wide, each reaches over half of the class; then the purer half of it alone is left out.
            above = next((above for cut in (judged[i].threshold, judged[i].middle) if (~(above := margin > cut)).sum() >= enough), None)
            if above is not None:
                left_out[judged[i].mirrored][rows[c]] = above
                asked.append((c, i))
    answers: dict[View, tuple[float, float | None]] = {}
    seen = dict(zip(left_out, unseen(list(left_out.values())), strict=True)) if asked else {}
    for c, i in asked:
        e = shapes[c][i]
        mine = rows[c][_view(margins, e.side, e.mirrored)[rows[c]] > e.middle]
        counts = np.bincount(seen[e.mirrored][mine], minlength=classes).astype(np.float64)
        counts[c] = 0
        shares = counts[counts > 0] / max(1.0, counts.sum())
        # A cluster cannot show more classes than it has samples.
        most = min(classes - 1, max(MANY, int(counts.sum())))
        # Of two classes the other one is all that can be seen, which says nothing.
        spread = float(-(shares * np.log(shares)).sum() / np.log(most)) if classes > 2 else None
        answers[c, i] = float(counts.sum() / max(1, len(mine))), spread
    return answers


def _ask_ends(
    shapes: Sequence[Sequence[Evidence]], margins: dict[str, Floats], labelling: Labelling, params: SplitParams, flip_rate: FlipRate
) -> dict[View, float | None]:
    """Return `end` of each view of the classes that no cluster proves as well as an end must; None where a view is too narrow to have an end.

    Args:
        shapes: By class; nothing where a foreign cluster proves it.
        margins: By side.
        labelling: Labels and number of classes.
        params: Limits.
        flip_rate: As of `Questions`.
    """
    ends: dict[View, float | None] = {}
    for c, mine in enumerate(labelling.rows):
        count = max(params.min_end, int(params.end * len(mine)))
        well_proven = any(_flips_enough(e, params) and (e.flips or 0.0) >= params.end_flips for e in shapes[c])
        if params.end == 0 or TIMES * count > len(mine) or well_proven:
            continue
        for i, e in enumerate(shapes[c]):
            order = mine[np.argsort(_view(margins, e.side, e.mirrored)[mine], kind="stable")]
            ends[c, i] = None if e.flips is None else flip_rate(c, order[-count:], order[: int(LOWER * len(mine))])
    return ends


def _flipping_ends(ends: Mapping[View, float | None], params: SplitParams) -> set[int]:
    """Return the classes with an end that flips most images, and far more than the ends of the others do."""
    rates = {c: max(rate or 0.0 for (k, _), rate in ends.items() if k == c) for c, _ in ends}
    others = {c: float(np.median([rate for k, rate in rates.items() if k != c] or [0.0])) for c in rates}
    return {c for c, rate in rates.items() if rate >= max(params.end_flips, params.end_over_median * others[c])}


def _ends_first(shapes: Sequence[Sequence[Evidence]], ends: Mapping[View, float | None], margins: dict[str, Floats], labelling: Labelling) -> Floats:
    """Return what a class is ordered by when it is scored again, float64 [n]: the view whose end flips most."""
    order = np.zeros(len(labelling.labels))
    for c, mine in enumerate(labelling.rows):
        best = shapes[c][max(range(len(shapes[c])), key=lambda i: ends.get((c, i)) or 0.0)]
        order[mine] = _view(margins, best.side, best.mirrored)[mine]
    return order


def _rescored(margin: Floats, mine: Ints, label: int, params: SplitParams, flip_rate: FlipRate) -> Evidence:
    """Return what the margins of a class look like after one more scoring with its end as suspect."""
    shape, suspect = evidence(margin, label, RESCORED, params.spread), margin > 0
    # Networks that were taught to tell the two apart draw the line themselves.
    shape = dataclasses.replace(shape, threshold=0.0, middle=0.0, suspects=int(suspect.sum()))
    if not 0 < shape.suspects < len(mine):
        return shape
    return dataclasses.replace(shape, flips=flip_rate(label, mine[suspect], mine[~suspect]), apart=_is_apart(shape, params))


def _verdict(
    certain: list[Evidence], doubtful: list[Evidence], broken: list[dict[str, Any]], flagged: int, params: SplitParams
) -> tuple[str, str] | None:
    """Return verdict and reason, None where nothing was found."""
    if broken:
        cap = broken[0]
        return (
            "inconclusive",
            f"{cap['name']} is {cap['value']:.3f}, beyond its limit {cap['limit']:.3f}: meca does not trust a verdict that flags so much",
        )
    if certain:
        which = "one class" if len(certain) == 1 else f"{len(certain)} classes"
        strongest = max(certain, key=lambda e: e.flips or 0.0)
        proof = (
            f"added to images of other classes it flips {strongest.flips or 0.0:.0%} of them to that class"
            if _flips_enough(strongest, params)
            else f"a network that was trained without them sees other classes in {strongest.foreign or 0.0:.0%} of them"
        )
        return "poisoned", f"{flagged} samples of {which} share a feature that the rest of their class lacks; {proof}"
    if doubtful:
        e = max(doubtful, key=lambda e: e.flips or 0.0)
        return "inconclusive", (
            f"class {e.label} holds two kinds of images, and what tells them apart flips {e.flips or 0.0:.0%} of other images to that class: "
            "too little for a trigger, or too much for none"
        )
    return None


def _nothing(labelling: Labelling, fitted: float) -> str:
    """Return the reason of `no_evidence`, with what weakens it."""
    reason = "in no class does a part of the samples have a feature that flips other images to that class, or belong to many other classes"
    smallest = int(np.bincount(labelling.labels, minlength=labelling.classes).min())
    if smallest < FEW:
        reason += f"; the smallest class has {smallest} samples, so that the test has little power"
    if fitted >= FITTED:
        reason += f"; the early network fits {fitted:.1%} of the samples: on so easy a set a trigger need not stand out, and may have been missed"
    return reason


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
    proofs: dict[int, Proof] = {int(c): "fitted-by-enhanced" for c in np.flatnonzero(counts)}
    return Decision(
        verdict, reason, flagged, confidence, int(counts.argmax()) if flagged.any() else None, [], [], "fitted-by-enhanced", proofs=proofs
    )


def caps_of(flagged: Bools, labels: Ints, classes: int, params: SplitParams) -> list[dict[str, Any]]:
    """Return each cap with its value, its limit, and whether it holds.

    Args:
        flagged: bool [n].
        labels: int64 [n], as given.
        classes: Number of classes.
        params: Limits.
    """
    share = float(flagged.mean()) if len(flagged) else 0.0
    sizes = np.bincount(labels, minlength=classes)
    kept = np.bincount(labels[~flagged], minlength=classes)
    present = sizes > 0
    floor = np.minimum(sizes, np.median(kept[present])) if present.any() else sizes
    # Where most classes are gone so is the median, and yet nothing is left of them.
    left = np.where(present & (floor > 0), kept / np.maximum(floor, 1), np.where(present & (kept == 0), 0.0, 1.0))
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
