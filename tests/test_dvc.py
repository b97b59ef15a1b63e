"""What dvc.yaml promises: it lists all that a stage depends on, and the truth has one reader."""

import importlib
import shlex
from pathlib import Path

import pytest
import yaml

from meca.params import read_params
from meca.stages.graph import graph
from meca.stages.runtime import describe
from tasks.dvc.closure import closure, rendered, stage_module

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
STAGES = yaml.safe_load(TEXT)["stages"]
PROGRAMS = [name for name in STAGES if name != "track"]


def paths(entries):
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def sources(entry):
    """Return the files of code that an entry of `deps` stands for."""
    path = ROOT / entry
    inside = path.rglob("*") if path.is_dir() else [path]
    return {file.relative_to(ROOT).as_posix() for file in inside if file.is_file() and "__pycache__" not in file.parts}


@pytest.mark.parametrize("name", STAGES)
def test_deps_hold_what_a_stage_can_import_and_nothing_else(name):
    needed = set(closure(ROOT, stage_module(STAGES[name]["cmd"])))
    code = [entry for entry in STAGES[name]["deps"] if entry.startswith(("meca/", "tasks/"))]
    assert needed, f"{name} has no program"
    assert set().union(*map(sources, code)) == needed


def test_dvc_yaml_is_what_the_signatures_say():
    assert rendered(ROOT) == TEXT, "run `make closure`"


def test_dvc_reads_the_graph_and_the_model_that_goes_out():
    from dvc.repo import Repo

    repo = Repo(str(ROOT))
    assert {stage.addressing for stage in repo.index.stages} >= {*graph(), "track"}
    assert "clean-model" in repo.artifacts.read()["dvc.yaml"]


def test_only_evaluate_depends_on_the_truth():
    assert [name for name, stage in STAGES.items() if "data/truth" in paths(stage["deps"])] == ["evaluate"]
    assert [name for name, stage in STAGES.items() if "data/truth" in paths(stage["outs"])] == ["poison"]


def test_a_stage_is_named_as_its_program_and_its_group_of_parameters():
    tree = read_params(ROOT / "params.yaml").tree
    for name in PROGRAMS:
        assert stage_module(STAGES[name]["cmd"]) == f"meca.stages.{name}"
        used = {entry.split(".")[0] for entry in STAGES[name]["params"]}
        assert used <= set(tree)
        assert name in used or name not in tree


@pytest.mark.parametrize("name", PROGRAMS)
def test_command_parameters_and_outputs_are_those_of_the_program(name):
    stage = STAGES[name]
    described = describe(importlib.import_module(f"meca.stages.{name}"))
    given = dict(zip(*[iter(shlex.split(stage["cmd"])[3:])] * 2, strict=True))
    options = {option.removeprefix("--").replace("-", "_"): path for option, path in given.items()}
    assert options.pop("params") == "params.yaml"
    receipt = options.pop("receipt")
    assert set(options) == {*described.inputs, *described.outputs}
    assert [options[n] for n in described.inputs] == [dep for dep in paths(stage["deps"]) if not dep.startswith(("meca/", "${"))]
    assert [options[n] for n in described.outputs] + [receipt] == paths(stage["outs"])
    params = read_params(ROOT / "params.yaml")
    assert set(stage["params"]) == {"seed", *(source for group in described.groups for source in params.sources(group))}
    assert len(stage["params"]) == len(set(stage["params"]))


def test_the_record_stands_on_every_receipt():
    receipts = [f"work/receipts/{name}.json" for name in PROGRAMS]
    assert set(receipts) <= set(STAGES["track"]["deps"])
    command = shlex.split(STAGES["track"]["cmd"])
    assert [part for part in command if part.startswith("work/receipts/")] == receipts


def test_the_remote_verifies_what_it_hands_out():
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc" / "config")
    assert config.getboolean("'remote \"local\"'", "verify")
    assert not config.getboolean("core", "analytics")
