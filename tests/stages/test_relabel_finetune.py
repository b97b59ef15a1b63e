"""Stage relabel_finetune: clean samples keep label and place, the flagged ones are judged, the final model is tested."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from meca.data.store import open_store, read_parquet
from meca.errors import MecaError
from meca.method.leak import Case, Leak
from meca.metrics import wilson
from meca.models import load_model
from meca.params import PRESETS
from meca.stages import relabel_finetune
from meca.stages.tensors import EVERYTHING
from tests.method.tiny import same
from tests.stages.chain import N_TRAIN, NOTHING, quick, run, step, with_inputs

Finished = Callable[..., Path]


def read(folder: Path, stage: str = "relabel_finetune") -> tuple[pa.Table, dict]:
    out = folder / "work" / stage
    return read_parquet(out / "decisions.parquet"), json.loads((out / "verdict.json").read_text())


def after_split(finished: Finished, folder: Path, **changes) -> Path:
    """Run from split on with other settings."""
    for path in with_inputs("split", finished(), folder), with_inputs("poison", finished(), folder):
        assert path == folder
    return run(folder, quick(**changes), ["split", "train_clean", "relabel_finetune"])


@pytest.mark.parametrize("preset", PRESETS)
def test_what_was_clean_stays_as_it_was_and_only_the_judgement_changes(preset: str, finished: Finished) -> None:
    before, after = read(finished(preset), "split")[0], read(finished(preset))[0]
    assert after.schema.equals(before.schema)
    for name in ("row", "sample_id", "label", "suspicion", "enhanced_pred", "proof"):
        assert after[name].equals(before[name]), name
    for row, earlier in zip(after.to_pylist(), before["verdict"].to_pylist(), strict=True):
        if row["verdict"] == "clean":
            assert (row["action"], row["new_label"]) == ("keep", None)
            assert (row["reasons"][-1:] == ["confirmed"]) == (earlier == "poisoned"), "a flag that is taken back says so"
            assert earlier == "clean" or row["clean_pred"] == row["label"]
        elif row["action"] == "relabel":
            assert row["new_label"] == row["clean_pred"] != row["label"] and row["reasons"][-1] == "contradicted"
        else:
            assert row["clean_pred"] == row["label"], "with no demand on confidence only agreement is left"
            assert preset == "default" and row["action"] == "remove" and row["new_label"] is None
    counts = [row["action"] for row in after.to_pylist()]
    metrics = json.loads((finished(preset) / "work" / "relabel_finetune" / "metrics.json").read_text())
    assert counts.count("relabel") == metrics["relabelled"] > 0
    assert metrics["kept"] == N_TRAIN - counts.count("remove")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_leak_and_its_power_are_shares(preset: str, finished: Finished) -> None:
    (table, verdict), earlier = read(finished(preset)), read(finished(preset), "split")[1]
    final = {"leak", "leak_power", "estimated_rate"}
    assert {name: value for name, value in verdict.items() if name not in final} == {
        name: value for name, value in earlier.items() if name not in final
    }
    believed = table["verdict"].to_pylist().count("poisoned")
    assert verdict["estimated_rate"] == dict(zip(("value", "low", "high"), (believed / N_TRAIN, *wilson(believed, N_TRAIN)), strict=True))
    assert 0 <= verdict["leak"] <= 1 and 0 <= verdict["leak_power"] <= 1


def test_the_power_is_that_of_the_network_that_split_trained_on_everything_where_there_is_one(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.nn.Module] = []

    def measure(model: torch.nn.Module, tests: list[Case | None]) -> Leak:
        asked.append(model)
        return Leak(0.0, 1.0)

    monkeypatch.setattr(relabel_finetune, "measure", measure)
    folder = with_inputs("relabel_finetune", finished(), tmp_path)
    step("relabel_finetune", folder, quick())
    shutil.rmtree(folder / "work" / "split" / EVERYTHING)
    step("relabel_finetune", folder, quick())
    learnt = load_model(finished() / "work" / "split" / EVERYTHING)
    assert same(asked[1], learnt) and same(asked[3], load_model(finished() / "work" / "partition")) and not same(asked[1], asked[3])


def test_relabelled_samples_are_learnt(finished: Finished) -> None:
    final, clean = (load_model(finished() / "work" / name) for name in ("relabel_finetune", "train_clean"))
    assert not same(final, clean)


def test_nothing_flagged_is_nothing_relabelled_and_the_model_is_the_clean_one(finished: Finished, tmp_path: Path) -> None:
    folder = after_split(finished, tmp_path, **NOTHING)
    table, verdict = read(folder)
    assert (verdict["verdict"], verdict["estimated_rate"], verdict["leak"], verdict["leak_power"]) == ("no_evidence", None, None, None)
    assert set(table["action"].to_pylist()) == {"keep"} and table["new_label"].null_count == N_TRAIN
    assert same(*(load_model(folder / "work" / name) for name in ("relabel_finetune", "train_clean")))


def test_without_an_answer_nothing_is_relabelled_nor_removed_nor_counted_so(finished: Finished, tmp_path: Path) -> None:
    folder = after_split(finished, tmp_path, split__cap_flagged=0.0)
    table, verdict = read(folder)
    assert (verdict["verdict"], verdict["estimated_rate"]) == ("inconclusive", None)
    assert table["action"].equals(read(folder, "split")[0]["action"]) and table["new_label"].null_count == N_TRAIN
    assert same(*(load_model(folder / "work" / name) for name in ("relabel_finetune", "train_clean")))
    metrics = json.loads((folder / "work" / "relabel_finetune" / "metrics.json").read_text())
    assert (metrics["relabelled"], metrics["kept"]) == (0, table["action"].to_pylist().count("keep"))


def test_a_doubtful_label_is_no_label(finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("relabel_finetune", finished(), tmp_path)
    step("relabel_finetune", folder, quick(relabel_finetune__confidence=1.0))
    table = read(folder)[0]
    flagged = [row for row in table.to_pylist() if row["verdict"] != "clean"]
    assert {row["action"] for row in flagged} == {"remove"} and all(row["reasons"][-1] == "not-relabelled" for row in flagged)


@pytest.mark.parametrize("word", [None, "no-such-proof"])
def test_a_flag_that_does_not_say_how_it_was_proven_hands_nothing_back(word: str | None, finished: Finished, tmp_path: Path) -> None:
    folder = with_inputs("relabel_finetune", finished(), tmp_path)
    path = folder / "work" / "split" / "decisions.parquet"
    table = read_parquet(path)
    proofs = [proof and word for proof in table["proof"].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("proof"), "proof", pa.array(proofs, pa.string())), path)
    with pytest.raises(MecaError, match=rf"Expected a proof of difference, .* for row \d+, which is flagged, got {word!r}; run stage split again"):
        step("relabel_finetune", folder, quick())
    pq.write_table(table.drop_columns(["proof"]), path)
    with pytest.raises(MecaError, match=r"lacks the columns \['proof'\]; run the stage that writes it again"):
        step("relabel_finetune", folder, quick())


def test_the_ids_are_those_of_the_store(finished: Finished) -> None:
    assert read(finished())[0]["sample_id"].to_pylist() == open_store(finished() / "data" / "store").ids[:N_TRAIN]


def test_what_waits_for_a_person_stays_where_it_is_and_everything_is_accounted_for(finished: Finished, tmp_path: Path) -> None:
    before = read(finished(), "split")[0]
    labels, flagged = before["label"].to_numpy(), np.array(before["verdict"].to_pylist()) == "poisoned"
    worst = min(set(labels.tolist()), key=lambda c: (~flagged)[labels == c].mean())
    folder = after_split(finished, tmp_path, split__cap_left=float((~flagged)[labels == worst].mean()) + 0.01)
    (table, verdict), metrics = read(folder), json.loads((folder / "work" / "relabel_finetune" / "metrics.json").read_text())
    words, actions = (np.array(table[name].to_pylist()) for name in ("verdict", "action"))
    held = flagged & (labels == worst)
    assert (verdict["verdict"], verdict["held"]) == ("poisoned", [worst]) and held.any() and (flagged & ~held).any()
    assert np.array_equal(actions == "quarantine", held) and np.array_equal(words == "review", held), "whatever the clean model says of it"
    assert not any(new is not None for new, out in zip(table["new_label"].to_pylist(), held, strict=True) if out)
    counts = Counter(actions.tolist())
    assert counts["keep"] + counts["relabel"] + counts["remove"] + counts["quarantine"] == N_TRAIN
    assert metrics["kept"] == counts["keep"] + counts["relabel"] and metrics["relabelled"] == counts["relabel"]
    assert verdict["estimated_rate"]["value"] == (words == "poisoned").sum() / N_TRAIN, "what waits is not called poisoned"
