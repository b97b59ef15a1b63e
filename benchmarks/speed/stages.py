"""The five stages of preset `default`, a row each; and the memory of a training.

    python -m benchmarks.speed.stages --out FILE   in a process of its own, which benchmarks.speed starts: cold is cold

The functions of the method are called one after the other on tensors in memory: what the stage programs read, hash and write
is not in these seconds (`stage_seconds` in quality.jsonl has both). A patch is planted on a twentieth of the images, and
the stages after `split` go on with that truth instead of its verdict: every run does the same work, and its floor is known.

*Peak memory over store + model.* A process imports what the work imports and takes one step on four images of 8 px, which
brings in the pages of the libraries: its resident memory is the baseline. Then it holds the set and the network, trains
and scores. The growth of its peak over that baseline is divided by the bytes of `images.npy` and of the weights. So all counts
that the work itself needs: the set and every copy of it, momentum, gradients, activations, scratch memory, mapped files; only
the interpreter and the libraries do not. The set is as large as CIFAR-10: beside a small one the activations of one
batch alone weigh more than set and weights. On a GPU it is the peak of what torch allocated there.
"""

import argparse
import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from benchmarks.speed.floors import STAGES, passes, stage_cost, target, works_with
from benchmarks.speed.harness import Bench, cifar10, default_params, describe, detects_with, network, peak_mib, random_set, reset_peak
from benchmarks.speed.peers import RECIPE
from meca.method.enhance import SIDES, EnhanceParams, suspects_first, two_outputs
from meca.method.partition import PartitionParams, choose, principal_axis, signals, suspicion
from meca.method.proofs import Proof
from meca.method.relabel import RelabelParams, relabel
from meca.method.scoring import patch_masks, score
from meca.method.split import Asked, SplitParams, detect
from meca.models import Network, build
from meca.params import Params
from meca.training.device import Device
from meca.training.engine import Data, Session, features, predict, side_by_side
from meca.training.seeds import generator
from meca.training.trainer import Recipe

FLAGGED = 0.05
TARGET_CLASS = 1


def planted(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, labels and the mask of those that carry a white patch and the target's label."""
    images, labels, poisoned = images.clone(), labels.clone(), torch.zeros(len(labels), dtype=torch.bool)
    poisoned[torch.randperm(len(labels), generator=generator("benchmarks", "poison"))[: int(FLAGGED * len(labels))]] = True
    images[poisoned, -4:-1, -4:-1] = 255
    labels[poisoned] = TARGET_CLASS
    return images, labels, poisoned


def five(images: Tensor, labels: Tensor, poisoned: Tensor, name: str, stem: str, params: Params, seed: int, machine: Device) -> Iterator[None]:
    """Run the stages of `STAGES`, and stop after each.

    Args:
        images: uint8 [n h w c], on the device.
        labels: int64 [n].
        poisoned: bool [n].
        name: Of the network.
        stem: Of the network.
        params: Preset `default`.
        seed: Of the run; another one for each, so that inputs rotate.
        machine: Mode and threads.
    """
    device = images.device
    description = describe(name, stem, images.shape[1], int(labels.max()) + 1)
    detector, enhancer = params.group("partition", PartitionParams), params.group("enhance", EnhanceParams)
    watching = dataclasses.replace(description, network=detects_with(params, description))
    data, session = Data(images, labels), Session(seed, machine)

    early = build(watching, generator(seed, "partition", "init")).to(device)
    session.train(early, data, detector.recipe, "partition")
    found = signals(early, images, labels, detector, generator(seed, "partition", "masks"))
    suspicious = suspicion(found, detector.signals)
    choose(suspicious, labels, detector.alpha, detector.alpha_of)
    yield

    orders = suspects_first(suspicious, principal_axis(features(early, images), labels, found.loss))
    known = Network(early, watching)
    jobs = [partial(two_outputs, session, known, data, orders[side], enhancer, side) for side in SIDES]
    sides = dict(zip(SIDES, side_by_side(jobs, machine), strict=True))
    yield

    margins = {side: result.margin.double().cpu().numpy() for side, result in sides.items()}
    clean = params.group("train_clean", Recipe)
    detect(Asked(session, known, data, margins, params.group("split", SplitParams), clean, enhancer.recipe, lambda *_: None))
    yield

    model = build(description, generator(seed, "train_clean", "init")).to(device)
    session.train(model, data, clean, "train_clean", ~poisoned)
    yield

    finetune = params.group("relabel_finetune", RelabelParams)
    proofs: list[Proof | None] = ["difference" if flag else None for flag in poisoned.tolist()]
    decided = relabel(predict(model, images).softmax(1), labels, poisoned, suspicious.float(), proofs, finetune)
    session.train(model, Data(images, decided.labels), finetune.recipe, "relabel_finetune", decided.keep)
    yield


def measured(bench: Bench, work: Iterator[None]) -> dict[str, tuple[float, float, float]]:
    """Return seconds, busy share of the threads and peak MiB of every stage and of all together."""
    found: dict[str, tuple[float, float, float]] = {}
    for stage in STAGES:
        reset_peak(bench.device)
        seconds, busy = bench.timed(lambda: next(work))
        found[stage] = seconds, busy, peak_mib(bench.device)
    each = np.array(list(found.values()))
    found["all five"] = float(each[:, 0].sum()), float(np.average(each[:, 1], weights=each[:, 0])), float(each[:, 2].max())
    return found


def stages(bench: Bench, name: str, stem: str, n: int, until: float, repeats: int = 5) -> None:
    """Write a row per stage: cold, the first run of this process, and warm, the median of as many more as fit.

    Args:
        bench: Where the rows go.
        name: Of the network.
        stem: Of the network.
        n: Images.
        until: Of time.monotonic: no run is started that would end after it.
        repeats: Warm runs, at most.
    """
    params = default_params(epochs=1, min_steps=0) if bench.quick else default_params()
    real = cifar10(n)
    images, labels, poisoned = (tensor.to(bench.device) for tensor in planted(*(real or random_set(n))))
    runs: list[dict[str, tuple[float, float, float]]] = []
    while len(runs) < 1 + repeats:
        begun = time.monotonic()
        runs.append(measured(bench, five(images, labels, poisoned, name, stem, params, len(runs), bench.machine)))
        if 2 * time.monotonic() - begun > until:
            break
    limits, setting = bench.ceilings, f"{name} {stem}, {n:,} x 32 px"
    counted = passes(n, FLAGGED, params)
    used = {stage: works_with(stage, name, stem) for stage in STAGES}
    each = {stage: stage_cost(stage, name, stem) for stage in STAGES}
    floors = {stage: each[stage].floor(limits, **counted[stage]) for stage in STAGES}
    flops = {stage: sum(count * each[stage].flops(kind) for kind, count in counted[stage].items()) for stage in STAGES}
    targets = {stage: target(bench.device, used[stage].name, used[stage].stem, counted[stage]) for stage in STAGES}
    known = [targets[stage] for stage in STAGES if counted[stage]]
    floors["all five"], flops["all five"] = sum(floors.values()), sum(flops.values())
    targets["all five"] = sum(t for t in known if t is not None) if None not in known else None
    for state, group in (("cold", runs[:1]), ("warm", runs[1:])):
        for stage in (*STAGES, "all five") if group else ():
            seconds, busy, peak = (float(np.median([run[stage][i] for run in group])) for i in range(3))
            bench.row(
                "stage",
                f"{stage}, {setting}, {state}",
                "s",
                seconds,
                floor=floors[stage] or None,
                target=targets[stage],
                mfu=flops[stage] / (seconds * limits.flops) or None,
                samples_per_s=n / seconds,
                peak_mib=peak,
                busy=busy,
                n=len(group),
                state=state,
                data="CIFAR-10" if real else "random pixels",
            )


def growth(bench: Bench, work: Callable[[], int]) -> tuple[float, float]:
    """Return the peak growth of this process in MiB while it works, and that over the bytes that the work says it is about."""
    small, given = random_set(4, 8, device=bench.device)
    Session(0, bench.machine).train(network(describe("compact", "s2d", 8), bench.device), Data(small, given), RECIPE, "baseline")
    reset_peak(bench.device)
    before = peak_mib(bench.device)
    own = work()
    grown = peak_mib(bench.device) - before
    return grown, grown * 2**20 / own


def engine_memory(bench: Bench, name: str, stem: str, n: int) -> None:
    """Write the peak of training and scoring over store and model, the set in memory. A peak needs a few batches, not an epoch."""

    def work() -> int:
        images, labels = random_set(n, device=bench.device)
        model = network(describe(name, stem), bench.device)
        keep = torch.arange(n, device=bench.device) % max(1, n // 1024) == 0
        Session(0, bench.machine).train(model, Data(images, labels), RECIPE, "memory", keep)
        score(model, images[:512], labels[:512], patch_masks(1, 32, 32, 2, 0.25, generator("memory")).to(bench.device), 2 / 255)
        return images.numel() + _bytes(model)

    _memory_row(bench, f"peak memory over store + model, training and scoring, {name} {stem}, {n:,} x 32 px", *growth(bench, work))


def program_memory(bench: Bench, n: int) -> None:
    """Write the same of the program of stage `partition`, which opens and checks a store on disk."""
    from meca.stages import partition, runtime

    with tempfile.TemporaryDirectory() as place:
        store, out = Path(place, "store"), Path(place, "partition")
        # Written by another process: what the allocator keeps of it would hide in the baseline.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            size = pool.submit(_write_store, store, n).result()
        pa.array(np.arange(4))  # imports pandas where it is installed
        params = default_params(epochs=1, min_steps=0)

        def work() -> int:
            runtime.execute(partition, {"store": store, "out": out}, params, scratch=Path(place, "scratch"))
            return size + (out / "model.safetensors").stat().st_size

        _memory_row(bench, f"peak memory over store + model, program of partition, {n:,} x 32 px", *growth(bench, work))


def _write_store(path: Path, n: int) -> int:
    """Write a store of random images and return the bytes of its pixels."""
    from meca.data.store import pixel_id, write_store

    images, labels = (tensor.numpy() for tensor in random_set(n))
    line = {"split": "train", "class_name": "", "width": 32, "height": 32, "mode": "RGB", "format": "raw", "bytes": 0, "offset": -1}
    lines = [
        {**line, "sample_id": pixel_id(images[i]), "source": str(i), "row": i, "label": int(labels[i]), "reason": None, "notes": []} for i in range(n)
    ]
    write_store(path, images, lines, [str(c) for c in range(10)], {"name": "random"})
    return int(images.nbytes)


def _memory_row(bench: Bench, name: str, grown: float, ratio: float) -> None:
    bench.row("memory", name, "times", ratio, limit=2.0, holds=ratio <= 2, peak_mib=grown)


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def main() -> None:
    """Run in a fresh process what must be cold or alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("stages", "memory", "program-memory"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", default="python -m benchmarks.speed")
    parser.add_argument("--network", nargs=2, default=("compact", "s2d"), metavar=("NAME", "STEM"))
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--budget", type=float, default=180.0, help="seconds")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    bench, (name, stem) = Bench(arguments.out, arguments.command, arguments.quick), arguments.network
    if arguments.what == "stages":
        stages(bench, name, stem, arguments.n, time.monotonic() + arguments.budget)
    elif arguments.what == "memory":
        engine_memory(bench, name, stem, arguments.n)
    else:
        program_memory(bench, arguments.n)


if __name__ == "__main__":
    main()
