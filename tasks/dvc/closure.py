"""dvc.yaml, written from the signatures of the stages and from what their programs import, so that DVC sees an edit in any of it.

python -m tasks.dvc.closure          write dvc.yaml
python -m tasks.dvc.closure --check  exit 1 if it differs
"""

import argparse
import ast
import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from meca.params import Params, read_params
from meca.stages.graph import Step, graph, read_interface

__all__ = ["closure", "dependencies", "module_file", "rendered", "stage_module"]

PACKAGES = ("meca", "tasks")
RESOURCES = (".html", ".css", ".js", ".svg", ".md", ".txt")  # what a package reads beside its code; params.yaml is tracked by key
# What lies outside of the run and makes a stage stale.
WEIGHTS = ("'${network.watch}'",)
WATCHED = {"ingest": ("'${ingest.watch}'",), **dict.fromkeys(("partition", "control", "train_clean", "evaluate", "publish"), WEIGHTS)}
UNTRACKED = ("data/ingested", "data/truth")  # what the record in MLflow does not read
HEAD = """\
# Written by `make closure` (tasks/dvc/closure.py) from the signatures of the stages; edit those, not this file. One stage, one
# program, one group of params.yaml, one word for all three (docs/files.md says what the folders hold). The lines with code below
# `deps` are what each program can import; a folder stands where it can import the whole of it.

stages:
"""
TAIL = """
plots: # track writes every curves.jsonl once more as CSV, because DVC draws no JSON lines
  - work/track/curves/partition.csv: {x: step, y: loss, title: Loss of partition}
  - work/track/curves/enhance.csv: {x: step, y: loss, title: Loss of enhance}
  - work/track/curves/train_clean.csv: {x: step, y: loss, title: Loss of train_clean}
  - work/track/curves/relabel_finetune.csv: {x: step, y: loss, title: Loss of relabel_finetune}
  - work/track/curves/evaluate.csv: {x: step, y: [acc, asr], title: ACC and ASR after each round}

artifacts:
  clean-model: {path: work/relabel_finetune/model.safetensors, type: model, desc: The model that goes out if the verdict allows it}
"""


def module_file(root: Path, module: str) -> Path | None:
    """Return the file of a module of the project, None for anything else."""
    if module.split(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def closure(root: Path, module: str) -> list[str]:
    """Return the project's files that running `module` can import, relative to `root`, sorted.

    Imports inside functions count, and so do the packages above a module, and the resources beside it that it names.
    """
    found: set[Path] = set()
    open_ = [module]
    seen: set[str] = set()
    while open_:
        name = open_.pop()
        if name in seen:
            continue
        seen.add(name)
        file = module_file(root, name)
        if file is None:
            continue
        found.add(file)
        found |= _resources(file)
        open_ += [name.rpartition(".")[0], *_imports(file, name)]
    return sorted(file.relative_to(root).as_posix() for file in found)


def _resources(file: Path) -> set[Path]:
    """Return the templates and texts beside a module that it names, and those that they name."""
    beside = {path for path in file.parent.iterdir() if path.suffix in RESOURCES}
    found: set[Path] = set()
    new = {file}
    while new:
        text = "".join(path.read_text(encoding="utf-8") for path in new)
        new = {path for path in beside - found if path.name in text}
        found |= new
    return found


def _imports(file: Path, module: str) -> Iterator[str]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # a name may be a module


def stage_module(cmd: str) -> str:
    """Return the module that a stage's command runs.

    Raises:
        ValueError: The command is not of the form `python -m module ...`.
    """
    match shlex.split(cmd):
        case ["python", "-m", module, *_]:
            return module
    raise ValueError(f"Expected a command `python -m <module> ...` in dvc.yaml, got {cmd!r}.")


def dependencies(root: Path, module: str) -> list[str]:
    """Return the closure of a module as DVC depends on it: a folder stands for its files where the module reaches every one of them."""
    found = {root / file for file in closure(root, module)}
    kept: set[Path] = set()
    for file in found:
        whole = [folder for folder in file.relative_to(root).parents if len(folder.parts) > 1 and _sources(root / folder) <= found]
        kept.add(root / whole[-1] if whole else file)  # the parents go upwards, so that the last is the largest
    return sorted(path.relative_to(root).as_posix() for path in kept)


def _sources(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def rendered(root: Path, code: bool = True) -> str:
    """Return the whole dvc.yaml of a project: what the signatures of the stages say, and what stands above in this file.

    Args:
        root: The project.
        code: Whether code is among what stages depend on; not where the installed package runs.
    """
    params, steps = read_params(root / "params.yaml"), graph(root / "meca" / "stages")
    stages = "\n".join(_stage(root, params, name, step, code) for name, step in steps.items())
    metrics = [f"{path}/metrics.json" for step in steps.values() for path in step.writes if path.startswith("work/")]
    return HEAD + stages + "\n" + _track(root, steps, code) + f"\nmetrics:\n{_wrapped(', '.join(metrics).join('[]'))}\n" + TAIL


def _stage(root: Path, params: Params, name: str, step: Step, code: bool) -> str:
    file = root / "meca" / "stages" / f"{name}.py"
    each = read_interface(file)
    assert each is not None  # the graph has it
    desc = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()[0].rstrip(".")
    inputs = zip(each.inputs, step.reads, strict=True)
    outputs = zip(each.outputs, step.writes, strict=True)
    receipt = f"work/receipts/{name}.json"
    options = [" ".join(f"--{key.replace('_', '-')} {path}" for key, path in pairs) for pairs in (inputs, outputs)]
    sources = dict.fromkeys(["seed", *(source for group in each.groups for source in params.sources(group))])
    return _entry(
        name,
        desc,
        [f"python -m meca.stages.{name}", *filter(None, options), f"--params params.yaml --receipt {receipt}"],
        [*WATCHED.get(name, ()), *step.reads, *(dependencies(root, f"meca.stages.{name}") if code else ())],
        list(sources),
        f"[{', '.join((*step.writes, receipt))}]",
    ) + ("    meta: {gpu: true} # takes the host's `gpu` slot in the flow\n" if "engine" in each.parameters else "")


def _track(root: Path, steps: Mapping[str, Step], code: bool) -> str:
    """Return the one stage that is no program of meca: it reads what all others wrote."""
    receipts = [f"work/receipts/{name}.json" for name in steps]
    places = [path for step in steps.values() for path in step.writes if path not in UNTRACKED]
    module = "tasks.mlflow.tracking"
    return _entry(
        "track",
        "Tell MLflow what ran, on what and how it came out",
        [
            f"python -m {module}",
            f"--receipts {' '.join(receipts)}",
            "--store data/store --work work --published published --report report --out work/track",
            "--params params.yaml",
        ],
        [*places, *receipts, *(dependencies(root, module) if code else ())],
        ["preset", "track"],
        "[work/track: {cache: false}] # a record restored from the cache would name runs that MLflow may not have",
    )


def _entry(name: str, desc: str, cmd: Sequence[str], deps: Sequence[str], params: Sequence[str], outs: str) -> str:
    lines = [f"  {name}:", f"    desc: {json.dumps(desc, ensure_ascii=False)}", "    cmd: >-", _wrapped(" ".join(cmd))]
    lines += ["    deps:", _wrapped(f"[{', '.join(deps)}]"), "    params:", _wrapped(f"[{', '.join(params)}]"), f"    outs: {outs}"]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> str:
    text = re.sub(r"(--\S+) (?!--)", "\\1\0", text)  # an option stays beside its first value
    return textwrap.fill(text, 150, initial_indent=" " * 6, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False).replace(
        "\0", " "
    )


def main() -> None:
    """Write or check the dvc.yaml of the working directory."""
    parser = argparse.ArgumentParser(prog="python -m tasks.dvc.closure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if there is something to change")
    arguments = parser.parse_args()
    path = Path("dvc.yaml")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after = rendered(Path())
    if arguments.check and after != before:
        raise SystemExit("Expected dvc.yaml to be what the stages say of themselves, and it differs: run `python -m tasks.dvc.closure`.")
    if after != before:
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
