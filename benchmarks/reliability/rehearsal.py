"""A tiny finished run, and places in which one stage of it can be run, killed and run again; rows of reliability.jsonl.

python -m benchmarks.reliability.rehearsal FOLDER     make the run
"""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.rows import ROOT
from meca.files import copy_folder, sha256_tree

WITHOUT_TORCH = ("ingest", "poison", "publish", "report")
CLEAN = "clean"
WITH_TORCH = ("partition", "enhance", "split", "control", "train_clean", "relabel_finetune", "evaluate")
VOLATILE = ("seconds", "timings", "peak_mib")  # of a receipt; all else in it is a function of input, parameters and code

TRAIN, TEST, SIDE = 80, 40, 16  # images, pixels
# One or two passes, and thresholds under which so small a set has a verdict `poisoned` and something to relabel: what is found does not matter.
TINY: Mapping[str, Any] = {
    "ingest.size": SIDE, "network.width": 4, "detector.width": 4, "poison.rate": 0.1,
    "partition.recipe.epochs": 2, "partition.recipe.min_steps": 0, "partition.recipe.batch_size": 16,
    "enhance.recipe.epochs": 1, "enhance.recipe.min_steps": 0, "enhance.recipe.batch_size": 16, "enhance.rounds": 1,
    "split.recipe.epochs": 1, "split.recipe.min_steps": 0, "split.recipe.batch_size": 16, "split.rounds": 1, "split.probe": 8,
    "split.false_discovery": 1.0, "split.cap_flagged": 1.0, "split.cap_left": 0.0,
    "train_clean.epochs": 4, "train_clean.min_steps": 0, "train_clean.batch_size": 16,
    "relabel_finetune.recipe.epochs": 1, "relabel_finetune.recipe.min_steps": 0, "relabel_finetune.recipe.batch_size": 16,
    "relabel_finetune.confidence": 0.0, "control.when": "never",
}  # fmt: skip


def row(name: str, tried: int, as_specified: int, lost: int | None, notes: str, command: str, seed: int, seconds: float) -> dict[str, Any]:
    """Append a row about a campaign on the tiny set to reliability.jsonl and return it.

    Args:
        name: Of the campaign; with the same hardware it replaces the older row in the documentation.
        tried: How many cases.
        as_specified: How many of them ended as they should.
        lost: Samples or files that are gone; None where nothing could be.
        notes: What was tried and what happened otherwise.
        command: The command that wrote the row.
        seed: Of what was drawn.
        seconds: Wall time.
    """
    from meca.params import PACKAGED, read_params, with_settings

    found = {"name": name, "tried": tried, "as_specified": as_specified, "lost": lost, "notes": notes}
    found |= rows.provenance(command, seconds, seed, with_settings(read_params(PACKAGED), TINY))
    rows.write("reliability.jsonl", found)
    return found


def make_data(folder: Path) -> Path:
    """Write images as Hugging Face's parquet shards, with a further column and one broken image: every kind of file that a store has."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from meca.data.readers.shapes import CLASS_NAMES, generate

    folder.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64()), ("place", pa.string())], metadata=metadata)
    for split, n in (("train", TRAIN), ("test", TEST)):
        images, labels = generate(n, 0, SIDE, split)
        encoded: list[bytes] = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            encoded.append(buffer.getvalue())
        if split == "train":
            encoded[5] = encoded[5][:100]
        columns = [[{"bytes": data, "path": f"{split}{at}.png"} for at, data in enumerate(encoded)], labels, [f"place {at}" for at in range(n)]]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), folder / f"{split}-00000-of-00001.parquet")
    return folder


def make_run(folder: Path, data: Path | None = None, **settings: Any) -> Path:
    """Run every stage on the tiny set, into `folder`, and return it."""
    from meca import pipeline
    from meca.params import PACKAGED, read_params, with_settings

    source = data or make_data(folder / "source")
    params = with_settings(read_params(PACKAGED), {**TINY, "ingest.source": str(source), **settings})
    pipeline.run(folder, params)
    (folder / "params.json").write_text(json.dumps(params.tree))  # JSON is YAML
    return folder


def variables(place: Path) -> dict[str, str]:
    """Return the environment of a program: this checkout, one thread, no GPU, nothing compiled beside the sources."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR", "MECA_DATA", "MECA_STATE_DIR")}
    fixed = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "MECA_DEVICE": "cpu", "MECA_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # Absolute, because strace compares the words of a call.
    return {**kept, **fixed, "OMP_WAIT_POLICY": "PASSIVE", "MECA_SCRATCH": str(place / ".meca")}


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with what one stage reads, and what an undisturbed run of it writes."""

    stage: str  # or CLEAN, which has only its last step to do: every stage is finished
    folder: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    old: Path | None  # holds an earlier output of the stage, over which this one is written
    expected: Mapping[str, str]  # hash of every output of an undisturbed run, and its receipt
    older: Mapping[str, str]

    @property
    def command(self) -> list[str]:
        """The program of the stage."""
        if self.stage == CLEAN:
            return clean_command(self.folder / "source", self.folder / "out", self.folder / "params.json")
        return command(self.stage, self.folder)

    @property
    def good(self) -> tuple[int, ...]:
        """The exit codes with which it has done its work; of `meca clean` they are verdicts."""
        return (0, 1, 5) if self.stage == CLEAN else (0,)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the program."""
        return variables(self.folder)

    def reset(self) -> None:
        """Take away what a run left, and put the earlier output there."""
        for path in (*self.outputs, *(f"{path}.tmp" for path in self.outputs), ".out.tmp", ".meca", "receipts"):
            shutil.rmtree(self.folder / path, ignore_errors=True)
        if self.old:
            for path in self.outputs:
                shutil.copytree(self.old / path, self.folder / path)

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the stage as a user would."""
        return subprocess.run(self.command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=600, check=False)

    def torn(self) -> list[str]:
        """Return the outputs that are neither absent nor whole: the old one or the new one."""
        allowed = {path: {self.expected[path], self.older.get(path)} for path in self.outputs}
        return [path for path in self.outputs if (self.folder / path).exists() and sha256_tree(self.folder / path) not in allowed[path]]

    def missing(self) -> list[str]:
        """Return the outputs of which an earlier one was there and now none is."""
        return [path for path in self.older if not (self.folder / path).exists()]

    def difference(self) -> list[str]:
        """Return what an undisturbed run would not have left like this."""
        found = results(self.stage, self.folder, self.outputs)
        wrong = [name for name in self.expected if found.get(name) != self.expected[name]]
        checkpoints = self.folder / ".meca" / "checkpoints"
        left = [path for path in self.folder.rglob("*.tmp")] + (list(checkpoints.iterdir()) if checkpoints.is_dir() else [])
        return wrong + [str(path.relative_to(self.folder)) for path in left]


def command(stage: str, folder: Path) -> list[str]:
    """Return the program of a stage with the paths of dvc.yaml below `folder`."""
    from meca.stages.graph import graph

    reads, writes = graph()[stage]
    outputs = [("out" if len(writes) == 1 else Path(path).name, path) for path in writes]
    options = [part for name, path in [*((Path(path).name, path) for path in reads), *outputs] for part in (f"--{name.replace('_', '-')}", path)]
    places = [str(folder / part) if "/" in part or part in (*reads, *writes) else part for part in options]
    receipt = folder / "receipts" / f"{stage}.json"
    return [sys.executable, "-m", f"meca.stages.{stage}", *places, "--params", str(folder / "params.json"), "--receipt", str(receipt)]


def clean_command(source: Path, out: Path, params: Path) -> list[str]:
    """Return `meca clean` as this interpreter runs it."""
    return [sys.executable, "-c", "from flows.cli import main; main()", "clean", str(source), "--output", str(out), "--params", str(params)]


def results(stage: str, folder: Path, outputs: tuple[str, ...]) -> dict[str, str]:
    """Return the hash of every output that is there, and the receipt without what depends on the clock."""
    found = {path: sha256_tree(folder / path) for path in outputs if (folder / path).exists()}
    receipt = folder / "receipts" / f"{stage}.json"
    if receipt.exists():
        record = {name: value for name, value in json.loads(receipt.read_text()).items() if name not in VOLATILE}
        found["receipt"] = json.dumps(record, sort_keys=True)
    return found


def set_up(stage: str, finished: Path, folder: Path, old: Path | None = None) -> Place:
    """Return a place for a stage, after one undisturbed run in it.

    Args:
        stage: Which.
        finished: A run of all stages.
        folder: Where; created.
        old: Another run, whose output of the stage is written over; None for a first run.
    """
    from meca.stages.graph import graph

    reads, writes = graph()[stage]
    folder = folder.resolve()
    folder.mkdir(parents=True)
    for path in reads:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        copy_folder(finished / path, folder / path)
    shutil.copyfile(finished / "params.json", folder / "params.json")
    return _undisturbed(Place(stage, folder, reads, writes, old, {}, {}))


def set_up_clean(finished: Path, folder: Path, old: Path | None = None) -> Place:
    """Return a place in which `meca clean` has finished every stage, so that its last step is left: `out` appears; see `set_up`."""
    folder = folder.resolve()
    folder.mkdir(parents=True)
    copy_folder(finished / "source", folder / "source")
    params = json.loads((finished / "params.json").read_text())
    place = Place(CLEAN, folder, ("source",), ("out",), None, {}, {})
    if old:
        (folder / "older").mkdir()
        (folder / "params.json").write_text(json.dumps({**params, "seed": 1}))
        _undisturbed(place)
        shutil.move(folder / "out", folder / "older" / "out")
        shutil.rmtree(folder / ".out.meca")
    (folder / "params.json").write_text(json.dumps(params))
    return _undisturbed(Place(CLEAN, folder, ("source",), ("out",), folder / "older" if old else None, {}, {}))


def _undisturbed(place: Place) -> Place:
    """Run a place once and return it with what that wrote."""
    older = {path: sha256_tree(place.old / path) for path in place.outputs} if place.old else {}
    done = place.run()
    if done.returncode not in place.good:
        raise RuntimeError(f"{place.stage} ended with {done.returncode}: {done.stderr[-2000:]}")
    expected = results(place.stage, place.folder, place.outputs)
    if any(expected[path] == older.get(path) for path in place.outputs):
        raise RuntimeError(f"{place.stage}: the earlier output is the new one, so that nothing could be seen")
    return dataclasses.replace(place, expected=expected, older=older)


if __name__ == "__main__":
    make_run(Path(sys.argv[1]).resolve())
