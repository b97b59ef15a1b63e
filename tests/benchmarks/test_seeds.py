"""Seeds that were looked at are never reported: the lists hold it, every row keeps to them, and no run gets round them."""

import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import detectors, experiments
from benchmarks.quality.seeds import FILE, LOOKED_AT, Seeds, headline, read_seeds, refuse
from benchmarks.rows import RESULTS
from meca.errors import UsageError
from tasks.benchmark.rows import read_rows

LISTS = read_seeds()
ROWS = [row for kind in ("quality", "benchmark", "detectors") for row in read_rows(RESULTS / f"{kind}.jsonl")]
KNOWN = st.sets(st.integers(0, 9))


def cell(seed: int, name: str = "shapes", source: str = "shapes") -> dict:
    return {"experiment": name, "source": source, "seed": seed}


def test_no_seed_that_may_be_reported_was_looked_at() -> None:
    assert set(LISTS.looked_at) == set(LISTS.report) >= {"cifar10", "fashion-mnist", "gtsrb", "cifar100", "digits", "shapes"}
    for name, seeds in LISTS.report.items():
        assert not seeds & LISTS.looked_at[name] and len(seeds) >= 10


def test_every_row_with_another_seed_than_those_of_reports_is_of_an_experiment_that_was_looked_at() -> None:
    wrong = [(row["experiment"], row["attack"], row["seed"]) for row in ROWS if LISTS.is_report(row) == LISTS.is_looked_at(row)]
    assert not wrong, f"a row is a report or was looked at, and {FILE.name} says which"


def test_no_row_that_was_looked_at_has_a_seed_that_is_kept_for_reports() -> None:
    looked = [row for row in ROWS if LISTS.is_looked_at(row) and "dataset" in row]
    assert looked and all(row["seed"] not in LISTS.report[row["dataset"]] and row["seed"] in LISTS.looked_at[row["dataset"]] for row in looked)


def test_the_row_of_digits_that_had_been_deleted_is_there_and_no_report() -> None:
    (row,) = [row for row in ROWS if row["experiment"] == f"digits{LOOKED_AT}" and row["seed"] == 2]
    assert (row["attack"], row["asr_k"], row["asr_n"], round(row["tpr"], 3), row["commit"]) == ("badnet", 289, 319, 0.444, "3d0bf0e")
    assert LISTS.is_looked_at(row) and not LISTS.is_report(row)


def test_every_plan_asks_for_seeds_that_may_be_reported() -> None:
    for table in (experiments.EXPERIMENTS, experiments.LESS, experiments.ON_GPU, detectors.EXPERIMENTS):
        refuse([found.given for found in experiments.chosen(table)], ROWS)


@given(looked_at=KNOWN, report=KNOWN, seed=st.integers(0, 9), tuning=st.booleans())
def test_a_cell_runs_with_the_seeds_of_its_list_and_with_no_other(looked_at: set[int], report: set[int], seed: int, tuning: bool) -> None:
    lists = Seeds({"shapes": frozenset(looked_at - report)}, {"shapes": frozenset(report)}, {})
    asked = [cell(seed, f"shapes{LOOKED_AT}" if tuning else "shapes")]
    if seed in (looked_at - report if tuning else report):
        refuse(asked, [], lists)
    else:
        with pytest.raises(UsageError, match=rf"lists as {'looked_at' if tuning else 'report'} .*got {seed}"):
            refuse(asked, [], lists)


def test_a_seed_that_has_a_row_of_tuning_is_spent_whatever_the_lists_say() -> None:
    lists = Seeds({"shapes": frozenset({1})}, {"shapes": frozenset({7, 8})}, {"shapes, half": frozenset({8})})
    rows = [{"experiment": f"shapes{LOOKED_AT}", "dataset": "shapes", "seed": 7}, {"experiment": "shapes, half", "dataset": "shapes", "seed": 8}]
    for seed in (7, 8):
        with pytest.raises(UsageError, match=f"never looked at, got {seed}; choose others"):
            refuse([cell(seed)], rows, lists)
    refuse([cell(8)], [{**rows[1], "dirty": None}], lists)  # a newer row is none of before
    refuse([cell(7)], [{**rows[0], "dataset": "digits"}], lists)


def test_a_set_that_no_list_names_is_never_reported() -> None:
    with pytest.raises(UsageError, match=r"Expected seeds of photos that seeds.toml lists as report \(none\)"):
        refuse([cell(101, source="photos")], [])


def test_a_look_at_a_seed_that_is_kept_for_reports_is_refused() -> None:
    with pytest.raises(UsageError, match="got 101, which are kept for reports; add them to that list first"):
        refuse([cell(101, f"shapes{LOOKED_AT}")], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nlooked_at = [1]\nreport = [1, 2]", r"\[a\] expected no seed in both lists, got 1"),
        ("[a]\nlooked_at = [1]", r"\[a\] expected looked_at and report, got looked_at"),
        ("a = 1", r"\[a\] expected looked_at and report, got 1"),
        ("[a]\nlooked_at = [1]\nreport = ['2']", r"\[a\] report: expected a list of seeds"),
        ("[a]\nlooked_at = [true]\nreport = [2]", r"\[a\] looked_at: expected a list of seeds"),
        ("[a]\nlooked_at = [1, 1]\nreport = [2]", "each once"),
        ("[before]\nx = 3", r"\[before\] x: expected a list of seeds"),
        ("[a", "expected lists of seeds as TOML"),
    ],
)
def test_lists_that_are_none_are_refused_with_what_was_expected(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "seeds.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_seeds(tmp_path / "seeds.toml")


def test_the_programs_start_nothing_with_a_seed_that_is_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "FILE", tmp_path / "quality.jsonl")
    monkeypatch.setattr(detectors, "FILE", tmp_path / "detectors.jsonl")
    monkeypatch.setattr("sys.argv", ["x", "--only", "shapes", "--attack", "badnet", "--seeds", "1"])
    for program in (experiments, detectors):
        with pytest.raises(UsageError, match=r"lists as report .*got 1; choose others, or run it with --looked-at"):
            program.main()
    assert list(tmp_path.iterdir()) == []


def test_the_program_says_it_in_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--only", "shapes", "--attack", "badnet", "--seeds", "1"])
    with pytest.raises(SystemExit, match=f"^{UsageError.exit_code}$"):
        runpy.run_module("benchmarks.quality", run_name="__main__")
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("Expected seeds of shapes that seeds.toml lists") and told.err.count("\n") == 1


def test_what_is_run_to_be_looked_at_says_so_in_its_row_and_its_command() -> None:
    (found,) = experiments.chosen(experiments.EXPERIMENTS, only=["shapes"], attacks=["badnet"], presets=["default"], seeds=[1], looked_at=True)
    assert found.given["experiment"] == f"shapes{LOOKED_AT}" and found.given["command"].endswith("--seeds 1 --looked-at")
    refuse([found.given], ROWS)


def test_a_summary_is_of_reports_and_of_what_was_one_before_only_where_there_is_none() -> None:
    old = [{"experiment": name, "dataset": "shapes", "seed": 20} for name in ("shapes", "shapes, long tail")]
    new = [{"experiment": "shapes", "dataset": "shapes", "seed": 101, "dirty": False}]
    tuned = [{"experiment": f"shapes{LOOKED_AT}", "dataset": "shapes", "seed": 1}]
    assert headline([*old, *tuned]) == old
    assert headline([*old, *new, *tuned]) == [old[1], *new]
    assert headline([*old, {**new[0], "dirty": True}]) == old, "of code that no commit has nobody can run it again"
