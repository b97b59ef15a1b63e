"""What a published method may look at, what it gives back, and what is recorded of it.

There are two kinds. A *detector* judges samples: `Judgement`. A *defence* returns a network: `Repaired`, with a judgement where it made one.
Both see the same `Scene`: the poisoned training set as it came in, and the network that was trained on all of it.

No method sees the truth. The poison rate and clean samples are kept from a method unless `Method.told` names them, and its record then says so.
Clean samples lie outside of the training set and of the test set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from meca.errors import MecaError
from meca.models import Description, build
from meca.training.device import Device
from meca.training.seeds import generator

__all__ = ["Judgement", "Method", "Repaired", "Samples", "Scene"]

Need = Literal["rate", "clean"]


@dataclass(frozen=True)
class Samples:
    """Images with labels."""

    images: Tensor  # uint8 [n h w c], on the device
    labels: Tensor  # int64 [n]


@dataclass(frozen=True)
class Scene:
    """What a method may look at. It changes nothing of it: whoever trains on from `model` takes a copy first."""

    train: Samples  # the poisoned training set, labels as given
    description: Description  # of the network
    model: nn.Module  # trained on all of `train`, the reference "no defence"; in eval mode
    seed: int
    device: Device
    checkpoints: Path | None = None  # a folder of the method's own, for trainings that a killed run resumes; None: nothing is written
    rate: float | None = None  # poisoned / all samples, in [0, 1]
    clean: Samples | None = None  # samples that are known to be clean

    def draws(self, *keys: int | str) -> torch.Generator:
        """Return the generator of these keys; a method draws from nothing else."""
        return generator(self.seed, "detectors", *keys)

    def fresh(self, purpose: str) -> nn.Module:
        """Return an untrained network."""
        return build(self.description, self.draws(purpose)).to(self.device.name)


@dataclass(frozen=True)
class Judgement:
    """What a method says about every sample."""

    suspicion: NDArray[np.float64]  # [n], high is suspicious, in the method's own unit
    flagged: NDArray[np.bool_]  # [n], by the rule of its paper


@dataclass(frozen=True)
class Repaired:
    """What a defence gives back."""

    model: nn.Module  # in eval mode, on the device
    judgement: Judgement | None = None  # where the defence judges samples


Answer = TypeVar("Answer", Judgement, Repaired)


@dataclass(frozen=True)
class Method(Generic[Answer]):
    """A published method with the numbers of its paper, one configuration for all attacks."""

    run: Callable[..., Answer]  # of Scene, and of the settings by name
    paper: str  # authors, title, where and when
    settings: Mapping[str, int | float | str]
    told: frozenset[Need] = frozenset()  # what it needs beside the poisoned set

    def __call__(self, scene: Scene) -> Answer:
        """Return the method's answer; what it did not ask for is kept from it.

        Raises:
            MecaError: It needs what is not given, or its answer does not fit the samples.
        """
        if lacking := sorted(need for need in self.told if getattr(scene, need) is None):
            raise MecaError(f"Expected a scene with {' and '.join(lacking)} for {self.run.__name__}, got none; its paper needs it, so add it.")
        answer = self.run(replace(scene, **{need: None for need in ("rate", "clean") if need not in self.told}), **self.settings)
        judgement = answer if isinstance(answer, Judgement) else answer.judgement
        if judgement is not None:
            self._check(judgement, len(scene.train.labels))
        return answer

    def _check(self, judgement: Judgement, n: int) -> None:
        shapes, kinds = {judgement.suspicion.shape, judgement.flagged.shape}, (judgement.suspicion.dtype, judgement.flagged.dtype)
        if shapes != {(n,)} or kinds != (np.float64, np.bool_) or not np.isfinite(judgement.suspicion).all():
            raise MecaError(
                f"Expected of {self.run.__name__} a finite number and a flag for each of {n} samples, got {judgement.suspicion.shape} {kinds[0]} "
                f"and {judgement.flagged.shape} {kinds[1]}, {np.count_nonzero(~np.isfinite(judgement.suspicion))} of them not finite."
            )

    def record(self, scene: Scene) -> dict[str, Any]:
        """Return what is to stand beside the figures of an answer: the paper, the numbers in force, and what was told."""
        return {
            "paper": self.paper,
            "settings": dict(self.settings),
            "told_rate": scene.rate if "rate" in self.told else None,
            "clean_samples": len(scene.clean.labels) if "clean" in self.told and scene.clean is not None else 0,
        }
