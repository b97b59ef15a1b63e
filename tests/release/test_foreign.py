"""A folder of somebody else: nothing but a regular file below it is opened, and its JSON is what it looks like, or refused."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meca.files import canonical_json, sha256_file
from meca.release.foreign import FREE_VALUES, MAX_DEPTH, MAX_LEVELS, Folder, Missing, Unfit, parse_object, read_object


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    (place / "deep" / "er").mkdir(parents=True)
    (place / "deep" / "er" / "file").write_bytes(b"content")
    (place / "top").write_bytes(b"more")
    (tmp_path / "secret").write_bytes(b"secret")
    return place


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


ODD: list[tuple[str, Callable[[Path], object], str]] = [
    ("x", lambda f: os.mkfifo(f / "x"), "x is a named pipe, not a regular file"),
    ("x", lambda f: make_socket(f / "x"), "x is a socket, not a regular file"),
    ("x", lambda f: (f / "x").mkdir(), "x is a folder, not a regular file"),
    ("x", lambda f: (f / "x").symlink_to("/dev/zero"), "x is a link, and links are not followed"),
    ("x", lambda f: (f / "x").symlink_to("top"), "x is a link, and links are not followed"),
    ("x", lambda f: (f / "x").symlink_to("nowhere"), "x is a link, and links are not followed"),
    ("x/secret", lambda f: (f / "x").symlink_to(f.parent), "x/secret lies behind the link x, and"),
    ("deep/x/file", lambda f: (f / "deep" / "x").symlink_to("er"), "deep/x/file lies behind the link x, and"),
    ("x", lambda f: None, "x is missing"),
    ("no/x", lambda f: None, "no/x is missing"),
    ("top/x", lambda f: None, "top/x is missing"),
    ("../secret", lambda f: None, "'../secret' is no name inside the folder"),
    ("deep/../top", lambda f: None, "is no name inside the folder"),
    ("/etc/passwd", lambda f: None, "is no name inside the folder"),
    ("", lambda f: None, "'' is no name inside the folder"),
    ("deep//er/file", lambda f: None, "is no name inside the folder"),
    ("deep/er/", lambda f: None, "is no name inside the folder"),
    ("deep\\er", lambda f: None, "is no name inside the folder"),
    ("a\0b", lambda f: None, "is no name inside the folder"),
    ("half \ud800", lambda f: None, "half  cannot be opened (no name that a file can have)"),
    ("n" * 300, lambda f: None, "cannot be opened (File name too long)"),
    ("n" * 5000, lambda f: None, "is no name inside the folder"),
    ("n/" * 2**24, lambda f: None, "is no name inside the folder"),
    ("d/" * 1200 + "x", lambda f: None, "is no name inside the folder"),
]


@pytest.mark.parametrize(("name", "make", "sentence"), ODD, ids=[str(at) for at in range(len(ODD))])
def test_nothing_but_a_regular_file_below_the_folder_is_opened(name: str, make: Callable[[Path], object], sentence: str, place: Path) -> None:
    make(place)
    with Folder(place) as folder:
        for way in (lambda: folder.read(name, 100), lambda: folder.sha256(name), lambda: folder.size(name)):
            with pytest.raises(Unfit) as caught:
                way()
            assert sentence in str(caught.value)
            assert isinstance(caught.value, Missing) == sentence.endswith("missing")
        assert folder.read("deep/er/file", 100) == b"content", "an error leaves the folder usable"


def test_a_device_is_not_opened() -> None:
    with Folder(Path("/dev")) as folder, pytest.raises(Unfit, match="zero is a device, not a regular file"):
        folder.read("zero", 100)


def test_files_are_read_whole_or_not_at_all(place: Path) -> None:
    with Folder(place) as folder:
        assert folder.sha256("deep/er/file") == sha256_file(place / "deep" / "er" / "file")
        assert (folder.size("top"), folder.read("top", 4)) == (4, b"more")
        with pytest.raises(Unfit, match="top is larger than 0 MiB"):
            folder.read("top", 3)
        assert folder.holds("deep") and folder.holds("top") and not folder.holds("x")
        assert sorted(folder.walk()) == [("deep", True), ("deep/er", True), ("deep/er/file", False), ("top", False)]


def test_whoever_names_the_folder_may_name_a_link(place: Path) -> None:
    (place.parent / "link").symlink_to(place)
    with Folder(place.parent / "link") as folder:
        assert folder.read("top", 4) == b"more"


@pytest.mark.parametrize("name", ["nothing", "secret", "x" * 300])
def test_what_is_no_folder_is_said(name: str, place: Path) -> None:
    with pytest.raises(Unfit, match=r"is missing|cannot be opened"):
        Folder(place.parent / name)


def test_a_way_that_is_swapped_for_a_link_is_not_taken(place: Path) -> None:
    """The folders that lead to a file stay open: what is put in their place later leads nowhere."""
    (place.parent / "er").mkdir()
    (place.parent / "er" / "file").write_bytes(b"secret")
    with Folder(place) as folder:
        assert folder.read("deep/er/file", 100) == b"content"
        (place / "deep").rename(place / "old")
        (place / "deep").symlink_to(place.parent)
        assert folder.read("deep/er/file", 100) == b"content"
        assert folder.read("top", 100) == b"more"
        with pytest.raises(Unfit, match="lies behind the link deep"):
            folder.read("deep/er/file", 100)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_open(place: Path) -> None:
    os.mkfifo(place / "pipe")
    before = descriptors()
    for _ in range(3):
        with Folder(place) as folder:
            folder.sha256("deep/er/file")
            next(folder.walk())
            for name in ("pipe", "deep", "deep/x/y"):
                with pytest.raises(Unfit, match=r"pipe|folder|missing"):
                    folder.read(name, 100)
    assert descriptors() == before


def test_a_walk_ends_where_no_folder_of_ours_does(tmp_path: Path) -> None:
    (tmp_path / "/".join(["d"] * (MAX_DEPTH + 3))).mkdir(parents=True)
    (tmp_path / "link").symlink_to("d")
    seen: list[tuple[str, bool]] = []
    with Folder(tmp_path) as folder, pytest.raises(Unfit, match=f"lies more than {MAX_DEPTH} folders deep"):
        seen.extend(folder.walk())
    with Folder(tmp_path) as folder:
        seen = [entry for entry, _ in zip(folder.walk(), range(MAX_DEPTH), strict=False)]
    assert ("link", True) not in seen, "a link to a folder is none"


def test_what_may_not_be_read_is_said(place: Path) -> None:
    (place / "shut").mkdir()
    for path in (place / "top", place / "shut"):
        path.chmod(0)
    code = (
        "import os, sys; from pathlib import Path; from meca.release.foreign import Folder, Unfit\n"
        "os.chdir(sys.argv[1])\n"  # the folders above may be shut, too
        "if os.getuid() == 0: os.setuid(65534)\n"
        "with Folder(Path('.')) as folder:\n"
        "    for way in (lambda: folder.read('top', 9), lambda: list(folder.walk()), lambda: folder.sha256('shut/x')):\n"
        "        try: print(way())\n"
        "        except Unfit as problem: print(problem)\n"
    )
    place.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [f"{name} cannot be opened (Permission denied)." for name in ("top", "shut", "shut/x")], done.stderr
    (place / "shut").chmod(0o755)


TREES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), TREES, max_size=5), st.sampled_from([None, 2]))
def test_what_is_written_as_json_comes_back(tree: dict[str, Any], indent: int | None) -> None:
    assert parse_object(canonical_json(tree, indent).encode(), "x") == tree


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "x is not JSON as meca writes it: Expecting value"),
        (b"\xef\xbb\xbf{}", "x is not JSON as meca writes it"),
        (b'{"a": "\xff"}', "x is not JSON as meca writes it: 'utf-8' codec"),
        (b"[]", "x holds no object"),
        (b'{"a": 1, "a": 1}', "it has a key twice"),
        (b'{"b": {"a": 1, "a": 2}}', "it has a key twice"),
        (b'{"a": NaN}', "it holds NaN, which is no number"),
        (b'{"a": -Infinity}', "it holds -Infinity"),
        (b'{"a": 1e999}', "it holds a number that is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (nested(MAX_LEVELS + 1), f"it is nested more than {MAX_LEVELS} levels deep"),
        (nested(1500), f"it is nested more than {MAX_LEVELS} levels deep"),
        (b'{"a": ' + b"[" * 10_000, f"it is nested more than {MAX_LEVELS} levels deep"),
        (b'{"a": [' + b"[]," * FREE_VALUES + b"[]]}", "it holds more values than there can be in"),
        (b'{"a": [' + b"0," * (2 * FREE_VALUES) + b"0]}", "it holds more values than there can be in"),
        (b'{"a": "' + b"\\" * 300_001 + b"," * 300_000, "is not JSON as meca writes it"),
    ],
)
def test_json_that_is_not_what_it_looks_like_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(Unfit) as caught:
        parse_object(data, "x")
    assert sentence in str(caught.value)


def test_a_file_that_is_allowed_is_not_refused_for_what_its_texts_hold() -> None:
    assert parse_object(nested(MAX_LEVELS), "x")
    text = '[{,\\"' * FREE_VALUES
    assert parse_object(json.dumps({"a": text, "b\\": text + "\\"}).encode(), "x")["a"] == text
    many = {f"{at:020}": "0" * 64 for at in range(70_000)}
    assert parse_object(json.dumps(many).encode(), "x", each=64) == many


def test_a_json_file_is_opened_as_all_others_are(place: Path) -> None:
    os.mkfifo(place / "x.json")
    with pytest.raises(Unfit, match=r"x\.json is a named pipe"):
        read_object(place / "x.json")
    (place / "y.json").write_text('{"a": 1}')
    assert read_object(place / "y.json") == {"a": 1}
