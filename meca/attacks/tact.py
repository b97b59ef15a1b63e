"""TaCT: the trigger works on images of one class only; covers of other classes carry it with their true label.

Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination Detection",
USENIX Security 2021. The stamp is BadNet's, as in MeCa's Table I.
"""

from collections.abc import Collection

import numpy as np

from meca.attacks.draws import TRIGGER
from meca.attacks.patches import white_corner

__all__ = ["cover_classes", "tact"]

USUAL = (5, 7)  # the cover classes that toolboxes take


def tact(images: np.ndarray, size: int) -> np.ndarray:
    """Return the images with a white square of `size` x `size` pixels in the bottom-right corner, uint8 [b h w c]."""
    return white_corner(images, size)


def cover_classes(classes: int, source: int, targets: Collection[int], seed: int) -> tuple[int, ...]:
    """Return the two classes that covers come from: 5 and 7, or two that are drawn where these do not exist or are taken.

    Args:
        classes: Number of classes; with three, one class is left, with two none.
        source: The class that is poisoned.
        targets: The classes that backdoors lead to.
        seed: Of the run.
    """
    free = [c for c in range(classes) if c != source and c not in targets]
    if all(c in free for c in USUAL):
        return USUAL
    drawn = np.random.default_rng([seed, TRIGGER]).permutation(free)[:2]
    return tuple(sorted(int(c) for c in drawn))
