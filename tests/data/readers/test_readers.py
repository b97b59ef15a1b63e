"""Every format on small real files; what is wrong with a source ends in one sentence."""

import gzip
import hashlib
import os
import pickle  # the sources that the reader must read without unpickling, and those that it must refuse
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.data import readers
from meca.data.decoder.decode import decode
from meca.data.ingest import chosen
from meca.data.inspection import inspect
from meca.data.readers.cifar import load_batch
from meca.data.readers.detect import detect
from meca.data.store import pixel_id
from meca.errors import InputRefused, UsageError
from tests.making import NAMES, encode, ingest, make_folder, make_shards, pixels, real_data, table

# --- subsets ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=10, max_size=200), st.integers(5, 100), st.integers(0, 99))
def test_a_subset_is_stratified_nested_and_of_the_promised_size(drawn: list[int], limit: int, seed: int) -> None:
    labels = np.array(drawn)
    small, large = chosen(labels, limit, seed, "train"), chosen(labels, limit + 20, seed, "train")
    assert small.sum() == min(limit, len(labels))
    shares = np.bincount(labels) * min(1, limit / len(labels))
    assert (np.bincount(labels[small], minlength=len(shares)) >= np.minimum(1, np.bincount(labels))).all()
    assert np.abs(np.bincount(labels[small], minlength=len(shares)) - shares).max() <= 4
    even = np.tile(np.arange(5), 40)
    assert not (chosen(even, 20, seed, "train") & ~chosen(even, 60, seed, "train")).any()
    assert large.sum() >= small.sum()


def test_what_is_taken_of_a_class_does_not_depend_on_the_others() -> None:
    labels = np.tile(np.arange(4), 25)
    other = np.where(labels == 3, 2, labels)
    first, second = chosen(labels, 40, 0, "train"), chosen(np.where(labels == 3, 4, labels), 40, 0, "train")
    assert np.array_equal(first[labels == 1], second[labels == 1])
    assert np.array_equal(first[labels == 1], chosen(other, 40, 0, "train")[labels == 1])
    assert not np.array_equal(first, chosen(labels, 40, 1, "train"))
    assert not np.array_equal(first[labels == 0], first[labels == 1]), "classes must not be drawn in step"


def test_a_limit_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ingest\.train_limit to be 0 or at least 3"):
        chosen(np.array([0, 1, 2, 0]), 2, 0, "train")


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_folders", [True, False])
def test_a_folder_is_read_in_the_order_of_its_names(split_folders: bool, tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in", split_folders=split_folders), tmp_path / "store")
    assert store.info.class_names == tuple(NAMES)
    assert (store.info.n_train, store.info.n_test) == (12, 12 if split_folders else 0)
    names = store.readable["source"].to_pylist()
    assert names[: store.info.n_train] == sorted(names[: store.info.n_train])
    assert names[0] == ("train/cat/0.jpeg" if split_folders else "cat/0.jpeg")
    for line in store.readable.to_pylist():
        data = (tmp_path / "in" / line["source"]).read_bytes()
        assert store.payload(line["offset"], line["bytes"]) == data and line["sample_id"] == hashlib.sha256(data).hexdigest()
        assert line["notes"] == [f"resized:{line['width']}x{line['height']}"]
        assert store.images[line["row"]].shape == (8, 8, 3)
    size = {"chosen": "given", "fit": "squash", "reason": "ingest.size is 8."}
    options = {"split_folders": split_folders}
    assert store.info.source == {"kind": "imagefolder", "format": "imagefolder", "name": "in", "options": options, "size": size}


def test_size_zero_keeps_the_size_of_the_first_image(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store", size=0)
    assert (store.info.height, store.info.width) == (9, 12)
    first = store.readable.to_pylist()[0]
    assert first["notes"] == [] and np.array_equal(store.images[0], decode(store.payload(first["offset"], first["bytes"])).pixels)


def test_an_unreadable_image_is_quarantined_named_and_counted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in")
    whole = (root / "train" / "cat" / "1.jpeg").read_bytes()
    (root / "train" / "cat" / "1.jpeg").write_bytes(whole[:-60])
    (root / "train" / "dog" / "notes.txt").write_text("hello")
    (root / "train" / "dog" / "link.jpeg").symlink_to("/etc/passwd")
    os.mkfifo(root / "train" / "dog" / "pipe.jpeg")
    (root / "train" / "dog" / os.fsdecode(b"\xff.jpeg")).write_bytes(whole)
    (root / "train" / "dog" / ".DS_Store").write_text("litter")
    store = ingest(root, tmp_path / "store")
    bad = {line["source"]: line for line in store.samples.to_pylist() if line["row"] < 0}
    assert {name: line["reason"] for name, line in bad.items()} == {
        "train/cat/1.jpeg": "truncated",
        "train/dog/notes.txt": "not-an-image",
        "train/dog/link.jpeg": "link",
        "train/dog/pipe.jpeg": "not-a-file",
        "train/dog/\\xff.jpeg": "name-not-utf8",
    }
    assert store.info.quarantined == 5 and store.info.n_train == 11
    line = bad["train/cat/1.jpeg"]
    assert store.payload(line["offset"], line["bytes"]) == whole[:-60], "the bytes of a quarantined sample stay in the store"
    assert b"root:" not in (store.path / "payload.bin").read_bytes()


def test_too_many_unreadable_images_refuse_the_input(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", per_class=12)
    for i in range(10):
        (root / "train" / "cat" / f"{i}.jpeg").write_bytes(b"no image")
    assert ingest(root, tmp_path / "store").info.quarantined == 10
    (root / "train" / "cat" / "10.jpeg").write_bytes(b"no image")
    with pytest.raises(InputRefused, match=r"More than 10 images cannot be read, among them train/cat/0\.jpeg \(not-an-image\)"):
        ingest(root, tmp_path / "second")


def test_a_class_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", per_class=2)
    for i in range(2):
        (root / "train" / "dog" / f"{i}.jpeg").write_bytes(b"no image")
    with pytest.raises(InputRefused, match="The class 'dog' has no readable training image"):
        ingest(root, tmp_path / "store")


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in")
    (root / "train" / "zebra").mkdir()
    with pytest.raises(InputRefused, match="Expected images in the class folder 'train/zebra', found none"):
        ingest(root, tmp_path / "store")


def test_what_a_folder_must_not_hold_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a", split_folders=False)
    (root / "CAT").mkdir()
    (root / "CAT" / "x.png").write_bytes(encode(pixels(0)))
    with pytest.raises(InputRefused, match="'CAT' and 'cat' are one folder on some systems"):
        ingest(root, tmp_path / "store")
    root = make_folder(tmp_path / "b")
    (root / "test" / "yak").mkdir()
    with pytest.raises(InputRefused, match="'yak' is not among them"):
        ingest(root, tmp_path / "store")
    root = make_folder(tmp_path / "c", split_folders=False)
    (root / "linked").symlink_to(root / "cat")
    with pytest.raises(InputRefused, match="The class folder 'linked' is a link"):
        ingest(root, tmp_path / "store")
    root = make_folder(tmp_path / "d", split_folders=False)
    (root / "a\x1b[31m").mkdir()
    with pytest.raises(InputRefused, match="without control characters"):
        ingest(root, tmp_path / "store")
    root = make_folder(tmp_path / "e")
    (root / "train").rename(root / "val")
    with pytest.raises(InputRefused, match="Expected a folder train/ beside test, val"):
        ingest(root, tmp_path / "store")


def test_splits_beside_classes_are_asked_about(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in")
    (root / "zebra").mkdir()
    with pytest.raises(UsageError, match="are they splits or classes"):
        ingest(root, tmp_path / "store")


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", split_folders=False)
    (root / "dog").rename(root / "test")
    assert ingest(root, tmp_path / "store").info.class_names == ("cat", "test", "émeu")


def test_copies_under_two_labels_are_noted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in")
    (root / "train" / "dog" / "copy.jpeg").write_bytes((root / "train" / "cat" / "0.jpeg").read_bytes())
    noted = [line["source"] for line in ingest(root, tmp_path / "store").samples.to_pylist() if "label-conflict" in line["notes"]]
    assert noted == ["train/cat/0.jpeg", "train/dog/copy.jpeg"]


# Two files with one MD5 (Wang et al., 2004): the second has the top bit of some bytes turned.
COLLIDING = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a085125e8f7cdc99fd91dbdf280373c5b"
    "d8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
)
TURNED = bytes(byte ^ 0x80 if at in (19, 45, 59, 83, 109, 123) else byte for at, byte in enumerate(COLLIDING))


def test_two_files_under_one_md5_refuse_the_input(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in")
    for name, data in (("cat/x.png", COLLIDING), ("cat/y.png", COLLIDING), ("dog/z.png", COLLIDING)):
        (root / "train" / name).write_bytes(data)
    assert ingest(root, tmp_path / "copies").info.quarantined == 3
    (root / "train" / "cat" / "y.png").write_bytes(TURNED)
    with pytest.raises(InputRefused, match=r"'train/cat/x\.png' and 'train/cat/y\.png' differ but share one MD5"):
        ingest(root, tmp_path / "store")


# --- parquet ---------------------------------------------------------------------------------------------------------


def test_shards_are_read_row_by_row(tmp_path: Path) -> None:
    store = ingest(make_shards(tmp_path / "in"), tmp_path / "store")
    assert (store.info.n_train, store.info.n_test, store.info.class_names) == (12, 3, tuple(NAMES))
    assert store.readable["source"].to_pylist()[5:7] == ["train-00000-of-00002.parquet#0000005", "train-00001-of-00002.parquet#0000000"]
    assert np.array_equal(store.images[6], pixels(10)) and np.array_equal(store.images[12], pixels(50))
    assert store.columns is not None and store.columns["origin"].to_pylist()[6] == "site 10"
    assert store.columns["image"].to_pylist()[6] == {"path": "10.png"}


def test_a_subset_keeps_its_further_columns(tmp_path: Path) -> None:
    store = ingest(make_shards(tmp_path / "in"), tmp_path / "store", train_limit=6, test_limit=3)
    assert store.info.n_train == 6 and store.columns is not None
    for at, line in enumerate(store.samples.to_pylist()):
        shard, row = line["source"].split("#")
        first = {"train-00000": 0, "train-00001": 10, "test-00000-": 50}[shard[:11]]
        assert store.columns["origin"][at].as_py() == f"site {first + int(row)}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (table([0, 1, 3]), r"Expected labels in 0\.\.2, got 3 in row 2 of train\.parquet"),
        (table([0, -1, 2]), r"Expected labels in 0\.\.2, got -1 in row 1"),
        (table([0, -1, 2], names=None), r"Expected labels in 0\.\.2, got -1 in row 1"),
        (table([0, 1, 200_000], names=None), "Expected at most 100000 classes"),
        (table([0, 1, 2]).drop_columns("label"), "Expected the columns image .* and label in train.parquet, found image"),
        (table([0, 1, 2]).drop_columns("image"), "Expected the columns image .* found label: int64, origin: string"),
        (table([0, 1, 2]).set_column(1, "label", pa.array(["a", "b", "c"])), "column label of train.parquet to hold integers, got string"),
        (table([0, 1, 2]).set_column(1, "label", pa.array([0, None, 2])), "found none in row 1"),
        (table([0, 1, 2]).set_column(0, "image", pa.array(["a", "b", "c"])), r"No training image can be read: a \(missing\); b \(missing\)"),
        (table([0, 1, 1]), "The class 'émeu' has no training sample"),
        (table([0, 1, 2], names=["a", "a", "b"]), "to be different strings"),
        (table([]), "Expected training samples in the source, found none"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(content: pa.Table, sentence: str, tmp_path: Path) -> None:
    pq.write_table(content, tmp_path / "train.parquet")
    with pytest.raises(InputRefused, match=sentence):
        ingest(tmp_path / "train.parquet", tmp_path / "store")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "in")
    shard = root / "train-00001-of-00002.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[:-20])
    with pytest.raises(InputRefused, match=r"train-00001-of-00002\.parquet is not a readable parquet file"):
        ingest(root, tmp_path / "store")


def test_shards_that_differ_are_refused(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "in")
    pq.write_table(table([0, 1, 2]).drop_columns("origin"), root / "train-00001-of-00002.parquet")
    with pytest.raises(InputRefused, match=r"but train-00001-of-00002\.parquet has others"):
        ingest(root, tmp_path / "a")
    pq.write_table(table([0, 1, 2], names=["x", "y", "z"]), root / "train-00001-of-00002.parquet")
    with pytest.raises(InputRefused, match="class names of test-00000-of-00001"):
        ingest(root, tmp_path / "b")
    (root / "train-00001-of-00002.parquet").rename(root / "more.parquet")
    with pytest.raises(UsageError, match=r"begin with train, validation or test, got 'more\.parquet'"):
        ingest(root, tmp_path / "c")


def test_a_row_without_bytes_is_quarantined(tmp_path: Path) -> None:
    images = [{"bytes": None if i == 1 else encode(pixels(i)), "path": "x"} for i in range(4)]
    pq.write_table(table([0, 1, 2, 1], image=[*images[:3], None]), tmp_path / "x.parquet")
    with pytest.raises(InputRefused, match="The class 'dog' has no readable training image"):
        ingest(tmp_path / "x.parquet", tmp_path / "store")
    pq.write_table(table([0, 1, 2, 1, 1], image=[*images[:3], None, images[0]]), tmp_path / "x.parquet")
    store = ingest(tmp_path / "x.parquet", tmp_path / "store")
    assert [line["reason"] for line in store.samples.to_pylist()] == [None, "no-bytes", None, "no-bytes", None]


# --- CIFAR-10 batches ------------------------------------------------------------------------------------------------


def make_batches(root: Path, labels: Any = (0, 1, 2, 3), changes: dict[bytes, Any] | None = None) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).integers(0, 256, (len(labels), 3072), np.uint8)
    content = {b"batch_label": b"one", b"labels": list(labels), b"data": data, b"filenames": [b"%d.png" % i for i in range(len(labels))]}
    content |= changes or {}
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"a", b"b", b"c", b"d"]}, protocol=2))
    return root


def test_batches_are_read(tmp_path: Path) -> None:
    store = ingest(make_batches(tmp_path / "in"), tmp_path / "store", size=32)
    data = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    assert np.array_equal(store.images, data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert store.info.class_names == ("a", "b", "c", "d")
    assert store.ids[0] == pixel_id(store.images[0]) and (store.path / "payload.bin").stat().st_size == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({b"labels": [0, 1, 2, 4]}, r"Expected labels in 0\.\.3, got 4 in row 3 of data_batch_1"),
        ({b"labels": [0, 1]}, "to be a list of 4 integers"),
        ({b"labels": [0, 1, 2, True]}, "to be a list of 4 integers"),
        ({b"data": np.zeros((4, 3071), np.uint8)}, r"to have the shape \[n 3072\]"),
        ({b"data": np.zeros((4, 3072), np.float32)}, "Expected `data` of data_batch_1 to be uint8, got 'f4'"),
        ({b"data": b"text"}, "Expected an array as `data` of data_batch_1, got bytes"),
    ],
)
def test_a_batch_that_cannot_be_used_is_refused(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=sentence):
        ingest(make_batches(tmp_path / "in", changes=changes), tmp_path / "store")


class Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.parts = call, arguments

    def __reduce__(self) -> Any:
        return self.parts


# None of these is called: the reader has to refuse the pickles that name them.
@pytest.mark.parametrize("call", [os.system, eval, getattr, np.load, pickle.loads, __import__, subprocess.Popen])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(call: Any, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    data = pickle.dumps({b"data": Evil(call, f"touch {mark}"), b"labels": []}, protocol)
    with pytest.raises(InputRefused, match=r"data_batch_1 is refused: its pickle asks for .*which could run code"):
        load_batch(data, "data_batch_1")
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02N",  # no end
        b"\x80\x02cnumpy\nndarray\n}U\x05shape(K\x01tsb.",  # writes onto what it is given
        b"\x80\x02cnumpy\ndtype\nU\x01OK\x00K\x01\x87R.",  # an object array's type: a stand-in, not a dictionary
        b"\x80\x02r\xff\xff\xff\x7fN.",  # a huge memo
        b"\x80\x02]" + b"]" * 100_000 + b"a" * 100_000 + b".",
        b"\x80\x02\x82\x01.",  # extension registry
        b"Pid\n.",  # persistent id
    ],
)
def test_pickles_that_are_no_batch_are_refused(data: bytes) -> None:
    with pytest.raises(InputRefused, match=r"^(Expected x to hold a dictionary|x is not a readable CIFAR-10 batch|x is refused)"):
        load_batch(data, "x")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=6))
def test_a_damaged_pickle_ends_in_a_sentence(at: int, noise: bytes) -> None:
    data = bytearray(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}, 2)[:400])
    at %= len(data)
    data[at : at + len(noise)] = noise
    try:
        load_batch(bytes(data), "x")
    except InputRefused as problem:
        assert str(problem)


def test_missing_keys_and_missing_names_are_said(tmp_path: Path) -> None:
    root = make_batches(tmp_path / "in")
    folder = root / "cifar-10-batches-py"
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"labels": []}, 2))
    with pytest.raises(InputRefused, match="Expected `data` and `labels` in data_batch_1, found labels"):
        ingest(root, tmp_path / "store")
    (folder / "batches.meta").unlink()
    with pytest.raises(InputRefused, match=r"Expected batches\.meta with the class names"):
        ingest(root, tmp_path / "store")


@pytest.mark.data
@pytest.mark.slow
def test_the_official_batches_hold_the_same_pixels_as_the_parquet_files(tmp_path: Path) -> None:
    script = real_data("cifar10_official.py")
    subprocess.run([sys.executable, script, tmp_path / "official"], check=True, stdout=subprocess.DEVNULL)
    batches = ingest(tmp_path / "official", tmp_path / "a", size=32, train_limit=200, test_limit=100)
    shards = ingest(real_data("cifar10"), tmp_path / "b", size=32, train_limit=200, test_limit=100)
    assert np.array_equal(batches.images, shards.images) and np.array_equal(batches.labels, shards.labels)
    assert batches.info.class_names == shards.info.class_names


# --- idx -------------------------------------------------------------------------------------------------------------


def make_idx(root: Path, n: int = 6, zipped: bool = True, **changes: bytes) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        images = struct.pack(">4B3I", 0, 0, 8, 3, n, 5, 4) + pixels(1, n, 20, 1).tobytes()
        labels = struct.pack(">4BI", 0, 0, 8, 1, n) + bytes(i % 3 for i in range(n))
        for name, content in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = changes.get(name.split("-ubyte")[0].replace("-", "_"), content)
            (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return root


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read(zipped: bool, tmp_path: Path) -> None:
    store = ingest(make_idx(tmp_path / "in", zipped=zipped), tmp_path / "store", size=0)
    assert (store.info.n_train, store.info.n_test, store.info.class_names) == (6, 6, ("0", "1", "2"))
    assert np.array_equal(store.images[0, :, :, 2], pixels(1, 6, 20, 1)[0].reshape(5, 4))
    assert np.array_equal(store.original(store.readable.to_pylist()[0])[:, :, 0], store.images[0, :, :, 0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_images_idx3": b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**15, 2**15)}, r"promises the shape \[2147483648, 32768, 32768\]"),
        ({"train_images_idx3": b"\0\0\x0d\x03" + struct.pack(">3I", 6, 5, 4)}, "Expected train-images-idx3-ubyte.gz to begin as an idx file"),
        ({"train_images_idx3": b""}, "got nothing"),
        ({"train_images_idx3": struct.pack(">4B3I", 0, 0, 8, 3, 6, 5, 4) + bytes(119)}, "Expected 120 bytes after the header .* found 119"),
        ({"train_images_idx3": struct.pack(">4B3I", 0, 0, 8, 3, 6, 5, 4) + bytes(10**6)}, "Expected 120 bytes after the header .* found more"),
        ({"train_labels_idx1": struct.pack(">4BI", 0, 0, 8, 1, 5) + bytes(5)}, "Expected as many labels as images, got 5"),
        ({"t10k_labels_idx1": struct.pack(">4BI", 0, 0, 8, 1, 6) + bytes([9] * 6)}, r"Expected labels in 0\.\.2, got 9 in row 0 of t10k"),
    ],
)
def test_an_idx_file_that_lies_is_refused(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=sentence):
        ingest(make_idx(tmp_path / "in", **changes), tmp_path / "store")


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    root = make_idx(tmp_path / "in")
    data = (root / "train-images-idx3-ubyte.gz").read_bytes()
    (root / "train-images-idx3-ubyte.gz").write_bytes(data[:-12])
    with pytest.raises(InputRefused, match=r"train-images-idx3-ubyte\.gz is damaged"):
        ingest(root, tmp_path / "store")
    (root / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputRefused, match="found only one of them"):
        ingest(root, tmp_path / "store")


@pytest.mark.data
def test_fashion_mnist_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECA_DATA", str(real_data("fashion-mnist").parent))
    store = ingest("fashion-mnist", tmp_path / "store", size=32, train_limit=500, test_limit=100)
    assert store.info.class_names[9] == "Ankle boot" and np.bincount(store.labels[store.train]).tolist() == [50] * 10
    assert store.info.source["name"] == "fashion-mnist"


# --- arrays, names, detection ----------------------------------------------------------------------------------------


def test_digits_are_split_by_a_fixed_rule(tmp_path: Path) -> None:
    store = ingest("digits", tmp_path / "store", size=16)
    assert (store.info.n_train, store.info.n_test) == (1442, 355)
    shares = np.bincount(store.labels[store.test]) / np.bincount(store.labels)
    assert (abs(shares - 0.2) < 0.01).all() and store.images[0].max() > 200


def test_a_download_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def offline(root: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("MECA_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "CIFAR10", offline)
    with pytest.raises(InputRefused, match=r"'cifar10' is not below MECA_DATA and cannot be downloaded \(no route to host\)"):
        ingest("cifar10", tmp_path / "store")


def test_formats_are_told_apart(tmp_path: Path) -> None:
    assert detect(make_folder(tmp_path / "a")) == "imagefolder"
    assert detect(make_shards(tmp_path / "b")) == "parquet"
    assert detect(make_batches(tmp_path / "c")) == "cifar-batches"
    assert detect(make_idx(tmp_path / "d")) == "idx"
    make_folder(tmp_path / "b")
    with pytest.raises(UsageError, match=r"could be imagefolder or parquet; say which with --format"):
        detect(tmp_path / "b")


def test_a_file_of_two_formats_is_asked_about_and_its_suffix_comes_first(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "path": ["a.png"], "label": ["cat"]}), tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match=r"rows\.parquet could be parquet or manifest; say which with --format"):
        detect(tmp_path / "rows.parquet")


def test_what_is_no_source_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"Nothing found at .*missing; expected a folder, a parquet file, a list of files, or one of shapes"):
        ingest(tmp_path / "missing", tmp_path / "store")
    with pytest.raises(InputRefused, match="Nothing found at"):
        ingest(tmp_path / "missing", tmp_path / "store", format="idx")
    with pytest.raises(InputRefused, match="Nothing to read in"):
        ingest(tmp_path, tmp_path / "store")
    for name, advice in (
        ("x.pt", "can run code"),
        ("x.7z", "unpack the archive"),
        ("x.npz", "as a folder or as parquet"),
        ("x", "point to a parquet file"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputRefused, match=f"{name} is not a format that meca reads: .*{advice}"):
            ingest(tmp_path / name, tmp_path / "store")
    with pytest.raises(UsageError, match="'shapes' has its own format"):
        ingest("shapes", tmp_path / "store", format="parquet")


@pytest.mark.parametrize("format", list(readers.FORMATS))
def test_a_format_that_does_not_fit_is_refused(format: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match=r"Expected .* found none"):
        ingest(tmp_path / "empty", tmp_path / "store", format=format)


def test_inspect_shows_what_is_there(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in")
    (root / "train" / "cat" / "0.jpeg").write_bytes(b"no image")
    (root / "train" / "cat" / ".hidden").write_bytes(b"")
    (root / ".env").write_text("X=1")
    found = inspect(root)
    assert (found.format, found.option, found.samples) == ("imagefolder", "--format imagefolder", {"train": 12, "test": 12})
    assert found.classes["train"] == dict.fromkeys(NAMES, 4)
    assert (found.unreadable, found.n_unreadable, found.checked) == (["train/cat/0.jpeg (not-an-image)"], 1, 24)
    assert found.odd == [".env", "train/cat/.hidden"] or set(found.odd) == {".env", "train/cat/.hidden"}
    assert any(".env" in warning for warning in found.warnings)
    with pytest.raises(UsageError, match="Expected --format to be auto"):
        inspect(root, "tiff")
    with pytest.raises(InputRefused, match="Nothing found at"):
        inspect(tmp_path / "missing")


def test_a_look_ends_in_time_whatever_the_images_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "in")
    assert inspect(root).checked == 24 and not inspect(root).warnings
    monkeypatch.setattr("meca.data.inspection.SECONDS", -1.0)
    found = inspect(root)
    assert found.checked == 1 and found.samples == {"train": 12, "test": 12}
    assert found.warnings == ["Only 1 images were looked at: after -1 s no further one is decoded."]


def test_reading_needs_no_torch() -> None:
    code = "import sys, meca.data.inspection, meca.release.verification, meca.stages.ingest, meca.stages.publish; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
