"""Who decodes images does it in the pool: this process never opens one, and says what the pool was confined by."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows import doctor
from meca.data.decoder import pool
from meca.data.decoder.decode import decode, resize
from meca.data.inspection import inspect
from meca.data.store import open_store, pixel_id
from meca.errors import MecaError
from meca.files import sha256_tree
from meca.release import contents
from meca.release.verification import verify
from meca.stages import ingest as stage
from meca.stages.runtime import execute
from tests.data.decoder.programs import EVIL
from tests.making import NAMES, encode, ingest, make_cleaned, make_folder, pixels, settings, table


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to open an image in this process."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened in this process")

    monkeypatch.setattr(Image, "open", refuse)


def turned(image: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


@pytest.mark.usefixtures("closed")
def test_no_image_is_opened_in_this_process(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in")
    store = ingest(source, tmp_path / "store")
    assert store.info.n_train == 12 and store.readable["format"].to_pylist() == ["JPEG"] * 24
    found = inspect(source)
    assert (found.checked, found.n_unreadable, found.modes) == (24, 0, {"JPEG RGB": 24})
    assert verify(make_cleaned(tmp_path / "clean", "digits", {})) == []


@pytest.mark.parametrize("size", [0, 8])
def test_a_store_holds_what_decoding_here_gives(size: int, tmp_path: Path) -> None:
    images = [
        encode(pixels(0, 6, 9), "JPEG"),
        turned(pixels(1, 9, 6), 6),
        turned(pixels(2, 6, 9), 3),
        encode(pixels(3, 20, 30)),
        turned(pixels(4, 6, 9), 8),
    ]
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i, data in enumerate([b"no image", *images]):
            (tmp_path / "in" / name / f"{i}.png").write_bytes(data + name.encode())
    store = ingest(tmp_path / "in", tmp_path / "store", size=size)
    side = (size, size) if size else (6, 9)
    lines = store.readable.to_pylist()
    assert [line["source"] for line in lines] == [f"{name}/{i + 1}.png" for name in "ab" for i in range(5)] and store.info.quarantined == 2
    for line, data in zip(lines, images * 2, strict=True):
        image = decode(data)
        height, width = image.pixels.shape[:2]
        assert np.array_equal(store.images[line["row"]], resize(image.pixels, *side))
        assert line["notes"] == [*image.notes, *([f"resized:{width}x{height}"] if (height, width) != side else [])]
        assert (line["width"], line["height"], line["mode"], line["format"]) == (image.width, image.height, image.mode, image.format)


def test_pixels_come_in_the_size_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def watched(image: np.ndarray, *side: int) -> np.ndarray:
        sizes.append(image.shape[:2])
        return resize(image, *side)

    monkeypatch.setattr("meca.data.ingest.resize", watched)
    ingest(make_folder(tmp_path / "in"), tmp_path / "store", size=8)
    assert sizes == [(8, 8)] * 24, "an image crossed in full and was made small in this process"


def test_a_published_image_that_cannot_be_read_is_unreadable(tmp_path: Path) -> None:
    encoded = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate([encode(pixels(0)), b"broken", encode(pixels(2, channels=1))])]
    (tmp_path / "data").mkdir()
    pq.write_table(table([0, 1, 2], image=encoded), tmp_path / "data" / "train-00000-of-00001.parquet")
    summary = {"source": {"format": "shapes", "options": {}}, "classes": [{"name": name, "label": i} for i, name in enumerate(NAMES)]}
    expected = {(pixel_id(pixels(0)), 0): 1, ("unreadable", 1): 1, (pixel_id(pixels(2, channels=1)), 2): 1}
    assert Counter(contents._published(tmp_path / "data", summary)) == expected


def test_the_receipt_names_the_walls_and_the_store_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(ingest__source=str(make_folder(tmp_path / "in")), ingest__size=8)
    first = execute(stage, {"out": tmp_path / "a"}, chosen, scratch=tmp_path / "scratch")
    assert first["sandbox"]["level"] in ("full", "basic") and isinstance(first["sandbox"]["seccomp"], bool)
    weaker = pool.PROGRAM.replace("main(*", "worker.confine = lambda *given: {'level': 'basic', 'seccomp': False}; main(*")
    monkeypatch.setattr(
        pool, "PROGRAM", weaker.replace("from meca.data.decoder.worker", "from meca.data.decoder import worker; from meca.data.decoder.worker")
    )
    second = execute(stage, {"out": tmp_path / "b"}, chosen, scratch=tmp_path / "scratch")
    assert second["sandbox"] == {"level": "basic", "seccomp": False} != first["sandbox"]
    assert (first["outputs"], first["metrics"], first["key"]) == (second["outputs"], second["metrics"], second["key"])
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")
    third = execute(stage, {"out": tmp_path / "c"}, settings(ingest__source="digits", ingest__train_limit=20), scratch=tmp_path / "scratch")
    assert third["sandbox"] is None, "nothing was decoded"


def test_images_that_end_their_decoder_are_quarantined_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", EVIL)
    source = make_folder(tmp_path / "in")
    (source / "train" / "dog" / "bad.png").write_bytes(b"crash")
    store = ingest(source, tmp_path / "store")
    lines = [line for line in open_store(store.path).samples.to_pylist() if line["reason"]]
    assert [(line["source"], line["reason"], line["row"]) for line in lines] == [("train/dog/bad.png", "decoder-died", -1)]
    assert store.info.quarantined == 1 and store.payload(lines[0]["offset"], lines[0]["bytes"]) == b"crash"
    assert inspect(source).unreadable == ["train/dog/bad.png (decoder-died)"]


def test_without_a_worker_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", "raise SystemExit('no')")
    source = make_folder(tmp_path / "in")
    for read in (inspect, lambda path: ingest(path, tmp_path / "store")):
        with pytest.raises(MecaError, match="Images are decoded in a process of their own, and that cannot be started here: no"):
            read(source)


def test_doctor_says_what_confines_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._sandbox()
    assert found["ok"] and found["found"].startswith(("full: namespaces, limits; ", "basic: limits; no namespaces"))
    monkeypatch.setattr(pool, "PROGRAM", "raise SystemExit('no')")
    found = doctor._sandbox()
    assert not found["ok"] and "cannot be started here: no" in found["found"]
