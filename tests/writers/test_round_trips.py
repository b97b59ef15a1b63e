"""Every format comes back as it came: kept samples byte for byte, relabelled ones with another label alone, the rest gone."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.errors import MecaError
from meca.store import Store, open_store, rewrite
from meca.verification import verify
from meca.writers import write_sanitized
from tests.making import ingest, pixels, publish_store
from tests.readers.test_lists import LABELS, make_list
from tests.writers.test_writers import entries

# Sets of one split, so that nothing has to stay away: what is unchanged comes back whole.
Make = Callable[[Path], Path]
SETS: dict[str, Make] = {
    "metadata.csv": lambda root: make_list(root, "metadata.csv", path="file_name", note=["a,b", 'c"d', "e\nf", "", "é", " ", "x"]),
    "metadata.jsonl": lambda root: make_list(root, "metadata.jsonl", path="file_name", note=[1.0, None, {"a": [1]}, "", "é", " ", "x"]),
    "list.csv": lambda root: make_list(root, "list.csv", labels=[3, 1, 2, 3, 1, 2, 3]),
    "list.jsonl": lambda root: make_list(root, "list.jsonl", labels=[3, 1, 2, 3, 1, 2, 3]),
    "metadata.parquet": lambda root: make_list(root, "metadata.parquet", path="file_name", note=list("abcdefg")),
    "list.parquet": lambda root: make_list(root, "list.parquet", labels=[3, 1, 2, 3, 1, 2, 3]),
}
NOT_WHOLE = ("metadata.parquet", "list.parquet")  # compressed anew: what they hold is the same, their bytes are not


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
    old, new = files(root), files(tmp_path / "out")
    assert old.keys() == new.keys()
    assert [file for file in old if old[file] != new[file]] == [file for file in old if file in NOT_WHOLE and name in NOT_WHOLE]
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
    if {labels[row] for row in kept} != {0, 1, 2}:
        return  # a class is gone: `clean` says so, and the set is not read again
    write_sanitized(store, entries(store, drop, relabel), folder / "out")
    again = ingest(folder / "out", folder / "again", size=32)
    wanted = sorted((store.ids[row], store.info.class_names[labels[row]]) for row in kept)
    assert sorted((sample_id, label) for _, sample_id, label in samples(again)) == wanted
    digests = {hashlib.sha256(data).hexdigest() for data in files(folder / "out").values()}
    assert name.startswith(("list", "metadata")) <= ({sample_id for sample_id, _ in wanted} <= digests)
