"""A positive control: known triggers planted into copies of a set, so that what the detection finds there says what it can find here.

Each planted trigger leads to a class of its own, which is drawn by lot, as are the samples that carry it. A copy holds as many triggers as
do not disturb each other: at most a third of the classes are targets, no trigger stands in a copy twice, and most samples stay as they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from meca.attacks import ATTACKS, Draws
from meca.attacks.planting import together
from meca.attacks.poisoning import Selection, select
from meca.data.store import Store
from meca.errors import check_fields

__all__ = ["ControlParams", "Drawn", "Planting", "Trigger", "draw", "held_out", "packed", "planted", "shown"]

Kind = Literal["badnet", "blend", "sig"]

TARGET, CARRIER, PROBE = 1, 2, 3  # the role is the second word of a seed, so that no draw moves another


@dataclass(frozen=True)
class Trigger:
    """The fields that triggers read; those that no kind of the control reads have the value of params.yaml."""

    patch_size: int
    blend_alpha: float
    sig_delta: float
    sig_frequency: int
    relative: bool = True  # a patch of 3 pixels is a trigger at 32 pixels, and none at 224
    blend_with: str = "pattern"
    adaptive_alpha: float = 0.2
    test_alpha: float = -1.0
    warp_strength: float = 0.5
    warp_grid: int = 4
    dot_size: int = 3
    grid_amplitude: int = 6


@dataclass(frozen=True)
class ControlParams:
    """Group `control` of params.yaml."""

    when: Literal["no_evidence", "always", "never"]
    kinds: tuple[Kind, ...]
    rates: tuple[float, ...]
    tries: int
    min_asr: float
    min_planted: int
    max_planted_share: float
    classes_per_target: int
    cap: float
    probe: int
    patch_size: int
    blend_alpha: float
    sig_delta: float
    sig_frequency: int

    def __post_init__(self) -> None:
        """Refuse controls without meaning."""
        check_fields(
            self,
            ("kinds", "to be one or more, each once", 0 < len(self.kinds) == len(set(self.kinds))),
            (
                "rates",
                "to be one or more in (0, 0.5), each once",
                0 < len(self.rates) == len(set(self.rates)) and all(0 < r < 0.5 for r in self.rates),
            ),
            ("tries", "in 1..100", 1 <= self.tries <= 100),
            ("min_asr", "in (0, 1]", 0 < self.min_asr <= 1),
            ("min_planted", ">= 1", self.min_planted >= 1),
            ("max_planted_share", "in (0, 1)", 0 < self.max_planted_share < 1),
            ("classes_per_target", ">= 1", self.classes_per_target >= 1),
            ("cap", "in (0, 1]", 0 < self.cap <= 1),
            ("probe", ">= 1", self.probe >= 1),
            ("patch_size", ">= 1", self.patch_size >= 1),
            ("blend_alpha", "in (0, 1]", 0 < self.blend_alpha <= 1),
            ("sig_delta", "> 0", self.sig_delta > 0),
            ("sig_frequency", ">= 1", self.sig_frequency >= 1),
        )

    @property
    def trigger(self) -> Trigger:
        """The fields that triggers read."""
        return Trigger(self.patch_size, self.blend_alpha, self.sig_delta, self.sig_frequency)


@dataclass(frozen=True)
class Planting:
    """One trigger in one copy, before anything is drawn."""

    kind: Kind
    rate: float  # of all samples of the copy
    attempt: int  # 0 .. tries - 1


@dataclass(frozen=True, eq=False)
class Drawn:
    """One trigger in one copy: where it leads, and who carries it."""

    planting: Planting
    target: int
    chosen: Selection


def packed(params: ControlParams, classes: int) -> list[tuple[Planting, ...]]:
    """Return what is planted into each copy, in as few copies as the limits allow (first fit, the largest first).

    Args:
        params: The control.
        classes: Number of classes that have samples.
    """
    targets = max(1, classes // params.classes_per_target)
    copies: list[list[Planting]] = []
    for rate in sorted(params.rates, reverse=True):
        for attempt in range(params.tries):
            for kind in params.kinds:
                room = (
                    copy
                    for copy in copies
                    if len(copy) < targets
                    and all(other.kind != kind for other in copy)  # one trigger that leads to two classes leads to neither
                    and sum(other.rate for other in copy) + rate <= params.max_planted_share + 1e-9
                )
                copy = next(room, None)
                if copy is None:
                    copies.append(copy := [])
                copy.append(Planting(kind, rate, attempt))
    return [tuple(copy) for copy in copies]


def draw(copies: Sequence[Sequence[Planting]], labels: np.ndarray, classes: int, params: ControlParams, seed: int) -> Iterator[tuple[Drawn, ...]]:
    """Yield for each copy where its triggers lead and who carries them; two tries of a kind and rate have targets of their own where they can.

    Args:
        copies: From `packed`.
        labels: int64 [n], of the samples of a copy.
        classes: Number of classes.
        params: The control.
        seed: Of the run.
    """
    present = np.flatnonzero(np.bincount(labels, minlength=classes))
    before: dict[tuple[str, float], set[int]] = {}
    for number, copy in enumerate(copies):
        order: list[int] = np.random.default_rng([seed, TARGET, number]).permutation(present).tolist()
        targets: list[int] = []
        for each in copy:
            used = before.setdefault((each.kind, each.rate), set())
            left = [label for label in order if label not in targets]
            targets.append(next((label for label in left if label not in used), left[0]))
            used.add(targets[-1])
        free, found = np.ones(len(labels), dtype=bool), list[Drawn]()
        for place, (each, target) in enumerate(zip(copy, targets, strict=True)):
            # An image of the target of another trigger would show that trigger's network a second one.
            pool = free & (labels == target if ATTACKS[each.kind].clean_label else ~np.isin(labels, targets))
            requested = int(np.floor(len(labels) * each.rate + 1e-9))
            chosen = select(pool, requested, params.cap, np.random.default_rng([seed, CARRIER, number, place]))
            free[chosen.rows] = False
            found.append(Drawn(each, target, chosen))
        yield tuple(found)


def planted(store: Store, rows: np.ndarray, drawn: Drawn, params: ControlParams, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield blocks of the carriers: their rows in the copy, they with the trigger, uint8 [b h w c], and whether it changes a pixel of them.

    Args:
        store: The set.
        rows: int64 [n], the row of the store for each sample of the copy.
        drawn: The trigger and its carriers.
        params: The control.
        seed: Of the run.
    """
    attack, chosen, size = ATTACKS[drawn.planting.kind], drawn.chosen, together(store.images.shape[1:])
    for part in (slice(start, start + size) for start in range(0, len(chosen.rows), size)):
        pixels = np.asarray(store.images[rows[chosen.rows[part]]])
        images = attack.planted(pixels, params.trigger, Draws(seed, chosen.rows[part], chosen.ranks[part]))
        yield chosen.rows[part], images, not np.array_equal(images, pixels)


def shown(images: np.ndarray, kind: Kind, params: ControlParams, seed: int) -> np.ndarray:
    """Return images as they would be shown to the network by whoever planted the trigger, uint8 [b h w c]."""
    return ATTACKS[kind].trigger(images, params.trigger, seed)


def held_out(store: Store, rows: np.ndarray, carries: np.ndarray, drawn: Drawn, params: ControlParams, seed: int) -> np.ndarray:
    """Return rows of the store with images of other classes that no network has seen with a trigger, int64, at most `params.probe`.

    They are of the test split where it has some, else of the samples of the copy.

    Args:
        store: The set.
        rows: int64 [n], the row of the store for each sample of the copy.
        carries: bool [n], the samples that carry a trigger in the copy.
        drawn: The trigger.
        params: The control.
        seed: Of the run.
    """
    tested = np.arange(store.info.n_train, store.info.n)
    found = tested[store.labels[tested] != drawn.target]
    if len(found) == 0:
        found = rows[~carries & (store.labels[rows] != drawn.target)]
    rng = np.random.default_rng([seed, PROBE, drawn.target])
    return np.sort(rng.permutation(found)[: params.probe])
