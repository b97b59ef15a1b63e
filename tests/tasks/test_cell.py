"""The row of a cell: how near its decision was, in a few words, and no false alarm without what it cost."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meca.data.store import write_parquet
from meca.files import canonical_json, read_json
from tasks.benchmark.cell import EVIDENCE_CLASSES, evidence, flags, row_of, undefended
from tests.stages.chain import quick, run

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
    params = quick(attack="none", split__min_range=1e9, second_look__rounds=0)
    run(tmp_path, params)
    found, clean = undefended(tmp_path, params), read_json(tmp_path / "work" / "evaluate" / "evaluation.json")["clean"]
    assert found["plain"] == {"no_defence": clean, "oracle": clean}
    assert found["tuned"]["no_defence"] == found["tuned"]["oracle"] and 0 <= found["tuned"]["oracle"]["acc"] <= 1
    counted = flags(tmp_path / "work" / "split")
    assert counted.keys() == {0, 1, 2, 3} and not any(flagged for flagged, _ in counted.values())
