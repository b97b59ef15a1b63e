"""The campaign asks for what its names say: clean sets until `split`, seeds that may be reported, and a share of the class that is really reached."""

import json
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import campaign, experiments
from benchmarks.quality.campaign import AGAINST, ALONE, CAMPAIGN, CLEAN, FURTHER, OF_ITS_CLASS, RULE, TARGETS, WHOLE, located, rate_for
from benchmarks.quality.seeds import LOOKED_AT, read_seeds, refuse
from meca.attacks import ATTACKS
from meca.attacks.poisoning import PoisonParams, plan
from meca.errors import UsageError
from tasks.benchmark.grid import EIGHT, Cell, data_of, work_folder
from tasks.benchmark.rows import read_rows
from tests.making import make_folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the names of the sets that meca has no name for."""
    folder = tmp_path_factory.mktemp("sets")
    for n, name in enumerate(("gtsrb", "cifar100", "cifar100-merged", "cifar10-merged"), 1):
        make_folder(folder / name, per_class=n)
    return folder


@pytest.fixture(scope="module")
def every(sets: Path) -> list[Cell]:
    return experiments.chosen(CAMPAIGN, sets=sets)


def named(every: list[Cell], *patterns: str) -> list[Cell]:
    return [cell for cell in every if any(fnmatchcase(cell.given["experiment"], pattern) for pattern in patterns)]


def test_every_cell_has_a_seed_that_may_be_reported_a_name_and_a_command_of_its_own(every: list[Cell], sets: Path) -> None:
    found = every
    refuse([cell.given for cell in found], [])
    assert len({cell.key for cell in found}) == len({cell.name for cell in found}) == len({cell.given["command"] for cell in found}) == len(found)
    assert all(read_seeds().is_report(cell.given) and cell.params.preset == "default" for cell in found)
    assert all(cell.given["command"].endswith(" --campaign") and str(sets) not in cell.given["command"] for cell in found)


def test_more_than_a_hundred_clean_runs_end_with_split_and_nothing_else_does(every: list[Cell]) -> None:
    alone = named(every, f"*{ALONE}*")
    assert len(alone) >= 100 and all(cell.until == "split" == cell.given["until"] and cell.given["attack"] == "none" for cell in alone)
    assert not any(cell.until or cell.given["attack"] == "none" for cell in every if cell not in alone)
    runs = Counter(cell.given["source"] for cell in alone if not cell.given["settings"])
    assert runs == {data_of(data)[0]: len(seeds) for data, seeds in CLEAN.values()}
    assert {runs[name] for name in ("cifar10", "fashion-mnist", "gtsrb")} == {20} and min(runs.values()) == 10
    troubled = [cell for cell in alone if cell.given["settings"]]
    assert len(troubled) == 20 and {cell.given["source"] for cell in troubled} == {"cifar10", "gtsrb"}


def test_every_attack_of_the_registry_is_run_on_every_set_at_five_percent(every: list[Cell]) -> None:
    for name in WHOLE:
        found = named(every, name, f"{name}, further attacks")
        usual = dict.fromkeys((*EIGHT, *FURTHER), 3)
        assert Counter(cell.given["attack"] for cell in found) == usual and {cell.given["rate"] for cell in found} == {0.05}
    assert {*EIGHT, *FURTHER, *RULE} == set(ATTACKS)


def test_what_was_made_against_the_rule_is_run_on_ten_classes_and_on_many(every: list[Cell]) -> None:
    for name in ("cifar10-6k", "gtsrb-5k"):
        found = Counter((cell.given["attack"], cell.given["rate"], cell.given["seed"]) for cell in named(every, f"{name}{AGAINST}*"))
        wanted = [("crowd", 0.05), ("crowd", 0.2), ("kin", 0.05)]
        assert found == dict.fromkeys([(*each, seed) for each in wanted for seed in (101, 102, 103)], 1)


def test_a_share_of_a_class_is_reached_whatever_its_size(every: list[Cell]) -> None:
    for name, targets in TARGETS.items():
        n = data_of(WHOLE[name])[1]
        for cell in named(every, f"{name}, * {OF_ITS_CLASS}"):
            asked = float(cell.given["experiment"].removeprefix(f"{name}, ").partition(" %")[0]) / 100
            params = cell.params.group("poison", PoisonParams)
            own = next(size for most, label, size in targets if asked <= most and label == params.target_class)
            labels = np.full(n, params.target_class + 1)
            labels[:own] = params.target_class
            made = plan(labels, params.target_class + 2, params, cell.params.seed)
            share = len(made.poison.rows) / (made.given == params.target_class).sum()
            assert abs(share - asked) <= 0.5 / (own + len(made.poison.rows)) + 1e-9 and not made.poison.capped, (cell.name, share)


@given(share=st.floats(0.01, 0.99), own=st.integers(1, 10**4), others=st.integers(1, 10**5))
def test_a_rate_gives_the_share_or_there_is_none(share: float, own: int, others: int) -> None:
    n = own + others
    rate = rate_for(share, own, n)
    poison = round(share / (1 - share) * own)
    assert (rate is None) == (poison > others or poison == 0)
    assert rate is None or int(n * rate + 1e-9) == poison


def test_a_set_is_looked_for_in_the_folder_that_was_given_and_then_in_the_data(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECA_DATA", str(tmp_path / "data"))
    assert located("cifar10:6000", sets) == "cifar10:6000" and located("digits") == "digits"
    assert located("gtsrb:5000", sets) == f"{sets / 'gtsrb'}:5000"
    with pytest.raises(UsageError, match=r"Expected the set gtsrb in .*data, found none; set MECA_DATA"):
        located("gtsrb:5000")
    with pytest.raises(UsageError, match=r"found none; make it with `python -m benchmarks\.quality\.merged FOLDER` and add --sets FOLDER"):
        located("cifar10-merged:6000")
    make_folder(tmp_path / "data" / "gtsrb")
    assert located("gtsrb") == str(tmp_path / "data" / "gtsrb") and located("gtsrb", sets) == str(sets / "gtsrb")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "gtsrb-5k"], r"got 'gtsrb-5k'; 'gtsrb-5k' is there with --campaign"),
        (["--campaign", "--only", "gtsrb-6k*"], r"got 'gtsrb-6k\*'; --list names them"),
        (["--only", "shapes, classes asked*"], r"'shapes, classes asked once' is there with --cuts"),
    ],
)
def test_a_name_that_is_none_is_refused_with_where_it_is(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["quality", *arguments])
    with pytest.raises(UsageError, match=words):
        experiments.main()


def test_a_list_names_what_is_due_and_runs_nothing(
    tmp_path: Path, sets: Path, every: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiments, "FILE", tmp_path / "quality.jsonl")
    monkeypatch.setattr(experiments, "DETECTION_FILE", tmp_path / "detection.jsonl")
    (tmp_path / "detection.jsonl").write_text('{"experiment": "gtsrb-5k, detection alone", "attack": "none", "preset": "default", "seed": 101}\n')
    monkeypatch.setattr("sys.argv", ["quality", "--campaign", "--list", "--sets", str(sets), "--only", "gtsrb-5k*", "--seeds", "101", "102"])
    experiments.main()
    told = capsys.readouterr().out.splitlines()
    wanted = len([cell for cell in named(every, "gtsrb-5k*") if cell.given["seed"] in (101, 102)])
    assert told[0].startswith(f"{wanted} cells, {wanted - 1} to run") and len(told) == wanted
    assert told[1] == "gtsrb-5k, detection alone none default seed 102" and not work_folder(tmp_path / "detection.jsonl").exists()


def test_a_seed_whose_detection_was_looked_at_is_reported_by_no_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "FILE", tmp_path / "quality.jsonl")
    monkeypatch.setattr(experiments, "DETECTION_FILE", tmp_path / "detection.jsonl")
    whole = experiments.chosen(experiments.EXPERIMENTS, ["digits"], ["badnet"], ["default"])
    assert experiments.grid(whole).missing() == whole
    row = {"experiment": f"digits{ALONE}{LOOKED_AT}", "dataset": "digits", "attack": "none", "preset": "default", "seed": 102}
    (tmp_path / "detection.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match="that were never looked at, got 102; choose others"):
        experiments.grid(whole)


def test_rows_of_both_kinds_go_to_files_of_their_own_and_a_second_start_measures_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {
        "ingest.shapes_train": 120, "ingest.shapes_test": 20, "ingest.size": 16, "network.width": 4, "detector.width": 4, "train_clean.epochs": 1,
        "train_clean.min_steps": 0, "partition.recipe.min_steps": 0, "enhance.rounds": 1, "enhance.recipe.min_steps": 0, "split.rounds": 1,
        "split.recipe.epochs": 1, "split.recipe.min_steps": 0,
    }  # fmt: skip
    plans = {"a": campaign._clean("shapes", (1,), tiny), "b": campaign._attacked("shapes", ("badnet",), settings=tiny)}
    files = {name: tmp_path / f"{name}.jsonl" for name in ("FILE", "DETECTION_FILE")}
    for name, file in files.items():
        monkeypatch.setattr(experiments, name, file)
    monkeypatch.setitem(experiments.TABLES, "--campaign", plans)  # type: ignore[arg-type]
    monkeypatch.setattr("sys.argv", ["quality", "--campaign", "--looked-at", "--seeds", "1", "--workers", "1"])
    for left in (2, 0):
        with pytest.raises(SystemExit, match=r"^0$"):
            experiments.main()
        told = capsys.readouterr().out.splitlines()
        assert told[0] == f"2 cells, {left} to run, 1 at a time." and len(told) == 1 + left
    (whole,), (alone,) = (read_rows(file) for file in files.values())
    assert (alone["until"], alone["status"], whole["until"], whole["status"]) == ("split", "done", None, "done")
    assert (
        alone["experiment"] == "a, seeds that were looked at while tuning" and alone["seed"] == 1 and "acc" not in alone and whole["acc"] is not None
    )
    assert isinstance(alone["dirty"], bool | None) and alone["params_sha256"] and alone["code_sha256"] != whole["code_sha256"]
    assert {path.name for path in tmp_path.iterdir()} == {"FILE.jsonl", "DETECTION_FILE.jsonl"}
