"""How a step reaches a GPU fastest: eager, recorded as a graph, or compiled."""

import contextlib
import time
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from meca.training.augment import Draws, crop_flip, shifted
from meca.training.data import Data
from meca.training.images import Streamed
from meca.training.trainer import Trainer, as_input

__all__ = ["COMPILE_GAIN", "COMPILE_SECONDS", "GRAPH_STEPS", "Epoch", "fastest", "worth_compiling"]


class Epoch:
    """One step on samples of the set, from row numbers to new weights, with buffers that stay where they are."""

    def __init__(self, trainer: Trainer, data: Data, batch: int) -> None:
        images, device = data.images, data.device
        self.trainer, self.images, self.labels, self.weight = trainer, images, data.labels, data.weight
        self.rows = torch.zeros(batch, dtype=torch.int64, device=device)
        # Of a set that is not resident: a step reads the pixels that have come here.
        self.pixels = torch.zeros(batch if isinstance(images, Streamed) else 0, *images.shape[1:], dtype=torch.uint8, device=device)
        self.loss = torch.zeros((), device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.draws: Draws | None = None
        if trainer.recipe.augment != "none":
            n = len(images)
            self.draws = Draws(*(torch.zeros(n, dtype=kind, device=device) for kind in (torch.int64, torch.int64, torch.bool)))

    def begin(self, draws: Draws | None) -> None:
        """Start an epoch."""
        self.loss.zero_()
        self.right.zero_()
        if draws is not None and self.draws is not None:
            for name, values in vars(draws).items():
                getattr(self.draws, name).copy_(values)

    def place(self, rows: Tensor) -> None:
        """Put a batch into the buffers."""
        self.rows.copy_(rows)
        if isinstance(self.images, Streamed):
            self.pixels.copy_(self.images[rows])

    def placed(self, order: Tensor) -> Generator[None]:
        """Put one batch of an order after the other into the buffers; the next ones are read while a step is taken."""
        parts = order.split(len(self.rows))
        if not isinstance(self.images, Streamed):
            for rows in parts:
                self.rows.copy_(rows)
                yield
            return
        on_cpu = order.cpu().split(len(self.rows))  # at once: later each part would wait for the steps before it
        for rows, pixels in zip(parts, self.images.batches(on_cpu), strict=True):
            self.rows.copy_(rows)
            self.pixels.copy_(pixels)
            yield

    def compute(self) -> None:
        """Take the step for the rows in the buffer."""
        if isinstance(self.images, Streamed):
            pixels = self.pixels if self.draws is None else shifted(self.pixels, self.draws.of(self.rows))
        else:
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
    if how == "eager" or not epoch.rows.is_cuda or (how == "auto" and steps < GRAPH_STEPS):
        return epoch.compute
    epoch.trainer.rate = torch.tensor(epoch.trainer.lr(), device=epoch.rows.device)
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
