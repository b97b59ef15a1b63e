"""Disks that are full, failing, limited or read-only, a network that is not there, others at work on the same folders; see docs/faults.md.

    python -m benchmarks.reliability.faults disk       ENOSPC, EDQUOT, EFBIG and EIO at every write of the stages without torch, and of some others
    python -m benchmarks.reliability.faults full       `meca clean` on a disk that is too small, and a little larger each time
    python -m benchmarks.reliability.faults limits     small limits for files, descriptors and inodes; a disk that turns read-only
    python -m benchmarks.reliability.faults network    `meca clean` without a network, and what it asks of one
    python -m benchmarks.reliability.faults together   2 to 16 runs at once, with one output and with one input
    python -m benchmarks.reliability.faults moving     a folder that changes while it is read
    python -m benchmarks.reliability.faults bits       one bit of a store, a score, a model, a checkpoint, verdicts, a shard or the manifest changes
    python -m benchmarks.reliability.faults            all of them

As specified is: exit code 2 with one sentence, no half output, and the same bytes from the same command when the cause is gone. Needs
Linux; `disk` and `network` need strace, `full`, `limits` and `network` a user namespace (`unshare`), which some containers forbid.
"""

import argparse
import base64
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reliability import rehearsal
from benchmarks.reliability.crash_points import enumerate_points
from benchmarks.reliability.rehearsal import WITH_TORCH, WITHOUT_TORCH, Place
from benchmarks.reliability.tracing import CREATES, FOLDERS, RENAMES, SYNCS, WRITES, Fault, Point, fail, record_network, require_strace
from benchmarks.rows import ROOT
from meca import verbs
from meca.errors import MecaError, UsageError
from meca.files import sha256_tree

SAMPLE = 6  # faults of a stage with torch
EVERY = 10  # after so many faults one that left nothing behind is followed by another run all the same
SENTENCE = re.compile(r"^meca( \w+)?: (Could not go on|A run on this data needs|.* is being written by process)[^\n]*\.$")

FULL, QUOTA, LARGE, BAD = Fault("ENOSPC", True), Fault("EDQUOT", True), Fault("EFBIG", True), Fault("EIO", False)


@dataclass
class Campaign:
    """What was tried and what went wrong."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, what: str, failure: str | None) -> None:
        """Count one case."""
        self.tried += 1
        self.check(what, failure)

    def check(self, what: str, failure: str | None) -> None:
        """Look at the end of cases that were counted before."""
        if failure:
            self.wrong.append(f"{what}: {failure}")
            print("  wrong:", self.wrong[-1], flush=True)


def cases(found: Sequence[Point]) -> list[tuple[Point, Fault]]:
    """Return every fault that fits each point: what a full disk, a quota, a limit and a bad sector answer to that call."""
    chosen: list[tuple[Point, Fault]] = []
    for point in found:
        if point.call in WRITES:
            chosen += [(point, fault) for fault in (FULL, QUOTA, LARGE, BAD)]
        elif point.call in SYNCS:
            chosen += [(point, fault) for fault in (FULL, QUOTA, BAD)]
        elif point.call in (*CREATES, *FOLDERS, *RENAMES):
            chosen += [(point, fault) for fault in (FULL, QUOTA)]
    return chosen


def endures(place: Place, point: Point, fault: Fault, again: bool) -> str | None:
    """Let a call of a stage fail; return what is not as it should be, or None.

    Args:
        place: Of the stage.
        point: The call.
        fault: What it answers.
        again: Run the stage once more even where the fault has left the folder as it was before.
    """
    place.reset()
    before = listing(place.folder)
    failed = fail(point, fault, place.command, place.folder, place.variables)
    if failed.returncode == 0:
        # Allowed where the work was done all the same, as by a copy that tries another call.
        return f"a fault that nobody noticed: {wrong}" if (wrong := place.difference()) else None
    if unclear := sentence(failed):
        return unclear
    if torn := [*place.torn(), *place.missing()]:
        return f"a reader finds {torn} neither old nor new"
    if listing(place.folder) != before or again:
        done = place.run()
        if done.returncode not in place.good:
            return f"run again it ends with {done.returncode}: {done.stderr[-300:]}"
        if wrong := place.difference():
            return f"{wrong} differ after the second run"
    return None


def sentence(done: subprocess.CompletedProcess[str]) -> str | None:
    """Return what is wrong with the end of a program that should have ended with code 2 and a sentence."""
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    if done.returncode != MecaError.exit_code:
        return f"exit code {done.returncode}: {done.stderr[-300:]}"
    return None if SENTENCE.match(last) and "Traceback" not in done.stderr else f"no sentence: {done.stderr[-300:]}"


def listing(folder: Path) -> dict[str, str]:
    """Return every file and folder of a place but its locks and empty folders of meca's own."""
    kept = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in (".meca", "receipts") or path.is_file())
    return {str(path): "" if path.is_dir() else str(path.stat().st_size) for path in kept if "locks" not in path.parts}


def disk(room: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Campaign]]:
    """Let each write fail."""
    first = rehearsal.make_run(room / "first")
    other = rehearsal.make_run(room / "other", first / "source", **{"seed": 1, "publish.name": "another"})
    for kind, stages, sample in (
        ("stages without torch", WITHOUT_TORCH, arguments.sample),
        ("stages with torch, a drawn sample", WITH_TORCH, arguments.sample or SAMPLE),
    ):
        campaign = Campaign()
        for stage in stages:
            place = rehearsal.set_up(stage, first, room / stage, other if stage == "publish" else None)
            chosen = cases(enumerate_points(place)[0])
            n = len(chosen)
            if sample and sample < n:
                chosen = random.Random(arguments.seed).sample(chosen, sample)
            for at, (point, fault) in enumerate(chosen):
                campaign.note(f"{stage} {fault.error} at {point}", endures(place, point, fault, at % EVERY == 0))
            campaign.notes.append(f"{stage} {len(chosen)} of {n}")
            print(campaign.notes[-1], f"{len(campaign.wrong)} wrong", flush=True)
        yield f"ENOSPC, EDQUOT, EFBIG, EIO at each write, {kind}", campaign


@dataclass(frozen=True)
class Cleaning:
    """A run of `meca clean` on the tiny set, and what an undisturbed one publishes."""

    source: Path
    params: Path
    expected: str

    def command(self, out: Path) -> list[str]:
        """The command line."""
        return rehearsal.clean_command(self.source, out, self.params)

    def run(self, out: Path, *wrapper: str) -> subprocess.CompletedProcess[str]:
        """Run it, behind the words of another program."""
        return subprocess.run(
            [*wrapper, *self.command(out)],
            cwd=out.parent,
            env=rehearsal.variables(out.parent),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def failure(self, done: subprocess.CompletedProcess[str], out: Path) -> str | None:
        """Return what is wrong with a run that was to fail: the code, the words, half an output."""
        return sentence(done) or ("a half output" if out.exists() and sha256_tree(out) != self.expected else None)

    def success(self, done: subprocess.CompletedProcess[str], out: Path) -> str | None:
        """Return what is wrong with a run that was to end well."""
        if done.returncode not in (0, 1, 5):
            return f"exit code {done.returncode}: {done.stderr[-300:]}"
        return None if sha256_tree(out) == self.expected else "other bytes than the undisturbed run"


def cleaning(room: Path) -> Cleaning:
    """Make the tiny set, its parameters, and one undisturbed output."""
    from meca.params import PACKAGED, read_params, with_settings

    room.mkdir(parents=True, exist_ok=True)
    source, params = rehearsal.make_data(room / "source"), room / "params.json"
    params.write_text(json.dumps(with_settings(read_params(PACKAGED), rehearsal.TINY).tree))
    found = Cleaning(source, params, "")
    done = found.run(room / "whole")
    if done.returncode not in (0, 1, 5):
        raise RuntimeError(done.stderr[-2000:])
    return Cleaning(source, params, sha256_tree(room / "whole"))


def full(room: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Campaign]]:
    """Run on a disk that is too small until it is large enough; inside a namespace of our own, where it can be mounted."""
    if not inside(room, arguments, "full", "-Urm"):
        return
    clean, place, campaign = cleaning(room), room / "disk", Campaign()
    place.mkdir()
    need = sum(file.stat().st_size for file in (room / ".whole.meca").rglob("*") if file.is_file())
    refused = 0
    mount(place, "size=16k")
    done = None
    for size in range(16, 4 * need // 1024, max(16, need // 1024 // arguments.steps)):
        mount(place, f"remount,size={size}k")
        done = clean.run(place / "out")
        if done.returncode != MecaError.exit_code:
            break
        refused += "A run on this data needs" in done.stderr
        campaign.note(f"disk of {size} KiB", clean.failure(done, place / "out"))
    assert done is not None
    campaign.note("large enough", clean.success(done, place / "out"))
    campaign.notes = [f"{campaign.tried - 1} sizes too small, of which the estimate refused {refused} before any work; then the same bytes"]
    yield "disk full (tmpfs), a little larger each time", campaign


def limits(room: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Campaign]]:
    """Run under limits; each is lifted afterwards, and the same command has to end in the same bytes."""
    if not inside(room, arguments, "limits", "-Urm"):
        return
    clean, campaign, place = cleaning(room), Campaign(), room / "disk"
    largest = max(file.stat().st_size for file in (room / ".whole.meca").rglob("*") if file.is_file())
    for size in sorted({0, 1, 1000, *(largest * k // 4 for k in range(1, 4)), largest - 1}):
        limited(campaign, clean, room / f"fsize-{size}" / "out", f"file size {size}", "prlimit", f"--fsize={size}:")
    for number in (12, 16, 24, 32, 64):
        limited(campaign, clean, room / f"nofile-{number}" / "out", f"{number} descriptors", "prlimit", f"--nofile={number}:")
    place.mkdir()
    for inodes in (4, 16, 32, 48, 64):
        mount(place, f"size=64m,nr_inodes={inodes}")
        failed = clean.run(place / "out")
        campaign.note(f"{inodes} inodes", clean.failure(failed, place / "out") if failed.returncode == 2 else clean.success(failed, place / "out"))
        mount(place, "remount,size=64m,nr_inodes=10000")
        campaign.note(f"{inodes} inodes, then enough", clean.success(clean.run(place / "out"), place / "out"))
        subprocess.run(["umount", str(place)], check=True)
    for seconds in (0.0, 4.0, 5.0, 6.0):
        mount(place, "size=64m")
        read_only(campaign, clean, place, seconds)
        subprocess.run(["umount", str(place)], check=True)
    yield "limits: file size, descriptors, inodes, a disk that turns read-only", campaign


def limited(campaign: Campaign, clean: Cleaning, out: Path, what: str, *wrapper: str) -> None:
    """Run under a limit and then without."""
    out.parent.mkdir()
    failed = clean.run(out, *wrapper)
    # Below some number of descriptors the interpreter itself does not start: then nothing was promised, and nothing may be there.
    started = "meca" in failed.stderr or failed.returncode in (0, 1, 2, 5)
    worked = failed.returncode in (0, 5) or (failed.returncode == 1 and out.exists())
    campaign.note(what, clean.success(failed, out) if worked else clean.failure(failed, out) if started else "half" if out.exists() else None)
    campaign.note(f"{what}, then none", clean.success(clean.run(out), out))
    shutil.rmtree(out.parent)


def read_only(campaign: Campaign, clean: Cleaning, place: Path, seconds: float) -> None:
    """Turn the disk read-only after some seconds, and back."""
    out = place / "out"
    process = subprocess.Popen(
        clean.command(out), cwd=place, env=rehearsal.variables(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    # A file that is open for writing holds the mount: the kernel lets go in between.
    while process.poll() is None and subprocess.run(["mount", "-o", "remount,ro", str(place)], capture_output=True, check=False).returncode:
        time.sleep(0.01)
    said, errors = process.communicate()
    done = subprocess.CompletedProcess(process.args, process.returncode, said, errors)
    what = f"read-only after {seconds:g} s"
    campaign.note(what, clean.failure(done, out) if done.returncode == MecaError.exit_code else clean.success(done, out))
    mount(place, "remount,rw")
    campaign.note(f"{what}, then not", clean.success(clean.run(out), out))


def mount(place: Path, options: str) -> None:
    """Mount a tmpfs, or change the one that is there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def inside(room: Path, arguments: argparse.Namespace, what: str, namespaces: str) -> bool:
    """Tell whether this process is in namespaces of its own; if not, do the work in one that is, and take over its result.

    Raises:
        UsageError: There is no `unshare`, or the system forbids it.
    """
    if arguments.inside:
        return True
    if shutil.which("unshare") is None or subprocess.run(["unshare", namespaces, "true"], capture_output=True, check=False).returncode:
        raise UsageError(
            "Expected `unshare` to make a namespace, which this system forbids or lacks (package `util-linux`); use a plain Linux machine."
        )
    options = ["--inside", "--room", str(room), "--seed", str(arguments.seed), "--steps", str(arguments.steps)] + ["--no-row"] * arguments.no_row
    done = subprocess.run(
        ["unshare", namespaces, sys.executable, "-m", "benchmarks.reliability.faults", what, *options],
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    arguments.failed = arguments.failed or done.returncode != 0
    return False


def network(room: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Campaign]]:
    """Clean local data where there is no network, and count what is asked of one where there is."""
    clean, campaign = cleaning(room), Campaign()
    (room / "without").mkdir()
    campaign.note("in a namespace without a network", clean.success(clean.run(room / "without" / "out", "unshare", "-Urn"), room / "without" / "out"))
    verified = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", "from flows.cli import main; main()", "verify", str(room / "without" / "out")],
        cwd=room, env=rehearsal.variables(room), capture_output=True, text=True, check=False,
    )  # fmt: skip
    campaign.note("verify without a network", None if verified.returncode == 0 else verified.stderr[-300:])
    (room / "with").mkdir()
    out = room / "with" / "out"
    calls = record_network(clean.command(out), out.parent, rehearsal.variables(out.parent), room / "record")
    campaign.note("with a network: same bytes", None if sha256_tree(out) == clean.expected else "other bytes")
    campaign.note("with a network: calls", f"{calls[:5]}" if calls else None)
    campaign.notes = [f"{len(calls)} calls of socket, connect, bind or send that were not for a local (unix) address"]
    yield "no network: `meca clean` and `meca verify` of local data", campaign


def together(room: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Campaign]]:
    """Start stage `ingest` several times at once: on one output, and on one input with outputs of their own."""
    first = rehearsal.make_run(room / "first")
    place, campaign = rehearsal.set_up("ingest", first, room / "ingest"), Campaign()
    owners = refused = 0
    for n in (2, 4, 8, 16):
        place.reset()
        for code, errors in at_once([place.command] * n, place):
            owners += code == 0
            refused += code == MecaError.exit_code
            unclear = None if code == 0 else sentence(subprocess.CompletedProcess([], code, "", errors))
            campaign.note(f"{n} with one output", unclear)
        campaign.note(f"{n} with one output, at the end", f"{wrong}" if (wrong := place.difference()) else None)
        place.reset()
        outs = [place.folder / f"out-{k}" for k in range(n)]
        commands = [[str(out) if word.endswith("data/ingested") else word for word in place.command[:-2]] for out in outs]
        for (code, errors), out in zip(at_once(commands, place), outs, strict=True):
            same = code == 0 and sha256_tree(out) == place.expected["data/ingested"]
            campaign.note(f"{n} with outputs of their own", None if same else f"exit code {code}: {errors[-300:]}")
            shutil.rmtree(out, ignore_errors=True)
    campaign.notes = [f"with one output {owners} wrote it, one after the other, and {refused} ended with code 2 and named the owner"]
    yield "2, 4, 8, 16 runs at once", campaign


def at_once(commands: Sequence[Sequence[str]], place: Place) -> list[tuple[int, str]]:
    """Start programs behind a barrier and return the code and the words of each."""
    gate = place.folder / "gate"
    gate.unlink(missing_ok=True)
    wait = f'while [ ! -e {gate} ]; do sleep 0.01; done; exec "$@"'
    started = [
        subprocess.Popen(
            ["sh", "-c", wait, "sh", *command], cwd=place.folder, env=place.variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    gate.touch()
    said = [process.communicate()[1] for process in started]
    gate.unlink()
    return [(process.returncode, errors) for process, errors in zip(started, said, strict=True)]


def moving(room: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Campaign]]:
    """Add, edit, delete and swap files while stage `ingest` reads them: what it has is whole, and what vanished is named."""
    from meca.data.readers.shapes import CLASS_NAMES, generate
    from meca.data.store import png_bytes

    images, labels = generate(400, arguments.seed, rehearsal.SIDE)
    campaign, vanished = Campaign(), 0
    for number in range(arguments.rounds):
        rng, folder = random.Random(arguments.seed * 1000 + number), room / f"moving-{number}"
        contents: dict[str, set[bytes]] = {}
        for at, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = folder / "source" / CLASS_NAMES[label] / f"{at}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png_bytes(image))
            contents[str(file.relative_to(folder / "source"))] = {file.read_bytes()}
        failure, gone = _while_it_moves(folder, contents, rng)
        vanished += gone
        campaign.note(f"round {number}", failure)
        shutil.rmtree(folder)
    campaign.notes = [f"{vanished} files that vanished or became links were quarantined and named; every other one has bytes that its file had"]
    yield "a folder that changes while it is read", campaign


def _while_it_moves(folder: Path, contents: dict[str, set[bytes]], rng: random.Random) -> tuple[str | None, int]:
    from meca.data.store import open_store

    (folder / "params.json").write_text(json.dumps(_params_of(folder / "source").tree))
    place = Place("ingest", folder, (), ("data/ingested",), None, {}, {})
    process = subprocess.Popen(place.command, cwd=folder, env=place.variables, stderr=subprocess.PIPE, text=True)
    names, ended = list(contents), threading.Event()

    def disturb() -> None:
        while not (folder / "data" / "ingested.tmp" / "payload.tmp").exists() and not ended.is_set():  # the folder is listed by now
            time.sleep(0.001)
        for name in rng.sample(names, len(names) // 4):
            if ended.is_set():
                return
            _disturb(folder / "source" / name, contents[name], rng)

    thread = threading.Thread(target=disturb)
    thread.start()
    errors = process.communicate()[1]
    ended.set()
    thread.join()
    if process.returncode == 3 and "cannot be read" in errors:  # too many at once: refused as a whole, in a sentence
        return None, 0
    if process.returncode:
        return f"exit code {process.returncode}: {errors[-300:]}", 0
    store = open_store(folder / "data" / "ingested")
    lines = {line["source"]: line for line in store.samples.to_pylist()}
    if missing := sorted(set(names) - set(lines)):
        return f"{missing[:3]} were there at the start and are lost", 0
    for name, line in lines.items():
        if line["row"] >= 0 and name in contents and store.payload(line["offset"], line["bytes"]) not in contents[name]:
            return f"{name} has bytes that its file never had", 0
    return None, sum(line["reason"] is not None for line in lines.values())


def _disturb(file: Path, contents: set[bytes], rng: random.Random) -> None:
    """Do one thing to a file that a careless or hostile supplier could do."""
    match rng.randrange(4):
        case 0:
            file.unlink()
        case 1:
            new = file.read_bytes() + b"later"
            contents.add(new)
            other = file.with_name(".other")
            other.write_bytes(new)
            os.replace(other, file)
        case 2:
            file.unlink()
            file.symlink_to("/etc/hostname")
        case _:
            shutil.copyfile(file, file.with_name(f"new-{file.name}"))


KINDS = {  # of files in a finished run of `meca clean`: below its output, below its run folder
    "published shard": ("out", "data/train-*.parquet"),
    "verdicts": ("out", "verdicts.parquet"),
    "manifest": ("out", "manifest.json"),
    "signature": ("out", "attestation.json"),
    "published model": ("out", "model/*.safetensors"),
    "store": ("run", "data/store/*"),
    "scores": ("run", "work/*/scores.parquet"),
    "decisions": ("run", "work/*/decisions.parquet"),
    "model of a stage": ("run", "work/*/*.safetensors"),
}
BITS, WHOLE = 200, 2  # a kind; so many of a kind of the run are followed by a whole run


def bits(room: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Campaign]]:
    """Change one drawn bit of a drawn file; `meca verify` has to name the file, a run has to derive the stage anew, a checkpoint must not be used."""
    from meca import pipeline
    from meca.params import PACKAGED, read_params, with_settings
    from meca.release import signing
    from meca.release.verification import verify

    campaign, rng, room = Campaign(), random.Random(arguments.seed), room.resolve()
    source, secret, public = rehearsal.make_data(room / "source"), room / "key.pem", room / "key.pub"
    signing.make_keys(secret, public)
    params = with_settings(read_params(PACKAGED), {**rehearsal.TINY, "poison.attack": "none", "ingest.source": str(source)})
    key = signing.read_private_key(secret)

    def clean() -> str:
        shutil.rmtree(room / "out", ignore_errors=True)
        verbs.clean(str(source), room / "out", params, key=key)
        return sha256_tree(pipeline.run_folder(room / "out") / "published")

    hints, expected, places = 0, clean(), {"out": room / "out", "run": pipeline.run_folder(room / "out")}
    if not _believed(places["run"], params) or verify(room / "out", public):
        raise RuntimeError("The run is not taken for whole before anything was changed: nothing could be seen.")
    for kind, (where, pattern) in KINDS.items():
        files = sorted(path for path in places[where].glob(pattern) if path.stat().st_size)
        if not files:
            raise RuntimeError(f"{kind}: no file {pattern}")
        for number in range(BITS):
            file = rng.choice(files)
            before = file.read_bytes()
            what = f"{kind}, {_flip(file, rng)}"
            if where == "out":
                said = verify(room / "out", public)
                # The name of a key is a hint that nobody signs, and base64 has bits at its end that mean nothing (DSSE, RFC 4648).
                harmless = kind == "signature" and said == [] and _signed(file.read_bytes()) == _signed(before)
                hints += harmless
                campaign.note(what, None if harmless or any(file.name in line for line in said) else f"verify says {said[:2]}")
            elif number >= WHOLE:
                campaign.note(what, "the run is believed to be finished" if _believed(places["run"], params) else None)
            else:
                campaign.note(what, None if clean() == expected else "other bytes after the next run")
            file.write_bytes(before)
        print(f"{kind}: {BITS} bits, {len(campaign.wrong)} wrong", flush=True)
    campaign.check("at the end", None if clean() == expected and verify(room / "out", public) == [] else "not as at the start")
    for what, failure in _checkpoints(room, rng):
        campaign.note(what, failure)
    kinds = ", ".join([*KINDS, "checkpoint"])
    campaign.notes = [f"{BITS} each of {kinds}; {WHOLE} a kind of the run were followed by a whole run, with the same bytes"]
    campaign.notes.append(f"{hints} bits of the signature file meant nothing: not what was signed, nor the signature")
    yield "one bit changed in a file that meca wrote", campaign


def _signed(data: bytes) -> bytes:
    return base64.b64decode(json.loads(data)["payload"])


def _believed(folder: Path, params: Any) -> bool:
    """Tell whether a run would take every stage for finished."""
    import importlib

    from meca import pipeline
    from meca.stages.graph import graph

    for name in graph():
        module = importlib.import_module(f"meca.stages.{name}")
        receipt = folder / "work" / "receipts" / f"{name}.json"
        if not pipeline._finished(module, pipeline.paths_of(module, name, folder), params, receipt):  # pyright: ignore[reportPrivateUsage]
            return False
    return True


def _checkpoints(room: Path, rng: random.Random) -> Iterator[tuple[str, str | None]]:
    """Change one bit of a checkpoint: the training has to begin anew."""
    import torch

    from meca.training.checkpoints import resume, save_checkpoint
    from meca.training.trainer import Recipe, Trainer

    file, recipe = room / "model.safetensors", Recipe(1, 0, 16, 0.1, 0.9, 0.0, 0.0, "none", 0)
    trainer = Trainer(torch.nn.Linear(500, 4), recipe, 10)
    save_checkpoint(trainer, file, 3)
    whole = file.read_bytes()
    if resume(trainer, file) != 3:
        raise RuntimeError("A whole checkpoint was not used.")
    for _ in range(BITS):
        what = _flip(file, rng)
        yield f"checkpoint, {what}", None if resume(trainer, file) == 0 else "it was used"
        file.write_bytes(whole)


def _flip(file: Path, rng: random.Random) -> str:
    """Change a drawn bit, and return which."""
    data, bit = bytearray(file.read_bytes()), rng.randrange(8 * file.stat().st_size)
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return f"bit {bit} of {file.name}"


def _params_of(source: Path) -> Any:
    from meca.params import PACKAGED, read_params, with_settings

    return with_settings(read_params(PACKAGED), {"ingest.source": str(source), "ingest.quarantine_share": 0.5})


CAMPAIGNS: dict[str, Callable[[Path, argparse.Namespace], Iterator[tuple[str, Campaign]]]] = {
    "disk": disk, "full": full, "limits": limits, "network": network, "together": together, "moving": moving,
    "bits": bits,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run campaigns, write a row for each, return the exit code: 0 when all ended as specified, 2 otherwise, 4 if a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"{', '.join(CAMPAIGNS)}; all without it")
    parser.add_argument("--sample", type=int, help="disk: so many faults of every stage")
    parser.add_argument("--steps", type=int, default=24, help="full: sizes up to what the run needs")
    parser.add_argument("--rounds", type=int, default=20, help="moving: runs")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn")
    parser.add_argument("--no-row", action="store_true", help="a rehearsal")
    parser.add_argument("--room", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.failed = False
    if unknown := [what for what in arguments.what if what not in CAMPAIGNS]:
        parser.error(f"expected campaigns among {', '.join(CAMPAIGNS)}, got {unknown[0]}")
    failed = False
    for what in arguments.what or CAMPAIGNS:
        room = arguments.room or Path(tempfile.mkdtemp(prefix="meca-faults-")).resolve()
        started = time.perf_counter()
        try:
            if what in ("disk", "network"):
                require_strace()
            for name, campaign in CAMPAIGNS[what](room, arguments):
                failed = failed or bool(campaign.wrong)
                good, seconds = campaign.tried - len(campaign.wrong), time.perf_counter() - started
                notes = "; ".join([*campaign.notes, *campaign.wrong[:3]])
                if arguments.no_row:
                    print(f"{name}: {good} of {campaign.tried}; {notes}", flush=True)
                else:
                    rehearsal.row(name, campaign.tried, good, None, notes, f"python -m benchmarks.reliability.faults {what}", arguments.seed, seconds)
                started = time.perf_counter()
        except UsageError as error:
            print(f"meca: {error}", file=sys.stderr)
            return error.exit_code
        finally:
            if not arguments.inside:
                with contextlib.suppress(OSError):
                    shutil.rmtree(room)
    return 2 if failed or arguments.failed else 0


if __name__ == "__main__":
    sys.exit(main())
