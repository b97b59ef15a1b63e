"""WebDataset shards: the files of a sample belong together, the label is what `cls` or `json` say, and nothing is unpickled."""

import json
import pickle  # a member that must not be opened
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.data import readers
from meca.data.inspection import inspect
from meca.data.readers.detect import detect
from meca.data.readers.webdataset import open_webdataset, shards_of
from meca.errors import InputRefused, UsageError
from tests.data.readers.test_archives import Members, info, make_tar, members
from tests.making import encode, ingest, pixels

LABELS = [2, 0, 1, 2, 0, 1]


def shard(labels: Any = LABELS, start: int = 0, kind: str = "cls", **more: Any) -> Members:
    """Return the members of a shard; `more` holds further members of every sample by extension."""
    content: Members = {}
    for i, label in enumerate(labels, start):
        content[f"{i:04d}.png"] = encode(pixels(i, 9, 12))
        content[f"{i:04d}.{kind}"] = f"{label}\n".encode() if kind == "cls" else json.dumps({"x": 1.50, "label": label}).encode()
        content |= {f"{i:04d}.{extension}": data for extension, data in more.items()}
    return content


def make_web(root: Path, kind: str = "cls", test: bool = False, labels: Any = LABELS, **more: Any) -> Path:
    for number in range(2):
        make_tar(root / f"train-{number:03d}.tar", shard(labels, 10 * number, kind, **more))
    if test:
        make_tar(root / "val-000.tar", shard(labels[:3], 50, kind, **more))
    return root


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_shards_are_read_in_their_order(kind: str, tmp_path: Path) -> None:
    store = ingest(make_web(tmp_path / "in", kind, test=True, txt=b"a caption"), tmp_path / "store")
    assert (store.info.source["format"], store.info.n_train, store.info.n_test) == ("webdataset", 12, 3)
    assert store.labels.tolist() == [*LABELS, *LABELS, *LABELS[:3]] and store.info.class_names == ("0", "1", "2")
    assert store.readable["source"].to_pylist()[5:7] == ["train-000.tar#0005", "train-001.tar#0010"]
    line = store.readable.to_pylist()[6]
    assert store.payload(line["offset"], line["bytes"]) == encode(pixels(10, 9, 12))


def test_shards_can_be_counted_with_braces(tmp_path: Path) -> None:
    root = make_web(tmp_path / "in", test=True)
    pattern = root / "train-{000..001}.tar"
    assert detect(pattern) == "webdataset"
    assert ingest(pattern, tmp_path / "store").info.n_train == 12 and inspect(pattern).samples == {"train": 12, "test": 0}
    for wrong in ("train-{000..002}.tar", "train-{001..000}.tar", "{0..1}-{0..1}.tar", "t-{0..999999999}.tar"):
        with pytest.raises(InputRefused, match=r"Expected the shard train-002\.tar, found none|Expected one rising range"):
            shards_of(root / wrong)


def test_a_tar_of_folders_and_a_shard_are_told_apart_and_never_by_guess(tmp_path: Path) -> None:
    assert detect(make_tar(tmp_path / "a.tar", shard())) == "webdataset"
    assert detect(make_tar(tmp_path / "b.tar", members())) == "tar"
    assert detect(make_tar(tmp_path / "c.tar", {f"train/{name}": data for name, data in shard().items()})) == "webdataset"
    both = make_tar(tmp_path / "d.tar", {f"{name[3]}/{name}": data for name, data in shard(kind="json").items()})
    with pytest.raises(UsageError, match=r"could be tar or webdataset; say which with --format \(params\.yaml: ingest\.format\)"):
        detect(both)
    assert ingest(both, tmp_path / "x", format="webdataset").info.class_names == ("0", "1", "2")
    assert ingest(both, tmp_path / "y", format="tar").info.class_names == ("0", "1", "2", "3", "4", "5")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_member_that_could_run_code_is_not_opened_and_its_sample_is_quarantined(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    content = shard() | {"0000.pkl": pickle.dumps(Evil(mark)), "0001.seg.png": b"x", "0002.jpg": encode(pixels(1), "JPEG"), "0003.pyd": b"MZ"}
    file = make_tar(tmp_path / "x.tar", dict(sorted(content.items())) | shard(start=20))
    bad = {line["source"]: line["reason"] for line in ingest(file, tmp_path / "store").samples.to_pylist() if line["row"] < 0}
    assert bad == {"x.tar#0000": "member:.pkl", "x.tar#0001": "member:.seg.png", "x.tar#0002": "several-images", "x.tar#0003": "member:.pyd"}
    assert not mark.exists()


def test_a_key_that_comes_back_and_members_twice_are_not_believed(tmp_path: Path) -> None:
    items = [*shard().items(), *shard(start=20).items(), ("0000.png", encode(pixels(9))), ("0000.cls", b"1"), ("0001.cls", b"0")]
    items.insert(3, ("0001.png", encode(pixels(3))))
    lines = ingest(make_tar(tmp_path / "x.tar", [info(*item) for item in items]), tmp_path / "store").samples.to_pylist()
    bad = {line["source"]: line["reason"] for line in lines if line["row"] < 0}
    assert bad == dict.fromkeys(("x.tar#0000", "x.tar#0000#2", "x.tar#0001", "x.tar#0001#2"), "name-twice")


def test_what_lies_around_is_named(tmp_path: Path) -> None:
    found = inspect(make_tar(tmp_path / "x.tar", shard() | {"README.md": b"x", ".hidden": b"x", "9.cls": b"1"}))
    assert sorted(found.odd) == ["x.tar#.hidden", "x.tar#README"] and found.unreadable == ["x.tar#9 (no-image)"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"9.png": encode(pixels(0))}, r"Expected a label for the image 'x\.tar#9'"),
        ({"9.png": b"", "9.cls": b"\xff"}, r"Expected one line of UTF-8 text as label in 'x\.tar#9\.cls'"),
        ({"9.png": b"", "9.cls": b"1\n2"}, "Expected one line"),
        ({"9.png": b"", "9.cls": b" "}, "Expected one line"),
        ({"9.png": b"", "9.json": b"[1]"}, r"'x\.tar#9\.json' is no JSON object"),
        ({"9.png": b"", "9.json": b"{" * 9999}, r"'x\.tar#9\.json' is no JSON object"),
        ({"9.png": b"", "9.json": b'{"label": 1.5}'}, "Expected a label for the image"),
        ({"../9.png": b"", "../9.cls": b"1"}, r"The member '\.\./9\.png' of x\.tar leaves the folder"),
        ({"/9.png": b"", "/9.cls": b"1"}, "is absolute"),
        ({"pipe:x.png": b""}, "is an address"),
        ({"9.png": b"", "9.cls": b"1", "9.txt": bytes(2**20 + 1)}, "Expected members cls, json and txt of at most 1048576 bytes"),
    ],
)
def test_a_shard_that_cannot_be_used_is_refused(more: Members, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=sentence):
        ingest(make_tar(tmp_path / "x.tar", shard() | more), tmp_path / "store")


def test_labels_that_disagree_are_asked_about(tmp_path: Path) -> None:
    content = {
        f"{i}.{e}": d
        for i in range(4)
        for e, d in (("png", encode(pixels(i))), ("cls", b"%d" % (i % 2)), ("json", b'{"label": "%c"}' % (97 + i // 2)))
    }
    file = make_tar(tmp_path / "x.tar", content)
    with pytest.raises(UsageError, match=r"'x\.tar#0' has the label '0' in cls and 'a' in json \(label\); say which counts with .*label_column"):
        ingest(file, tmp_path / "store")
    assert ingest(file, tmp_path / "a", label_column="cls").labels.tolist() == [0, 1, 0, 1]
    assert ingest(file, tmp_path / "b", label_column="label").info.class_names == ("a", "b")
    file = make_tar(tmp_path / "y.tar", {"0.png": encode(pixels(0)), "0.json": b'{"label": 1, "class": 2}'})
    with pytest.raises(UsageError, match=r"The values label and class of .* could all be the label"):
        ingest(file, tmp_path / "store")


def test_the_texts_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers.webdataset, "MAX_TEXTS", 50)
    with pytest.raises(InputRefused, match=r"and 50 in all, but '0005\.txt'|and 50 in all"):
        open_webdataset(make_tar(tmp_path / "x.tar", shard(txt=b"0123456789")))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(["0.png", "0.cls", "0.json", "1.png", "1.cls", "a/1.png", "a.b.cls", ".x", "2"]), st.binary(max_size=20), max_size=9
    )
)
def test_any_members_end_in_samples_or_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: Members) -> None:
    file = make_tar(tmp_path_factory.mktemp("web") / "x.tar", content)
    try:
        source = open_webdataset(file)
    except (InputRefused, UsageError) as problem:
        assert str(problem)
    else:
        found = list(source.read("train", source.labels["train"] >= 0))
        assert len({sample.name for sample in found}) == len(found) == len(source.labels["train"])


def test_an_extension_that_is_no_text_is_set_aside_with_its_sample(tmp_path: Path) -> None:
    content = [info(name, data) for name, data in shard().items()]
    content.insert(8, info("0003.\udceang", b"x"))
    make_tar(tmp_path / "in" / "train-000.tar", content)
    store = ingest(tmp_path / "in", tmp_path / "store")
    lines = {line["source"]: line["reason"] for line in store.samples.to_pylist()}
    assert lines == {f"train-000.tar#{i:04d}": "member:.\\xeang" if i == 3 else None for i in range(6)}
    assert [part["extension"] for part in store.columns["parts"].to_pylist()[3]] == ["png", "cls", "\\xeang"]
