"""CIFAR-10 and CIFAR-100 in both versions: the same samples, and a file that is cut or lies is refused."""

import pickle  # the sources that the reader must read without unpickling
from pathlib import Path

import numpy as np
import pytest

from meca.data.readers.detect import detect
from meca.errors import InputRefused, UsageError
from tests.data.readers.test_readers import make_batches
from tests.making import ingest

FINE, COARSE = [0, 1, 2, 3, 1, 3, 2, 0], [0, 0, 1, 1, 0, 1, 1, 0]
NAMES, ABOVE = ["apple", "bee", "cat", "dog"], ["plant", "animal"]


def data(n: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3072), np.uint8)


def make_100(root: Path, **changes: object) -> Path:
    """Write python batches of CIFAR-100: protocol 2, byte strings, as the official ones."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    content = {"batch_label": b"training batch 1 of 1", "fine_labels": FINE, "coarse_labels": COARSE, "data": data(), "filenames": [b"x.png"] * 8}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({key.encode(): value for key, value in (content | changes).items()}, protocol=2))
    meta = {b"fine_label_names": [name.encode() for name in NAMES], b"coarse_label_names": [name.encode() for name in ABOVE]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return root


def make_binary(root: Path, fine: bool = False, test: bool = True) -> Path:
    folder = root / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    folder.mkdir(parents=True)
    heads = [bytes([above, label]) if fine else bytes([label]) for above, label in zip(COARSE, FINE, strict=True)]
    content = b"".join(head + row.tobytes() for head, row in zip(heads, data(), strict=True))
    for name in (["train.bin"] if fine else ["data_batch_1.bin", "data_batch_2.bin"]) + (["test.bin" if fine else "test_batch.bin"] if test else []):
        (folder / name).write_bytes(content)
    for name, lines in {"fine_label_names.txt": NAMES, "coarse_label_names.txt": ABOVE}.items() if fine else {"batches.meta.txt": NAMES}.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return root


@pytest.mark.parametrize(
    ("make", "format"), [(make_100, "cifar-batches"), (make_binary, "cifar-binary"), (lambda p: make_binary(p, True), "cifar-binary")]
)
def test_every_version_holds_the_same_samples(make, format: str, tmp_path: Path) -> None:
    root = make(tmp_path / "in")
    assert detect(root) == detect(next(root.iterdir())) == format
    store = ingest(root, tmp_path / "store", size=32)
    assert store.info.class_names == tuple(NAMES) and store.labels[:8].tolist() == FINE
    assert np.array_equal(store.images[:8], data().reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert store.info.source["name"] == ("cifar100" if "100" in next(root.iterdir()).name else "cifar10")


@pytest.mark.parametrize("fine", [True, False])
def test_a_binary_file_that_is_cut_or_lies_is_refused(fine: bool, tmp_path: Path) -> None:
    root = make_binary(tmp_path / "in", fine)
    file = next(root.iterdir()) / ("train.bin" if fine else "data_batch_1.bin")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(InputRefused, match=rf"Expected {file.name} to hold records of {3074 if fine else 3073} bytes, got {len(whole) - 1} bytes"):
        ingest(root, tmp_path / "store")
    file.write_bytes(bytes([0] * fine + [4]) + whole[1 + fine :])
    with pytest.raises(InputRefused, match=rf"Expected labels in 0\.\.3, got 4 in row 0 of {file.name}"):
        ingest(root, tmp_path / "store")
    file.write_bytes(whole)
    names = file.with_name("fine_label_names.txt" if fine else "batches.meta.txt")
    for content in (b"", b"a\na\n", b"\xff\n", b"x\n" * 300):
        names.write_bytes(content)
        with pytest.raises(InputRefused, match=rf"Expected (1 to 256 different class names in )?{names.name}"):
            ingest(root, tmp_path / "store")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fine_labels": [4] * 8}, r"Expected labels in 0\.\.3, got 4 in row 0 of train"),
        ({"coarse_labels": [2] * 8}, r"Expected labels in 0\.\.1, got 2 in row 0 of train"),
        ({"data": np.zeros((8, 3072), np.float32)}, "Expected `data` of train to be uint8"),
    ],
)
def test_a_batch_that_lies_is_refused(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=sentence):
        ingest(make_100(tmp_path / "in", **changes), tmp_path / "store")


def test_two_versions_or_two_sets_in_one_folder_are_asked_about(tmp_path: Path) -> None:
    root = make_binary(make_batches(tmp_path / "a"))
    with pytest.raises(UsageError, match="could be cifar-batches or cifar-binary; say which with --format"):
        detect(root)
    for make in (lambda p: make_100(make_batches(p)), lambda p: make_binary(make_binary(p), True)):
        with pytest.raises(UsageError, match="holds CIFAR-10 and CIFAR-100: which one is meant"):
            detect(make(tmp_path / str(id(make))))
