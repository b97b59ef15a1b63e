"""A merged set is the set that it is made of, but for labels and names; and the same seed makes the same bytes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import merged
from benchmarks.quality.merged import groups, merge
from meca.errors import InputRefused, UsageError
from meca.files import sha256_tree
from tests.making import ingest, table

SIX = ["ant", "bee", "cat", "dog", "eel", "fox"]


def write(folder: Path, names: list[str] = SIX) -> Path:
    folder.mkdir(parents=True)
    for i in range(2):
        pq.write_table(table([0, 1, 2, 3, 4, 5], start=10 * i, names=names), folder / f"train-0000{i}-of-00002.parquet")
    pq.write_table(table([5, 4, 3, 2, 1, 0], start=50, names=names), folder / "test-00000-of-00001.parquet")
    return folder


@given(size=st.integers(1, 6), many=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_every_class_is_in_one_group_and_all_are_of_one_size(size: int, many: int, seed: int) -> None:
    found = groups(size * many, size, seed)
    assert sorted(label for part in found for label in part) == list(range(size * many)) and {len(part) for part in found} == {size}
    assert found == groups(size * many, size, seed) == sorted(sorted(part) for part in found)


def test_another_seed_makes_other_groups_and_a_rest_is_refused() -> None:
    assert len({str(groups(100, 5, seed)) for seed in range(9)}) == 9
    for classes, size in ((10, 3), (10, 0)):
        with pytest.raises(UsageError, match=f"groups of {size} divide, got 10"):
            groups(classes, size, 0)


def test_images_stay_byte_for_byte_and_labels_are_those_of_the_groups(tmp_path: Path) -> None:
    source = write(tmp_path / "set")
    names = merge(source, tmp_path / "out" / "set-merged", 2, seed=3)
    parts = groups(6, 2, 3)
    assert names == ["+".join(SIX[label] for label in part) for part in parts]
    for file in sorted(source.iterdir()):
        before, after = pq.read_table(file), pq.read_table(tmp_path / "out" / "set-merged" / file.name)
        assert before.drop_columns("label").equals(after.drop_columns("label")) and before.schema.names == after.schema.names
        assert all(label in parts[now] for label, now in zip(before["label"].to_pylist(), after["label"].to_pylist(), strict=True))
        assert after.schema.metadata[b"further"] == b"kept"
        assert json.loads(after.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"] == names
    store = ingest(tmp_path / "out" / "set-merged", tmp_path / "store")
    assert store.info.class_names == tuple(names) and (store.info.n_train, store.info.n_test) == (12, 6)


def test_the_same_seed_makes_the_same_bytes_and_what_was_there_is_replaced(tmp_path: Path) -> None:
    source, out = write(tmp_path / "set"), tmp_path / "set-merged"
    found = []
    for seed in (0, 1, 0):
        merge(source, out, 3, seed)
        (out / "more.parquet").write_bytes(b"of before") if seed else None
        found.append(sha256_tree(out))
    assert found[0] == found[2] != found[1] and {path.name for path in tmp_path.iterdir()} == {"set", "set-merged"}


def test_what_is_no_such_set_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match=r"Expected parquet files in .*empty, found none; set MECA_DATA to the folder that holds empty"):
        merge(tmp_path / "empty", out, 2)
    write(tmp_path / "unlike")
    pq.write_table(table([0, 1], names=["a", "b"]), tmp_path / "unlike" / "test-00000-of-00001.parquet")
    with pytest.raises(InputRefused, match=r"Expected the classes of test-00000-of-00001\.parquet in all files of .*unlike, got others in train"):
        merge(tmp_path / "unlike", out, 2)
    for name, made, words in (
        ("nameless", table([0], names=None), "the names of its classes in the schema"),
        ("words", pa.table({"label": ["a"]}), "the names of its classes in the schema"),
        ("beyond", table([0, 9], names=SIX), r"labels in 0\.\.5 in .*, got 0 to 9"),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(made, tmp_path / name / "train.parquet")
        with pytest.raises(InputRefused, match=words):
            merge(tmp_path / name, out, 2)
    assert not out.exists()


def test_the_program_makes_both_sets_of_what_lies_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in merged.SIZES.items():
        write(tmp_path / "data" / name, [f"{name} {label}" for label in range(2 * size)] if size > 2 else SIX)
    monkeypatch.setenv("MECA_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("sys.argv", ["merged", str(tmp_path / "made")])
    merged.main()
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"cifar100-merged", "cifar10-merged"}
    told = capsys.readouterr().out
    assert "cifar100-merged: 2 classes" in told and "cifar10-merged: 3 classes" in told and "cifar100 0+" in told
