"""Secrets in the environment of whole runs, then looked for in all that the runs leave; see docs/faults.md.

    python -m benchmarks.reliability.canary                      demo, clean, tracking by HTTP and to nowhere, a remote that is away; then the search
    python -m benchmarks.reliability.canary --find WORD FOLDER   the search alone

Every secret is a random word, so that one hit proves a leak. Files are searched as bytes, as what they compress (zip, gzip, parquet, zlib)
and hold (SQLite), for the word, its base64 and its hex; so are the command lines of all processes while the runs go on.
"""

import argparse
import base64
import gzip
import io
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.reliability import rehearsal
from benchmarks.reliability.faults import Campaign
from infra.local.servers import answers

NAMES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PREFECT_API_KEY",
    "MECA_KEY_PASSPHRASE", "HF_TOKEN", "GITHUB_TOKEN", "SOME_PROGRAMS_API_KEY",
)  # fmt: skip
DEPTH = 3  # archives in archives that are looked into


def encodings(word: str) -> dict[str, bytes]:
    """Return the bytes that betray a word: itself, its hex, and its base64 wherever it begins in a longer text."""
    found = {"plain": word.encode(), "hex": word.encode().hex().encode(), "utf-16": word.encode("utf-16-le")}
    for shift in range(3):
        # Only whole groups of three bytes have letters of their own.
        inner = word.encode()[(3 - shift) % 3 :]
        found[f"base64, {shift} bytes into a group"] = base64.b64encode(inner[: len(inner) // 3 * 3])
    return found


def hits(folder: Path, words: Mapping[str, str]) -> list[str]:
    """Return `file: name of the secret, encoding` for everything below a folder that holds one of the secrets; names of files count."""
    needles = {f"{name}, {how}": needle for name, word in words.items() for how, needle in encodings(word).items()}
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        found += [f"{path.relative_to(folder)}: {name}, in its name" for name, word in words.items() if word in path.name]
        if path.is_symlink() or not path.is_file():
            continue
        for content in _contents(path.read_bytes(), path):
            found += [f"{path.relative_to(folder)}: {what}" for what, needle in needles.items() if needle in content]
    return sorted(set(found))


def _contents(data: bytes, path: Path | None = None, depth: int = 0) -> Iterator[bytes]:
    """Yield bytes, and what they compress or hold."""
    yield data
    if depth == DEPTH:
        return
    if data.startswith(b"PK\x03\x04"):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from _contents(archive.read(name), None, depth + 1)
    if data.startswith(b"\x1f\x8b"):
        with suppress(OSError, EOFError, zlib.error):
            yield from _contents(gzip.decompress(data), None, depth + 1)
    if data[:1] == b"\x78":
        with suppress(zlib.error):
            yield from _contents(zlib.decompress(data), None, depth + 1)
    if data.startswith(b"PAR1"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        with suppress(pa.ArrowException, OSError):
            table = pq.ParquetFile(io.BytesIO(data)).read()
            yield json.dumps(table.to_pylist(), default=repr).encode()
            yield repr(table.schema).encode()
    if data.startswith(b"SQLite format 3") and path is not None:
        # A long text is spread over pages; and what a write-ahead log holds is seen by asking.
        with suppress(sqlite3.Error):
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            yield "\n".join(connection.iterdump()).encode(errors="surrogateescape")
            connection.close()


@contextmanager
def watched(words: Mapping[str, str], seen: set[str]) -> Iterator[None]:
    """Look at the command line of every process, again and again, and note which secret stands in one."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    line = process.read_bytes()
                    seen.update(f"command line {line[:80]!r}: {name}" for name, word in words.items() if word.encode() in line)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Runs:
    """Programs with the secrets in their environment, in a home and a temporary folder of their own, all of whose words are kept."""

    def __init__(self, room: Path, words: Mapping[str, str]) -> None:
        """Make the folders."""
        self.room, self.words = room, words
        for name in ("home", "tmp", "logs", "work"):
            (room / name).mkdir(parents=True)
        base = rehearsal.variables(room) | {"HOME": str(room / "home"), "TMPDIR": str(room / "tmp"), "PREFECT_HOME": str(room / "home" / "prefect")}
        base["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), base["PATH"]])
        base.pop("MECA_SCRATCH")
        self.variables = base | {name: words[name] for name in NAMES} | {"MLFLOW_TRACKING_USERNAME": "somebody", "PREFECT_LOGGING_LEVEL": "DEBUG"}
        self.codes: dict[str, int] = {}

    def run(self, what: str, *command: str, cwd: Path | None = None, **variables: str) -> int:
        """Run a program and keep what it says below `logs`; return its exit code."""
        place = cwd or self.room / "work"
        with open(self.room / "logs" / f"{what}.log", "wb") as log:
            variables = self.variables | variables
            done = subprocess.run(command, cwd=place, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=900, check=False)
        self.codes[what] = done.returncode
        print(f"{what}: exit code {done.returncode}", flush=True)
        return done.returncode

    def meca(self, what: str, *words: str, cwd: Path | None = None, **variables: str) -> int:
        """Run a verb of meca."""
        return self.run(what, sys.executable, "-c", "from flows.cli import main; main()", *words, cwd=cwd, **variables)


@contextmanager
def mlflow_server(room: Path, variables: Mapping[str, str]) -> Iterator[int]:
    """Run an MLflow server on SQLite and give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    room.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{room}/server.db", "--artifacts-destination", str(room / "artifacts")]  # fmt: skip
    with open(room / "server.log", "wb") as log:
        alone = {**variables, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its seven helpers would outlive it
        process = subprocess.Popen(command, cwd=room, env=alone, stdout=log, stderr=log, process_group=0)
    try:
        deadline = time.monotonic() + 180
        while not answers(f"http://127.0.0.1:{port}/health", 2):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow's server did not answer: {(room / 'server.log').read_text()[-2000:]}")
            time.sleep(0.5)
        yield port
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


def campaign(room: Path) -> Campaign:
    """Run everything with secrets around, search, and count a case for each program and one for each secret."""
    words = {name: f"canary{secrets.token_hex(12)}" for name in (*NAMES, "password in MLFLOW_TRACKING_URI", "token in MLFLOW_TRACKING_URI")}
    runs, seen = Runs(room, words), set[str]()
    work = room / "work"
    place = work / "demo"
    tiny = {
        **rehearsal.TINY,
        "ingest.shapes_train": 200,
        "ingest.shapes_test": 100,
        "ingest.size": rehearsal.SIDE,
        "promote.min_acc": 0.0,
        "promote.min_recall": 0.0,
    }
    tiny |= {"promote.max_leak": 1.0, "promote.max_leak_of_power": 99.0, "promote.verdicts": json.dumps(["no_evidence", "poisoned", "inconclusive"])}
    settings = [word for name, value in tiny.items() for word in ("--set", f"{name}={value}")]
    data = rehearsal.make_data(room / "data")
    password, token = words["password in MLFLOW_TRACKING_URI"], words["token in MLFLOW_TRACKING_URI"]
    nowhere = f"http://somebody:{password}@127.0.0.1:1/?token={token}"
    module = (sys.executable, "-m")
    clean = [word for name, value in rehearsal.TINY.items() for word in ("--set", f"{name}={value}")]
    with watched(words, seen):
        runs.meca("demo", "demo", "--folder", str(place), *settings)
        runs.meca("keygen", "keygen", str(work / "key.pem"))
        runs.meca("clean, signed", "clean", str(data), "-o", str(work / "out"), "--sign", str(work / "key.pem"), *clean)
        runs.meca("verify", "verify", str(work / "out"), "--key", str(work / "key.pub.pem"))
        (work / ".odd.meca").write_text("a file where the folder of the run should be")
        runs.meca("clean that fails", "clean", str(data), "-o", str(work / "odd"))
        runs.meca("doctor", "doctor", MLFLOW_TRACKING_URI=nowhere)
        runs.run("tracking to nowhere", *module, "tasks.dvc.stage", "track", "--force", cwd=place, MLFLOW_TRACKING_URI=nowhere)
        runs.meca("promotion to nowhere", "promote", str(place), MLFLOW_TRACKING_URI=nowhere)
        away = {"MECA_REMOTE_URL": "s3://bucket/prefix", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
        push = "from tasks.dvc import remote; remote.push()"
        runs.meca("publication to nowhere", "publish", str(work / "out"), "s3://bucket/prefix", **away, AWS_DEFAULT_REGION="eu-west-1")
        runs.meca("what was kept, to nowhere", "track", str(place), MLFLOW_TRACKING_URI=nowhere)
        runs.run("remote that is away", sys.executable, "-c", push, cwd=place, **away, AWS_DEFAULT_REGION="eu-west-1")
        with mlflow_server(room / "server", runs.variables) as port:
            there = f"http://somebody:{password}@127.0.0.1:{port}"
            quiet = {name: "" for name in ("MLFLOW_TRACKING_TOKEN",)}  # user and password of the address are to be used
            runs.run("the flow with tracking by HTTP", *module, "flows.sanitize", cwd=place, MLFLOW_TRACKING_URI=there, **quiet)
            runs.meca("promotion by HTTP", "promote", str(place), MLFLOW_TRACKING_URI=there, **quiet)
    found, wanted = (
        Campaign(),
        {"demo": (0,), "clean, signed": (0, 1, 5), "verify": (0,), "the flow with tracking by HTTP": (0,), "promotion by HTTP": (0,)},
    )
    for what, codes in wanted.items():
        # A campaign whose runs fail early would find nothing and prove nothing.
        found.note(what, None if runs.codes[what] in codes else f"ended with {runs.codes[what]}, see its log")
    leaks = [*hits(room, words), *sorted(seen)]
    files = sum(path.is_file() for path in room.rglob("*"))
    for name in words:
        found.note(name, "; ".join([leak for leak in leaks if name in leak][:3]) or None)
    found.notes = [f"{len(words)} secrets, {len(runs.codes)} programs, {files} files searched, {len(leaks)} hits"]
    for leak in leaks:
        print("  leak:", leak, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign and write its row; return 2 if a secret was found or a run did not get far enough."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.canary", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--find", nargs=2, metavar=("WORD", "FOLDER"), help="search one folder for one word and print the hits")
    parser.add_argument("--keep", type=Path, help="leave everything in this new folder")
    parser.add_argument("--no-row", action="store_true", help="a rehearsal")
    arguments = parser.parse_args(argv)
    if arguments.find:
        found = hits(Path(arguments.find[1]), {"it": arguments.find[0]})
        print(*found, sep="\n")
        return 2 if found else 0
    started = time.perf_counter()
    room = (arguments.keep or Path(tempfile.mkdtemp(prefix="meca-canary-"))).resolve()
    try:
        done = campaign(room)
    finally:
        if not arguments.keep:
            shutil.rmtree(room, ignore_errors=True)
    notes = "; ".join([*done.notes, *done.wrong[:3]])
    if arguments.no_row:
        print(f"{done.tried - len(done.wrong)} of {done.tried}; {notes}")
    else:
        good, seconds = done.tried - len(done.wrong), time.perf_counter() - started
        rehearsal.row(
            "canary secrets: full runs, then a search of all that they left",
            done.tried,
            good,
            None,
            notes,
            "python -m benchmarks.reliability.canary",
            0,
            seconds,
        )
    return 2 if done.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
