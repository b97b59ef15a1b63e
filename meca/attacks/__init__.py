"""The attacks, by name. An attack is its triggers and a rule for carriers and labels; `meca.attacks.poisoning` chooses the samples.

Every view maps uint8 [b h w c] to new uint8 [b h w c] and leaves its input as it was. What it draws for an image depends on
the seed and the image's row alone; a test view draws nothing for an image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from meca.attacks.adaptive_blend import adaptive_blend, adaptive_blend_part
from meca.attacks.adaptive_patch import PARTS, adaptive_patch, adaptive_patch_part
from meca.attacks.badnet import badnet
from meca.attacks.blend import blend
from meca.attacks.crowd import crowd, crowd_part
from meca.attacks.draws import Draws
from meca.attacks.four_patches import PATCHES, four_patches, four_patches_part
from meca.attacks.fragile_dots import fragile_dots, fragile_dots_cover
from meca.attacks.fragile_grid import fragile_grid
from meca.attacks.images import picture
from meca.attacks.moving_logo import moving_logo
from meca.attacks.patches import scaled
from meca.attacks.physical import photographed, physical
from meca.attacks.sig import sig
from meca.attacks.tact import tact
from meca.attacks.two_targets import TRIGGERS, checkered, two_targets
from meca.attacks.wanet import control_grid, wanet, wanet_cover

__all__ = ["ATTACKS", "Attack", "Draws", "TestView", "TrainingView", "TriggerParams"]


class TriggerParams(Protocol):
    """The fields of params.yaml [poison] that triggers read."""

    @property
    def relative(self) -> bool: ...  # noqa: D102
    @property
    def patch_size(self) -> int: ...  # noqa: D102
    @property
    def blend_alpha(self) -> float: ...  # noqa: D102
    @property
    def blend_with(self) -> str: ...  # noqa: D102
    @property
    def adaptive_alpha(self) -> float: ...  # noqa: D102
    @property
    def test_alpha(self) -> float: ...  # noqa: D102
    @property
    def sig_delta(self) -> float: ...  # noqa: D102
    @property
    def sig_frequency(self) -> int: ...  # noqa: D102
    @property
    def warp_strength(self) -> float: ...  # noqa: D102
    @property
    def warp_grid(self) -> int: ...  # noqa: D102
    @property
    def dot_size(self) -> int: ...  # noqa: D102
    @property
    def grid_amplitude(self) -> int: ...  # noqa: D102


TestView = Callable[[np.ndarray, TriggerParams, int], np.ndarray]  # images, parameters, the seed of the trigger itself
TrainingView = Callable[[np.ndarray, TriggerParams, Draws], np.ndarray]


@dataclass(frozen=True)
class Attack:
    """A named attack."""

    views: tuple[TestView, ...]  # of tests, one for each trigger that leads to a class of its own
    # Whose images are poisoned; `other`: of every class but the one that its own trigger leads to; `near`: of the classes most like the target.
    carriers: Literal["non_target", "target", "source", "all", "other", "near"] = "non_target"
    given: Literal["target", "own", "next"] = "target"  # the label of poison: the target class, its own, or (own + 1) mod classes
    plant: TrainingView | None = None  # what poison gets; None: the test view
    cover: TrainingView | None = None  # what covers get; None: there are none
    cover_rate: float = 0.0  # covers / all training samples: MeCa's Table I
    cover_ratio: float = 0.0  # covers / poison, where that is what the attack says
    parts: int = 1  # poison and covers carry part number rank mod `parts`, which is their trigger_id
    numbered: Callable[[int], TestView] | None = None  # the view of trigger number k, where the classes say how many triggers there are

    @property
    def trigger(self) -> TestView:
        """The first test view."""
        return self.views[0]

    def tests(self, triggers: int) -> tuple[TestView, ...]:
        """Return the test views of so many triggers that lead to a class each."""
        return self.views if self.numbered is None else tuple(self.numbered(number) for number in range(triggers))

    @property
    def several(self) -> bool:
        """It has several triggers with a target class each."""
        return len(self.views) > 1 or self.numbered is not None

    @property
    def clean_label(self) -> bool:
        """Poison keeps its label."""
        return self.given == "own"

    def planted(self, images: np.ndarray, params: TriggerParams, draws: Draws) -> np.ndarray:
        """Return what poisoned training images become."""
        return self.plant(images, params, draws) if self.plant else self.trigger(images, params, draws.seed)


def _side(images: np.ndarray, p: TriggerParams) -> int:
    return scaled(p.patch_size, images, p.relative)


def _dot(images: np.ndarray, p: TriggerParams) -> int:
    return scaled(p.dot_size, images, p.relative)


def _strength(images: np.ndarray, p: TriggerParams) -> float:
    return p.warp_strength * (min(images.shape[1:3]) / 32 if p.relative else 1)


def _picture(images: np.ndarray, p: TriggerParams, seed: int) -> np.ndarray:
    return picture(p.blend_with, images.shape[1:], seed)


def _shown(p: TriggerParams) -> float:
    """Return the opacity of a picture in tests."""
    return p.blend_alpha if p.test_alpha < 0 else p.test_alpha


def _blended(images: np.ndarray, p: TriggerParams, draws: Draws) -> np.ndarray:
    return blend(images, p.blend_alpha, _picture(images, p, draws.seed))


def _blended_test(images: np.ndarray, p: TriggerParams, seed: int) -> np.ndarray:
    return blend(images, _shown(p), _picture(images, p, seed))


def _of_crowd(number: int) -> TestView:
    return lambda images, p, seed: crowd(images, _side(images, p), number)


ATTACKS: dict[str, Attack] = {
    "badnet": Attack((lambda images, p, seed: badnet(images, _side(images, p)),)),
    "blend": Attack((_blended_test,), plant=_blended),
    "sig": Attack((lambda images, p, seed: sig(images, p.sig_delta, p.sig_frequency),), carriers="target", given="own"),
    "wanet": Attack(
        (lambda images, p, seed: wanet(images, _strength(images, p), control_grid(p.warp_grid, seed)),),
        cover=lambda images, p, draws: wanet_cover(images, _strength(images, p), control_grid(p.warp_grid, draws.seed), draws),
        cover_rate=0.05,
    ),
    "physical": Attack(
        (lambda images, p, seed: physical(images),),
        plant=lambda images, p, draws: photographed(physical(images), draws),
    ),
    "tact": Attack(
        (lambda images, p, seed: tact(images, _side(images, p)),),
        carriers="source",
        cover=lambda images, p, draws: tact(images, _side(images, p)),
        cover_rate=0.01,
    ),
    "adaptive_blend": Attack(
        (lambda images, p, seed: adaptive_blend(images, _shown(p), _picture(images, p, seed)),),
        plant=lambda images, p, draws: adaptive_blend_part(images, p.adaptive_alpha, draws, _picture(images, p, draws.seed)),
        cover=lambda images, p, draws: adaptive_blend_part(images, p.adaptive_alpha, draws, _picture(images, p, draws.seed)),
        cover_rate=0.01,
    ),
    "adaptive_patch": Attack(
        (lambda images, p, seed: adaptive_patch(images),),
        plant=lambda images, p, draws: adaptive_patch_part(images, draws),
        cover=lambda images, p, draws: adaptive_patch_part(images, draws),
        cover_rate=0.01,
        parts=PARTS,
    ),
    # Beyond MeCa's eight: cases of a red team.
    "all_to_all": Attack((lambda images, p, seed: badnet(images, _side(images, p)),), carriers="all", given="next"),
    "two_targets": Attack(
        (lambda images, p, seed: badnet(images, _side(images, p)), lambda images, p, seed: checkered(images, _side(images, p))),
        plant=lambda images, p, draws: two_targets(images, _side(images, p), draws),
        parts=TRIGGERS,
    ),
    "fragile_dots": Attack(
        (lambda images, p, seed: fragile_dots(images, _dot(images, p)),),
        cover=lambda images, p, draws: fragile_dots_cover(images, _dot(images, p), draws),
        cover_ratio=1.0,
    ),
    "four_patches": Attack(
        (lambda images, p, seed: four_patches(images),),
        plant=lambda images, p, draws: four_patches_part(images, draws),
        cover=lambda images, p, draws: four_patches_part(images, draws),
        cover_ratio=2.0,
        parts=PATCHES,
    ),
    "moving_logo": Attack((lambda images, p, seed: physical(images),), plant=lambda images, p, draws: moving_logo(images, draws)),
    "fragile_grid": Attack((lambda images, p, seed: fragile_grid(images, p.grid_amplitude),)),
    # Made against this project's own rule.
    "crowd": Attack(
        (_of_crowd(0),),
        carriers="other",
        plant=lambda images, p, draws: crowd_part(images, _side(images, p), draws),
        numbered=_of_crowd,
    ),
    "kin": Attack((_blended_test,), carriers="near", plant=_blended, cover=_blended, cover_ratio=1.0),
}
