"""Lists of files: what a row says is read, what leaves the folder refuses the list, and what is missing is one sample."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.data.inspection import inspect
from meca.data.readers.detect import detect
from meca.data.readers.files import inside
from meca.data.readers.rows import csv_fields, is_list, json_members, read_rows
from meca.errors import InputRefused, UsageError
from tests.making import encode, ingest, make_folder, pixels

LABELS = ["cat", "dog", "émeu", "cat", "dog", "émeu", "cat"]


def make_list(root: Path, name: str = "manifest.csv", labels: Any = LABELS, folder: str = "images", path: str = "path", **more: Any) -> Path:
    """Write images and a list of them; `more` holds further columns."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    paths = [f"{folder}/{i}.png".removeprefix("./") for i in range(len(labels))]
    for i, image in enumerate(paths):
        (root / image).write_bytes(encode(pixels(i, 9, 12)))
    return write_list(root / name, {path: paths, "label": list(labels), **more})


def write_list(file: Path, columns: dict[str, list[Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if file.suffix == ".parquet":
        pq.write_table(pa.table(columns), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerows([list(columns), *(row.values() for row in rows)])
        file.write_bytes(text.getvalue().encode())
    return file.parent


SUFFIXES = ["csv", "jsonl", "parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_metadata_folder_is_read(suffix: str, tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", f"metadata.{suffix}", path="file_name", folder=".")
    (root / "unlisted.png").write_bytes(encode(pixels(50)))
    store = ingest(root, tmp_path / "store")
    assert (store.info.source["format"], store.info.n_train, store.info.class_names) == ("metadata", 7, ("cat", "dog", "émeu"))
    assert [store.info.class_names[label] for label in store.labels] == LABELS
    for line in store.readable.to_pylist():
        assert store.payload(line["offset"], line["bytes"]) == (root / line["source"]).read_bytes()
    found = inspect(root)
    assert (found.format, found.odd) == ("metadata", ["unlisted.png"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_split_folders_each_have_their_metadata(suffix: str, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        make_list(tmp_path / "in" / split, f"metadata.{suffix}", path="file_name", folder=".")
    store = ingest(tmp_path / "in", tmp_path / "store")
    assert (store.info.source["format"], store.info.n_train, store.info.n_test) == ("metadata", 7, 7)
    assert store.readable["source"].to_pylist()[6:8] == ["train/6.png", "validation/0.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_manifest_is_read_in_its_order(suffix: str, as_file: bool, tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", f"list.{suffix}", labels=[10, 9, 10, 9], note=["a", "b,c", 'd"e', "f\ng"])
    store = ingest(root / f"list.{suffix}" if as_file else root, tmp_path / "store")
    assert (store.info.source["format"], store.info.class_names) == ("manifest", ("9", "10")), "numbers stand in the order of their values"
    assert store.labels.tolist() == [1, 0, 1, 0] and store.readable["source"].to_pylist() == [f"images/{i}.png" for i in range(4)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_column_says_which_rows_are_for_evaluation(suffix: str, tmp_path: Path) -> None:
    splits = ["train", "train", "train", "test", "val", "Test", "train"]
    store = ingest(make_list(tmp_path / "in", f"list.{suffix}", split=splits), tmp_path / "store")
    assert (store.info.n_train, store.info.n_test) == (4, 3)
    with pytest.raises(InputRefused, match=r"Expected the split to be one of train, .* got 'dev' in row 3"):
        ingest(make_list(tmp_path / "b", f"list.{suffix}", split=["train", "train", "dev", *splits[3:]]), tmp_path / "other")


def test_paths_below_split_folders_say_their_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make_list(tmp_path / "in", "unused.csv", folder=split)
    (tmp_path / "in" / "unused.csv").unlink()
    paths = [f"{split}/{i}.png" for split in ("train", "test") for i in range(4)]
    root = write_list(tmp_path / "in" / "list.csv", {"path": paths, "label": ["a", "b"] * 4})
    store = ingest(root / "list.csv", tmp_path / "store")
    assert (store.info.n_train, store.info.n_test) == (4, 4)
    (root / "extra.png").write_bytes(encode(pixels(0)))
    write_list(root / "list.csv", {"path": [*paths, "extra.png"], "label": ["a", "b"] * 4 + ["a"]})
    with pytest.raises(UsageError, match=r"begin with the splits test, train, but 'extra\.png' does not: are they splits or classes"):
        ingest(root / "list.csv", tmp_path / "other")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../secret.png", "leaves the folder"),
        ("images/../../secret.png", "leaves the folder"),
        ("dummy/../..", "leaves the folder"),
        ("/etc/passwd", "is absolute"),
        ("//host/share.png", "is absolute"),
        ("file:///etc/passwd", "is an address"),
        ("local://x/y.png", "is an address"),
        ("http://169.254.169.254/latest", "is an address"),
        ("pipe:cat /etc/passwd", "is an address"),
        ("C:\\secret.png", "holds a backslash"),
        ("C:secret.png", "begins with a drive"),
        ("..\\secret.png", "holds a backslash"),
        ("images/\x1b[31m.png", "holds control characters"),
        ("images/\u202egnp.exe", "holds control characters"),
        ("a/" * 40 + "x.png", "has more than 32 folders"),
        ("x" * 5000, "is too long"),
        (".", "names no file"),
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_path_that_leaves_the_folder_refuses_the_list(path: str, why: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encode(pixels(9)))
    root = make_list(tmp_path / "in", f"list.{suffix}")
    write_list(root / f"list.{suffix}", {"path": ["images/0.png", "images/1.png", path], "label": ["cat", "dog", "cat"]})
    with pytest.raises(InputRefused, match=rf"in row 3 of list\.{suffix}.*{why}|in row 3 of list.*names no file"):
        ingest(root, tmp_path / "store")


def test_a_nul_is_refused(tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "list.csv")
    (root / "list.csv").write_bytes(b"path,label\nimages/0.png\0.txt,cat\n")
    with pytest.raises(InputRefused, match=r"line 2 holds a NUL character"):
        ingest(root / "list.csv", tmp_path / "store")
    for suffix in ("jsonl", "parquet"):
        write_list(root / f"b.{suffix}", {"path": ["images/0.png\0.txt"], "label": ["cat"]})
        with pytest.raises(InputRefused, match="holds a NUL character"):
            ingest(root / f"b.{suffix}", tmp_path / "store")


def test_links_and_missing_files_are_samples_that_cannot_be_read(tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "list.csv", labels=["cat", "dog"] * 6)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode(pixels(99)))
    (root / "images" / "0.png").unlink()
    (root / "images" / "1.png").unlink()
    (root / "images" / "1.png").symlink_to(secret)
    (root / "away").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    (root / "images" / "2.png").write_bytes(b"no image")
    rows = [[f"images/{i}.png", "cat" if i % 2 == 0 else "dog"] for i in range(10)]
    rows += [["away/secret.png", "cat"], ["pipe.png", "dog"], ["images", "dog"], ["images/9.png", "cat"], ["images/3.png/x.png", "cat"]]
    write_list(root / "list.csv", dict(zip(("path", "label"), zip(*rows, strict=True), strict=True)))
    store = ingest(root, tmp_path / "store")
    reasons = {line["source"]: line["reason"] for line in store.samples.to_pylist() if line["row"] < 0}
    assert reasons == {
        "images/0.png": "missing",
        "images/1.png": "link",
        "images/2.png": "not-an-image",
        "away/secret.png": "link",
        "pipe.png": "not-a-file",
        "images": "not-a-file",
        "images/9.png": "listed-twice",
        "images/9.png#2": "listed-twice",
        "images/3.png/x.png": "link",
    }
    assert secret.read_bytes() not in (store.path / "payload.bin").read_bytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"path,label\nimages/0.png,cat,more\n", "Expected 2 fields in row 1 of list.csv, got 3"),
        (b"path,label\nimages/0.png\n", "Expected 2 fields in row 1 of list.csv, got 1"),
        (b"path,label\nimages/0.png,\n", r"Expected a label \(text or a whole number\) in row 1 of list.csv, got none"),
        (b"path,label\n,cat\n", "Expected a path in row 1"),
        (b"path,label,label\nimages/0.png,a,b\n", "Expected columns of different names"),
        (b"path,label\n\xff\xfe,cat\n", "Expected list.csv to be UTF-8, but it holds the byte 0xff"),
        (b'path,label\n"images/0.png,cat\n', "Row 1 of list.csv is no row of CSV"),
        (b"path,label\n" + b"x" * (2**20 + 1), "line 2 of list.csv is longer"),
        (b"path,label\n" + b"x" * 200_000 + b",cat\n", "Row 1 of list.csv is no row of CSV"),
        (b"path,label\nimages/0.png," + b"x" * 300 + b"\n", "found a label of 300 characters; is that the label"),
        (b"path,label\nlist.csv,cat\n", "Row 1 of list.csv names the list itself"),
        (b"path,label\n", "Expected training samples in the source, found none"),
        (
            b"path,kind\nimages/0.png,cat\n",
            r"Expected a column 'label' for the label in list.csv, found 'path', 'kind' \(params.yaml: ingest.label_column",
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "list.csv")
    (root / "list.csv").write_bytes(content)
    with pytest.raises(InputRefused, match=sentence):
        ingest(root / "list.csv", tmp_path / "store")


@pytest.mark.parametrize(
    "line",
    ["[]", '{"path": "images/0.png"', '{"path": "images/0.png" "label": 1}', '{"path": "a", "label": NaN}', "{" * 9000,
     '{"path": "a", "label": ' + "[" * 100_000, '{"path": "a", "path": "b", "label": 1}', '{"path": "a", "label": 1} {}', '{1: 2}',
     '{"path": "images/0.png", "label": 1.5}',
     '{"path": "images/0.png", "label": true}', '{"path": ["a"], "label": 1}', '{"path": "\\ud800", "label": 1}'],
)  # fmt: skip
def test_a_line_that_is_no_object_is_refused(line: str, tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "list.jsonl")
    (root / "list.jsonl").write_text('{"path": "images/0.png", "label": 1}\n' + line + "\n")
    with pytest.raises(InputRefused, match=r"[Rr]ow 2 of list\.jsonl"):
        ingest(root / "list.jsonl", tmp_path / "store")


def test_two_columns_that_could_be_the_label_are_asked_about(tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "list.csv", category=["x", "y"] * 3 + ["x"])
    with pytest.raises(UsageError, match=r"The columns label and category of list\.csv could both be the label; .*ingest\.label_column"):
        ingest(root, tmp_path / "store")
    assert ingest(root, tmp_path / "store", label_column="category").info.class_names == ("x", "y")
    root = make_list(tmp_path / "b", "list.csv", filename=["x"] * 7)
    with pytest.raises(UsageError, match=r"The columns path and filename|The columns .* could both be the path; rename one"):
        ingest(root, tmp_path / "other")
    with pytest.raises(UsageError, match=r"ingest\.label_column to be auto for the format imagefolder"):
        ingest(make_folder(tmp_path / "c"), tmp_path / "other", label_column="x")


def test_two_lists_or_layouts_are_asked_about(tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "a.csv")
    assert detect(root) == "manifest"
    make_list(tmp_path / "in", "b.csv")
    with pytest.raises(UsageError, match=r"in holds the lists a\.csv and b\.csv: which one counts"):
        ingest(root, tmp_path / "store")
    (root / "b.csv").unlink()
    (root / "a.csv").rename(root / "metadata.csv")
    make_list(tmp_path / "in", "metadata.jsonl", path="file_name")
    with pytest.raises(UsageError, match=r"holds metadata\.csv and metadata\.jsonl: which one counts"):
        ingest(root, tmp_path / "store")
    both = make_folder(tmp_path / "both", split_folders=False)
    write_list(both / "list.csv", {"path": ["cat/0.jpeg"], "label": ["dog"]})
    with pytest.raises(UsageError, match=r"could be imagefolder or manifest; say which with --format \(params\.yaml: ingest\.format\)"):
        detect(both)
    (both / "list.csv").rename(both / "metadata.csv")
    with pytest.raises(UsageError, match="could be imagefolder or metadata"):
        detect(both)
    assert ingest(both, tmp_path / "chosen", format="imagefolder").info.n_train == 12
    (both / "metadata.csv").write_text("name,size\nx,1\n")
    (both / "metadata.csv").rename(both / "notes.csv")
    assert detect(both) == "imagefolder", "a table without paths is no list of files"


def test_lists_for_each_split(tmp_path: Path) -> None:
    root = make_list(tmp_path / "in", "train.csv")
    make_list(tmp_path / "in", "test.csv", folder="more", labels=["cat", "dog"])
    store = ingest(root, tmp_path / "store", format="manifest")
    assert (store.info.n_train, store.info.n_test) == (7, 2)
    make_list(tmp_path / "in", "test.csv", folder="more", labels=["cat", "cow"])
    with pytest.raises(InputRefused, match=r"'cow' of 'more/1\.png' is not among them"):
        ingest(root, tmp_path / "other", format="manifest")


def test_a_tab_a_semicolon_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    for name, text in (
        ("a.tsv", "path\tlabel\nimages/0.png\tcat\nimages/1.png\tdog\n"),
        ("b.csv", "\ufeffpath;label\r\nimages/0.png; cat\r\nimages/1.png;dog"),
    ):
        root = make_list(tmp_path / name, "x.csv")
        (root / "x.csv").unlink()
        (root / name).write_text(text, encoding="utf-8", newline="")
        assert ingest(root, tmp_path / f"store-{name}").info.class_names == ("cat", "dog")


CELL = st.text(st.sampled_from('ab,;"\n\r\t é\u2028\x0b\x85'), max_size=8)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(CELL, CELL), max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_the_text_of_the_rows_is_the_file(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], end: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    rows = [[f"{i}.png", f"c{i}", *pair] for i, pair in enumerate(cells)]
    writer.writerows([["path", "label", "x", "y"], *rows])
    file = tmp_path_factory.mktemp("rows") / "list.csv"
    file.write_bytes(text.getvalue().encode())
    found = read_rows(file, "list.csv", "auto")
    assert found.head + "".join(found.raw) == text.getvalue()
    assert [csv_fields(raw, ",") for raw in found.raw] == rows


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(max_size=5), st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists, max_leaves=5), max_size=5
    )
)
def test_members_are_those_of_the_library_and_their_text_is_found(content: dict[str, Any]) -> None:
    line = json.dumps(content, ensure_ascii=False)
    members = json_members(line)
    assert {key: value for key, value, _, _ in members} == content
    assert all(json.loads(line[begin:end]) == value for _, value, begin, end in members)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl", "parquet"]))
def test_any_bytes_end_in_rows_or_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    file = tmp_path_factory.mktemp("any") / f"list.{suffix}"
    file.write_bytes({"csv": b"path,label\n", "jsonl": b'{"path": "a", "label": 1}\n', "parquet": b"PAR1"}[suffix] + data)
    is_list(file)
    try:
        read_rows(file, file.name, "auto")
    except InputRefused as problem:
        assert file.name in str(problem)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab./\\:~\0\n\x1b\u202e\ud800é"), max_size=12))
def test_no_accepted_name_leads_out(name: str) -> None:
    try:
        path = inside(name)
    except ValueError as problem:
        assert str(problem)
        return
    assert not path.is_absolute() and ".." not in path.parts and path.parts and not set(str(path)) & set("\\\0\n\x1b\u202e")
    assert os.path.normpath(name) == str(path)
