"""The fault campaigns' own eyes: a secret is found wherever it hides, a call to a network is counted, a fault that goes wrong is said."""

import argparse
import base64
import gzip
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.reliability import canary, faults, rehearsal
from benchmarks.reliability.crash_points import enumerate_points
from benchmarks.reliability.tracing import Fault, Point, record_network
from meca.errors import UsageError
from meca.params import PACKAGED, read_params, with_settings

WORD = "canary0123456789abcdef"
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs the program strace (package `strace`)")


def in_sqlite(path: Path) -> None:
    """Write a database in which the word lies across the border of two pages, so that the file's bytes do not hold it."""
    for before in range(300, 1400):
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        connection.execute("pragma page_size = 512")
        connection.execute("create table t (x)")
        connection.execute("insert into t values (?)", ("x" * before + WORD + "y" * (2000 - before),))
        connection.commit()
        connection.close()
        if WORD.encode() not in path.read_bytes():
            return
    raise AssertionError("no border was met")


def in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(f"a {WORD}".encode()))


HIDDEN = {
    "plain": lambda path: path.write_text(f"a {WORD} b"),
    "hex": lambda path: path.write_text(WORD.encode().hex()),
    "utf-16": lambda path: path.write_bytes(f"a {WORD}".encode("utf-16")),
    **{
        f"base64 {shift}": lambda path, shift=shift: path.write_bytes(base64.b64encode(b"u:x"[:shift] + WORD.encode() + b"tail"))
        for shift in range(4)
    },
    "gzip": lambda path: path.write_bytes(gzip.compress(WORD.encode())),
    "zlib": lambda path: path.write_bytes(zlib.compress(WORD.encode())),
    "zip in which a gzip is": in_zip,
    "parquet": lambda path: pq.write_table(pa.table({"x": ["y", WORD]}), path, compression="zstd"),
    "the schema of a parquet file": lambda path: pq.write_table(
        pa.table({"x": ["y"]}).replace_schema_metadata({"k": WORD}), path, compression="zstd"
    ),
    "sqlite": in_sqlite,
}


@pytest.mark.parametrize("how", HIDDEN)
def test_a_secret_is_found_wherever_it_hides(how: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "other").write_text(f"a {WORD[:-1]} b")
    assert canary.hits(tmp_path, {"IT": WORD}) == []
    HIDDEN[how](tmp_path / "inner" / "file")
    found = canary.hits(tmp_path, {"IT": WORD, "ANOTHER": "canaryffffffffffffffff"})
    assert found and all(hit.startswith("inner/file: IT") for hit in found)
    assert canary.main(["--find", WORD, str(tmp_path)]) == 2


def test_a_secret_in_a_name_and_in_a_command_line_is_found(tmp_path: Path) -> None:
    (tmp_path / f"x-{WORD}").touch()
    assert canary.hits(tmp_path, {"IT": WORD}) == [f"x-{WORD}: IT, in its name"]
    seen: set[str] = set()
    with canary.watched({"IT": WORD, "ANOTHER": "canaryffffffffffffffff"}, seen):
        subprocess.run(["sh", "-c", "sleep 1", WORD], check=True)
    assert seen and all(line.endswith(": IT") for line in seen)


NETWORK = """
import socket, sys
if sys.argv[1] == "inet":
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
else:
    a, b = socket.socketpair(); a.send(b"x")
    socket.socket(socket.AF_UNIX).connect_ex("/nowhere")
"""


@needs_strace
def test_a_call_to_a_network_is_counted_and_a_local_one_is_not(tmp_path: Path) -> None:
    def asked(what: str) -> list[str]:
        return record_network([sys.executable, "-c", NETWORK, what], tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path / "record")

    assert [line.split()[1].partition("(")[0] for line in asked("inet")] == ["socket", "sendto"] and asked("unix") == []


def ended(code: int, errors: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.CompletedProcess([], code, "", errors)


def test_the_end_of_a_program_is_judged() -> None:
    good = "ingest 1/2\nmeca ingest: Could not go on: the disk is full; make room. The same command continues.\n"
    assert faults.sentence(ended(2, good)) is None
    assert faults.sentence(ended(2, "meca: The output of stage x is being written by process 7 (lock y); wait for it or end it.")) is None
    assert faults.sentence(ended(1, good)) and faults.sentence(ended(-7, "")) and faults.sentence(ended(2, ""))
    assert faults.sentence(ended(2, "Traceback (most recent call last):\n" + good)) and faults.sentence(ended(2, "OSError: 28"))


def test_every_kind_of_call_has_the_faults_that_it_can_meet() -> None:
    made = {(point.call, fault.error) for point, fault in faults.cases([Point(call, "/x", 1) for call in ("write", "fsync", "openat", "unlink")])}
    assert {error for call, error in made if call == "write"} == {"ENOSPC", "EDQUOT", "EFBIG", "EIO"}
    assert ("fsync", "EIO") in made and ("openat", "ENOSPC") in made and not any(call == "unlink" for call, _ in made)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> rehearsal.Place:
    """Stage ingest on the tiny set."""
    room = tmp_path_factory.mktemp("ingest")
    settings = {**rehearsal.TINY, "ingest.source": str(rehearsal.make_data(room / "source"))}
    (room / "params.json").write_text(json.dumps(with_settings(read_params(PACKAGED), settings).tree))
    return rehearsal.set_up("ingest", room, room / "place")


@needs_strace
def test_a_sample_of_the_faults_of_a_stage_is_endured(place: rehearsal.Place) -> None:
    chosen = faults.cases(enumerate_points(place)[0])
    by_error = {fault.error: (point, fault) for point, fault in random.Random(3).sample(chosen, len(chosen))}
    assert len(by_error) == 4
    for point, fault in by_error.values():
        assert faults.endures(place, point, fault, again=False) is None, (point, fault)


@needs_strace
def test_a_fault_that_nobody_meets_is_no_pass_where_the_work_is_wrong(place: rehearsal.Place) -> None:
    wrong = rehearsal.Place(place.stage, place.folder, place.inputs, place.outputs, None, {**place.expected, "data/ingested": "other bytes"}, {})
    said = faults.endures(wrong, Point("write", "/nowhere", 1), Fault("EIO", False), again=False)
    assert said == "a fault that nobody noticed: ['data/ingested']"


def test_of_several_runs_at_once_one_writes_and_the_others_name_it(place: rehearsal.Place) -> None:
    place.reset()
    ends = faults.at_once([place.command] * 4, place)
    assert any(code == 0 for code, _ in ends)
    assert all(code == 0 or (code == 2 and faults.sentence(ended(code, errors)) is None) for code, errors in ends)
    assert place.difference() == []


def test_files_that_move_under_the_reader_are_whole_or_named(tmp_path: Path) -> None:
    arguments = argparse.Namespace(seed=1, rounds=1)
    ((_, campaign),) = faults.moving(tmp_path, arguments)
    assert campaign.tried == 1 and campaign.wrong == []


def test_a_changed_bit_is_found_in_every_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECA_THREADS", "1")
    monkeypatch.setattr(faults, "BITS", 5)
    monkeypatch.setattr(faults, "WHOLE", 0)
    ((_, campaign),) = faults.bits(tmp_path, argparse.Namespace(seed=1))
    assert campaign.tried == 5 * (len(faults.KINDS) + 1) and campaign.wrong == []


def test_a_run_that_is_never_whole_proves_nothing_about_a_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_believed", lambda *_: False)
    with pytest.raises(RuntimeError, match="nothing could be seen"):
        list(faults.bits(tmp_path, argparse.Namespace(seed=1)))


def test_a_changed_bit_that_nobody_finds_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECA_THREADS", "1")
    monkeypatch.setattr(faults, "BITS", 2)
    monkeypatch.setattr(faults, "WHOLE", 0)
    monkeypatch.setattr("meca.release.verification.verify", lambda folder, key: [])
    monkeypatch.setattr(faults, "_believed", lambda *_: True)
    monkeypatch.setattr("meca.training.checkpoints.resume", lambda *_: 3)
    ((_, campaign),) = faults.bits(tmp_path, argparse.Namespace(seed=1))
    found = {line.split(",")[0] for line in campaign.wrong}
    assert found >= {*faults.KINDS, "checkpoint"} - {"signature"}


def test_without_a_namespace_or_strace_one_sentence_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    for what in ("disk", "full", "limits", "network"):
        assert faults.main([what, "--no-row"]) == UsageError.exit_code
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("package `strace`" in said or "package `util-linux`" in said)
