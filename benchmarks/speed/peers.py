"""The loops that the field's toolboxes run, written anew as plain code, against ours in the same process.

The patterns were read, not copied, at these places:

* per-sample PIL transforms in a DataLoader, fp32, contiguous tensors, `.item()` in each step: SCLBD/BackdoorBench @f02e353
  utils/bd_dataset_v2.py:170-179 and utils/trainer_cls.py:302,314; vtu81/backdoor-toolbox @9d4d909 train_on_poisoned_set.py:147,408
* the same without workers, several `.item()` a step: bboylyg/ABL @3fd736c backdoor_isolation.py:20-35,120-122
* scores with batch size 1: BackdoorBench defense/abl.py:119-133; ABL backdoor_isolation.py:54-61;
  SCLBD/Effective_backdoor_defense @63fda0e README.md:268

The borders of a crop are reflected in both arms, so that they draw from the same images; the toolboxes' zero borders cost PIL
less. Both arms train the same network from the same weights on the same images for one epoch of the same schedule, with the same
batch size and optimizer; both score the same images to rounding (tests/benchmarks/test_peers.py).
"""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.speed.harness import MEAN, STD, Bench, describe, network, random_set
from meca.method.scoring import patch_masks, score
from meca.training.engine import Data, Session
from meca.training.seeds import generator
from meca.training.trainer import Recipe, as_input

EPS = 2 / 255
RECIPE = Recipe(1, 0, 64, 0.05, 0.9, 5e-4, label_smoothing=0.0, augment="shift_flip", padding=3)
# What acceptance asks for on a CPU.
TARGETS = {"train": 3.0, "batch 1": 8.0, "batched": 1.7}


class PilSet(Dataset[tuple[Tensor, int]]):
    """Images that pass through PIL one at a time, as torchvision's data sets do it."""

    def __init__(self, images: Tensor, labels: Tensor, padding: int) -> None:
        from torchvision import transforms

        self.images, self.labels = images.numpy(), labels.tolist()
        self.transform: Callable[[Any], Any] = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=padding, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def pil_loader(images: Tensor, labels: Tensor, recipe: Recipe, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Return the loader; its workers stay from epoch to epoch, which is its best variant."""
    data = PilSet(images.cpu(), labels.cpu(), recipe.padding)
    rng = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"shuffle": True, "drop_last": True, "generator": rng, "num_workers": workers, "persistent_workers": workers > 0}
    return DataLoader(data, recipe.batch_size, pin_memory=torch.cuda.is_available(), **settings)


def pil_epoch(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], recipe: Recipe, device: str) -> float:
    """Train one epoch by the pattern and return the mean loss; the normalization is in the loader, so the first layer is left out."""
    inner, steps = list(model.children())[1], len(loader)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: max(5 * done / steps, 0.05) if done < 0.2 * steps else max(1.25 * (1 - done / steps), 0.01)
    )
    inner.train()
    total = right = 0.0
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad()
        logits = inner(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        right += (logits.argmax(1) == y).sum().item()
    return total / steps


def naive_score(model: nn.Module, images: Tensor, labels: Tensor, mask: Tensor, eps: float, batch_size: int) -> Tensor:
    """Return the score [n] by the naive passes, five forwards' worth of work in place of three.

    A forward and a full backward pass with the gradients of all parameters, then two more forwards, for the image as it was
    and for the moved one. With `batch_size` 1 it is the per-image loop of the toolboxes, which keeps the logits of its one
    forward pass and so needs no second one.

    Args:
        model: In eval mode.
        images: uint8 [n h w c].
        labels: int64 [n].
        mask: float32 [1 h w].
        eps: Step in [0, 1].
        batch_size: Samples a pass.
    """
    found = []
    for i in range(0, len(images), batch_size):
        x, y = as_input(images[i : i + batch_size]).contiguous().requires_grad_(), labels[i : i + batch_size]
        model.zero_grad()
        logits = model(x)
        F.cross_entropy(logits, y, reduction="sum").backward()
        assert x.grad is not None
        with torch.no_grad():
            before = logits if batch_size == 1 else model(x)
            after = model((x + mask * eps * x.grad.sign()).clamp(0, 1))
            p, q = before.double().log_softmax(1), after.double().log_softmax(1)
            each = (p.exp() * (p - q)).sum(1)
        found += [each.float()] if batch_size > 1 else [torch.tensor([each.item()])]
    return torch.cat(found)


def train_ratios(bench: Bench, name: str, stem: str, n: int, recipe: Recipe = RECIPE) -> None:
    """Write the ratio of one epoch, data path and steps, against the loop without workers and with as many as there are cores."""
    images, labels = random_set(n)
    resident, given = images.to(bench.device), labels.to(bench.device)
    seeds = iter(range(10**6))
    ours = network(describe(name, stem), bench.device)
    theirs = network(describe(name, stem), bench.device).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]

    modes = {"exact": bench.exactly} if bench.device == "cpu" else {"fast": bench.machine, "exact": bench.exactly}  # a CPU knows one mode
    for mode, workers in itertools.product(modes, (0, os.cpu_count() or 1)):
        loader = pil_loader(images, labels, recipe, workers)

        def our_epoch(mode: str = mode) -> None:
            Session(next(seeds), modes[mode]).train(ours, Data(resident, given), recipe, "peers")

        found = bench.pairs(our_epoch, lambda loader=loader: pil_epoch(theirs, loader, recipe, bench.device))
        bench.against(
            "ratio",
            f"training and its data path, {name} {stem}, 32 px, batch {recipe.batch_size}, mode {mode}",
            n,
            found,
            f"PIL DataLoader, {workers} workers",
            target_ratio=TARGETS["train"] if bench.device == "cpu" else None,
            notes="same network, weights, pictures, batch size, optimizer and schedule of one epoch; the other arm is contiguous and fp32",
        )
        del loader


def score_ratios(bench: Bench, name: str, stem: str, n: int, single: int, batch_size: int = 256) -> None:
    """Write the ratio of a scoring pass against batch 1 and against the naive batched passes."""
    images, labels = random_set(n, device=bench.device)
    mask = patch_masks(1, 32, 32, 2, 0.25, generator("benchmarks", "mask")).to(bench.device)
    ours = network(describe(name, stem), bench.device).eval()
    theirs = network(describe(name, stem), bench.device).to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
    parts = _rotating(images, labels, single)

    def our_pass() -> None:
        score(ours, images, labels, mask, EPS, batch_size)

    def one_by_one() -> None:
        few, given = next(parts)
        naive_score(theirs, few, given, mask[0], EPS, 1)

    def batched() -> None:
        naive_score(theirs, images, labels, mask[0], EPS, batch_size)

    apart = float(
        (score(ours, images[:single], labels[:single], mask, EPS)[0] - naive_score(theirs, images[:single], labels[:single], mask[0], EPS, single))
        .abs()
        .max()
    )
    for arm, words, limit, units in ((one_by_one, "one image at a time", "batch 1", single), (batched, "naive batched passes", "batched", n)):
        found = bench.pairs(our_pass, arm, units=(n, units))
        bench.against(
            "ratio",
            f"scoring, {name} {stem}, 32 px, batch {batch_size}",
            1,  # seconds of one image
            found,
            words,
            target_ratio=TARGETS[limit] if bench.device == "cpu" else None,
            notes=f"same weights, pictures and mask; the scores differ by at most {apart:.1g}; the other arm is contiguous",
        )


def _rotating(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    at = 0
    while True:
        yield images[at : at + size], labels[at : at + size]
        at = (at + size) % (len(images) - size + 1)


def run(bench: Bench) -> None:
    """Write all ratios of this machine."""
    cpu = bench.device == "cpu"
    if bench.quick:
        train_ratios(bench, "compact", "s2d", 256)
        score_ratios(bench, "compact", "s2d", 128, 8)
        return
    train_ratios(bench, "compact", "s2d", 1536 if cpu else 5_000)
    score_ratios(bench, "compact", "s2d", 512 if cpu else 10_000, 64)
    score_ratios(bench, "resnet18", "imagenet", 256 if cpu else 10_000, 16)
    if not cpu:
        train_ratios(bench, "resnet18", "cifar", 5_000)
        score_ratios(bench, "resnet18", "cifar", 5_000, 32)
