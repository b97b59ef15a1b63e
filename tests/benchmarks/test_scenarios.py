"""The scenarios of a GPU run, on a tiny set and without a GPU."""

import argparse
import json
import time
from pathlib import Path

import pytest

from benchmarks.quality import experiments
from benchmarks.speed import run as speed
from benchmarks.speed.harness import Bench
from tests.stages.chain import QUICK

TINY = {name: value for name, value in QUICK.items() if not name.startswith("poison")} | {
    "ingest.source": "shapes",
    "ingest.shapes_train": 200,
    "ingest.shapes_test": 100,
    "ingest.size": 16,
}


def test_each_scenario_that_the_time_allows_has_a_row_with_its_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "quality.jsonl")
    monkeypatch.setattr(experiments, "GPU_GRID", {"tiny": experiments.Experiment(TINY, ("badnet", "none"))})
    speed.scenarios(Bench(tmp_path / "speed.jsonl", "python -m benchmarks.speed --gpu"))
    rows = [json.loads(line) for line in (tmp_path / "quality.jsonl").read_text().splitlines()]
    assert [(row["experiment"], row["attack"], row["seed"], row["preset"]) for row in rows] == [
        ("tiny", "badnet", 1, "default"),
        ("tiny", "none", 1, "default"),
    ]
    assert all(row["command"] == "python -m benchmarks.speed --gpu" and row["commit"] for row in rows)
    assert rows[0]["no_defence_acc"] is not None and rows[0]["oracle_acc"] is not None


def test_no_scenario_is_started_that_would_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "quality.jsonl")
    speed.scenarios(Bench(tmp_path / "speed.jsonl", "", until=time.monotonic() + 20))
    assert not (tmp_path / "quality.jsonl").exists()


def test_a_cut_names_parameters_that_exist_and_data_that_is_measured_whole() -> None:
    from meca.params import PACKAGED, read_params, with_settings

    for experiment in (*experiments.CUT_GRID.values(), *experiments.GPU_GRID.values()):
        with_settings(read_params(PACKAGED), experiment.settings)
    assert {name.split(", ")[0] for name in experiments.CUT_GRID} <= set(experiments.GRID)


def test_a_seed_that_was_looked_at_is_in_the_grid_for_the_other_attacks_alone() -> None:
    asked = argparse.Namespace(seeds=None, only=["shapes"], attack=None, preset=["default"])
    found = {(run.attack, run.seed) for run in experiments.cells(experiments.GRID, asked)}
    assert {seed for attack, seed in found if attack == "none"} == {20, 22, 23}
    assert {seed for attack, seed in found if attack == "blend"} == {20, 21, 22}
