"""The set that a network is trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from meca.training.images import Images

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """The whole set as tensors on one device, so that choosing samples is indexing; images that do not fit there come in batches."""

    images: Images  # uint8 [n h w c]
    labels: Tensor  # int64 [n]
    weight: Tensor | None = None  # float32 [n]: 1 learns, negative unlearns, 0 ignores; all 1 if None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the labels are, where batches of images come, and where a model has to be."""
        return self.labels.device
