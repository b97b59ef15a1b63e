"""The one training engine: a uint8 set in memory or in its file, batched gathers, one weighted step, exact resume.

Two runs with one seed, one machine, one number of threads and one mode end in the same bits, whether or not one of them was
killed between two epochs; on a GPU, mode `exact` alone promises that.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from meca.errors import MecaError
from meca.training.augment import draw
from meca.training.checkpoints import resume, save_checkpoint
from meca.training.data import Data
from meca.training.device import Device
from meca.training.images import Images
from meca.training.recording import Epoch, fastest
from meca.training.seeds import generator
from meca.training.trainer import Objective, Recipe, Trainer, as_input, schedule_of

__all__ = ["Data", "Note", "Session", "features", "predict", "side_by_side"]

Note = Callable[[int, float, float], None]  # epoch from 1, mean loss, accuracy on the batches
WRITE_EVERY = 9  # times what the last checkpoint cost, from one to the next; changes no result
T = TypeVar("T")


class _Interrupted(Exception):  # noqa: N818 - no error: another training was interrupted
    pass


_interrupted = threading.Event()  # ends the trainings of other threads when one of them, or the main thread, has to stop


@dataclass(frozen=True)
class Session:
    """What the trainings of a run have in common."""

    seed: int  # of the run
    device: Device  # from `prepare`: precision, and how a step is computed
    checkpoints: Path | None = None  # folder to resume from and to write to, in a file named after the purpose
    # Told epoch, mean loss and accuracy on the augmented batches; when resuming, of the finished epochs as well, so that what it writes
    # down is the same as without the kill.
    note: Note | None = None
    schedule: str = "one_cycle"  # of the learning rate, one of `SCHEDULES`
    name: str = ""  # begins the name of each checkpoint, so that trainings of one purpose can run side by side

    def draws(self, *keys: int | str) -> torch.Generator:
        """Return the generator of the run's seed and these keys."""
        return generator(self.seed, *keys)

    def train(
        self,
        model: nn.Module,
        data: Data,
        recipe: Recipe,
        purpose: str,
        keep: Tensor | None = None,
        objective: Objective | None = None,
    ) -> nn.Module:
        """Train a model on the kept samples and return it.

        The order of an epoch is the masked permutation of the whole set, so leaving a sample out moves no other one.

        Args:
            model: Changed in place.
            data: The whole set, on the device of the model, with the weights of its samples.
            recipe: How.
            purpose: Name of this training; part of every draw's key, and the name of its checkpoint.
            keep: bool [n]; everything if None.
            objective: The loss; the cross-entropy with the recipe's smoothing if None. With another one every step is computed eagerly,
                since nothing says that it can be recorded.

        Raises:
            MecaError: Nothing is kept, the loss is no longer a number, there is no such schedule, or the objective returns one loss for samples
                that have weights.
        """
        device = data.device
        keep = torch.ones(len(data), dtype=torch.bool, device=device) if keep is None else keep
        n, kept = len(data), int(keep.sum())
        if kept < 2:
            raise MecaError(f"Expected at least two samples to train on, got {kept}.")
        batch = min(recipe.batch_size, kept)
        per_epoch = max(1, kept // batch)  # a last, smaller batch would have other BatchNorm statistics: it waits for the next epoch
        epochs = recipe.passes(kept)
        trainer = Trainer(model, recipe, epochs * per_epoch, self.device.precision, objective, schedule_of(self.schedule))
        place = None if self.checkpoints is None else self.checkpoints / f"{self.name}{purpose}.safetensors".replace(" ", "-")
        start = resume(trainer, place)
        if self.note is not None:
            for epoch, (mean_loss, accuracy) in enumerate(trainer.history, 1):
                self.note(epoch, mean_loss, accuracy)
        work = Epoch(trainer, data, batch)
        take_step: Callable[[], None] | None = None
        written, cost = -1e9, 0.0
        for epoch in range(start, epochs):
            rng = self.draws(purpose, "epoch", epoch)
            order = torch.randperm(n, generator=rng).to(device)
            order = order[keep[order]]
            work.begin(None if recipe.augment == "none" else draw(n, recipe.padding, recipe.augment == "shift_flip", rng))
            if take_step is None:  # before anything is read ahead: while a step is recorded nothing else may reach the GPU
                work.place(order[:batch])
                take_step = fastest(work, self.device.step if objective is None else "eager", (epochs - start) * per_epoch)
            with contextlib.closing(work.placed(order[: per_epoch * batch])) as each:
                for _ in each:
                    if _interrupted.is_set():
                        raise _Interrupted
                    trainer.advance()
                    take_step()
            mean_loss = float(work.loss) / per_epoch
            if not abs(mean_loss) < float("inf"):
                raise MecaError(f"The loss of training {purpose!r} is not finite in epoch {epoch + 1}; lower its learning rate in params.yaml.")
            trainer.history.append((mean_loss, int(work.right) / (per_epoch * batch)))
            # Writing takes a tenth of the time at most: a large network on a fast device has epochs shorter than a write.
            if epoch + 1 == epochs or time.perf_counter() - written >= WRITE_EVERY * cost:
                begun = time.perf_counter()
                save_checkpoint(trainer, place, epoch + 1)
                written = time.perf_counter()
                cost = written - begun
            if self.note is not None:
                self.note(epoch + 1, *trainer.history[-1])
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
def predict(model: nn.Module, images: Images, batch_size: int = 256) -> Tensor:
    """Return the logits [n classes] of all images, float32, in eval mode.

    Args:
        model: Its mode is restored.
        images: uint8 [n h w c].
        batch_size: Samples a forward pass.
    """
    was_training = model.training
    model.eval()
    at, logits = 0, torch.empty(0)
    for batch in images.split(batch_size):  # no images have logits too: none
        found = model(as_input(batch))
        if at == 0:
            logits = found.new_empty(len(images), found.shape[1], dtype=torch.float32)  # small results between scratch memory would split the heap
        logits[at : at + len(batch)] = found
        at += len(batch)
    model.train(was_training)
    return logits


def features(model: nn.Module, images: Images, batch_size: int = 256) -> Tensor:
    """Return the inputs of the last linear layer, float32 [n f], in eval mode.

    Args:
        model: Its mode is restored.
        images: uint8 [n h w c].
        batch_size: Samples a forward pass.
    """
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    values = torch.empty(len(images), last.in_features, device=images.device)
    at = 0

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal at
        values[at : at + len(inputs[0])] = inputs[0]
        at += len(inputs[0])

    hook = last.register_forward_pre_hook(note)
    try:
        predict(model, images, batch_size)
    finally:
        hook.remove()
    return values
