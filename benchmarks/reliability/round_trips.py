"""Does every format come back with the bytes that went in? Real images, written in each format, through ingest, split, publish and verify.

    python -m benchmarks.reliability.round_trips                  every format, about three minutes
    python -m benchmarks.reliability.round_trips --only tar idx   some

The inputs are written, and the published sets are read, without a line of meca: by Python's own `zipfile`, `tarfile`, `csv`, `json`,
`pickle` and `struct`, and by pyarrow. Nothing is trained; which samples are flagged is made up (accounting.py), a part of them is
relabelled, the rest removed. The images are those of the folder that MECA_DATA names: JPEGs of several sizes, CIFAR-10, Fashion-MNIST.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import os
import pickle  # the CIFAR format is pickle; only what this program and our own writer wrote is opened
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reliability.accounting import final, scores, step
from benchmarks.rows import ROOT, conclude
from meca.data.store import pixel_id, read_parquet
from meca.files import canonical_json
from meca.params import Params, read_params, with_settings

N = 600  # samples of each format
NAMES = [
    f"{name} {at}" for at, name in enumerate("tench 'parachute' Ünal <b>horn a,b church pump =1+1 ball dog".split())
]  # as awkward as a folder may be
Sample = tuple[str, bytes, int]  # name, encoded bytes or a record's pixels, label
Back = list[tuple[bytes, str]]  # bytes and class name of every published sample


def photographs(data: Path) -> list[Sample]:
    """Return JPEGs in a drawn order."""
    files = sorted((data / "imagenette-sample" / "train").rglob("*.JPEG"))
    classes = sorted({file.parent.name for file in files})
    order = np.random.default_rng(0).permutation(len(files))[:N]
    return [(f"é {at} {files[at].name}", files[at].read_bytes(), classes.index(files[at].parent.name)) for at in order.tolist()]


def records(data: Path) -> list[Sample]:
    """Return images of CIFAR-10 as its records hold them: planes of red, green and blue."""
    import PIL.Image

    table = pq.read_table(sorted((data / "cifar10").glob("train-*.parquet"))[0]).slice(0, N).to_pylist()
    images = [np.asarray(PIL.Image.open(io.BytesIO(line["image"]["bytes"])).convert("RGB")) for line in table]
    return [(f"{at}.png", image.transpose(2, 0, 1).tobytes(), line["label"]) for at, (image, line) in enumerate(zip(images, table, strict=True))]


def clothes(data: Path) -> list[Sample]:
    """Return images of Fashion-MNIST."""
    raw = data / "fashion-mnist" / "FashionMNIST" / "raw"
    pixels = gzip.decompress((raw / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((raw / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    return [(str(at), pixels[at * 784 : (at + 1) * 784], labels[at]) for at in range(N)]


# --- writing and reading each format, without meca --------------------------------------------------------------------------------------------------


def tree(root: Path, samples: list[Sample]) -> None:
    for name, data, label in samples:
        (root / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (root / NAMES[label] / name).write_bytes(data)


def from_tree(root: Path) -> Back:
    return [(path.read_bytes(), path.parent.name) for path in root.rglob("*") if path.is_file()]


def listing(kind: str, path: str) -> tuple[Callable[[Path, list[Sample]], None], Callable[[Path], Back]]:
    """Return how a list of images is made and read; `path` is the column that names them."""
    name = ("metadata" if path == "file_name" else "list") + f".{kind}"

    def make(root: Path, samples: list[Sample]) -> None:
        (root / "images").mkdir(parents=True)
        lines = [{path: f"images/{name}", "label": NAMES[label], "note": f'"{at}", é'} for at, (name, _, label) in enumerate(samples)]
        for name_, data, _ in samples:
            (root / "images" / name_).write_bytes(data)
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(lines), root / name)
        elif kind == "jsonl":
            (root / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            with (root / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, lines[0])
                writer.writeheader()
                writer.writerows(lines)

    def read(root: Path) -> Back:
        if kind == "parquet":
            lines = pq.read_table(root / name).to_pylist()
        elif kind == "jsonl":
            lines = [json.loads(line) for line in (root / name).read_text().splitlines()]
        else:
            with (root / name).open(newline="") as file:
                lines = list(csv.DictReader(file))
        named = {line[path] for line in lines}
        there = {f"images/{file.name}" for file in (root / "images").iterdir()}
        assert named == there, f"{len(named ^ there)} files without a row, or rows without a file"
        return [((root / line[path]).read_bytes(), line["label"]) for line in lines]

    return make, read


def make_zip(root: Path, samples: list[Sample]) -> None:
    root.mkdir()
    with zipfile.ZipFile(root / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, label in samples:
            archive.writestr(f"photos/{NAMES[label]}/{name}", data)


def from_zip(root: Path) -> Back:
    with zipfile.ZipFile(root / "photos.zip") as archive:
        return [(archive.read(name), name.split("/")[1]) for name in archive.namelist() if not name.endswith("/")]


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), 1_700_000_000
    archive.addfile(member, io.BytesIO(data))


def tarred(name: str) -> tuple[Callable[[Path, list[Sample]], None], Callable[[Path], Back]]:
    def make(root: Path, samples: list[Sample]) -> None:
        root.mkdir()
        with tarfile.open(root / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for name_, data, label in samples:
                add(archive, f"photos/{NAMES[label]}/{name_}", data)

    def read(root: Path) -> Back:
        with tarfile.open(root / name) as archive:
            return [(archive.extractfile(m).read(), m.name.split("/")[1]) for m in archive if m.isfile()]  # pyright: ignore[reportOptionalMemberAccess]

    return make, read


def web(kind: str) -> tuple[Callable[[Path, list[Sample]], None], Callable[[Path], Back]]:
    def make(root: Path, samples: list[Sample]) -> None:
        root.mkdir()
        for shard in range(3):
            with tarfile.open(root / f"train-{shard:03d}.tar", "w") as archive:
                for at in range(shard, len(samples), 3):
                    _, data, label = samples[at]
                    add(archive, f"{at:06d}.jpg", data)
                    add(archive, f"{at:06d}.{kind}", str(label).encode() if kind == "cls" else json.dumps({"label": label, "at": at}).encode())

    def read(root: Path) -> Back:
        back: Back = []
        for shard in sorted(root.glob("*.tar")):
            with tarfile.open(shard) as archive:
                members = {m.name: archive.extractfile(m).read() for m in archive}  # pyright: ignore[reportOptionalMemberAccess]
            for name in (name for name in members if name.endswith(".jpg")):
                said = members[name.removesuffix("jpg") + kind]
                back.append((members[name], str(int(said) if kind == "cls" else json.loads(said)["label"])))
        return back

    return make, read


def make_shards(root: Path, samples: list[Sample]) -> None:
    root.mkdir()
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    kind = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for shard in range(2):
        lines = [{"image": {"bytes": data, "path": name}, "label": label} for name, data, label in samples[shard::2]]
        pq.write_table(pa.Table.from_pylist(lines, schema=kind), root / f"train-{shard:05d}-of-00002.parquet")


def from_shards(root: Path) -> Back:
    lines = [line for shard in sorted(root.rglob("*.parquet")) for line in pq.read_table(shard).to_pylist()]
    return [(line["image"]["bytes"], NAMES[line["label"]]) for line in lines]


def make_batches(root: Path, samples: list[Sample]) -> None:
    root.mkdir()
    size = -(-len(samples) // 5)
    for at in range(5):
        part = samples[at * size : (at + 1) * size]
        batch = {
            b"batch_label": b"training batch",
            b"labels": [label for _, _, label in part],
            b"data": np.frombuffer(b"".join(data for _, data, _ in part), np.uint8).reshape(-1, 3072),
            b"filenames": [name.encode() for name, _, _ in part],
        }
        (root / f"data_batch_{at + 1}").write_bytes(pickle.dumps(batch, 2))
    (root / "batches.meta").write_bytes(
        pickle.dumps({b"label_names": [name.encode() for name in NAMES], b"num_cases_per_batch": size, b"num_vis": 3072}, 2)
    )


def from_batches(root: Path) -> Back:
    back: Back = []
    for file in sorted(root.rglob("data_batch_*")):
        # Bytes that our writer made a moment ago from images that this program chose; a reader of meca's would be no check of meca.
        batch = pickle.loads(file.read_bytes(), encoding="bytes")
        back += [(row.tobytes(), NAMES[label]) for row, label in zip(batch[b"data"], batch[b"labels"], strict=True)]
    return back


def make_binary(root: Path, samples: list[Sample]) -> None:
    root.mkdir()
    size = -(-len(samples) // 5)
    for at in range(5):
        part = samples[at * size : (at + 1) * size]
        (root / f"data_batch_{at + 1}.bin").write_bytes(b"".join(bytes([label]) + data for _, data, label in part))
    (root / "batches.meta.txt").write_text("\n".join(NAMES) + "\n")


def from_binary(root: Path) -> Back:
    data = b"".join(file.read_bytes() for file in sorted(root.rglob("data_batch_*.bin")))
    return [(data[at + 1 : at + 3073], NAMES[data[at]]) for at in range(0, len(data), 3073)]


def make_idx(root: Path, samples: list[Sample]) -> None:
    root.mkdir()
    head = struct.pack(">IIII", 2051, len(samples), 28, 28)
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + b"".join(data for _, data, _ in samples)))
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">II", 2049, len(samples)) + bytes(label for *_, label in samples)))


def from_idx(root: Path) -> Back:
    pixels, labels = (gzip.decompress(next(root.rglob(f"train-{what}*")).read_bytes()) for what in ("images", "labels"))
    return [(pixels[16 + at * 784 : 16 + (at + 1) * 784], str(label)) for at, label in enumerate(labels[8:])]


@dataclass(frozen=True)
class Form:
    """One format: what goes into it, how it is written and read, and what identifies a sample."""

    images: Callable[[Path], list[Sample]]
    make: Callable[[Path, list[Sample]], None]
    read: Callable[[Path], Back]
    identity: Callable[[bytes], str] = lambda data: hashlib.sha256(data).hexdigest()
    named: bool = True  # else the classes are called by their numbers


def planes(data: bytes) -> str:
    return pixel_id(np.frombuffer(data, np.uint8).reshape(3, 32, 32).transpose(1, 2, 0))


def grey(data: bytes) -> str:
    return pixel_id(np.frombuffer(data, np.uint8).reshape(28, 28, 1))


FORMS = {
    "imagefolder": Form(photographs, tree, from_tree),
    **{f"metadata.{kind}": Form(photographs, *listing(kind, "file_name")) for kind in ("csv", "jsonl", "parquet")},
    **{f"manifest.{kind}": Form(photographs, *listing(kind, "path")) for kind in ("csv", "jsonl", "parquet")},
    "zip": Form(photographs, make_zip, from_zip),
    "tar": Form(photographs, *tarred("photos.tar")),
    "tar.gz": Form(photographs, *tarred("photos.tar.gz")),
    **{f"webdataset.{kind}": Form(photographs, *web(kind), named=False) for kind in ("cls", "json")},
    "parquet": Form(photographs, make_shards, from_shards),
    "cifar-batches": Form(records, make_batches, from_batches, planes),
    "cifar-binary": Form(records, make_binary, from_binary, planes),
    "idx": Form(clothes, make_idx, from_idx, grey, named=False),
}


def trip(form: Form, data: Path, room: Path) -> tuple[int, int, Counter[str]]:
    """Send one format there and back; return how many samples went in, how many are wrong, and the count of each action."""
    samples = form.images(data)
    form.make(room / "input", samples)
    (room / "params.yaml").write_text(canonical_json(with_settings(params(), {"ingest.source": str(room / "input"), "ingest.watch": "input"}).tree))
    step(room, "-m", "meca.stages.ingest", "--out", "store")
    names = json.loads((room / "store" / "store.json").read_text())["class_names"]
    scores(room / "store", room / "partition", room / "enhance")
    step(room, *"-m meca.stages.split --store store --partition partition --enhance enhance --out split".split())
    final(room / "split", room / "final", names)
    step(room, *"-m meca.stages.control --store store --split split --out control".split())  # never, in preset paper
    inputs = "--store store --partition partition --enhance enhance --split split --control control --relabel-finetune final"
    step(room, *f"-m meca.stages.publish {inputs} --out published".split())
    step(room, "-c", "from flows.cli import main; main()", "verify", "published")

    called = NAMES if form.named else [str(at) for at in range(10)]
    went_in = {form.identity(data): (data, called[label]) for _, data, label in samples}
    verdicts = read_parquet(room / "published" / "verdicts.parquet").to_pylist()
    wanted: Counter[tuple[bytes, str]] = Counter()
    wrong = len(samples) - len({line["sample_id"] for line in verdicts} & went_in.keys())
    for line in verdicts:
        data_, name = went_in[line["sample_id"]]
        wrong += name != line["label_name"]
        if line["action"] in ("keep", "relabel"):
            wanted[data_, line["new_label_name"] if line["action"] == "relabel" else name] += 1
    back = Counter(form.read(room / "published" / "data"))
    wrong += ((wanted - back) + (back - wanted)).total()
    assert set(names) == set(called), names
    return len(samples), wrong, Counter(line["action"] for line in verdicts)


def params() -> Params:
    """Return what is in force, but for where the input lies."""
    return with_settings(read_params(ROOT / "params.yaml"), {"preset": "paper"})


def campaign(chosen: Iterable[str]) -> dict[str, object]:
    """Try the formats, and return the row without its provenance."""
    data = Path(os.environ.get("MECA_DATA") or ROOT.parent / "shared" / "data")
    whole, lost, n = 0, 0, 0
    actions: Counter[str] = Counter()
    tried = list(chosen)
    for name in tried:
        with tempfile.TemporaryDirectory(prefix="meca-round-trip-") as room:
            count, wrong, found = trip(FORMS[name], data, Path(room))
        print(f"{name}: {count} samples, {wrong} wrong, {dict(found)}", file=sys.stderr, flush=True)
        n, lost, whole = n + count, lost + wrong, whole + (wrong == 0)
        actions += found
    notes = (
        f"{n} samples: {actions['keep']} kept and {actions['relabel']} relabelled, all with their bytes, {actions['remove']} removed; "
        + ", ".join(tried)
    )
    return {"name": "round trips: every format in and out", "tried": len(tried), "as_specified": whole, "lost": lost, "notes": notes}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--dry", action="store_true", help="print the row, do not append it")
    arguments = parser.parse_args()
    started = time.perf_counter()
    row = campaign(arguments.only)
    only = f" --only {' '.join(arguments.only)}" if arguments.only != list(FORMS) else ""
    conclude(row, started, f"python -m benchmarks.reliability.round_trips{only}", arguments.dry, params())


if __name__ == "__main__":
    main()
