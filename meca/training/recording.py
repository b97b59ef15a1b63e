"""How a step reaches a GPU fastest: eager, recorded as a graph, or compiled."""

import contextlib
import time
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from meca.training.augment import Draws, crop_flip
from meca.training.data import Data
from meca.training.trainer import Trainer, as_input

__all__ = ["COMPILE_GAIN", "COMPILE_SECONDS", "GRAPH_STEPS", "Epoch", "fastest", "worth_compiling"]


class Epoch:
    """One step on samples of the resident set, from row numbers to new weights, with buffers that stay where they are."""

    def __init__(self, trainer: Trainer, data: Data, batch: int) -> None:
        images = data.images
        self.trainer, self.images, self.labels, self.weight = trainer, images, data.labels, data.weight
        self.rows = torch.zeros(batch, dtype=torch.int64, device=images.device)
        self.loss = torch.zeros((), device=images.device)
        self.right = torch.zeros((), dtype=torch.int64, device=images.device)
        self.draws: Draws | None = None
        if trainer.recipe.augment != "none":
            n = len(images)
            self.draws = Draws(*(torch.zeros(n, dtype=kind, device=images.device) for kind in (torch.int64, torch.int64, torch.bool)))

    def begin(self, draws: Draws | None) -> None:
        """Start an epoch."""
        self.loss.zero_()
        self.right.zero_()
        if draws is not None and self.draws is not None:
            for name, values in vars(draws).items():
                getattr(self.draws, name).copy_(values)

    def compute(self) -> None:
        """Take the step for the rows in the buffer."""
        pixels = self.images[self.rows] if self.draws is None else crop_flip(self.images, self.rows, self.draws)
        labels = self.labels[self.rows]
        loss, logits = self.trainer.compute(as_input(pixels), labels, None if self.weight is None else self.weight[self.rows])
        self.loss += loss
        self.right += (logits.argmax(1) == labels).sum()

    def state(self) -> list[Tensor]:
        """Return every tensor that a step changes."""
        model = self.trainer.model
        return [*model.parameters(), *model.buffers(), *self.trainer.momenta, self.loss, self.right]


GRAPH_STEPS = 30  # recording costs about ten eager steps and halves those of a small network


COMPILE_SECONDS = 45.0  # of a ResNet-18, until this process has measured its own


COMPILE_GAIN = 0.25  # of a recorded step's time; between 0.1 and 0.4 for the networks here


_compile_seconds: list[float] = []


def worth_compiling(steps: int, seconds_per_step: float, compile_seconds: float) -> bool:
    """Tell whether compiling saves more than it costs: planned steps times what each saves, against the compile time."""
    return steps * seconds_per_step * COMPILE_GAIN > compile_seconds


@contextlib.contextmanager
def _undone(epoch: Epoch) -> Generator[None]:
    """Give every tensor that a step changes its value back at the end."""
    state = epoch.state()
    saved = [tensor.detach().clone() for tensor in state]
    yield
    with torch.no_grad():
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)


def _record(epoch: Epoch) -> Callable[[], None]:
    """Record the step as a CUDA graph and return what replays it; no weight has changed afterwards.

    torch.cuda's notes on whole-network capture: warm up on a side stream, with gradients that do not exist yet at the
    capture, static tensors for whatever changes from step to step, and the learning rate on the device.
    """
    with _undone(epoch):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                epoch.compute()
        torch.cuda.current_stream().wait_stream(stream)
        epoch.trainer.model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            epoch.compute()
    return graph.replay


def fastest(epoch: Epoch, how: str, steps: int) -> Callable[[], None]:
    """Return what takes a step for the rows in the buffer, chosen by `Device.step` and the number of planned steps."""
    if how == "eager" or not epoch.images.is_cuda or (how == "auto" and steps < GRAPH_STEPS):
        return epoch.compute
    epoch.trainer.rate = torch.tensor(epoch.trainer.lr(), device=epoch.images.device)
    replay = _record(epoch)
    if how == "graph":
        return replay
    if how == "auto":
        per_step = _seconds_per_step(epoch, replay)
        if not worth_compiling(steps, per_step, _compile_seconds[-1] if _compile_seconds else COMPILE_SECONDS):
            return replay
    started = time.perf_counter()
    plain = epoch.trainer.model
    try:
        epoch.trainer.model = torch.compile(plain)  # pyright: ignore[reportAttributeAccessIssue] - shares the parameters of `plain`
        replay = _record(epoch)
        _compile_seconds.append(time.perf_counter() - started)
    except RuntimeError:  # no compiler on this machine, or one that fails: recorded is fast enough
        if how == "compile":
            raise
    finally:
        epoch.trainer.model = plain
    return replay


def _seconds_per_step(epoch: Epoch, replay: Callable[[], None], tries: int = 5) -> float:
    """Measure a recorded step; no weight has changed afterwards."""
    with _undone(epoch):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(tries):
            replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / tries
