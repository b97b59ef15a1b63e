"""Where a training runs: the device, its threads, its arithmetic."""

import contextlib
import ctypes
import dataclasses
import math
import os
from typing import Literal

import torch

from meca.errors import check_fields

__all__ = ["Device", "EngineParams", "Step", "prepare"]


Step = Literal["auto", "eager", "graph", "compile"]


@dataclasses.dataclass(frozen=True)
class EngineParams:
    """Group `engine` of params.yaml."""

    mode: Literal["fast", "exact"]  # on a GPU, fast: bfloat16 training, TF32 scores, the fastest kernels; exact: float32. A CPU knows exact alone
    step: Step  # how a training step reaches a GPU
    resident: float  # MiB of pixels that are held in memory; a larger set is read from its file batch by batch
    resident_gpu: float  # share of a GPU's memory: likewise

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        check_fields(
            self,
            ("resident", ">= 0", self.resident >= 0),
            ("resident_gpu", "in [0, 1]", 0 <= self.resident_gpu <= 1),
        )


@dataclasses.dataclass(frozen=True)
class Device:
    """Where the tensors live, how many threads work, and how a training step is computed."""

    name: str
    threads: int = 1
    precision: torch.dtype = torch.float32  # of the forward and backward pass of a training; scores are float32 always
    step: Step = "eager"
    resident: float = math.inf  # bytes of pixels that are held where the tensors live; a larger set is read from its file batch by batch


def prepare(params: EngineParams | None = None) -> Device:
    """Choose the device (MECA_DEVICE, else CUDA, else CPU), fix the threads (MECA_THREADS) and the arithmetic.

    Called by stage programs once; the functions below take what they are given.

    Args:
        params: Mode `exact`, and every set in memory, if None.
    """
    params = params or EngineParams("exact", "auto", math.inf, 1.0)
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
    room = params.resident_gpu * torch.cuda.get_device_properties(name).total_memory if on_gpu else params.resident * 2**20
    return Device(name, threads, torch.bfloat16 if half else torch.float32, params.step if on_gpu else "eager", room)


def _keep_memory() -> None:
    """Let glibc keep what a step frees: by default every activation is mapped, and its pages zeroed, anew in each step."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its upper limit
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
