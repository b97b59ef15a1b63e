"""The one training engine: a resident uint8 set, batched gathers, one weighted step, exact resume.

Two runs with one seed, one machine and one number of threads end in the same bits, whether or not one of them was
killed between two epochs.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meca.augment import crop_flip, draw, generator
from meca.errors import MecaError

__all__ = ["Device", "Recipe", "Trainer", "as_input", "predict", "prepare", "resume", "save_checkpoint", "train"]

OnEpoch = Callable[[int, float, float], None]  # epoch from 1, mean loss, accuracy on the batches


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

    def passes(self, kept: int) -> int:
        """Return the number of epochs over `kept` samples."""
        per_epoch = max(1, kept // min(self.batch_size, max(1, kept)))
        return max(self.epochs, -(-self.min_steps // per_epoch))


@dataclasses.dataclass(frozen=True)
class Device:
    """Where the tensors live and how many threads work."""

    name: str
    threads: int


def prepare() -> Device:
    """Choose the device (MECA_DEVICE, else CUDA, else CPU), fix the threads (MECA_THREADS) and demand determinism.

    Called by stage programs once; the functions below take what they are given.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = int(os.environ.get("MECA_THREADS", "0")) or os.cpu_count() or 1
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    name = os.environ.get("MECA_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return Device(name, threads)


def as_input(images: Tensor) -> Tensor:
    """Map uint8 [b h w c] to float32 [b c h w] in [0, 1]; the memory stays in the order h w c (channels_last)."""
    return images.permute(0, 3, 1, 2).float().div_(255)


class Trainer:
    """A model, its optimizer and a triangular learning rate: everything that one step changes."""

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int) -> None:
        self.model = model
        self.recipe = recipe
        self.steps = max(1, steps)
        self.done = 0
        self.history: list[tuple[float, float]] = []  # of every finished epoch: mean loss, accuracy
        decay = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]  # biases and BatchNorm are not decayed
        groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)

    def lr(self) -> float:
        """The learning rate of the next step: up over the first fifth, then down to a hundredth."""
        t = self.done / self.steps
        return self.recipe.lr * (max(t / 0.2, 0.05) if t < 0.2 else max((1 - t) / 0.8, 0.01))

    def step(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take one step on a batch and return its loss and logits, both detached.

        Args:
            x: float32 [b c h w] in [0, 1].
            y: int64 [b].
            weight: float32 [b]: 1 learns, negative unlearns, 0 ignores; all 1 if None.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        self.model.train()
        logits = self.model(x)
        each = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.recipe.label_smoothing)
        loss = each.mean() if weight is None else (weight * each).sum() / len(y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return loss.detach(), logits.detach()

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as named tensors."""
        state = {f"model.{k}": v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        for i, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            buffer = self.optimizer.state[p].get("momentum_buffer") if p in self.optimizer.state else None
            if buffer is not None:
                state[f"momentum.{i}"] = buffer.detach().cpu().contiguous()
        state["done"] = torch.tensor(self.done)
        state["history"] = torch.tensor(self.history, dtype=torch.float64).reshape(-1, 2)
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state that `state` returned."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        for i, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            if f"momentum.{i}" in state:
                # The layout is the parameter's: a sum in another order would end in other bits.
                buffer = torch.empty_like(p)
                buffer.copy_(state[f"momentum.{i}"])
                self.optimizer.state[p]["momentum_buffer"] = buffer
        self.done = int(state["done"])
        self.history = [(loss, accuracy) for loss, accuracy in state["history"].tolist()]


def resume(trainer: Trainer, checkpoint: Path | None) -> int:
    """Load the last checkpoint into the trainer, if there is one, and return the number of finished epochs."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    from safetensors.torch import load

    state = load(checkpoint.read_bytes())
    epoch = int(state.pop("epoch"))
    trainer.load(state)
    return epoch


def save_checkpoint(trainer: Trainer, checkpoint: Path | None, epoch: int) -> None:
    """Write the state after an epoch; a kill during the write leaves the one before."""
    if checkpoint is None:
        return
    from safetensors.torch import save

    from meca.files import atomic_write

    atomic_write(checkpoint, save({**trainer.state(), "epoch": torch.tensor(epoch)}))


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
        checkpoint: File to resume from and to write after each epoch.
        on_epoch: Told epoch, mean loss and accuracy on the augmented batches; when resuming, of the finished epochs as well, so
            that what it writes down is the same as without the kill.

    Raises:
        MecaError: Nothing is kept, or the loss is no longer a number.
    """
    n, kept = len(images), int(keep.sum())
    if kept < 2:
        raise MecaError(f"Expected at least two samples to train on, got {kept}.")
    batch = min(recipe.batch_size, kept)
    per_epoch = max(1, kept // batch)  # a last, smaller batch would have other BatchNorm statistics: it waits for the next epoch
    epochs = recipe.passes(kept)
    trainer = Trainer(model, recipe, epochs * per_epoch)
    start = resume(trainer, checkpoint)
    if on_epoch is not None:
        for epoch, (mean_loss, accuracy) in enumerate(trainer.history, 1):
            on_epoch(epoch, mean_loss, accuracy)
    for epoch in range(start, epochs):
        rng = generator(seed, purpose, "epoch", epoch)
        order = torch.randperm(n, generator=rng).to(images.device)
        order = order[keep[order]]
        draws = None
        if recipe.augment != "none":
            draws = draw(n, recipe.padding, recipe.augment == "shift_flip", rng)
            draws = dataclasses.replace(draws, **{k: v.to(images.device) for k, v in vars(draws).items()})
        loss_sum = torch.zeros((), device=images.device)
        right = torch.zeros((), device=images.device)
        for i in range(per_epoch):
            rows = order[i * batch : (i + 1) * batch]
            pixels = images[rows] if draws is None else crop_flip(images, rows, draws)
            loss, logits = trainer.step(as_input(pixels), labels[rows])
            loss_sum += loss
            right += (logits.argmax(1) == labels[rows]).sum()
        if not bool(torch.isfinite(loss_sum)):
            raise MecaError(f"The loss of training {purpose!r} is not finite in epoch {epoch + 1}; lower its learning rate in params.yaml.")
        trainer.history.append((float(loss_sum) / per_epoch, float(right) / (per_epoch * batch)))
        save_checkpoint(trainer, checkpoint, epoch + 1)
        if on_epoch is not None:
            on_epoch(epoch + 1, *trainer.history[-1])
    return model.eval()


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
    logits = torch.cat([model(as_input(images[i : i + batch_size])) for i in range(0, len(images), batch_size)])
    model.train(was_training)
    return logits.float()
