"""What every speed figure is measured with: clocks, pairs in one process, memory, environment, rows of speed.jsonl.

The protocol is in benchmarks/README.md. Importing this needs torch and numpy; nothing here needs a YAML reader, so that a
machine with a GPU and little else can run it.
"""

import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rows import RESULTS, provenance
from meca.models import Architecture, Description, DetectorParams, NetworkParams, build
from meca.params import PACKAGED, Params
from meca.training.device import Device, EngineParams, prepare
from meca.training.seeds import generator
from tasks.benchmark.rows import append

FILE = RESULTS / "speed.jsonl"
CONTENDED = 0.9  # of the threads: below this share of their time the process was waiting for the cores
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10; any would do, they are the same in both arms

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How many times faster the first arm is than the second."""

    ratio: float  # median over the pairs
    low: float  # 95 % interval of that median
    high: float
    n: int  # pairs
    seconds: tuple[float, float]  # median of each arm, for one unit of its work
    busy: float  # processor time of the first arm over its wall time and threads

    def columns(self, to: str) -> dict[str, Any]:
        """Return the part of a row that says it."""
        return {"ratio_to": to, "ratio": self.ratio, "ratio_low": self.low, "ratio_high": self.high, "n": self.n, "busy": self.busy}


class Repeated(NamedTuple):
    """How long one call takes."""

    seconds: float  # median
    busy: float  # as in `Ratio`
    n: int  # runs


@dataclass(frozen=True)
class Ceilings:
    """What a machine can do at most: a floor is work over these."""

    flops: float  # per second, in the precision that the floors are about: bf16 on a GPU, fp32 on a CPU
    bytes: float  # of memory, per second
    measured: Mapping[str, float]  # name to the figure of this run
    cached: bool  # a batch stays in the caches, so that the traffic of its activations bounds nothing

    def floor(self, flops: float, moved: float) -> float:
        """Return the seconds that so many operations and bytes of activations take at least."""
        return flops / self.flops if self.cached else max(flops / self.flops, moved / self.bytes)

    def at(self, precision: str) -> "Ceilings":
        """Return the ceilings of another precision; on a GPU all are held against bf16."""
        return dataclasses.replace(self, flops=_most(self.measured, precision)) if self.cached else self


@dataclass
class Bench:
    """One run of the benchmarks: its device, its time, and where its rows go."""

    out: Path
    command: str
    quick: bool = False
    until: float = float("inf")  # of time.monotonic: parts that can stop early do so
    started: float = field(default_factory=time.monotonic)

    @cached_property
    def machine(self) -> Device:
        """The device, the threads and the precision, as the stages choose them in mode `fast`."""
        return prepare(EngineParams("fast", "auto", math.inf, 1.0))

    @property
    def exactly(self) -> Device:
        """The same in float32, step by step."""
        return Device(self.machine.name, self.machine.threads)

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self.machine.name

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured when first asked for, in this process."""
        return ceilings(self.device, self.quick)

    def left(self) -> float:
        """Seconds until this run should end."""
        return self.until - time.monotonic()

    def row(self, group: str, name: str, unit: str, value: float, **more: Any) -> dict[str, Any]:
        """Append a row and return it.

        Args:
            group: Which table of docs/performance.md shows it.
            name: With the network, sizes and batch: rows of one name, unit, hardware and arm replace each other.
            unit: Of value, floor and target.
            value: Measured.
            **more: Further keys of the schema or beside it.
        """
        schema = {"name": name, "unit": unit, "value": value, "floor": None, "ratio_to": None}
        schema |= {"ratio": None, "ratio_low": None, "ratio_high": None, "n": 1}
        busy = more.get("busy")
        marks = {"group": group, "contended": None if busy is None or self.device != "cpu" else busy < CONTENDED, "quick": self.quick or None}
        row = {key: _rounded(value) for key, value in (schema | marks | more | self.provenance()).items()}
        append(self.out, row)
        told = {
            key: row[key] for key in ("value", "unit", "floor", "target", "limit", "ratio", "ratio_low", "ratio_high") if row.get(key) is not None
        }
        print(f"{name}: {' '.join(f'{key} {value}' for key, value in told.items())}", flush=True)
        return row

    def against(self, group: str, name: str, units: int, found: Ratio, to: str, **more: Any) -> dict[str, Any]:
        """Append a row of two arms that each did `units` images in the measured seconds; see `row`."""
        ours, other = (units / seconds for seconds in found.seconds)
        return self.row(group, name, "img/s", ours, other=other, **found.columns(to), **more)

    def provenance(self) -> dict[str, Any]:
        """Return what every row carries."""
        return provenance(
            self.command, time.monotonic() - self.started, params=default_params(), threads=self.machine.threads, **environment(self.device)
        )

    def timed(self, work: Work) -> tuple[float, float]:
        """Return the wall seconds of some work, the device waited for at both borders only, and how busy it kept the threads."""
        self.wait()
        wall, processor = time.perf_counter(), time.process_time()
        work()
        self.wait()
        wall = time.perf_counter() - wall
        return wall, (time.process_time() - processor) / (max(wall, 1e-9) * self.machine.threads)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def repeated(self, work: Work, repeats: int = 5) -> Repeated:
        """Return the seconds of one call, after a warm-up; short work is called again and again for a quarter second a run.

        Work that takes seconds is repeated three times at least: what a moment does to it is small beside it.
        """
        work()
        once = self.timed(work)[0]
        calls = 1 if self.quick else max(1, min(1000, int(0.25 / max(once, 1e-6))))
        times = 2 if self.quick else repeats if once < 0.5 else min(3, repeats)
        found = [self.timed(lambda: [work() for _ in range(calls)]) for _ in range(times)]
        return Repeated(statistics.median(wall for wall, _ in found) / calls, statistics.median(busy for _, busy in found), times)

    def pairs(self, a: Work, b: Work, n: int = 5, units: tuple[float, float] = (1, 1)) -> Ratio:
        """Run two arms A B A B and return how many times faster `a` is.

        Args:
            a: Our arm.
            b: The other arm.
            n: Pairs.
            units: How much work one call of each arm does, where a call of both for the same work would take too long.
        """
        for warm in (a, b):  # memory is touched, kernels are chosen, workers have started
            warm()
        found = [(self.timed(a), self.timed(b)) for _ in range(2 if self.quick else n)]
        first, second = [x[0] / units[0] for x, _ in found], [y[0] / units[1] for _, y in found]
        ratios = [y / x for x, y in zip(first, second, strict=True)]
        low, high = bootstrap(ratios)
        busy = statistics.median(x[1] for x, _ in found)
        return Ratio(statistics.median(ratios), low, high, len(ratios), (statistics.median(first), statistics.median(second)), busy)


def bootstrap(values: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median; the same values give the same interval."""
    sample = np.random.default_rng(0).choice(np.asarray(values, float), (draws, len(values)))
    low, high = np.quantile(np.median(sample, axis=1), [0.025, 0.975])
    return float(low), float(high)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return b of `seconds = a * sizes ** b`, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def ceilings(device: str, quick: bool = False) -> Ceilings:
    """Measure what a matrix product and a copy reach; the best of several, for a ceiling is not an average."""
    cuda = device == "cuda"

    def best(work: Work) -> float:
        found = []
        for _ in range(8):
            start = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
        return min(found[1:])

    side, batch = (8192, 1024) if cuda else (1024, 8) if quick else (2048, 32)
    rng = torch.Generator().manual_seed(0)
    measured: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, generator=rng).to(device, dtype) for _ in range(2))  # zeros would be faster than data
        measured[f"matrix product, {name}"] = 2 * side**3 / best(lambda a=a, b=b: a @ b)
        # Its library may be another one, and faster on the same cores, than that of the matrix product.
        x = torch.randn(batch, 128, 32, 32, generator=rng).to(device, dtype, memory_format=torch.channels_last)
        w = torch.randn(128, 128, 3, 3, generator=rng).to(device, dtype, memory_format=torch.channels_last)
        measured[f"convolution, {name}"] = 2 * 9 * 128**2 * 1024 * batch / best(lambda x=x, w=w: torch.conv2d(x, w, padding=1))
    source = torch.randint(0, 256, (2**26 if quick or not cuda else 2**32,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    measured["copy"] = 2 * len(source) / best(lambda: target.copy_(source))
    if cuda and "H200" in torch.cuda.get_device_name():
        return Ceilings(790e12, 4.3e12, measured, cached=False)  # sustained, docs/performance.md
    return Ceilings(_most(measured, "bf16" if cuda else "fp32"), measured["copy"], measured, cached=not cuda)


def _most(measured: Mapping[str, float], precision: str) -> float:
    return max(value for name, value in measured.items() if name.endswith(f", {precision}"))


def environment(device: str) -> dict[str, Any]:
    """Return what a figure depends on beside the code: the device by its name and its clock."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_line("model name") or platform.processor() or "unknown"
    mhz = _said("nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits") if device == "cuda" else _cpu_line("cpu MHz")
    return {"hardware": f"{name}, {os.cpu_count()} cores", "clock_mhz": float(mhz.split()[0]) if mhz else None}


def _cpu_line(name: str) -> str | None:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None  # a machine without the program: unknown is null


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def peak_mib(device: str) -> float:
    """Return the peak since `reset_peak`: of the process in RAM, or of what torch allocated on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # not ru_maxrss: that one a child inherits from the process that started it
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def reset_peak(device: str) -> None:
    """Start a new peak, where the system can do that."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def describe(name: str, stem: str, size: int = 32, classes: int = 10, width: int = 32) -> Description:
    """Return the description of a network for square images with three channels."""
    built = NetworkParams(name, stem, width, "", "auto", "").built(size, size)  # pyright: ignore[reportArgumentType]
    return Description(built, tuple(map(str, range(classes))), size, size, 3, MEAN, STD)


def detects_with(params: Params, out: Description) -> Architecture:
    """Return the network that detects where the one that goes out is described by `out`."""
    given = dataclasses.replace(params.group("network", NetworkParams), name=out.network.name, stem=out.network.stem, width=out.network.width)
    return params.group("detector", DetectorParams).resolve(given).built(out.height, out.width)


def network(description: Description, device: str = "cpu") -> nn.Module:
    """Return a freshly initialised network; the same description gives the same weights."""
    return build(description, generator("benchmarks", description.network.name)).to(device)


def random_set(n: int, size: int = 32, classes: int = 10, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return random pixels uint8 [n h w c] and labels int64 [n]; never zeros, which some chips multiply faster."""
    rng = generator("benchmarks", n, size, classes)
    images = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=rng)
    return images.to(device), torch.randint(0, classes, (n,), generator=rng).to(device)


def cifar10(n: int) -> tuple[Tensor, Tensor] | None:
    """Return the first images and labels of CIFAR-10's training split below MECA_DATA, or None where there is none."""
    files = sorted(Path(os.environ.get("MECA_DATA") or ".", "cifar10").glob("train-*.parquet"))
    if not files:
        return None
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    images, labels = [], []
    for file in files:
        table = pq.read_table(file)
        label = next(name for name in table.column_names if "label" in name)
        encoded = table[next(name for name in table.column_names if name != label)].to_pylist()[: n - len(images)]
        images += [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in encoded]
        labels += table[label].to_pylist()[: len(encoded)]
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def default_params(**changes: Any) -> Params:
    """Return meca/params.yaml, read without a YAML library: nested mappings of plain values are all that it has.

    Args:
        **changes: Values for every recipe that is in force, as `min_steps`.
    """
    tree: dict[str, Any] = {}
    levels = [(-1, tree)]
    for line in PACKAGED.read_text(encoding="utf-8").splitlines():
        body = line.split(" #")[0].rstrip()
        if not body or body.startswith("#"):
            continue
        indent = len(body) - len(body.lstrip())
        key, _, value = body.strip().partition(":")
        while levels[-1][0] >= indent:
            levels.pop()
        levels[-1][1][key] = entry = _plain(value.strip()) if value else {}
        if not value:
            levels.append((indent, entry))
    for group in ("partition", "enhance", "train_clean", "relabel_finetune"):
        tree[group].get("recipe", tree[group]).update(changes)
    return Params(tree, PACKAGED.name)


def _plain(text: str) -> Any:
    if text.startswith("["):
        return [_plain(part.strip()) for part in text[1:-1].split(",")]
    if text.startswith("{"):
        return {key.strip(): _plain(value.strip()) for key, _, value in (part.partition(":") for part in text[1:-1].split(","))}
    try:
        return json.loads(text)
    except ValueError:
        return text
