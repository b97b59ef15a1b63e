"""Planting an attack: which samples carry the trigger, and what is written down about it.

The sampling rules are those of the field's stricter half: the poison rate counts all training samples, the poisoned
ones are a prefix of one permutation (poison at 1 % is part of poison at 5 %), a cap is never silent.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from meca.errors import InputRefused, UsageError

__all__ = ["PoisonParams", "Selection", "select"]


@dataclass(frozen=True)
class PoisonParams:
    """Group `poison` of params.yaml."""

    attack: Literal["none", "badnet", "blend", "sig"]
    rate: float
    target_class: int
    carrier: Literal["non_target", "all"]
    cap: float
    patch_size: int
    blend_alpha: float
    sig_delta: float
    sig_frequency: int

    def __post_init__(self) -> None:
        """Refuse triggers without meaning."""
        if self.patch_size < 1 or self.sig_frequency < 1:
            raise UsageError(
                f"params.yaml: expected poison.patch_size and poison.sig_frequency to be 1 or more, got {self.patch_size} and {self.sig_frequency}."
            )
        if not 0 < self.blend_alpha <= 1:
            raise UsageError(f"params.yaml: expected poison.blend_alpha in (0, 1], got {self.blend_alpha}.")


@dataclass(frozen=True)
class Selection:
    """Which training rows are poisoned, and how many were asked for."""

    rows: np.ndarray  # int64, sorted
    requested: int
    pool: int

    @property
    def capped(self) -> bool:
        """Fewer samples are poisoned than the rate asks for."""
        return len(self.rows) < self.requested


def select(labels: np.ndarray, classes: int, params: PoisonParams, clean_label: bool, rng: np.random.Generator) -> Selection:
    """Choose the training samples that carry the trigger.

    Args:
        labels: int64 [n], the training labels.
        classes: Number of classes.
        params: Rate, target class, carriers, cap.
        clean_label: The attack poisons images of the target class.
        rng: Of this role alone.

    Raises:
        InputRefused: The target class does not exist, or there is no carrier.
    """
    if not 0 <= params.target_class < classes:
        raise InputRefused(f"Expected poison.target_class in 0..{classes - 1}, got {params.target_class}; change it in params.yaml.")
    if not 0 < params.rate < 1 or not 0 < params.cap <= 1:
        raise InputRefused(
            f"Expected poison.rate in (0, 1) and poison.cap in (0, 1], got {params.rate} and {params.cap}; change them in params.yaml."
        )
    if clean_label:
        pool = labels == params.target_class
    elif params.carrier == "non_target":
        pool = labels != params.target_class
    else:
        pool = np.ones(len(labels), dtype=bool)
    requested = int(np.floor(len(labels) * params.rate + 1e-9))  # int() alone would turn 100 * 0.29 into 28
    allowed = min(requested, int(np.floor(params.cap * pool.sum())))
    if allowed == 0:
        raise InputRefused(f"Expected samples to poison, but the pool of carriers has {int(pool.sum())} and the rate asks for {requested}.")
    order = rng.permutation(len(labels))
    rows = order[pool[order]][:allowed]
    return Selection(rows=np.sort(rows), requested=requested, pool=int(pool.sum()))
