"""A published folder is opened once: what it gives is what its manifest lists, and no more than it may hold is read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from meca.errors import MecaError
from meca.files import sha256_file
from meca.release.contents import MAX_TEXT
from meca.release.foreign import Unfit
from meca.release.published import Published
from tests.making import ingest, make_folder, publish_store
from tests.release.test_verification import change_summary, change_verdicts, list_again


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return publish_store(ingest(make_folder(folder / "in", per_class=4), folder / "store"), folder, {0: ("poisoned", "remove", None)})


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def unlist(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:4] + bytes(byte ^ 0x5A for byte in data[4:400]) + data[400:])


def replaced(make: Callable[[Path], object], name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def test_it_says_what_was_published(made: Path) -> None:
    published = Published.open(made)
    assert published.summary == json.loads((made / "summary.json").read_text())
    assert published.manifest == json.loads((made / "manifest.json").read_text())
    assert published.manifest_sha256 == sha256_file(made / "manifest.json")
    assert published.sha256("README.md") == sha256_file(made / "README.md")
    assert published.verdicts().equals(pq.read_table(made / "verdicts.parquet"))


def test_what_was_read_stays_and_what_is_read_later_is_what_was_listed_then(folder: Path) -> None:
    published = Published.open(folder)
    verdict = published.summary["verdict"]
    change_summary(folder, verdict="no_evidence")
    change_verdicts(folder, "verdict", {0: "clean"})
    list_again(folder)
    assert published.summary["verdict"] == verdict
    with pytest.raises(Unfit, match=r"verdicts\.parquet is not what its manifest says: expected the SHA-256 \w{12}, got \w{12}\. Bring it back"):
        published.verdicts()


SUMMARY: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: change_summary(f, verdict="no_evidence"), r"summary\.json is not what its manifest says"),
    (lambda f: unlist(f, "summary.json"), "expected no such file"),
    (lambda f: (f / "summary.json").unlink(), r"summary\.json is missing"),
    (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing"),
    (lambda f: (f / "manifest.json").write_text("{}"), r"manifest\.json lacks what meca writes into it"),
    (lambda f: (f / "manifest.json").write_text('{"files": {"summary.json": 1}}'), r"manifest\.json lacks what meca writes into it"),
    (lambda f: (f / "manifest.json").write_text("[" * 10**6), r"manifest\.json is not JSON as meca writes it"),
    (replaced(os.mkfifo, "summary.json"), r"summary\.json is a named pipe"),
    (replaced(lambda p: p.symlink_to("/dev/zero"), "manifest.json"), r"manifest\.json is a link"),
]


@pytest.mark.parametrize(("change", "said"), SUMMARY)
def test_a_folder_that_is_not_what_it_lists_is_not_opened(change: Callable[[Path], object], said: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(Unfit, match=said):
        Published.open(folder)


VERDICTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: change_verdicts(f, "mode", {0: "x" * (MAX_TEXT + 1)}), f"a text of {MAX_TEXT + 1} bytes in the column mode"),
    (lambda f: pq.write_table(pq.read_table(f / "verdicts.parquet").drop(["mode"]), f / "verdicts.parquet"), "has the columns"),
    (lambda f: (f / "verdicts.parquet").write_bytes(b"PAR1" * 100), r"verdicts\.parquet"),
    (lambda f: damage(f / "verdicts.parquet"), r"verdicts\.parquet"),
]


@pytest.mark.parametrize(("change", "said"), VERDICTS)
def test_verdicts_are_bounded_where_the_manifest_was_made_to_fit(change: Callable[[Path], object], said: str, folder: Path) -> None:
    change(folder)
    list_again(folder)
    with pytest.raises(MecaError, match=said):
        Published.open(folder).verdicts()


@pytest.mark.parametrize(
    ("name", "said"), [("../secret", "is no name inside the folder"), ("model", "is a folder"), ("manifest.json", "no such file")]
)
def test_only_what_is_listed_has_a_hash(name: str, said: str, folder: Path) -> None:
    with pytest.raises(Unfit, match=said):
        Published.open(folder).sha256(name)
