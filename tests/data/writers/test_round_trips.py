"""Every format comes back as it came: kept samples byte for byte, relabelled ones with another label alone, the rest gone."""

import hashlib
import json
import pickle  # reads what our own writer wrote
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.data.store import Store, open_store, rewrite
from meca.data.writers import write_sanitized
from meca.errors import MecaError
from meca.release.verification import verify
from tests.data.readers.test_archives import make_tar, make_zip, members
from tests.data.readers.test_cifar_versions import COARSE, FINE, make_100, make_binary
from tests.data.readers.test_lists import LABELS, make_list, write_list
from tests.data.readers.test_webdataset import make_web, shard
from tests.data.writers.test_writers import entries
from tests.making import encode, ingest, make_shards, pixels, publish_store


def quoted(file: Path) -> Path:
    """Put quotes around every field of a list, which no writer of ours would do, and return its folder."""
    lines = file.read_text().splitlines()
    file.write_text("".join(",".join(f'"{field}"' for field in line.split(",")) + "\n\n" for line in lines))
    return file.parent


# Sets of one split, so that nothing has to stay away: what is unchanged comes back whole.
Make = Callable[[Path], Path]
SETS: dict[str, Make] = {
    "metadata.csv": lambda root: make_list(root, "metadata.csv", path="file_name", note=["a,b", 'c"d', "e\nf", "", "é", " ", "x"]),
    "metadata.jsonl": lambda root: make_list(root, "metadata.jsonl", path="file_name", note=[1.0, None, {"a": [1]}, "", "é", " ", "x"]),
    "list.csv": lambda root: quoted(make_list(root, "list.csv", labels=[3, 1, 2, 3, 1, 2, 3]) / "list.csv"),
    "list.jsonl": lambda root: make_list(root, "list.jsonl", labels=[3, 1, 2, 3, 1, 2, 3]),
    "metadata.parquet": lambda root: make_list(root, "metadata.parquet", path="file_name", note=list("abcdefg")),
    "list.parquet": lambda root: make_list(root, "list.parquet", labels=[3, 1, 2, 3, 1, 2, 3]),
}
SETS |= {
    "photos.zip": lambda root: make_zip(root / "photos.zip", members("photos/"), zipfile.ZIP_STORED).parent,
    "packed.zip": lambda root: make_zip(root / "packed.zip", members()).parent,
    "photos.tar": lambda root: make_tar(root / "photos.tar", members("./photos/")).parent,
    "photos.tar.gz": lambda root: make_tar(root / "photos.tar.gz", members("photos/train/")).parent,
    "gnu.tar": lambda root: make_tar(root / "gnu.tar", members("x" * 90 + "/"), tarfile.GNU_FORMAT).parent,
    "web-cls": lambda root: make_web(root, txt=b"a caption", json=b'{"by": "me"}'),
    "web-json": lambda root: make_web(root, "json", labels=[7, 5, 6, 7, 5, 6]),
    "cifar10-bin": lambda root: make_binary(root, test=False),
    "cifar100-bin": lambda root: make_binary(root, True, test=False),
    "cifar100-python": lambda root: make_100(root),
    "shards in data": lambda root: make_shards(root / "data").parent,
}
# Compressed or pickled anew: what they hold is the same, their bytes are not. The batches and shards have a test split, which stays away.
NOT_WHOLE = ("metadata.parquet", "list.parquet", "photos.zip", "packed.zip", "photos.tar.gz", "cifar100-python", "shards in data")


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def samples(store: Store) -> list[tuple[str, str, str]]:
    """Return source, id and class name of every readable training sample."""
    return [(line["source"], line["sample_id"], line["class_name"]) for line in store.readable.to_pylist() if line["split"] == "train"]


@pytest.fixture(scope="module", params=list(SETS))
def given_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Store]:
    folder = tmp_path_factory.mktemp("set")
    return request.param, SETS[request.param](folder / "in"), ingest(folder / "in", folder / "store", size=32)


def test_what_is_not_changed_comes_back_whole(given_set: tuple[str, Path, Store], tmp_path: Path) -> None:
    name, root, store = given_set
    write_sanitized(store, entries(store), tmp_path / "out")
    if name not in NOT_WHOLE:
        assert files(root) == files(tmp_path / "out")
    assert samples(ingest(tmp_path / "out", tmp_path / "again", size=32)) == samples(store)


def test_a_second_round_changes_nothing_more(given_set: tuple[str, Path, Store], tmp_path: Path) -> None:
    _, _, store = given_set
    write_sanitized(store, entries(store, drop={3}, relabel={0: 1, 4: 2}), tmp_path / "a")
    again = ingest(tmp_path / "a", tmp_path / "store", size=32)
    write_sanitized(again, entries(again), tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_relabelled_samples_differ_in_their_label_alone(given_set: tuple[str, Path, Store], tmp_path: Path) -> None:
    _, _, store = given_set
    write_sanitized(store, entries(store, drop={3}, relabel={0: 1, 4: 2}), tmp_path / "out")
    again = ingest(tmp_path / "out", tmp_path / "again", size=32)
    names = store.info.class_names
    wanted = [(sample_id, names[{0: 1, 4: 2}.get(row, store.labels[row])]) for row, (_, sample_id, _) in enumerate(samples(store)) if row != 3]
    assert sorted((sample_id, label) for _, sample_id, label in samples(again)) == sorted(wanted)
    assert again.info.source["format"] == store.info.source["format"]


def test_what_is_published_verifies_and_counts(given_set: tuple[str, Path, Store], tmp_path: Path) -> None:
    _, _, store = given_set
    changed = {3: ("poisoned", "remove", None), 0: ("poisoned", "relabel", 1), 5: ("review", "quarantine", None)}
    out = publish_store(store, tmp_path, changed)
    assert verify(out) == []
    counts = json.loads((out / "summary.json").read_text())["counts"]
    n = store.info.n_train
    assert counts == {"input": n, "kept": n - 3, "relabelled": 1, "removed": 1, "quarantined": 1}


def test_a_class_that_loses_all_its_samples_still_verifies(given_set: tuple[str, Path, Store], tmp_path: Path) -> None:
    _, _, store = given_set
    gone = {row: ("poisoned", "remove", None) for row in range(store.info.n_train) if store.labels[row] == 1}
    assert verify(publish_store(store, tmp_path, gone)) == []


def test_a_planted_sample_comes_back_with_its_new_pixels_and_label(given_set: tuple[str, Path, Store], tmp_path: Path) -> None:
    _, _, store = given_set
    rewrite(store, tmp_path / "poisoned", {0: (pixels(77, 32, 32), 2)})
    poisoned = open_store(tmp_path / "poisoned")
    write_sanitized(poisoned, entries(poisoned), tmp_path / "out")
    again = ingest(tmp_path / "out", tmp_path / "again", size=32)
    assert sorted((i, label) for _, i, label in samples(again)) == sorted((i, label) for _, i, label in samples(poisoned))


# --- lists -----------------------------------------------------------------------------------------------------------


def test_a_changed_row_differs_in_one_field(tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "list.csv", note=["a,b", 'c"d', "e\nf", "", "é", " ", "x"])
    (root / "list.csv").write_bytes(b"\xef\xbb\xbf" + (root / "list.csv").read_bytes().removesuffix(b"\r\n"))
    store = ingest(root, tmp_path / "store")
    write_sanitized(store, entries(store, drop={6, 3}, relabel={2: 0}), tmp_path / "out")
    old = (root / "list.csv").read_bytes().decode().split("images/")
    new = (tmp_path / "out" / "list.csv").read_bytes().decode().split("images/")
    assert new == [*old[:3], old[3].replace("émeu", "cat"), *old[5:7]]


def test_a_changed_line_differs_in_one_value(tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "list.jsonl")
    lines = [f'{{"x": 1.50 , "label":{label},"path" :"images/{i}.png"}}' for i, label in enumerate([7, 5, 7, 5])]
    (root / "list.jsonl").write_text("\n".join(lines))
    store = ingest(root, tmp_path / "store")
    write_sanitized(store, entries(store, drop={3}, relabel={1: 1}), tmp_path / "out")
    assert (tmp_path / "out" / "list.jsonl").read_text() == "\n".join([lines[0], lines[1].replace(":5", ":7"), lines[2]]) + "\n"


def test_a_parquet_list_keeps_columns_types_and_metadata(tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "metadata.parquet", path="file_name", note=list("abcdefg"))
    table = pq.read_table(root / "metadata.parquet").replace_schema_metadata({"further": "kept"})
    table = table.set_column(1, "label", table["label"].dictionary_encode())
    pq.write_table(table, root / "metadata.parquet")
    store = ingest(root, tmp_path / "store")
    write_sanitized(store, entries(store, drop={1}, relabel={0: 2}), tmp_path / "out")
    new = pq.read_table(tmp_path / "out" / "metadata.parquet")
    assert new.schema.equals(pq.read_table(root / "metadata.parquet").schema, check_metadata=True)
    assert new["label"].to_pylist() == ["émeu", *LABELS[2:]] and new["note"].to_pylist() == list("acdefg")


def test_a_list_that_names_something_outside_is_not_written(tmp_path: Path) -> None:
    store = ingest(make_list(tmp_path / "in", "list.csv"), tmp_path / "store")
    store.info.source["options"]["list"]["name"] = "../evil.csv"
    with pytest.raises(MecaError, match="would be written outside"):
        write_sanitized(store, entries(store), tmp_path / "out")
    assert not (tmp_path / "evil.csv").exists()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sets(st.integers(0, 6), max_size=4), st.dictionaries(st.integers(0, 6), st.integers(0, 2), max_size=4), st.sampled_from(sorted(SETS)))
def test_whatever_is_decided_comes_back(tmp_path_factory: pytest.TempPathFactory, drop: set[int], relabel: dict[int, int], name: str) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    store = ingest(SETS[name](folder / "in"), folder / "store", size=32)
    labels = [relabel.get(row, store.labels[row]) for row in range(store.info.n_train)]
    kept = [row for row in range(store.info.n_train) if row not in drop]
    if {labels[row] for row in kept} != set(range(len(store.info.class_names))):
        return  # a class is gone: `clean` says so, and the set is not read again
    write_sanitized(store, entries(store, drop, relabel), folder / "out")
    again = ingest(folder / "out", folder / "again", size=32)
    wanted = sorted((store.ids[row], store.info.class_names[labels[row]]) for row in kept)
    assert sorted((sample_id, label) for _, sample_id, label in samples(again)) == wanted
    digests = {hashlib.sha256(data).hexdigest() for data in files(folder / "out").values()}
    if name.startswith(("list", "metadata")):
        assert {sample_id for sample_id, _ in wanted} <= digests


# --- archives, shards, CIFAR -----------------------------------------------------------------------------------------


def test_a_relabelled_member_of_an_archive_moves_and_the_others_keep_their_headers(tmp_path: Path) -> None:
    for root in (make_tar(tmp_path / "t" / "x.tar", members("photos/")).parent, make_zip(tmp_path / "z" / "x.zip", members("photos/")).parent):
        store = ingest(root, root / "store")
        write_sanitized(store, entries(store, drop={1}, relabel={0: 1, 5: 2}), root / "out")
        if root.name == "t":
            with tarfile.open(root / "x.tar") as a, tarfile.open(root / "out" / "x.tar") as b:
                old, new = ({m.name: (m.mtime, m.mode, m.uid, archive.extractfile(m).read()) for m in archive} for archive in (a, b))
        else:
            with zipfile.ZipFile(root / "x.zip") as a, zipfile.ZipFile(root / "out" / "x.zip") as b:
                old, new = (
                    {i.filename: (i.date_time, i.external_attr, i.compress_type, archive.read(i)) for i in archive.infolist()} for archive in (a, b)
                )
        moved = {"photos/cat/0.png": f"photos/dog/0~{store.ids[0][:12]}.png", "photos/dog/2.png": f"photos/émeu/2~{store.ids[5][:12]}.png"}
        assert new == {moved.get(name, name): content for name, content in old.items() if name != "photos/cat/1.png"}
        assert list(new) == [moved.get(name, name) for name in old if name != "photos/cat/1.png"], "and their order"


def test_a_relabelled_sample_of_a_shard_differs_in_its_label_members(tmp_path: Path) -> None:
    for kind in ("cls", "json"):
        root = make_web(tmp_path / kind, kind, txt=b"a caption")
        store = ingest(root, tmp_path / f"{kind}-store")
        write_sanitized(store, entries(store, drop={1}, relabel={0: 1}), tmp_path / f"{kind}-out")
        with tarfile.open(root / "train-000.tar") as a, tarfile.open(tmp_path / f"{kind}-out" / "train-000.tar") as b:
            old, new = ([(m.name, archive.extractfile(m).read()) for m in archive] for archive in (a, b))
        label = {"cls": b"1\n", "json": b'{"x": 1.5, "label": 1}'}[kind]
        assert new == [(name, label if name == f"0000.{kind}" else data) for name, data in old if not name.startswith("0001")]
        assert (root / "train-001.tar").read_bytes() == (tmp_path / f"{kind}-out" / "train-001.tar").read_bytes()


def test_the_member_that_says_the_label_is_the_one_that_changes(tmp_path: Path) -> None:
    content = {
        f"{i}.{e}": d
        for i in range(4)
        for e, d in (("png", encode(pixels(i))), ("cls", b"%d" % (i % 2)), ("json", b'{"label": "%c"}' % (97 + i // 2)))
    }
    for column, wanted in (("cls", (b"1", b'{"label": "a"}')), ("label", (b"0", b'{"label": "b"}'))):
        store = ingest(make_tar(tmp_path / column / "x.tar", content), tmp_path / f"{column}-store", label_column=column)
        out = publish_store(store, tmp_path / column, {0: ("poisoned", "relabel", 1)})
        assert verify(out) == []
        with tarfile.open(out / "data" / "x.tar") as archive:
            assert tuple(archive.extractfile(f"0.{kind}").read() for kind in ("cls", "json")) == wanted


def test_a_relabelled_record_gets_the_superclass_of_its_new_class(tmp_path: Path) -> None:
    store = ingest(make_binary(tmp_path / "in", True, test=False), tmp_path / "store", size=32)
    write_sanitized(store, entries(store, drop={1}, relabel={0: 3}), tmp_path / "out")
    old, new = ((p / "cifar-100-binary" / "train.bin").read_bytes() for p in (tmp_path / "in", tmp_path / "out"))
    assert new == bytes([1, 3]) + old[2:3074] + old[2 * 3074 :]
    store = ingest(make_100(tmp_path / "python"), tmp_path / "other", size=32)
    write_sanitized(store, entries(store, drop={1}, relabel={0: 3}), tmp_path / "back")
    for encoding in ("bytes", "latin1"):
        with open(tmp_path / "back" / "cifar-100-python" / "train", "rb") as file:
            content = pickle.load(file, encoding=encoding)  # as the official reader does; our writer wrote it above
        found = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        assert found["fine_labels"] == [3, *FINE[2:]] and found["coarse_labels"] == [1, *COARSE[2:]]


def test_an_unreadable_sample_is_quarantined_in_every_container(tmp_path: Path) -> None:
    broken = encode(pixels(0))[:-30]
    sets = {
        "list": write_list(make_list(tmp_path / "l") / "more.csv", {"path": ["x.png"], "label": ["cat"]}),
        "zip": make_zip(tmp_path / "z" / "x.zip", members() | {"cat/broken.png": broken}).parent,
        "tar": make_tar(tmp_path / "t" / "x.tar", members() | {"cat/broken.png": broken}).parent,
        "web": make_tar(tmp_path / "w" / "x.tar", shard() | {"broken.png": broken, "broken.cls": b"1"}).parent,
    }
    (sets["list"] / "more.csv").unlink()
    (sets["list"] / "images" / "3.png").write_bytes(broken)
    for name, root in sets.items():
        store = ingest(root, tmp_path / name / "store")
        assert [line["reason"] for line in store.samples.to_pylist() if line["row"] < 0] == ["truncated"]
        out = publish_store(store, tmp_path / name, {0: ("poisoned", "remove", None)})
        counts = json.loads((out / "summary.json").read_text())["counts"]
        n = store.info.n_train
        assert verify(out) == [] and counts == {"input": n + 1, "kept": n - 1, "relabelled": 0, "removed": 1, "quarantined": 1}
        assert all(broken not in data for data in files(out / "data").values())
