"""The row of a cell: how near its decision was, in a few words, and no false alarm without what it cost."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meca.data.store import read_parquet, write_parquet
from meca.files import canonical_json, read_json
from meca.training import engine
from tasks.benchmark.cell import COLUMNS, DETECTED, EVIDENCE_CLASSES, detected, evidence, flags, measure, p_values, row_of, taken_over, undefended
from tests.making import settings as settings_of
from tests.stages.chain import NOTHING, quick, run

ENTRY = st.fixed_dictionaries(
    {"label": st.integers(0, 199), "side": st.sampled_from(("low", "ahead")), "apart": st.booleans()},
    optional={
        name: st.none() | st.floats(-1e6, 1e6, allow_nan=False)
        for name in ("flips", "foreign", "foreign_spread", "end", "range", "valley", "separation", "middle", "p_value", "something_new")
    },
)


MANY = [{"label": label, "apart": True, **{f"evidence_of_kind_{i}": label / 7 + i for i in range(20)}} for label in range(200)]


@settings(deadline=None, derandomize=True)
@example(entries=MANY, counts={}, doubtful=[])
@example(entries=MANY[:2], counts=dict.fromkeys(range(200), 10**6), doubtful=list(range(200)))
@given(
    entries=st.lists(ENTRY, max_size=60),
    counts=st.dictionaries(st.integers(0, 199), st.integers(0, 10**6), max_size=200),
    doubtful=st.lists(st.integers(0, 199), max_size=200),
)
def test_evidence_is_less_than_a_kilobyte_whatever_was_written_down(entries: list[dict], counts: dict[int, int], doubtful: list[int]) -> None:
    verdict = {"verdict": "inconclusive", "evidence": entries, "second_look": [], "doubtful": doubtful}
    flagged = {label: (count, 10**6) for label, count in counts.items()}
    found = evidence(verdict, flagged)
    assert len(canonical_json(found, indent=None)) < 1000 and found["verdict"] == "inconclusive"
    told, left = found["flagged"], found["left_out"]
    assert len(told) + left["flagged"] == sum(count > 0 for count in counts.values())
    assert all(counts[int(label)] == count for label, count in told.items())
    assert len(found["strongest"]) + left["strongest"] == len({e["label"] for e in entries} | {label for label, count in counts.items() if count})


def test_the_strongest_value_of_each_kind_is_told_of_flagged_classes_first() -> None:
    verdict = {
        "verdict": "poisoned",
        "doubtful": [7],
        "evidence": [
            {"label": 1, "side": "low", "flips": 0.25, "valley": 0.2, "p_value": 0.04, "n": 900, "middle": 3.0, "mirrored": True},
            {"label": 1, "side": "ahead", "flips": 0.123456, "valley": 0.1, "p_value": 0.5, "n": 900, "middle": 9.0, "mirrored": False},
            {"label": 2, "side": "low", "flips": 0.9, "valley": 0.3, "p_value": None},
            {"label": 7, "side": "low", "flips": 0.1},
        ],
        "second_look": [{"label": 2, "share": 0.4, "proven": False, "carried": None}],
    }
    found = evidence(verdict, {1: (40, 900), 2: (0, 900), 7: (0, 900)})
    assert found["flagged"] == {"1": 40} and found["doubtful"] == [7]
    assert found["strongest"] == [
        {"label": 1, "flips": 0.25, "valley": 0.1, "p_value": 0.04},
        {"label": 7, "flips": 0.1},
        {"label": 2, "flips": 0.9, "valley": 0.3, "share": 0.4},
    ]
    assert found["left_out"] == {"flagged": 0, "strongest": 0} and len(found["strongest"]) <= EVIDENCE_CLASSES


def test_flags_are_counted_by_class(tmp_path: Path) -> None:
    table = pa.table({"label": pa.array([2, 0, 2, 0, 1]), "verdict": pa.array(["poisoned", "clean", "review", "clean", "clean"])})
    write_parquet(table, tmp_path / "decisions.parquet")
    assert flags(tmp_path) == {0: (0, 2), 1: (0, 1), 2: (2, 2)}


@pytest.mark.parametrize(("flagged", "fpr", "inside"), [({0: (0, 10), 1: (0, 30)}, 0.0, None), ({0: (5, 10), 1: (0, 30)}, 0.125, 0.5)])
def test_without_an_attack_every_flag_is_a_false_alarm(flagged: dict, fpr: float, inside: float | None) -> None:
    nothing = dict.fromkeys(("final", "oracle", "no_defence", "detection", "clean"))
    summary = {"counts": {"input": 40, "removed": 0, "relabelled": 0}, "verdict": "inconclusive"}
    info = {"source": {"name": "x"}, "n_train": 40, "n_test": 9}
    verdict = {"verdict": "inconclusive", "target_class": None, "leak": None}
    row = row_of(nothing | {"attack": {}}, summary, info, {"name": "compact", "stem": "s2d"}, verdict, flagged)
    assert (row["fpr"], row["fpr_flagged"], row["tpr"]) == (fpr, inside, None), "held back for a person is flagged, too"


def test_a_row_tells_the_asr_of_each_of_several_triggers_and_of_one_alone_nothing_more() -> None:
    nothing = dict.fromkeys(("oracle", "no_defence", "detection", "clean"))
    each = [{"target_class": 1, "asr": 0.2, "attack": "badnet"}, {"target_class": 2, "asr": 0.6, "attack": "blend"}]
    summary = {"counts": {"input": 40, "removed": 0, "relabelled": 0}, "verdict": "poisoned"}
    info, network = {"source": {"name": "x"}, "n_train": 40, "n_test": 9}, {"name": "compact", "stem": "s2d"}
    verdict = {"verdict": "poisoned", "target_class": 1, "leak": None}
    rows = [
        row_of(nothing | {"attack": {}, "final": {"acc": 0.9, "asr_k": 6, "asr_n": 10} | more}, summary, info, network, verdict, {})
        for more in ({"per_trigger": each}, {})
    ]
    assert [row["asr_per_trigger"] for row in rows] == [{"1": 0.2, "2": 0.6}, None] and rows[0]["asr_k"] == 6


def test_a_false_alarm_has_the_reference_of_a_plain_training(tmp_path: Path) -> None:
    """Where nothing is flagged the clean model is that training: the same figures, whoever trains it."""
    params = quick(attack="none", **NOTHING)
    run(tmp_path, params)
    found, clean = undefended(tmp_path, params), read_json(tmp_path / "work" / "evaluate" / "evaluation.json")["clean"]
    assert found["plain"] == {"no_defence": clean, "oracle": clean}
    assert found["tuned"]["no_defence"] == found["tuned"]["oracle"] and 0 <= found["tuned"]["oracle"]["acc"] <= 1
    assert taken_over(tmp_path / "work" / "split", params) and not taken_over(tmp_path / "work" / "split", quick(network__width=6))
    counted = flags(tmp_path / "work" / "split")
    assert counted.keys() == {0, 1, 2, 3} and not any(flagged for flagged, _ in counted.values())


NEW = {
    "verdict": "weak",
    "evidence": [
        {"label": 2, "n": 30, "p": 0.0123456, "q": 0.05, "proven": True}
        | {"views": {"foreign": {"value": 0.5, "p": 0.02}, "flips": {"value": None, "p": None}}},
        {"label": 0, "n": 30, "p": 1.0, "q": 1.0, "proven": False}
        | {"views": {"foreign": {"value": 7.25, "p": 0.001}, "flips": {"value": 0.1, "p": 0.9}}},
    ],
}


def test_p_values_stand_by_class_and_an_older_verdict_has_none() -> None:
    assert p_values(NEW, 4) == [1.0, None, 0.0123, None]
    assert p_values({"evidence": [{"label": 1, "flips": 0.5, "p": None}, {"label": 2, "flips": 0.5}]}, 4) is None and p_values({}, 2) is None


def test_views_are_told_with_their_p_values_and_the_class_with_the_smallest_p_comes_first() -> None:
    found = evidence(NEW, {0: (0, 30), 2: (0, 30)})
    assert found["verdict"] == "weak" and found["strongest"] == [
        {"label": 2, "p": 0.01235, "q": 0.05, "foreign": 0.5, "foreign: p": 0.02},
        {"label": 0, "p": 1.0, "q": 1.0, "foreign": 7.25, "foreign: p": 0.001, "flips": 0.1, "flips: p": 0.9},
    ]


def test_evidence_with_views_of_a_hundred_classes_is_less_than_a_kilobyte() -> None:
    views = {f"a view with a long name {i}": {"value": i / 7, "p": 1 / (i + 3)} for i in range(9)}
    entries = [{"label": label, "n": 9, "p": 1 / (label + 3), "q": 1.0, "proven": False, "views": views} for label in range(100)]
    found = evidence({"verdict": "no_evidence", "evidence": entries}, {label: (label, 9) for label in range(100)})
    assert len(canonical_json(found, indent=None)) < 1000 and found["left_out"]["strongest"] >= 95


TINY = {
    "ingest.shapes_train": 120, "ingest.shapes_test": 20, "ingest.size": 16, "network.width": 4, "detector.width": 4, "train_clean.min_steps": 0,
    "train_clean.epochs": 2, "partition.recipe.min_steps": 2, "partition.recipe.epochs": 1, "enhance.rounds": 1, "enhance.recipe.epochs": 1,
    "enhance.recipe.min_steps": 0, "split.rounds": 1, "split.recipe.epochs": 1, "split.recipe.min_steps": 0, "split.probe": 8,
    "control.when": "never",
}  # fmt: skip


@pytest.mark.parametrize("attack", ["badnet", "none"])
def test_detection_alone_says_what_the_whole_pipeline_says_and_trains_no_more(tmp_path: Path, attack: str) -> None:
    params = settings_of(**TINY, poison__attack=attack, poison__rate=0.1)
    row = detected(tmp_path / "alone", params)
    ran = {path.stem for path in (tmp_path / "alone" / "work" / "receipts").iterdir()}
    assert set(row) == set(DETECTED) and ran == {"ingest", "poison", "partition", "enhance", "split"} == row["stage_seconds"].keys()
    again = detected(tmp_path / "alone", params)
    assert {**again, "seconds": 0} == {**row, "seconds": 0}, "what is finished is not run again, and its cost is still known"
    whole = measure(tmp_path / "whole", params)
    same = ("dataset", "n_train", "poison_rate", "tpr", "fpr", "fpr_flagged", "verdict", "p_values", "poison_share")
    assert {key: row[key] for key in same} == {key: whole[key] for key in same} and set(whole) == set(COLUMNS)
    assert row["flagged_classes"] == [int(label) for label in sorted(whole["evidence"]["flagged"], key=int)]
    assert row["flagged"] == sum(whole["evidence"]["flagged"].values()) and row["flagged_share"] == row["flagged"] / 120
    counted = ("ingest", "poison", "partition", "enhance", "split", "plain_training")
    assert {name: row["samples"][name] for name in counted} == {name: whole["samples"][name] for name in counted}
    assert row["samples"]["plain_training"] == 2 * 64 and row["samples"]["partition"]["trained"] >= 64
    assert 0 < row["cost"] < whole["cost"]
    assert (row["tpr"] is None) == (attack == "none") == (row["poison_share"] is None)
    if attack == "badnet":
        poisoned = read_parquet(tmp_path / "alone" / "data" / "truth" / "truth.parquet")["is_poisoned"].to_numpy(zero_copy_only=False)
        labels = read_parquet(tmp_path / "alone" / "work" / "split" / "decisions.parquet")["label"].to_numpy()
        assert poisoned.sum() == 12 and row["poison_share"] == 12 / (labels == 1).sum()


def test_a_killed_detection_costs_what_one_that_was_not_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, save = settings_of(**TINY, poison__attack="none"), engine.save_checkpoint
    with monkeypatch.context() as patched:

        def killed(*given: Any) -> None:
            save(*given)
            raise KeyboardInterrupt("killed")

        patched.setattr(engine, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            detected(tmp_path / "killed", params)
    assert list((tmp_path / "killed" / ".meca" / "checkpoints").rglob("*.safetensors")), "or this test says nothing"
    rows = [detected(tmp_path / name, params) for name in ("killed", "whole")]
    assert rows[0]["samples"] == rows[1]["samples"] and rows[0]["cost"] == rows[1]["cost"] is not None


def test_wrong_labels_are_no_false_alarms_of_detection_alone(tmp_path: Path) -> None:
    flagging = {"split.false_discovery": 1.0, "split.cap_flagged": 1.0, "split.cap_left": 0.0, "ingest.shapes_train": 260}
    params = settings_of(**{**TINY, **flagging}, poison__attack="none", poison__label_noise=0.2)
    row = detected(tmp_path, params)
    truth = read_parquet(tmp_path / "data" / "truth" / "truth.parquet")["is_noise"].to_numpy(zero_copy_only=False)
    told = read_parquet(tmp_path / "work" / "split" / "decisions.parquet")["verdict"].to_numpy(zero_copy_only=False) != "clean"
    assert truth.sum() == 52 and told.any(), "or this test says nothing"
    assert (row["tpr"], row["poison_share"]) == (None, None) and row["fpr"] == told[~truth].mean() != told.mean() == row["flagged_share"]
