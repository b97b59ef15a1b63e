"""The secret of this user, and what is believed of what lies on the disk: nothing without its seal.

Each test of a folder plants what a supplier could ship in it. Other users' secrets are this test's own, by MECA_STATE_DIR.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meca import state

ROOT = Path(__file__).parents[1]
names = st.lists(st.text(max_size=8), max_size=3)


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the secret of this test will lie."""
    monkeypatch.setenv("MECA_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "secret"


@given(st.binary(max_size=20), names, st.binary(max_size=20), names)
def test_a_seal_fits_what_was_sealed_under_its_name_and_nothing_else(data: bytes, name: list[str], other: bytes, elsewhere: list[str]) -> None:
    told = state.seal(data, *name)
    assert state.fits(told, data, *name)
    assert state.fits(told, other, *elsewhere) == ((data, name) == (other, elsewhere))
    assert not any(state.fits(wrong, data, *name) for wrong in (told[:-1], told[:-1] + ("0" if told[-1] != "0" else "1"), "é", None, 5))


def test_the_secret_is_made_once_for_this_user_alone(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = state.seal(b"x")
    assert state.lasts() == "" and secret.stat().st_size == 32
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600 and stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    state._secret.cache_clear()
    assert state.seal(b"x") == first
    monkeypatch.setenv("MECA_STATE_DIR", str(secret.parent / "another"))
    assert state.seal(b"x") != first


def test_processes_that_begin_side_by_side_have_one_secret(secret: Path) -> None:
    program = [sys.executable, "-c", "from meca import state; print(state.seal(b'x'))"]
    children = [subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert len({child.communicate(timeout=60)[0] for child in children}) == 1
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


def test_without_a_variable_it_lies_where_state_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MECA_STATE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification: to be ignored
    state.seal(b"x")
    assert (tmp_path / "home/.local/state/meca/secret").is_file()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    state.seal(b"x")
    assert (tmp_path / "xdg/meca/secret").is_file()


def linked(secret: Path) -> None:
    secret.rename(secret.with_name("moved"))
    secret.symlink_to("moved")


def piped(secret: Path) -> None:
    secret.unlink()
    os.mkfifo(secret)


def linked_folder(secret: Path) -> None:
    secret.parent.rename(secret.parent.with_name("moved"))
    secret.parent.symlink_to("moved")


SPOILT: dict[str, Callable[[Path], object]] = {
    "is a link, or no file": linked,
    "secret is a link": piped,
    "state is a link": linked_folder,
    "others may read": lambda secret: secret.chmod(0o640),
    "others may write to": lambda secret: secret.parent.chmod(0o770),
    "is damaged": lambda secret: secret.write_bytes(b"short"),
    "File exists|Not a directory|is no folder": lambda secret: (shutil.rmtree(secret.parent), secret.parent.write_text("")),
}


@pytest.mark.parametrize("why", SPOILT)
def test_a_secret_that_others_could_know_or_set_is_not_used_and_the_sentence_says_why(why: str, secret: Path, tmp_path: Path) -> None:
    state.write(tmp_path / "x", b"mine", "x")
    assert state.read(tmp_path / "x", "x") == b"mine"
    SPOILT[why](secret)
    state._secret.cache_clear()
    assert state.read(tmp_path / "x", "x") is None
    assert (
        any(word in state.lasts() for word in why.split("|"))
        and "Set MECA_STATE_DIR to a folder for you alone, apart from all data." in state.lasts()
    )
    state.write(tmp_path / "x", b"again", "x")
    assert state.read(tmp_path / "x", "x") == b"again", "this process knows what it wrote"


@pytest.mark.parametrize("place", ["relative", "/dev/null/nowhere", "/proc/nowhere"])
def test_where_there_is_no_place_for_it_nothing_fails(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one would lie in the working directory, into which a supplier's archive is unpacked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MECA_STATE_DIR", place)
    assert state.fits(state.seal(b"x"), b"x") and "so it cannot tell what it wrote itself" in state.lasts()
    assert list(tmp_path.iterdir()) == []


def test_a_secret_of_another_user_is_not_used(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.seal(b"x")
    state._secret.cache_clear()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert "belongs to another user" in state.lasts()


def test_root_makes_nothing_in_the_home_of_another_user(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `sudo`, which may keep HOME: its owner could not read what root made there."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: os.stat_result((*real(path, **how)[:4], 1000, *real(path, **how)[5:])))
    assert "belongs to another user" in state.lasts() and not secret.parent.exists()


def test_a_file_is_believed_with_its_seal_alone(secret: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"
    state.write(file, b"one", "kind", "place")
    assert state.read(file, "kind", "place") == b"one"
    assert state.read(file, "kind", "elsewhere") is None is state.read(tmp_path / "y", "kind", "place")
    shutil.copy(file, tmp_path / "y")
    shutil.copy(tmp_path / "x.seal", tmp_path / "y.seal")
    assert state.read(tmp_path / "y", "kind", "place") == b"one", "the name is what callers say, not the path"
    file.write_bytes(b"two")
    assert state.read(file, "kind", "place") is None
    state.write(file, b"three", "kind", "place", seals=tmp_path / "seals" / "x")
    assert state.read(file, "kind", "place") is None and state.read(file, "kind", "place", seals=tmp_path / "seals" / "x") == b"three"


@pytest.mark.parametrize("of", ["x", "x.seal"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "empty", "large", "binary"])
def test_whatever_lies_there_is_not_believed_and_nothing_waits(kind: str, of: str, secret: Path, tmp_path: Path) -> None:
    state.write(tmp_path / "x", b"mine", "x")
    place = tmp_path / of
    place.rename(tmp_path / "moved")
    if kind == "link":
        place.symlink_to("moved")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.write_bytes({"empty": b"", "large": b"0" * 5000, "binary": b"\xff\x00"}[kind])
    assert state.read(tmp_path / "x", "x") is None
    if kind != "folder":
        state.write(tmp_path / "x", b"new", "x")
        assert state.read(tmp_path / "x", "x") == b"new" and (tmp_path / "moved").read_bytes() != b"new"


def test_a_file_that_is_far_too_large_is_not_read(secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write(tmp_path / "x", b"mine", "x")
    os.truncate(tmp_path / "x", state.LIMIT + 1)  # takes no room
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("it was read"))
    assert state.read(tmp_path / "x", "x") is None


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_kill_at_any_moment_leaves_a_file_with_a_seal_that_fits(
    dies_at: int, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write(tmp_path / "x", b"old", "x")
    calls: list[Path] = []
    real = state.atomic_write

    def die(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(state, "atomic_write", die)
    with pytest.raises(KeyboardInterrupt):
        state.write(tmp_path / "x", b"new", "x")
    assert state.read(tmp_path / "x", "x") == b"old"
