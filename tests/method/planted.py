"""A small set of ten classes that a narrow network learns in seconds, and what can be planted in it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meca.method.split import Asked, Found, SplitParams, detect
from meca.models import Architecture, Network, build
from meca.training.engine import Data, Session
from meca.training.seeds import generator
from meca.training.trainer import Recipe
from tests.method.tiny import CPU, description, recipe

CLASSES, EACH, SIZE = 10, 45, 16
WIDTH = 8
FULL = recipe(epochs=8, batch_size=16, lr=0.1)
SHORT = recipe(epochs=8, batch_size=16, lr=0.05)
PARAMS = SplitParams(
    rule="tests", groups=5, recipe=recipe(epochs=6, batch_size=16, lr=0.1), typical=(0.8, 0.1), lower_content=0.25, lower_flips=0.5, end=0.15,
    probe=60,
    least_content=0.05, least_flips=0.05, spread=0.5, false_discovery=0.01, rounds=3, cap_flagged=0.3, cap_left=0.3,
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """A set, and which samples were planted."""

    images: Tensor  # uint8 [n h w c]
    labels: Tensor  # int64 [n]
    poison: Tensor  # bool [n]


def clean(each: int = EACH, classes: int = CLASSES, seed: int = 0) -> Planted:
    """Return images of which each class is a faint pattern of its own, in noise: a square that is planted is stronger than any content."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randperm(each * classes, generator=rng) % classes
    patterns = torch.randint(0, 2, (classes, 4, 4, 3), generator=torch.Generator().manual_seed(7)).float()
    wide = patterns.repeat_interleave(4, 1).repeat_interleave(4, 2)
    strength = 20 + 15 * torch.rand(len(labels), 1, 1, 1, generator=rng)
    images = 80 + wide[labels] * strength + 20 * torch.randn(len(labels), SIZE, SIZE, 3, generator=rng)
    return Planted(images.clamp(0, 235).to(torch.uint8), labels, torch.zeros(len(labels), dtype=torch.bool))


def plant(made: Planted, target: int, count: int, corner: int = 0, right: bool = False) -> Planted:
    """Put a white square in one corner of some images of other classes, and give them the label of the target; or plant its own images."""
    images, labels, poison = made.images.clone(), made.labels.clone(), made.poison.clone()
    pool = torch.nonzero(((labels == target) if right else (labels != target)) & ~poison)[:, 0]
    rows = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(corner))[:count]]
    top, left = divmod(corner, 2)
    images[rows, 12 * top : 12 * top + 4, 12 * left : 12 * left + 4] = 255
    labels[rows] = target
    poison[rows] = True
    return Planted(images, labels, poison)


def ask(made: Planted, params: SplitParams = PARAMS, full: Recipe = FULL, classes: int = CLASSES) -> Found:
    """Return what `detect` finds; `enhance` has seen nothing."""
    words = description(Architecture("compact", "s2d", WIDTH), SIZE, classes=classes)
    network = Network(build(words, generator("planted")), words)
    flat, data = {"low": np.zeros(len(made.labels))}, Data(made.images, made.labels)
    return detect(Asked(Session(0, CPU), network, data, flat, params, full, SHORT, lambda *_: None))
