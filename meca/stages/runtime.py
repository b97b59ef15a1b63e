"""What every stage program shares: options, lock, finished-or-nothing outputs, checkpoints, receipt.

A stage is a module with a function `run`, whose signature says everything (`meca.stages.graph`): `ctx` comes from here, folders are
read and written, groups of params.yaml arrive as their dataclasses. `main` makes the program of it, `execute` runs it from Python.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import time
import traceback
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from meca import state
from meca.errors import MecaError, UsageError, system_failure
from meca.files import (
    atomic_write,
    canonical_json,
    code_digest,
    fresh_folder,
    lock,
    open_named,
    own_folder,
    refuse_foreign,
    replace_folder,
    sha256_tree,
)
from meca.machine import die_with_parent, peak_mib, processor, versions
from meca.params import Params, read_params
from meca.progress import Progress
from meca.stages.graph import Interface, interface
from meca.text import plain

__all__ = ["Context", "describe", "execute", "input_hashes", "main", "numbers", "stage_key", "weights_digest"]

NETWORK = "network"  # the group of params.yaml that names a file of weights
MAX_WEIGHTS = 2**30  # bytes


@dataclasses.dataclass
class Context:
    """What a stage knows of the world: parameters, a place for checkpoints, a place to say things."""

    name: str
    params: Params
    checkpoints: Path  # survives a kill; not among the outputs, because DVC empties those before it runs a stage
    progress: Progress
    out: Path
    metrics: dict[str, float | int | None] = dataclasses.field(default_factory=dict)
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    sandbox: dict[str, Any] | None = None  # what the decoder of images was confined by; goes into the receipt alone, like all that is this machine's

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.params.seed

    def curve(self, **values: float | str) -> None:
        """Append one point (a step or an epoch) to curves.jsonl."""
        with open(self.out / "curves.jsonl", "a", encoding="utf-8") as file:
            file.write(canonical_json(values, indent=None))

    @contextlib.contextmanager
    def timed(self, what: str) -> Any:
        """Add the seconds of a block to the receipt."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[what] = self.timings.get(what, 0.0) + time.perf_counter() - start


def describe(module: ModuleType) -> Interface:
    """Return the interface of a stage module."""
    name = module.__spec__.name.rsplit(".", 1)[-1] if module.__spec__ else module.__name__
    return interface(name, module.run)


def numbers(module: ModuleType, params: Params) -> dict[str, Any]:
    """Return what a stage's `run` gets of params.yaml, each group as the dataclass that its parameter is annotated with.

    Raises:
        UsageError: A group has unknown, missing or impossible fields.
    """
    classes = typing.get_type_hints(module.run)
    return {name: params.group(group, classes[name]) for name, group in describe(module).parameters.items()}


def input_hashes(stage: Interface, paths: Mapping[str, Path], params: Params) -> dict[str, str]:
    """Return the SHA-256 of all that a stage reads, by name: its folders, and the file of weights that the network starts from.

    Args:
        stage: Its interface.
        paths: A path for each input, by name; others are not looked at.
        params: The parameters.

    Raises:
        UsageError: There are no such weights.
    """
    hashes = {name: sha256_tree(paths[name]) for name in stage.inputs}
    if NETWORK in stage.groups and (weights := params.raw(NETWORK).get("weights")):
        hashes[f"{NETWORK}.weights"] = weights_digest(Path(str(weights)))
    return hashes


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a file of weights.

    Raises:
        UsageError: There is none that can be read.
    """
    with open_named(path, MAX_WEIGHTS, f"weights ({NETWORK}.weights)") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_key(stage: Interface, hashes: Mapping[str, str], params: Params) -> str:
    """Return the name of a stage's result: hash of stage, input hashes, parameters in force and code."""
    content = [stage.name, dict(hashes), params.in_force(stage.groups), code_digest()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def execute(
    module: ModuleType,
    paths: Mapping[str, Path],
    params: Params,
    receipt: Path | None = None,
    progress: Progress | None = None,
    scratch: Path | None = None,
) -> dict[str, Any]:
    """Run a stage and return its receipt.

    Every output appears whole or not at all. What a killed run left behind is removed at the next start, except its
    checkpoints, from which it continues if they are this user's.

    Args:
        module: The stage.
        paths: A path for each input and output that `describe` names.
        params: The parameters.
        receipt: Where to write the receipt; nowhere if None.
        progress: Told what is going on; silent if None.
        scratch: Folder for checkpoints and locks; `.meca` in the working directory if None.

    Raises:
        UsageError: An output, or what meca keeps beside it, is a link or another user's.
        MecaError: The stage cannot do its work.
    """
    stage, given = describe(module), numbers(module, params)
    named, progress = os.environ.get("MECA_SCRATCH"), progress or Progress(quiet=True)
    scratch = scratch or (Path(named).resolve() if named else Path(".meca"))  # where the user names it, it may be a link of theirs
    for folder in (*(paths[name] for name in stage.outputs), *([receipt.parent] if receipt else ())):
        refuse_foreign(folder)
    started = time.perf_counter()
    owner = hashlib.sha256(str(paths[stage.outputs[0]].resolve()).encode()).hexdigest()[:16]
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps several times the size of the tables that it reads
    locks = own_folder(scratch / "locks", scratch)
    with lock(locks / f"{stage.name}-{owner}", f"The output of stage {stage.name}"):
        hashes = input_hashes(stage, paths, params)
        key = stage_key(stage, hashes, params)
        temporary = {name: fresh_folder(paths[name].with_name(paths[name].name + ".tmp")) for name in stage.outputs}
        # With the owner, because another run on the same input that writes elsewhere has checkpoints of its own.
        checkpoints = own_folder(scratch / "checkpoints" / f"{stage.name}-{owner}-{key[:24]}", scratch)
        _forget_foreign(checkpoints, progress)
        ctx = Context(stage.name, params, checkpoints, progress, temporary[stage.outputs[0]])
        try:
            module.run(ctx=ctx, **{n: paths[n] for n in stage.inputs}, **temporary, **given)
            if ctx.metrics:
                atomic_write(ctx.out / "metrics.json", canonical_json(ctx.metrics))
            for name in stage.outputs:
                replace_folder(temporary[name], paths[name])
        except BaseException:
            for folder in temporary.values():  # on a full disk it would be in the way of the next try
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(checkpoints, ignore_errors=True)
        record = {
            "schema": "meca.receipt/1",
            "stage": stage.name,
            "key": key,
            "preset": params.preset,
            "params": params.in_force(stage.groups),
            "inputs": hashes,
            "outputs": {name: sha256_tree(paths[name]) for name in stage.outputs},
            "metrics": ctx.metrics,
            "seconds": round(time.perf_counter() - started, 3),
            "timings": {name: round(value, 3) for name, value in ctx.timings.items()},
            "peak_mib": peak_mib(),
            "versions": versions(),
            "sandbox": ctx.sandbox,
            "hardware": {"machine": platform.machine(), "processor": processor(), "cores": os.cpu_count()},
        }
        if receipt is not None:
            atomic_write(receipt, canonical_json(record))
        return record


def _forget_foreign(checkpoints: Path, progress: Progress) -> None:
    """Say which checkpoints are not used: a training reads none that this user's meca did not write."""
    found = [path for path in sorted(checkpoints.glob("*.safetensors")) if state.read(path, *state.of_checkpoint(path)) is None]
    if found:
        progress.say(state.lasts() or f"{found[0]} was not written by this user's meca; its training begins anew.")


def _refuse_unwatched(stage: Interface, params: Params) -> None:
    """Refuse weights that DVC, which starts a stage as a program, would not see change.

    Raises:
        UsageError: Says what to set.
    """
    if NETWORK in stage.groups:
        weights, watch = (str(params.raw(NETWORK).get(name, "")) for name in ("weights", "watch"))
        if weights and Path(weights).resolve() != Path(watch).resolve():
            raise UsageError(
                f"{params.origin}: expected network.watch to be network.weights, {weights!r}, so that DVC sees them change, got {watch!r}."
            )


def main(module: ModuleType, argv: Sequence[str] | None = None) -> None:
    """Run a stage as a program. Exits 0 when the work is done, whatever was found: a verdict is data, not a failure."""
    die_with_parent()
    stage = describe(module)
    parser = argparse.ArgumentParser(prog=f"python -m meca.stages.{stage.name}", description=(module.__doc__ or "").splitlines()[0])
    for name in stage.inputs:
        parser.add_argument("--" + name.replace("_", "-"), dest=name, type=Path, required=True, help="input")
    for name in stage.outputs:
        parser.add_argument("--" + name.replace("_", "-"), dest=name, type=Path, required=True, help="output")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file")
    parser.add_argument("--receipt", type=Path, help="where to write what was done")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under `nohup`
            signal.signal(number, lambda *_: sys.exit(143))
    try:
        paths = {name: getattr(arguments, name) for name in (*stage.inputs, *stage.outputs)}
        with Progress() as progress:
            params = read_params(arguments.params)
            _refuse_unwatched(stage, params)
            execute(module, paths, params, arguments.receipt, progress)
    except MecaError as error:
        print(f"meca {stage.name}: {plain(error, 2000)}", file=sys.stderr)  # it may repeat a name out of the data
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # 1 would say "poison found"
        if failure := system_failure(error):
            print(f"meca {stage.name}: {failure}", file=sys.stderr)
        else:
            traceback.print_exc()
        raise SystemExit(MecaError.exit_code) from None
