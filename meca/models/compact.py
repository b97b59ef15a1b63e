"""`compact`: a small convolutional network that two CPU cores can train in a minute."""

from torch import Tensor, nn

__all__ = ["compact"]


class MaxOverMap(nn.Module):
    """Global max pool; `amax`, because adaptive pooling has no deterministic backward pass on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [b c h w] to [b c]."""
        return x.amax(dim=(2, 3))


def _block(c_in: int, c_out: int, pool: bool) -> list[nn.Module]:
    pooling: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), *pooling, nn.BatchNorm2d(c_out), nn.ReLU()]


def compact(classes: int, channels: int, width: int, stem: str) -> nn.Module:
    """Return the network.

    Args:
        classes: Outputs.
        channels: Input channels.
        width: w; the groups have w, 2w and 4w channels.
        stem: `s2d`: a 4x4 convolution of stride 2 (fast, halves the resolution of a trigger); `conv3`: 3x3 of stride 1.
    """
    if stem == "s2d":
        first: list[nn.Module] = [nn.Conv2d(channels, 24, 4, stride=2, padding=1), nn.ReLU(), *_block(24, width, pool=False)]
    else:
        first = _block(channels, width, pool=False)
    second = [*_block(width, 2 * width, pool=True), *_block(2 * width, 2 * width, pool=False)]
    third = [*_block(2 * width, 4 * width, pool=True), *_block(4 * width, 4 * width, pool=False)]
    return nn.Sequential(*first, *second, *third, MaxOverMap(), nn.Linear(4 * width, classes))
