"""Stage control: what is planted is looked for by the real detection, and nothing of it is left anywhere."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meca.attacks.badnet import badnet
from meca.data.store import Store, open_store, rewrite
from meca.files import sha256_tree
from meca.power import is_weak
from meca.progress import Progress
from meca.stages import control, publish
from meca.stages.runtime import describe, execute
from meca.stages.tensors import EVERYTHING
from tests.making import decide
from tests.stages.chain import NOTHING, make_store, quick
from tests.stages.chain import settings as shipped
from tests.workspaces import colours

N = 96
QUICKLY = {
    "enhance__recipe__min_steps": 0,
    "control__when": "always",
    "control__kinds": ["badnet"],
    "control__rates": [0.1],
    "control__min_planted": 2,
}
TWO = QUICKLY | {"control__rates": [0.1, 0.05]}  # in a copy each
# The thresholds that ship, with so few steps that the tiny set is learnt in seconds.
SHORT = {
    "network__width": 8, "detector__width": 8, "partition__recipe__min_steps": 100, "enhance__recipe__min_steps": 30,
    "train_clean__epochs": 6, "train_clean__min_steps": 60,
    "split__recipe__epochs": 2, "split__recipe__min_steps": 20,
}  # fmt: skip


# The same, where it does not matter what is learnt.
BRIEF = NOTHING | {"train_clean__epochs": 2}


def judged(folder: Path, verdict: str = "no_evidence", flagged: Sequence[int] = (), n: int = N, n_test: int = 32) -> Path:
    """Write a store and what `split` says of it, and return the folder."""
    return answered(folder, make_store(folder / "store", n, n_test), verdict, flagged)


def answered(folder: Path, store: Store, verdict: str = "no_evidence", flagged: Sequence[int] = ()) -> Path:
    n = store.info.n_train
    words = ["poisoned" if row in flagged else "clean" for row in range(n)]
    (folder / "split").mkdir()
    pq.write_table(pa.table({"row": np.arange(n), "sample_id": store.ids[:n], "verdict": words}), folder / "split" / "decisions.parquet")
    (folder / "split" / "verdict.json").write_text(json.dumps({"verdict": verdict}))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control of two copies that ran to its end; nobody writes into it."""
    folder = judged(tmp_path_factory.mktemp("undisturbed"))
    controlled(folder, quick(**TWO, **BRIEF))
    return folder


def with_the_same(undisturbed: Path, folder: Path) -> Path:
    for name in ("store", "split"):
        shutil.copytree(undisturbed / name, folder / name)
    return folder


def controlled(folder: Path, params: Any, name: str = "control", **options: Any) -> dict[str, Any]:
    paths = {"store": folder / "store", "split": folder / "split", "out": folder / name}
    receipt = execute(control, paths, params, scratch=folder / f"{name}-scratch", **options)
    return json.loads((folder / name / "control.json").read_text()) | {"metrics": receipt["metrics"]}


def test_a_planted_patch_is_found_by_the_detection_that_ships(tmp_path: Path) -> None:
    found = controlled(judged(tmp_path, n=200), shipped(**QUICKLY | SHORT))
    (tried,), (line,), (copy,) = found["tries"], found["lines"], found["copies"]
    assert (line["state"], line["planted"], line["achieved"], copy["verdict"]) == ("found", [20], 0.1, "poisoned")
    assert tried["found"] and tried["flagged"] >= 18 and copy["proven_without_trigger"] == []
    assert not is_weak(found) and found["metrics"] == {"ran": 1, "tries": 1, "found": 1, "learnt": 1, "missed": 0}


def test_a_class_that_is_proven_for_another_reason_is_no_trigger_that_was_found(tmp_path: Path) -> None:
    store = make_store(tmp_path / "clean", 200)
    rows = np.flatnonzero(store.labels[:200] != 2)[:20]
    rewrite(store, tmp_path / "store", {int(row): (badnet(np.array(store.images[row : row + 1]), 3)[0], 2) for row in rows})
    faint = {"control__kinds": ["sig"], "control__sig_delta": 1.0}  # with wrong labels the class would be proven by them, and rightly so
    found = controlled(answered(tmp_path, open_store(tmp_path / "store")), shipped(**QUICKLY | SHORT | faint, split__cap_flagged=1.0))
    (tried,), (copy,) = found["tries"], found["copies"]
    assert tried["target_class"] != 2 and (copy["verdict"], copy["proven_without_trigger"]) == ("poisoned", [2])
    assert not tried["found"] and is_weak(found)


def test_what_a_network_learns_and_the_detection_does_not_prove_is_missed(tmp_path: Path) -> None:
    found = controlled(judged(tmp_path), quick(**QUICKLY, **NOTHING))
    (tried,) = found["tries"]
    assert found["lines"][0]["state"] == "missed" and found["copies"][0]["verdict"] == "no_evidence" and is_weak(found)
    assert tried["asr"] >= 0.1 and tried["asr"] == tried["asr_k"] / tried["asr_n"] and tried["asr_n"] <= 32, "on the test split"
    assert found["metrics"] == {"ran": 1, "tries": 1, "found": 0, "learnt": 1, "missed": 1}


def test_what_no_network_learns_is_not_missed_but_shows_no_power_either(tmp_path: Path) -> None:
    faint = {"control__kinds": ["blend"], "control__blend_alpha": 0.01, "control__rates": [0.05]}
    found = controlled(judged(tmp_path), quick(**QUICKLY | faint, **NOTHING))
    assert found["lines"][0]["state"] == "not learnt" and found["lines"][0]["missed"] == 0 and is_weak(found)


@pytest.mark.parametrize(
    ("when", "verdict", "reason"),
    [
        ("never", "no_evidence", "control.when is never"),
        ("no_evidence", "poisoned", "the verdict is poisoned, and control.when is no_evidence"),
        ("no_evidence", "inconclusive", "the verdict is inconclusive, and control.when is no_evidence"),
    ],
)
def test_where_it_is_not_wanted_nothing_is_planted_and_the_record_says_why(when: str, verdict: str, reason: str, tmp_path: Path) -> None:
    found = controlled(judged(tmp_path, verdict), quick(**QUICKLY | {"control__when": when}))
    assert (found["ran"], found["reason"], found["lines"], set(found["metrics"].values())) == (False, reason, [], {0})


def test_the_preset_of_the_paper_has_no_control() -> None:
    assert shipped(preset="paper").raw("control")["when"] == "never" and shipped().raw("control")["when"] == "no_evidence"


def test_the_preset_of_the_paper_can_have_one_that_says_what_was_found_and_not_what_was_learnt(tmp_path: Path) -> None:
    found = controlled(judged(tmp_path), quick("paper", **QUICKLY))
    assert found["ran"] and found["lines"][0]["state"] in ("found", "not measured") and found["tries"][0]["asr"] is None


def test_of_one_class_nothing_can_be_planted(tmp_path: Path) -> None:
    folder = judged(tmp_path)
    store = open_store(folder / "store")
    keep = store.labels == 0
    shutil.move(folder / "store", folder / "all")
    rewrite(open_store(folder / "all"), folder / "store", {}, keep)
    n = int(keep[:N].sum())
    pq.write_table(pa.table({"row": np.arange(n), "sample_id": ["x"] * n, "verdict": ["clean"] * n}), folder / "split" / "decisions.parquet")
    found = controlled(folder, quick(**QUICKLY))
    assert not found["ran"] and "there are not two classes" in found["reason"]


@pytest.mark.parametrize("n", [4, 12, N])
def test_a_set_that_is_too_small_for_a_trigger_has_a_weak_test_and_no_crash(n: int, tmp_path: Path) -> None:
    found = controlled(judged(tmp_path, n=n, n_test=0), shipped())
    assert found["ran"] and {line["state"] for line in found["lines"]} == {"not planted"} and is_weak(found)
    assert {copy["verdict"] for copy in found["copies"]} == {None}, "no detection was run for nothing"


def test_what_is_flagged_already_is_left_out_of_the_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flagged = list(range(0, N, 3))
    folder = judged(tmp_path, "poisoned", flagged)
    seen: list[tuple[list[str], np.ndarray, np.ndarray]] = []

    def look(module: Any, paths: Any, *rest: Any) -> dict[str, Any]:
        if module.__name__.endswith("partition"):
            copy = open_store(paths["store"])
            seen.append((copy.readable["source"].to_pylist(), np.array(copy.images), copy.labels.copy()))
        return execute(module, paths, *rest)

    monkeypatch.setattr(control, "execute", look)
    found = controlled(folder, quick(**QUICKLY, **BRIEF))
    assert found["samples"] == N - len(flagged)
    left, store = [row for row in range(N) if row not in flagged], open_store(folder / "store")
    ((sources, images, labels),) = seen
    assert sources == [f"tiny#{row}" for row in left], "nor are test samples there"
    (tried,) = found["tries"]
    other = labels != store.labels[left]
    assert other.sum() == tried["planted"] and set(labels[other].tolist()) == {tried["target_class"]}
    assert np.array_equal(images[other], badnet(np.asarray(store.images[left])[other], 3)) and np.array_equal(
        images[~other], store.images[left][~other]
    )


def test_a_class_that_keeps_its_labels_gives_at_most_half_of_its_samples(tmp_path: Path) -> None:
    found = controlled(judged(tmp_path), quick(**QUICKLY | {"control__kinds": ["sig"], "control__rates": [0.4]}, **BRIEF))
    (tried,) = found["tries"]
    assert tried["capped"] and tried["requested"] == int(0.4 * N) and tried["planted"] == tried["pool"] // 2
    assert found["lines"][0]["achieved"] == tried["planted"] / N


def test_the_same_set_gives_the_same_record_and_another_seed_another(undisturbed: Path, tmp_path: Path) -> None:
    folder = with_the_same(undisturbed, tmp_path)
    controlled(folder, quick(**TWO, **BRIEF), "again")
    controlled(folder, quick(**TWO, **BRIEF, seed=1), "other")
    first, again, other = ((place / "control.json").read_bytes() for place in (undisturbed / "control", folder / "again", folder / "other"))
    assert first == again and json.loads(first)["tries"] != json.loads(other)["tries"]


def test_a_control_that_was_killed_goes_on_where_it_was(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, params = with_the_same(undisturbed, tmp_path), quick(**TWO, **BRIEF)
    done: list[tuple[str, str]] = []

    def killed(module: Any, paths: Any, *rest: Any) -> dict[str, Any]:
        done.append((paths["out"].parent.name, paths["out"].name))
        if stop and done[-1] == stop:
            raise KeyboardInterrupt
        return execute(module, paths, *rest)

    monkeypatch.setattr(control, "execute", killed)
    stop: tuple[str, str] | None = ("copy-1", "enhance")
    with pytest.raises(KeyboardInterrupt):
        controlled(folder, params)
    assert not [path for path in (folder / "control-scratch").rglob("copy-0") if path.is_dir()], "one copy lies on the disk at a time"
    assert not (folder / "control").exists() and done == [("copy-0", s) for s in control.DETECTION] + [("copy-1", "partition"), stop]
    stop, done[:] = None, []
    controlled(folder, params)
    assert done == [("copy-1", "enhance"), ("copy-1", "split")], "what was finished is not done again"
    assert (folder / "control" / "control.json").read_bytes() == (undisturbed / "control" / "control.json").read_bytes()


@pytest.mark.parametrize("forged", ["the outcome of a copy", "the output of a stage"])
def test_what_somebody_else_left_of_a_copy_is_not_believed(forged: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, params = with_the_same(undisturbed, tmp_path), quick(**TWO, **BRIEF)

    def killed(module: Any, paths: Any, *rest: Any) -> dict[str, Any]:
        if paths["out"].parent.name == "copy-1" and paths["out"].name == "split":
            raise KeyboardInterrupt
        return execute(module, paths, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(control, "execute", killed)
        controlled(folder, params)
    (checkpoints,) = (folder / "control-scratch" / "checkpoints").iterdir()
    if forged == "the outcome of a copy":
        outcome = checkpoints / "copy-0.json"
        record = json.loads(outcome.read_text())
        record["tries"][0] |= {"found": True, "learnt": True}
        outcome.write_text(json.dumps(record))
    else:
        shutil.copy(checkpoints / "copy-1" / "partition" / "scores.parquet", checkpoints / "copy-1" / "enhance" / "scores.parquet")
    controlled(folder, params)
    assert (folder / "control" / "control.json").read_bytes() == (undisturbed / "control" / "control.json").read_bytes()


def test_nothing_of_the_copies_is_left(undisturbed: Path) -> None:
    assert sorted(path.name for path in (undisturbed / "control").iterdir()) == ["control.json", "metrics.json"]
    assert not [path for path in (undisturbed / "control-scratch").rglob("*") if path.suffix in (".npy", ".parquet", ".safetensors")]
    open_store(undisturbed / "store")  # is as it was written


def test_what_is_published_is_the_same_with_and_without_a_control(tmp_path: Path) -> None:
    store = colours(tmp_path)
    out: dict[str, Path] = {}
    for when in ("always", "never"):
        folder = tmp_path / when
        folder.mkdir()
        paths = {"store": store.path, **decide(store, folder / "work", {}, "no_evidence"), "out": folder / "published"}
        execute(control, paths | {"out": folder / "control"}, quick(**QUICKLY | {"control__when": when}, **BRIEF), scratch=folder / "scratch")
        execute(publish, paths | {"control": folder / "control"}, quick(), scratch=folder / "scratch")
        out[when] = paths["out"]
    for name in ("data", "model"):
        assert sha256_tree(out["always"] / name) == sha256_tree(out["never"] / name)
    assert (out["always"] / "verdicts.parquet").read_bytes() == (out["never"] / "verdicts.parquet").read_bytes()
    summaries = [json.loads((out[when] / "summary.json").read_text()) for when in out]
    assert [summary["verdict"] for summary in summaries] == ["weak", "no_evidence"] and summaries[0]["control"]["lines"][0]["planted"] == [3]
    assert {name for name in summaries[0] if summaries[0][name] != summaries[1][name]} == {"verdict", "sentence", "control"}


def test_it_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    controlled(judged(tmp_path), quick(**QUICKLY, **BRIEF), progress=Progress(every=1e9))
    assert "Control, copy 1 of 1: badnet in 9 samples planted, the detection is run on it." in capsys.readouterr().err


def test_it_depends_on_every_number_of_the_detection_that_it_runs() -> None:
    inner = {group for module in control.DETECTION.values() for group in describe(module).groups}
    assert set(describe(control).groups) == inner | {"control"} and EVERYTHING == "everything"


def test_copies_that_stay_in_their_files_are_judged_alike_and_leave_nothing(undisturbed: Path, tmp_path: Path) -> None:
    folder = with_the_same(undisturbed, tmp_path)
    controlled(folder, quick(**TWO, **BRIEF, engine__resident=0.0))
    assert (folder / "control" / "control.json").read_bytes() == (undisturbed / "control" / "control.json").read_bytes()
    assert not list((folder / "control-scratch").rglob("store"))
