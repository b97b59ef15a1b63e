"""What a run costs in samples: how many each stage showed to networks, whatever the machine and whoever else used it."""

import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from meca.files import atomic_write, canonical_json, read_json
from meca.params import Params
from tasks import environment

__all__ = ["UNCOUNTED", "WEIGHTS", "Seen", "cost", "plain_training"]

KINDS = ("trained", "graded", "forward")  # a training step; a pass that wants the gradient of its input; a pass forward alone
# Of a training step: it computes three things of about equal size, the outputs, the gradient of the inputs, that of the weights.
WEIGHTS: Mapping[str, float] = {"trained": 1.0, "graded": 2 / 3, "forward": 1 / 3}
UNCOUNTED = (
    "evaluate",
    "control",
)  # stages that are no part of a cost: what only a benchmark needs, and a positive control, which is asked for apart


class Seen:
    """Counts the samples that networks see while it is open, stage by stage.

    Every network of meca begins with `Normalize`, once, so its calls are the passes. Counts stand beside the run, in seen.json: of a run that is
    started again its finished stages are not counted anew. Where a stage goes on from a checkpoint, its count is unknown. So it is on a GPU, where
    a recorded step calls no module and a counter would be in the way of a compiled one. The scores of a network whose BatchNorm is folded away for
    them (not `compact`) are left out.
    """

    def __init__(self, folder: Path) -> None:
        """Read what earlier starts have counted.

        Args:
            folder: Of the run.
        """
        self.file = folder / "seen.json"
        self.stages: dict[str, dict[str, int] | None] = read_json(self.file) if self.file.is_file() else {}
        self._resumed = {path.name.partition("-")[0] for path in (folder / ".meca" / "checkpoints").glob("*")}
        self._now = dict.fromkeys(KINDS, 0)
        self._on_gpu = environment.has_gpu() and os.environ.get("MECA_DEVICE") != "cpu"
        self._lock = threading.Lock()  # trainings run side by side
        self._hook: Any = None

    def __enter__(self) -> "Seen":
        """Begin to count."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        if not self._on_gpu:
            self._hook = register_module_forward_pre_hook(self._count)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop counting."""
        if self._hook is not None:
            self._hook.remove()

    def finished(self, stage: str, seconds: float | None) -> None:
        """Write down what a stage has shown; see `told` of `meca.pipeline.run`.

        Args:
            stage: Its name.
            seconds: None where it was finished already.
        """
        with self._lock:
            counted, self._now = self._now, dict.fromkeys(KINDS, 0)
        if seconds is None:
            self.stages.setdefault(stage, None)  # killed between its end and this line
        else:
            self.stages[stage] = None if self._on_gpu or stage in self._resumed else counted
        atomic_write(self.file, canonical_json(self.stages))

    def _count(self, module: Any, inputs: tuple[Any, ...]) -> None:
        from torch import Tensor

        from meca.models import Normalize

        if not isinstance(module, Normalize) or not isinstance(inputs[0], Tensor):  # what is traced is no tensor
            return
        images = inputs[0]
        kind = "trained" if module.training else "graded" if images.requires_grad else "forward"
        with self._lock:
            self._now[kind] += len(images)


def plain_training(params: Params, n: int) -> int:
    """Return how many samples one training of `train_clean` on all of `n` samples sees."""
    from meca.training.trainer import Recipe

    recipe = params.group("train_clean", Recipe)
    batch = min(recipe.batch_size, n)
    return recipe.passes(n) * max(1, n // batch) * batch


def cost(stages: Mapping[str, Mapping[str, int] | None], plain: int) -> float | None:
    """Return what stages cost in plain trainings; None where one of them was not counted.

    Args:
        stages: The counts of each, by kind.
        plain: Samples of a plain training, see `plain_training`.
    """
    counted = [found for name, found in stages.items() if name not in UNCOUNTED]
    if not counted or any(found is None for found in counted):
        return None
    # Summed exactly: a count that was read again has its kinds in another order.
    return math.fsum(WEIGHTS[kind] * number for found in counted if found for kind, number in found.items()) / plain
