"""What a receiver checks: every change to a published folder is found and named."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meca.files import sha256_file
from meca.verification import listing, root_of, verify
from tests.making import encode, ingest, make_folder, make_shards, pixels, publish_store
from tests.readers.test_archives import make_tar
from tests.readers.test_readers import make_batches, make_idx


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
    (lambda f: ((f / FIRST).unlink(), (f / FIRST).symlink_to("/etc/passwd")), f"{FIRST} is, or lies behind, a link"),
    (
        lambda f: ((f / "model").rename(f.parent / "model"), (f / "model").symlink_to(f.parent / "model")),
        "model/model.json is, or lies behind, a link",
    ),
    (lambda f: (f / "summary.json").write_text("{}"), "summary.json was changed"),
    (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not JSON"),
    (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json is not JSON"),
    (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json holds no object"),
    (lambda f: (f / "manifest.json").write_text("{}"), "lacks what meca writes"),
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
    (lambda f: change_verdicts(f, "source", {5: "aaa"}), "is not sorted by source"),
    (lambda f: change_verdicts(f, "width", {5: 99}), "The sizes at which images were judged"),
    (lambda f: pq.write_table(pa.table({"x": [1]}), f / "verdicts.parquet"), "verdicts.parquet has the columns x"),
    (lambda f: (f / "verdicts.parquet").write_bytes(b"x"), "verdicts.parquet cannot be read"),
    (lambda f: change_summary(f, verdict="inconclusive"), "The verdict is inconclusive, but data/ is there"),
    (lambda f: change_summary(f, source={}), "lacks what meca writes"),
    (lambda f: change_sizes(f, images_reduced=0), "do not fit those in verdicts.parquet"),
    (lambda f: change_sizes(f, largest={"height": 8, "width": 8}), "(judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, height=[8]), "at which images were judged (judged_at) in summary.json do not fit"),
    (lambda f: change_sizes(f, width=math.inf), "sizes at which images were judged (judged_at) in summary.json do not fit"),
    (lambda f: change_summary(f, judged_at=None), "summary.json or verdicts.parquet lacks what meca writes"),
    (lambda f: (f / "README.md").unlink(), "manifest.json does not list README.md"),
    (lambda f: shutil.copytree(f / "data" / "train", f / "data" / "test"), "data/ holds samples of another split"),
]


@pytest.mark.parametrize(("change", "sentence"), LISTED, ids=[sentence for _, sentence in LISTED])
def test_a_change_is_found_behind_a_manifest_that_fits(change: Callable[[Path], object], sentence: str, copy: Path) -> None:
    change(copy)
    list_again(copy)
    assert any(sentence in found for found in verify(copy)), verify(copy)


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
