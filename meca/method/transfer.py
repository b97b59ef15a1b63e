"""What flagged samples have in common, and what it does to other images."""

import torch
from torch import Tensor, nn

from meca.training.images import Images, mean_image
from meca.training.trainer import as_input

__all__ = ["target_share", "trigger_estimate"]


def trigger_estimate(images: Images, flagged: Tensor, clean: Tensor, content: Tensor, classes: int) -> Tensor:
    """Return what the flagged samples have in common beyond their content: float32 [h w c] in [-1, 1].

    The mean of the flagged samples minus the mean of clean samples with the same mixture of contents.

    Args:
        images: uint8 [n h w c].
        flagged: bool [n], the suspects of one class.
        clean: bool [n], the kept samples.
        content: int64 [n], what the clean model sees in each sample.
        classes: Number of classes.
    """
    suspects = mean_image(images, flagged)
    matched = torch.zeros_like(suspects)
    weight = 0.0
    for c in range(classes):
        share = float((content[flagged] == c).float().mean())
        rows = clean & (content == c)
        if share > 0 and bool(rows.any()):
            matched += share * mean_image(images, rows)
            weight += share
    return (suspects - matched / max(weight, 1e-9)) / 255 if weight > 0 else torch.zeros_like(suspects)


@torch.inference_mode()
def target_share(model: nn.Module, images: Images, target: int, added: Tensor | None = None, batch_size: int = 256) -> float:
    """Return the share of images that the model gives to `target`, 0 where there are none.

    Args:
        model: In eval mode.
        images: uint8 [b h w c].
        target: The class.
        added: float32 [h w c] in [-1, 1], what is added to every image.
        batch_size: Samples a pass.
    """
    count, delta = 0, None if added is None else added.permute(2, 0, 1)
    for batch in images.split(batch_size) if len(images) else ():
        x = as_input(batch)
        count += int((model(x if delta is None else (x + delta).clamp(0, 1)).argmax(1) == target).sum())
    return count / max(1, len(images))
