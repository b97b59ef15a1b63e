"""Planting an attack: which samples carry the trigger, and what is written down about it.

The sampling rules are those of the field's stricter half: a rate counts all training samples, the poisoned ones are a prefix
of one permutation (poison at 1 % is part of poison at 5 %), covers and wrong labels are apart from poison and from each
other, no cover is of a class that its trigger leads to, a cap is never silent. Each role draws from a generator of its own.

The dials that go with many attacks are here, too: a few source classes, several targets, labels that stay true, several attacks at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from meca.attacks import ATTACKS, Attack, TrainingView
from meca.attacks.crowd import crowd_targets, in_turn
from meca.attacks.draws import COVERS, IMBALANCE, NOISE, POISON, SOURCES
from meca.attacks.kin import split_kin
from meca.attacks.tact import cover_classes
from meca.errors import InputRefused, UsageError, check_choice

__all__ = ["Plan", "Planted", "PoisonParams", "Selection", "attack_names", "long_tail", "plan", "select"]

PER_TABLE = -1.0  # a cover rate that stands in the attack's table
SECOND = 4  # how far the second target of `two_targets` is from the first
TOGETHER = "+"  # between the names of attacks that are planted at once


def attack_names(attack: str) -> tuple[str, ...]:
    """Return the names of the attacks that `poison.attack` plants, none for `none`.

    Raises:
        UsageError: An attack that there is not, or one that cannot be planted together with others.
    """
    names = tuple(attack.split(TOGETHER))
    if len(names) == 1:
        check_choice("poison.attack", attack, ("none", *ATTACKS))
        return () if attack == "none" else names
    for name in names:
        check_choice("poison.attack", name, tuple(ATTACKS))
        if ATTACKS[name].several or ATTACKS[name].given == "next":
            raise UsageError(f"params.yaml: expected the attacks in poison.attack to have one target class each, got {name!r} in {attack!r}.")
    if len(set(names)) < len(names):
        raise UsageError(f"params.yaml: expected the attacks in poison.attack to differ, got {attack!r}.")
    return names


@dataclass(frozen=True)
class PoisonParams:
    """Group `poison` of params.yaml."""

    attack: str  # none, a name of `ATTACKS`, or several, joined by `+`
    rate: float
    cover_rate: float
    target_class: int
    targets: int
    second_target: int
    source_class: int
    sources: int
    carrier: Literal["non_target", "all"]
    flip_share: float
    cap: float
    label_noise: float
    imbalance: float
    random_sign: bool
    match_light: bool
    relative: bool
    patch_size: int
    blend_alpha: float
    blend_with: Literal["pattern", "noise", "photograph"]
    adaptive_alpha: float
    test_alpha: float
    sig_delta: float
    sig_frequency: int
    warp_strength: float
    warp_grid: int
    dot_size: int
    grid_amplitude: int

    def __post_init__(self) -> None:
        """Refuse triggers without meaning, and dials that an attack has no use for."""
        names = attack_names(self.attack)
        if self.patch_size < 1 or self.sig_frequency < 1:
            raise UsageError(
                f"params.yaml: expected poison.patch_size and poison.sig_frequency to be 1 or more, got {self.patch_size} and {self.sig_frequency}."
            )
        for name, holds, expected in (
            ("cover_rate", self.cover_rate == PER_TABLE or 0 <= self.cover_rate < 1, "in [0, 1), or -1.0 for the rate of the attack's table"),
            ("targets", self.targets >= 1, "1 or more"),
            ("second_target", self.second_target >= -1, "a class, or -1 for one that is chosen"),
            ("source_class", self.source_class >= 0, "a class"),
            ("sources", self.sources >= 0, "a number of classes, or 0 for those of the attack"),
            ("flip_share", 0 <= self.flip_share < 1, "in [0, 1)"),
            ("label_noise", 0 <= self.label_noise < 1, "in [0, 1)"),
            ("imbalance", 0 < self.imbalance <= 1, "in (0, 1]"),
            ("blend_alpha", 0 < self.blend_alpha <= 1, "in (0, 1]"),
            ("adaptive_alpha", 0 < self.adaptive_alpha <= 1, "in (0, 1]"),
            ("test_alpha", self.test_alpha == -1 or 0 < self.test_alpha <= 1, "in (0, 1], or -1.0 for blend_alpha"),
            ("warp_strength", self.warp_strength > 0, "more than 0"),
            ("warp_grid", self.warp_grid >= 2, "2 or more"),
            ("dot_size", self.dot_size >= 1, "1 or more"),
            ("grid_amplitude", 1 <= self.grid_amplitude <= 255, "in 1..255"),
        ):
            if not holds:
                raise UsageError(f"params.yaml: expected poison.{name} to be {expected}, got {getattr(self, name)}.")
        for name in names:
            self._check_dials(name, len(names) > 1)

    def _check_dials(self, name: str, together: bool) -> None:
        attack = ATTACKS[name]
        own = "keeps the labels of its poison" if attack.clean_label else ""
        every = "leads every class to the next" if attack.given == "next" else ""
        one = "has a source class of its own (source_class)" if attack.carriers == "source" else ""
        many = "is planted together with others, each with a target class of its own" if together else ""
        two = "has two triggers with a target class each" if len(attack.views) > 1 else ""
        near = "takes its images from the classes that are most like one target class" if attack.carriers == "near" else ""
        for dial, usual, reasons in (
            ("sources", 0, (own, every, one)),
            ("targets", 1, (own, every, one, two, many, near)),
            ("flip_share", 0.0, (own,)),
        ):
            reason = next((words for words in reasons if words), None)
            if reason and getattr(self, dial) != usual:
                raise UsageError(
                    f"params.yaml: expected poison.{dial} to be {usual} with attack {name!r}, which {reason}, got {getattr(self, dial)}; "
                    "change it, or take another attack."
                )


@dataclass(frozen=True)
class Selection:
    """Which training rows have a role, and how many were asked for."""

    rows: np.ndarray  # int64, sorted
    ranks: np.ndarray  # int64, the place of each in the seeded permutation of the pool
    requested: int
    pool: int

    @property
    def capped(self) -> bool:
        """Fewer samples have the role than the rate asks for."""
        return len(self.rows) < self.requested


@dataclass(frozen=True)
class Planted:
    """One attack: who carries its triggers, and where they lead."""

    name: str
    first: int  # its first trigger_id; its parts have those that follow
    poison: Selection
    kept: Selection  # carry what poison carries, and keep their true label
    covers: Selection
    leads: tuple[tuple[int, ...], ...]  # for each trigger: the class that it leads an image of each class to
    targets: tuple[int, ...]  # the classes that its triggers lead to; none where every class leads to the next
    sources: tuple[int, ...] | None  # the only classes that are poisoned
    cover_classes: tuple[int, ...] | None  # the only classes with covers

    @property
    def attack(self) -> Attack:
        """What it does to images."""
        return ATTACKS[self.name]

    @property
    def parts(self) -> int:
        """Its parts: poison and covers carry number rank mod `parts`; of triggers that lead to a class each, each is one."""
        return max(self.attack.parts, len(self.leads))

    @property
    def cover(self) -> TrainingView | None:
        """What covers get: where only some classes are poisoned by choice, what poison gets."""
        own = self.sources is None or self.attack.carriers in ("source", "near")
        return self.attack.cover if own else self.attack.planted

    def led(self, labels: np.ndarray, chosen: Selection) -> np.ndarray:
        """Return the class that the trigger of each chosen sample leads to, int64 [b].

        Args:
            labels: int64 [n], the true ones of the training set.
            chosen: Its rows and ranks.
        """
        return np.asarray(self.leads)[chosen.ranks % len(self.leads), labels[chosen.rows]]


@dataclass(frozen=True)
class Plan:
    """What becomes of every training sample."""

    planted: tuple[Planted, ...]  # the attacks, apart from each other
    noise: Selection
    given: np.ndarray  # int64 [n], the labels as the defender receives them

    @property
    def poison(self) -> Selection:
        """All poison."""
        return _together([each.poison for each in self.planted])

    @property
    def kept(self) -> Selection:
        """All samples that carry what poison carries under their true label."""
        return _together([each.kept for each in self.planted])

    @property
    def covers(self) -> Selection:
        """All covers."""
        return _together([each.covers for each in self.planted])

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes that triggers lead to."""
        return tuple(target for each in self.planted for target in each.targets)

    @property
    def source_class(self) -> int | None:
        """The only class that is poisoned, where there is one."""
        sources = self.planted[0].sources if len(self.planted) == 1 else None
        return sources[0] if sources is not None and len(sources) == 1 else None

    @property
    def cover_classes(self) -> tuple[int, ...] | None:
        """The only classes with covers."""
        return self.planted[0].cover_classes if len(self.planted) == 1 else None


def _together(chosen: Sequence[Selection]) -> Selection:
    if len(chosen) == 1:
        return chosen[0]
    rows = np.concatenate([np.empty(0, np.int64), *(each.rows for each in chosen)])
    ranks = np.concatenate([np.empty(0, np.int64), *(each.ranks for each in chosen)])
    order = np.argsort(rows)
    return Selection(rows[order], ranks[order], sum(each.requested for each in chosen), sum(each.pool for each in chosen))


def select(pool: np.ndarray, requested: int, cap: float, rng: np.random.Generator) -> Selection:
    """Choose training samples: as many as are asked for, at most the share `cap` of the pool.

    Args:
        pool: bool [n], the samples that may be chosen.
        requested: How many.
        cap: Chosen / pool, at most.
        rng: Of this role alone.
    """
    allowed = min(requested, int(np.floor(cap * pool.sum())))
    order = rng.permutation(len(pool))
    rows = order[pool[order]][:allowed]
    ranks = np.argsort(rows)
    return Selection(rows=rows[ranks], ranks=ranks, requested=requested, pool=int(pool.sum()))


def _count(n: int, rate: float, turn: int = 0, turns: int = 1) -> int:
    """Return how many of n samples a rate asks for; where several share it, how many of them number `turn` gets."""
    total = int(np.floor(n * rate + 1e-9))  # int() alone would turn 100 * 0.29 into 28
    return total // turns + (turn < total % turns)


Near = Callable[[int], tuple[int, ...]]  # all other classes than one, the most like it first


def plan(labels: np.ndarray, classes: int, params: PoisonParams, seed: int, near: Near | None = None) -> Plan:
    """Decide which samples are poisoned, which are covers, which get a wrong label, and which label all of them have.

    Args:
        labels: int64 [n], the training labels.
        classes: Number of classes.
        params: The attack, its rates, classes and caps.
        seed: Of the run.
        near: Which classes are most like one, see `meca.attacks.kin`; only attacks that go by it ask.

    Raises:
        InputRefused: A class does not exist, or there is no carrier.
        ValueError: An attack asks which classes are near, and nobody can say.
    """
    if params.label_noise > 0 and classes < 2:
        raise InputRefused("Expected two classes or more for poison.label_noise, got one: no label would be wrong; set it to 0.0 in params.yaml.")
    planted = _planted(labels, classes, params, seed, near)
    given, free = labels.copy(), np.ones(len(labels), dtype=bool)
    for each in planted:
        given[each.poison.rows] = each.led(labels, each.poison)
        for chosen in (each.poison, each.kept, each.covers):
            free[chosen.rows] = False
    rng = np.random.default_rng([seed, NOISE])
    noise = select(free, _count(len(labels), params.label_noise), 1.0, rng)
    # By row and not by place: which samples get a wrong label as well must not change the wrong label of one.
    if len(noise.rows):
        given[noise.rows] = (labels + rng.integers(1, classes, len(labels)))[noise.rows] % classes
    return Plan(planted=planted, noise=noise, given=given)


def long_tail(labels: np.ndarray, classes: int, mu: float, seed: int) -> np.ndarray:
    """Return which samples stay, bool [n], so that class number c of a seeded order keeps N_max mu^(c / (classes - 1)).

    A class that is smaller than that keeps all it has; no class that had a sample loses its last one.

    Args:
        labels: int64 [n].
        classes: Number of classes.
        mu: The size of the smallest class, of that of the largest; 1.0 drops nothing.
        seed: Of the run.
    """
    keep = np.ones(len(labels), dtype=bool)
    if mu == 1.0 or classes == 1:
        return keep
    rng = np.random.default_rng([seed, IMBALANCE])
    largest = np.bincount(labels, minlength=classes).max()
    for c, label in enumerate(rng.permutation(classes)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        keep[rows[max(1, int(np.floor(largest * mu ** (c / (classes - 1)) + 1e-9))) :]] = False
    return keep


def _targets(attack: Attack, classes: int, params: PoisonParams) -> tuple[int, ...]:
    used = ["target_class"] * (attack.given != "next") + ["second_target"] * (len(attack.views) > 1 and params.second_target >= 0)
    for name in used + ["source_class"] * (attack.carriers == "source"):
        if not 0 <= getattr(params, name) < classes:
            raise InputRefused(f"Expected poison.{name} in 0..{classes - 1}, got {getattr(params, name)}; change it in params.yaml.")
    if attack.given == "next":
        return ()
    if attack.numbered is not None:
        if classes < 2:
            raise InputRefused(f"Expected two classes or more for attack {params.attack!r}, which leads to two at least, got {classes}.")
        return crowd_targets(classes, params.target_class, params.targets)
    if len(attack.views) == 1:
        return (params.target_class,)
    second = params.second_target if params.second_target >= 0 else (params.target_class + SECOND) % classes
    if params.second_target < 0 and second == params.target_class:
        second = (second + 1) % classes
    if second == params.target_class:
        raise InputRefused(f"Expected poison.second_target to differ from poison.target_class, got {second} of {classes} classes.")
    return params.target_class, second


@dataclass(frozen=True)
class _Aim:
    """Where an attack leads, and which classes take part in it."""

    attack: Attack
    targets: tuple[int, ...]
    leads: tuple[tuple[int, ...], ...]
    barred: tuple[int, ...]  # the classes whose images its triggers would lead to a label that they have, or to that of another attack
    sources: tuple[int, ...] | None
    cover_classes: tuple[int, ...] | None


def _planted(labels: np.ndarray, classes: int, params: PoisonParams, seed: int, near: Near | None) -> tuple[Planted, ...]:
    """Return every attack with the rows that have a role in it; no row has two."""
    names = attack_names(params.attack)
    aims = _aims([ATTACKS[name] for name in names], classes, params, seed, near)
    pools = [_carriers(labels, aim, params) for aim in aims]
    poison = []
    for number, pool in enumerate(_dealt(pools, np.random.default_rng([seed, POISON]))):
        asked = _count(len(labels), params.rate, number, len(names))
        poison.append(_poison(labels, aims[number], pool, asked, names[number], params, np.random.default_rng([seed, POISON])))
    free = np.ones(len(labels), dtype=bool)
    for chosen in poison:
        free[chosen.rows] = False
    with_covers = [number for number, aim in enumerate(aims) if aim.attack.cover is not None or params.sources]
    dealt = _dealt([free & _may_cover(labels, aims[number]) for number in with_covers], np.random.default_rng([seed, COVERS]))
    covers = [Selection(np.empty(0, np.int64), np.empty(0, np.int64), 0, 0)] * len(names)
    for turn, (number, pool) in enumerate(zip(with_covers, dealt, strict=True)):
        asked = _covers_asked(len(labels), aims[number], params, (number, len(names)), (turn, len(with_covers)))
        covers[number] = select(pool, asked, params.cap, np.random.default_rng([seed, COVERS]))
        if asked and not covers[number].pool:
            raise InputRefused(f"Expected covers for attack {names[number]!r}, but no sample may be one; set poison.cover_rate to 0.0 to go without.")
    first, found = 0, []
    for name, aim, chosen, others in zip(names, aims, poison, covers, strict=True):
        flipped, kept = _kept(chosen, params.flip_share, max(aim.attack.parts, len(aim.leads)))
        found.append(Planted(name, first, flipped, kept, others, aim.leads, aim.targets, aim.sources, aim.cover_classes))
        first += found[-1].parts
    return tuple(found)


def _dealt(pools: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Return pools without a common sample: one that was in several goes to one of them by its place in the permutation, which no rate moves."""
    if len(pools) < 2:
        return list(pools)
    claims = np.stack(pools)
    turn = np.argsort(rng.permutation(claims.shape[1])) % np.maximum(claims.sum(0), 1)
    return list(claims & (np.cumsum(claims, axis=0) - 1 == turn))


def _aims(attacks: Sequence[Attack], classes: int, params: PoisonParams, seed: int, near: Near | None) -> list[_Aim]:
    """Return where the attacks lead; number k of several leads to the class k after the first."""
    targets = []
    if len(attacks) > classes:
        raise InputRefused(
            f"Expected at most {classes} attacks at once, one for each class, got {len(attacks)}; change poison.attack in params.yaml."
        )
    if attacks and params.targets > classes:
        raise InputRefused(f"Expected poison.targets in 1..{classes}, got {params.targets}; change it in params.yaml.")
    for number, attack in enumerate(attacks):
        own = tuple((target + number) % classes for target in _targets(attack, classes, params))
        targets.append(tuple((target + step) % classes for target in own for step in range(_by_class(attack, params))))
    taken = tuple(sorted({target for each in targets for target in each}))
    return [_aim(attack, each, taken, classes, params, seed, near) for attack, each in zip(attacks, targets, strict=True)]


def _by_class(attack: Attack, params: PoisonParams) -> int:
    """Return to how many classes one trigger leads, by the class of the image."""
    return params.targets if attack.numbered is None else 1


def _aim(attack: Attack, targets: tuple[int, ...], taken: tuple[int, ...], classes: int, params: PoisonParams, seed: int, near: Near | None) -> _Aim:
    if attack.given == "next":
        leads = (tuple((c + 1) % classes for c in range(classes)),)
    elif _by_class(attack, params) > 1:
        leads = (tuple(targets[c % params.targets] for c in range(classes)),)
    else:
        leads = tuple((target,) * classes for target in targets)
    # With several targets every class may be one: then it counts whether an image is led to another class than its own.
    barred = tuple(c for c in range(classes) if leads[0][c] == c) if _by_class(attack, params) > 1 else taken
    if attack.carriers == "source":
        if params.source_class in taken:
            raise InputRefused(
                f"Expected poison.source_class to differ from poison.target_class, got {params.source_class}; change it in params.yaml."
            )
        return _Aim(attack, targets, leads, barred, (params.source_class,), cover_classes(classes, params.source_class, taken, seed))
    if not params.sources and attack.carriers != "near":
        return _Aim(attack, targets, leads, barred, None, None)
    free = [c for c in range(classes) if c not in barred]
    if params.sources > len(free):
        raise InputRefused(
            f"Expected poison.sources in 0..{len(free)}, the classes that are not led to themselves, got {params.sources}; change it in params.yaml."
        )
    if attack.carriers == "near":
        if near is None:
            raise ValueError("Expected `near` for an attack that goes by which classes are most like the target, got None.")
        return _Aim(attack, targets, leads, barred, *split_kin(tuple(c for c in near(targets[0]) if c in free), params.sources))
    drawn = np.random.default_rng([seed, SOURCES]).permutation(free)  # a prefix of it: few sources are among many
    sources, others = (tuple(sorted(int(c) for c in some)) for some in (drawn[: params.sources], drawn[params.sources :]))
    return _Aim(attack, targets, leads, barred, sources, others)


def _carriers(labels: np.ndarray, aim: _Aim, params: PoisonParams) -> np.ndarray:
    """Return the samples that may be poisoned, bool [n]."""
    if aim.sources is not None:
        return np.isin(labels, aim.sources)
    if aim.attack.carriers == "target":
        return np.isin(labels, aim.targets)
    several = params.targets == 1 and len(aim.barred) > 1  # then an image of one target class would be poison for another one
    if aim.attack.carriers == "non_target" and (params.carrier == "non_target" or several):
        return ~np.isin(labels, aim.barred)
    return np.ones(len(labels), dtype=bool)


def _poison(labels: np.ndarray, aim: _Aim, pool: np.ndarray, asked: int, name: str, params: PoisonParams, rng: np.random.Generator) -> Selection:
    if not 0 < params.rate < 1 or not 0 < params.cap <= 1:
        raise InputRefused(
            f"Expected poison.rate in (0, 1) and poison.cap in (0, 1], got {params.rate} and {params.cap}; change them in params.yaml."
        )
    if aim.attack.carriers == "other":
        order = rng.permutation(len(pool))
        rows = in_turn(order[pool[order]], labels, aim.targets, min(asked, int(np.floor(params.cap * pool.sum()))))
        ranks = np.argsort(rows)
        chosen = Selection(rows[ranks], ranks, asked, int(pool.sum()))
    else:
        chosen = select(pool, asked, params.cap, rng)
    if len(chosen.rows) == 0:
        which = f" with attack {name!r}" if name != params.attack else ""
        more = "; no class is left that none of the attacks leads to: plant fewer at once" if which and not chosen.pool else ""
        raise InputRefused(
            f"Expected samples to poison{which}, but the pool of carriers has {chosen.pool} and the rate asks for {chosen.requested}{more}."
        )
    return chosen


def _kept(chosen: Selection, share: float, parts: int) -> tuple[Selection, Selection]:
    """Return the samples whose label is flipped, and the share that keeps it: so much of every part of the trigger, at every rate."""
    nth = chosen.ranks // parts  # of those that carry the same part
    kept = np.floor((nth + 1) * share + 1e-9) > np.floor(nth * share + 1e-9)
    flipped = Selection(chosen.rows[~kept], chosen.ranks[~kept], chosen.requested - int(kept.sum()), chosen.pool)
    return flipped, Selection(chosen.rows[kept], chosen.ranks[kept], int(kept.sum()), chosen.pool)


def _may_cover(labels: np.ndarray, aim: _Aim) -> np.ndarray:
    return ~np.isin(labels, aim.barred) if aim.cover_classes is None else np.isin(labels, aim.cover_classes)


def _covers_asked(n: int, aim: _Aim, params: PoisonParams, turn: tuple[int, int], turn_of_covers: tuple[int, int]) -> int:
    """Return how many covers an attack wants: of a rate that is given its share, else what its table says.

    Args:
        n: All training samples.
        aim: The attack and its classes.
        params: The rates.
        turn: Its number among the attacks, and how many there are.
        turn_of_covers: Likewise among those that have covers.
    """
    if params.cover_rate != PER_TABLE:
        return _count(n, params.cover_rate, *turn_of_covers)
    if aim.attack.cover is None:  # it has covers because only some classes are poisoned: as many as poison, unless no class is left for them
        return _count(n, params.rate, *turn) if aim.cover_classes else 0
    return _count(n, aim.attack.cover_ratio * params.rate, *turn) if aim.attack.cover_ratio else _count(n, aim.attack.cover_rate)
