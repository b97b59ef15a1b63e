"""What a run has published is judged once more: the published data and nothing else, and a row says both verdicts."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import campaign_tables
from benchmarks.quality.campaign import AGAINST, CAMPAIGN, OWN
from meca.data.store import open_store
from meca.errors import UsageError
from meca.files import read_json
from tasks.benchmark.cell import DETECTION, OWN_OUTPUT, measure, own_output
from tasks.benchmark.grid import Grid, Plan, cells
from tasks.benchmark.rows import read_rows
from tests.benchmarks.test_campaign_goals import whole
from tests.making import settings

TINY = {
    "ingest.shapes_train": 160, "ingest.shapes_test": 20, "ingest.size": 16, "network.width": 4, "detector.width": 4, "train_clean.epochs": 1,
    "train_clean.min_steps": 0, "partition.recipe.epochs": 1, "partition.recipe.min_steps": 2, "enhance.rounds": 1, "enhance.recipe.epochs": 1,
    "enhance.recipe.min_steps": 0, "split.rounds": 1, "split.recipe.epochs": 1, "split.recipe.min_steps": 0, "split.probe": 8,
    "relabel_finetune.recipe.epochs": 1, "relabel_finetune.recipe.min_steps": 0,
}  # fmt: skip


def test_the_second_detection_sees_what_was_published_with_nothing_planted_and_no_sample_left_out(tmp_path: Path) -> None:
    given = {**TINY, "control.when": "never", "evaluate.references": False}
    params = settings(**given, poison__attack="badnet", poison__rate=0.1, poison__label_noise=0.1, poison__imbalance=0.9)
    row = measure(tmp_path / "run", params)
    told = own_output(tmp_path / "run", tmp_path / "again", params)
    assert told is not None and tuple(told) == OWN_OUTPUT
    counts = read_json(tmp_path / "run" / "published" / "summary.json")["counts"]
    assert counts["kept"] + counts["relabelled"] == told["n_train"] <= row["n_train"] < 160
    store, before = open_store(tmp_path / "again" / "data" / "store"), open_store(tmp_path / "run" / "data" / "store")
    published, judged = ({image.tobytes() for image in np.asarray(each.images[each.train])} for each in (store, before))
    assert published <= judged, "the same pixels, those with the trigger among them"
    assert read_json(tmp_path / "again" / "data" / "truth" / "attack.json") == {"attack": "none"}
    assert told["verdict"] == read_json(tmp_path / "again" / "work" / DETECTION / "verdict.json")["verdict"]
    again = own_output(tmp_path / "run", tmp_path / "again", params)
    assert {**told, "seconds": 0} == {**(again or {}), "seconds": 0}, "it goes on where it was"


def test_a_run_that_published_no_data_has_no_output_to_judge(tmp_path: Path) -> None:
    (tmp_path / "run" / "published").mkdir(parents=True)
    assert own_output(tmp_path / "run", tmp_path / "again", settings(**TINY)) is None and not (tmp_path / "again").exists()


def test_a_cell_that_judges_its_own_output_is_another_one_and_shares_the_references() -> None:
    (plain,), (again,) = (cells(Plan(("shapes",), ("badnet",), presets=("default",), settings=TINY, again=again)) for again in (False, True))
    assert plain.key != again.key and plain.name != again.name and plain.recipe == again.recipe
    assert (plain.again, again.again, "again" in plain.given) == (False, True, False)
    with pytest.raises(UsageError, match=r"a plan that asks of its own output to go to the end \(''\), got until 'split'"):
        cells(Plan(("shapes",), ("none",), until=DETECTION, again=True))


def test_a_cell_without_figures_says_that_its_own_output_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(Plan(("shapes",), ("badnet",), presets=("default",), settings=TINY, again=True), tmp_path / "rows.jsonl")
    monkeypatch.setattr(grid, "_subprocess", lambda cell, folder: (1, ["killed"]))
    assert grid.measure(grid.missing(), 1, lambda cell, row: None) == 1
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row["status"] == "failed" and row["own_output"] is None and len(grid.missing()) == 1


def test_the_campaign_judges_its_own_output_on_three_sets() -> None:
    found = {name: plans for name, plans in CAMPAIGN.items() if name.endswith(OWN)}
    assert set(found) == {f"{name}{OWN}" for name in ("cifar10-6k", "gtsrb-5k", "fashion-mnist-6k")}
    for (plan,) in found.values():
        assert (plan.again, plan.attacks, plan.seeds, plan.rates, plan.until) == (True, ("badnet", "blend"), (101, 102, 103), (0.05,), "")
    assert not any(plan.again for name, plans in CAMPAIGN.items() for plan in plans if name not in found)


def output(verdict: str, share: float = 0.0) -> dict:
    return {"verdict": verdict, "flagged_share": share}


def test_the_table_of_own_output_counts_what_is_called_free_or_weak_and_what_was_never_published() -> None:
    name = f"cifar10-6k{OWN}"
    rows = [
        whole("badnet", 101, name, own_output=output("no_evidence")),
        whole("badnet", 102, name, own_output=output("weak")),
        whole("badnet", 103, name, own_output=output("poisoned", 0.034)),
        whole("blend", 101, name, own_output=None, verdict="inconclusive", no_defence_asr=0.1),
    ]
    text = campaign_tables.section([], rows)
    assert "What meca says of what it has published" in text and "Attacks that do not work" not in text, "the law is of weak attacks, too"
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {name}")]
    assert lines[0] == [
        name, "badnet", "3", "3 poisoned", "3 of 3", "3", "1 no evidence, 1 poisoned, 1 weak", "2 of 3", "3.40",
    ]  # fmt: skip
    assert lines[1] == [name, "blend", "1", "1 inconclusive", "0 of 1", "0", "–", "0 of 0", "–"]


def test_what_was_made_against_the_rule_stands_in_a_table_of_its_own() -> None:
    rows = [whole("crowd", 101, f"gtsrb-5k{AGAINST}"), whole("kin", 101, f"gtsrb-5k{AGAINST}", no_defence_asr=0.2)]
    text = campaign_tables.section([], rows)
    assert "### Attacks made against the rule" in text and "1 % and less" not in text
    assert text.index("| crowd |") < text.index("### Attacks that do not work without a defence") < text.index("| kin |")
