"""WaNet: the image is warped a little, everywhere, by one smooth field.

Nguyen, Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021, https://arxiv.org/abs/2102.10369.
The original draws covers anew in each batch and so controls training. Here both kinds are written into the set once, as an
attacker who only gives data away can, and every cover has noise of its own.
"""

import numpy as np

from meca.attacks.draws import TRIGGER, Draws
from meca.attacks.warps import bicubic, sampled

__all__ = ["control_grid", "wanet", "wanet_cover"]


def control_grid(k: int, seed: int) -> np.ndarray:
    """Return P ~ U(-1, 1) divided by mean |P|, float64 [2 k k]: how far to the right and down each point is read.

    Args:
        k: Points along a side.
        seed: Of the run: the trigger is drawn once for a poisoned set.
    """
    grid = np.random.default_rng([seed, TRIGGER]).uniform(-1, 1, (2, k, k))
    return grid / np.abs(grid).mean()


def wanet(images: np.ndarray, strength: float, grid: np.ndarray) -> np.ndarray:
    """Return the warped images T(x), uint8 [b h w c].

    In coordinates of [-1, 1], corners on corners: g = clamp(G0 + s U / size, -1, 1), with G0 the identity and U the control
    grid upsampled bicubically; T(x) reads x at g, bilinearly. At any size that is a shift of about 0.3 pixels with s = 0.5.

    Args:
        images: uint8 [b h w c].
        strength: s.
        grid: [2 k k], see `control_grid`.
    """
    right, down = _field(images, strength, grid)
    return _read(images, right[None], down[None])


def wanet_cover(images: np.ndarray, strength: float, grid: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the images warped by the field plus noise, g_c = clamp(g + U(-1, 1) / size, -1, 1), uint8 [b h w c].

    Args:
        images: uint8 [b h w c].
        strength: s.
        grid: [2 k k], see `control_grid`.
        draws: The rows that the noise of each image depends on.
    """
    if len(images) == 0:
        return images.copy()
    height, width = images.shape[1:3]
    right, down = _field(images, strength, grid)
    noise = draws.each(lambda rng: rng.uniform(-1, 1, (2, height, width)))
    return _read(images, np.clip(right + noise[:, 0] / width, -1, 1), np.clip(down + noise[:, 1] / height, -1, 1))


def _field(images: np.ndarray, strength: float, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return g in [-1, 1], float64 [h w] for columns and for rows."""
    height, width = images.shape[1:3]
    right, down = (bicubic(plane, height, width) for plane in grid)
    return (
        np.clip(np.linspace(-1, 1, width)[None, :] + strength * right / width, -1, 1),
        np.clip(np.linspace(-1, 1, height)[:, None] + strength * down / height, -1, 1),
    )


def _read(images: np.ndarray, right: np.ndarray, down: np.ndarray) -> np.ndarray:
    height, width = images.shape[1:3]
    return np.rint(sampled(images, (down + 1) / 2 * (height - 1), (right + 1) / 2 * (width - 1))).astype(np.uint8)
