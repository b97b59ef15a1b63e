"""The tool finds every change to the disk and says what a power failure could tear; a sample of the points of the stages without torch."""

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import crash_points, rehearsal
from benchmarks.reliability.crash_points import Outcome, campaign
from benchmarks.reliability.tracing import Call, Fault, Point, disorder, fail, points, read_record, record, require_strace
from meca.errors import UsageError

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs the program strace (package `strace`)")

RECORD = """\
7 openat(AT_FDCWD</here>, "/r/a.tmp", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3</r/a.tmp>
7 write(3</r/a.tmp>, ""..., 8192) = 8192
8 write(4</r/a.tmp>, ""..., 5 <unfinished ...>
7 openat(AT_FDCWD</here>, "/r/a.tmp", O_RDONLY|O_CLOEXEC) = 5</r/a.tmp>
8 <... write resumed>) = 5
7 write(3</r/a.tmp>, ""..., 10) = 10
7 fsync(3</r/a.tmp>) = 0
7 mkdir("/r/b", 0777) = -1 EEXIST (File exists)
7 rename("/r/a.tmp", "/r/a") = 0
7 sendfile(6</r/c>, 7</elsewhere/c>, NULL, 100) = 100
7 unlinkat(8</r/old>, "x", 0) = 0
7 openat(AT_FDCWD</here>, "/elsewhere/d", O_WRONLY|O_CREAT, 0666) = 9</elsewhere/d>
7 --- SIGCHLD {si_signo=SIGCHLD} ---
7 +++ exited with 0 +++
"""


def test_a_point_is_a_change_below_the_folder_and_is_counted_as_strace_counts() -> None:
    assert points(read_record(RECORD), Path("/r")) == [
        Point("openat", "/r/a.tmp", 1),
        Point("write", "/r/a.tmp", 1),
        Point("write", "/r/a.tmp", 1),  # of another thread
        Point("write", "/r/a.tmp", 2),
        Point("fsync", "/r/a.tmp", 1),
        Point("rename", "/r/a.tmp", 1),
        Point("sendfile", "/r/c", 1),
        Point("unlinkat", "/r/old", 1),
    ]
    again = RECORD.replace("O_RDONLY", "O_WRONLY|O_TRUNC")
    assert Point("openat", "/r/a.tmp", 2) in points(read_record(again), Path("/r")), "a read counts, too"


def test_a_path_that_no_point_could_name_is_refused() -> None:
    with pytest.raises(ValueError, match="with an escape"):
        read_record('7 mkdir("/r/\\303\\251", 0777) = 0\n')


def change(name: str, *paths: str) -> Call:
    return Call(1, name, tuple(f"/r/{path}".rstrip("/") for path in paths), (), True)


FILE = [change("openat", "a.tmp"), change("write", "a.tmp"), change("fsync", "a.tmp"), change("rename", "a.tmp", "a"), change("fsync", "")]
FOLDER = [
    change("mkdir", "d.tmp"), change("openat", "d.tmp/x"), change("write", "d.tmp/x"), change("mkdir", "d.tmp/e"),
    change("fsync", "d.tmp/x"), change("fsync", "d.tmp"), change("renameat2", "d.tmp", "d"), change("fsync", ""), change("unlinkat", "d.tmp"),
]  # fmt: skip


@pytest.mark.parametrize("calls", [FILE, FOLDER])
def test_the_order_that_survives_a_power_failure_has_nothing_to_say_against_it(calls: list[Call]) -> None:
    assert disorder(calls, Path("/r")) == []


@pytest.mark.parametrize(
    ("calls", "wrong"),
    [
        ([call for call in FILE if call.paths != ("/r/a.tmp",) or call.name != "fsync"], "/r/a.tmp was not synced before rename to /r/a"),
        ([FILE[0], FILE[2], FILE[1], *FILE[3:]], "/r/a.tmp was not synced before rename to /r/a"),
        (FILE[:-1], "/r was never synced after a rename into it"),
        ([change("openat", "a"), change("write", "a"), change("fsync", "a")], "openat writes /r/a in its place"),
        ([call for call in FOLDER if call != change("fsync", "d.tmp")], "/r/d.tmp was not synced before renameat2 to /r/d"),
        ([call for call in FOLDER if call != change("fsync", "d.tmp/x")], "/r/d.tmp/x was not synced before renameat2 to /r/d"),
        ([*FOLDER[:-2], FOLDER[-1], FOLDER[-2]], "unlinkat of /r/d.tmp before /r was synced"),
        ([change("openat", "d.tmp/x"), change("rename", "d.tmp/x", "d.tmp/y"), change("fsync", "d.tmp"), change("rename", "d.tmp", "d"),
          change("fsync", "")], "/r/d.tmp/y was not synced before rename to /r/d"),
    ],
)  # fmt: skip
def test_each_order_that_a_power_failure_tears_is_named(calls: list[Call], wrong: str) -> None:
    assert wrong in disorder(calls, Path("/r"))


TOY = """
import os, sys
folder = sys.argv[1]
def write(name, text, careful):
    with open(f"{folder}/{name}.tmp", "w") as file:
        file.write(text); file.flush()
        if careful: os.fsync(file.fileno())
    os.replace(f"{folder}/{name}.tmp", f"{folder}/{name}")
    if careful:
        number = os.open(folder, os.O_RDONLY); os.fsync(number); os.close(number)
write("a", "a" * 20000, True)
write("b", "b", sys.argv[2] == "careful")
"""


@needs_strace
def test_a_toy_is_killed_exactly_before_each_effect_and_each_fault_arrives(tmp_path: Path) -> None:
    def command(folder: Path, how: str = "careful") -> list[str]:
        folder.mkdir(exist_ok=True)
        return [sys.executable, "-c", TOY, str(folder), how]

    room = tmp_path / "toy"
    variables = {"PATH": "/usr/bin:/bin"}
    calls = record(command(room), tmp_path, variables, tmp_path / "record")
    found = points(calls, room)
    assert [point.call for point in found] == ["openat", "write", "fsync", "rename", "fsync"] * 2 and not disorder(calls, room)
    assert disorder(record(command(room, "careless"), tmp_path, variables, tmp_path / "record"), room)
    # What each point finds: the file named in it is not there, not written, not in its place.
    seen: list[list[str]] = []
    for point in found:
        shutil.rmtree(room)
        assert fail(point, None, command(room), tmp_path, variables).returncode == crash_points.KILLED
        seen.append(sorted(f"{path.name} {path.stat().st_size}" for path in room.iterdir()))
    a, b = "a 20000", "b 1"
    assert seen == [[], ["a.tmp 0"], ["a.tmp 20000"], ["a.tmp 20000"], [a], [a], [a, "b.tmp 0"], [a, "b.tmp 1"], [a, "b.tmp 1"], [a, b]]
    shutil.rmtree(room)
    full = fail(found[1], Fault("ENOSPC", True), command(room), tmp_path, variables)
    assert full.returncode == 1 and "No space left on device" in full.stderr


@pytest.mark.slow
@needs_strace
def test_the_stages_without_torch_survive_a_sample_of_their_points_and_order_their_writes(tmp_path: Path) -> None:
    first = rehearsal.make_run(tmp_path / "first")
    other = rehearsal.make_run(tmp_path / "other", first / "source", **{"seed": 1, "publish.name": "another"})
    outcome = campaign(tmp_path / "points", ("ingest", "publish"), 3, 1, (first, other), Outcome())
    assert outcome.wrong == [] and outcome.disorder == []
    assert outcome.tried == 3 * 3 and outcome.points > 150


@needs_strace
def test_a_stage_that_writes_in_place_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool's own test: what it says of a stage whose output appears bit by bit."""
    program = tmp_path / "stage.py"
    program.write_text(
        "import pathlib, sys\nout = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True)\n"
        "for name in 'ab': (out / name).write_text(name) if not (out / name).exists() else None\n"
    )
    place = rehearsal.Place("toy", tmp_path / "toy", (), ("out",), None, {}, {})
    place.folder.mkdir()
    monkeypatch.setattr(rehearsal.Place, "command", [sys.executable, str(program), str(place.folder / "out")])
    assert place.run().returncode == 0
    place = rehearsal.Place("toy", place.folder, (), ("out",), None, {**rehearsal.results("toy", place.folder, ("out",)), "receipt": ""}, {})
    monkeypatch.setattr(rehearsal.Place, "difference", lambda self: [])
    found, wrong = crash_points.enumerate_points(place)
    assert any("in its place" in what for what in wrong)
    assert "not killed, exit code 0" in str(crash_points.survives(place, Point("write", "/nowhere", 1))), "a point that is never met is no pass"
    failures = [crash_points.survives(place, point) for point in found]
    assert failures[0] is None and all("neither old nor new" in str(failure) for failure in failures[1:])


def test_without_strace_one_sentence_names_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="install the package `strace`"):
        require_strace()
    assert crash_points.main([]) == UsageError.exit_code
    assert capsys.readouterr().err.count("\n") == 1
