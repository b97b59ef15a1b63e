"""A model, its optimizer and its learning rate: everything that one step changes."""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

from meca.errors import MecaError, check_fields

__all__ = ["SCHEDULES", "Objective", "Recipe", "Schedule", "Trainer", "as_input", "schedule_of"]

# From the model, a batch float32 [b c h w] in [0, 1] and its labels int64 [b] to the loss of each sample [b], or their mean, and the logits.
Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
Schedule = Callable[[float], float]  # from the share of the steps that are done, in [0, 1), to the share of the peak learning rate

RISE = 0.2  # share of the steps of `one_cycle` in which the rate rises: a network that is trained for few passes needs its peak early
FIRST = 0.05  # of the peak, at the first step: at 0 that step would teach nothing
LAST = 0.01  # of the peak, at the last steps, for the same reason
FALLS = (0.5, 0.75)  # shares of the steps of `step` after which the rate falls: He et al., 2016, https://arxiv.org/abs/1512.03385
FALL = 0.1  # what is left of the rate at each of them


def _one_cycle(t: float) -> float:
    return max(t / RISE, FIRST) if t < RISE else max((1 - t) / (1 - RISE), LAST)


def _step(t: float) -> float:
    return math.prod([FALL for at in FALLS if t >= at])


SCHEDULES: dict[str, Schedule] = {
    "one_cycle": _one_cycle,  # up over the first fifth, then down to a hundredth
    "constant": lambda t: 1.0,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "step": _step,  # a tenth after half of the steps, and again after three quarters
}


def schedule_of(name: str) -> Schedule:
    """Return a schedule by its name.

    Raises:
        MecaError: There is none of that name.
    """
    if name not in SCHEDULES:
        near = difflib.get_close_matches(name, SCHEDULES, 1)
        raise MecaError(
            f"Expected the schedule to be one of {', '.join(SCHEDULES)}, got {name!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
        )
    return SCHEDULES[name]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int  # passes over the kept samples, at least
    min_steps: int  # more passes are made until so many steps are reached: small sets are learnt in steps, not in passes
    batch_size: int  # samples a step
    lr: float  # peak of the schedule, for a mean loss
    momentum: float  # Nesterov
    weight_decay: float
    label_smoothing: float  # 0 in the detection stages, where confidence is the signal
    augment: Literal["none", "shift", "shift_flip"]  # shifts of up to `padding` pixels with reflected borders; mirroring
    padding: int  # pixels

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing can be trained."""
        check_fields(
            self,
            ("epochs", ">= 1", self.epochs >= 1),
            ("min_steps", ">= 0", self.min_steps >= 0),
            ("batch_size", ">= 1", self.batch_size >= 1),
            ("lr", "> 0", self.lr > 0),
            ("momentum", "in [0, 1)", 0 <= self.momentum < 1),
            ("weight_decay", ">= 0", self.weight_decay >= 0),
            ("label_smoothing", "in [0, 1)", 0 <= self.label_smoothing < 1),
            ("padding", ">= 0", self.padding >= 0),
        )

    def passes(self, kept: int) -> int:
        """Return the number of epochs over `kept` samples."""
        per_epoch = max(1, kept // min(self.batch_size, max(1, kept)))
        return max(self.epochs, -(-self.min_steps // per_epoch))


def as_input(images: Tensor) -> Tensor:
    """Map uint8 [b h w c] to float32 [b c h w] in [0, 1]; the memory stays in the order h w c (channels_last)."""
    return images.permute(0, 3, 1, 2).float().div_(255)


class Trainer:
    """A model, its optimizer and its learning rate: everything that one step changes."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        steps: int,
        precision: torch.dtype = torch.float32,
        objective: Objective | None = None,
        schedule: Schedule = SCHEDULES["one_cycle"],
    ) -> None:
        self.model = model
        self.objective, self.schedule = objective, schedule
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
        """The learning rate of the next step."""
        return self.recipe.lr * self.schedule(self.done / self.steps)

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
        """Do the work of `step` without counting it. Nothing in here waits for the device, so it can be recorded: an objective may."""
        self.model.train()
        half, each = self.precision is torch.bfloat16, None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            if self.objective is None:
                logits = self.model(x)
            else:
                each, logits = self.objective(self.model, x, y)
        if half:
            logits, each = logits.float(), None if each is None else each.float()
        if each is None:
            each = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.recipe.label_smoothing)
        if weight is not None and each.shape != y.shape:
            raise MecaError(f"Expected an objective to return a loss for each of {len(y)} samples, which have weights, got shape {list(each.shape)}.")
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
