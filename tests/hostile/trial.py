"""Run a case as a user would, and say what was not as specified.

The set is read by the stage `ingest`, and then given to the command line: to `meca clean` where it has to be refused, to
`meca inspect` where it has to be read. Beside it lie files that no path in the set may lead to; whatever the case tries,
they stay as they are, nothing is written outside of the output, no name is looked up, no program is started, and memory has a limit.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import cli
from meca.data.store import Store, open_store
from meca.errors import InputRefused, UsageError
from meca.params import read_params, with_settings
from meca.stages import ingest
from meca.stages.graph import graph
from meca.stages.runtime import execute
from meca.text import plain
from tests.hostile.case import Case, Expected
from tests.hostile.parts import CANARY, encoded, folder, write

__all__ = ["Trial", "attempt", "limited", "tree_of"]

MEMORY = 2**30  # bytes beyond what the process has mapped; the largest case that is read has images of a few megabytes
EXITS = {"REFUSE": 3, "USAGE": 4, "QUAR": 0, "KEPT": 0}
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
SIZES = {"ingest.size": 8, "ingest.train_limit": 0, "ingest.test_limit": 0}


@dataclass
class Trial:
    """What became of a case."""

    outcome: str  # REFUSE, USAGE, QUAR, KEPT with its particulars; else what happened instead
    wrong: list[str] = field(default_factory=list)  # what was not as specified
    lost: int = 0  # samples that have neither pixels nor a reason


def attempt(case: Case, place: Path) -> Trial:
    """Make the set of a case in the empty folder `place`, run it, and compare."""
    canaries = _canaries(place / CANARY)
    (place / "in").mkdir()
    made = case.make(place / "in")
    before = tree_of(place)
    for name in graph():  # before memory is limited: they bring torch
        importlib.import_module(f"meca.stages.{name}")
    with _watched(place) as seen, limited():
        trial = _by_command_alone(case, made, place) if case.options else _read(case, made, place)
        if not trial.wrong and not case.options:
            trial.wrong += _by_command(case, made, place)
    trial.wrong += seen
    left = {name: value for name, value in tree_of(place).items() if not name.startswith(("out", "run", ".out"))}
    trial.wrong += [f"{name} was changed" for name in sorted(before.keys() | left.keys()) if before.get(name) != left.get(name)]
    stolen = [name for name, data in canaries.items() if "hard-link" not in case.id and _holds(place / "out", data)]
    trial.wrong += [f"the output holds {name}" for name in stolen]
    return trial


def _canaries(root: Path) -> dict[str, bytes]:
    """Write files that are good data in every format, where no path may lead to."""
    content = {name: encoded(1000) for name in ("secret.png", "x.zip", "x.tar", "train.parquet", "data_batch_1", "train-images-idx3-ubyte")}
    content |= {"secret.csv": b"path,label\nsecret.png,cat\n", "cat/0.png": encoded(1001), "dog/0.png": encoded(1002)}
    write(root, content)
    return {name: data for name, data in content.items() if data != encoded(1000) or name == "secret.png"}


def tree_of(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return what lies below a folder: kind and size of each entry, target of a link, hash of a small file."""
    found: dict[str, tuple[Any, ...]] = {}
    for above, folders, files in os.walk(root):
        for path in (Path(above, name) for name in (*folders, *files)):
            status = path.lstat()
            content = str(path.readlink()) if path.is_symlink() else None
            if content is None and path.is_file() and status.st_size < 2**24:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = (status.st_mode, 0 if path.is_dir() else status.st_size, content)
    return found


def _holds(root: Path, data: bytes) -> bool:
    return any(data in path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink())


# --- what the process does meanwhile --------------------------------------------------------------------------------

_watching: list[tuple[str, list[str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    place, seen = _watching[-1]
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if not (event in ("socket.connect", "socket.bind") and isinstance(arguments[1], str | bytes)):  # a socket of this machine is no network
            seen.append(f"{event} of {arguments[1:]!r}"[:200])
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "webbrowser.open"):
        seen.append(f"{event} of {arguments[:2]!r}"[:200])
    elif event == "subprocess.Popen" and os.fspath(arguments[0]) != sys.executable:  # meca may decode in a process of its own
        seen.append(f"{event} of {arguments[:2]!r}"[:200])
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
        # Files of a process that decodes lie in the folder for temporary ones, as does `place`, where everything is compared.
        if path.startswith("/") and not path.startswith((place, tempfile.gettempdir(), "/dev/")) and "/__pycache__/" not in path:
            seen.append(f"{path} was opened for writing")


_hooked: list[bool] = []


@contextlib.contextmanager
def _watched(place: Path) -> Iterator[list[str]]:
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_hook)  # for good: there is no way to take it away
    seen: list[str] = []
    _watching.append((str(place), seen))
    try:
        yield seen
    finally:
        _watching.pop()


@contextlib.contextmanager
def limited() -> Iterator[None]:
    old, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 2**44
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY if hard == resource.RLIM_INFINITY else min(hard, mapped + MEMORY), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (old, hard))


# --- the stage -------------------------------------------------------------------------------------------------------


def _read(case: Case, made: Path, place: Path) -> Trial:
    settings = {**SIZES, **{f"ingest.{key}": value for key, value in case.settings.items()}, "ingest.source": str(made)}
    try:
        params = with_settings(read_params(), settings)
        execute(ingest, {"out": place / "out"}, params, scratch=place / "run")
        store = open_store(place / "out")
    except (InputRefused, UsageError) as error:
        kind = "REFUSE" if isinstance(error, InputRefused) else "USAGE"
        trial = Trial(f"{kind}: “{plain(error, 200)}”")
        if kind != case.expected.kind or case.expected.says not in str(error):
            trial.wrong.append(f"expected {case.expected}, got {trial.outcome}")
        if (place / "out").exists():
            trial.wrong.append("a set that is refused left an output")
        return trial
    except Exception as error:  # what no case may end in
        return Trial(f"{type(error).__name__}: {plain(error, 200)}", [f"expected {case.expected}, got an exception: {type(error).__name__}: {error}"])
    return _compare(case.expected, store)


def _compare(expected: Expected, store: Store) -> Trial:
    lines = store.samples.to_pylist()
    reasons = {line["source"]: line["reason"] for line in lines if line["row"] < 0}
    notes = {line["source"]: tuple(note for note in line["notes"] if not note.startswith("resized:")) for line in lines if line["row"] >= 0}
    found = Expected("QUAR" if reasons else "KEPT", reasons=reasons, kept=store.info.n, notes={name: notes.get(name, ()) for name in expected.notes})
    trial = Trial(str(found), lost=sum(line["row"] < 0 and not line["reason"] for line in lines))
    if (found.kind, dict(found.reasons), found.kept) != (expected.kind, dict(expected.reasons), expected.kept):
        trial.wrong.append(f"expected {expected} {dict(expected.reasons)}, got {found} {reasons}")
    trial.wrong += [
        f"{name} has the notes {found.notes[name]}, expected {wanted}" for name, wanted in expected.notes.items() if found.notes[name] != wanted
    ]
    if expected.classes is not None and store.info.class_names != expected.classes:
        trial.wrong.append(f"the classes are {store.info.class_names}, expected exactly {expected.classes}")
    if not len(lines) == store.info.n + store.info.quarantined == len(notes) + len(reasons) or trial.lost:
        trial.wrong.append(f"{len(lines)} samples came in, {store.info.n} were kept and {store.info.quarantined} quarantined")
    if len({line["source"] for line in lines}) != len(lines):
        trial.wrong.append("two samples share a name")
    return trial


# --- the command line ------------------------------------------------------------------------------------------------


def _command(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(argv)
    return code, out.getvalue(), err.getvalue()


def _cleaned(case: Case, source: Path, place: Path, *options: str) -> Trial:
    """Give a set that must be refused to `meca clean`."""
    settings = (f"ingest.{key}={value}" for key, value in case.settings.items() if key != "format")
    chosen = ("--format", case.settings.get("format", "auto"), *(part for setting in settings for part in ("--set", setting)), *options)
    code, out, err = _command("clean", str(source), "--output", str(place / "out-clean"), *chosen)
    *_, said = ["", *err.strip().split("\n")]  # behind lines of progress
    said = said.removeprefix("meca: ") if said.startswith("meca: ") else ""
    trial = Trial(f"{ {3: 'REFUSE', 4: 'USAGE'}.get(code, f'exit {code}') }: “{said[:200]}”")
    if code != EXITS[case.expected.kind]:
        trial.wrong.append(f"`meca clean` ended with {code}, expected {EXITS[case.expected.kind]}: {said[:500]}")
    if plain(case.expected.says, 2000) not in said:
        trial.wrong.append(f"`meca clean` did not say “{case.expected.says}” but: {said[:500]}")
    if CONTROLS.search(err) or out or len(said) > 2500 or not said:
        trial.wrong.append(f"`meca clean` did not say it in one line of plain text: {ascii(out + err)[:500]}")
    if (place / "out-clean").exists():
        trial.wrong.append("`meca clean` left an output")
    return trial


def _by_command_alone(case: Case, made: Path, place: Path) -> Trial:
    options = tuple(str(made) if option == "{params}" else option for option in case.options)
    return _cleaned(case, folder(place / "out-good"), place, *options)


def _by_command(case: Case, made: Path, place: Path) -> list[str]:
    if case.expected.kind in ("REFUSE", "USAGE"):
        return _cleaned(case, made, place).wrong
    chosen = ("inspect", str(made), "--format", case.settings.get("format", "auto"), "--label-column", case.settings.get("label_column", "auto"))
    code, shown, err = _command(*chosen)
    wrong = [f"`meca inspect` ended with {code}: {err[:500]}"] * (code != 0)
    wrong += [f"`meca inspect` shows a control character: {ascii(line)[:200]}" for line in shown.split("\n") if CONTROLS.search(line)]
    code, exact, err = _command(*chosen, "--json")
    if code != 0 or not exact.isascii():
        return [*wrong, f"`meca inspect --json` ended with {code}, or is no plain text: {ascii(exact + err)[:500]}"]
    found = json.loads(exact)
    seen = {f"{name} ({reason})" for name, reason in case.expected.reasons.items()}
    wrong += [f"`meca inspect` found {found['unreadable']} unreadable, expected {sorted(seen)}"] * (set(found["unreadable"]) != seen)
    wrong += [f"`meca inspect` does not name {name!r} as not read" for name in case.expected.odd if name not in found["odd"]]
    wrong += [f"`meca inspect` does not warn: {case.expected.warns}"] * (
        not any(case.expected.warns in warning for warning in ["", *found["warnings"]])
    )
    if case.expected.classes is not None and set(found["classes"]["train"]) != set(case.expected.classes):
        wrong.append(f"`meca inspect --json` has the classes {list(found['classes']['train'])}, expected exactly {case.expected.classes}")
    return wrong
