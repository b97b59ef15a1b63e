"""Laws of every reader: what was written comes back, whatever the names, labels and pixels; and any bytes end in a source or in a sentence."""

import csv
import io
import json
import pickle  # to write what the reader must read without unpickling
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from meca.data.readers import FORMATS
from meca.data.readers.detect import detect
from meca.data.readers.files import clean_name
from meca.data.store import Store
from meca.data.writers import Entries, write_sanitized
from meca.errors import InputRefused
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS
from tests.making import encode, ingest

SIDE = 32  # what CIFAR has


@dataclass(frozen=True)
class Sample:
    name: str
    label: str
    image: np.ndarray  # uint8 [SIDE SIDE 3]

    @property
    def data(self) -> bytes:
        return encode(self.image)


def is_plain(name: str) -> bool:
    """Say whether a name may stand in a list or an archive: the others are refused, which tests/hostile looks at."""
    return clean_name(name) == name and not name.startswith(".") and ":" not in name and "#" not in name and name.strip() == name


LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\")
NAMES = st.text(LETTERS, min_size=1, max_size=20).filter(is_plain)
# A list has labels without blanks around them, a shard one line; a folder is no hidden one.
LABELS = st.text(LETTERS, min_size=1, max_size=12).filter(lambda label: is_plain(label) and len(label.splitlines()) == 1 and "\0" not in label)


@st.composite
def sets(draw: st.DrawFn) -> list[Sample]:
    """Draw samples of two to four classes; every class has one."""
    labels = draw(st.lists(LABELS, min_size=2, max_size=4, unique_by=lambda label: clean_name(label).casefold()))
    names = draw(st.lists(NAMES, min_size=len(labels), max_size=8, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chosen = [*labels, *(draw(st.sampled_from(labels)) for _ in names[len(labels) :])]
    return [Sample(f"{name}.png", label, rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for name, label in zip(names, chosen, strict=True)]


def numbered(samples: Sequence[Sample]) -> tuple[list[str], list[int]]:
    names = sorted({sample.label for sample in samples})
    return names, [names.index(sample.label) for sample in samples]


def as_folder(samples: Sequence[Sample], root: Path) -> None:
    for sample in samples:
        (root / sample.label).mkdir(exist_ok=True)
        (root / sample.label / sample.name).write_bytes(sample.data)


def as_zip(samples: Sequence[Sample], root: Path) -> None:
    with zipfile.ZipFile(root / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for sample in samples:
            archive.writestr(f"{sample.label}/{sample.name}", sample.data)


def as_tar(samples: Sequence[Sample], root: Path) -> None:
    with tarfile.open(root / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for sample in samples:
            add(archive, f"{sample.label}/{sample.name}", sample.data)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def as_shard(samples: Sequence[Sample], root: Path) -> None:
    with tarfile.open(root / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for at, sample in enumerate(samples):
            add(archive, f"{at:03d}.png", sample.data)
            kind, label = ("cls", sample.label.encode()) if at % 2 else ("json", json.dumps({"label": sample.label}).encode())
            add(archive, f"{at:03d}.{kind}", label)


def images(samples: Sequence[Sample], root: Path) -> list[tuple[str, str]]:
    (root / "images").mkdir()
    for sample in samples:
        (root / "images" / sample.name).write_bytes(sample.data)
    return [(f"images/{sample.name}", sample.label) for sample in samples]


def as_csv(samples: Sequence[Sample], root: Path) -> None:
    with open(root / "list.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *images(samples, root)])


def as_json(samples: Sequence[Sample], root: Path) -> None:
    lines = [json.dumps({"path": path, "label": label}, ensure_ascii=len(path) % 2 == 0) for path, label in images(samples, root)]
    (root / "list.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def as_list_parquet(samples: Sequence[Sample], root: Path) -> None:
    rows = images(samples, root)
    pq.write_table(pa.table({"path": [path for path, _ in rows], "label": [label for _, label in rows]}), root / "list.parquet", row_group_size=3)


def as_metadata(samples: Sequence[Sample], root: Path) -> None:
    rows = [(path.removeprefix("images/"), label) for path, label in images(samples, root / "")]
    for path, _ in rows:
        (root / "images" / path).rename(root / path)
    (root / "images").rmdir()
    lines = [json.dumps({"file_name": path, "label": label}) for path, label in rows]
    (root / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def as_parquet(samples: Sequence[Sample], root: Path) -> None:
    names, labels = numbered(samples)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    cells = pa.array([{"bytes": sample.data, "path": sample.name} for sample in samples], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    found = pa.table({"image": cells, "label": labels, "name": [sample.name for sample in samples]})
    pq.write_table(found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), root / "x.parquet", row_group_size=3)


def flat(samples: Sequence[Sample]) -> np.ndarray:
    return np.stack([sample.image.transpose(2, 0, 1).reshape(-1) for sample in samples])


def as_batches(samples: Sequence[Sample], root: Path) -> None:
    names, labels = numbered(samples)
    content = {b"data": flat(samples), b"labels": labels, b"filenames": [sample.name.encode() for sample in samples], b"batch_label": b"x"}
    for name, value in (("data_batch_1", content), ("batches.meta", {b"label_names": [name.encode() for name in names]})):
        (root / name).write_bytes(pickle.dumps(value, 2))


def as_binary(samples: Sequence[Sample], root: Path) -> None:
    names, labels = numbered(samples)
    records = [bytes([label]) + row.tobytes() for label, row in zip(labels, flat(samples), strict=True)]
    (root / "data_batch_1.bin").write_bytes(b"".join(records))
    (root / "batches.meta.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def as_idx(samples: Sequence[Sample], root: Path) -> None:
    _, labels = numbered(samples)
    grey = np.stack([sample.image[:, :, 0] for sample in samples])
    (root / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", *grey.shape) + grey.tobytes())
    (root / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", len(labels)) + bytes(labels))


# How a set is written in a format: by what, in the order of the names or in its own, and whether labels keep their names.
WAYS: dict[str, tuple[str, Callable[[Sequence[Sample], Path], None]]] = {
    "folder": ("imagefolder", as_folder),
    "zip": ("zip", as_zip),
    "tar": ("tar", as_tar),
    "shard": ("webdataset", as_shard),
    "csv": ("manifest", as_csv),
    "jsonl": ("manifest", as_json),
    "list.parquet": ("manifest", as_list_parquet),
    "metadata": ("metadata", as_metadata),
    "parquet": ("parquet", as_parquet),
    "batches": ("cifar-batches", as_batches),
    "binary": ("cifar-binary", as_binary),
    "idx": ("idx", as_idx),
}
FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def found(store: Store, named: bool) -> list[tuple[str, bytes]]:
    """Return label and pixels of each sample; the label's number where the format has no names."""
    rows = [
        (store.info.class_names[label] if named else str(label), image.tobytes()) for label, image in zip(store.labels, store.images, strict=True)
    ]
    return sorted(rows)


def wanted(samples: Sequence[Sample], way: str) -> list[tuple[str, bytes]]:
    if way != "idx":
        return sorted((sample.label, sample.image.tobytes()) for sample in samples)
    grey = [np.repeat(sample.image[:, :, :1], 3, axis=2).tobytes() for sample in samples]
    return sorted((str(label), image) for label, image in zip(numbered(samples)[1], grey, strict=True))


def fresh(factory: pytest.TempPathFactory) -> Path:
    root = factory.mktemp("set") / "in"
    root.mkdir()
    return root


@pytest.mark.parametrize("way", list(WAYS))
@FEW
@given(samples=sets())
def test_what_is_written_is_read_and_what_is_published_is_the_same_again(
    way: str, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> None:
    format, write = WAYS[way]
    assume(format != "imagefolder" or all(sample.label.lower() not in ("train", "test", "val", "valid", "validation") for sample in samples))
    root = fresh(tmp_path_factory)
    write(samples, root)
    try:
        store = ingest(root, root.parent / "store", size=SIDE, format=format)
    except InputRefused as problem:
        # Two labels that look like one are one folder too many; a set may be drawn so, though seldom.
        assert "look like one" in str(problem)
        return
    assert store.info.quarantined == 0 and found(store, way != "idx") == wanted(samples, way)
    entries = Entries(store.samples, np.arange(store.samples.num_rows), store.samples["label"].to_numpy())
    write_sanitized(store, entries, root.parent / "out")
    again = ingest(root.parent / "out", root.parent / "again", size=SIDE, format=format)
    assert found(again, way != "idx") == found(store, way != "idx") and sorted(again.ids) == sorted(store.ids)
    shutil.rmtree(root.parent)


@pytest.mark.parametrize("way", list(WAYS))
def test_every_format_shows_itself_in_a_folder_and_where_it_is_one_file(way: str, tmp_path: Path) -> None:
    format, write = WAYS[way]
    write([Sample(f"{at}.png", label, np.full((SIDE, SIDE, 3), at, np.uint8)) for at, label in enumerate(("cat", "dog"))], tmp_path)
    assert detect(tmp_path) == format
    files = [path for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".png"]
    assert format in ("imagefolder", "cifar-batches", "cifar-binary", "idx") or [detect(path) for path in files] == [format]


def test_every_reader_is_written_and_fuzzed() -> None:
    assert {format for format, _ in WAYS.values()} == set(FORMATS)
    assert set().union(*(target.formats for target in TARGETS.values())) == set(FORMATS)


@pytest.mark.parametrize("name", list(TARGETS))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=600))
def test_any_bytes_end_in_a_source_or_in_a_sentence(name: str, data: bytes) -> None:
    TARGETS[name].one(data)


@pytest.mark.parametrize("name", list(TARGETS))
def test_any_change_of_a_valid_file_ends_in_a_source_or_in_a_sentence(name: str) -> None:
    target, draw = TARGETS[name], random.Random(0)
    seeds = target.seeds()
    for data in seeds:
        target.one(data)
    for _ in range(40):
        data = target.mend(mutated(draw, seeds, target.words))
        try:
            target.one(data)
        except Exception as error:  # so that the input is in the report
            raise AssertionError(f"{name}: {data[:2000]!r}") from error
