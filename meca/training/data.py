"""The set that a network is trained on."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """The whole set as tensors on one device, so that choosing samples is indexing."""

    images: Tensor  # uint8 [n h w c]
    labels: Tensor  # int64 [n]
    weight: Tensor | None = None  # float32 [n]: 1 learns, negative unlearns, 0 ignores; all 1 if None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.labels)
