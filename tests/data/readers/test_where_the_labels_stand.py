"""Folders are classes unless something speaks against it; then meca asks, and each way that it names leads on. One class is no set."""

import csv
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import cli
from meca.data.inspection import inspect
from meca.data.readers import Source, open_source
from meca.data.readers.beside import Beside, find_list
from meca.data.readers.splits import seeming
from meca.errors import InputRefused, UsageError
from tests.data.readers.test_archives import make
from tests.making import encode, ingest, params, pixels, table

CLASSES = ("cat", "dog", "owl")
DATA = [encode(pixels(seed)) for seed in range(12)]
Content = dict[str, bytes]


def opened(path: Path | str, **changes: object) -> Source:
    """Open a source as `meca clean` does, without decoding it."""
    return open_source(params(source=str(path), **changes), 0)


def question(path: Path, says: str) -> str:
    with pytest.raises(UsageError, match=says) as caught:
        opened(path)
    return str(caught.value)


def written(root: Path, content: Content) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tree(prefix: str, classes: Iterable[str] = CLASSES, n: int = 2) -> Content:
    return {f"{prefix}{name}/{i}.png": DATA[(3 * at + i) % 12] for at, name in enumerate(classes) for i in range(n)}


def flat(prefix: str, n: int = 4) -> Content:
    return {f"{prefix}{i}.png": DATA[i] for i in range(n)}


def kept(place: Path, kind: str, content: Content) -> Path:
    """Write files into a folder, or pack them."""
    return written(place / "in", content) if kind == "folder" else make(place / f"in.{kind}", content)


# --- names that look like splits --------------------------------------------------------------------------------------

PAIRS = [
    ("train", "test"), ("training", "testing"), ("train", "val"), ("train", "valid"), ("training", "validation"), ("train", "dev"),
    ("train", "eval"), ("train", "evaluation"), ("trn", "tst"), ("tr", "te"), ("train", "holdout"), ("trainset", "testset"),
    ("train-set", "test-set"), ("train data", "test data"), ("seg train", "seg test"), ("images train", "images val"), ("train 2017", "val 2017"),
    ("flowers train", "flowers test"), ("my train images", "my test images"), ("Trainingsdaten", "Testdaten"), ("entraînement", "validation"),
    ("treino", "teste"), ("训练集", "测试集"), ("学習用データ", "テスト用データ"), ("훈련", "테스트"), ("обучение", "тест"),
]  # fmt: skip
STYLES: list[Callable[[str], str]] = [str, str.upper, str.title, str.capitalize, str.casefold]
NOT_SPLITS = [
    ["train", "car", "bus"], ["train", "other"], ["train", "bus", "val d'isère"], ["valid", "invalid"], ["test_positive", "test_negative"],
    ["steam_train", "electric_train"], ["trainer", "tester"], ["protest", "contest"], ["tr", "te", "en", "fr"], ["dev", "prod"], ["0", "1"],
    ["class_0", "class_1"], ["image_1", "image_2"], ["stage 1", "stage 2"], ["unlabeled", "extra"], ["val", "ben", "tom"], ["training", "match"],
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"], ["good", "broken"], ["trainA", "trainB"],
    ["test tube", "train", "flask"], ["pretest", "posttest"], ["evaluator", "train"], ["n01440764", "n01443537"], ["dataset" * 40 + "x", "train"],
]  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(PAIRS),
    st.sampled_from(STYLES),
    st.sampled_from(STYLES),
    st.sampled_from(["", " ", "_", "-", "."]),
    st.sampled_from(["", "2", "_1"]),
)
def test_two_splits_are_known_in_any_case_and_with_any_separator(
    pair: tuple[str, str], one: Callable[[str], str], other: Callable[[str], str], between: str, end: str
) -> None:
    names = [style(name).replace(" ", between or "_") + end for name, style in zip(pair, (one, other), strict=True)]
    assert seeming(names) == dict(zip(names, ("train", "test"), strict=True))
    assert set(seeming([*names, "cat"])) == (set() if pair in [("tr", "te"), ("train", "dev")] else set(names)), "beside a class only what is certain"


@pytest.mark.parametrize("names", NOT_SPLITS, ids=lambda names: "+".join(names)[:40])
def test_ordinary_classes_are_no_splits(names: list[str]) -> None:
    assert seeming(names) == {}
    assert seeming(names[:1]) == {}, "a single name is refused as a single class, not asked about"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text(max_size=30), max_size=5, unique=True), st.lists(st.sampled_from(["train", "test", "val", "cat", "tr", "fold1"]), unique=True)
)
def test_what_looks_like_a_split_is_one_of_the_names(drawn: list[str], more: list[str]) -> None:
    found = seeming([*drawn, *more])
    assert set(found) <= {*drawn, *more} and set(found.values()) <= {"train", "test", ""}


# --- splits as folders ------------------------------------------------------------------------------------------------

KINDS = ["folder", "zip", "tar", "tar.gz"]
NAMED = [
    *(
        (names, above, "zip")
        for names in (("Training", "Testing"), ("TRAIN", "VAL"), ("train_data", "eval-data"))
        for above in ("", "brain/", "a/b/")
    ),
    *((("Train", "Test"), above, kind) for above in ("", "brain/") for kind in ("folder", "tar", "tar.gz")),
    (("images train", "images valid"), "", "folder"),
    (("flowers_train", "flowers_test"), "", "folder"),
    (("flowers_train", "flowers_test"), "", "zip"),
    (("Trainingsdaten", "Testdaten"), "", "folder"),
]


def unpacked(path: Path, place: Path) -> Path:
    """Do what the question asks for first: unpack an archive."""
    if path.is_dir():
        return path
    # Of our own making, and by hand: `extractall` of a tar file has no `filter` before Python 3.11.4, and complains without one later.
    with zipfile.ZipFile(path) if path.suffix == ".zip" else tarfile.open(path) as archive:
        if isinstance(archive, zipfile.ZipFile):
            archive.extractall(place)
            return place
        for member in archive:
            if member.isfile() and (found := archive.extractfile(member)) is not None:
                file = place / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(found.read())
    return place


def follow_renames(root: Path, said: str, above: str) -> Path:
    """Rename as the question says, and return the folder that it says to point to."""
    for old, new in re.findall(r"'([^']+)' to ([a-z]+)", said):
        (root / above / old).rename(root / above / new)
    return root / above


@pytest.mark.parametrize(("names", "above", "kind"), NAMED)
def test_splits_in_other_words_are_asked_about_and_both_answers_lead_on(names: tuple[str, str], above: str, kind: str, tmp_path: Path) -> None:
    path = kept(tmp_path, kind, tree(f"{above}{names[0]}/") | tree(f"{above}{names[1]}/", n=1) | {f"{above}README.md": b"x"})
    said = question(path, "look like splits and not like classes")
    assert all(repr(name) in said for name in names)
    if kind == "folder" and above:
        assert f"point to {path / above}" in said
        said = question(path / above, "look like splits and not like classes")
        root = path / above
    else:
        root = path
    format = {"folder": "imagefolder", "tar.gz": "tar"}.get(kind, kind)
    assert f"--format {format}" in said and set(opened(root, format=format).class_names) == set(names), "the answer that they are classes"
    whole = unpacked(path, tmp_path / "out")
    alone = opened(whole / above / names[0])
    assert f"point to {(above if kind != 'folder' else '') + names[0]!r} alone" in said and alone.class_names == CLASSES
    source = opened(follow_renames(whole, said, above))
    assert source.class_names == CLASSES and {split: len(labels) for split, labels in source.labels.items()} == {"train": 6, "test": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_folder_in_one_of_the_same_name_is_asked_about(kind: str, tmp_path: Path) -> None:
    content = tree("seg_train/seg_train/") | tree("seg_test/seg_test/")
    question(kept(tmp_path / "a", kind, content), r"'seg_test' and 'seg_train' .* look like splits .* point to 'seg_train/seg_train'\. If")
    path = kept(tmp_path, kind, content | flat("seg_pred/seg_pred/"))
    said = question(path, r"'seg_pred', 'seg_test' and 'seg_train' .* look like splits .* point to 'seg_train/seg_train'\. If")
    format = said.partition("--format ")[2].split()[0]
    assert opened(path, format=format).class_names == ("seg_pred", "seg_test", "seg_train")
    assert opened(unpacked(path, tmp_path / "out") / "seg_train" / "seg_train").class_names == CLASSES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Train", "Test"), ("training_images", "test_images")], ids="+".join)
def test_flat_splits_of_export_tools_are_asked_about(names: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    path = kept(tmp_path, kind, {name: data for split in names for name, data in flat(f"{split}/").items()})
    said = question(path, r"look like splits .* a folder of its own below train/ and test/, or point to a list of them \(CSV\)")
    assert set(opened(path, format=said.partition("--format ")[2].split()[0]).class_names) == set(names)
    root = unpacked(path, tmp_path / "out")
    rows = [f"{split}/{i}.png,{CLASSES[i % 3]},{'train' if at == 0 else 'test'}" for at, split in enumerate(names) for i in range(4)]
    (root / "list.csv").write_text("path,label,split\n" + "\n".join(rows))
    assert opened(root / "list.csv").class_names == CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_splits_beside_classes_are_asked_about_and_a_vehicle_is_none(kind: str, tmp_path: Path) -> None:
    path = kept(tmp_path / "a", kind, tree("", ("train", "test", "car")))
    question(path, r"'test' and 'train' .* look like splits and not like classes, beside 'car'\. If")
    path = kept(tmp_path / "b", kind, tree("", ("train", "bus", "car")))
    assert opened(path).class_names == ("bus", "car", "train")
    path = kept(tmp_path / "c", kind, tree("train/") | tree("test/") | tree("val/"))
    assert opened(path).class_names == CLASSES and len(opened(path).labels["test"]) == 12, "what is spelled as a split is one"


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize(("exact", "like", "to"), [("train", "Testing", "test"), ("test", "Training", "train"), ("train", "eval", "val")])
def test_a_split_beside_what_only_looks_like_one_is_asked_about_and_both_ways_lead_on(
    exact: str, like: str, to: str, kind: str, tmp_path: Path
) -> None:
    path = kept(tmp_path, kind, tree(f"{exact}/", n=2 if exact == "train" else 1) | tree(f"{like}/", n=1 if exact == "train" else 2) | tree("docs/"))
    said = question(path, f"{exact} beside '{min(like, 'docs')}' and 1 more: are they splits or classes")
    assert f"rename {like!r} to {to} and move 'docs' away. If they are classes" in said
    root = unpacked(path, tmp_path / "out")
    shutil.rmtree(root / "docs")
    shutil.copytree(root, tmp_path / "other")
    assert opened(follow_renames(root, said.partition(" If they are classes")[0], "")).labels["test"].size == 3
    (tmp_path / "other" / exact).rename(tmp_path / "other" / "steam")
    (tmp_path / "other" / like).rename(tmp_path / "other" / "electric")
    assert opened(tmp_path / "other", format="imagefolder").class_names == ("electric", "steam")


def test_further_lists_shards_and_labels_that_look_like_splits_are_asked_about(tmp_path: Path) -> None:
    for name in ("Training.parquet", "Testing.parquet"):
        (tmp_path / "a").mkdir(exist_ok=True)
        pq.write_table(table([0, 1, 2]), tmp_path / "a" / name)
    question(tmp_path / "a", r"The shards 'Testing' and 'Training' look like splits: let the names of those for training begin with train")
    root = written(
        tmp_path / "b", flat("Train/") | flat("Test/") | {"list.csv": listed([f"{s}/{i}.png" for s in ("Train", "Test") for i in range(4)])}
    )
    question(root / "list.csv", "Paths of list.csv begin with 'Test' and 'Train', which look like splits: add a column split")
    root = written(tmp_path / "c", flat("x/") | {"list.csv": listed([f"x/{i}.png" for i in range(4)], labels=["train", "valid"])})
    said = question(root / "list.csv", r"The labels 'train' and 'valid' of c look like splits.*ingest\.label_column=NAME.*--format manifest")
    assert "(it was 'label')" in said
    assert (
        opened(root / "list.csv", format="manifest").class_names == opened(root / "list.csv", label_column="label").class_names == ("train", "valid")
    )


# --- folders in folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_class_folders_one_level_down_beside_other_images_are_asked_about(kind: str, tmp_path: Path) -> None:
    path = kept(tmp_path, kind, tree("flowers/") | flat("docs/", 1) | {"README.txt": b"x"})
    said = question(path, r"'flowers' .* lie in folders of it, such as 'cat', 'dog' and 'owl': which folders are the classes\?.* point to 'flowers'")
    assert opened(path, format=said.partition("--format ")[2].split()[0]).class_names == ("docs", "flowers")
    assert opened(unpacked(path, tmp_path / "out") / "flowers").class_names == CLASSES
    path = kept(tmp_path / "b", kind, tree("", n=3) | {"cat/old/x.png": DATA[9], "dog/more/x.png": DATA[8], "dog/other/x.png": DATA[7]})
    assert opened(path).class_names == CLASSES, "a class with an image of its own may have folders"


# --- lists beside images ----------------------------------------------------------------------------------------------


def listed(paths: Iterable[str], head: str = "path,label", labels: Iterable[str] = CLASSES) -> bytes:
    names = list(labels)
    rows = [(path, names[at % len(names)]) for at, path in enumerate(paths)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return (head + "\n" * bool(head) + text.getvalue()).encode()


IMAGES = [f"images/{i:03d}.png" for i in range(6)]
NAMES = [path.rpartition("/")[2] for path in IMAGES]
BARE = [name.removesuffix(".png") for name in NAMES]
ITEMS = [{"file": name, "tag": CLASSES[at % 3]} for at, name in enumerate(NAMES)]


def as_parquet(columns: dict[str, list[str]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


LISTS: dict[str, tuple[str, bytes, str]] = {  # file, content, what the question says of it
    "other words": ("train.csv", listed(IMAGES, "image,label"), "with the columns 'image', 'label'"),
    "capitals": ("train.csv", listed(IMAGES, "Path,Label"), "with the columns 'Path', 'Label'"),
    "words of no use": ("labels.csv", listed(NAMES, "a,b"), "with the columns 'a', 'b'"),
    "ids": ("labels.csv", listed(BARE, "id,breed"), "with the columns 'id', 'breed'"),
    "numbers": ("labels.csv", listed(map(str, range(6)), "id,breed"), "with the columns 'id', 'breed'"),
    "no header": ("labels.csv", listed(IMAGES, ""), "whose first row is 'images/000.png', 'cat'"),
    "a comment": ("train.csv", listed(IMAGES, "# written by a tool\npath,label"), "with the columns 'path', 'label'"),
    "other images": ("train.csv", listed(["elsewhere/x.png"], "Image Path,Label") + b"", "with the columns 'Image Path', 'Label'"),
    "more than there is": ("train.csv", listed([*IMAGES, *(f"images/{i}.png" for i in range(100, 140))], "x,y"), "with the columns 'x', 'y'"),
    "a broken line": ("train.jsonl", b"# x\n{\n" + "".join(json.dumps(item) + "\n" for item in ITEMS).encode(), "with the columns 'file', 'tag'"),
    "semicolons": ("train.csv", listed(IMAGES, "x,y").replace(b",", b";"), "with the columns 'x', 'y'"),
    "windows": ("train.csv", b"\xef\xbb\xbf" + listed([f"images\\{name}" for name in NAMES], "x,y").replace(b"\n", b"\r\n"), "'x', 'y'"),
    "utf-16": ("train.csv", listed(IMAGES, "image,label").decode().encode("utf-16"), "with the columns 'image', 'label'"),
    "absolute": ("train.csv", listed([f"/content/drive/{path}" for path in IMAGES], "x,y"), "'x', 'y'"),
    "tabs": ("train.tsv", listed(IMAGES, "x,y").replace(b",", b"\t"), "with the columns 'x', 'y'"),
    "a suffix in capitals": ("TRAIN.CSV", listed(IMAGES, "x,y"), "TRAIN.CSV (with the columns 'x', 'y')"),
    "json lines": ("train.jsonl", "".join(json.dumps(item) + "\n" for item in ITEMS).encode(), "with the columns 'file', 'tag'"),
    "ndjson": ("train.ndjson", "".join(json.dumps(item) + "\n" for item in ITEMS).encode(), "rename it to .jsonl"),
    "parquet": ("train.parquet", as_parquet({"image": IMAGES, "tag": ["a", "b"] * 3}), "with the columns 'image', 'tag'"),
    "json of objects": ("labels.json", json.dumps(ITEMS).encode(), "write it as CSV with the columns path and label"),
    "json by name": ("labels.json", json.dumps({item["file"]: item["tag"] for item in ITEMS}).encode(), "write it as CSV"),
    "json of a tool": ("dataset.json", json.dumps({"labels": [[path, 3] for path in IMAGES]}).encode(), "dataset.json lies"),
    "text": ("train.txt", listed(IMAGES, "").replace(b",", b" "), "write it as CSV"),
    "im2rec": ("train.lst", b"".join(b"%d\t%d.0\t%s\n" % (at, at % 3, path.encode()) for at, path in enumerate(IMAGES)), "write it as CSV"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "folder") for name in LISTS),
        *((name, "zip") for name in list(LISTS)[::3]),
        *((name, kind) for name in ("ids", "parquet") for kind in KINDS[1:]),
    ],
)
def test_a_list_beside_images_is_asked_about_whatever_its_columns_are_called(name: str, kind: str, tmp_path: Path) -> None:
    file, data, says = LISTS[name]
    one = {path: DATA[at] for at, path in enumerate(IMAGES)}
    path = kept(tmp_path / "one", kind, one | {file: data})
    said = question(path, r"The list .* lies beside the images of .*, which are in the folder 'images': where do the labels stand\?")
    assert says in said and file in said
    two = {path.replace("images/", f"part {at % 2}/"): data for at, (path, data) in enumerate(one.items())}
    path = kept(tmp_path / "two", kind, two | {file: data})
    said = question(path, r"which are in the folders 'part 0' and 'part 1': where do the labels stand\?")
    format = {"folder": "imagefolder", "tar.gz": "tar"}.get(kind, kind)
    assert f"say so with --format {format}" in said and opened(path, format=format).class_names == ("part 0", "part 1")


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", ["other words", "capitals"])
def test_the_list_that_a_question_names_can_be_pointed_to(name: str, kind: str, tmp_path: Path) -> None:
    file, data, _ = LISTS[name]
    path = kept(tmp_path, kind, {path: DATA[at] for at, path in enumerate(IMAGES)} | {file: data})
    said = question(path, f"If they stand in the list, .*point to {file}")
    root = unpacked(path, tmp_path / "out")
    assert opened(root / file).class_names == CLASSES
    assert ("--format manifest" in said) == (kind == "folder") and opened(root, format="manifest").class_names == CLASSES
    store = ingest(root / file, tmp_path / "store")
    assert store.info.n_train == 6 and store.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("name", ["words of no use", "ids", "no header", "a comment"])
def test_columns_that_are_not_understood_are_named_with_what_is_needed(name: str, tmp_path: Path) -> None:
    file, data, _ = LISTS[name]
    root = written(tmp_path / "in", {path: DATA[at] for at, path in enumerate(IMAGES)} | {file: data})
    question(root, "let its first line name the columns path and label, with paths as seen from the list, and point to")
    first = data.split(b"\n")[0].decode().split(",")
    for path in (root, root / file):
        with pytest.raises(InputRefused, match=r"found .*one of file_name, path, filename") as caught:
            opened(path, format="manifest")
        assert all(repr(column) in str(caught.value) for column in first)
    (root / file).write_bytes(listed(IMAGES))
    assert opened(root / file).class_names == opened(root).class_names == CLASSES, "with the usual columns it is read without a question"


def test_a_list_beside_classes_that_is_understood_is_asked_about_with_its_columns(tmp_path: Path) -> None:
    root = written(tmp_path / "in", tree("") | {"list.csv": listed(tree(""), labels=["a", "b"])})
    said = question(
        root, r"could be imagefolder or manifest; say which with --format .* list list\.csv, with the columns 'path', 'label'; imagefolder"
    )
    assert "names of the folders" in said
    assert opened(root, format="manifest").class_names == ("a", "b") and opened(root, format="imagefolder").class_names == CLASSES


def test_a_second_list_of_the_same_images_is_asked_about(tmp_path: Path) -> None:
    images = {path: DATA[at] for at, path in enumerate(IMAGES)}
    root = written(tmp_path / "in", images | {"a.csv": listed(IMAGES), "b.csv": listed(IMAGES, "x,y", ["u", "v"])})
    question(root, r"holds the lists a\.csv and b\.csv \(with the columns 'x', 'y'\): which one counts\? Point to that file")
    assert opened(root / "a.csv").class_names == CLASSES
    (root / "b.csv").write_bytes(b"id,name\n0,cat\n1,dog\n2,owl\n")
    assert opened(root).class_names == CLASSES, "a table of the classes"
    root = written(
        tmp_path / "b", flat("") | {"metadata.csv": listed([f"{i}.png" for i in range(4)], "file_name,label"), "b.csv": listed(flat(""), "x,y")}
    )
    question(root, r"holds the lists metadata\.csv and b\.csv")
    assert opened(root, format="metadata").class_names == CLASSES
    (tmp_path / "c").mkdir()
    make(tmp_path / "c" / "x.zip", tree(""))
    (tmp_path / "c" / "labels.csv").write_bytes(listed([f"{name}/{i}.png" for name in CLASSES for i in range(2)], "x,y"))
    question(tmp_path / "c", r"The list labels\.csv .* lies beside the images of x\.zip.*--format zip")
    assert opened(tmp_path / "c" / "x.zip").class_names == CLASSES


NO_LISTS: dict[str, Content] = {
    "classes": {"classes.txt": b"cat\ndog\nowl\n", "labels.txt": b"0 cat\n1 dog\n2 owl\n", "class_index.csv": b"id,name\n0,cat\n1,dog\n2,owl\n"},
    "class names alone": {
        "classes.csv": b"cat\ndog\nowl\n",
        "map.csv": b"cat,0\ndog,1\nowl,2\n",
        "map.json": b'{"0": "cat", "1": "dog", "2": "owl"}',
    },
    "a remark": {"notes.txt": b"The pictures are of animals.\n" * 9 + b"0.png is of a cat.\n"},
    "prose": {"README.txt": b"cat/0.png, dog/0.png\n", "notes.txt": b"Pictures of animals, taken at home.\nAll rights are free.\n", "LICENSE": b"x"},
    "counts": {"counts.csv": b"class,count\ncat,1\ndog,1\nowl,0\n", "sizes.csv": b"name,size\nx,1\n"},
    "a log": {"log.csv": b"step,loss\n900,0.5\n901,0.4\n", "metrics.jsonl": b'{"loss": 0.5, "step": 900}\n'},
    "annotations": {"a.json": json.dumps({"images": [{"file_name": "0.png", "id": 0}], "annotations": [{"image_id": 0, "bbox": [0]}]}).encode()},
    "boxes": {"a.json": json.dumps([{"image": "0.png", "annotations": [{"label": "x"}]}]).encode()},
    "names alone": {"train.txt": b"cat/0.png\ndog/0.png\n", "files.csv": b"cat/0.png\n"},
    "other images": {"other.csv": b"x,y\nzebra.png,1\nyak.png,2\n"},
    "damage": {"a.csv": b"\0\xff\n,,", "b.parquet": b"PAR1", "c.json": b"[" * 9999, "d.jsonl": b'{"a":' * 9999, "e.csv": b"", "f.txt": b"\xff\xfe\0"},
}


@pytest.mark.parametrize(("name", "kind"), [*((name, "folder") for name in NO_LISTS), *(("damage", kind) for kind in KINDS[1:]), ("classes", "zip")])
def test_what_is_no_list_of_the_images_asks_for_nothing(name: str, kind: str, tmp_path: Path) -> None:
    more = {file: data for file, data in NO_LISTS[name].items() if kind != "folder" or not file.endswith(".parquet")}  # it could be a set of its own
    assert opened(kept(tmp_path, kind, tree("") | more)).class_names == CLASSES


def test_a_table_of_classes_names_no_images_even_where_they_are_called_like_their_class(tmp_path: Path) -> None:
    content = {f"{name}/{name}.png": DATA[at] for at, name in enumerate(CLASSES)} | {"map.csv": b"class,number\ncat,0\ndog,1\nowl,2\n"}
    assert opened(written(tmp_path / "in", content)).class_names == CLASSES


def test_a_list_is_not_followed_to_another_place_and_a_pipe_is_not_opened(tmp_path: Path) -> None:
    root = written(tmp_path / "in", tree(""))
    (tmp_path / "secret.csv").write_bytes(listed(tree(""), "x,y"))
    (root / "train.csv").symlink_to(tmp_path / "secret.csv")
    os.mkfifo(root / "more.csv")
    assert opened(root).class_names == CLASSES


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.binary(max_size=200) | st.text('{}[]",:0a.\n\tpng', max_size=80).map(str.encode),
    st.sampled_from(["csv", "tsv", "jsonl", "json", "txt", "lst", "parquet"]),
    st.sampled_from([b"", b"image,label\n", b'{"labels": [', b'[{"a": "0.png", "b": 1},', b"PAR1"]),
)
def test_any_bytes_are_a_list_or_none(data: bytes, suffix: str, before: bytes) -> None:
    found = find_list([Beside(f"x.{suffix}", lambda: io.BytesIO(before + data))], lambda: ["cat/0.png", "dog/a.png"], ["cat", "dog"])
    assert found is None or (found.name == f"x.{suffix}" and str(found).startswith(found.name))


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_asks_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (
        written(tmp_path / "a", tree("Training/") | tree("Testing/")),
        written(tmp_path / "b", {path: DATA[0] for path in IMAGES} | {"x.csv": listed(IMAGES, "image,label")}),
        make(tmp_path / "c.zip", tree("Train/") | tree("Test/")),
    ):
        assert cli.run(["inspect", str(path)]) == 4
        assert "look like splits" in (err := capsys.readouterr().err) or "where do the labels stand" in err
    assert cli.run(["clean", str(tmp_path / "b"), "-o", str(tmp_path / "out")]) == 4 and not (tmp_path / "out").exists()


def test_classes_that_are_named_like_splits_are_warned_about_where_somebody_said_that_they_are_classes(tmp_path: Path) -> None:
    root = written(tmp_path / "in", tree("Training/") | tree("Testing/"))
    assert "The classes 'Testing' and 'Training' are named like splits." in inspect(root, "imagefolder").warnings
    assert not any("splits" in warning for warning in inspect(written(tmp_path / "b", tree(""))).warnings)
