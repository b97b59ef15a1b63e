"""What a .dvc file tracks, out of repositories that somebody made for us: nothing is written elsewhere, and nothing is believed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows import cli
from flows.cli import options
from meca.errors import InputRefused, MecaError, UsageError
from tasks import environment
from tasks.dvc import objects, tracked
from tasks.dvc.remote import RemoteUnavailable
from tasks.dvc.tracked import copy
from tests.proxy import Fault, proxy
from tests.tasks.test_s3 import BUSY, tree

pytestmark = [pytest.mark.platform, pytest.mark.filterwarnings("default")]

FILES = {"cat/a.png": b"a" * 3000, "cat/ü b.png": b"b", "dog/a.png": b"a" * 3000, "dog/c": b""}


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def keep(place: Path, data: bytes, name: str = "") -> str:
    """Put an object into a cache or a remote and return its MD5."""
    digest = md5(data)
    path = place / "files" / "md5" / digest[:2] / (digest[2:] + name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest


def listing(files: Mapping[str, bytes]) -> bytes:
    return json.dumps([{"md5": md5(data), "relpath": name} for name, data in sorted(files.items())]).encode()


def repository(folder: Path, config: str = "", cache: str = ".dvc/cache") -> Path:
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    (folder / ".dvc" / "config").write_text(f"[core]\n    no_scm = True\n{config}")
    return folder / cache


def add(file: Path, place: Path, content: bytes | Mapping[str, bytes] = FILES, lines: bytes | None = None, **changes: Any) -> Path:
    """Write what `dvc add` writes, with the objects in a cache or remote; `changes` replace or (None) drop fields of the out."""
    name = file.name.removesuffix(".dvc")
    if isinstance(content, bytes):
        out: dict[str, Any] = {"md5": keep(place, content), "size": len(content), "hash": "md5", "path": name}
    else:
        for data in content.values():
            keep(place, data)
        digest = keep(place, listing(content) if lines is None else lines, ".dir")
        out = {"md5": f"{digest}.dir", "size": sum(map(len, content.values())), "nfiles": len(content), "hash": "md5", "path": name}
    fields = {key: value for key, value in (out | changes).items() if value is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"outs": [fields]}, sort_keys=False, allow_unicode=True))
    return file


def all_of(folder: Path) -> dict[str, Any]:
    """Return all that lies below a folder, links and pipes as what they are."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.fixture
def supplied(tmp_path: Path) -> Iterator[Path]:
    """A folder from somebody else; whatever is done with it, it stays as it is, and so does what lies around it."""
    folder = tmp_path / "supplied"
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    (tmp_path / "home" / "notes").write_text("mine")
    yield folder
    assert tree(tmp_path / "home") == {"notes": b"mine"}
    assert {path.name for path in tmp_path.iterdir()} <= {"supplied", "home", "run", "remote"}


def test_what_dvc_adds_and_pushes_comes_back_from_every_place(tmp_path: Path) -> None:
    root, by_hand = tmp_path / "repo", tmp_path / "hand"
    for name, data in FILES.items():
        (path := root / "sets" / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "sets" / "one.zip").write_bytes(b"PK")
    environment.prepare()
    from dvc.repo import Repo

    with Repo.init(str(root), no_scm=True) as repo, repo.config.edit("repo") as config:
        config["core"]["remote"], config["remote"]["Store"] = "Store", {"url": str(tmp_path / "remote")}
    with Repo(str(root)) as repo:
        repo.add([str(root / "sets" / "photos"), str(root / "sets" / "one.zip")])
        repo.push()
    # The files of the other tests are those of DVC.
    cache = repository(by_hand)
    for name, content in (("photos", FILES), ("one.zip", b"PK")):
        add(by_hand / f"{name}.dvc", cache, content)
        assert (by_hand / f"{name}.dvc").read_text() == (root / "sets" / f"{name}.dvc").read_text()
    assert tree(cache / "files") == tree(root / ".dvc" / "cache" / "files") == tree(tmp_path / "remote" / "files")
    before = all_of(root)
    assert copy(root / "sets" / "photos.dvc", tmp_path / "run" / "source") == root / "sets" / "photos"
    assert copy(root / "sets" / "one.zip.dvc", tmp_path / "run" / "source") == root / "sets" / "one.zip"
    assert all_of(root) == before and not (tmp_path / "run").exists()
    shutil.rmtree(root / "sets" / "photos")
    (root / "sets" / "one.zip").unlink()
    for _ in ("the cache", "the remote"):
        assert copy(root / "sets" / "one.zip.dvc", tmp_path / "run" / "source").read_bytes() == b"PK"
        found = copy(root / "sets" / "photos.dvc", tmp_path / "run" / "source")
        assert found == tmp_path / "run" / "source" / "photos" and tree(found) == FILES
        assert {path.name for path in found.parent.parent.iterdir()} == {"source", "source.fetching.lock"}
        assert {path.name for path in found.parent.iterdir()} == {"photos"}
        shutil.rmtree(tmp_path / "run")
        shutil.rmtree(root / ".dvc" / "cache", ignore_errors=True)


def test_a_copy_that_is_there_is_not_made_again_and_what_is_wrong_in_it_is(supplied: Path, tmp_path: Path) -> None:
    file, source = add(supplied / "photos.dvc", repository(supplied)), tmp_path / "run" / "source"
    found = copy(file, source)
    before = all_of(source)
    assert copy(file, source) == found and all_of(source) == before
    for change in ("other", "more", "less", "link"):
        place = found / "cat" / "a.png"
        if change == "more":
            (found / "new").write_bytes(b"")
        else:
            place.unlink()
            if change == "other":
                place.write_bytes(b"x" * 3000)
            elif change == "link":
                place.symlink_to(found / "dog" / "a.png")
        assert tree(copy(file, source)) == FILES and not place.is_symlink()


def test_data_beside_the_file_are_read_where_they_are_only_if_they_are_what_it_says(supplied: Path, tmp_path: Path) -> None:
    cache = repository(supplied)
    file, source = add(supplied / "photos.dvc", cache), tmp_path / "run" / "source"
    beside = supplied / "photos"
    shutil.copytree(copy(file, source), beside)
    shutil.rmtree(source)
    assert copy(file, source) == beside and not source.exists()
    (beside / "cat" / "mine.png").write_bytes(b"mine")
    before = all_of(supplied)
    assert tree(copy(file, source)) == FILES and all_of(supplied) == before
    shutil.rmtree(beside)
    for name, data in FILES.items():  # what `cache.type symlink` leaves
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        (beside / name).symlink_to(cache / "files" / "md5" / md5(data)[:2] / md5(data)[2:])
    found = copy(file, source)
    assert found == source / "photos" and tree(found) == FILES and not any(path.is_symlink() for path in found.rglob("*"))
    shutil.rmtree(beside)
    beside.symlink_to(found)  # the very same files, but where the link leads is not for it to say
    assert copy(file, source) == found


REFUSED: dict[str, tuple[dict[str, Any] | str | bytes, str]] = {
    "path through a link": ({"path": "link/authorized_keys"}, "'link/authorized_keys', which is not its own name"),
    "path above": ({"path": "../photos"}, "not its own name"),
    "absolute path": ({"path": "/etc/passwd"}, "not its own name"),
    "path in a folder": ({"path": "sub/photos"}, "not its own name"),
    "path in this folder": ({"path": "./photos"}, "not its own name"),
    "address": ({"path": "s3://bucket/photos"}, "not its own name"),
    "path of a remote": ({"path": "remote://store/photos"}, "not its own name"),
    "number for a path": ({"path": 7}, "not its own name"),
    "no path": ({"path": None}, "not its own name"),
    "remote": ({"remote": "other"}, "'remote' in `outs`, which is not obeyed"),
    "persist": ({"persist": True}, "'persist'"),
    "cache": ({"cache": False}, "'cache'"),
    "cloud": ({"cloud": {"store": {"version_id": "1"}}}, "'cloud'"),
    "files": ({"files": [{"relpath": "../x", "md5": "0" * 32}]}, "'files'"),
    "fs_config": ({"fs_config": {"configpath": "/x"}}, "'fs_config'"),
    "etag": ({"etag": "0" * 32, "md5": None}, "'etag'"),
    "version": ({"version_id": "1"}, "'version_id'"),
    "sha256": ({"hash": "sha256", "sha256": "0" * 64, "md5": None}, "'sha256'"),
    "other hash": ({"hash": "etag"}, "by 'etag', and not by md5"),
    "hash of DVC 2": ({"hash": None}, "no `hash: md5`, as those of DVC 1 and 2"),
    "no md5": ({"md5": None}, "the md5 'None', which is none"),
    "short md5": ({"md5": "abc"}, "the md5 'abc', which is none"),
    "md5 that leads out": ({"md5": "../../../../../etc/passwd"}, "which is none"),
    "md5 as a number": ({"md5": 12345678901234567890123456789012}, "which is none"),
    "negative size": ({"size": -1}, "the size '-1', which is none"),
    "size true": ({"size": True}, "the size 'True', which is none"),
    "nfiles as text": ({"nfiles": "4"}, "the nfiles '4', which is none"),
    "wdir": ("wdir: ..\nouts:\n- {md5: %s, hash: md5, path: photos}\n", "the key 'wdir', which is not obeyed"),
    "deps": ("deps:\n- path: https://example.org/x\nouts:\n- {md5: %s, hash: md5, path: photos}\n", "'deps'"),
    "import": ("frozen: true\ndeps:\n- path: x\n  repo: {url: https://x}\nouts:\n- {md5: %s, hash: md5, path: photos}\n", "'deps'"),
    "command": ("cmd: touch ../home/owned\nouts:\n- {md5: %s, hash: md5, path: photos}\n", "'cmd'"),
    "two outs": ("outs:\n- {md5: %s, hash: md5, path: photos}\n- {md5: %s, hash: md5, path: more}\n", "has 2 outs"),
    "no outs": ("outs: []\n", "has 0 outs"),
    "outs as a mapping": ("outs: {}\n", "no list `outs`"),
    "outs of text": ("outs: [photos]\n", "no list `outs`"),
    "a pipeline": ("stages: {x: {cmd: x}}\n", "no list `outs`"),
    "a list": ("- 1\n", "no list `outs`"),
    "empty": ("", "no list `outs`"),
    "a key twice": ("outs:\n- {md5: %s, hash: md5, path: photos, path: photos}\n", "'path' stands twice"),
    "a reference": ("outs:\n- &a {md5: %s, hash: md5, path: photos}\nmeta: *a\n", "refers to another value"),
    "a tag": ("outs: !!python/object/apply:os.system ['touch ../home/owned']\n", "could not determine a constructor"),
    "deep": ("meta: " + "[" * 60 + "\n", "levels inside each other"),
    "no YAML": ("outs: [\n", "is not YAML"),
    "not UTF-8": (b"outs: \xff\n", "is not UTF-8"),
    "large": (b"#" * (tracked.MAX_FILE + 1), "larger than 64 KiB"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_says_more_than_one_own_name_and_its_md5_is_refused_before_anything_is_done(case: str, supplied: Path, tmp_path: Path) -> None:
    content, said = REFUSED[case]
    cache = repository(supplied)
    (supplied / "link").symlink_to(tmp_path / "home" / ".ssh")
    file = add(supplied / "photos.dvc", cache, **(content if isinstance(content, dict) else {}))
    if not isinstance(content, dict):
        file.write_bytes(content if isinstance(content, bytes) else content.replace("%s", f"{md5(listing(FILES))}.dir").encode())
    before = all_of(supplied)
    with pytest.raises(InputRefused) as refusal:
        copy(file, tmp_path / "run" / "source")
    assert said in str(refusal.value) and str(refusal.value).startswith("photos.dvc") and len(str(refusal.value)) < 400
    assert all_of(supplied) == before and not (tmp_path / "run").exists()


def test_words_for_people_are_no_reason_to_refuse(supplied: Path, tmp_path: Path) -> None:
    words = {"desc": "ours", "type": "dataset", "labels": ["x"], "meta": {"a": [1]}, "push": False, "isexec": True}
    file = add(supplied / "photos.dvc", repository(supplied), size=None, nfiles=None, **words)
    file.write_text(f"{file.read_text()}frozen: true\ndesc: ours\nmeta: {{x: 1}}\n")
    assert tree(copy(file, tmp_path / "run" / "source")) == FILES


@pytest.mark.parametrize("name", [".dvc", "..dvc", "...dvc", "a\\b.dvc", "c:x.dvc"])
def test_a_file_whose_own_name_is_none_is_refused(name: str, supplied: Path, tmp_path: Path) -> None:
    cache = repository(supplied / "r")
    file = add(supplied / "r" / "sub" / name, cache, b"x")
    with pytest.raises(InputRefused, match="not its own name"):
        copy(file, tmp_path / "run" / "source")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_a_dvc_file_that_is_no_regular_file_is_refused(kind: str, supplied: Path, tmp_path: Path) -> None:
    file = supplied / "photos.dvc"
    other = add(supplied / "other" / "photos.dvc", repository(supplied))
    {
        "link": lambda: file.symlink_to(other),
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "device": lambda: file.symlink_to("/dev/zero"),
    }[kind]()
    with pytest.raises(InputRefused, match=r"is a link|is no regular file"):
        copy(file, tmp_path / "run" / "source")


A, B = md5(b"a"), md5(b"b")
LISTS = {
    "above": (b'[{"md5": "%a", "relpath": "../home/x"}]', "leaves the folder"),
    "far above": (b'[{"md5": "%a", "relpath": "cat/../../home/x"}]', "leaves the folder"),
    "absolute": (b'[{"md5": "%a", "relpath": "/tmp/x"}]', "is absolute"),
    "backslash": (b'[{"md5": "%a", "relpath": "cat\\\\x"}]', "holds a backslash"),
    "NUL": (b'[{"md5": "%a", "relpath": "x\\u0000"}]', "holds a NUL"),
    "line end": (b'[{"md5": "%a", "relpath": "x\\n"}]', "control characters"),
    "half a character": (b'[{"md5": "%a", "relpath": "\\ud800"}]', "holds half a character"),
    "drive": (b'[{"md5": "%a", "relpath": "C:x"}]', "begins with a drive"),
    "dot": (b'[{"md5": "%a", "relpath": "./x"}]', "not written as a path is"),
    "two slashes": (b'[{"md5": "%a", "relpath": "x//y"}]', "not written as a path is"),
    "a slash at the end": (b'[{"md5": "%a", "relpath": "x/"}]', "not written as a path is"),
    "the folder itself": (b'[{"md5": "%a", "relpath": "."}]', "names no file"),
    "long": (b'[{"md5": "%a", "relpath": "' + b"x" * 300 + b'"}]', "too long"),
    "deep": (b'[{"md5": "%a", "relpath": "' + b"x/" * 40 + b'x"}]', "more than 32 folders"),
    "twice": (b'[{"md5": "%a", "relpath": "x"}, {"md5": "%b", "relpath": "x"}]', "'x' twice"),
    "file and folder": (b'[{"md5": "%a", "relpath": "x"}, {"md5": "%b", "relpath": "x/y"}]', "'x' as a file and as a folder"),
    "folder in a folder": (b'[{"md5": "%a.dir", "relpath": "x"}]', "damaged after 0"),
    "md5 that leads out": (b'[{"md5": "../../x", "relpath": "x"}]', "damaged after 0"),
    "md5 in capitals": (b'[{"md5": "%A", "relpath": "x"}]', "damaged after 0"),
    "another hash": (b'[{"sha256": "%a", "relpath": "x"}]', "damaged after 0"),
    "more fields": (b'[{"md5": "%a", "relpath": "x", "version_id": "1"}]', "damaged after 0"),
    "a key twice": (b'[{"md5": "%a", "md5": "%b", "relpath": "x"}]', "damaged after 0"),
    "a number": (b'[{"md5": "%a", "relpath": 1}]', "damaged after 0"),
    "empty name": (b'[{"md5": "%a", "relpath": ""}]', "damaged after 0"),
    "too much at the end": (b'[{"md5": "%a", "relpath": "x"}]]', "damaged after 1"),
    "a comma at the end": (b'[{"md5": "%a", "relpath": "x"}, ]', "damaged after 1"),
    "cut": (b'[{"md5": "%a", "relpath": "x"}', "damaged after 1"),
    "bytes that are no ASCII": (b'[{"md5": "%a", "relpath": "\xc3\xa9"}]', "damaged after 0"),
    "a mapping": (b'{"x": "%a"}', "damaged after 0"),
    "nothing": (b"", "damaged after 0"),
    "brackets": (b"[" * 100_000, "damaged after 0"),
    "a name without end": (b'[{"md5": "%a", "relpath": "' + b"x" * 100_000, "damaged after 0"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that_dvc_would_not_write_is_refused_and_nothing_is_copied(case: str, supplied: Path, tmp_path: Path) -> None:
    lines, said = LISTS[case]
    lines = lines.replace(b"%a", A.encode()).replace(b"%b", B.encode()).replace(b"%A", A.upper().encode())
    cache = repository(supplied)
    file = add(supplied / "photos.dvc", cache, {"1": b"a", "2": b"b"}, lines, size=None, nfiles=None)
    with pytest.raises(InputRefused) as refusal:
        copy(file, tmp_path / "run" / "source")
    assert said in str(refusal.value) and str(refusal.value).startswith("The list of files that photos.dvc names")
    assert not (tmp_path / "run" / "source").exists() and not any(path.is_dir() for path in (tmp_path / "run" / "source.pulling" / "data").iterdir())


@given(st.lists(st.text(st.characters(codec=None), min_size=1, max_size=12) | st.sampled_from(["..", "a", "a/b", "./a", "a/..", "/a"]), max_size=5))
def test_every_list_that_is_taken_names_files_inside_and_each_once(names: list[str]) -> None:
    content = json.dumps([{"md5": A, "relpath": name} for name in names]).encode()
    try:
        found = tracked._listed(content, "x.dvc")
    except InputRefused:
        return
    assert list(found) == names
    for name in names:
        assert os.path.normpath(name) == name and not name.startswith(("/", "..")) and "\\" not in name and "\0" not in name


def far(config: str, tmp_path: Path) -> str:
    return f"    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'remote'}\n{config}"


def test_an_object_that_is_another_is_never_taken(supplied: Path, tmp_path: Path) -> None:
    cache, source = repository(supplied, far("", tmp_path)), tmp_path / "run" / "source"
    file = add(supplied / "photos.dvc", cache)
    add(tmp_path / "remote" / "photos.dvc", tmp_path / "remote")
    victim = Path("files", "md5", md5(b"b")[:2], md5(b"b")[2:])
    (cache / victim).write_bytes(b"x")
    assert tree(copy(file, source)) == FILES  # the remote has the right one
    shutil.rmtree(source)
    (tmp_path / "remote" / victim).write_bytes(b"y")
    with pytest.raises(
        InputRefused,
        match=rf"{md5(b'b')[:12]} \(cat/ü b.png\) .*cache it has the MD5 {md5(b'x')[:12]}; in the remote 'store' it has the MD5 {md5(b'y')[:12]}",
    ):
        copy(file, source)
    (cache / victim).unlink()
    with pytest.raises(InputRefused, match=r"in the remote 'store' it has the MD5"):
        copy(file, source)
    (tmp_path / "remote" / victim).unlink()
    with pytest.raises(MecaError, match=r"looked for in the cache and the remote 'store', and is not there\. Run `dvc push`") as missing:
        copy(file, source)
    assert not isinstance(missing.value, InputRefused) and not source.exists()
    shutil.rmtree(tmp_path / "run")
    keep(cache, b"b")
    for place in (cache, tmp_path / "remote"):  # the list itself
        for path in place.rglob("*.dir"):
            path.write_bytes(listing({**FILES, "cat/more": b"a"}))
    with pytest.raises(InputRefused, match=r"the list of the files of photos\) is not what it should be"):
        copy(file, source)
    assert not source.exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "link to a device", "folder behind a link", "cache behind a link"])
def test_an_object_that_is_no_file_of_its_own_is_not_read(kind: str, supplied: Path, tmp_path: Path) -> None:
    cache = repository(supplied)
    file = add(supplied / "one.zip.dvc", cache, b"mine")
    victim = cache / "files" / "md5" / md5(b"mine")[:2] / md5(b"mine")[2:]
    outside = tmp_path / "home" / "notes"  # holds the very bytes
    victim.unlink()
    if kind == "pipe":
        os.mkfifo(victim)
    elif kind == "folder":
        victim.mkdir()
    elif kind in ("link", "link to a device"):
        victim.symlink_to("/dev/zero" if kind == "link to a device" else outside)
    else:
        keep(tmp_path / "run" / "other", b"mine")
        link = cache if kind == "cache behind a link" else victim.parent
        shutil.rmtree(link)
        link.symlink_to(tmp_path / "run" / "other" / ("" if link == cache else victim.parent.relative_to(cache)))
    with pytest.raises(MecaError, match=r"it is a link|is no regular file|lies behind a link that leads out|lies outside of it and is not read"):
        copy(file, tmp_path / "run" / "source")


def test_what_is_larger_or_more_than_the_file_says_is_refused_before_it_fills_the_disk(
    supplied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, source = repository(supplied), tmp_path / "run" / "source"
    file = add(supplied / "one.zip.dvc", cache, b"x" * 100)
    with open(cache / "files" / "md5" / md5(b"x" * 100)[:2] / md5(b"x" * 100)[2:], "wb") as sparse:
        sparse.truncate(2**43)
    with pytest.raises(InputRefused, match=r"in the cache it is larger than it may be"):
        copy(file, source)
    assert not any((source.with_name("source.pulling") / "objects").iterdir())
    for changes, said in (({"size": 6002}, "says 6002 bytes"), ({"nfiles": 5}, "says 5 files"), ({"size": 6000}, "larger|says 6000 bytes")):
        with pytest.raises(InputRefused, match=said):
            copy(add(supplied / "photos.dvc", cache, **changes), source)
    with pytest.raises(MecaError, match="needs about"):
        copy(add(supplied / "photos.dvc", cache, size=2**60), source)
    # One object under many names costs nothing here, and all the more where it is read.
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=tracked.SPARE + 10_000))
    names = {f"{at:03d}": b"z" * 1000 for at in range(11)}
    with pytest.raises(InputRefused, match="more than the disk has room for"):
        copy(add(supplied / "photos.dvc", cache, names, size=None), source)
    del names["010"]
    assert tree(copy(add(supplied / "photos.dvc", cache, names, size=None), source)) == names


CONFIGS: dict[str, tuple[str | bytes, type[MecaError], str]] = {
    "ssh": ("    remote = store\n['remote \"store\"']\n    url = ssh://host/x\n", MecaError, "names ssh://"),
    "a command for a token": (
        "    remote = store\n['remote \"store\"']\n    url = webdavs://host/x\n    bearer_token_command = touch ../home/owned\n", MecaError, "names webdavs://",
    ),
    "another remote": ("    remote = a\n['remote \"a\"']\n    url = remote://b/x\n['remote \"b\"']\n    url = /\n", MecaError, "names remote://"),
    "versions": ("    remote = store\n['remote \"store\"']\n    url = s3://b/x\n    version_aware = true\n", MecaError, "version_aware"),
    "worktree": ("    remote = store\n['remote \"store\"']\n    url = s3://b/x\n    worktree = Yes\n", MecaError, "worktree"),
    "a secret in the address": ("    remote = store\n['remote \"store\"']\n    url = https://a:geheim@b/x\n", MecaError, "more than host and path"),
    "a query": ("    remote = store\n['remote \"store\"']\n    url = http://host/x?delete=\n", MecaError, "more than host and path"),
    "no address": ("    remote = store\n['remote \"store\"']\n    url = http://[x/y\n", MecaError, "its address is none"),
    "no host": ("    remote = store\n['remote \"store\"']\n    url = s3:///x\n", MecaError, "more than host and path"),
    "no endpoint": (
        "    remote = store\n['remote \"store\"']\n    url = s3://b/x\n    endpointurl = a b\n", MecaError, "The remote 'store' cannot be used",
    ),
    "another login": (
        "    remote = store\n['remote \"store\"']\n    url = http://a/x\n    auth = digest\n", MecaError, "The remote 'store' cannot be used",
    ),
    "no such profile": ("    remote = store\n['remote \"store\"']\n    url = s3://b/x\n    profile = nobody\n", MecaError, "dvc pull failed"),
    "nobody's home": ("    remote = store\n['remote \"store\"']\n    url = ~nobody-of-that-name/x\n", MecaError, "and is not there"),
    "NUL": ("    remote = a\0b\n", InputRefused, "or a NUL"),
    "no url": ("    remote = store\n['remote \"store\"']\n    profile = x\n", MecaError, "the remote 'store' has no url there"),
    "no remote": ("", MecaError, "no remote is configured there"),
    "cache elsewhere": ("[cache]\n    dir = ../../home\n", MecaError, "lies outside of it and is not read"),
    "cache at home": ("[cache]\n    dir = ~/x\n", MecaError, "lies outside of it and is not read"),
    "a section twice": ("[core]\n", InputRefused, "is no configuration of DVC"),
    "no INI": ("x\n", InputRefused, "is no configuration of DVC"),
    "a long line": ("x" + " " * 60_000, InputRefused, "more than 2048 characters"),
    "not UTF-8": (b"[core]\n\xff", InputRefused, "is no configuration of DVC"),
    "large": (b"#" * 70_000, InputRefused, "at most 64 KiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["config", "config.local"])
@pytest.mark.parametrize("case", CONFIGS)
def test_of_a_configuration_only_addresses_are_taken(case: str, name: str, supplied: Path, tmp_path: Path) -> None:
    text, kind, said = CONFIGS[case]
    repository(supplied)
    content = text if isinstance(text, bytes) else f"[core]\n    analytics = false\n{text}".encode()
    (supplied / ".dvc" / name).write_bytes(content)
    file = add(supplied / "one.zip.dvc", tmp_path / "home" / "nowhere", b"x")
    shutil.rmtree(tmp_path / "home" / "nowhere")
    with pytest.raises(kind) as refusal:
        copy(file, tmp_path / "run" / "source")
    assert said in str(refusal.value) and "geheim" not in str(refusal.value)
    assert isinstance(refusal.value, InputRefused) == (kind is InputRefused)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder behind a link"])
def test_a_configuration_that_is_no_file_is_refused(kind: str, supplied: Path, tmp_path: Path) -> None:
    file = add(supplied / "one.zip.dvc", repository(supplied), b"x")
    config = supplied / ".dvc" / "config"
    if kind == "folder behind a link":
        (supplied / ".dvc").rename(supplied / "other")
        (supplied / ".dvc").symlink_to("other")
    else:
        config.rename(supplied / "other")
        config.symlink_to("../other") if kind == "link" else os.mkfifo(config)
    with pytest.raises(InputRefused, match=r"\.dvc is a link|config to be a file of at most"):
        copy(file, tmp_path / "run" / "source")


def test_a_cache_that_the_user_has_set_is_read_and_a_remote_of_the_user_is_not_mixed_with_that_of_the_repository(
    supplied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "run" / "own"
    own.mkdir(parents=True)
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(own))
    repository(supplied)
    file, source = add(supplied / "one.zip.dvc", tmp_path / "remote", b"x"), tmp_path / "run" / "source"
    for text in (f"[cache]\n    dir = {tmp_path / 'remote'}\n", f"[core]\n    remote = Mine\n['remote \"Mine\"']\n    url = {tmp_path / 'remote'}\n"):
        (own / "config").write_text(text)
        assert copy(file, source).read_bytes() == b"x"
        shutil.rmtree(source)
    (own / "config").write_text("['remote \"store\"']\n    url = s3://mine/x\n    secret_access_key = geheim\n")
    (supplied / ".dvc" / "config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = http://127.0.0.1:1/x\n")
    assert objects._address({"url": "http://127.0.0.1:1/x"}) == {"url": "http://127.0.0.1:1/x"}
    with pytest.raises(RemoteUnavailable, match="could not be reached") as away:
        copy(file, source)
    assert "geheim" not in str(away.value)


def test_without_a_repository_only_what_the_user_names_is_asked(supplied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, source = add(supplied / "photos.dvc", tmp_path / "remote"), tmp_path / "run" / "source"
    with pytest.raises(MecaError, match=r"looked for in no place, and is not there; photos\.dvc lies in no DVC repository\."):
        copy(file, source)
    monkeypatch.setenv("MECA_REMOTE_URL", str(tmp_path / "remote"))
    assert tree(copy(file, source)) == FILES


@pytest.mark.parametrize("which", ["run", "source", "source.pulling", "source.pulling/objects", "source.pulling/data", "source.fetching.lock"])
def test_a_link_where_the_copy_belongs_is_refused_and_not_followed(which: str, supplied: Path, tmp_path: Path) -> None:
    file, run = add(supplied / "photos.dvc", repository(supplied)), tmp_path / "run"
    link = run if which == "run" else run / which
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "home" / "notes" if which.endswith("lock") else tmp_path / "home" / ".ssh")
    with pytest.raises(UsageError, match=r"of meca, found something else; remove it"):
        copy(file, run / "source")
    assert tree(tmp_path / "home") == {"notes": b"mine"}


def test_what_was_planted_among_the_objects_of_an_interrupted_copy_is_not_taken(supplied: Path, tmp_path: Path) -> None:
    file, objects = add(supplied / "photos.dvc", repository(supplied)), tmp_path / "run" / "source.pulling" / "objects"
    objects.mkdir(parents=True)
    (objects / md5(b"b")).write_bytes(b"x")
    (objects / f"{md5(b'b')}.part").symlink_to(tmp_path / "home" / "notes")
    (objects / f"{md5(listing(FILES))}.dir").mkdir()
    assert tree(copy(file, tmp_path / "run" / "source")) == FILES


def test_an_interrupted_copy_goes_on_where_it_stopped(supplied: Path, tmp_path: Path) -> None:
    cache, source = repository(supplied), tmp_path / "run" / "source"
    file = add(supplied / "photos.dvc", cache)
    victim = cache / "files" / "md5" / md5(b"b")[:2] / md5(b"b")[2:]
    victim.unlink()
    with pytest.raises(MecaError, match="is not there"):
        copy(file, source)
    kept = {path.name for path in (source.with_name("source.pulling") / "objects").iterdir()}
    assert f"{md5(listing(FILES))}.dir" in kept
    shutil.rmtree(cache)
    keep(cache, b"b")
    for digest in {md5(data) for data in FILES.values()} - kept - {md5(b"b")}:
        keep(cache, next(data for data in FILES.values() if md5(data) == digest))
    assert tree(copy(file, source)) == FILES


@pytest.fixture
def bucket(supplied: Path, tmp_path: Path, client: Any, port: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return what makes a supplied repository whose remote is a bucket; the argument is more of its configuration."""

    def make(more: str) -> Path:
        repository(
            supplied, f"    remote = store\n['remote \"store\"']\n    url = s3://bucket/sets\n    endpointurl = http://127.0.0.1:{port}\n{more}"
        )
        file = add(supplied / "photos.dvc", tmp_path / "remote")
        for name, data in tree(tmp_path / "remote").items():
            client.put_object(Bucket="bucket", Key=f"sets/{name}", Body=data)
        shutil.rmtree(tmp_path / "remote")
        return file

    monkeypatch.delenv("AWS_ENDPOINT_URL")
    return make


def test_from_a_bucket_nothing_but_the_objects_is_taken(bucket: Any, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = tmp_path / "supplied" / "aws"
    file = bucket(f"    configpath = {evil}\n    credentialpath = {evil}\n    ssl_verify = false\n")
    evil.write_text(f"[default]\ncredential_process = touch {tmp_path / 'home' / 'owned'}\n")
    assert tree(copy(file, tmp_path / "run" / "source")) == FILES
    assert not {"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} & set(os.environ)
    shutil.rmtree(tmp_path / "run")
    digest = md5(b"b")
    client.put_object(Bucket="bucket", Key=f"sets/files/md5/{digest[:2]}/{digest[2:]}", Body=b"x" * 3000)
    with pytest.raises(InputRefused, match=r"in the remote 'store' it has the MD5"):
        copy(file, tmp_path / "run" / "source")
    client.delete_object(Bucket="bucket", Key=f"sets/files/md5/{digest[:2]}/{digest[2:]}")
    with pytest.raises(MecaError, match="and is not there"):
        copy(file, tmp_path / "run" / "source")


def test_a_bucket_that_cannot_be_reached_is_worth_another_try(bucket: Any, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bucket("")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with proxy(("127.0.0.1", port)) as between:
        config = supplied_config(file, port, between.port)
        between.faults = [Fault(answer=BUSY)] * 1000
        with pytest.raises(RemoteUnavailable, match="could not be reached"):
            copy(file, tmp_path / "run" / "source")
    (file.parent / ".dvc" / "config").write_text(config)
    assert tree(copy(file, tmp_path / "run" / "source")) == FILES


def supplied_config(file: Path, old: int, new: int) -> str:
    """Let a repository name another port, and return the configuration that it had."""
    config = file.parent / ".dvc" / "config"
    text = config.read_text()
    config.write_text(text.replace(f":{old}", f":{new}"))
    return text


def test_clean_takes_a_dvc_file_and_puts_no_key_into_a_home(
    supplied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = repository(supplied)
    (supplied / "link").symlink_to("../home/.ssh")
    file = add(supplied / "photos.dvc", cache, b"ssh-ed25519 KEY\n", path="link/authorized_keys")
    monkeypatch.chdir(supplied)
    assert cli.run(["clean", file.name, "-o", str(tmp_path / "run" / "clean")]) == options.REFUSED
    assert "names the path 'link/authorized_keys'" in capsys.readouterr().err
    add(file, cache)
    seen: dict[str, bytes] = {}

    def clean(path: str, *_: object) -> dict[str, Any]:
        seen.update(tree(Path(path)))
        raise InputRefused("enough")

    monkeypatch.setattr("meca.verbs.clean", clean)
    assert cli.run(["clean", file.name, "-o", str(tmp_path / "run" / "clean")]) == options.REFUSED
    assert seen == FILES and not (supplied / "photos").exists()
