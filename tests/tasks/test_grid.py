"""A grid knows its cells by what their figures depend on, loses no row, and a cell that fails is a row too."""

import json
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from meca.errors import MecaError, UsageError
from tasks import environment
from tasks.benchmark import grid
from tasks.benchmark.cell import COLUMNS, DETECTED
from tasks.benchmark.grid import Cell, CellFailed, Grid, Plan, cells, data_of, work_folder
from tasks.benchmark.rows import read_rows
from tests.making import make_folder

ONE = Plan(attacks=("badnet",), presets=("default",))


def key(plan: Plan) -> str:
    (cell,) = cells(plan)
    return cell.key


def test_a_grid_is_the_product_of_its_axes_and_no_cell_is_there_twice() -> None:
    plan = Plan(attacks=("badnet", "blend", "none"), rates=(0.01, 0.05), seeds=(1, 2), data=("shapes", "digits"), networks=("compact", "resnet18"))
    found = cells(plan)
    assert len(found) == (2 * 2 + 1) * 2 * 2 * 2 * 2  # without an attack there is one rate: none
    assert len({cell.key for cell in found}) == len({cell.name for cell in found}) == len({cell.given["command"] for cell in found}) == len(found)
    assert all((cell.given["rate"] is None) == (cell.given["attack"] == "none") for cell in found)
    (resnet,) = [c for c in found if c.name == "digits resnet18 blend 1 % paper seed 2"]
    groups = {name: resnet.params.raw(name) for name in ("ingest", "poison", "network")}
    assert groups["ingest"]["source"] == "digits" and groups["poison"]["attack"] == "blend" and groups["poison"]["rate"] == 0.01
    assert (groups["network"]["name"], groups["network"]["stem"], resnet.params.preset, resnet.params.seed) == ("resnet18", "cifar", "paper", 2)


def test_a_key_follows_what_the_figures_depend_on_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(ONE)
    assert before == key(ONE)
    changes: list[dict] = [
        {"seeds": (2,)},
        {"rates": (0.1,)},
        {"data": ("shapes:500",)},
        {"partition_rates": (0.3,)},
        {"settings": {"split.least_flips": 0.4}},
    ]
    others = [key(Plan(**{"attacks": ONE.attacks, "presets": ONE.presets, **change})) for change in changes]
    assert len({before, *others}) == len(changes) + 1
    for harmless in ("report.kept_pictures", "promote.min_acc"):
        assert key(Plan(attacks=ONE.attacks, presets=ONE.presets, settings={harmless: "7"})) == before
    tree = json.loads(json.dumps(ONE.tree))
    tree["paper"]["split"]["least_flips"] = 0.9
    assert key(Plan(attacks=ONE.attacks, presets=ONE.presets, tree=tree)) == before, "the block of the other preset is not in force"
    monkeypatch.setattr(grid, "code_digest", lambda *_: "other code")
    assert key(ONE) != before


def test_a_key_follows_the_bytes_of_given_weights_and_not_their_place(tmp_path: Path) -> None:
    keys: list[str] = []
    for name, value in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).write_bytes(save({"x": np.full(1, value)}))
        keys.append(key(Plan(attacks=ONE.attacks, presets=ONE.presets, settings={"network.weights": str(tmp_path / name)})))
    assert keys[0] == keys[1] and len({*keys, key(ONE)}) == 3


ALONE = Plan(attacks=("badnet",), presets=("default",), until="split")


def test_a_cell_that_ends_with_split_is_another_one_and_depends_on_no_later_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (alone,), (whole,) = cells(ALONE), cells(ONE)
    assert alone.key != whole.key and alone.name != whole.name and (alone.until, whole.until) == ("split", "")
    assert (alone.given["until"], whole.given["until"]) == ("split", None) and alone.given["params_sha256"] == whole.given["params_sha256"]
    asked: list[str] = []
    monkeypatch.setattr(grid, "closure", lambda root, module: (asked.append(module.rpartition(".")[2]), [])[1])
    grid.code_files.__wrapped__("split")
    assert asked == ["ingest", "poison", "partition", "enhance", "split"]
    Grid(ALONE, tmp_path / "rows.jsonl").save()
    assert [cell.key for cell in Grid.load(tmp_path / "rows.jsonl").cells] == [alone.key]


def test_cells_that_end_with_split_train_no_references_and_wait_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Grid(Plan(attacks=("badnet",), seeds=(1, 2), until="split"), tmp_path / "rows.jsonl")
    together = threading.Barrier(len(mine.cells))

    def pretend(cell, folder):
        together.wait(60)  # all of them at once, or this breaks
        given = json.loads((folder / "cell.json").read_text())
        assert (given["references"], given["until"]) == (None, "split")
        (folder / "row.json").write_text(json.dumps(dict.fromkeys(DETECTED)))
        return (0, []) if cell.params.seed == 1 else (2, ["no luck"])

    monkeypatch.setattr(mine, "_subprocess", pretend)
    assert mine.measure(mine.missing(), len(mine.cells), lambda *_: None) == 2
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {(row["status"], row["references_trained"], row["until"]) for row in rows} == {("done", False, "split"), ("failed", False, "split")}
    assert all(set(DETECTED) <= set(row) and "acc" not in row for row in rows) and {cell.params.seed for cell in mine.missing()} == {2}


@pytest.mark.parametrize("how", ["edited", "deleted"])
def test_a_grid_whose_code_is_edited_starts_no_further_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    (tmp_path / "stage.py").write_text("one")
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    for name, value in (("code_files", lambda *_: [tmp_path / "stage.py"]), ("code_digest", cache(grid.code_digest.__wrapped__))):
        monkeypatch.setattr(grid, name, value)
    mine = Grid(Plan(attacks=("badnet", "blend", "sig"), presets=("default",)), tmp_path / "rows.jsonl")
    started: list[str] = []

    def pretend(cell, folder):
        started.append(cell.given["attack"])
        (folder / "row.json").write_text(json.dumps(dict.fromkeys(COLUMNS)))
        if len(started) == 2:
            (tmp_path / "stage.py").write_text("two") if how == "edited" else (tmp_path / "stage.py").unlink()
        return 0, []

    monkeypatch.setattr(mine, "_subprocess", pretend)
    with pytest.raises(MecaError, match=r"The code was edited while the grid was running, so shapes .* was not started"):
        mine.measure(mine.missing(), 1, lambda *_: None)
    assert started == ["badnet", "blend"] == [row["attack"] for row in read_rows(tmp_path / "rows.jsonl")], "and what was measured before stays"


def test_a_cell_has_no_control_unless_the_grid_asks_for_one() -> None:
    def only(**settings: str) -> Cell:
        (cell,) = cells(Plan(attacks=ONE.attacks, presets=ONE.presets, settings={key.replace("__", "."): value for key, value in settings.items()}))
        return cell

    quiet, asked = only(), only(control__when="always")
    assert (quiet.params.raw("control")["when"], asked.params.raw("control")["when"]) == ("never", "always") and quiet.key != asked.key
    assert only(control__rates="[0.05]").params.raw("control")["when"] == "no_evidence"


def test_the_code_of_a_key_is_the_method_and_not_the_report() -> None:
    files = {file for stage in grid.MEASURED for file in grid.closure(grid.ROOT, f"meca.stages.{stage}")}
    assert {"meca/method/split.py", "meca/method/scoring.py", "meca/attacks/sig.py", "meca/metrics.py"} <= files
    assert "meca/report/page.py" not in files


def test_data_at_a_path_is_known_by_its_bytes_and_not_by_its_place(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a" / "photos: [1]")  # a name that YAML would read as something else
    plan = Plan(data=(str(folder),), attacks=ONE.attacks, presets=ONE.presets)
    before = key(plan)
    (cell,) = cells(plan)
    assert cell.params.raw("ingest")["source"] == str(folder.resolve()) and str(tmp_path) not in json.dumps(cell.given)
    moved = tmp_path / "b" / "photos: [1]"
    shutil.copytree(folder, moved)
    assert key(Plan(data=(str(moved),), attacks=ONE.attacks, presets=ONE.presets)) == before
    next(moved.rglob("*.jpeg")).write_bytes(b"another image")
    assert key(Plan(data=(str(moved),), attacks=ONE.attacks, presets=ONE.presets)) != before
    with pytest.raises(UsageError, match="names of their own"):
        cells(Plan(data=(str(folder), str(moved)), attacks=ONE.attacks))


def test_presets_and_partition_rates_share_their_references_and_seeds_do_not() -> None:
    found = cells(Plan(attacks=("badnet",), partition_rates=(0.2, 0.4)))
    assert len(found) == 4 and len({cell.recipe for cell in found}) == 1
    for other in (
        Plan(attacks=("badnet",), seeds=(2,)),
        *(Plan(attacks=("badnet",), settings={f"{name}.epochs": "2"}) for name in ("train_clean", "relabel_finetune.recipe")),
        Plan(attacks=("blend",)),
    ):
        assert cells(other)[0].recipe != found[0].recipe


def test_a_partition_rate_reaches_the_method_of_each_preset() -> None:
    default, paper = cells(Plan(attacks=("badnet",), partition_rates=(0.05,)))
    assert default.params.raw("enhance")["plain"] == 0.05 == default.given["partition_rate"]
    assert paper.params.raw("enhance")["alpha_end"] == 0.05 == paper.params.raw("enhance")["alpha_start"]


@pytest.mark.parametrize(
    ("text", "expected"), [("shapes", ("shapes", 0)), ("cifar10:10000", ("cifar10", 10000)), ("a:b", ("a:b", 0)), ("x/y:2", ("x/y", 2))]
)
def test_a_limit_stands_behind_a_colon(text: str, expected: tuple[str, int]) -> None:
    assert data_of(text) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ("badnet", "bad")}, "attack to be one of none, .*got 'bad'"),
        ({"attacks": ("badnet+bad",)}, "attack to be one of none, .*got 'bad'"),
        ({"attacks": ("badnet+all_to_all",)}, "to have one target class each, got 'all_to_all'"),
        ({"attacks": ("badnet+none",)}, "expected poison.attack to be one of badnet, .*got 'none'"),
        ({"presets": ("best",)}, "preset to be one of default, paper, got 'best'"),
        ({"networks": ("vgg",)}, "network to be one of compact"),
        ({"rates": (5.0,)}, "rate between 0 and 1, got 5.0"),
        ({"partition_rates": (0.0,)}, "partition rate between 0 and 1"),
        ({"seeds": ()}, "at least one value for seeds"),
        ({"data": ("nowhere",)}, "found nothing at 'nowhere'"),
        ({"settings": {"split.least_flip": "1"}}, "did you mean 'split.least_flips'"),
        ({"settings": {"poison.rate": "0.2"}}, "leave the axes of the grid alone, got poison.rate"),
        ({"until": "enhance"}, r"go until 'split', or to the end \(''\), got 'enhance'"),
        ({"settings": {"relabel_finetune.probe": "0"}}, r"\[relabel_finetune\] expected probe >= 1, got 0"),
    ],
)
def test_a_plan_that_is_not_possible_is_refused_before_anything_runs(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cells(Plan(**{"attacks": ("badnet",), **changes}))


def test_a_saved_grid_comes_back_with_the_same_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "in" / "photos")
    monkeypatch.chdir(tmp_path / "in")
    first = Grid(Plan(data=("photos:9", "shapes"), settings={"split.least_flips": "0.4"}), tmp_path / "out.jsonl", 2, True)
    first.save()
    monkeypatch.chdir(tmp_path)
    again = Grid.load(Path("out.jsonl"))
    assert [cell.key for cell in again.cells] == [cell.key for cell in first.cells]
    assert (again.threads, again.keep) == (2, True)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        Grid(ONE, tmp_path / "rows.jsonl").locked(),
        pytest.raises(MecaError, match=r"The grid of rows\.jsonl is being written"),
        Grid(ONE, tmp_path / "rows.jsonl").locked(),
    ):
        pass


def test_a_failing_cell_is_a_row_with_its_reason_and_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    mine = Grid(Plan(data=(str(tmp_path / "empty"),), attacks=("badnet",), presets=("default",)), tmp_path / "rows.jsonl")
    with pytest.raises(CellFailed, match=r"empty compact badnet 5 % default seed 1: exit code 3: "):
        mine.run(mine.cells[0].key)
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row["status"] == "failed" and row["error"].startswith("exit code 3: ")
    assert set(COLUMNS) <= set(row) and row["acc"] is None and row["attack"] == "badnet" and row["network"] == "compact"
    again = Grid(mine.plan, tmp_path / "rows.jsonl")
    assert again.missing() == again.cells
    again.tidy()
    assert work_folder(tmp_path / "rows.jsonl").is_dir(), "what an unfinished grid left is needed for its resume"


def test_a_stopped_grid_starts_nothing_and_records_nothing(tmp_path: Path) -> None:
    mine = Grid(ONE, tmp_path / "rows.jsonl")
    mine.stop()
    with pytest.raises(CellFailed, match="was not started"):
        mine.run(mine.cells[0].key)
    assert not (tmp_path / "rows.jsonl").exists()


def trained(acc: float) -> dict:
    return {way: {"no_defence": {"acc": acc}, "oracle": {"acc": 0.8}} for way in ("plain", "tuned")}


def test_a_cell_reuses_the_references_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Grid(Plan(attacks=("badnet",), seeds=(1, 2)), tmp_path / "rows.jsonl")
    given = {}

    def pretend(cell, folder):
        preset, seed = cell.params.preset, cell.params.seed
        given[preset, seed] = json.loads((folder / "cell.json").read_text())["references"]
        row = dict.fromkeys(COLUMNS) | {"references": trained(seed / 10)}
        (folder / "row.json").write_text(json.dumps(row))
        return 0, []

    monkeypatch.setattr(mine, "_subprocess", pretend)
    for cell in mine.cells:
        mine.run(cell.key)
    of = {seed: trained(seed / 10) for seed in (1, 2)}
    assert given == {("default", 1): None, ("default", 2): None, ("paper", 1): of[1], ("paper", 2): of[2]}
    assert mine.missing() == [] and Grid(mine.plan, tmp_path / "rows.jsonl").missing() == []
    mine.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_cells_wait_for_the_references_that_the_first_of_them_trains_and_a_failure_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Grid(Plan(attacks=("badnet", "blend")), tmp_path / "rows.jsonl")
    ran: list[tuple[str, str, bool]] = []
    early = threading.Event()

    def pretend(cell, folder):
        attack, preset = cell.given["attack"], cell.params.preset
        early.wait(0.2) if preset == "default" else early.set()
        ran.append((attack, preset, json.loads((folder / "cell.json").read_text())["references"] is None))
        if (attack, preset) == ("blend", "default"):
            return 2, ["no luck"]
        (folder / "row.json").write_text(json.dumps(dict.fromkeys(COLUMNS) | {"references": trained(0.9)}))
        return 0, []

    monkeypatch.setattr(mine, "_subprocess", pretend)
    told: list[tuple[str, bool]] = []
    assert mine.measure(mine.missing(), 4, lambda cell, row: told.append((cell.name, isinstance(row, CellFailed)))) == 1
    assert sorted(ran[:2]) == [("badnet", "default", True), ("blend", "default", True)]
    assert sorted(ran[2:]) == [("badnet", "paper", False), ("blend", "paper", True)], "where none were trained they are now"
    assert sorted(told) == sorted((cell.name, cell.name == "shapes compact blend 5 % default seed 1") for cell in mine.cells)
    again: list[str] = []
    monkeypatch.setattr(mine, "_subprocess", lambda cell, folder: (again.append(cell.name), pretend(cell, folder))[1])
    assert mine.measure(mine.missing(), 2, lambda *_: None) == 1
    assert again == ["shapes compact blend 5 % default seed 1"]


def test_what_goes_wrong_beside_a_cell_stops_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Grid(Plan(attacks=("badnet", "blend"), presets=("default",)), tmp_path / "rows.jsonl")
    monkeypatch.setattr(mine, "_subprocess", lambda cell, folder: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        mine.measure(mine.missing(), 1, lambda *_: None)
    with pytest.raises(CellFailed, match="was not started"):
        mine.run(mine.cells[0].key)


def test_the_program_of_a_cell_says_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tasks.benchmark.cell", "--help"], capture_output=True, text=True, env=environment.child_environment()
    )
    assert done.returncode == 0 and "with cell.json" in done.stdout


@pytest.mark.parametrize("name", ["", "key/run"])
def test_a_link_where_a_grid_keeps_its_runs_is_refused(tmp_path: Path, name: str) -> None:
    rows = tmp_path / "rows.jsonl"
    measured = Grid(Plan(data=("shapes:8",), attacks=("none",)), rows)
    measured.save()
    if not name:
        work_folder(rows).rename(tmp_path / "mine")
    place = work_folder(rows) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "mine").mkdir(exist_ok=True)
    before = sorted(path.name for path in (tmp_path / "mine").iterdir())
    place.symlink_to(tmp_path / "mine")
    refused = pytest.raises(UsageError, match=rf"{place.name} is a link, which meca does not follow")
    with refused:
        measured.save()
    with refused:
        Grid.load(rows)
    with refused, measured.locked():
        pass
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == before
