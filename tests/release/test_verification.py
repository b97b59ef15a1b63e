"""What a receiver checks: every change to a published folder is found and named."""

import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meca.files import sha256_file
from meca.release import contents
from meca.release.contents import FREE_ROWS, MAX_FOLDERS, MAX_TEXT, MOST, NEEDED
from meca.release.foreign import MAX_DEPTH, Folder
from meca.release.manifest import listing, root_of
from meca.release.verdicts import SCHEMA
from meca.release.verification import examine, verify
from tests.data.readers.test_archives import make_tar
from tests.data.readers.test_pages import counted
from tests.data.readers.test_readers import make_batches, make_idx
from tests.making import control_record, encode, ingest, make_folder, make_shards, pixels, publish_store


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    store = ingest(make_folder(folder / "in"), folder / "store")
    return publish_store(store, folder, {0: ("poisoned", "remove", None), 1: ("poisoned", "relabel", 2)})


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def make_tar_of_classes(root: Path) -> Path:
    root.mkdir()
    return make_tar(root / "set.tar", {f"{name}/{i}.png": encode(pixels(10 * at + i), "PNG") for at, name in enumerate("ab") for i in range(3)})


def list_again(folder: Path) -> None:
    """Write a manifest that fits, as an attacker without a signature key would."""
    files = listing(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files, "sanitized_sha256": root_of(files)}))


def list_also(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": {**manifest["files"], name: "0" * 64}}))


def change_verdicts(folder: Path, column: str, values: dict[int, object]) -> None:
    table = pq.read_table(folder / "verdicts.parquet")
    given = table[column].to_pylist()
    changed = pa.array([values.get(at, value) for at, value in enumerate(given)], table.schema.field(column).type)
    pq.write_table(table.set_column(table.column_names.index(column), table.schema.field(column), changed), folder / "verdicts.parquet")


def change_summary(folder: Path, **changes: object) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))


def change_sizes(folder: Path, **changes: object) -> None:
    change_summary(folder, judged_at={**json.loads((folder / "summary.json").read_text())["judged_at"], **changes})


def test_what_was_published_matches(published: Path, copy: Path) -> None:
    assert verify(published) == []
    (copy / "report.html").write_text("the page that `meca clean` adds")
    assert verify(copy) == []


FIRST = "data/train/cat/2.jpeg"
PLAIN: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / FIRST).write_bytes(b"x"), f"{FIRST} was changed"),
    (lambda f: (f / FIRST).unlink(), f"{FIRST} is missing"),
    (lambda f: (f / "data" / "more.txt").write_text("x"), "data/more.txt is not listed"),
    (lambda f: (f / "extra").symlink_to("/etc"), "extra is not listed"),
    (lambda f: (f / "report.html").symlink_to("/etc/passwd"), "report.html is a link"),
    (lambda f: (f / "attestation.json").symlink_to("nowhere"), "attestation.json is a link"),
    (lambda f: os.mkfifo(f / "report.html"), "report.html is a named pipe"),
    (lambda f: (f / "report.html").mkdir(), "report.html is a folder"),
    (lambda f: os.mkfifo(f / "data" / "pipe"), "data/pipe is not listed"),
    (lambda f: ((f / FIRST).unlink(), os.mkfifo(f / FIRST)), f"{FIRST} is a named pipe"),
    (lambda f: ((f / FIRST).unlink(), (f / FIRST).symlink_to("/dev/zero")), f"{FIRST} is a link"),
    (lambda f: ((f / "manifest.json").unlink(), os.mkfifo(f / "manifest.json")), "manifest.json is a named pipe"),
    (lambda f: ((f / "manifest.json").unlink(), (f / "manifest.json").symlink_to("/dev/zero")), "manifest.json is a link"),
    (lambda f: ((f / "summary.json").unlink(), (f / "summary.json").symlink_to("/dev/zero")), "summary.json is a link"),
    (lambda f: (f / "/".join("d" * (MAX_DEPTH + 2))).mkdir(parents=True), f"lies more than {MAX_DEPTH} folders deep"),
    (lambda f: list_also(f, "data/" + "d/" * 1200 + "x"), "which is no name inside the folder"),
    (lambda f: list_also(f, "data/" + "n" * 5000), "which is no name inside the folder"),
    (lambda f: list_also(f, "data/" + "n" * 300), "cannot be opened (File name too long)"),
    (lambda f: list_also(f, "data/\ud800"), "cannot be opened (no name that a file can have)"),
    (lambda f: list_also(f, "data/train/../x"), "which is no name inside the folder"),
    (lambda f: ((f / FIRST).unlink(), (f / FIRST).symlink_to("/etc/passwd")), f"{FIRST} is a link, and links are not followed"),
    (
        lambda f: ((f / "model").rename(f.parent / "model"), (f / "model").symlink_to(f.parent / "model")),
        "model/model.json lies behind the link model, and links are not followed",
    ),
    (lambda f: (f / "summary.json").write_text("{}"), "summary.json was changed"),
    (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not JSON"),
    (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json is not JSON"),
    (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json holds no object"),
    (lambda f: (f / "manifest.json").write_text("{}"), "lacks what meca writes"),
    (lambda f: (f / "manifest.json").write_text('{"files": {"a": 1}, "sanitized_sha256": null}'), "lacks what meca writes"),
    (lambda f: (f / "manifest.json").write_text('{"files": {}, "files": {}}'), "it has a key twice"),
    (lambda f: (f / "manifest.json").write_text('{"files": ' * 40 + "{}" + "}" * 40), "it is nested more than 32 levels deep"),
    (lambda f: (f / "manifest.json").write_text('{"x": [' + "[]," * 300_000 + "[]]}"), "it holds more values than there can be"),
    (lambda f: (f / "manifest.json").write_text('{"x": 1e999}'), "a number that is too large"),
    (lambda f: os.truncate(f / "manifest.json", 2**28 + 1), "manifest.json is larger than 256 MiB"),
    (lambda f: (f / "manifest.json").write_text('{"files": {"../x": ""}, "sanitized_sha256": null}'), "'../x', which is no name inside the folder"),
]


def test_a_root_that_is_not_that_of_the_files_is_found(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "sanitized_sha256": "0" * 64}))
    assert verify(copy) == ["The SHA-256 of the sanitized set in manifest.json is not that of its files."]


@pytest.mark.parametrize(("change", "sentence"), PLAIN, ids=[sentence for _, sentence in PLAIN])
def test_a_change_is_named(change: Callable[[Path], object], sentence: str, copy: Path) -> None:
    change(copy)
    assert any(sentence in found for found in verify(copy)), verify(copy)


LISTED: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / FIRST).write_bytes(encode(pixels(77), "JPEG")), "is published, but not as verdicts.parquet says"),
    (lambda f: (f / FIRST).unlink(), "should be published, but is not"),
    (lambda f: (f / FIRST).rename(f / "data/train/dog/new.jpeg"), "with label 1 is published, but not as"),
    (lambda f: change_verdicts(f, "action", {5: "burn"}), "The accounting does not hold"),
    (lambda f: change_verdicts(f, "action", {5: "remove"}), "summary.json counts"),
    (lambda f: change_verdicts(f, "label", {5: 0}), "The counts per class in summary.json"),
    (lambda f: change_verdicts(f, "new_label", {5: 0}), "has the action keep and the new label 0"),
    (lambda f: change_verdicts(f, "verdict", {5: "review"}), "has the verdict review and the action keep"),
    (lambda f: change_verdicts(f, "split", {5: "test"}), "judges samples of another split"),
    (lambda f: change_verdicts(f, "label", {5: 2**40}), "has the label 0 to 1099511627776, or none, but summary.json names 3 classes"),
    (lambda f: change_verdicts(f, "label", {5: -1}), "has the label -1 to 2"),
    (lambda f: change_verdicts(f, "label", {5: None}), "or none"),
    (lambda f: change_verdicts(f, "new_label", {5: 2**40}), "has the new_label 2 to 1099511627776"),
    (lambda f: change_verdicts(f, "reviewer", {5: "R"}), "is not decided in verdicts.parquet as in decisions.jsonl"),
    (lambda f: change_verdicts(f, "review_note", {5: "x"}), "is not decided in verdicts.parquet as in decisions.jsonl"),
    (lambda f: change_verdicts(f, "source", {5: "x" * (MAX_TEXT + 1)}), f"a text of {MAX_TEXT + 1} bytes in the column source"),
    (lambda f: change_verdicts(f, "mode", {5: "x" * (MAX_TEXT + 1)}), f"a text of {MAX_TEXT + 1} bytes in the column mode"),
    (lambda f: change_verdicts(f, "review_note", {5: "x" * (MAX_TEXT + 1)}), "in the column review_note"),
    (lambda f: change_verdicts(f, "reasons", {5: ["x" * (MAX_TEXT + 1)]}), "in the column reasons"),
    (lambda f: change_verdicts(f, "stage_scores", {5: [("x" * (MAX_TEXT + 1), 1.0)]}), "in the column stage_scores"),
    (lambda f: empty_rows(f, FREE_ROWS + 1), f"promises {FREE_ROWS + 1} rows in"),
    (lambda f: change_verdicts(f, "source", {5: "aaa"}), "is not sorted by source"),
    (lambda f: change_verdicts(f, "width", {5: 99}), "The sizes at which images were judged"),
    (lambda f: pq.write_table(pa.table({"x": [1]}), f / "verdicts.parquet"), "verdicts.parquet has the columns x"),
    (lambda f: (f / "verdicts.parquet").write_bytes(b"x"), "verdicts.parquet is not a readable parquet file"),
    (lambda f: change_summary(f, verdict="inconclusive"), "The verdict is inconclusive, but data/ is there"),
    (lambda f: change_summary(f, verdict="weak"), "says weak, which is not what the control in it says"),
    (lambda f: change_summary(f, verdict="no_evidence", control=control_record(badnet="missed")), "says no_evidence, which is not what the control"),
    (lambda f: change_summary(f, verdict="weak", control=control_record(badnet="found")), "says weak, which is not what the control"),
    (lambda f: change_summary(f, verdict="weak", control={"ran": True}), "summary.json or verdicts.parquet lacks what meca writes"),
    (lambda f: change_summary(f, verdict="weak", control=[1]), "summary.json or verdicts.parquet lacks what meca writes"),
    (lambda f: change_summary(f, source={}), "lacks what meca writes"),
    (lambda f: change_sizes(f, images_reduced=0), "do not fit those in verdicts.parquet"),
    (lambda f: change_sizes(f, largest={"height": 8, "width": 8}), "(judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, height=[8]), "at which images were judged (judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, fit="crop"), "(judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, fit=["squash"]), "(judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, chosen="by hand"), "(judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, reason=[1]), "(judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, more=1), "(judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, width=math.inf), "it holds Infinity, which is no number in JSON"),
    (lambda f: change_summary(f, judged_at=None), "summary.json or verdicts.parquet lacks what meca writes"),
    (lambda f: (f / "README.md").unlink(), "manifest.json does not list README.md"),
    (lambda f: shutil.copytree(f / "data" / "train", f / "data" / "test"), "data/ holds samples of another split"),
]


def empty_rows(folder: Path, rows: int) -> None:
    group = pa.table([pa.nulls(rows, field.type) for field in SCHEMA], schema=SCHEMA)
    pq.write_table(group, folder / "verdicts.parquet", compression="zstd")


@pytest.mark.parametrize(("change", "sentence"), LISTED, ids=[sentence for _, sentence in LISTED])
def test_a_change_is_found_behind_a_manifest_that_fits(change: Callable[[Path], object], sentence: str, copy: Path) -> None:
    change(copy)
    list_again(copy)
    assert any(sentence in found for found in verify(copy)), verify(copy)


def test_a_folder_of_an_older_meca_does_not_say_where_its_size_comes_from(copy: Path) -> None:
    judged = json.loads((copy / "summary.json").read_text())["judged_at"]
    change_summary(copy, judged_at={name: judged[name] for name in ("height", "width", "largest", "images_reduced")})
    list_again(copy)
    assert verify(copy) == []


@pytest.mark.parametrize("make", [make_folder, make_shards, make_batches, make_idx, make_tar_of_classes, "digits"])
def test_samples_that_come_back_where_all_were_removed_are_found(make: Callable[[Path], Path] | str, tmp_path: Path) -> None:
    source = make(tmp_path / "in") if callable(make) else make
    store = ingest(source, tmp_path / "store", train_limit=0 if callable(make) else 20, test_limit=0 if callable(make) else 10)
    everything = publish_store(store, tmp_path / "all", {})
    nothing = publish_store(store, tmp_path / "none", {row: ("poisoned", "remove", None) for row in range(store.info.n_train)})
    assert verify(everything) == verify(nothing) == []
    shutil.rmtree(nothing / "data", ignore_errors=True)
    shutil.copytree(everything / "data", nothing / "data")
    list_again(nothing)
    assert any("is published, but not as verdicts.parquet says" in found for found in verify(nothing)), verify(nothing)


def test_where_all_were_removed_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    nothing = publish_store(store, tmp_path, {row: ("poisoned", "remove", None) for row in range(store.info.n_train)})
    (nothing / "data").mkdir(exist_ok=True)
    (nothing / "data" / "rest.bin").write_bytes(bytes(20_000))
    list_again(nothing)
    assert verify(nothing) != []


def test_a_label_changed_in_a_shard_is_found(tmp_path: Path) -> None:
    out = publish_store(ingest(make_shards(tmp_path / "in"), tmp_path / "store"), tmp_path, {})
    assert verify(out) == []
    shard = out / "data" / "train-00001-of-00002.parquet"
    table = pq.read_table(shard)
    labels = [1, *table["label"].to_pylist()[1:]]
    pq.write_table(table.set_column(1, table.schema.field("label"), pa.array(labels)), shard)
    list_again(out)
    assert any("with label 1 is published, but not as" in found for found in verify(out))


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_pixels_written_as_images_are_checked_too(name: str, tmp_path: Path) -> None:
    out = publish_store(ingest(name, tmp_path / "store", train_limit=20, test_limit=10), tmp_path, {})
    assert verify(out) == []
    (shard,) = (out / "data").iterdir()
    table = pq.read_table(shard)
    images = table["image"].to_pylist()
    images[3]["bytes"] = images[4]["bytes"]
    pq.write_table(table.set_column(0, table.schema.field("image"), pa.array(images, table.schema.field("image").type)), shard)
    list_again(out)
    assert len(verify(out)) == 2


def test_the_root_covers_the_data_and_nothing_else(published: Path) -> None:
    files = listing(published)
    assert root_of(files) == root_of({name: digest for name, digest in files.items() if name.startswith("data/")})
    assert root_of({}) is None and files["README.md"] == sha256_file(published / "README.md")


def test_what_is_named_is_bounded(copy: Path) -> None:
    for at in range(MOST + 10):
        (copy / f"more{at}").touch()
    said = verify(copy)
    assert len(said) == MOST + 1 and said[-1].startswith(f"More than {MOST} things do not match")


def test_the_walk_is_bounded(copy: Path) -> None:
    (copy / "empty").mkdir()
    assert verify(copy) == [], "a folder without a file says nothing"
    for at in range(MAX_FOLDERS):
        (copy / f"more{at}").mkdir()
    assert verify(copy) == [f"There are more than {MAX_FOLDERS} folders in which manifest.json lists nothing."]


def test_nothing_is_parsed_whose_hash_is_another(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    real = contents.parse_object
    monkeypatch.setattr(contents, "parse_object", lambda data, name, *rest: (parsed.append(name), real(data, name, *rest))[1])
    monkeypatch.setattr(contents, "parse_verdicts", lambda data: parsed.append("verdicts.parquet"))
    monkeypatch.setattr(contents, "_published", lambda *_: parsed.append("data"))
    (copy / "README.md").write_text("x")
    assert verify(copy) == [said for said in verify(copy) if said.startswith("README.md was changed")]
    assert set(parsed) == {"manifest.json"}


def test_what_is_parsed_is_what_was_hashed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced between its hash and its parsing is not parsed."""
    hashed = Folder.sha256

    def swap(folder: Folder, name: str) -> str:
        digest = hashed(folder, name)
        if name == "verdicts.parquet":
            change_summary(copy, verdict="no_evidence")
        return digest

    monkeypatch.setattr(Folder, "sha256", swap)
    assert verify(copy) == ["summary.json changes while it is read."]


def test_without_a_folder_there_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("nothing", "file"):
        found = examine(tmp_path / name)
        assert len(found.mismatches) == 1 and found.mismatches[0].endswith(f"{name} is missing."), found
    assert verify(tmp_path) == ["manifest.json is missing."]


def large(rows: int, note: str) -> pa.Table:
    columns: dict[str, Any] = {name: pa.nulls(rows, SCHEMA.field(name).type) for name in SCHEMA.names}
    columns |= {"source": pa.array([f"{at:09}" for at in range(rows)]), "review_note": pa.array([note] * rows)}
    columns |= {"label": pa.array(np.zeros(rows, np.int64)), "sample_id": pa.array([f"{at:064}" for at in range(rows)])}
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


@pytest.mark.parametrize("groups", [1, 3])
def test_one_reason_in_every_row_is_kept_once(groups: int, tmp_path: Path) -> None:
    """What people wrote into each row of a large set comes to far more than the file, and is no bomb."""
    table = large(60_000, "a reason " * 200)
    pq.write_table(table, tmp_path / "x", compression="zstd", row_group_size=60_000 // groups)
    data = (tmp_path / "x").read_bytes()
    assert len(data) * contents.MAX_RATIO < table["review_note"].nbytes
    kept = contents.parse_verdicts(data)
    assert kept.column_names == list(NEEDED) and kept.nbytes < 10 * 2**20
    assert not kept["reasons"].to_numpy().any()  # of which it is kept whether an image lies on its side
    for name in (name for name in NEEDED if name != "reasons"):
        assert kept[name].cast(SCHEMA.field(name).type).combine_chunks().equals(table[name].combine_chunks())


def test_a_table_that_unpacks_to_far_more_takes_no_memory(copy: Path) -> None:
    table = pq.read_table(copy / "verdicts.parquet")
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1500, np.int32)), pa.array(["a" * 2**20]))
    one = pa.array(["a" * (contents.FREE + 1), *[None] * 1499])
    for column, value in itertools.product(("source", "review_note", "format"), (values, one)):
        columns = [value if field.name == column else pa.nulls(1500, field.type) for field in table.schema]
        written = pa.table(columns, names=table.column_names)
        pq.write_table(written, copy / "verdicts.parquet", compression="zstd", store_schema=False)
        list_again(copy)
        with counted() as pool:
            assert len(verify(copy)) == 1
        assert pool.max_memory() < contents.FREE, column


ODD: list[Any] = [None, True, -1, 2**70, 0.5, "", "x", "\ud800", [], {}, [[]], {"a": {}}, "0" * 64, "parquet", "../x", "poisoned", ["a"] * 3]


def changed(tree: Any, rng: random.Random) -> Any:
    """Return a tree of JSON in which one thing is another."""
    if rng.random() < 0.2 or not isinstance(tree, dict | list) or not tree:
        return rng.choice(ODD)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = rng.choice(keys)
    copied = dict(tree) if isinstance(tree, dict) else list(tree)
    what = rng.random()
    if what < 0.15:
        del copied[key]
    elif what < 0.3 and isinstance(copied, dict):
        copied[rng.choice(["x", "../x", "data/x", "summary.json", *map(str, keys)])] = rng.choice(ODD)
    else:
        copied[key] = changed(copied[key], rng)
    return copied


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["manifest.json", "summary.json"]), times=st.integers(1, 3), rng=st.randoms(use_true_random=False))
def test_any_tree_ends_in_sentences(name: str, times: int, rng: random.Random, copy: Path, published: Path) -> None:
    tree = json.loads((published / name).read_text())
    for _ in range(times):
        tree = changed(tree, rng)
    shutil.copyfile(published / "manifest.json", copy / "manifest.json")
    shutil.copyfile(published / "summary.json", copy / "summary.json")
    (copy / name).write_text(json.dumps(tree))
    if name == "summary.json":
        list_again(copy)
    said = verify(copy)
    assert all(isinstance(sentence, str) and sentence for sentence in said)
    before = json.loads((published / name).read_text())
    compared = {"counts", "classes", "decisions"} if name == "summary.json" else {"files", "sanitized_sha256", "decided_by"}
    assert said or all(tree[key] == before[key] for key in compared), "what is compared differs, and nothing is said"
