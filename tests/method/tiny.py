"""A small task for the method's laws: four classes of 8x8 images that a narrow network learns in a few steps."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from meca.models import Architecture, Description, build
from meca.training.device import Device
from meca.training.engine import Data, Session
from meca.training.seeds import generator
from meca.training.trainer import Recipe

CLASSES = 4
RECIPE = Recipe(
    epochs=2, min_steps=0, batch_size=8, lr=0.05, momentum=0.9, weight_decay=5e-4, label_smoothing=0.0, augment="none", padding=2
)  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    return dataclasses.replace(RECIPE, **changes)


CPU = Device("cpu")


def train(model: nn.Module, images: Tensor, labels: Tensor, keep: Tensor, how: Recipe, purpose: str = "x", **session: Any) -> nn.Module:
    """Train with seed 0 on a CPU, if nothing else is said."""
    return Session(**{"seed": 0, "device": CPU, **session}).train(model, Data(images, labels), how, purpose, keep)


def samples(n: int = 64, seed: int = 0, size: int = 8, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Return uint8 [n h w c] and int64 [n]: the class is the bright quarter of the image, the rest is noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randperm(n, generator=rng) % CLASSES
    images = torch.randint(0, 160, (n, size, size, channels), generator=rng)
    half = size // 2
    for i, c in enumerate(labels.tolist()):
        top, left = divmod(c, 2)
        images[i, top * half : (top + 1) * half, left * half : (left + 1) * half] += 80
    return images.to(torch.uint8), labels


NARROW = Architecture("compact", "s2d", 4)


def description(network: Architecture = NARROW, size: int = 8, channels: int = 3, classes: int = CLASSES) -> Description:
    names = tuple(f"class {c}" for c in range(classes))
    return Description(network, names, size, size, channels, (0.4,) * channels, (0.25,) * channels)


def network(seed: int = 0, **changes: Any) -> nn.Module:
    """Return a fresh network whose BatchNorm statistics are not those of birth."""
    model = build(description(**changes), generator("test", seed))
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            mean, var = module.running_mean, module.running_var
            assert mean is not None and var is not None
            mean.copy_(torch.randn(mean.shape, generator=rng) * 0.1)
            var.copy_(torch.rand(var.shape, generator=rng) + 0.5)
    return model.eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    """Say whether two networks have the same bits, buffers included."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
