"""The test split with the trigger, for any model: class folders with one file for each image, as torchvision's ImageFolder reads them.

test/clean/<class>/<file>          every test image, as it came
test/triggered/<class>/<file>      the same, under the same names: with the trigger, in the folder of its *true* class. An image that is of
                                   the class already that the trigger leads to stays as it came, so that no class folder is missing and
                                   the classes have the same numbers
test/triggered_2/…                 with the next trigger, where there are several
truth/test.parquet                 a line for each image of each folder: which class its trigger leads to, and whether it carries it
"""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from meca.attacks import TestView
from meca.attacks.planting import view_names
from meca.attacks.poisoning import Plan, PoisonParams
from meca.data.decoder.pool import Decoder
from meca.data.store import Store, each_line, png_bytes, write_parquet
from meca.data.writers.imagefolder import place
from meca.data.writers.listed import below
from meca.redteam.own_size import Image, images_of, rewritten

__all__ = ["CLEAN", "FOLDER", "SCHEMA", "write_tests"]

FOLDER, CLEAN = "test", "clean"
READ = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # what ImageFolder takes for an image
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "raw": ".png"}
SCHEMA = pa.schema(
    [
        ("view", pa.string()),  # the folder below test/
        ("file", pa.string()),  # below that folder and below clean/
        ("label", pa.int64()),  # the true one, in the order of class_names in attack.json
        ("class_name", pa.string()),
        ("target", pa.int64()),  # the class that the trigger leads to
        ("target_name", pa.string()),
        ("is_triggered", pa.bool_()),  # false: it is of that class, and stays as it came
    ]
)


def write_tests(
    store: Store, planned: Plan, params: PoisonParams, seed: int, out: Path, is_lossless: bool, decoder: Decoder, told: Callable[[int, int], None]
) -> list[str]:
    """Write the test split below `out`, and which class each image is led to; return the names of the folders with a trigger.

    Args:
        store: The store before the attack.
        planned: The attack as it was planted.
        params: The attack.
        seed: Of the run.
        out: The folder that has `truth/`.
        is_lossless: Images with a trigger become PNG.
        decoder: Decodes, in a process of its own.
        told: Told how many are done, of how many.
    """
    views: list[TestView] = [view for each in planned.planted for view in each.attack.tests(len(each.leads))]
    leads = [lead for each in planned.planted for lead in each.leads]
    folders = view_names(len(views))
    rows, names = np.arange(store.info.n_train, store.info.n), store.info.class_names
    files = _files(store, rows)
    lines: list[dict[str, Any]] = []
    for number, (file, image) in enumerate(zip(files, images_of(store, rows, decoder), strict=True), 1):
        label = int(image.line["label"])
        as_it_came = image.data if image.data is not None else png_bytes(image.pixels)
        _write(out / FOLDER / CLEAN, file, as_it_came)
        for folder, view, lead in zip(folders, views, leads, strict=True):
            target = int(lead[label])
            data = as_it_came if target == label else _triggered(image, view, params, seed, is_lossless)
            _write(out / FOLDER / folder, file, data)
            line = {"view": folder, "file": str(file), "label": label, "class_name": names[label]}
            lines.append(line | {"target": target, "target_name": names[target], "is_triggered": target != label})
        told(number, len(rows))
    write_parquet(pa.Table.from_pylist(lines, schema=SCHEMA), out / "truth" / "test.parquet")
    return folders


def _triggered(image: Image, view: TestView, params: PoisonParams, seed: int, is_lossless: bool) -> bytes:
    planted = view(np.ascontiguousarray(image.pixels)[None], params, seed)[0]
    return png_bytes(planted) if image.data is None else rewritten(image, planted, is_lossless).data


def _write(folder: Path, file: PurePosixPath, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(below(folder, str(file)), "xb") as target:  # x: nothing is ever written over
        target.write(data)


def _files(store: Store, rows: np.ndarray) -> Sequence[PurePosixPath]:
    """Return a path for each test image, in the folder of its class; no two are one file."""
    return place([(_name(line), line["class_name"], line["sample_id"]) for line in each_line(store.readable.take(pa.array(rows, pa.int64())))], 0)


def _name(line: dict[str, Any]) -> str:
    """Return a name below the folder of its class for a sample: its file's own, or one of shard and row."""
    path = PurePosixPath(line["source"])
    name = path.name.replace("#", "-") if "#" in path.name else path.name
    if not name.lower().endswith(READ):
        name += ENDINGS[line["format"]]
    return f"_/{name}"  # `place` puts the class there
