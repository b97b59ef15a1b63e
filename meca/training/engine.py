"""The one training engine: a resident uint8 set, batched gathers, one weighted step, exact resume.

Two runs with one seed, one machine, one number of threads and one mode end in the same bits, whether or not one of them was
killed between two epochs; on a GPU, mode `exact` alone promises that.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from meca.errors import MecaError
from meca.training.augment import draw
from meca.training.checkpoints import resume, save_checkpoint
from meca.training.device import Device
from meca.training.recording import Epoch, fastest
from meca.training.seeds import generator
from meca.training.trainer import Recipe, Trainer, as_input

__all__ = ["features", "predict", "side_by_side", "train"]

OnEpoch = Callable[[int, float, float], None]  # epoch from 1, mean loss, accuracy on the batches
T = TypeVar("T")


class _Interrupted(Exception):  # noqa: N818 - no error: another training was interrupted
    pass


_interrupted = threading.Event()  # ends the trainings of other threads when one of them, or the main thread, has to stop


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    keep: Tensor,
    recipe: Recipe,
    seed: int,
    purpose: str,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
    device: Device | None = None,
    weight: Tensor | None = None,
) -> nn.Module:
    """Train a model on the kept samples and return it.

    The order of an epoch is the masked permutation of the whole set, so leaving a sample out moves no other one.

    Args:
        model: Changed in place.
        images: uint8 [n h w c], the whole set, on the device of the model.
        labels: int64 [n].
        keep: bool [n].
        recipe: How.
        seed: Of the run.
        purpose: Name of this training; part of every draw's key.
        checkpoint: File to resume from and to write after an epoch.
        on_epoch: Told epoch, mean loss and accuracy on the augmented batches; when resuming, of the finished epochs as well, so
            that what it writes down is the same as without the kill.
        device: Says the precision and how a step is computed; float32 and step by step if None.
        weight: float32 [n]: 1 learns, negative unlearns, 0 ignores; all 1 if None.

    Raises:
        MecaError: Nothing is kept, or the loss is no longer a number.
    """
    n, kept = len(images), int(keep.sum())
    if kept < 2:
        raise MecaError(f"Expected at least two samples to train on, got {kept}.")
    device = device or Device(str(images.device))
    batch = min(recipe.batch_size, kept)
    per_epoch = max(1, kept // batch)  # a last, smaller batch would have other BatchNorm statistics: it waits for the next epoch
    epochs = recipe.passes(kept)
    trainer = Trainer(model, recipe, epochs * per_epoch, device.precision)
    start = resume(trainer, checkpoint)
    if on_epoch is not None:
        for epoch, (mean_loss, accuracy) in enumerate(trainer.history, 1):
            on_epoch(epoch, mean_loss, accuracy)
    work = Epoch(trainer, images, labels, weight, batch)
    take_step: Callable[[], None] | None = None
    written, cost = -1e9, 0.0
    for epoch in range(start, epochs):
        rng = generator(seed, purpose, "epoch", epoch)
        order = torch.randperm(n, generator=rng).to(images.device)
        order = order[keep[order]]
        work.begin(None if recipe.augment == "none" else draw(n, recipe.padding, recipe.augment == "shift_flip", rng))
        for i in range(per_epoch):
            work.rows.copy_(order[i * batch : (i + 1) * batch])
            if take_step is None:
                take_step = fastest(work, device.step, (epochs - start) * per_epoch)
            if _interrupted.is_set():
                raise _Interrupted
            trainer.advance()
            take_step()
        mean_loss = float(work.loss) / per_epoch
        if not abs(mean_loss) < float("inf"):
            raise MecaError(f"The loss of training {purpose!r} is not finite in epoch {epoch + 1}; lower its learning rate in params.yaml.")
        trainer.history.append((mean_loss, int(work.right) / (per_epoch * batch)))
        # Writing takes a tenth of the time at most: a large network on a fast device has epochs shorter than a write.
        if epoch + 1 == epochs or time.perf_counter() - written >= 9 * cost:
            begun = time.perf_counter()
            save_checkpoint(trainer, checkpoint, epoch + 1)
            written = time.perf_counter()
            cost = written - begun
        if on_epoch is not None:
            on_epoch(epoch + 1, *trainer.history[-1])
    return model.eval()


def side_by_side(jobs: Sequence[Callable[[], T]], device: Device) -> list[T]:
    """Run independent trainings and return their results in order, on a CPU in one thread each with a share of the cores.

    Two trainings on one core each never wait for one another inside a step, as the threads of one training do. The bits are those of
    a training with so many threads, whatever the other ones do.

    Args:
        jobs: They must not share a model, and write to nothing in common.
        device: From `prepare`.
    """
    abreast = 1 if device.name.startswith("cuda") else min(len(jobs), device.threads)
    if abreast < 2:
        return [job() for job in jobs]

    def alone(job: Callable[[], T]) -> T:
        torch.set_num_threads(max(1, device.threads // abreast))
        try:
            return job()
        except BaseException:
            _interrupted.set()
            raise

    _interrupted.clear()
    try:
        with ThreadPoolExecutor(abreast) as pool:
            futures = [pool.submit(alone, job) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except BaseException:  # a signal reaches the main thread alone
                _interrupted.set()
                raise
    finally:
        _interrupted.clear()
        torch.set_num_threads(device.threads)
    for future in futures:
        if not isinstance(error := future.exception(), _Interrupted | None):
            raise error
    return [future.result() for future in futures]


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logits [n classes] of all images, float32, in eval mode.

    Args:
        model: Its mode is restored.
        images: uint8 [n h w c].
        batch_size: Samples a forward pass.
    """
    was_training = model.training
    model.eval()
    first = model(as_input(images[:batch_size]))  # no images have logits too: none
    logits = first.new_empty(len(images), first.shape[1], dtype=torch.float32)  # small results between scratch memory would split the heap
    logits[:batch_size] = first
    for i in range(batch_size, len(images), batch_size):
        logits[i : i + batch_size] = model(as_input(images[i : i + batch_size]))
    model.train(was_training)
    return logits


def features(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return what the last linear layer is given, float32 [n f], in eval mode.

    Args:
        model: Its mode is restored.
        images: uint8 [n h w c].
        batch_size: Samples a forward pass.
    """
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    found = torch.empty(len(images), last.in_features, device=images.device)
    at = 0

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal at
        found[at : at + len(inputs[0])] = inputs[0]
        at += len(inputs[0])

    hook = last.register_forward_pre_hook(note)
    try:
        predict(model, images, batch_size)
    finally:
        hook.remove()
    return found
