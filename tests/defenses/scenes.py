"""A small poisoned set: noise with labels by chance, and a white corner on images that are called class 1."""

import numpy as np
import torch
from torch import Tensor, nn

from meca.defenses import Judgement, Samples, Scene
from meca.metrics import auroc
from meca.models import Architecture, Description
from meca.training.device import Device

SIDE = 8


class Corner(nn.Module):
    """Its features are the mean of an image and of its corner; a bright corner makes class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 10.0]]))
            self.head.bias.copy_(torch.tensor([0.0, -7.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([x.mean((1, 2, 3)), x[:, :, -3:, -3:].mean((1, 2, 3))], 1))


def scene(n: int = 400, poisoned: int = 40, seed: int = 3) -> tuple[Scene, np.ndarray]:
    """Return a scene and which of its samples are poisoned: the first ones."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 140, (n, SIDE, SIDE, 3), np.uint8)
    labels = rng.integers(0, 2, n)
    images[:poisoned, -3:, -3:], labels[:poisoned] = 255, 1
    description = Description(Architecture("compact", "s2d", 8), ("0", "1"), SIDE, SIDE, 3, (0.4, 0.4, 0.4), (0.1, 0.1, 0.1))
    train = Samples(torch.from_numpy(images), torch.from_numpy(labels))
    return Scene(train, description, Corner().eval(), seed, Device("cpu"), rate=poisoned / n), np.arange(n) < poisoned


def apart(judgement: Judgement, truth: np.ndarray, among: np.ndarray | None = None) -> float:
    """Return the AUROC of the suspicion."""
    value = auroc(judgement.suspicion, truth, np.ones(len(truth), dtype=bool) if among is None else among)
    assert value is not None
    return value
