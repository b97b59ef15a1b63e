"""The attacks, by name. An attack is a trigger and a rule for labels; `meca.poisoning` plants it.

Every trigger maps uint8 [b h w c] to new uint8 [b h w c], draws nothing at random and leaves its input as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from meca.attacks.badnet import badnet
from meca.attacks.blend import blend
from meca.attacks.sig import sig

__all__ = ["ATTACKS", "Attack", "TriggerParams"]


class TriggerParams(Protocol):
    """The fields of params.yaml [poison] that triggers read."""

    @property
    def patch_size(self) -> int: ...  # noqa: D102
    @property
    def blend_alpha(self) -> float: ...  # noqa: D102
    @property
    def sig_delta(self) -> float: ...  # noqa: D102
    @property
    def sig_frequency(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Attack:
    """A named attack."""

    trigger: Callable[[np.ndarray, TriggerParams], np.ndarray]
    clean_label: bool  # poisons images of the target class and keeps their label


ATTACKS: dict[str, Attack] = {
    "badnet": Attack(lambda images, p: badnet(images, p.patch_size), clean_label=False),
    "blend": Attack(lambda images, p: blend(images, p.blend_alpha), clean_label=False),
    "sig": Attack(lambda images, p: sig(images, p.sig_delta, p.sig_frequency), clean_label=True),
}
