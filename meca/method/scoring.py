"""The score of the paper: how much a prediction moves when a few pixels are pushed against the given label.

`s(x) = KL(f(x) || f(clip(x + m * eps * sign(grad_x CE(f(x), y)), 0, 1)))`, with `m` a mask of small square patches.
Low is suspicious: a trigger dominates the prediction, so a push elsewhere hardly changes it.

Pu, Chen, Zhou, Feng, Li, Hu, Ji, "Mellivora Capensis: A Backdoor-Free Training Framework on the Poisoned Dataset
without Auxiliary Data", 2024, https://arxiv.org/abs/2405.12719. The loss whose gradient is taken is the cross-entropy to
the given label: at no perturbation the KL itself has no gradient.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meca.training.images import Images

__all__ = ["Masks", "consistency", "folded", "masks_by_sample", "patch_masks", "ranks", "score"]

Masks = Tensor | Callable[[int], Tensor]  # float32 [k 1 h w] for every sample; or from a number b the masks of the next b samples, [k b 1 h w]


def patch_masks(count: int, height: int, width: int, patch: int, share: float, rng: torch.Generator) -> Tensor:
    """Return random masks of square patches, float32 [count 1 h w] in {0, 1}.

    Args:
        count: Number of masks.
        height: Pixels.
        width: Pixels.
        patch: Side of a patch in pixels.
        share: Probability that a patch of the grid is in the mask; 0 stands for exactly one patch at a random place.
        rng: Source of the draws.
    """
    masks = torch.zeros(count, 1, height, width)
    if share == 0:
        y = torch.randint(0, height - patch + 1, (count,), generator=rng)
        x = torch.randint(0, width - patch + 1, (count,), generator=rng)
        for k in range(count):
            masks[k, :, y[k] : y[k] + patch, x[k] : x[k] + patch] = 1
        return masks
    rows, columns = -(-height // patch), -(-width // patch)
    grid = (torch.rand(count, 1, rows, columns, generator=rng) < share).float()
    return grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[:, :, :height, :width].contiguous()


def masks_by_sample(count: int, height: int, width: int, patch: int, share: float, rng: torch.Generator) -> Callable[[int], Tensor]:
    """Return a function that draws the masks of the next b samples, float32 [count b 1 h w] in {0, 1}.

    The sizes of the batches change no mask: it depends on the place of its sample alone.

    Args:
        count: Number of masks of a sample.
        height: Pixels.
        width: Pixels.
        patch: Side of a patch in pixels.
        share: See `patch_masks`.
        rng: Source of the draws; sample after sample.
    """
    across = width - patch + 1

    def draw(b: int) -> Tensor:
        if share == 0:
            corner = torch.randint(0, (height - patch + 1) * across, (b, count, 1), generator=rng)  # one number a mask: a pair would depend on b
            below, beside = torch.arange(height) - corner // across, torch.arange(width) - corner % across
            own = ((below >= 0) & (below < patch))[..., None] & ((beside >= 0) & (beside < patch))[..., None, :]
        else:
            grid = torch.rand(b, count, -(-height // patch), -(-width // patch), generator=rng) < share
            own = grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[:, :, :height, :width]
        return own.transpose(0, 1)[:, :, None].float()

    return draw


def consistency(model: nn.Module, x: Tensor, y: Tensor, masks: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the score of a batch for each mask, and the logits of the unchanged batch.

    One gradient, with respect to the input alone, serves all masks, and the first forward pass is used again: 2 + K passes
    forward instead of 3 K.

    Args:
        model: In eval mode; its parameters take no part in the gradient.
        x: float32 [b c h w] in [0, 1].
        y: int64 [b], the given labels.
        masks: float32 [k 1 h w] for all of the batch, or [k b 1 h w].
        eps: Step in [0, 1].

    Returns:
        float32 [k b], not negative but for rounding, and logits [b classes].
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    with torch.no_grad():
        log_p = logits.detach().double().log_softmax(1)  # float32 noise near 1e-7 would turn small scores into ties
        step = eps * gradient.sign()
        moved = (model((x.detach() + mask * step).clamp(0, 1)).double().log_softmax(1) for mask in masks)
        kl = [(log_p.exp() * (log_p - log_q)).sum(1) for log_q in moved]
    return torch.stack(kl).float(), logits.detach().float()


def folded(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose BatchNorm layers are part of the convolutions before them, or the model itself.

    A deep network scores 1.2 to 2 times as fast; the logits differ by rounding. Where a BatchNorm does not follow its
    convolution directly, as in `compact`, which pools in between, there is nothing to gain and nothing is folded.

    Args:
        model: Not changed.
    """
    from torch.fx import symbolic_trace
    from torch.fx.experimental.optimization import fuse
    from torch.fx.proxy import TraceError

    if model.training or not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    own = copy.deepcopy(model)
    try:
        traced = symbolic_trace(own)
    # No network of meca's own: one whose path depends on the pixels, by `if` or `for`, by int() or range(), by len().
    except (TraceError, TypeError, RuntimeError):
        return model
    fused: nn.Module = fuse(traced, inplace=True, no_trace=True)
    if any(isinstance(module, nn.BatchNorm2d) for module in fused.modules()):
        return model
    for original, lean in zip(_convolutions(model), _convolutions(fused), strict=True):
        if original.weight.is_contiguous(memory_format=torch.channels_last):
            lean.weight.data = lean.weight.data.contiguous(memory_format=torch.channels_last)
    return fused.requires_grad_(False)


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def score(model: nn.Module, images: Images, labels: Tensor, masks: Masks, eps: float, batch_size: int = 0) -> tuple[Tensor, Tensor]:
    """Return the score of every image, averaged over the masks [n], and the logits [n classes].

    Args:
        model: Its mode and its parameters' flags are restored.
        images: uint8 [n h w c].
        labels: int64 [n].
        masks: The same for every image, or a function that is asked for those of each batch.
        eps: Step in [0, 1].
        batch_size: Samples a pass; 0: what fits the cache of a CPU, and what fills a GPU.
    """
    from meca.training.trainer import as_input

    b = batch_size or (1024 if images.is_cuda else 128)
    was_training, wanted = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_(False)
    lean = folded(model)
    device, at = images.device, 0
    scores, logits = torch.empty(len(images), dtype=torch.float32, device=device), None
    if isinstance(masks, Tensor):
        masks = masks.to(device)
    for batch in images.split(b) if len(images) else ():
        given = labels[at : at + b]
        own = masks if isinstance(masks, Tensor) else masks(len(given)).to(device)
        kl, part = consistency(lean, as_input(batch), given, own, eps)
        if logits is None:  # small results kept between large scratch memory would split the heap
            logits = part.new_empty(len(images), part.shape[1])
        scores[at : at + b], logits[at : at + b] = kl.mean(0), part
        at += b
    model.train(was_training)
    for parameter, flag in zip(model.parameters(), wanted, strict=True):
        parameter.requires_grad_(flag)
    return scores, torch.empty(0, 0, device=device) if logits is None else logits


def ranks(values: Tensor) -> Tensor:
    """Return ranks in [0, 1], the smallest value 0; equal values share their mean rank. [n] -> float64 [n]."""
    if len(values) < 2:
        return torch.zeros(len(values), dtype=torch.float64, device=values.device)
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double() - 1
    return (last - (counts.double() - 1) / 2)[inverse] / (len(values) - 1)
