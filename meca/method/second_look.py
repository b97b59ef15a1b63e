"""The second look of `split`: poison that is learnt slowly and stands apart nowhere.

Attacks that hide (Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023) plant triggers so weak, and
so many covers, that an early network has not learnt them: no cluster stands apart, and no difference flips images. What they cannot hide is that the
samples are images of other classes under a wrong label, and images that do not look like their class are learnt late.

So a good network is trained in rounds on the part of every class that is trusted most: first the part with the lowest margins of the slow
side of `enhance`, then the part that the network of the round before gives its label most readily. It is trained briefly, because a rare trigger
is learnt after the classes. A class into which samples of *many* other classes were put shows as one in which the last network sees
other classes with confidence, and many of them: a clean class is confused with one or two neighbours, and wrong labels that came
about by chance are in all classes alike.

Where the poison is too rare for that, what its samples have in common can still be asked about. The least trusted samples of a class are compared
with trusted ones of the same content, the difference is added to images of other classes, and a network that was trained fully on everything
says what it sees: it has learnt the trigger, however rare. Only what they have in common survives the mean of many. As in the first look,
what the content of the class explains does not count.

In such a class all but the better half is flagged. That takes many clean samples along. Where many classes were put into it, poison has wrong
labels, so `relabel_finetune` takes those back whose label the clean model confirms; where a common feature is the proof it does not, since the
labels of the poison may be right (`meca.method.proofs`).

Last, where every class is the target of one other (all-to-all), none of this helps: the poison of a class is of one other class, the trigger flips no
other images to it, and all classes look alike. So the smaller cluster of each class, in the features of the network that was trained on
everything, is compared with each other class alone (`meca.method.clusters`). A single class may flip some images of a neighbour, which
proves nothing; half of all classes do so only where a trigger does it. Then those clusters are flagged, and others that are no larger.
The caps hold for all of it.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from meca.errors import check_fields
from meca.method.clusters import Pairs
from meca.method.proofs import Proof
from meca.method.split import UNFLAGGED, Bools, Decision, Floats, Ints, Labelling, SplitParams, caps_of, ranks
from meca.training.trainer import Recipe

__all__ = ["Foreign", "SecondLookParams", "SecondQuestions", "foreign_content", "second_look"]

LEAST_SEEN = 1e-12  # probability: what a network gives less is all alike to it, and the logarithm of 0 has no rank
TIMES = 5  # a class is so many times as large as its least trusted part at least, or what it is compared with is not free of it
LEAST_PAIRED = 0.5  # of `min_paired`: from here on a cluster flips images as those of the other classes do, once half of the classes prove it
FLAGGED = 0.5  # suspicion of a flagged sample at no depth; at depth 1 it is 1. `remove_above` of group `relabel_finetune` lies between

Fit = Callable[[int, Bools], Floats]  # number of the round, samples to train on: probabilities of all samples [n classes]
# Suspects, trusted samples, content of all samples: flip rate of each class, float64 [classes].
CommonFlipRates = Callable[[Bools, Bools, Ints], Floats]
Pair = Callable[[], Pairs]  # the smaller cluster of each class, and its flip rate


@dataclass(frozen=True)
class SecondQuestions:
    """What networks are asked."""

    fit: Fit  # trains a network on some of the samples and returns what it sees in all
    # Adds what the suspects of each class have in common, beyond trusted samples of the same content, to images of other classes, and
    # returns the share that flips to the class, the median over their classes, float64 [classes]; asked only where the content of no class
    # is foreign.
    common_flip_rates: CommonFlipRates
    pair: Pair  # divides each class into two clusters and measures what the smaller ones flip; asked only where nothing else is proven


@dataclass(frozen=True)
class SecondLookParams:
    """Group `second_look` of params.yaml."""

    rounds: int  # 0: no second look
    recipe: Recipe  # of one round
    trusted: float  # share of every class that a round is trained on
    kept: float  # share of a proven class that is not flagged
    margin_weight: float  # of the rank of the margin beside the rank of the loss, from the second round on
    confidence: float  # of the last network, above which another class counts
    min_foreign: float  # share of a class that counts, times `spread`: from here on it is poison,
    over_median: float  # if it is so many times the median of all classes: wrong labels by chance are everywhere
    min_spread: float  # and if the other classes are many: their entropy over that of all, in [0, 1]
    min_classes: int  # with fewer, two neighbours are all there are
    suspects: float  # share of a class, the least trusted, whose common feature is added to other images
    min_suspects: int  # samples, at least: the mean of fewer still shows single images; a class that is not five times as large is not asked
    min_carried: float  # flip rate, median over source classes, in a network trained on all samples: from here on it is poison
    cluster: float  # share of a class that its smaller cluster may be for its flip rate to count: larger ones are kinds of images
    min_paired: float  # flip rate on images of one other class, the median over all classes: from here on it is poison

    def __post_init__(self) -> None:
        """Refuse numbers with which no round can be run."""
        check_fields(
            self,
            ("rounds", ">= 0", self.rounds >= 0),
            ("trusted", "in (0, 1)", 0 < self.trusted < 1),
            ("kept", "in (0, 1)", 0 < self.kept < 1),
            ("margin_weight", ">= 0", self.margin_weight >= 0),
            ("min_classes", ">= 2", self.min_classes >= 2),
            ("suspects", "in (0, 1)", 0 < self.suspects < 1),
            ("min_suspects", ">= 1", self.min_suspects >= 1),
            ("cluster", "in [0, 0.5]", 0 <= self.cluster <= 0.5),
        )


@dataclass(frozen=True)
class Foreign:
    """What the last network sees in one class; verdict.json has these names."""

    label: int
    share: float  # of the class, in which it sees another class with confidence
    spread: float  # entropy of those classes over that of all others that have samples, in [0, 1]
    proven: bool
    # Flip rate of the common feature of its least trusted samples, the median over source classes; None where not asked.
    carried: float | None = None
    paired: float | None = None  # flip rate of its smaller cluster on images of one other class; None where not asked


def second_look(
    first: Decision, margin: Floats, labelling: Labelling, params: SecondLookParams, caps_params: SplitParams, ask: SecondQuestions
) -> Decision:
    """Return the decision after a second look, the first one where that finds nothing.

    Args:
        first: A decision that flags nothing.
        margin: float64 [n], of the slow side of `enhance`; high is suspicious.
        labelling: Labels and number of classes.
        params: Rounds and limits.
        caps_params: Caps.
        ask: What networks answer.
    """
    labels, classes = labelling.labels, labelling.classes
    if params.rounds == 0 or len(labels) == 0:
        return first
    slow = ranks(margin, labels)
    order, each = slow, np.arange(len(labels))
    seen = np.zeros((len(labels), classes))
    for number in range(params.rounds):
        seen = ask.fit(number, order < params.trusted)
        loss = -np.log(np.maximum(seen[each, labels], LEAST_SEEN))
        order = ranks(ranks(loss, labels) + params.margin_weight * slow, labels)
    by_class = foreign_content(seen, labels, classes, params)
    proven = [f for f in by_class if f.proven]
    if not proven:
        rates = ask.common_flip_rates(_least_trusted(order, labels, params), (order < params.kept) & (seen.argmax(1) == labels), seen.argmax(1))
        by_class = [dataclasses.replace(f, carried=float(t), proven=float(t) >= params.min_carried) for f, t in zip(by_class, rates, strict=True)]
        proven = [f for f in by_class if f.proven]
    pairs: Pairs | None = None
    if not proven and classes >= params.min_classes:
        pairs = ask.pair()
        clusters = _paired(pairs, labels, classes, params)
        by_class = [dataclasses.replace(f, paired=float(t), proven=bool(c)) for f, t, c in zip(by_class, pairs.flip_rates, clusters, strict=True)]
        proven = [f for f in by_class if f.proven]
    if not proven:
        return dataclasses.replace(first, foreign=by_class)
    held = np.isin(labels, [f.label for f in proven])
    if pairs is None:
        flagged = held & (order >= params.kept)
        suspicion = np.where(flagged, FLAGGED + (1 - FLAGGED) * order, UNFLAGGED * order)  # ranks, not probabilities
    else:
        flagged = held & pairs.small
        # Clusters are nearly pure, so what lies deep in one is removed by `remove_above`, whatever the clean model says of it.
        suspicion = np.where(flagged, FLAGGED + (1 - FLAGGED) * pairs.depth, UNFLAGGED / 2 + UNFLAGGED / 2 * np.clip(pairs.nearer, -1, 1))
    caps = caps_of(flagged, labels, classes, caps_params)
    target = max(proven, key=_strength)
    broken = next((cap for cap in caps if not cap["holds"]), None)
    code, sentence = _proof(target, len(proven), int(flagged.sum()))
    if broken is not None:
        verdict = "inconclusive"
        reason = (
            f"{broken['name']} is {broken['value']:.3f}, beyond its limit {broken['limit']:.3f}: meca does not trust a verdict that flags so much"
        )
    else:
        verdict, reason = "poisoned", sentence
    unproven = tuple(c for c in first.doubtful if not any(f.label == c for f in proven))
    proofs: dict[int, Proof] = {f.label: code for f in proven}
    return Decision(verdict, reason, flagged, suspicion, target.label, caps, first.evidence, code, by_class, unproven, proofs)


def _paired(pairs: Pairs, labels: Ints, classes: int, params: SecondLookParams) -> Bools:
    """Return of which classes the smaller cluster is poison: none, or those that flip images and those that are no larger than these."""
    if float(np.median(pairs.flip_rates[np.unique(labels)])) < params.min_paired:
        return np.zeros(classes, dtype=bool)
    flipping = pairs.flip_rates >= LEAST_PAIRED * params.min_paired
    sizes = np.bincount(labels, weights=pairs.small, minlength=classes) / np.maximum(1, np.bincount(labels, minlength=classes))
    # Poison comes to all classes at one rate, and two kinds of images make larger clusters.
    return flipping | ((sizes > 0) & (sizes <= sizes[flipping].max()))


def _strength(f: Foreign) -> float:
    return next((share for share in (f.paired, f.carried) if share is not None), f.share * f.spread)


def _proof(target: Foreign, count: int, flagged: int) -> tuple[Proof, str]:
    """Return the kind of a proof, which is its code in column `reasons` (docs/files.md, "Reasons"), and its sentence."""
    which = f"class {target.label}" if count == 1 else f"{count} classes"
    if target.paired is not None:
        sentence = f"small clusters in at least half of all classes flip images of one other class to their own, up to {target.paired:.0%} of them"
        return (
            "paired-cluster",
            f"{sentence}: a trigger that changes each class to another; the {flagged} samples of the clusters of {which} are flagged",
        )
    if target.carried is not None:
        code: Proof = "common-feature"
        sentence = f"what the least trusted samples of {which} have in common flips {target.carried:.0%} of other images to it"
    else:
        code = "foreign-content"
        sentence = f"a network that was trained on the most trusted part sees many other classes in {target.share:.0%} of {which}"
    return code, f"{sentence}; the {flagged} samples of it that are trusted least are flagged, clean ones among them"


def foreign_content(seen: Floats, labels: Ints, classes: int, params: SecondLookParams) -> list[Foreign]:
    """Return per class how much of it looks like other classes, and like how many.

    Args:
        seen: Probabilities, float64 [n classes].
        labels: int64 [n], as given.
        classes: Number of classes.
        params: Limits.
    """
    answers, sure = seen.argmax(1), seen.max(1) > params.confidence
    others = max(2, len(np.unique(labels)) - 1)  # that there are samples of
    by_class: list[Foreign] = []
    for c in range(classes):
        mine = labels == c
        counts = np.bincount(answers[mine & sure], minlength=classes).astype(np.float64)
        counts[c] = 0
        shares = counts[counts > 0] / max(1.0, counts.sum())
        spread = abs(float((shares * np.log(shares)).sum())) / np.log(others)
        by_class.append(Foreign(c, float(counts.sum() / max(1, int(mine.sum()))), float(spread), False))
    if classes < params.min_classes:
        return by_class
    least = max(params.min_foreign, params.over_median * float(np.median([f.share * f.spread for f in by_class])))
    return [dataclasses.replace(f, proven=f.share * f.spread >= least and f.spread >= params.min_spread) for f in by_class]


def _least_trusted(order: Floats, labels: Ints, params: SecondLookParams) -> Bools:
    sizes = np.bincount(labels)[labels]
    count = np.maximum(params.min_suspects, params.suspects * sizes)
    return (order >= 1 - count / sizes) & (TIMES * count <= sizes)
