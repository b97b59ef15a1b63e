"""Folders that replace one another, writes that fail, and what somebody else put where meca writes."""

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from meca import files
from meca.data.store import write_array
from meca.errors import MecaError, UsageError, system_failure
from meca.files import atomic_write, copy_folder, fresh_folder, lock, need_room, own_folder, refuse_foreign, replace_folder, sha256_tree

ROOT = Path(__file__).parents[1]
LIMITED = """
import errno, resource, sys
from pathlib import Path
def allow(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
"""


def test_a_reader_finds_the_old_folder_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap is one call: after it the new one is there, before it the old one, and the old one goes last."""
    for folder, text in (("new", "new"), ("final", "old")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text(text)
    seen: list[str] = []
    real = files._exchange

    def exchange(*given: Path) -> bool:
        seen.append((tmp_path / "final" / "x").read_text())
        done = real(*given)
        seen.append((tmp_path / "final" / "x").read_text())
        return done

    monkeypatch.setattr(files, "_exchange", exchange)
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("two renames leave a moment without a folder"))
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert seen == ["old", "new"] and sorted(p.name for p in tmp_path.iterdir()) == ["final"]


def test_without_a_swap_the_folder_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("new", "final"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text(folder)
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final" / "x").read_text() == "new" and sorted(p.name for p in tmp_path.iterdir()) == ["final"]


def test_a_copy_has_the_same_files_and_stops_at_the_first_that_fails(tmp_path: Path) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    for name in ("1", "inner/2", "inner/3"):
        (tmp_path / "a" / name).write_text(name)
    copy_folder(tmp_path / "a", tmp_path / "b")
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")
    tried: list[str] = []

    def fail(source: Path, target: Path) -> None:
        tried.append(source.name)
        raise OSError(errno.ENOSPC, "full", str(target))

    with pytest.raises(OSError, match="full"):
        copy_folder(tmp_path / "a", tmp_path / "c", fail)
    assert tried == ["1"]


def test_work_that_the_disk_cannot_hold_is_refused(tmp_path: Path) -> None:
    need_room(tmp_path, 1, "This")
    with pytest.raises(MecaError, match=r"^This needs about 1,099,511,627,776\.0 MiB on the disk of .*, where [\d,.]+ MiB are free; make room there"):
        need_room(tmp_path, 2**60, "This")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    program = LIMITED + (
        "from meca.files import atomic_write\n"
        "path = Path(sys.argv[1]); atomic_write(path, b'old')\n"
        "for limit in (0, 1, 4999):\n"
        "    allow(limit)\n"
        "    try: atomic_write(path, bytes(5000))\n"
        "    except OSError as error: assert error.errno == errno.EFBIG\n"
        "    else: raise SystemExit('a short file passed')\n"
        "    assert path.read_bytes() == b'old' and [p.name for p in path.parent.iterdir()] == [path.name]\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")], check=True, cwd=ROOT)


def test_a_write_that_a_signal_interrupts_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "x", "old")

    def interrupt(number: int) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(SystemExit, match="143"):
        atomic_write(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_no_size_of_the_disk_lets_a_short_array_pass(tmp_path: Path) -> None:
    """`np.save` fails this: what the C library holds in its buffer at the end may be lost without a word."""
    program = LIMITED + (
        "import numpy as np\n"
        "from meca.data.store import write_array\n"
        "path, array = Path(sys.argv[1]), np.arange(14000, dtype=np.uint8).reshape(70, 200)\n"
        "for limit in (0, 127, 128, 200, 4096, 8192, 8300, 12288, 12500, 14000, 14127):\n"
        "    allow(limit)\n"
        "    try: write_array(path, array)\n"
        "    except OSError as error: assert error.errno == errno.EFBIG\n"
        "    else: raise SystemExit(f'a short array passed at {limit}')\n"
        "allow(14128)\n"
        "write_array(path, array)\n"
        "assert np.array_equal(np.load(path), array)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.npy")], check=True, cwd=ROOT)


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.arange(12.0).reshape(3, 4).T, np.arange(5, dtype=np.float32), np.array(True)])
def test_an_array_is_written_as_numpy_writes_it(array: np.ndarray, tmp_path: Path) -> None:
    write_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "theirs.npy", np.ascontiguousarray(array), allow_pickle=False)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_a_failure_of_the_system_is_a_sentence_that_names_the_file_and_the_remedy() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert str(system_failure(full)).startswith("Could not go on at /data/x: the disk is full; make room (")
    try:
        try:
            raise full
        except OSError as error:
            raise RuntimeError("a library's words") from error
    except RuntimeError as error:
        assert "the disk is full" in str(system_failure(error))
    assert "ulimit -n" in str(system_failure(OSError(errno.EMFILE, "Too many open files")))
    assert system_failure(FileNotFoundError(errno.ENOENT, "gone")) is None and system_failure(ValueError("a bug")) is None


def test_no_file_is_written_in_a_way_that_can_lose_a_failure() -> None:
    """`np.save` and `tofile` lose the last bytes, a writable mapping ends the process, `open(...).write` may never be closed."""
    found: list[str] = []
    for file in sorted((ROOT / "meca").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guarded = {id(item.context_expr) for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items}
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called, words = ast.unparse(node.func), [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            lossy = called in ("np.save", "np.savez", "np.savez_compressed") or called.endswith(".tofile")
            mapped = called == "np.memmap" and any(word in ("w+", "r+") for word in words)
            descriptor = bool(node.args) and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, int)  # a pipe, no file
            unguarded = called == "open" and not descriptor and id(node) not in guarded and any(set(word) & set("wxa+") for word in words[-1:])
            if lossy or mapped or unguarded:
                found.append(f"{file.relative_to(ROOT)}:{node.lineno} {called}")
    assert found == [f"meca/data/ingest.py:{_opened_by_the_collector()} open"] * 2


def _opened_by_the_collector() -> int:
    """Return the line in which `_Collector.__enter__` opens two files, which its `__exit__` closes."""
    lines = (ROOT / "meca" / "data" / "ingest.py").read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if 'open(self.payload, "wb")' in line)


def planted(place: Path, mine: Path, kind: str) -> None:
    """Put at `place` what may lead to the file or folder `mine`, or wait for ever."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        place.symlink_to(mine)
    elif kind == "second name":
        os.link(mine, place)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()


@pytest.mark.parametrize("kind", ["link", "second name", "pipe"])
def test_a_file_is_never_written_through_what_has_the_name_of_its_temporary_one(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("x.tmp", "x"):
        planted(tmp_path / name, tmp_path / "mine", kind)
        atomic_write(tmp_path / "x", "new")
        assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "x").read_text() == "new" and not (tmp_path / "x").is_symlink()
        (tmp_path / "x").unlink()


@pytest.mark.parametrize("name", ["x", "x.tmp"])
def test_a_folder_where_a_file_belongs_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name / "mine").mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"{name} is a folder, and meca writes a file there\. Remove it, or choose another place"):
        atomic_write(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is no folder, and meca needs one there"):
        atomic_write(tmp_path / "file" / "x", "new")


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "folder"])
def test_a_lock_that_leads_elsewhere_is_refused_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    planted(tmp_path / "lock", tmp_path / "mine", kind)
    with pytest.raises(UsageError, match=r"The lock .*lock is no file of its own"), lock(tmp_path / "lock", "it"):
        pytest.fail("it was held")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_link_to_nothing_makes_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no file of its own"), lock(tmp_path / "lock", "it"):
        pytest.fail("it was held")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("name", ["final", ".final.old", "fresh"])
def test_folders_are_neither_replaced_nor_emptied_through_a_link(name: str, swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for folder in ("mine", "new", *(("final",) if name == ".final.old" else ())):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text(folder)
    (tmp_path / name).symlink_to("mine")
    if name != ".final.old" or not swaps:
        with pytest.raises(UsageError, match=rf"{name.replace('.', '[.]')} is a link, which meca does not follow"):
            fresh_folder(tmp_path / name) if name == "fresh" else replace_folder(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "mine" / "x").read_text() == "mine"


def test_a_fresh_folder_is_empty_and_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "x" / "left").mkdir(parents=True)
    assert list(fresh_folder(tmp_path / "x").iterdir()) == [] == list(fresh_folder(tmp_path / "y").iterdir())
    (tmp_path / "z").write_text("mine")
    with pytest.raises(UsageError, match="z is no folder"):
        fresh_folder(tmp_path / "z")
    assert (tmp_path / "z").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("where", ["", "a", "a/b/c"])
def test_what_is_no_plain_file_is_seen_wherever_it_lies(where: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    planted(tmp_path / "run" / where, tmp_path / "mine", kind)
    with pytest.raises(UsageError, match=rf"{where or 'run'} is (a link|no folder)"):
        refuse_foreign(tmp_path / "run", below=True)
    refuse_foreign(tmp_path / "run" / "nothing" if not where and kind == "link" else tmp_path / "nothing", below=True)


def test_what_is_plain_and_ours_passes_and_a_link_above_is_the_users_business(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run" / "a").mkdir(parents=True)
    (tmp_path / "disk" / "run" / "a" / "x").write_text("x")
    (tmp_path / "home").symlink_to("disk")
    refuse_foreign(tmp_path / "home" / "run", below=True)
    assert own_folder(tmp_path / "home" / "run" / "b" / "c", tmp_path / "home" / "run").is_dir()


def test_a_link_on_the_way_down_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".meca").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=r"\.meca is a link"):
        own_folder(tmp_path / "run" / ".meca" / "locks", tmp_path / "run")
    assert list((tmp_path / "mine").iterdir()) == []


def test_what_belongs_to_another_user_is_refused_unless_the_disk_gives_all_files_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = Path("/etc")  # of the root, whose own tests need another one
    if os.geteuid() == 0:
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        os.chown(foreign, 12345, 12345)
    with pytest.raises(UsageError, match=rf"{foreign} (belongs to another user, so meca neither trusts nor replaces it|cannot be looked at)"):
        refuse_foreign(foreign)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)  # as on a disk that writes our files down as somebody else's
    (tmp_path / "ours").mkdir()
    refuse_foreign(tmp_path / "ours", below=True)


def test_a_tree_has_a_hash_over_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "t" / "__pycache__").mkdir(parents=True)
    empty = sha256_tree(tmp_path / "t")
    (tmp_path / "t" / "__pycache__" / "planted.png").write_bytes(b"x")
    assert sha256_tree(tmp_path / "t") != empty
