"""Stage publish: every sample accounted for, hostile names harmless, the same bytes each time, and back in through ingest."""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from meca.data.ingest import read_source
from meca.data.store import Store, open_store, read_parquet
from meca.errors import MecaError, UsageError
from meca.files import sha256_tree
from meca.release.folder import PublishParams
from meca.release.verdicts import SCHEMA, build, count
from meca.release.verification import verify
from meca.stages import control, enhance, partition, publish, relabel_finetune, split, train_clean
from meca.stages import ingest as ingest_stage
from meca.stages.runtime import describe, execute
from tests.data.readers.test_readers import make_batches, make_idx
from tests.making import control_record, decide, encode, ingest, make_folder, make_shards, params, pixels, publish_store, settings

CHANGED = {0: ("poisoned", "remove", None), 1: ("poisoned", "relabel", 2), 2: ("review", "quarantine", None)}


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_stage_reads_what_it_says() -> None:
    stage = describe(publish)
    assert stage.inputs == ("store", "partition", "enhance", "split", "control", "relabel_finetune")
    assert stage.outputs == ("out",)
    # The summary names the digest of the numbers behind the result, so publish depends on all that decide about the set.
    deciding = {
        group for module in (ingest_stage, partition, enhance, split, control, train_clean, relabel_finetune) for group in describe(module).groups
    }
    assert set(stage.groups) == {"publish"} | deciding


def test_the_digest_of_the_numbers_tells_apart_what_decides_about_the_set(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    digests = {}
    for name, changes in (("first", {}), ("rounds", {"split__rounds": 7}), ("end", {"split__end": 0.2}), ("page", {"report__kept_pictures": 3})):
        paths = {"store": store.path, **decide(store, tmp_path / name / "work", CHANGED), "out": tmp_path / name / "published"}
        execute(publish, paths, settings(**changes), scratch=tmp_path / name / "scratch")
        digests[name] = read_json(paths["out"] / "summary.json")["params_sha256"]
    assert digests["page"] == digests["first"]
    assert len(set(digests.values())) == 3


@pytest.mark.parametrize(("flagged", "leads"), [((1,), "'dog';"), ((1, 0), "'dog' and 1 other;"), ((0, 1, 2), "'dog' and 2 others;")])
def test_the_sentence_says_how_many_classes_a_trigger_leads_to(flagged: tuple[int, ...], leads: str, tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    rows = {int((store.labels[: store.info.n_train] == label).argmax()): ("poisoned", "remove", None) for label in flagged}
    summary = read_json(publish_store(store, tmp_path, rows) / "summary.json")
    assert f"leading to class {leads}" in summary["sentence"], summary["sentence"]


def test_a_flag_that_was_taken_back_is_told_and_counted_apart(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    for k, words in ((0, ""), (1, "; 1 more was flagged and kept, since"), (2, "; 2 more were flagged and kept, since")):
        paths = {"store": store.path, **decide(store, tmp_path / str(k) / "work", CHANGED), "out": tmp_path / str(k) / "published"}
        file = paths["relabel_finetune"] / "decisions.parquet"
        table = pq.read_table(file)
        reasons = [["confirmed"] if 5 <= row < 5 + k else said for row, said in enumerate(table["reasons"].to_pylist())]
        at = table.column_names.index("reasons")
        pq.write_table(table.set_column(at, table.field(at), pa.array(reasons, table.field(at).type)), file)
        execute(publish, paths, settings(), scratch=tmp_path / str(k) / "scratch")
        summary = read_json(paths["out"] / "summary.json")
        assert summary["sentence"].startswith("Poison was found: 2 of 12") and words in summary["sentence"], summary["sentence"]
        assert ("flagged and kept" in summary["sentence"]) == (k > 0) and verify(paths["out"]) == []


def test_what_is_held_of_a_class_is_counted_and_named_and_waits_for_a_person(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    labels = store.labels[: store.info.n_train]
    mine, other = np.flatnonzero(labels == 1)[:2], np.flatnonzero(labels == 0)[:1]
    rows = {int(row): ("review", "quarantine", None) for row in mine}
    for name, more, found in (("all", {}, 2), ("some", {int(other[0]): ("poisoned", "remove", None)}, 3)):
        paths = {"store": store.path, **decide(store, tmp_path / name / "work", rows | more), "out": tmp_path / name / "published"}
        file = paths["relabel_finetune"] / "verdict.json"
        file.write_text(json.dumps(read_json(file) | {"held": [1]}))
        execute(publish, paths, settings(), scratch=tmp_path / name / "scratch")
        summary, n = read_json(paths["out"] / "summary.json"), store.info.n_train
        assert (
            summary["sentence"].startswith(f"Poison was found: {found} of {n} training samples")
            and "2 of them wait for a person" in summary["sentence"]
        )
        assert [w for w in summary["warnings"] if w.startswith("Too little of class 'dog' would be left")]
        counts = summary["counts"]
        assert (
            counts["quarantined"] == 2 and counts["kept"] + counts["relabelled"] + counts["removed"] + counts["quarantined"] == n == counts["input"]
        )
        assert verify(paths["out"]) == []


@pytest.mark.parametrize("make", [make_folder, make_shards, make_batches, make_idx, "shapes", "digits"])
def test_publish_and_ingest_again(make: Callable[[Path], Path] | str, tmp_path: Path) -> None:
    source = make(tmp_path / "in") if callable(make) else make
    store = ingest(source, tmp_path / "store", train_limit=0 if callable(make) else 20, test_limit=0 if callable(make) else 10)
    n = store.info.n_train
    # All classes must stay for the second ingest; the last rows are the safest to change.
    changed = {n - 1: CHANGED[0], n - 2: CHANGED[1]} if n > 6 else {n - 1: ("poisoned", "relabel", 0)}
    out = publish_store(store, tmp_path, changed)
    assert verify(out) == []
    assert {p.name for p in out.iterdir()} == {"data", "model", "verdicts.parquet", "summary.json", "README.md", "manifest.json"}
    verdicts = read_parquet(out / "verdicts.parquet").to_pylist()
    wanted = sorted(v["new_label"] if v["action"] == "relabel" else v["label"] for v in verdicts if v["action"] in ("keep", "relabel"))
    if make is not make_batches:  # its four classes have one sample each
        read_source(params(source=str(out / "data")), 0, tmp_path / "again")
        again = open_store(tmp_path / "again")
        assert sorted(again.labels.tolist()) == wanted
        if callable(make):
            kept = sorted(v["sample_id"] for v in verdicts if v["action"] in ("keep", "relabel"))
            assert sorted(again.ids) == kept


def test_every_sample_has_a_row_and_the_sum_holds(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in")
    (root / "train" / "dog" / "bad.jpeg").write_bytes(b"no image")
    store = ingest(root, tmp_path / "store")
    out = publish_store(store, tmp_path, CHANGED)
    verdicts = pq.read_table(out / "verdicts.parquet")
    assert verdicts.schema.equals(SCHEMA) and verdicts.num_rows == 13
    sources = verdicts["source"].to_pylist()
    assert sources == sorted(sources) and set(verdicts["split"].to_pylist()) == {"train"}
    summary = read_json(out / "summary.json")
    assert summary["counts"] == {"input": 13, "kept": 9, "relabelled": 1, "removed": 1, "quarantined": 2}
    assert summary["classes"][0] == {
        "label": 0, "name": "cat", "input": 4, "kept": 1, "relabelled_in": 0, "relabelled_out": 1, "removed": 1, "quarantined": 1,
    }  # fmt: skip
    assert (summary["classes"][2]["relabelled_in"], summary["classes"][1]["quarantined"]) == (1, 1)
    assert summary["target_class"] == {"label": 1, "name": "dog"} and summary["input_sha256"] == store.info.root
    assert summary["sentence"].startswith("Poison was found: 2 of 13 training samples") and summary["source"]["options"] == {"split_folders": True}
    lines = {line["source"]: line for line in verdicts.to_pylist()}
    bad, moved, last = lines["train/dog/bad.jpeg"], lines["train/cat/1.jpeg"], lines["train/émeu/3.jpeg"]
    assert (bad["verdict"], bad["action"], bad["reasons"], bad["rank"]) == ("quarantined", "quarantine", ["not-an-image"], None)
    assert (moved["new_label"], moved["new_label_name"], moved["reasons"]) == (2, "émeu", ["low-consistency"])
    assert (last["rank"], last["suspicion"], dict(last["stage_scores"])) == (1, 1.0, {"partition.kl": 0.5, "enhance.kl": 0.5})
    assert sorted(line["rank"] for line in verdicts.to_pylist() if line["rank"]) == list(range(1, 13))
    assert "1 samples could not be read" in summary["warnings"][0]
    assert read_json(out / "manifest.json")["sanitized_sha256"] == summary["sanitized_sha256"]


def test_the_order_of_the_samples_does_not_matter(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    decisions = read_parquet(decide(store, tmp_path / "work", CHANGED)["relabel_finetune"] / "decisions.parquet")
    turned = dataclasses.replace(store, samples=store.samples.take(list(range(store.samples.num_rows))[::-1]))
    assert build(store, decisions, {}).equals(build(turned, decisions, {}))


def test_without_an_answer_there_is_no_sample_and_no_model(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    out = publish_store(store, tmp_path, CHANGED, "inconclusive")
    assert not (out / "data").exists() and not (out / "model").exists()
    summary = read_json(out / "summary.json")
    assert summary["counts"] == {"input": 12, "kept": 0, "relabelled": 0, "removed": 0, "quarantined": 12}
    assert "no answer can be defended" in summary["sentence"] and summary["sanitized_sha256"] is None
    assert verify(out) == []


def test_no_evidence_is_said_honestly(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store", size=12)
    sentence = read_json(publish_store(store, tmp_path, {}, "no_evidence") / "summary.json")["sentence"]
    assert sentence == (
        "In 12 training samples no evidence of a backdoor was found; this does not prove that there is none, "
        "and the power of the test was not measured (control.when is never)."
    )


def test_nothing_found_by_a_test_that_misses_what_works_is_a_verdict_of_its_own(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store", size=12)
    out = publish_store(store, tmp_path, {}, "no_evidence", control_record(badnet="found", blend="missed"))
    summary = read_json(out / "summary.json")
    assert summary["verdict"] == "weak" and summary["counts"]["kept"] == 12 and summary["target_class"] is None
    assert summary["sentence"] == (
        "In 12 training samples no evidence of a backdoor was found, but the test is weak here: "
        "of a planted patch at 5 % of all samples 1 of 1 was found; of a planted pattern at 5 % 0 of 1 although it works."
    )
    assert set(summary["control"]) == {"ran", "reason", "lines"} and [line["state"] for line in summary["control"]["lines"]] == ["found", "missed"]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert r"| patch \(badnet\) | 5 % | 5 | 1 of 1 | 1 of 1 | found |" in card and "| 0 of 1 | 1 of 1 | missed |" in card
    assert verify(out) == [] and (out / "data").is_dir() and (out / "model").is_dir()


def test_nothing_found_by_a_test_that_finds_what_is_planted_says_so(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store", size=12)
    summary = read_json(publish_store(store, tmp_path, {}, "no_evidence", control_record(badnet="found")) / "summary.json")
    assert summary["verdict"] == "no_evidence"
    assert summary["sentence"].endswith("Power of the test here: of a planted patch at 5 % of all samples 1 of 1 was found.")


@pytest.mark.parametrize("verdict", ["poisoned", "inconclusive"])
def test_a_control_changes_no_other_verdict(verdict: str, tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    found = [
        read_json(publish_store(store, tmp_path / name, CHANGED, verdict, control) / "summary.json")
        for name, control in (("a", control_record(badnet="missed")), ("b", None))
    ]
    assert [summary["verdict"] for summary in found] == [verdict] * 2 and found[0]["sentence"] == found[1]["sentence"]


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    first, second = (publish_store(store, tmp_path / name, CHANGED) for name in ("a", "b"))
    assert sha256_tree(first) == sha256_tree(second)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({0: ("clean", "relabel", None)}, "Expected a new label in 0..2 exactly where a sample is relabelled, got None"),
        ({0: ("clean", "keep", 1)}, "Expected a new label .* got 1"),
        ({0: ("clean", "relabel", 3)}, "Expected a new label .* got 3"),
        ({0: ("clean", "burn", None)}, "Expected a known verdict and action"),
        ({0: ("review", "keep", None)}, "Expected a sample under review to be held in quarantine"),
    ],
)
def test_decisions_that_contradict_themselves_are_refused(changed: dict, sentence: str, tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    with pytest.raises(MecaError, match=sentence):
        publish_store(store, tmp_path, changed)
    assert not (tmp_path / "published").exists()


def test_decisions_of_another_store_are_refused(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    other = ingest(make_folder(tmp_path / "other", per_class=3), tmp_path / "second")
    same_size = ingest("shapes", tmp_path / "third", train_limit=12)
    for wrong, sentence in ((other, "one line for each of the 12 training rows, got 9"), (same_size, "row 0 has another id")):
        work = tmp_path / sentence[:5]
        paths = {"store": store.path, **decide(wrong, work, {}), "out": work / "published"}
        with pytest.raises(MecaError, match=sentence):
            execute(publish, paths, settings(), scratch=tmp_path / "scratch")


def test_a_verdict_that_split_does_not_bear_out_is_refused(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    paths = {"store": store.path, **decide(store, tmp_path / "work", {}), "out": tmp_path / "published"}
    answer = read_json(paths["split"] / "verdict.json")
    (paths["split"] / "verdict.json").write_text(json.dumps({**answer, "verdict": "inconclusive"}))
    with pytest.raises(MecaError, match="Stage split found no answer"):
        execute(publish, paths, settings(), scratch=tmp_path / "scratch")
    (paths["relabel_finetune"] / "verdict.json").write_text(json.dumps({**answer, "verdict": "fine"}))
    with pytest.raises(MecaError, match="Expected a verdict among no_evidence, poisoned, inconclusive"):
        execute(publish, paths, settings(), scratch=tmp_path / "scratch")


HOSTILE = "<script>alert(1)</script>|[x](http://evil) `x` ---"


def test_hostile_names_stay_text_in_the_card(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", split_folders=False)
    name = HOSTILE.replace("/", "∕")
    (root / name).mkdir()
    (root / name / "x.png").write_bytes(encode(pixels(1)))
    (root / name / "y.png").write_bytes(encode(pixels(2)))
    out = publish_store(ingest(root, tmp_path / "store"), tmp_path, {})
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "\n" + HOSTILE not in text and r"\<script\>alert" in text and r"\[x\]\(http\:" in text and r"\|" in text
    assert not re.search(r"(?<!\\)<script|(?<!\\)\](?<!\\)\(", text)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "unknown" and header["tags"] == ["meca"] and header["configs"][0]["data_dir"] == "data"
    assert verify(out) == []


@pytest.mark.parametrize("changes", [{"license": "mit\ntags: [x]"}, {"name": ""}, {"name": "a" * 101}, {"license": "[x]"}])
def test_a_card_field_that_breaks_out_is_refused(changes: dict) -> None:
    with pytest.raises(UsageError, match=f"expected publish.{next(iter(changes))} to be letters"):
        PublishParams(**{"name": "x", "license": "mit", **changes})


STORES: dict[str, Store] = {}


@examples(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_whatever_is_decided_the_sum_holds(data: st.DataObject) -> None:
    if "store" not in STORES:
        folder = Path(tempfile.mkdtemp())
        STORES["store"] = ingest(make_folder(folder / "in"), folder / "store")
    store = STORES["store"]
    options = [
        ("clean", "keep", None),
        ("poisoned", "remove", None),
        ("poisoned", "relabel", 1),
        ("review", "quarantine", None),
        ("clean", "relabel", 0),
    ]
    changed = data.draw(st.dictionaries(st.integers(0, 11), st.sampled_from(options)))
    with tempfile.TemporaryDirectory() as folder:
        paths = decide(store, Path(folder) / "work", changed)
        decisions = read_parquet(paths["relabel_finetune"] / "decisions.parquet")
        counts = count(build(store, decisions, {}, inconclusive=data.draw(st.booleans())))
    assert counts["kept"] + counts["relabelled"] + counts["removed"] + counts["quarantined"] == counts["input"] == 12
