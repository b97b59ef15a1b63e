"""The one training engine: a resident uint8 set, batched gathers, one weighted step, exact resume.

Two runs with one seed, one machine, one number of threads and one mode end in the same bits, whether or not one of them was
killed between two epochs; on a GPU, mode `exact` alone promises that.
"""

import contextlib
import ctypes
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

from meca.errors import MecaError, check_fields
from meca.training.augment import Draws, crop_flip, draw, generator

__all__ = [
    "Device",
    "EngineParams",
    "Recipe",
    "Trainer",
    "as_input",
    "features",
    "predict",
    "prepare",
    "resume",
    "save_checkpoint",
    "side_by_side",
    "train",
    "worth_compiling",
]

OnEpoch = Callable[[int, float, float], None]  # epoch from 1, mean loss, accuracy on the batches
T = TypeVar("T")


class _Interrupted(Exception):  # noqa: N818 - no error: another training was interrupted
    pass


_interrupted = threading.Event()  # ends the trainings of other threads when one of them, or the main thread, has to stop


Step = Literal["auto", "eager", "graph", "compile"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int  # passes over the kept samples, at least
    min_steps: int  # more passes are made until so many steps are reached: small sets are learnt in steps, not in passes
    batch_size: int  # samples a step
    lr: float  # peak of the triangular schedule, for a mean loss
    momentum: float  # Nesterov
    weight_decay: float
    label_smoothing: float  # 0 in the detection stages, where confidence is the signal
    augment: Literal["none", "shift", "shift_flip"]  # shifts of up to `padding` pixels with reflected borders; mirroring
    padding: int  # pixels

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing can be trained."""
        check_fields(
            self,
            ("epochs", "of 1 at least", self.epochs >= 1),
            ("min_steps", "of 0 at least", self.min_steps >= 0),
            ("batch_size", "of 1 at least", self.batch_size >= 1),
            ("lr", "above 0", self.lr > 0),
            ("momentum", "in [0, 1)", 0 <= self.momentum < 1),
            ("weight_decay", "of 0 at least", self.weight_decay >= 0),
            ("label_smoothing", "in [0, 1)", 0 <= self.label_smoothing < 1),
            ("padding", "of 0 at least", self.padding >= 0),
        )

    def passes(self, kept: int) -> int:
        """Return the number of epochs over `kept` samples."""
        per_epoch = max(1, kept // min(self.batch_size, max(1, kept)))
        return max(self.epochs, -(-self.min_steps // per_epoch))


@dataclasses.dataclass(frozen=True)
class EngineParams:
    """Group `engine` of params.yaml."""

    mode: Literal["fast", "exact"]  # on a GPU, fast: bfloat16 training, TF32 scores, the fastest kernels; exact: float32. A CPU knows exact alone
    step: Step  # how a training step reaches a GPU


@dataclasses.dataclass(frozen=True)
class Device:
    """Where the tensors live, how many threads work, and how a training step is computed."""

    name: str
    threads: int = 1
    precision: torch.dtype = torch.float32  # of the forward and backward pass of a training; scores are float32 always
    step: Step = "eager"


def prepare(params: EngineParams | None = None) -> Device:
    """Choose the device (MECA_DEVICE, else CUDA, else CPU), fix the threads (MECA_THREADS) and the arithmetic.

    Called by stage programs once; the functions below take what they are given.

    Args:
        params: Mode `exact` if None.
    """
    params = params or EngineParams("exact", "auto")
    fast = params.mode == "fast"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = int(os.environ.get("MECA_THREADS", "0")) or os.cpu_count() or 1
    torch.set_num_threads(threads)
    name = os.environ.get("MECA_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = name.startswith("cuda")
    # On a CPU determinism costs nothing once fresh memory is not filled with NaN first, which no result depends on.
    torch.set_deterministic_debug_mode("default" if fast and on_gpu else "error")  # the other function for it imports torch's compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = fast
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = fast
    if not on_gpu:
        _keep_memory()
    # Not on a CPU: 1.45 times the speed there, but 2 points of ACC less on `shapes`, and a trigger that is learnt or not by chance.
    half = fast and on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(name, threads, torch.bfloat16 if half else torch.float32, params.step if on_gpu else "eager")


def _keep_memory() -> None:
    """Let glibc keep what a step frees: by default every activation is mapped, and its pages zeroed, anew in each step."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its upper limit
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def as_input(images: Tensor) -> Tensor:
    """Map uint8 [b h w c] to float32 [b c h w] in [0, 1]; the memory stays in the order h w c (channels_last)."""
    return images.permute(0, 3, 1, 2).float().div_(255)


class Trainer:
    """A model, its optimizer and a triangular learning rate: everything that one step changes."""

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int, precision: torch.dtype = torch.float32) -> None:
        self.model = model
        self.recipe = recipe
        self.steps = max(1, steps)
        self.precision = precision
        self.done = 0
        self.history: list[tuple[float, float]] = []  # of every finished epoch: mean loss, accuracy
        self.rate: float | Tensor = recipe.lr  # of the next step; a tensor where the step is recorded
        parameters: list[Tensor] = list(model.parameters())
        decayed = [p for p in parameters if p.ndim > 1]
        plain = [p for p in parameters if p.ndim <= 1]  # biases and BatchNorm
        # Parameters with their momenta. Zero is what SGD starts from.
        self.groups = [
            (group, [torch.zeros_like(p) for p in group], decay) for group, decay in ((decayed, recipe.weight_decay), (plain, 0.0)) if group
        ]

    def lr(self) -> float:
        """The learning rate of the next step: up over the first fifth, then down to a hundredth."""
        t = self.done / self.steps
        return self.recipe.lr * (max(t / 0.2, 0.05) if t < 0.2 else max((1 - t) / 0.8, 0.01))

    def advance(self) -> None:
        """Set the learning rate of the next step, and count it."""
        if isinstance(self.rate, Tensor):
            self.rate.fill_(self.lr())
        else:
            self.rate = self.lr()
        self.done += 1

    def step(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take one step on a batch and return its loss and logits, both detached.

        Args:
            x: float32 [b c h w] in [0, 1].
            y: int64 [b].
            weight: float32 [b]: 1 learns, negative unlearns, 0 ignores; all 1 if None.
        """
        self.advance()
        return self.compute(x, y, weight)

    def compute(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Do the work of `step` without counting it. Nothing in here waits for the device, so it can be recorded."""
        self.model.train()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision is torch.bfloat16, cache_enabled=False):
            logits = self.model(x)
        if self.precision is torch.bfloat16:
            logits = logits.float()
        each = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.recipe.label_smoothing)
        loss = each.mean() if weight is None else (weight * each).sum() / len(y)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            for parameters, momenta, decay in self.groups:
                # The function behind torch.optim.SGD, whose first use imports torch's compiler: 1.5 s in each stage.
                sgd(
                    parameters,
                    [p.grad for p in parameters if p.grad is not None],
                    cast(list[Tensor | None], momenta),
                    fused=True,
                    weight_decay=decay,
                    momentum=self.recipe.momentum,
                    lr=self.rate,
                    dampening=0.0,
                    nesterov=self.recipe.momentum > 0,
                    maximize=False,
                )
        return loss.detach(), logits.detach()

    @property
    def momenta(self) -> list[Tensor]:
        """The momentum of every parameter, in the order of the groups."""
        return [momentum for _, momenta, _ in self.groups for momentum in momenta]

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as named tensors."""
        state = {f"model.{k}": v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        state |= {f"momentum.{i}": momentum.cpu().contiguous() for i, momentum in enumerate(self.momenta)}
        state["done"] = torch.tensor(self.done)
        state["history"] = torch.tensor(self.history, dtype=torch.float64).reshape(-1, 2)
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state that `state` returned."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        for i, momentum in enumerate(self.momenta):
            momentum.copy_(state[f"momentum.{i}"])
        self.done = int(state["done"])
        self.history = [(loss, accuracy) for loss, accuracy in state["history"].tolist()]


def resume(trainer: Trainer, checkpoint: Path | None) -> int:
    """Load the last checkpoint into the trainer and return the number of finished epochs: 0 if there is none as this user's meca wrote it."""
    if checkpoint is None:
        return 0
    from safetensors.torch import load

    from meca.state import of_checkpoint, read

    data = read(checkpoint, *of_checkpoint(checkpoint))
    if data is None:
        return 0
    state = load(data)
    epoch = int(state.pop("epoch"))
    trainer.load(state)
    return epoch


def save_checkpoint(trainer: Trainer, checkpoint: Path | None, epoch: int) -> None:
    """Write the state after an epoch; a kill during the write leaves the one before."""
    if checkpoint is None:
        return
    from safetensors.torch import save

    from meca.state import of_checkpoint, write

    state = {**trainer.state(), "epoch": torch.tensor(epoch)}
    write(checkpoint, save(state), *of_checkpoint(checkpoint))


class _Epoch:
    """One step on samples of the resident set, from row numbers to new weights, with buffers that stay where they are."""

    def __init__(self, trainer: Trainer, images: Tensor, labels: Tensor, weight: Tensor | None, batch: int) -> None:
        self.trainer, self.images, self.labels, self.weight = trainer, images, labels, weight
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
def _undone(epoch: _Epoch) -> Generator[None]:
    """Give every tensor that a step changes its value back at the end."""
    state = epoch.state()
    saved = [tensor.detach().clone() for tensor in state]
    yield
    with torch.no_grad():
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)


def _record(epoch: _Epoch) -> Callable[[], None]:
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


def _fastest(epoch: _Epoch, how: str, steps: int) -> Callable[[], None]:
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


def _seconds_per_step(epoch: _Epoch, replay: Callable[[], None], tries: int = 5) -> float:
    """Measure a recorded step; no weight has changed afterwards."""
    with _undone(epoch):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(tries):
            replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / tries


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
    work = _Epoch(trainer, images, labels, weight, batch)
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
                take_step = _fastest(work, device.step, (epochs - start) * per_epoch)
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
