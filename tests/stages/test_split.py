"""Stage split: every sample has one verdict, and the set has one too."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from meca.data.columns import pc
from meca.data.store import open_store, read_parquet, rewrite
from meca.method.evidence import combined
from meca.method.proofs import REASONS
from meca.metrics import wilson
from meca.models import load_model, read_description
from meca.params import PRESETS
from meca.stages.tensors import EVERYTHING, KEPT
from tests.method.tiny import same
from tests.stages.chain import N_TRAIN, NOTHING, quick, step, with_inputs

Finished = Callable[..., Path]


def read(folder: Path) -> tuple[pa.Table, dict]:
    return read_parquet(folder / "work" / "split" / "decisions.parquet"), json.loads((folder / "work" / "split" / "verdict.json").read_text())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_sample_has_one_verdict_and_the_counts_agree(preset: str, finished: Finished) -> None:
    table, verdict = read(finished(preset))
    store = open_store(finished(preset) / "data" / "store")
    assert table["row"].to_pylist() == list(range(N_TRAIN)) and table["sample_id"].to_pylist() == store.ids[:N_TRAIN]
    assert np.array_equal(table["label"].to_numpy(), store.labels[:N_TRAIN])
    pairs = Counter(zip(table["verdict"].to_pylist(), table["action"].to_pylist(), strict=True))
    assert set(pairs) == {("clean", "keep"), ("poisoned", "remove")}
    flagged = pairs["poisoned", "remove"]
    low, high = wilson(flagged, N_TRAIN)
    assert verdict["estimated_rate"] == {"value": flagged / N_TRAIN, "low": low, "high": high}
    assert (verdict["verdict"], verdict["leak"]) == ("poisoned", None)
    held = set(table["label"].filter(pc.equal(table["verdict"], "poisoned")).to_pylist())
    early = read_parquet(finished(preset) / "work" / "partition" / "scores.parquet").sort_by("row")["suspicion"].to_numpy()
    flagged_early = early[np.array(table["verdict"].to_pylist()) == "poisoned"] >= 0.9
    assert flagged_early.any() and not flagged_early.all(), "both kinds are there to be seen"
    proofs = {each["label"]: each["proof"] for each in verdict["evidence"]}
    for row in table.to_pylist():
        proof = proofs.get(row["label"], "fitted-by-enhanced")
        cleared_as = "not-fitted-by-enhanced" if preset == "paper" else "with-its-class" if row["label"] in held else "no-evidence"
        why = REASONS[proof] if row["verdict"] == "poisoned" else cleared_as
        assert row["reasons"] == [why, *["early-loss"] * (row["verdict"] == "poisoned" and bool(early[row["row"]] >= 0.9))]
        assert row["proof"] == (proof if row["verdict"] == "poisoned" else None), "what is flagged says how it was proven"
    assert verdict["held"] == []
    assert table["new_label"].null_count == table["clean_pred"].null_count == N_TRAIN
    metrics = json.loads((finished(preset) / "work" / "split" / "metrics.json").read_text())
    assert metrics["flagged"] == flagged


def test_by_the_papers_rule_the_flagged_are_those_that_the_enhanced_model_gives_their_label(finished: Finished) -> None:
    table, _ = read(finished("paper"))
    fitted = table["enhanced_pred"].to_numpy() == table["label"].to_numpy()
    assert np.array_equal(fitted, np.array(table["verdict"].to_pylist()) == "poisoned") and 0 < fitted.sum() < N_TRAIN


def test_a_broken_cap_removes_nothing(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    step("split", folder, quick(split__cap_flagged=0.0))
    table, verdict = read(folder)
    assert verdict["verdict"] == "inconclusive" and not all(cap["holds"] for cap in verdict["caps"])
    assert verdict["estimated_rate"] is None, "nothing is called poisoned, so no share of it is known"
    assert set(table["verdict"].to_pylist()) == {"clean", "review"} and set(table["action"].to_pylist()) == {"keep", "quarantine"}
    before = np.array(read(finished())[0]["verdict"].to_pylist()) == "poisoned"
    assert np.array_equal(np.array(table["verdict"].to_pylist()) == "review", before), "what would have been called poisoned is held"
    assert np.array_equal(table["proof"].is_valid().to_numpy(), before)


def test_one_class_that_would_lose_too_much_is_held_alone(finished: Finished, tmp_path: Path) -> None:
    before = read(finished())[0]
    labels, flagged = before["label"].to_numpy(), np.array(before["verdict"].to_pylist()) == "poisoned"
    left = {int(c): float((~flagged)[labels == c].mean()) for c in set(labels.tolist())}
    worst, *others = sorted(left, key=lambda c: left[c])
    assert flagged[labels == worst].any() and any(flagged[labels == c].any() for c in others), "or this test says nothing"
    folder = with_inputs("split", finished(), tmp_path)
    step("split", folder, quick(split__cap_left=left[worst] + 0.01))
    table, verdict = read(folder)
    assert (verdict["verdict"], verdict["held"]) == ("poisoned", [worst]) and "wait for a person" in verdict["reason"].replace("waits", "wait")
    expected = np.where(~flagged, "clean keep", np.where(labels == worst, "review quarantine", "poisoned remove"))
    assert [f"{word} {action}" for word, action in zip(table["verdict"].to_pylist(), table["action"].to_pylist(), strict=True)] == expected.tolist()
    assert verdict["estimated_rate"]["value"] == np.mean(flagged & (labels != worst)), "what waits is not called poisoned"
    assert np.array_equal(table["proof"].is_valid().to_numpy(), flagged) and [c["holds"] for c in verdict["caps"]] == [True, False]


def test_where_nothing_is_proven_everything_is_kept_and_so_is_the_network(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    step("split", folder, quick(**NOTHING))
    table, verdict = read(folder)
    assert (verdict["verdict"], verdict["target_class"], verdict["estimated_rate"], verdict["held"]) == ("no_evidence", None, None, [])
    assert set(table["action"].to_pylist()) == {"keep"} and set(map(tuple, table["reasons"].to_pylist())) == {("no-evidence",)}
    out = folder / "work" / "split"
    assert same(load_model(out / EVERYTHING), load_model(out / KEPT)) and read_description(out / KEPT) == read_description(out / EVERYTHING)
    assert json.loads((out / "metrics.json").read_text())["smallest_p"] == min(each["p"] for each in verdict["evidence"])


def test_a_network_that_was_not_asked_about_what_is_left_is_not_handed_on(finished: Finished) -> None:
    assert (finished() / "work" / "split" / EVERYTHING).is_dir() and not (finished() / "work" / "split" / KEPT).exists()
    assert not (finished("paper") / "work" / "split" / EVERYTHING).exists(), "the rule of the paper trains nothing"


def test_a_class_that_is_too_small_to_judge_is_kept_and_can_be_written_down(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    store = open_store(folder / "data" / "store")
    few = np.flatnonzero(store.labels[:N_TRAIN] == 3)[5:]
    rewrite(store, tmp_path / "other", {int(row): (np.array(store.images[row]), 0) for row in few})
    (folder / "data" / "store").rename(tmp_path / "gone")
    (tmp_path / "other").rename(folder / "data" / "store")
    step("split", folder, quick())
    table, verdict = read(folder)
    (small,) = [each for each in verdict["evidence"] if each["label"] == 3]
    assert small == {"label": 3, "n": 5, "p": 1.0, "q": 1.0, "proven": False, "proof": None, "views": {}}
    assert {row["verdict"] for row in table.to_pylist() if row["label"] == 3} == {"clean"} and verdict["verdict"] == "poisoned"


def test_the_verdict_says_of_each_class_what_each_view_saw(finished: Finished) -> None:
    verdict = read(finished())[1]
    assert [each["label"] for each in verdict["evidence"]] == [0, 1, 2, 3] and len(verdict["rounds"]) == 1
    for each in verdict["evidence"]:
        assert each["proven"] == bool(each["views"]) == (each["proof"] is not None), "with a rate of one what is asked is proven"
        assert each["p"] == pytest.approx(combined(np.array([view["p"] for view in each["views"].values()])))
        assert len(each["views"]) in (0, 6) and each["p"] <= each["q"] + 1e-12 and each["q"] <= 1
    assert verdict["rounds"][0]["proven"] == [each["label"] for each in verdict["evidence"] if each["proven"]]
    assert verdict["rounds"][0]["flagged"] == json.loads((finished() / "work" / "split" / "metrics.json").read_text())["flagged"]
