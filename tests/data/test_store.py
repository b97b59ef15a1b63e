"""The store: written once, verified when opened; rewritten only by a copy."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.data.decoder.decode import decode
from meca.data.store import Changes, open_store, pixel_id, png_bytes, read_parquet, rewrite, write_blocks, write_store
from meca.errors import InputRefused, MecaError
from tests.making import ingest, make_folder, make_shards, pixels


def lines(n: int, **changes: object) -> list[dict[str, object]]:
    line = {"split": "train", "label": 0, "class_name": "a", "bytes": 0, "offset": -1, "notes": [], **changes}
    return [{"sample_id": str(i), "source": f"s{i}", "row": i, **line} for i in range(n)]


IMAGES = np.zeros((3, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "samples", "sentence"),
    [
        (IMAGES.astype(np.float32), lines(3), r"Expected uint8 images \[n h w c\]"),
        (IMAGES, lines(2), r"Expected the rows 0\.\.2 once each"),
        (IMAGES, lines(3, label=2), r"Expected labels in 0\.\.1, got 2"),
        (IMAGES, lines(3, label=-1), r"Expected labels in 0\.\.1, got -1"),
        (IMAGES, lines(3, split="test"), "Expected at least one readable training image"),
        (IMAGES, [{**line, "split": "test" if line["row"] == 0 else "train"} for line in lines(3)], "Expected the rows of split 'train' before"),
        (IMAGES, lines(3, source="one"), "source name of its own"),
    ],
)
def test_a_store_that_contradicts_itself_is_refused(images: np.ndarray, samples: list, sentence: str, tmp_path: Path) -> None:
    if sentence.startswith("source name"):
        samples = [{**line, "source": "one"} for line in samples]
    with pytest.raises(InputRefused, match=sentence):
        write_store(tmp_path / "store", images, samples, ["a", "b"], {})


def test_further_columns_must_fit(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="Expected 3 lines of further columns, got 2"):
        write_store(tmp_path / "store", IMAGES, lines(3), ["a"], {}, columns=pa.table({"x": [1, 2]}))


@pytest.mark.parametrize("name", ["images.npy", "payload.bin", "samples.parquet", "columns.parquet"])
def test_a_changed_byte_is_named(name: str, tmp_path: Path) -> None:
    ingest(make_shards(tmp_path / "in"), tmp_path / "store")
    file = tmp_path / "store" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(MecaError, match=f"{name} was changed after it was written"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize(
    "change",
    [{"n_train": 5, "n_test": 10}, {"n": 14}, {"quarantined": 1}, {"height": 9}, {"root": "0" * 64}, {"class_names": ["dog", "cat", "émeu"]}],
)
def test_a_description_that_is_not_that_of_the_files_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    ingest(make_shards(tmp_path / "in"), tmp_path / "store")
    file = tmp_path / "store" / "store.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["n"], record["n_train"], record["n_test"]) == (15, 12, 3) and not change.items() <= record.items()
    file.write_text(json.dumps({**record, **change}), encoding="utf-8")
    with pytest.raises(MecaError, match=r"store\.json was changed after it was written: it does not describe the files beside it"):
        open_store(tmp_path / "store")


def test_pixels_labels_and_ids_follow_the_rows_and_not_the_lines(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    given = [{**line, "label": i % 2} for i, line in enumerate(lines(5))]
    broken = {**given[0], "sample_id": "x", "source": "broken", "row": -1, "label": -1, "reason": "empty"}
    write_store(tmp_path / "store", images, [given[3], broken, given[0], given[4], given[1], given[2]], ["a", "b"], {})
    store = open_store(tmp_path / "store")
    assert store.labels.tolist() == [0, 1, 0, 1, 0] and store.ids == list("01234")
    assert store.readable["source"].to_pylist() == [f"s{i}" for i in range(5)]
    for rows in (slice(0, 5), slice(1, 4), slice(5, 5)):
        copy = store.pixels(rows)
        np.testing.assert_array_equal(copy, images[rows])
        copy[:] = 0  # is nobody else's
    np.testing.assert_array_equal(store.images, images)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MecaError, match=r"store\.json, which does not exist"):
        open_store(tmp_path)
    with pytest.raises(MecaError, match=r"no\.parquet cannot be read"):
        read_parquet(tmp_path / "no.parquet")


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    store = ingest("shapes", tmp_path / "year=2026" / "store")
    assert "year" not in store.samples.column_names


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 999))
def test_png_gives_the_pixels_back(height: int, width: int, channels: int, seed: int) -> None:
    image = pixels(seed, height, width, channels)
    assert np.array_equal(decode(png_bytes(image)).pixels, np.repeat(image, 3 // channels, axis=2))
    assert png_bytes(image) == png_bytes(image.copy())


def test_the_id_of_pixels_knows_their_shape() -> None:
    image = pixels(0, 4, 6)
    assert len({pixel_id(image), pixel_id(image.reshape(6, 4, 3)), pixel_id(image + 1)}) == 3


@pytest.mark.parametrize("make", [make_folder, make_shards])
def test_rewrite_of_nothing_is_the_same_store(make: Callable[[Path], Path], tmp_path: Path) -> None:
    store = ingest(make(tmp_path / "in"), tmp_path / "store")
    assert rewrite(store, tmp_path / "copy", {}) == store.info


def test_rewrite_changes_what_it_is_told_and_nothing_else(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    image = pixels(999)
    rewrite(store, tmp_path / "copy", {2: (image, 1), 5: (np.array(store.images[5]), 0), 13: (image, int(store.labels[13]))})
    copy = open_store(tmp_path / "copy")
    assert sorted(p.name for p in copy.path.iterdir()) == sorted(p.name for p in store.path.iterdir())
    assert np.array_equal(copy.images[2], image) and np.array_equal(copy.images[13], image)
    old, new = store.readable.to_pylist(), copy.readable.to_pylist()
    for before, after in zip(old, new, strict=True):
        data = copy.payload(after["offset"], after["bytes"])
        assert hashlib.sha256(data).hexdigest() == after["sample_id"]
        assert before["source"] == after["source"] and before["split"] == after["split"]
        if after["row"] in (2, 13):
            assert np.array_equal(decode(data).pixels, image) and after["format"] == "PNG"
        else:
            assert data == store.payload(before["offset"], before["bytes"])
            assert np.array_equal(copy.images[after["row"]], store.images[after["row"]])
            same = {key: value for key, value in before.items() if key not in ("offset", "label", "class_name")}
            assert same.items() <= after.items()
    assert (new[2]["label"], new[2]["class_name"]) == (1, "dog")
    assert (new[5]["label"], new[5]["sample_id"]) == (0, old[5]["sample_id"])


def test_rewrite_drops_rows_and_what_stays_moves_up_unchanged(tmp_path: Path) -> None:
    for number, make in enumerate((make_folder, make_shards)):
        store = ingest(make(tmp_path / f"in{number}"), tmp_path / f"store{number}")
        keep = np.ones(store.info.n, dtype=bool)
        keep[[0, 3, 4]] = False
        image = np.full((8, 8, 3), 9, np.uint8)
        rewrite(store, tmp_path / f"copy{number}", {3: (image, 0), 5: (image, 1)}, keep)
        copy = open_store(tmp_path / f"copy{number}")
        rows = np.flatnonzero(keep)
        assert (copy.info.n, copy.info.n_train) == (store.info.n - 3, store.info.n_train - 3)
        changed = int(np.flatnonzero(rows == 5)[0])
        assert (copy.images[changed] == image).all() and copy.labels[changed] == 1
        others = np.delete(np.arange(len(rows)), changed)
        assert np.array_equal(copy.images[others], store.images[rows[others]])
        old, new = store.readable.to_pylist(), copy.readable.to_pylist()
        for at in others:
            assert new[at] == old[rows[at]] | {"row": at, "offset": new[at]["offset"]}
            assert copy.payload(new[at]["offset"], new[at]["bytes"]) == store.payload(old[rows[at]]["offset"], old[rows[at]]["bytes"])
        if store.columns is not None and copy.columns is not None:
            kept = [line["row"] < 0 or keep[line["row"]] for line in store.samples.to_pylist()]
            assert copy.columns.equals(store.columns.filter(pa.array(kept)))


@pytest.mark.parametrize("source", [make_folder, make_shards, "digits"])
def test_a_copy_without_encoded_bytes_has_the_pixels_and_labels_and_no_payload(source: Callable[[Path], Path] | str, tmp_path: Path) -> None:
    made = source(tmp_path / "in") if callable(source) else source
    store = ingest(made, tmp_path / "store", train_limit=0 if callable(source) else 20, test_limit=0 if callable(source) else 10)
    keep = np.arange(store.info.n) < store.info.n_train
    image = np.full(store.images.shape[1:], 9, np.uint8)
    rewrite(store, tmp_path / "copy", {1: (image, 2)}, keep, encoded=False)
    copy = open_store(tmp_path / "copy")
    assert (copy.path / "payload.bin").stat().st_size == 0 and copy.info.n_test == 0
    assert (copy.images[1] == image).all() and copy.labels[1] == 2
    others = np.delete(np.arange(store.info.n_train), 1)
    assert np.array_equal(copy.images[others], store.images[others]) and np.array_equal(copy.labels[others], store.labels[others])
    ids = [copy.ids[row] == store.ids[row] for row in range(store.info.n_train)]
    assert not ids[1] and all(ids[:1] + ids[2:])


def test_rewrite_of_arrays_keeps_their_size_as_found(tmp_path: Path) -> None:
    store = ingest("digits", tmp_path / "store", size=16, train_limit=20, test_limit=10)
    rewrite(store, tmp_path / "copy", {0: (np.full((16, 16, 3), 7, np.uint8), 4)})
    copy = open_store(tmp_path / "copy")
    line = copy.readable.slice(0, 1).to_pylist()[0]
    assert np.array_equal(copy.original(line), np.full((8, 8, 1), 7)) and pixel_id(copy.original(line)) == line["sample_id"]
    other = copy.readable.slice(1, 1).to_pylist()[0]
    assert np.array_equal(copy.original(other), store.original(store.readable.slice(1, 1).to_pylist()[0]))


def test_rewrite_names_a_row_that_is_not_there(tmp_path: Path) -> None:
    store = ingest("shapes", tmp_path / "store")
    with pytest.raises(MecaError, match=r"Expected rows in 0\.\.59 to change, got 60"):
        rewrite(store, tmp_path / "copy", {60: (pixels(0), 0)})


@pytest.mark.parametrize("shape", [(7, 4, 5, 3), (0, 4, 5, 3), (7,), (7, 2)])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_array_in_blocks_is_the_file_that_numpy_writes(shape: tuple[int, ...], size: int, tmp_path: Path) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    write_blocks(tmp_path / "blocks.npy", shape, (array[start : start + size] for start in range(0, len(array), size)))
    np.save(tmp_path / "whole.npy", array)
    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_blocks_that_are_not_the_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected blocks that make \[3, 2\], got 4 bytes of uint8"):
        write_blocks(tmp_path / "a.npy", (3, 2), [np.zeros((2, 2), np.uint8)])


def test_changes_that_wait_in_a_file_are_those_of_a_dictionary(tmp_path: Path) -> None:
    rng, plain = np.random.default_rng(0), dict[int, tuple[np.ndarray, int]]()
    with Changes(tmp_path, (2, 3, 3)) as waiting:
        for row in (5, 0, 9, 5):  # the later one counts
            plain[row] = waiting[row] = rng.integers(0, 256, (2, 3, 3), dtype=np.uint8), row % 3
        del plain[0], waiting[0]
        assert not list(tmp_path.iterdir()), "it has no name, so a kill leaves nothing"
        assert list(waiting) == list(plain) and len(waiting) == 2 and 0 not in waiting and 9 in waiting
        moved = waiting.moved(np.arange(10) + 20)
        for row, (pixels, label) in plain.items():
            assert np.array_equal(moved[row + 20][0], pixels) and moved[row + 20][1] == label
        with pytest.raises(ValueError, match="reshape"):
            waiting[1] = np.zeros((1, 3, 3), np.uint8), 0
