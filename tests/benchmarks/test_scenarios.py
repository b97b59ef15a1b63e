"""The experiments are plans of the one grid: their rows keep their names, and what has a row is not run again; the scenarios of a GPU run."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.quality import experiments
from benchmarks.rows import CELL
from benchmarks.speed import run as speed
from benchmarks.speed.harness import Bench
from meca.errors import UsageError
from tasks.benchmark.cell import COLUMNS
from tasks.benchmark.grid import Plan, work_folder
from tests.stages.chain import QUICK

TINY = {name: value for name, value in QUICK.items() if not name.startswith("poison")} | {
    "ingest.shapes_train": 200,
    "ingest.shapes_test": 100,
    "ingest.size": 16,
    "train_clean.epochs": 2,
}
TABLES = (experiments.EXPERIMENTS, experiments.LESS, experiments.ON_GPU)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave the rows somewhere else."""
    monkeypatch.setattr(experiments, "FILE", tmp_path / "quality.jsonl")
    return tmp_path / "quality.jsonl"


def test_each_scenario_that_the_time_allows_has_a_row_with_its_references(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "ON_GPU", {"tiny": (Plan(attacks=("badnet", "none"), seeds=(101,), settings=TINY),)})
    speed.scenarios(Bench(file.with_name("speed.jsonl"), "python -m benchmarks.speed --gpu"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["experiment"], row["attack"], row["seed"], row["preset"]) for row in rows] == [
        ("tiny", "badnet", 101, "default"),
        ("tiny", "none", 101, "default"),
    ]
    assert all(row["command"] == "python -m benchmarks.speed --gpu" and row["commit"] for row in rows)
    assert rows[0]["no_defence_acc"] is not None and rows[0]["oracle_acc"] is not None
    for row in rows:
        assert isinstance(row["dirty"], bool) and len(row["code_sha256"]) == len(row["params_sha256"]) == 64
        assert row["equal_passes"] is True and row["references"]["plain"].keys() == {"no_defence", "oracle"}
        assert row["evidence"]["verdict"] == row["verdict"] and len(json.dumps(row["evidence"])) < 1000
        assert (row["fpr_flagged"] is None) == (not row["evidence"]["flagged"]) and (row["fpr_flagged"] or 0) >= row["fpr"]
        assert row["no_defence_acc"] is not None, "a false alarm has its reference, too"
    assert rows[0]["params_sha256"] != rows[1]["params_sha256"]


def test_no_scenario_is_started_that_would_not_end(file: Path, tmp_path: Path) -> None:
    speed.scenarios(Bench(tmp_path / "speed.jsonl", "", until=time.monotonic() + 20))
    assert not file.exists()


def test_a_cut_names_parameters_that_exist_and_data_that_is_measured_whole() -> None:
    for table in (experiments.LESS, experiments.ON_GPU):
        assert experiments.chosen(table)  # which refuses a parameter that does not exist
    assert {name.split(", ")[0] for name in experiments.LESS} <= set(experiments.EXPERIMENTS)


def test_no_two_cells_of_a_table_are_the_same_run_or_have_the_same_name() -> None:
    for table in TABLES:
        cells = experiments.chosen(table)
        assert len({cell.key for cell in cells}) == len({cell.name for cell in cells}) == len({cell.given["command"] for cell in cells}) == len(cells)


def test_what_has_a_row_is_not_run_again_however_old_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        experiments, "ON_GPU", {"tiny": (Plan(attacks=("badnet", "sig", "none"), seeds=(101,), presets=("default",), settings=TINY),)}
    )
    cells = experiments.chosen(experiments.ON_GPU)
    named = [{name: cell.given[name] for name in CELL} for cell in cells]
    old = named[0] | {"acc": 0.9}  # of the time before rows had keys
    other = named[1] | {"experiment": "tiny, half the width", "acc": 0.9}
    failed = named[2] | {"status": "failed", "acc": None}
    file.write_text("".join(json.dumps(row) + "\n" for row in (old, other, failed)))
    mine = experiments.grid(cells)
    assert [cell.given["attack"] for cell in mine.missing()] == ["sig", "none"]

    def pretend(cell, folder):
        (folder / "row.json").write_text(json.dumps(dict.fromkeys(COLUMNS)))
        return 0, []

    monkeypatch.setattr(mine, "_subprocess", pretend)
    assert mine.measure(mine.missing(), 1, lambda *_: None) == 0
    assert mine.missing() == [] == experiments.grid(cells).missing()
    assert [json.loads(line)["attack"] for line in file.read_text().splitlines()] == ["badnet", "sig", "none", "sig", "none"]


def test_a_run_with_seeds_of_its_own_says_the_command_that_repeats_it() -> None:
    (cell,) = experiments.chosen(experiments.LESS, only=["shapes, classes asked once"], attacks=["blend"], seeds=[7])
    assert (
        cell.given["command"] == "python -m benchmarks.quality --only 'shapes, classes asked once' --attack blend --preset default --seeds 7 --cuts"
    )
    assert cell.params.seed == 7 and cell.params.raw("split")["rounds"] == 1


def test_the_quality_program_refuses_a_link_where_its_runs_go(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(experiments, "FILE", tmp_path / "quality.jsonl")
    work_folder(tmp_path / "quality.jsonl").symlink_to(tmp_path / "mine")
    monkeypatch.setattr("sys.argv", ["quality", "--only", "shapes", "--attack", "badnet", "--seeds", "101"])
    with pytest.raises(UsageError, match=r"quality\.jsonl\.work is a link, which meca does not follow"):
        experiments.main()
    assert list((tmp_path / "mine").iterdir()) == []
