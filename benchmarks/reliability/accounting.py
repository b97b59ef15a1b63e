"""Is every sample accounted for when there are very many? Generated images through ingest, split, publish and verify.

    python -m benchmarks.reliability.accounting             a million samples, about fifteen minutes
    python -m benchmarks.reliability.accounting --n 20000   fewer

Nothing is trained: the scores that `split` reads and the model that `publish` copies are made up, everything else is the
programs that a run consists of. Some images are truncated, some are copies, some copies contradict each other. The input
is made from the number of each sample, so the published images are compared with it byte by byte, and memory is that
of each program.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.rows import ROOT, conclude
from meca.data.store import open_store, png_bytes, read_parquet
from meca.files import canonical_json
from meca.params import Params, read_params, with_settings

CLASSES = 10
SIDE = 8  # pixels
SHARD = 50_000  # samples
TRUNCATED, COPIED, CONFLICTING = 10_007, 5_003, 20_011  # each how many-th sample is so


def image(number: int) -> bytes:
    """Return the encoded image of one sample."""
    if number % COPIED == 0 and number:
        return image(number - 1)
    pixels = np.frombuffer(hashlib.shake_128(number.to_bytes(8, "big")).digest(SIDE * SIDE * 3), np.uint8)
    data = png_bytes(pixels.reshape(SIDE, SIDE, 3))
    return data[: len(data) // 2] if number % TRUNCATED == 1 else data


def label(number: int) -> int:
    """Return the label of one sample; a copy has that of its original, except some."""
    if number % COPIED == 0 and number and number % CONFLICTING:
        return label(number - 1)
    return number % CLASSES


def make(folder: Path, n: int) -> None:
    """Write the input: parquet shards as Hugging Face writes them, with a column of its own."""
    folder.mkdir()
    features = {"image": {"_type": "Image"}, "label": {"names": [f"class {at}" for at in range(CLASSES)], "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64()), ("number", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    shards = -(-n // SHARD)
    for shard in range(shards):
        numbers = range(shard * SHARD, min(n, (shard + 1) * SHARD))
        with pq.ParquetWriter(folder / f"train-{shard:05d}-of-{shards:05d}.parquet", schema, compression="none") as writer:
            for start in range(numbers.start, numbers.stop, 1000):
                part = range(start, min(start + 1000, numbers.stop))
                images = [{"bytes": image(number), "path": f"{number}.png"} for number in part]
                columns = [pa.array(images, schema.field(0).type), pa.array([label(number) for number in part]), pa.array(part)]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def scores(store: Path, partition: Path, enhance: Path) -> None:
    """Write what the stages before `split` would, for its rule in preset `paper`: the enhanced network is right in every twentieth sample."""
    opened = open_store(store)
    n, labels, classes = opened.info.n_train, opened.labels[opened.train], len(opened.info.class_names)
    rows = np.arange(n)
    draw = np.random.default_rng(0)
    predicted = np.where(rows % 20 == 7, labels, (labels + 1 + rows // 20 % (classes - 1)) % classes)
    table: dict[str, Any] = {"row": rows, "sample_id": opened.readable["sample_id"].slice(0, n)}
    for folder, more in ((partition, {}), (enhance, {"predicted": predicted})):
        folder.mkdir(parents=True)
        pq.write_table(
            pa.table({**table, "suspicion": draw.random(n, np.float32), "loss": draw.random(n, np.float32), **more}), folder / "scores.parquet"
        )


def final(split: Path, out: Path, names: Sequence[str]) -> None:
    """Write what `relabel_finetune` would for these classes: of the flagged samples each second is relabelled, the others are removed."""
    import torch

    from meca.models import Architecture, Description, build, save_model

    table = read_parquet(split / "decisions.parquet").sort_by("row")
    flagged = np.array([word != "clean" for word in table["verdict"].to_pylist()])
    relabelled = flagged & (np.cumsum(flagged) % 2 == 0)
    action = np.where(relabelled, "relabel", np.where(flagged, "remove", "keep"))
    seen = (table["label"].to_numpy() + 1) % len(names)
    columns = {
        "action": pa.array(action.tolist()),
        "new_label": pa.array(seen, pa.int64(), mask=~relabelled),
        "clean_pred": pa.array(seen, pa.int64()),
    }
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    out.mkdir(parents=True)
    pq.write_table(table, out / "decisions.parquet")
    verdict = json.loads((split / "verdict.json").read_text())
    (out / "verdict.json").write_text(canonical_json(verdict))
    network = Architecture("compact", "s2d", 8)
    about = Description(network, tuple(names), SIDE, SIDE, 3, (0.5,) * 3, (0.25,) * 3)
    save_model(build(about, torch.Generator().manual_seed(0)), about, out)


# A program inherits the peak of the process that starts it, so a small one stands between.
BETWEEN = (
    "import resource, subprocess, sys; r = subprocess.call(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r)"
)


def step(room: Path, *arguments: str) -> tuple[float, float]:
    """Run one program, and return its seconds and the most memory that it held, in MiB."""
    started = time.perf_counter()
    command = [sys.executable, "-S", "-c", BETWEEN, sys.executable, *arguments]
    done = subprocess.run(command, cwd=room, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout[-2000:]}")
    return time.perf_counter() - started, int(done.stdout.split()[-1]) / 1024


def published(data: Path) -> Iterator[tuple[int, bytes, int]]:
    """Yield number, bytes and label of every published sample."""
    for shard in sorted(data.glob("*.parquet")):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(1000):
                for line in batch.to_pylist():
                    yield line["number"], line["image"]["bytes"], line["label"]


def missing(folder: Path, n: int) -> tuple[int, Counter[str]]:
    """Return how many samples are lost or altered, and the count of each action.

    A sample is accounted for if it has exactly one verdict, and is published with its bytes and the label of that
    verdict exactly where the verdict says so.
    """
    verdicts = read_parquet(folder / "verdicts.parquet").select(["source", "label", "action", "new_label"])
    wrong = np.ones(n, bool)
    expected = np.full(n, -1)  # the label to publish
    actions: Counter[str] = Counter()
    for batch in verdicts.to_batches(10_000):
        for line in batch.to_pylist():
            shard, row = line["source"].rsplit("#", 1)
            number = int(shard.split("-")[1]) * SHARD + int(row)
            right = (
                bool(wrong[number])
                and line["label"] == label(number)
                and (line["action"] == "quarantine") == (number % TRUNCATED == 1 or _copy_of_bad(number))
            )
            wrong[number] = not right
            actions[line["action"]] += 1
            expected[number] = {"keep": line["label"], "relabel": line["new_label"]}.get(line["action"], -1)
    there = np.zeros(n, np.int64)
    for number, data, given in published(folder / "data"):
        there[number] += 1
        wrong[number] |= data != image(number) or given != expected[number]
    wrong |= there != (expected >= 0)
    return int(wrong.sum()), actions


def _copy_of_bad(number: int) -> bool:
    return bool(number) and number % COPIED == 0 and (number - 1) % TRUNCATED == 1


def params() -> Params:
    """Return what is in force, but for where the input lies."""
    return with_settings(read_params(ROOT / "params.yaml"), {"preset": "paper", "ingest.size": 0})


def campaign(n: int, room: Path) -> dict[str, Any]:
    """Run everything on `n` samples in an empty folder, and return the row without its provenance."""
    from meca import pipeline  # noqa: F401 - fails here rather than after minutes where the installation is broken

    make(room / "input", n)
    (room / "params.yaml").write_text(canonical_json(with_settings(params(), {"ingest.source": str(room / "input"), "ingest.watch": "input"}).tree))
    measured: dict[str, tuple[float, float]] = {}
    measured["ingest"] = step(room, "-m", "meca.stages.ingest", "--out", "store")
    scores(room / "store", room / "partition", room / "enhance")
    measured["split"] = step(room, *"-m meca.stages.split --store store --partition partition --enhance enhance --out split".split())
    final(room / "split", room / "final", [f"class {at}" for at in range(CLASSES)])
    step(room, *"-m meca.stages.control --store store --split split --out control".split())  # never, in preset paper
    inputs = "--store store --partition partition --enhance enhance --split split --control control --relabel-finetune final"
    measured["publish"] = step(room, *f"-m meca.stages.publish {inputs} --out published".split())
    measured["verify"] = step(room, "-c", "from flows.cli import main; main()", "verify", "published")
    lost, actions = missing(room / "published", n)
    rates = ", ".join(f"{name} {n / seconds:,.0f} samples/s and {mib:,.0f} MiB" for name, (seconds, mib) in measured.items())
    said = ", ".join(
        f"{actions[name]} {word}"
        for name, word in (("keep", "kept"), ("relabel", "relabelled"), ("remove", "removed"), ("quarantine", "quarantined"))
    )
    return {
        "name": "accounting",
        "tried": n,
        "as_specified": n - lost,
        "lost": lost,
        "notes": f"{said}; {rates} at the most",
        "samples_per_s": {name: round(n / seconds, 1) for name, (seconds, _) in measured.items()},
        "peak_mib": {name: round(mib, 1) for name, (_, mib) in measured.items()},
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dry", action="store_true", help="print the row, do not append it")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="meca-accounting-") as room:
        row = campaign(arguments.n, Path(room))
    conclude(row, started, f"python -m benchmarks.reliability.accounting --n {arguments.n}", arguments.dry, params())


if __name__ == "__main__":
    main()
