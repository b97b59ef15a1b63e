"""`compact`: a small convolutional network that two CPU cores can train in a minute."""

import math

from torch import Tensor, nn

__all__ = ["compact", "doublings"]

SIDE = 48  # pixels, up to which the network is the one for 32: of it the last map is 6x6


class MaxOverMap(nn.Module):
    """Global max pool; `amax`, because adaptive pooling has no deterministic backward pass on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [b c h w] to [b c]."""
        return x.amax(dim=(2, 3))


def _block(c_in: int, c_out: int, pool: bool) -> list[nn.Module]:
    pooling: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), *pooling, nn.BatchNorm2d(c_out), nn.ReLU()]


def doublings(height: int, width: int) -> int:
    """Return how many times the shorter side of an image, in pixels, exceeds `SIDE`, in doublings: 0 up to 48, 1 up to 96, 2 up to 192."""
    return max(0, math.ceil(math.log2(min(height, width) / SIDE)))


def compact(classes: int, channels: int, width: int, stem: str, more: int = 0) -> nn.Module:
    """Return the network.

    It grows with the image by blocks in front, which pool: behind them the map is as large as that of a small image is, so that the layers
    that follow see a share of the image that does not shrink, and a pixel costs less the larger the image is. More blocks at the end
    would see as much, but every pixel would pay for all layers before them. A small trigger outlives the blocks: no layer steps by more
    than 2; each step behind the stem is a max-pool behind a 3x3 convolution, which keeps the strongest answer wherever it stands; and
    the last pool over the map takes one place of it as well as all.

    Args:
        classes: Outputs.
        channels: Input channels.
        width: w; the groups have w, 2w and 4w channels, and the blocks in front w.
        stem: `s2d`: a 4x4 convolution of stride 2 (fast, halves the resolution of a trigger); `conv3`: 3x3 of stride 1.
        more: Blocks in front, see `doublings`.
    """
    pooled = more > 0  # the block behind the stem is the first of them
    if stem == "s2d":
        first: list[nn.Module] = [nn.Conv2d(channels, 24, 4, stride=2, padding=1), nn.ReLU(), *_block(24, width, pooled)]
    else:
        first = _block(channels, width, pooled)
    front = [module for _ in range(more - 1) for module in _block(width, width, pool=True)]
    second = [*_block(width, 2 * width, pool=True), *_block(2 * width, 2 * width, pool=False)]
    third = [*_block(2 * width, 4 * width, pool=True), *_block(4 * width, 4 * width, pool=False)]
    return nn.Sequential(*first, *front, *second, *third, MaxOverMap(), nn.Linear(4 * width, classes))
