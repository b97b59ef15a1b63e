"""The sanitized set: in the format of the input, kept samples byte for byte, nothing outside of the folder."""

import gzip
import hashlib
import pickle  # reads what our own writer wrote
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.data.readers.files import clean_name
from meca.data.store import Store, open_store, rewrite
from meca.data.writers import Entries, format_of, write_sanitized
from meca.data.writers.imagefolder import place
from meca.errors import MecaError
from tests.data.readers.test_readers import make_batches, make_idx
from tests.making import ingest, make_folder, make_shards, pixels, real_data


def entries(store: Store, drop: set[int] | None = None, relabel: dict[int, int] | None = None) -> Entries:
    """Return the training samples to publish; `drop` and `relabel` go by row."""
    lines: list[dict[str, Any]] = store.samples.to_pylist()
    at = [at for at, line in enumerate(lines) if line["split"] == "train" and line["row"] >= 0 and line["row"] not in (drop or set())]
    labels = [(relabel or {}).get(lines[place]["row"], lines[place]["label"]) for place in at]
    return Entries(store.samples, np.array(at, np.int64), np.array(labels, np.int64))


@pytest.mark.parametrize("split_folders", [True, False])
def test_a_folder_keeps_names_and_bytes_and_moves_what_is_relabelled(split_folders: bool, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", split_folders=split_folders)
    store = ingest(root, tmp_path / "store")
    write_sanitized(store, entries(store, drop={1}, relabel={0: 1, 2: 2}), tmp_path / "out")
    old = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.jpeg") if "test" not in p.parts}
    new = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    top = "train/" if split_folders else ""
    moved = {name: data for name, data in new.items() if name not in old or data != old[name]}
    assert sorted(name.split("~")[0] for name in moved) == [f"{top}dog/0", f"{top}émeu/2"], "a name that is taken gives way"
    assert sorted(moved.values()) == sorted([old[f"{top}cat/0.jpeg"], old[f"{top}cat/2.jpeg"]])
    assert {n: d for n, d in new.items() if n not in moved} == {n: d for n, d in old.items() if n not in (f"{top}cat/{i}.jpeg" for i in range(3))}


def test_a_planted_sample_lies_in_the_folder_of_its_given_label(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    rewrite(store, tmp_path / "poisoned", {0: (pixels(1), 2)})
    poisoned = open_store(tmp_path / "poisoned")
    write_sanitized(poisoned, entries(poisoned), tmp_path / "out")
    files = [p for p in (tmp_path / "out" / "train" / "émeu").iterdir() if hashlib.sha256(p.read_bytes()).hexdigest() == poisoned.ids[0]]
    assert len(files) == 1 and not (tmp_path / "out" / "train" / "cat" / "0.jpeg").exists()


ALPHABET = st.sampled_from("aAbß.~é\u0301é/\\\x00\n\u202e:-")
PART = st.text(ALPHABET, min_size=0, max_size=6)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.lists(PART, min_size=1, max_size=2), st.sampled_from(["a", "b"])), max_size=12), st.integers(0, 1))
def test_no_name_leaves_the_folder_and_no_two_names_are_one_file(drawn: list, depth: int) -> None:
    samples = [("/".join(["train"] * depth + ["a", *parts]), class_name, f"{i:064x}") for i, (parts, class_name) in enumerate(drawn)]
    placed = place(samples, depth)
    assert len(placed) == len(samples)
    for path, (_, class_name, _) in zip(placed, samples, strict=True):
        assert not path.is_absolute() and ".." not in path.parts and "\x00" not in str(path) and "\\" not in str(path)
        assert path.parts[depth] == class_name
    folded = [unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold()) for path in placed]
    assert len(set(folded)) == len(folded)


def test_names_as_long_as_they_may_be_stay_writable() -> None:
    name = "é" * 125 + ".jpeg"
    first, second = place([(f"a/{name}", "a", "0" * 64), (f"b/{name}", "a", "1" * 64)], 0)
    assert first == PurePosixPath("a") / name and first != second
    assert all(len(part.encode()) <= 255 for part in second.parts) and second.suffix == ".jpeg"


@pytest.mark.parametrize("name", ["plain.png", "with blank.png", "日本.png", "a-b_c(1).jpeg", ".x", "a:b"])
def test_an_ordinary_name_stays(name: str) -> None:
    assert clean_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\x00", "a\x1b[2J", "a\u202egpj.exe", "\ud800", "x" * 300])
def test_a_hostile_name_does_not(name: str) -> None:
    cleaned = clean_name(name)
    assert cleaned not in ("", ".", "..", name) and not set(cleaned) & set("/\\\x00\x1b\u202e") and len(cleaned.encode()) <= 255


def test_shards_keep_columns_metadata_and_bytes(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "in")
    store = ingest(root, tmp_path / "store")
    write_sanitized(store, entries(store, drop={0, 7}, relabel={1: 2}), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    for i in range(2):
        name = f"train-0000{i}-of-00002.parquet"
        old, new = pq.read_table(root / name), pq.read_table(tmp_path / "out" / name)
        assert new.schema.equals(old.schema, check_metadata=True)
        kept = old.filter(pa.array([row not in (0, 7) for row in range(6 * i, 6 * i + 6)])).to_pylist()
        if i == 0:
            kept[0]["label"] = 2
        assert new.to_pylist() == kept


def test_a_shard_that_loses_all_its_rows_stays_readable(tmp_path: Path) -> None:
    store = ingest(make_shards(tmp_path / "in"), tmp_path / "store")
    write_sanitized(store, entries(store, drop=set(range(6))), tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "train-00000-of-00002.parquet").num_rows == 0
    assert ingest(tmp_path / "out", tmp_path / "again").info.n_train == 6


def test_a_shard_name_with_a_folder_is_refused(tmp_path: Path) -> None:
    store = ingest(make_shards(tmp_path / "in"), tmp_path / "store")
    store.info.source["options"]["shards"][1]["name"] = "../evil.parquet"
    with pytest.raises(MecaError, match="Expected a shard named without folders"):
        write_sanitized(store, entries(store), tmp_path / "out")


@pytest.mark.parametrize("size", [16, 32])
def test_arrays_come_back_as_they_were(size: int, tmp_path: Path) -> None:
    for make in (lambda path: make_batches(path, (3, 1, 2, 3, 0, 1)), make_idx):
        folder = tmp_path / str(make is make_idx)
        store = ingest(make(folder / "in"), folder / "store", size=size)
        write_sanitized(store, entries(store, drop={0}, relabel={1: 2}), folder / "out")
        again = ingest(folder / "out", folder / "again", size=size)
        assert again.labels.tolist() == [2, *store.labels[2:6]] and again.ids == store.ids[1:6]


def test_batches_are_read_by_the_readers_of_the_official_ones(tmp_path: Path) -> None:
    store = ingest(make_batches(tmp_path / "in", (0, 1, 2, 3, 1)), tmp_path / "store", size=32)
    write_sanitized(store, entries(store, relabel={1: 3}), tmp_path / "out")
    folder = tmp_path / "out" / "cifar-10-batches-py"
    original = np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)
    for encoding, key in (("bytes", b"%s"), ("latin1", "%s")):
        for name, wanted in (("data", original), ("labels", [0, 3, 2, 3, 1]), ("batch_label", None), ("filenames", None)):
            with open(folder / "data_batch_1", "rb") as file:
                content = pickle.load(file, encoding=encoding)  # as the official reader does; our writer wrote it above
            value = content[key % (name.encode() if encoding == "bytes" else name)]
            assert wanted is None or np.array_equal(value, wanted)
    assert ingest(tmp_path / "out", tmp_path / "again", size=32).ids == store.ids


def test_gzip_holds_no_time(tmp_path: Path) -> None:
    store = ingest(make_idx(tmp_path / "in"), tmp_path / "store")
    write_sanitized(store, entries(store), tmp_path / "out")
    data = (tmp_path / "out" / "train-images-idx3-ubyte.gz").read_bytes()
    assert data[3:8] == bytes(5) and gzip.decompress(data) == gzip.decompress((tmp_path / "in" / "train-images-idx3-ubyte.gz").read_bytes())


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_arrays_in_memory_become_parquet_with_the_same_pixels(name: str, tmp_path: Path) -> None:
    store = ingest(name, tmp_path / "store", size=8, train_limit=20, test_limit=10)
    write_sanitized(store, entries(store), tmp_path / "out")
    again = ingest(tmp_path / "out", tmp_path / "again", size=8)
    assert np.array_equal(again.images, store.images[:20]) and again.labels.tolist() == store.labels[:20].tolist()
    assert again.info.class_names == store.info.class_names


def test_an_unknown_source_has_no_writer() -> None:
    with pytest.raises(MecaError, match="Expected a source in one of the formats imagefolder"):
        format_of("tiff")


@pytest.mark.data
def test_kept_photographs_keep_their_bytes(tmp_path: Path) -> None:
    root = real_data("imagenette-sample")
    store = ingest(root, tmp_path / "store", size=32)
    write_sanitized(store, entries(store), tmp_path / "out")
    files = sorted(p.relative_to(root) for p in (root / "train").rglob("*") if p.is_file())
    assert [p.relative_to(tmp_path / "out") for p in sorted((tmp_path / "out").rglob("*")) if p.is_file()] == files
    assert all((root / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in files)


@pytest.mark.data
def test_kept_rows_of_real_shards_keep_their_bytes(tmp_path: Path) -> None:
    root = real_data("cifar10")
    store = ingest(root, tmp_path / "store", size=32, train_limit=1000, test_limit=10)
    write_sanitized(store, entries(store), tmp_path / "out")
    names = store.samples["source"].to_pylist()[:1000]
    for shard in sorted(root.glob("train-*.parquet")):
        old, new = pq.read_table(shard), pq.read_table(tmp_path / "out" / shard.name)
        rows = [int(name.split("#")[1]) for name in names if name.startswith(shard.name)]
        assert new.equals(old.take(rows), check_metadata=True)
