"""At which size images were judged: everything that tells a verdict says it where an image is larger, and nothing does elsewhere."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flows import cli
from meca.data.judged import as_tag, notice, of_store, of_verdicts, on_their_side
from meca.data.store import Store
from meca.params import PACKAGED, read_params
from meca.release.verification import verify
from meca.report import page
from meca.report.console import verdict_lines
from tasks.prefect import summary
from tests.making import encode, ingest, pixels, publish_store

CLASSES = ("cat", "dog")
LIES = 6  # the EXIF orientation of a picture that was taken with the camera on its side
Size = tuple[int, int]  # width and height
VERDICTS = ("no_evidence", "poisoned", "inconclusive")
NAMED = re.compile(r"judged at|\bat[ -]\d+[ -](px|x)", re.IGNORECASE)


def images(root: Path, sizes: Sequence[Size], split: str = "train") -> Path:
    """Write two classes of images, one of each size in each class."""
    for c, name in enumerate(CLASSES):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i, (width, height) in enumerate(sizes):
            (folder / f"{i:02d}.png").write_bytes(encode(pixels(100 * c + i, height, width)))
    return root


def lying(root: Path) -> Path:
    """Write images of 20 x 30 for the eye, of which every other one is stored lying, as 30 x 20."""
    for c, name in enumerate(CLASSES):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for i in range(4):
            exif = Image.Exif()
            exif[0x0112] = LIES if i % 2 else 1
            image = pixels(10 * c + i, *((20, 30) if i % 2 else (30, 20)))
            (folder / f"{i}.jpeg").write_bytes(encode(image, "JPEG", exif=exif))
    return root


def with_larger_test_images(root: Path) -> Path:
    images(root, [(8, 8)] * 4)
    return images(root, [(40, 40)] * 4, "test")


# What there is, ingest.size, and what must be said: side and largest, as width x height, and how many were reduced; None: nothing.
REDUCED: dict[str, tuple[Any, int, tuple[str, str, int]]] = {
    "all are larger": (lambda root: images(root, [(48, 48)] * 4), 32, ("32 x 32", "48 x 48", 8)),
    "one of each class is": (lambda root: images(root, [(16, 16), (16, 16), (33, 33), (32, 32)]), 32, ("32 x 32", "33 x 33", 2)),
    "wider alone": (lambda root: images(root, [(48, 8)] * 4), 32, ("32 x 32", "48 x 8", 8)),
    "higher alone": (lambda root: images(root, [(8, 48)] * 4), 32, ("32 x 32", "8 x 48", 8)),
    "size of the first": (lambda root: images(root, [(20, 30), (20, 30), (20, 31), (10, 10)]), 0, ("20 x 30", "20 x 31", 2)),
    "pixels without a file": (lambda root: "digits", 4, ("4 x 4", "8 x 8", 20)),
}
AS_THEY_ARE: dict[str, tuple[Any, int, None]] = {
    "as large": (lambda root: images(root, [(32, 32)] * 4), 32, None),
    "smaller, so enlarged": (lambda root: images(root, [(16, 20), (8, 32)] * 2), 32, None),
    "of one size that is kept": (lambda root: images(root, [(48, 40)] * 4), 0, None),
    "some lie on their side": (lying, 0, None),
    "for evaluation alone larger": (with_larger_test_images, 8, None),
    "pixels without a file": (lambda root: "digits", 8, None),
}


def store_of(make: Any, size: int, folder: Path) -> Store:
    source = make(folder / "in")
    return ingest(source, folder / "store", size=size, **({"train_limit": 20, "test_limit": 10} if isinstance(source, str) else {}))


def surfaces(folder: Path, store: Store, verdict: str) -> dict[str, str]:
    """Publish a verdict about a store and return every text that tells it."""
    out = publish_store(store, folder, {0: ("poisoned", "remove", None)} if verdict == "poisoned" else {}, verdict)
    assert verify(out) == []
    found = json.loads((out / "summary.json").read_text())
    work = {name: folder / "work" / name for name in ("partition", "enhance", "relabel_finetune", "evaluate")}
    html = page.render(page.read_run(store.path, out, **work), 0, page.ReportParams(2, 2, 2))
    warnings = [notice(found["judged_at"])] if notice(found["judged_at"]) else []
    return {
        "sentence": found["sentence"],
        "warnings": " ".join(found["warnings"]),
        "lines of the terminal": "\n".join(verdict_lines(found)),
        "card": (out / "README.md").read_text(),
        "page, beside the badge": html[html.index('<div class="verdict">') : html.index("<h1>")],
        "page, sentence": html[html.index("<h1>") : html.index("</h1>")],
        "text in Prefect": summary.markdown(found, []),
        "text of a promotion": summary.promotion({"model": "m", "version": "1", "alias": "champion", "gates": [], "warnings": warnings}),
    }


@pytest.mark.parametrize("case", REDUCED)
def test_everything_that_tells_a_verdict_says_the_size_where_an_image_is_larger(case: str, tmp_path: Path) -> None:
    make, size, (side, largest, n) = REDUCED[case]
    store = store_of(make, size, tmp_path)
    record = of_store(store)
    assert (f"{record['width']} x {record['height']}", record["images_reduced"]) == (side, n)
    for verdict in VERDICTS:
        for name, said in surfaces(tmp_path / verdict, store, verdict).items():
            assert "judged at" in said and side in said and largest in said, (verdict, name, said)
    assert f"Larger ones: {n}, up to {largest}." in notice(record)
    assert as_tag(record) == f"{side} pixels, images up to {largest}"
    short = f"at-{record['width']}-px" if record["width"] == record["height"] else f"at-{side.replace(' ', '-')}-px"
    assert summary.run_name("data", {"verdict": "poisoned", "judged_at": record}) == f"data-poisoned-{short}"


@pytest.mark.parametrize("case", AS_THEY_ARE)
def test_nothing_does_where_every_image_is_at_most_that_size(case: str, tmp_path: Path) -> None:
    make, size, _ = AS_THEY_ARE[case]
    store = store_of(make, size, tmp_path)
    record = of_store(store)
    assert record["images_reduced"] == 0 and notice(record) == "" and "up to" not in as_tag(record)
    for verdict in VERDICTS:
        for name, said in surfaces(tmp_path / verdict, store, verdict).items():
            assert not NAMED.search(said), (verdict, name, said)
    assert summary.run_name("data", {"verdict": "poisoned", "judged_at": record}) == "data-poisoned"


def test_a_badge_is_green_only_where_nothing_was_lost_on_the_way(tmp_path: Path) -> None:
    heads = {}
    for name, side in (("small", 32), ("large", 48)):
        store = store_of(lambda root, side=side: images(root, [(side, side)] * 4), 32, tmp_path / name)
        heads[name] = surfaces(tmp_path / name, store, "no_evidence")["page, beside the badge"]
    assert 'class="badge no_evidence"' in heads["small"] and "No evidence</span>" in heads["small"]
    assert 'class="badge no_evidence weak"' in heads["large"] and "No evidence at 32 px</span>" in heads["large"]
    css = (Path(page.__file__).parent / "page.css").read_text()
    assert css.index(".badge.no_evidence") < css.index(".badge.weak"), "of two rules that fit, the later one holds"


@pytest.mark.parametrize(
    ("sizes", "side", "n"),
    [([(48, 48)] * 4, 48, 0), ([(32, 32), (40, 20)], 48, 0), ([(32, 32), (20, 10)], 32, 0), ([(20, 10), (24, 32), (70, 20)], 32, 2)],
)
def test_inspect_says_the_size_that_clean_would_judge_at(
    sizes: list[Size], side: int, n: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_params(PACKAGED).raw("ingest")["size"] == "auto"
    root = images(tmp_path / "in", sizes)
    images(root, [(600, 600)], "test")  # is not judged
    assert cli.run(["inspect", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cli.run(["inspect", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judged_at"] == of_store(ingest(root, tmp_path / "store", size="auto"))
    assert (found["judged_at"]["width"], found["judged_at"]["chosen"], found["judged_at"]["images_reduced"]) == (side, "auto", n)
    assert f"Stored at     {side} x {side} pixels. {found['judged_at']['reason']}" in lines
    assert [warning for warning in found["warnings"] if "judged" in warning] == [notice(found["judged_at"])] * bool(n)
    assert [line for line in lines if "judged" in line] == [f"Warning       {notice(found['judged_at'])}"] * bool(n)
    assert not n or found["judged_at"]["reason"] in notice(found["judged_at"]), "why it is no larger"


def test_inspect_says_how_large_images_are_and_about_how_long_clean_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = images(tmp_path / "in", [(40, 20), (10, 50), (60, 60), (8, 8), (100, 1)])
    assert cli.run(["inspect", str(root)]) == 0
    said = capsys.readouterr().out
    assert "Longer sides  8 to 100 pixels, half of them 40 to 60, the median 50\n" in said
    assert re.search(r"\nTime          meca clean: about \d+ minutes, or \d+ minutes where nothing is found .* estimate for \d+ cores? like", said)


def test_inspect_knows_no_size_where_no_image_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = images(tmp_path / "in", [(48, 48)])
    for file in root.rglob("*.png"):
        file.write_bytes(b"no image")
    assert cli.run(["inspect", str(root), "--json"]) == 3  # `clean` will refuse it
    found = json.loads(capsys.readouterr().out)
    assert found["judged_at"].items() >= {"height": 32, "width": 32, "largest": None, "images_reduced": 0}.items()
    assert found["longer_sides"] == {}


Line = tuple[int, int, int, bool]  # height and width as found, EXIF orientation (0: none), quarantined
sides = st.integers(1, 9)


@given(st.lists(st.tuples(sides, sides, st.integers(0, 8), st.booleans())), sides, sides, st.integers(1, 4))
def test_what_was_reduced_is_counted_upright_and_of_what_was_judged(lines: list[Line], height: int, width: int, chunk: int) -> None:
    notes = [["no-evidence", *([f"orientation:{turned}"] if turned else [])] for _, _, turned, _ in lines]
    columns = {
        "height": pa.array([None if out else h for h, _, _, out in lines], pa.int32()),
        "width": pa.array([None if out else w for _, w, _, out in lines], pa.int32()),
        "verdict": pa.array(["quarantined" if out else "clean" for *_, out in lines], pa.string()),
        "reasons": pa.array([["not-an-image"] if out else note for note, (*_, out) in zip(notes, lines, strict=True)], pa.list_(pa.string())),
    }
    table = pa.Table.from_batches(pa.table(columns).to_batches(max_chunksize=chunk), pa.table(columns).schema)
    upright = [(w, h) if turned >= 5 else (h, w) for h, w, turned, out in lines if not out]
    largest = {"height": max(h for h, _ in upright), "width": max(w for _, w in upright)} if upright else None
    n = sum(h > height or w > width for h, w in upright)
    listed = table["reasons"].combine_chunks()
    lies = on_their_side(listed)
    assert lies.tolist() == [turned >= 5 and not out for _, _, turned, out in lines]
    # As Parquet's reader hands them out where texts repeat.
    shared = pa.ListArray.from_arrays(listed.offsets, listed.values.dictionary_encode())
    assert on_their_side(shared).tolist() == lies.tolist()
    assert of_verdicts(table, lies, (height, width)) == {"height": height, "width": width, "largest": largest, "images_reduced": n}
