"""Planting an attack: which samples carry the trigger, and what is written down about it.

The sampling rules are those of the field's stricter half: a rate counts all training samples, the poisoned ones are a prefix
of one permutation (poison at 1 % is part of poison at 5 %), covers and wrong labels are apart from poison and from each
other, no cover is of a target class, a cap is never silent. Each role draws from a generator of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from meca.attacks import ATTACKS, Attack
from meca.attacks.draws import COVERS, IMBALANCE, NOISE, POISON
from meca.attacks.tact import cover_classes
from meca.errors import InputRefused, UsageError, check_choice

__all__ = ["Plan", "PoisonParams", "Selection", "long_tail", "plan", "select"]

PER_TABLE = -1.0  # a cover rate that stands in the attack's table
SECOND = 4  # how far the second target of `two_targets` is from the first


@dataclass(frozen=True)
class PoisonParams:
    """Group `poison` of params.yaml."""

    attack: str  # none, or a name of `ATTACKS`
    rate: float
    cover_rate: float
    target_class: int
    second_target: int
    source_class: int
    carrier: Literal["non_target", "all"]
    cap: float
    label_noise: float
    imbalance: float
    relative: bool
    patch_size: int
    blend_alpha: float
    adaptive_alpha: float
    sig_delta: float
    sig_frequency: int
    warp_strength: float
    warp_grid: int
    dot_size: int
    grid_amplitude: int

    def __post_init__(self) -> None:
        """Refuse triggers without meaning."""
        check_choice("poison.attack", self.attack, ("none", *ATTACKS))
        if self.patch_size < 1 or self.sig_frequency < 1:
            raise UsageError(
                f"params.yaml: expected poison.patch_size and poison.sig_frequency to be 1 or more, got {self.patch_size} and {self.sig_frequency}."
            )
        for name, holds, expected in (
            ("cover_rate", self.cover_rate == PER_TABLE or 0 <= self.cover_rate < 1, "in [0, 1), or -1.0 for the rate of the attack's table"),
            ("second_target", self.second_target >= -1, "a class, or -1 for one that is chosen"),
            ("source_class", self.source_class >= 0, "a class"),
            ("label_noise", 0 <= self.label_noise < 1, "in [0, 1)"),
            ("imbalance", 0 < self.imbalance <= 1, "in (0, 1]"),
            ("blend_alpha", 0 < self.blend_alpha <= 1, "in (0, 1]"),
            ("adaptive_alpha", 0 < self.adaptive_alpha <= 1, "in (0, 1]"),
            ("warp_strength", self.warp_strength > 0, "more than 0"),
            ("warp_grid", self.warp_grid >= 2, "2 or more"),
            ("dot_size", self.dot_size >= 1, "1 or more"),
            ("grid_amplitude", 1 <= self.grid_amplitude <= 255, "in 1..255"),
        ):
            if not holds:
                raise UsageError(f"params.yaml: expected poison.{name} to be {expected}, got {getattr(self, name)}.")


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
class Plan:
    """What becomes of every training sample."""

    poison: Selection
    covers: Selection
    noise: Selection
    given: np.ndarray  # int64 [n], the labels as the defender receives them
    targets: tuple[int, ...]  # the class that each trigger leads to; none where every class leads to the next
    source_class: int | None  # the only class that is poisoned
    cover_classes: tuple[int, ...] | None  # the only classes with covers


def select(pool: np.ndarray, rate: float, cap: float, rng: np.random.Generator) -> Selection:
    """Choose training samples: as many as the rate asks for, at most the share `cap` of the pool.

    Args:
        pool: bool [n], the samples that may be chosen.
        rate: Chosen / all n samples.
        cap: Chosen / pool, at most.
        rng: Of this role alone.
    """
    requested = int(np.floor(len(pool) * rate + 1e-9))  # int() alone would turn 100 * 0.29 into 28
    allowed = min(requested, int(np.floor(cap * pool.sum())))
    order = rng.permutation(len(pool))
    rows = order[pool[order]][:allowed]
    ranks = np.argsort(rows)
    return Selection(rows=rows[ranks], ranks=ranks, requested=requested, pool=int(pool.sum()))


def plan(labels: np.ndarray, classes: int, params: PoisonParams, seed: int) -> Plan:
    """Decide which samples are poisoned, which are covers, which get a wrong label, and which label all of them have.

    Args:
        labels: int64 [n], the training labels.
        classes: Number of classes.
        params: The attack, its rates, classes and caps.
        seed: Of the run.

    Raises:
        InputRefused: A class does not exist, or there is no carrier.
    """
    if params.label_noise > 0 and classes < 2:
        raise InputRefused("Expected two classes or more for poison.label_noise, got one: no label would be wrong; set it to 0.0 in params.yaml.")
    nothing = np.zeros(len(labels), dtype=bool)
    poison = covers = select(nothing, 0.0, 1.0, np.random.default_rng([seed, POISON]))
    given, targets, source, allowed = labels.copy(), (), None, None
    if params.attack != "none":
        attack = ATTACKS[params.attack]
        targets = _targets(attack, classes, params)
        source = params.source_class if attack.carriers == "source" else None
        poison = _poison(labels, attack, params, targets, np.random.default_rng([seed, POISON]))
        given[poison.rows] = _given(labels[poison.rows], poison.ranks, attack, targets, classes)
        if attack.cover is not None:
            allowed = cover_classes(classes, params.source_class, params.target_class, seed) if source is not None else None
            covers = _covers(labels, poison, attack, params, targets, allowed, np.random.default_rng([seed, COVERS]))
    free = ~nothing
    free[poison.rows] = free[covers.rows] = False
    rng = np.random.default_rng([seed, NOISE])
    noise = select(free, params.label_noise, 1.0, rng)
    # By row and not by place: which samples get a wrong label as well must not change the wrong label of one.
    if len(noise.rows):
        given[noise.rows] = (labels + rng.integers(1, classes, len(labels)))[noise.rows] % classes
    return Plan(poison, covers, noise, given, targets, source, allowed)


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
    if attack.carriers == "source" and params.source_class == params.target_class:
        raise InputRefused(f"Expected poison.source_class to differ from poison.target_class, got {params.source_class}; change it in params.yaml.")
    if attack.given == "next":
        return ()
    if len(attack.views) == 1:
        return (params.target_class,)
    second = params.second_target if params.second_target >= 0 else (params.target_class + SECOND) % classes
    if params.second_target < 0 and second == params.target_class:
        second = (second + 1) % classes
    if second == params.target_class:
        raise InputRefused(f"Expected poison.second_target to differ from poison.target_class, got {second} of {classes} classes.")
    return params.target_class, second


def _poison(labels: np.ndarray, attack: Attack, params: PoisonParams, targets: Sequence[int], rng: np.random.Generator) -> Selection:
    if not 0 < params.rate < 1 or not 0 < params.cap <= 1:
        raise InputRefused(
            f"Expected poison.rate in (0, 1) and poison.cap in (0, 1], got {params.rate} and {params.cap}; change them in params.yaml."
        )
    if attack.carriers == "source":
        pool = labels == params.source_class
    elif attack.carriers == "target":
        pool = np.isin(labels, targets)
    elif attack.carriers == "non_target" and (params.carrier == "non_target" or len(targets) > 1):
        pool = ~np.isin(labels, targets)
    else:
        pool = np.ones(len(labels), dtype=bool)
    chosen = select(pool, params.rate, params.cap, rng)
    if len(chosen.rows) == 0:
        raise InputRefused(f"Expected samples to poison, but the pool of carriers has {chosen.pool} and the rate asks for {chosen.requested}.")
    return chosen


def _covers(
    labels: np.ndarray,
    poison: Selection,
    attack: Attack,
    params: PoisonParams,
    targets: Sequence[int],
    allowed: Sequence[int] | None,
    rng: np.random.Generator,
) -> Selection:
    usual = params.rate if attack.cover_rate == "rate" else attack.cover_rate
    pool = ~np.isin(labels, targets) if allowed is None else np.isin(labels, allowed)
    pool[poison.rows] = False
    chosen = select(pool, usual if params.cover_rate == PER_TABLE else params.cover_rate, params.cap, rng)
    if chosen.requested and not chosen.pool:
        raise InputRefused(f"Expected covers for attack {params.attack!r}, but no sample may be one; set poison.cover_rate to 0.0 to go without.")
    return chosen


def _given(labels: np.ndarray, ranks: np.ndarray, attack: Attack, targets: Sequence[int], classes: int) -> np.ndarray:
    if attack.given == "own":
        return labels
    if attack.given == "next":
        return (labels + 1) % classes
    return np.asarray(targets)[ranks % len(targets)]
