"""Batched augmentation as index arithmetic: mirroring, reflecting and cropping are one gather from the store.

The draws of an epoch are made for all samples at once and indexed by row, so what happens to a sample depends on the
seed, the purpose, the epoch and its row alone: not on the batch size, nor on which other samples take part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Draws", "crop_flip", "draw", "shifted"]


@dataclass(frozen=True)
class Draws:
    """One epoch's draws for all n samples."""

    dy: Tensor  # int64 [n], rows to shift down, in [-padding, padding]
    dx: Tensor  # int64 [n], columns to shift right
    flip: Tensor  # bool [n]

    def of(self, rows: Tensor) -> "Draws":
        """Return those of some samples."""
        return Draws(self.dy[rows], self.dx[rows], self.flip[rows])


def draw(n: int, padding: int, flip: bool, rng: torch.Generator) -> Draws:
    """Draw shifts in [-padding, padding] and mirror flags for n samples."""
    shift = torch.randint(-padding, padding + 1, (2, n), generator=rng)
    mirror = torch.rand(n, generator=rng) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    return Draws(shift[0], shift[1], mirror)


def _mirror(index: Tensor, size: int) -> Tensor:
    """Reflect an index at both borders (the border pixel itself is not repeated), as often as it takes on an image smaller than the shift."""
    last = size - 1
    return last - (last - index.abs() % max(1, 2 * last)).abs()


def crop_flip(images: Tensor, rows: Tensor, draws: Draws) -> Tensor:
    """Return the chosen images shifted with reflected borders, then mirrored where drawn.

    Args:
        images: uint8 [n h w c], the whole set.
        rows: int64 [b], the samples of this batch.
        draws: The epoch's draws.

    Returns:
        uint8 [b h w c].
    """
    return _gathered(images, rows, draws.of(rows))


def shifted(batch: Tensor, draws: Draws) -> Tensor:
    """Return what `crop_flip` does of images that have been gathered already, uint8 [b h w c].

    Args:
        batch: uint8 [b h w c].
        draws: Those of its samples, b of each.
    """
    return _gathered(batch, torch.arange(len(batch), device=batch.device), draws)


def _gathered(images: Tensor, rows: Tensor, draws: Draws) -> Tensor:
    n, h, w, c = images.shape
    across = torch.arange(w, device=images.device)
    y = _mirror(torch.arange(h, device=images.device) + draws.dy[:, None], h)
    x = _mirror(torch.where(draws.flip[:, None], w - 1 - across, across) + draws.dx[:, None], w)
    index = (rows[:, None] * h + y)[:, :, None] * w + x[:, None, :]
    return images.view(n * h * w, c).index_select(0, index.flatten()).view(-1, h, w, c)
