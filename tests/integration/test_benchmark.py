"""A tiny grid through the real flow: rows and tables, what a killed run leaves, a cell that fails."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from meca.files import sha256_file
from meca.params import read_params, with_settings
from tasks import environment
from tasks.benchmark.cell import COLUMNS
from tasks.benchmark.grid import work_folder
from tasks.benchmark.rows import read_rows

pytestmark = [pytest.mark.platform, pytest.mark.slow, pytest.mark.xdist_group("platform"), pytest.mark.filterwarnings("default")]

PROGRAM = "from flows.cli import main; main()"
PROVENANCE = ("command", "commit", "date", "hardware", "torch", "python", "seed", "seconds", "key", "code_sha256", "params_sha256")


QUICK = {
    "ingest.shapes_train": 200, "ingest.shapes_test": 100, "network.width": 8, "detector.width": 8,
    "partition.recipe.epochs": 1, "partition.recipe.min_steps": 1, "enhance.rounds": 1, "enhance.recipe.epochs": 1, "enhance.recipe.min_steps": 1,
    "split.rounds": 1, "split.recipe.epochs": 1, "split.recipe.min_steps": 1,
    "train_clean.epochs": 1, "train_clean.min_steps": 1, "relabel_finetune.recipe.epochs": 1, "relabel_finetune.recipe.min_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def params(tmp_path_factory) -> Path:
    """A params.yaml with which a cell of either preset takes seconds."""
    found = read_params()
    for preset in ("paper", "default"):
        found = with_settings(found, {"preset": preset, **QUICK})
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(yaml.safe_dump(found.tree))
    return path


def command(params: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        PROGRAM,
        "benchmark",
        "--params",
        str(params),
        *([] if "--workers" in arguments else ["--workers", "1"]),
        *arguments,
    ]


def variables(server: str) -> dict[str, str]:
    return {**environment.child_environment(), "PREFECT_API_URL": server}


def benchmark(folder: Path, params: Path, server: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(params, *arguments), cwd=folder, env=variables(server), capture_output=True, text=True, timeout=300)


def cells_running(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "tasks.benchmark.cell" in words and str(folder) in words[-1] and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory, params, server):
    """A grid of two presets against one attack and none, killed after its first row and then started again."""
    folder = tmp_path_factory.mktemp("grid")
    arguments = ["--attack", "badnet", "--attack", "none"]
    first = subprocess.Popen(
        command(params, *arguments), cwd=folder, env=variables(server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        deadline = time.monotonic() + 200
        while len(read_rows(folder / "benchmark.jsonl")) < 1 or not cells_running(folder):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        deadline = time.monotonic() + 2  # by itself it would end later
        while cells_running(folder):
            assert time.monotonic() < deadline, "a cell outlives its flow"
            time.sleep(0.05)
        killed = (folder / "benchmark.jsonl").read_text()
    finally:
        first.kill()
        first.wait()
    return folder, killed, benchmark(folder, params, server, *arguments, "--json"), arguments


def test_a_killed_grid_is_continued_and_measures_nothing_twice(measured):
    folder, killed, done, _ = measured
    assert done.returncode == 0, done.stderr[-3000:]
    before = [json.loads(line) for line in killed.splitlines()]
    after = read_rows(folder / "benchmark.jsonl")
    assert 1 <= len(before) < 4
    assert after[: len(before)] == before, "what was measured stays as it was"
    assert [row["status"] for row in after] == ["done"] * 4
    assert {(row["attack"], row["preset"]) for row in after} == {(a, p) for a in ("badnet", "none") for p in ("default", "paper")}
    outcome = json.loads(done.stdout)
    assert (outcome["cells"], outcome["measured"]) == (4, 4 - len(before))
    assert not work_folder(folder / "benchmark.jsonl").exists()


def test_a_row_has_its_figures_and_its_provenance(measured):
    rows = {(row["attack"], row["preset"]): row for row in read_rows(measured[0] / "benchmark.jsonl")}
    row = rows["badnet", "default"]
    assert set(COLUMNS) <= set(row) and all(row[name] is not None for name in PROVENANCE if name != "commit")
    assert row["n_train"] == 200 and row["n_test"] == 100 and row["poison_rate"] == 0.05 and row["asr_n"] == 90
    assert sum(row["separation"]["final"]["poison"]) == 10 and sum(row["separation"]["final"]["clean"]) == 190
    assert row["command"] == "meca benchmark --data shapes --attack badnet --rate 0.05 --seed 1 --preset default --network compact"
    assert " 1 of " in row["hardware"]
    # Trained once, for both presets.
    assert rows["badnet", "paper"]["references"] == row["references"] and row["equal_passes"]
    assert row["oracle_acc"] in [of["oracle"]["acc"] for of in row["references"].values()]
    assert str(measured[0]) not in json.dumps(list(rows.values()))


def test_the_tables_stand_beside_the_rows(measured):
    folder, _, done, _ = measured
    page = (folder / "benchmark.md").read_text()
    assert json.loads(done.stdout)["tables"] == [str(folder / name) for name in ("benchmark.md", "benchmark-suspicion.svg", "benchmark-roc.svg")]
    (row,) = [row for row in read_rows(folder / "benchmark.jsonl") if (row["attack"], row["preset"]) == ("badnet", "default")]
    line = next(line for line in page.splitlines() if line.startswith("| shapes (200), compact s2d | badnet"))
    assert f"| {100 * row['acc']:.1f}/{100 * row['asr_k'] / row['asr_n']:.1f} |" in line
    assert "| blend | 0 | not run | not run | not run | not run |" in page


def test_again_nothing_runs_and_nothing_changes(measured, params, server):
    folder, _, _, arguments = measured
    before = {path.name: sha256_file(path) for path in folder.iterdir()}
    done = benchmark(folder, params, "http://127.0.0.1:9/api", *arguments, "--json")  # no server is asked
    assert done.returncode == 0 and json.loads(done.stdout)["measured"] == 0
    assert {path.name: sha256_file(path) for path in folder.iterdir()} == before


def test_the_server_has_a_task_for_each_cell(measured, server):
    import httpx

    runs = [run for run in httpx.post(f"{server}/flow_runs/filter", json={}).json() if run["name"] == "benchmark.jsonl"]
    assert "COMPLETED" in [run["state_type"] for run in runs]
    assert all(run["parameters"] == {"results": "benchmark.jsonl"} for run in runs), "no path is a parameter"
    tasks = httpx.post(f"{server}/task_runs/filter", json={}).json()
    assert {"shapes compact badnet 5 % default seed 1", "shapes compact none paper seed 1"} <= {task["name"] for task in tasks}


def test_cells_side_by_side_wait_for_the_references_they_share(tmp_path, params, server):
    done = benchmark(tmp_path, params, server, "--attack", "badnet", "--workers", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {row["preset"]: row["references_trained"] for row in read_rows(tmp_path / "benchmark.jsonl")} == {"default": True, "paper": False}


def test_a_failing_cell_stops_no_other_and_shows_in_the_exit_code(tmp_path, params, server):
    # Only tact reads its source class, so only tact fails.
    arguments = ["--attack", "tact", "--attack", "none", "--preset", "default", "--set", "poison.source_class=99"]
    done = benchmark(tmp_path, params, server, *arguments)
    assert done.returncode == 2
    assert "1 of 2 cells failed" in done.stderr
    failed, whole = sorted(read_rows(tmp_path / "benchmark.jsonl"), key=lambda row: row["status"] == "done")
    assert failed["status"] == "failed" and failed["attack"] == "tact" and "99" in failed["error"] and failed["acc"] is None
    assert whole["status"] == "done" and whole["attack"] == "none" and whole["acc"] is not None
    page = (tmp_path / "benchmark.md").read_text()
    assert "### Failed" in page and "| shapes | tact | default | 1 |" in page
    again = benchmark(tmp_path, params, server, *arguments)
    assert again.returncode == 2
    assert [row["attack"] for row in read_rows(tmp_path / "benchmark.jsonl")].count("none") == 1
    assert work_folder(tmp_path / "benchmark.jsonl").is_dir()
