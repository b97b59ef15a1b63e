"""`split`: which classes hold poison, which of their samples, and whether anything is left.

A round asks every class of what is kept, in two ways that know nothing of each other.

1. *Content* (`meca.method.content`): networks that have never seen the class say what its samples show. Where a share of them is typical of
   the classes that it is least like, they have wrong labels. Neither trigger nor label plays a part, so any trigger is found that is put on
   images of most other classes, also an adaptive one with covers. It does not see right labels (SIG), or images of one class (TaCT).
2. *Flips* (`meca.method.flips`): what a part of the class has that the rest lacks is added to images of all other classes. A trigger flips
   them, whatever its samples' labels are. It does not see triggers that move.

Each way gives a number for each class. What a clean class gives is read from the other classes of the same data, so that each class gets a
p-value, and the false discovery rate over the classes is controlled (`meca.method.evidence`). In a class that is proven the poison is told
from the rest (`meca.method.localise`) and flagged; nothing is flagged anywhere else.

Then a network is trained on what is kept, and all classes are asked again, until nothing more is proven. So a conspicuous attack hides no
other one, and what a first round leaves is found by the next. The last network, in which nothing was found, is the clean model.

`misclassified` (preset `paper`). What the enhanced model misclassifies is clean, the rest is poisoned (Pu et al., 2024).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from meca.errors import check_fields
from meca.method.content import Content, foreign_share, look_without, lower_mean
from meca.method.evidence import Finding, findings, of_view
from meca.method.flips import LEAST, REACHES, SURE, Flips, Light, Part, Probes, flips_of_parts, light_of, mean_in_light, parts_of, probes_of
from meca.method.localise import Seeds, order_by_features, separate
from meca.method.proofs import Proof
from meca.models import Network, build
from meca.training.engine import Data, Session, features
from meca.training.trainer import Recipe

__all__ = ["UNFLAGGED", "Asked", "Class", "Decision", "Found", "SplitParams", "by_misclassification", "caps_of", "detect"]

ASKED = 20  # samples of a class, below which it is not asked: a part of so few is single images
FIRST = 0.5  # of the probes: so many choose the part, as many as all of them measure it
SUSPECTED = 0.7  # quantile of how typical samples are of other classes, above which they are suspects to begin with
SHOWS = 0.05  # p of a view, up to which it says where to begin in a class that is proven, and whether content tells which part has a trigger
MOSTLY = 0.5  # share of a class that is poisoned, from which clean samples are as typical of others as poison is, but never of far ones
NOTHING_LEFT = 0.1  # least share of a class that is taken to be poisoned, where it is proven
EVERYTHING_BUT = 0.95  # and the largest
PLAIN: dict[Proof, float] = {"foreign-content": 0.3, "difference": 0.15}  # share of a class that is taught as plain, the least suspicious: by
# content what is least suspicious is surely clean; by flips most of the class can be poisoned
FAR = 30.0  # logits from the line, beyond which a suspicion is 0 or 1 in float32
UNFLAGGED = 0.4  # suspicion of the most suspicious sample that is not flagged: a rank, not a probability, and below every flagged sample's

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Say = Callable[[str, int, int, str], None]  # what is going on, how many are done, of how many, a note


@dataclass(frozen=True)
class SplitParams:
    """Group `split` of params.yaml."""

    rule: Literal["tests", "misclassified"]
    groups: int  # into so many groups the classes are cut; a network is trained without each
    recipe: Recipe  # of these networks
    typical: tuple[float, ...]  # a sample is typical of a class if at least this share of that class's samples looks less like it; each is a view
    lower_content: float  # share of the other classes, those that a class is least like, whose look counts
    lower_flips: float  # share of the other classes, those that show least, that a trigger has to work on
    end: float  # share of a class that the end of a view is
    probe: int  # images of other classes that a difference is measured on
    least_content: float  # share of a class: is added to what views of content show; less is chance
    least_flips: float  # flip rate: likewise
    spread: float  # least standard deviation of the logarithms of what clean classes show
    false_discovery: float  # share of the classes that are proven, up to which they may be clean
    rounds: int  # of asking what is left
    cap_flagged: float  # of all samples: more are not believed
    cap_left: float  # of the smaller of a class's size and the median kept count: fewer may not be left

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing could be asked, or everything would be flagged."""
        check_fields(
            self,
            ("groups", ">= 2", self.groups >= 2),
            ("typical", "numbers in (0, 1), one at least", bool(self.typical) and all(0 < share < 1 for share in self.typical)),
            ("lower_content", "in (0, 1]", 0 < self.lower_content <= 1),
            ("lower_flips", "in (0, 1]", 0 < self.lower_flips <= 1),
            ("end", "in (0, 0.5)", 0 < self.end < 0.5),
            ("probe", ">= 2", self.probe >= 2),
            ("least_content", "> 0", self.least_content > 0),
            ("least_flips", "> 0", self.least_flips > 0),
            ("spread", "> 0", self.spread > 0),
            ("false_discovery", "in (0, 1]", 0 < self.false_discovery <= 1),
            ("rounds", ">= 1", self.rounds >= 1),
        )


@dataclass(frozen=True)
class Class:
    """What a round says of one class; verdict.json has these names."""

    label: int
    n: int
    p: float
    q: float
    proven: bool
    proof: Proof | None
    views: dict[str, dict[str, float]]  # by view its value and p


@dataclass(frozen=True)
class Decision:
    """The result for the whole set."""

    verdict: str  # no_evidence | poisoned | inconclusive
    reason: str
    flagged: Bools  # [n]
    suspicion: Floats  # [n] in [0, 1]
    target_class: int | None
    caps: list[dict[str, Any]]
    evidence: list[Class] = field(default_factory=list[Class])  # of the first round
    rounds: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    proofs: Mapping[int, Proof] = field(default_factory=dict[int, Proof])  # by class with flagged samples: how it was proven
    held: tuple[int, ...] = ()  # classes that break a cap: their flagged samples wait for a person


@dataclass(frozen=True)
class Found:
    """What `detect` returns: the decision, and its networks."""

    decision: Decision
    everything: nn.Module  # trained on all samples
    kept: nn.Module | None  # trained on the samples that are not flagged, as `train_clean` says; None where that has not been done
    curve: list[tuple[int, float, float]]  # of its training: epoch, loss, accuracy


@dataclass(frozen=True)
class Asked:
    """What a detection is made of."""

    session: Session
    network: Network  # of `partition`
    data: Data
    margins: Mapping[str, Floats]  # of `enhance`, by side [n]
    params: SplitParams
    full: Recipe  # as `train_clean`
    short: Recipe  # of the networks that tell poison from the rest
    say: Say


def detect(asked: Asked) -> Found:
    """Ask all classes in rounds, until nothing more is proven.

    Args:
        asked: The set, its networks so far, and how it is asked.
    """
    params, data = asked.params, asked.data
    labels, classes = data.labels.cpu().numpy(), len(asked.network.description.class_names)
    asked.say("split: classes left out", 1, params.rounds + 1, f"{params.groups} groups")
    content = look_without(asked.session, data, asked.network.description, params.recipe, params.groups)
    light = light_of(data.images)
    flagged = np.zeros(len(labels), dtype=bool)
    suspicion = _ranks(content, labels)
    first: list[Class] = []
    rounds: list[dict[str, Any]] = []
    proofs: dict[int, Proof] = {}
    everything: nn.Module | None = None
    model: nn.Module | None = None
    curve: list[tuple[int, float, float]] = []
    for number in range(params.rounds):
        asked.say("split: what is left" if number else "split: everything", number + 1, params.rounds, f"{int((~flagged).sum())} samples")
        curve = []
        model = _train(asked, ~flagged, number, curve)
        everything = everything or model
        round_ = _Round(asked, model, content, light, ~flagged, np.isin(np.arange(classes), list(proofs)), number)
        seen = round_.classes()
        first = first or seen
        proven = [each for each in seen if each.proven]
        rounds.append({"proven": [each.label for each in proven], "flagged": 0, "p": [round(each.p, 6) for each in seen]})
        if not proven:
            break
        how: dict[int, Proof] = {each.label: each.proof or "difference" for each in proven}
        for label, (rows, values) in round_.poison(proven).items():
            flagged[rows[values > 0]] = True
            suspicion[rows] = 1 / (1 + np.exp(-np.clip(values, -FAR, FAR)))
            rounds[-1]["flagged"] += int((values > 0).sum())
            proofs.setdefault(label, how[label])
        model = None
        if rounds[-1]["flagged"] == 0:
            break
    assert everything is not None
    return Found(_decide(labels, classes, flagged, suspicion, proofs, first, rounds, params), everything, model, curve)


def _train(asked: Asked, kept: Bools, number: int, curve: list[tuple[int, float, float]]) -> nn.Module:
    """Train a network on what is kept, from the draws of `train_clean`: where that stage trains the same network, it takes this one."""
    device = asked.data.device

    def note(epoch: int, loss: float, accuracy: float) -> None:
        curve.append((epoch, loss, accuracy))
        asked.say("split: what is left" if number else "split: everything", epoch, asked.full.passes(int(kept.sum())), f"loss {loss:.3f}")

    session = dataclasses.replace(asked.session, name=f"split round {number} ", note=note)
    model = build(asked.network.description, session.draws("train_clean", "init")).to(device)
    return session.train(model, asked.data, asked.full, "train_clean", torch.from_numpy(kept).to(device)) if kept.sum() >= 2 else model.eval()


class _Round:
    """One round of questions about what is kept."""

    def __init__(self, asked: Asked, model: nn.Module, content: Content, light: Light, kept: Bools, again: Bools, number: int) -> None:
        self.asked, self.model, self.content, self.light = asked, model, content, light
        self.kept, self.again, self.number = kept, again, number  # samples that count; classes that were proven before
        self.labels = asked.data.labels.cpu().numpy()
        self.count = len(asked.network.description.class_names)
        self.rows = [np.flatnonzero((self.labels == c) & kept) for c in range(self.count)]
        self.features = features(model, asked.data.images).double().cpu().numpy()
        self.flips: dict[int, Flips] = {}
        self.parts: dict[int, list[Part]] = {}
        self.far: dict[int, Bools] = {}  # by class, of its rows: what looks like the classes that it is least like

    def classes(self) -> list[Class]:
        """Return what all views say of each class."""
        params, sizes = self.asked.params, np.array([len(rows) for rows in self.rows])
        views: dict[str, Floats] = {}
        least: dict[str, Floats] = {}
        for strictness in params.typical:
            name, shares = f"content {strictness:g}", foreign_share(self.content, self.labels, self.kept, strictness)
            asked = (sizes >= ASKED) & np.isfinite(shares).any(1)
            views[name] = np.array([lower_mean(row, params.lower_content) if each else np.nan for each, row in zip(asked, shares, strict=True)])
            # One sample more in the classes that count: of few samples, by chance some look typical of a far class.
            least[name] = np.maximum(params.least_content, 1 / (params.lower_content * (1 - strictness) * np.maximum(sizes, 1)))
        self._measure_flips(_shown(views, least, params.spread))
        for reach in REACHES:
            name = f"flips {reach}"
            views[name] = np.array([self.flips[c].rate[reach] if c in self.flips else np.nan for c in range(self.count)])
            least[name] = np.full(self.count, params.least_flips)
        return [self._class(each) for each in findings(views, least, params.false_discovery, params.spread, self.again)]

    def _class(self, found: Finding) -> Class:
        proven = bool(found.values) and found.q <= self.asked.params.false_discovery  # with a rate of 1 even what was not asked would be
        views = {name: {"value": round(value, 6), "p": found.ps[name]} for name, value in found.values.items()}
        return Class(found.label, len(self.rows[found.label]), found.p, found.q, proven, _proof(found) if proven else None, views)

    def _measure_flips(self, foreign: Bools) -> None:
        params, images = self.asked.params, self.asked.data.images
        sums = torch.stack([mean_in_light(images, self.light, rows, torch.ones(1, len(rows)))[0] for rows in self.rows])
        total, n = sums.sum(0), int(self.kept.sum())
        rng = self.asked.session.draws("split", "probes", self.number)
        drawn = [rows[torch.randperm(len(rows), generator=rng).numpy()] for rows in self.rows]
        some = torch.randperm(self.count, generator=rng)[: params.probe // 2].tolist()  # of very many classes not all are asked
        drawn = [rows if c in set(some) else rows[:0] for c, rows in enumerate(drawn)]
        sources = max(1, sum(len(rows) > 0 for rows in drawn))
        few, many = -(-int(params.probe * FIRST) // sources), -(-params.probe // sources)
        probes: tuple[Probes, Probes] = (
            probes_of(self.model, images, self.labels, drawn, few, 0),
            probes_of(self.model, images, self.labels, drawn, many, few),
        )
        shares = foreign_share(self.content, self.labels, self.kept, min(params.typical))
        more: dict[int, Probes] = {}

        def of_source(source: int) -> Probes:
            if source not in more:
                only = [rows if c == source else rows[:0] for c, rows in enumerate(drawn)]
                more[source] = probes_of(self.model, images, self.labels, only, params.probe, few)
            return more[source]

        for c, rows in enumerate(self.rows):
            if len(rows) < ASKED or n == len(rows):
                continue
            self.asked.say("split: parts of classes", c + 1, self.count, "")
            margins = {side: margin[rows] for side, margin in self.asked.margins.items()}
            parts = self.parts[c] = parts_of(self.features[rows], margins, params.end, self.asked.session.seed)
            elsewhere = (total - sums[c]) / (n - len(rows))
            self.far[c] = np.isin(self.content.seen[rows], _least(shares[c], params.lower_flips)) & (
                self.content.typical[rows] >= min(params.typical)
            )
            looks = np.where(self.content.typical[rows] >= min(params.typical), self.content.seen[rows], -1)
            # Of a trigger on images of the class itself, the clean part looks more like others: what carries a wave looks like nothing.
            far = self.far[c] if foreign[c] else np.zeros(len(rows), dtype=bool)
            of = probes, of_source, params.lower_flips
            self.flips[c] = flips_of_parts(self.model, images, self.light, c, rows, parts, elsewhere, far, looks, *of)

    def poison(self, proven: Sequence[Class]) -> dict[int, tuple[Ints, Floats]]:
        """Return for each proven class its rows and how far on the side of the poison each lies: flagged above zero."""
        seeds = {each.label: self._seeds(each) for each in proven}
        margins = separate(self.asked.session, self.asked.network, self.asked.data, seeds, self.asked.short, f"round {self.number}")
        return {c: (seed.rows, margins[c]) for c, seed in seeds.items()}

    def _seeds(self, proven: Class) -> Seeds:
        rows, plain = self.rows[proven.label], PLAIN[proven.proof or "difference"]
        reach = min(REACHES, key=lambda name: proven.views.get(f"flips {name}", {"p": 1.0})["p"])
        part = self.flips[proven.label].part[reach] if proven.label in self.flips else None
        # A part that flips images is purer than what looks typical of other classes, also where it alone would be no proof.
        shows = part is not None and proven.views[f"flips {reach}"]["p"] <= SHOWS
        if proven.proof == "foreign-content" and not shows:
            typical, views = self.content.typical[rows], [view for name, view in proven.views.items() if name.startswith("content")]
            share = min(views, key=lambda view: view["p"])["value"]
            suspects, far = typical > np.quantile(typical, SUSPECTED), self.far.get(proven.label, np.zeros(len(rows), dtype=bool))
            if share > MOSTLY and far.sum() >= LEAST:
                suspects, plain = far, PLAIN["difference"]
            elif (distant := _most_distant(self.parts.get(proven.label, []), far)) is not None:
                suspects = distant.rows
        else:
            suspects, share = (part.rows, part.share) if part else (np.zeros(len(rows), dtype=bool), 0.0)
            plain = PLAIN["difference"]
        order = order_by_features(self.features[rows], suspects) if 0 < suspects.sum() < len(rows) else suspects.astype(np.float64)
        return Seeds(rows, order, float(np.clip(share, NOTHING_LEFT, EVERYTHING_BUT)), plain)


def _shown(views: Mapping[str, Floats], least: Mapping[str, Floats], spread: float) -> Bools:
    """Return which classes one of the views at least shows with a p up to `SHOWS`, bool [classes]."""
    nothing = np.zeros(len(next(iter(views.values()))), dtype=bool)
    return np.any([of_view(values, nothing, least[name], spread) <= SHOWS for name, values in views.items()], axis=0)


def _most_distant(parts: Sequence[Part], far: Bools) -> Part | None:
    """Return the part in which far samples are most surely more frequent than in the rest; None where that is nowhere sure."""
    best, most = None, SURE
    for part in parts:
        chance = np.sqrt(far.mean() * (1 - far.mean()) * (1 / part.rows.sum() + 1 / (~part.rows).sum()))
        sure = (far[part.rows].mean() - far[~part.rows].mean()) / max(float(chance), 1e-12)
        if sure > most:
            best, most = part, sure
    return best


def _least(shares: Floats, lower: float) -> Ints:
    """Return the classes that a class is least like, of those that are known: NaN where one is not."""
    known = np.flatnonzero(np.isfinite(shares))
    return known[np.argsort(shares[known], kind="stable")][: int(np.ceil(len(known) * lower))]


def _proof(found: Finding) -> Proof:
    content = min((p for name, p in found.ps.items() if name.startswith("content")), default=np.inf)
    flips = min((p for name, p in found.ps.items() if name.startswith("flips")), default=np.inf)
    return "foreign-content" if content <= flips else "difference"


def _ranks(content: Content, labels: Ints) -> Floats:
    """Return a suspicion below that of all flagged samples: how typical each sample is of another class, as a rank in its class."""
    suspicion = np.zeros(len(labels))
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        order = np.argsort(np.argsort(content.typical[rows], kind="stable"), kind="stable")
        suspicion[rows] = UNFLAGGED * order / max(1, len(rows) - 1)
    return suspicion


def _decide(
    labels: Ints,
    classes: int,
    flagged: Bools,
    suspicion: Floats,
    proofs: dict[int, Proof],
    first: list[Class],
    rounds: list[dict[str, Any]],
    params: SplitParams,
) -> Decision:
    suspicion = np.where(flagged, np.maximum(suspicion, 0.5), np.minimum(suspicion, UNFLAGGED))
    caps, held = caps_of(flagged, labels, classes, params)
    proofs = {c: proof for c, proof in proofs.items() if flagged[labels == c].any()}
    counts = np.bincount(labels[flagged], minlength=classes)
    target = int(counts.argmax()) if flagged.any() else None
    whole = caps[0]
    if not whole["holds"]:
        verdict = "inconclusive"
        reason = f"{whole['name']} is {whole['value']:.3f}, beyond its limit {whole['limit']:.3f}: meca does not trust a verdict that flags so much"
    elif flagged.any():
        verdict, reason = "poisoned", _found(int(flagged.sum()), proofs, first, rounds, held)
    elif rounds[-1]["proven"]:
        # Not green: poison that cannot be told from the rest of its class is still there.
        verdict, reason = "inconclusive", f"class {rounds[-1]['proven'][0]} is proven to hold poison, but none of its samples stands apart"
    else:
        verdict, reason = "no_evidence", _nothing(first, params)
    return Decision(verdict, reason, flagged, suspicion, target, caps, first, rounds, proofs, held)


def _found(k: int, proofs: dict[int, Proof], first: list[Class], rounds: list[dict[str, Any]], held: tuple[int, ...]) -> str:
    which = "one class" if len(proofs) == 1 else f"{len(proofs)} classes"
    strongest = min((each for each in first if each.label in proofs), key=lambda each: each.p, default=None)
    if strongest is None:
        proof = "they were found once the others were gone"
    elif strongest.proof == "difference":
        reach = min(REACHES, key=lambda name: strongest.views[f"flips {name}"]["p"])
        to = {
            "all": "images of most other classes",
            "many": "images of the other classes",
            "one": "images of one other class",
            "source": "images of the class that they look like",
        }[reach]
        proof = (
            f"what they have in common raises the probability of class {strongest.label} by {strongest.views[f'flips {reach}']['value']:.0%} in {to}"
        )
    else:
        proof = f"networks that never saw class {strongest.label} see typical images of many other classes in it"
    said = f"{k} samples of {which} are poisoned: {proof} (p {strongest.p if strongest else 0:.1e})"
    if rounds and rounds[-1]["proven"]:
        said += f"; after {len(rounds)} rounds there was still something to be found"
    if held:
        said += f"; {len(held)} of the classes would lose too much, so that what is flagged there waits for a person"
    return said


def _nothing(first: list[Class], params: SplitParams) -> str:
    unasked = sum(not each.views or each.n < ASKED for each in first)
    smallest = min((each.p for each in first), default=1.0)
    said = f"no class is proven to hold poison at a false discovery rate of {params.false_discovery:g}"
    said += f" (smallest p {smallest:.2g} of {len(first)} classes)"
    return said + (f"; {unasked} classes are too small to be asked" if unasked else "")


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
    return Decision(verdict, reason, flagged, confidence, int(counts.argmax()) if flagged.any() else None, [], proofs=proofs)


def caps_of(flagged: Bools, labels: Ints, classes: int, params: SplitParams) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """Return each cap with its value, its limit and whether it holds, and the classes of which too little is left.

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
    caps = [
        {"name": "flagged share of all samples", "value": share, "limit": params.cap_flagged, "holds": share <= params.cap_flagged},
        {
            "name": f"what is left of class {worst}",
            "value": float(left[worst]),
            "limit": params.cap_left,
            "holds": bool(left[worst] >= params.cap_left),
        },
    ]
    return caps, tuple(int(c) for c in np.flatnonzero(present & (left < params.cap_left) & (kept < sizes)))
