"""What importing costs and what it must not do, the programs' help, and that all readers agree about params.yaml."""

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

import meca
from meca.params import PACKAGED, PRESETS, read_params
from meca.stages.graph import graph, interface
from meca.stages.runtime import describe

ROOT = Path(__file__).parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages(meca.__path__, "meca."))
FORBIDDEN = ("prefect", "mlflow", "dvc", "boto3", "botocore", "aiobotocore", "s3fs", "flows", "tasks")
LIGHT = ["meca", "meca.errors", "meca.files", "meca.params", "meca.data.store", "meca.metrics", "meca.method.evidence", "meca.attacks.poisoning",
         "meca.release.verification", "meca.release.decisions", "meca.release.signing",
         "meca.pipeline", "meca.attacks", "meca.stages.ingest", "meca.stages.poison", "meca.stages.publish", "meca.stages.report"]  # fmt: skip


def python(program: str, folder: Path, *arguments: str) -> Any:
    """Run a program in a fresh process and an empty folder, and return what it prints as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir()), "importing wrote a file"
    return json.loads(done.stdout)


IMPORT_ALL = """
import importlib, json, os, random, signal, sys, threading
import numpy, torch, torchvision  # which sets a variable of its own
state = lambda: [
    dict(os.environ), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist(),
    str(numpy.random.get_state()), hash(random.getstate()), str(signal.getsignal(signal.SIGTERM)), str(signal.getsignal(signal.SIGINT)),
    os.getcwd(), threading.active_count(), torch.get_default_dtype().__str__(), torch.is_grad_enabled(),
]
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps({"same": [a == b for a, b in zip(before, state())], "modules": sorted({m.split(".")[0] for m in sys.modules})}))
"""


def test_importing_all_of_meca_does_no_work_and_knows_no_platform(tmp_path: Path) -> None:
    assert len(MODULES) > 40
    found = python(IMPORT_ALL, tmp_path, *MODULES)
    assert all(found["same"]), found["same"]
    assert not set(FORBIDDEN) & set(found["modules"])


IMPORT_LIGHT = """
import importlib, json, sys
heavy = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "pandas")
found = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = [h for h in heavy if h in sys.modules]
print(json.dumps(found))
"""


def test_what_needs_no_torch_imports_none(tmp_path: Path) -> None:
    found = python(IMPORT_LIGHT, tmp_path, *LIGHT)
    assert found == {name: [] for name in LIGHT}


HELP = """
import contextlib, io, json, runpy, sys
found = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        runpy.run_module(f"meca.stages.{name}", run_name="__main__", alter_sys=True)
    found[name] = said.getvalue()
print(json.dumps(found))
"""


def test_every_program_says_what_it_reads_and_writes(tmp_path: Path) -> None:
    found = python(HELP, tmp_path, *graph())
    for name in graph():
        module = importlib.import_module(f"meca.stages.{name}")
        stage = describe(module)
        assert found[name].startswith(f"usage: python -m meca.stages.{name} ")
        for option in (*stage.inputs, *stage.outputs, "params", "receipt"):
            assert f"--{option.replace('_', '-')} " in found[name]
        assert "".join((module.__doc__ or "").splitlines()[0].split()) in "".join(found[name].split())


@pytest.mark.parametrize("name", ["ingest", "train_clean"])
def test_a_program_helps_when_called_by_name(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"meca.stages.{name}"]
    helped = subprocess.run([*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert helped.returncode == 0 and helped.stderr == "" and "--out" in helped.stdout
    assert not list(tmp_path.iterdir())


def test_a_program_without_its_options_says_which_are_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "meca.stages.poison"]
    wrong = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2 and "the following arguments are required: --ingested, --store, --truth" in wrong.stderr


def test_every_module_exports_what_it_promises() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        missing = [word for word in getattr(module, "__all__", ()) if not hasattr(module, word)]
        assert not missing, f"{name}: {missing}"


def test_the_packaged_parameters_are_those_at_the_root() -> None:
    assert PACKAGED.samefile(ROOT / "params.yaml")


def test_all_readers_see_the_same_values_of_the_same_types() -> None:
    from ruamel.yaml import YAML

    text = PACKAGED.read_text(encoding="utf-8")
    trees = [read_params(PACKAGED).tree, yaml.safe_load(text), YAML(typ="safe").load(text)]

    def typed(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: typed(value) for key, value in node.items()}
        return [typed(item) for item in node] if isinstance(node, list) else (type(node).__name__, node)

    assert typed(trees[0]) == typed(trees[1]) == typed(trees[2])


def test_dvc_reads_the_same_values(tmp_path: Path) -> None:
    program = "import json, sys; from dvc.utils.serialize import load_yaml; print(json.dumps(load_yaml(sys.argv[1])))"
    assert python(program, tmp_path, str(PACKAGED)) == read_params(PACKAGED).tree


def groups() -> dict[str, type]:
    """Return the dataclass of every group that a stage reads."""
    found: dict[str, type] = {}
    for name in graph():
        run = importlib.import_module(f"meca.stages.{name}").run
        hints = get_type_hints(run)
        found |= {group: hints[parameter] for parameter, group in interface(name, run).parameters.items()}
    return found


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", graph())
def test_the_groups_of_a_stage_can_be_read_in_both_presets(name: str, preset: str) -> None:
    from tests.making import settings

    params, known = settings(preset=preset), groups()
    for group in describe(importlib.import_module(f"meca.stages.{name}")).groups:
        assert params.group(group, known[group])


def test_no_group_is_without_a_reader() -> None:
    others = {"preset", "paper", "recipe", "seed", "track", "promote"}  # read by the platform, outside of meca
    assert set(read_params(PACKAGED).tree) == {*groups(), *others}


def names_in(file: Path) -> set[str]:
    """Return every name that a module defines or imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return found


def file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def test_what_is_imported_from_the_project_is_there_also_inside_of_functions():
    """The type checker does not look at foreign attributes outside of `meca`, so a name that moved away would show when it is used."""
    packages = ("meca", "tasks", "flows", "benchmarks", "infra")
    known: dict[str, set[str]] = {}
    missing: list[str] = []
    for file in sorted(file for package in (*packages, "tests") for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module or node.module.split(".")[0] not in packages:
                continue
            source = file_of(node.module)
            if source is not None and node.module not in known:
                known[node.module] = names_in(source)
            for alias in node.names:
                if alias.name not in known.get(node.module, ()) and file_of(f"{node.module}.{alias.name}") is None:
                    missing.append(f"{file.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}")
    assert not missing
