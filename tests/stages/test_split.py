"""Stage split: every sample has one verdict, and the set has one too."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meca.data.columns import pc
from meca.data.store import open_store, read_parquet, rewrite
from meca.method.enhance import SIDES
from meca.metrics import wilson
from meca.models import read_description
from meca.params import PRESETS
from meca.stages.tensors import EVERYTHING
from tests.stages.chain import N_TRAIN, quick, step, with_inputs

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
    for row in table.to_pylist():
        flagged_as, cleared_as = {"default": ("stands-apart", "with-its-class"), "paper": ("fitted-by-enhanced", "not-fitted-by-enhanced")}[preset]
        why = flagged_as if row["verdict"] == "poisoned" else cleared_as if preset == "paper" or row["label"] in held else "no-evidence"
        assert row["reasons"] == [why, *["early-loss"] * (row["verdict"] == "poisoned" and bool(early[row["row"]] >= 0.9))]
        proven_as = {"default": "difference", "paper": "fitted-by-enhanced"}[preset]
        assert row["proof"] == (proven_as if row["verdict"] == "poisoned" else None), "what is flagged says how it was proven"
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


def test_one_heap_a_class_is_no_evidence(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    step("split", folder, quick(split__min_range=1e9))
    table, verdict = read(folder)
    assert (verdict["verdict"], verdict["target_class"], verdict["estimated_rate"]) == ("no_evidence", None, None)
    assert set(table["action"].to_pylist()) == {"keep"} and set(map(tuple, table["reasons"].to_pylist())) == {("no-evidence",)}


def test_a_class_that_is_too_small_to_judge_is_kept_and_can_be_written_down(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    store = open_store(folder / "data" / "store")
    few = np.flatnonzero(store.labels[:N_TRAIN] == 3)[5:]
    rewrite(store, tmp_path / "other", {int(row): (np.array(store.images[row]), 0) for row in few})
    (folder / "data" / "store").rename(tmp_path / "gone")
    (tmp_path / "other").rename(folder / "data" / "store")
    scores = folder / "work" / "enhance" / "scores.parquet"
    table = read_parquet(scores)
    for side in SIDES:
        index = table.column_names.index(f"margin_{side}")
        table = table.set_column(index, f"margin_{side}", pa.array([0.0] * N_TRAIN, pa.float32()))
    pq.write_table(table, scores)
    step("split", folder, quick(split__min_range=1.0))
    verdict = read(folder)[1]
    assert verdict["verdict"] == "no_evidence"
    assert {e["threshold"] for e in verdict["evidence"] if e["label"] == 3} == {None}, "JSON has no infinity"


def test_where_nothing_stands_apart_a_second_look_is_taken_and_says_what_it_saw(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    loose = {f"second_look__{name}": 0.0 for name in ("min_foreign", "over_median", "min_spread", "confidence")}
    step("split", folder, quick(split__min_range=1e9, **loose))
    table, verdict = read(folder)
    assert verdict["verdict"] == "poisoned" and all(e["flips"] is None for e in verdict["evidence"])
    proven = {f["label"] for f in verdict["second_look"] if f["proven"]}
    words = np.array(table["verdict"].to_pylist())
    labels = table["label"].to_numpy()
    assert proven == set(labels.tolist()) and {f["label"] for f in verdict["second_look"]} == proven
    kept = np.bincount(labels[words == "clean"]) / np.bincount(labels)
    assert np.allclose(kept, 0.5, atol=0.05)
    assert {row[0] for row, word in zip(table["reasons"].to_pylist(), words, strict=True) if word == "poisoned"} == {"foreign-content"}
    assert table["proof"].to_pylist() == ["foreign-content" if word == "poisoned" else None for word in words]


def test_the_first_look_is_the_last_word_where_it_finds_something_or_the_second_is_off(finished: Finished, tmp_path: Path) -> None:
    assert read(finished())[1]["second_look"] == [] and not (finished() / "work" / "split" / EVERYTHING).exists()
    folder = with_inputs("split", finished(), tmp_path)
    step("split", folder, quick(split__min_range=1e9, second_look__rounds=0))
    assert (read(folder)[1]["verdict"], read(folder)[1]["second_look"]) == ("no_evidence", [])


def test_the_least_trusted_samples_of_a_class_are_asked_what_they_have_in_common(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    asked = {"split__min_range": 1e9, "second_look__min_foreign": 2.0, "second_look__suspects": 0.2, "second_look__min_suspects": 2}
    step("split", folder, quick(**asked, second_look__min_carried=0.0))
    table, verdict = read(folder)
    assert all(0 <= f["carried"] <= 1 and f["proven"] for f in verdict["second_look"])
    assert verdict["target_class"] == max(verdict["second_look"], key=lambda f: f["carried"])["label"]
    assert {row[0] for row in table["reasons"].to_pylist()} == {"common-feature", "with-its-class"}
    assert table["proof"].to_pylist() == ["common-feature" if word == "poisoned" else None for word in table["verdict"].to_pylist()]
    step(
        "split",
        again := with_inputs("split", finished(), tmp_path / "again"),
        quick(**asked, second_look__min_carried=1.1, second_look__min_paired=1.1),
    )
    assert read(again)[1]["verdict"] == "no_evidence"


def test_the_smaller_cluster_of_a_class_is_asked_what_it_turns_where_nothing_else_is_proven(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("split", finished(), tmp_path)
    asked = {"split__min_range": 1e9, "split__cap_left": 0.0, "second_look__min_foreign": 2.0, "second_look__min_carried": 1.1}
    step("split", folder, quick(**asked, second_look__min_suspects=2, second_look__cluster=0.5, second_look__min_paired=0.0))
    table, verdict = read(folder)
    assert all(0 <= f["paired"] <= 1 and f["proven"] for f in verdict["second_look"])
    assert verdict["target_class"] == max(verdict["second_look"], key=lambda f: f["paired"])["label"]
    read_description(folder / "work" / "split" / EVERYTHING)
    codes = [row[0] for row in table["reasons"].to_pylist()]
    assert [code == "paired-cluster" for code in codes] == [word == "poisoned" for word in table["verdict"].to_pylist()]
    assert table["proof"].to_pylist() == [code if code == "paired-cluster" else None for code in codes]
    words, labels = np.array(table["verdict"].to_pylist()) != "clean", table["label"].to_numpy()
    assert (np.bincount(labels, weights=words) <= np.bincount(labels) / 2).all() and words.any()


def test_classes_whose_ends_carry_over_are_scored_again_and_the_new_margins_draw_the_line(finished: Finished, tmp_path: Path) -> None:
    nothing_else = {f"split__{name}": 2.0 for name in ("min_flips", "strong_flips", "doubt_flips", "doubt_strong_flips", "min_foreign")}
    asked = nothing_else | {"split__min_range": 0.0, "split__end": 0.2, "split__min_end": 2, "split__cap_flagged": 1.0, "split__cap_left": 0.0}
    step("split", folder := with_inputs("split", finished(), tmp_path), quick(**asked, split__end_flips=0.0, split__end_over_median=0.0))
    table, verdict = read(folder)
    words, labels = np.array(table["verdict"].to_pylist()) == "poisoned", table["label"].to_numpy()
    scored = {e["label"]: e for e in verdict["evidence"] if e["side"] == "again"}
    assert verdict["verdict"] == "poisoned" and set(scored) == set(labels.tolist()), [(e["suspects"], e["flips"], e["n"]) for e in scored.values()]
    assert {c: int((words & (labels == c)).sum()) for c in scored} == {c: e["suspects"] if e["flips"] is not None else 0 for c, e in scored.items()}
    assert 0 < words.sum() < len(words) and (table["suspicion"].to_numpy()[words] > 0.5).all()
    assert table["proof"].to_pylist() == ["end" if word else None for word in words]
    assert all(0 <= e["end"] <= 1 for e in verdict["evidence"] if e["side"] != "again")
    step("split", none := with_inputs("split", finished(), tmp_path / "none"), quick(**asked, split__end_flips=1.1, second_look__rounds=0))
    assert read(none)[1]["verdict"] == "no_evidence" and not [e for e in read(none)[1]["evidence"] if e["side"] == "again"]
