"""Folders that replace one another."""

import os
from pathlib import Path

import pytest

from meca import files
from meca.files import replace_folder


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
