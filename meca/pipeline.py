"""The whole pipeline without a platform: the stages in order, in one folder. `meca clean` is this and nothing else.

The graph is read from the signatures of the stages (`meca.stages.graph`), as that of dvc.yaml is. Started again on the same input it
resumes: a stage whose inputs, parameters and code are those of its receipt, and whose outputs still have the receipt's hashes, is not
run again. Receipts are outputs too, which anybody can write; so this user's meca seals them (`meca.state`), and what carries no seal
of this user is made anew.
"""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from meca import state
from meca.errors import MecaError, UsageError
from meca.files import (
    canonical_json,
    code_digest,
    lock,
    own_folder,
    read_json,
    refuse_foreign,
    sha256_tree,
)
from meca.params import Params
from meca.progress import Progress
from meca.stages.graph import graph, place

__all__ = ["find_run", "paths_of", "refuse_planted", "run", "run_folder"]

STORE = "data/store"
FIRST = "ingest"  # the one stage that reads something outside of the run folder
JUDGES = "partition"  # the first stage that looks at the images to judge them

Told = Callable[[str, float | None], None]  # stage, seconds; None where it was finished already


def run(folder: Path, params: Params, progress: Progress | None = None, told: Told | None = None, until: str = "") -> dict[str, Any]:
    """Run every stage that is not finished, in `folder`, and return the summary; nothing with `until`.

    Args:
        folder: Gets `data/`, `work/`, `published/` and `report/`.
        params: The parameters.
        progress: Told what is going on inside a stage.
        told: Called after each stage.
        until: Name of a stage that is run with those that it needs, and no other; empty for all.

    Raises:
        UsageError: The folder, or something in it, is a link or another user's.
        MecaError: A stage could not do its work; started again, the run goes on.
    """
    from meca.stages.runtime import execute

    refuse_foreign(folder, below=True)
    say = progress.say if progress else lambda _: None
    with lock(own_folder(folder / ".meca" / "locks", folder) / "run", f"The run in {folder}"):
        if why := state.lasts():
            say(why)
        now = _forget_if_changed(folder, params, say)
        # All of them first: what is missing shows before hours of work, and the code that a stage's key stands for is the
        # same whether the stages before it ran in this process or in an earlier one.
        modules = {name: importlib.import_module(f"meca.stages.{name}") for name in graph()}
        importlib.import_module("meca.stages.parameters").validate(params, modules.values())  # a number that a late stage refuses shows now, too
        for name in _needed(until):
            module = modules[name]
            paths, receipt = paths_of(module, name, folder), _receipt(folder, name)
            if name == JUDGES and progress:
                _say_size(folder / STORE, progress)
            seconds = None
            if not _is_ours(folder, name, now, say) or not _finished(module, paths, params, receipt):
                receipt.unlink(missing_ok=True)
                record = execute(module, paths, params, None, progress, folder / ".meca")
                state.write(receipt, canonical_json(record).encode(), *_seal_name(folder, name, now), seals=_seals(folder, name))
                seconds = record["seconds"]
            if told:
                told(name, seconds)
    return {} if until else read_json(folder / "published" / "summary.json")


def _needed(until: str) -> list[str]:
    """Return the names of the stages in order; where `until` names one, it and those whose outputs it needs."""
    steps = graph()
    if not until:
        return list(steps)
    needed, reads = [until], set(steps[until].reads)
    for name, step in reversed(steps.items()):
        if reads & set(step.writes):
            needed.append(name)
            reads |= set(step.reads)
    return needed[::-1]


def _say_size(store: Path, progress: Progress) -> None:
    """Say before hours of work, also of a resumed run, that images are judged at less than their size."""
    from meca.data.judged import notice, of_store
    from meca.data.store import open_store

    if said := notice(of_store(open_store(store, verify=False))):
        progress.say(f"Warning: {said}")


def run_folder(out: Path) -> Path:
    """Return the folder beside `out` that holds what the stages wrote: the published folder itself stays free of it."""
    out = out.resolve()
    return out.with_name(f".{out.name}.meca")


def refuse_planted(out: Path) -> None:
    """Refuse an output, or what meca keeps beside it, that is a link or another user's: before anything is written, removed or followed.

    Raises:
        UsageError: It is.
    """
    refuse_foreign(out)
    out = out.resolve()
    for beside in (f".{out.name}.tmp", f".{out.name}.old", f".{out.name}.planting"):
        refuse_foreign(out.with_name(beside))
    refuse_foreign(run_folder(out))  # what lies in it is looked at by `run`


def find_run(path: Path, reads: Collection[str] | None = None) -> Path:
    """Return the folder of the run that `path` belongs to: a workspace, a run folder, or the output of `clean`.

    A run that lies beside an output was not named by the user, so it has to be one that this user's meca wrote.

    Args:
        path: What the user named.
        reads: The outputs of stages that are going to be read, as in the graph; what the page is made of if None.

    Raises:
        UsageError: There is none, or it is not this user's.
    """
    for folder in (path, run_folder(path)):
        if (folder / "work").is_dir() and (folder / "published").is_dir():
            if folder != path:
                _refuse_unsealed(folder, graph()["report"].reads if reads is None else reads)
            return folder
    raise UsageError(f"Expected the folder of a finished run (with work/ and published/) or the output of `meca clean`, got {path}.")


def _refuse_unsealed(folder: Path, reads: Collection[str]) -> None:
    refuse_foreign(folder, below=True)
    now = _identity(folder)
    for name, (_, writes) in graph().items():
        wanted = set(writes) & set(reads)
        if wanted or os.path.lexists(_receipt(folder, name)):  # parameters are read from receipts, too
            ours = bool(now) and _is_ours(folder, name, now, lambda _: None)
            told = read_json(_receipt(folder, name))["outputs"] if ours else {}
            if not ours or not all((folder / path).exists() and told.get(_output(writes, path)) == sha256_tree(folder / path) for path in wanted):
                raise UsageError(
                    f"{folder} is not as this user's meca left it, so nothing is read from it. Run `meca clean` again; or, if you trust whoever "
                    f"wrote it, name {folder.name} itself instead of the output. {state.lasts()}".rstrip()
                )


def paths_of(module: ModuleType, name: str, folder: Path) -> dict[str, Path]:
    """Return a path below `folder` for every input and output of a stage."""
    from meca.stages.runtime import describe

    stage = describe(module)
    inputs = dict(zip(stage.inputs, graph()[name].reads, strict=True))
    return {key: folder / path for key, path in {**inputs, **{output: place(name, output) for output in stage.outputs}}.items()}


def _output(writes: Collection[str], path: str) -> str:
    """Return the name of an output of a stage that writes these."""
    return "out" if len(writes) == 1 else Path(path).name


def _receipt(folder: Path, name: str) -> Path:
    return folder / "work" / "receipts" / f"{name}.json"


def _seals(folder: Path, name: str) -> Path:
    return folder / ".meca" / "seals" / f"{name}.seal"


def _seal_name(folder: Path, name: str, now: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a receipt is sealed for: this stage of the run in this folder, under this code and, where it reads it, this input."""
    return "receipt", str(folder.resolve()), name, now["code"], now["input"] if name == FIRST else ""


def _is_ours(folder: Path, name: str, now: Mapping[str, str], say: Callable[[str], None]) -> bool:
    """Tell whether this user's meca wrote the receipt of a stage."""
    receipt = _receipt(folder, name)
    if state.read(receipt, *_seal_name(folder, name, now), seals=_seals(folder, name)) is not None:
        return True
    if os.path.lexists(receipt) and not state.lasts():
        say(f"{receipt} was not written by this user's meca; stage {name} is run anew.")
    return False


def _finished(module: ModuleType, paths: Mapping[str, Path], params: Params, receipt: Path) -> bool:
    from meca.stages.runtime import describe, input_hashes

    stage = describe(module)
    if not receipt.is_file() or not all(paths[name].exists() for name in (*stage.inputs, *stage.outputs)):
        return False
    try:
        record = read_json(receipt)
    except MecaError:
        return False
    return (
        record.get("params") == params.in_force(stage.groups)
        and record.get("inputs") == input_hashes(stage, paths, params)
        and record.get("outputs") == {name: sha256_tree(paths[name]) for name in stage.outputs}
    )


def _identity(folder: Path) -> dict[str, str]:
    """Return what the run in a folder was made of, as this user's meca wrote it down; nothing where it did not."""
    data = state.read(folder / ".meca" / "identity.json", "identity", str(folder.resolve()))
    return {} if data is None else json.loads(data)


def _forget_if_changed(folder: Path, params: Params, say: Callable[[str], None]) -> dict[str, str]:
    """Drop the receipts that the code or the input of today does not stand behind, and return what these are.

    Receipts hold what a stage read below the run folder. Two things lie outside of it: the code, and the input of `ingest`,
    which is told by name, size and times, since reading it all only to see that nothing changed would double the work.
    """
    receipts = folder / "work" / "receipts"
    now = {"code": code_digest(), "input": _fingerprint(str(params.raw("ingest").get("source")))}
    before = _identity(folder)
    if not before and os.path.lexists(receipts) and not state.lasts():
        say(f"{folder} was not written by this user's meca; what is in it is made anew.")
    if before.get("code") != now["code"]:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(receipts)
    elif before.get("input") != now["input"]:
        _receipt(folder, FIRST).unlink(missing_ok=True)
    state.write(folder / ".meca" / "identity.json", canonical_json(now).encode(), "identity", str(folder.resolve()))
    return now


def _fingerprint(source: str) -> str:
    digest = hashlib.sha256(source.encode(errors="surrogateescape"))
    for path in _entries(Path(source)):
        status = path.lstat()
        line = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _entries(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for folder, folders, files in os.walk(path):
            folders.sort()
            yield from (Path(folder, name) for name in sorted(files))
    elif path.exists():
        yield path
