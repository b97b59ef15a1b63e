"""A poisoned copy of a data set: written like the set, read again as whoever receives it reads it, and the truth about what was read."""

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meca import __version__
from meca.attacks.kin import nearest
from meca.attacks.planting import counted, recorded, truth_table
from meca.attacks.poisoning import Plan, PoisonParams, long_tail, plan
from meca.data.decoder.pool import Decoder
from meca.data.readers import LABELLED, IngestParams, open_format, open_source
from meca.data.store import Store, open_store, pixel_id, png_bytes, write_parquet
from meca.data.writers import Entries, format_of, write_sanitized
from meca.errors import InputRefused, MecaError
from meca.files import canonical_json
from meca.params import Params, with_settings
from meca.pipeline import paths_of
from meca.progress import Progress
from meca.redteam.names import with_indices, without_names
from meca.redteam.own_size import PlantedStore, plant_images
from meca.redteam.test_split import write_tests

__all__ = ["SIDE", "plant_into"]

SIDE = 32  # pixels, of the images by which `kin` tells which classes are alike; nothing else is looked at at this size


def plant_into(
    out: Path, work: Path, params: Params, named: Mapping[str, str], progress: Progress | None, is_lossless: bool, with_tests: bool
) -> dict[str, Any]:
    """Write `data/`, `truth/` and, if asked for, `test/` below `out`, and return what attack.json says.

    Args:
        out: An empty folder.
        work: A folder for what lies between, which is empty.
        params: The parameters; `ingest.source` names the data.
        named: What the user called classes, by field of group poison.
        progress: Told what is going on.
        is_lossless: Planted images become PNG, whatever they were.
        with_tests: The test split is written, too.

    Raises:
        UsageError: A class that there is not, or a number without meaning.
        InputRefused: The data cannot be read, or carries no poison under these numbers.
    """
    from meca.stages import ingest
    from meca.stages.runtime import execute

    say = progress.say if progress else lambda _: None
    params = with_settings(params, {"ingest.size": SIDE})
    without_names(params, named).group("poison", PoisonParams)  # before anything is read
    params = _with_indices(params, named)
    poison = params.group("poison", PoisonParams)
    execute(ingest, paths_of(ingest, "ingest", work), params, None, progress, work / "scratch")
    store = open_store(work / "data" / "ingested")
    if with_tests and (poison.attack == "none" or not store.info.n_test):
        why = (
            "an attack: there is no trigger to show"
            if poison.attack == "none"
            else "a split test in the data, found none: put its images beside train/"
        )
        raise InputRefused(f"Expected {why}; or leave --test away.")
    classes = len(store.info.class_names)
    keep = long_tail(store.labels[store.train], classes, poison.imbalance, params.seed)
    rows = np.flatnonzero(keep)
    labels = store.labels[rows]
    planned = plan(labels, classes, poison, params.seed, partial(nearest, store.images, rows, labels, classes))
    told, told_of_tests = (partial(progress, what) if progress else _nothing for what in ("poison", "poison: test"))
    with Decoder() as decoder:
        planted, tally = plant_images(store, rows, planned, poison, params.seed, work / "planted.bin", is_lossless, decoder, told)
        for each in planned.planted:
            of = f" of {each.name}" if len(planned.planted) > 1 else ""
            for what, chosen in (("samples", each.poison), ("covers", each.covers)):
                if chosen.capped:
                    say(f"poison capped: {len(chosen.rows)} of {chosen.requested} {what}{of}, because the pool has {chosen.pool}")
        entries = _entries(planted, rows, planned)
        write_sanitized(planted, entries, out / "data")
        again = _found_again(planted, entries, out / "data", params.group("ingest", IngestParams), decoder)
        (out / "truth").mkdir()
        write_parquet(_truth(planted, labels, planned, again), out / "truth" / "truth.parquet")
        views = write_tests(store, planned, poison, params.seed, out, is_lossless, decoder, told_of_tests) if with_tests else []
    record = _record(store, params, poison, labels, planned) | {"files": tally.record(is_lossless)}
    record |= {"views": views} if planned.planted else {}
    (out / "truth" / "attack.json").write_text(canonical_json(record), encoding="utf-8")
    return record


def _nothing(*_: object) -> None:
    """Tell nobody."""


def _with_indices(params: Params, named: Mapping[str, str]) -> Params:
    """Return the parameters with the index of every class; the source is opened for it only where a class has a name."""
    if without_names(params, named).tree == params.tree:
        return params
    source = open_source(params.group("ingest", IngestParams), params.seed)
    return with_indices(params, named, source.class_names)


def _entries(store: PlantedStore, rows: np.ndarray, planned: Plan) -> Entries:
    """Return the samples that go out, in the order of the plan."""
    line_of = np.full(store.info.n, -1, dtype=np.int64)
    of_lines = store.samples["row"].to_numpy()
    line_of[of_lines[of_lines >= 0]] = np.flatnonzero(of_lines >= 0)
    return Entries(store.samples, line_of[rows], planned.given)


def _found_again(store: PlantedStore, entries: Entries, data: Path, params: IngestParams, decoder: Decoder) -> list[tuple[int, str, str]]:
    """Return the samples as whoever receives the data reads them, in that order: row of the plan, id, source name.

    A sample whose label changed may lie in another folder, and behind one that is missing all rows move up; so what was written is read.
    Samples of the same bytes under the same label are one and the same to any reader.

    Raises:
        MecaError: What is read is not what was planted.
    """
    kind = format_of(store.info.source["format"])
    as_png = kind != store.info.source["format"]
    # A list may have a name that is not looked for in a folder.
    place = data / store.info.source["options"]["list"]["name"] if kind == "manifest" else data
    source = open_format(kind, place, params.label_column if kind in LABELLED else "auto")
    waiting: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    promised: dict[str, tuple[Any, ...]] = {}
    for row, entry in enumerate(entries):
        line = entry.line
        name = hashlib.sha256(png_bytes(store.original(line))).hexdigest() if as_png else line["sample_id"]
        waiting[name, store.info.class_names[entry.label]].append(row)
        if line["offset"] >= store.first and line["format"] != "raw":
            promised[name] = (line["width"], line["height"], line["format"])
    found: list[tuple[int, str, str]] = []

    def read() -> Iterator[tuple[str, bytes | None]]:
        for sample in source.read("train", np.ones(len(source.labels["train"]), dtype=bool)):
            name = pixel_id(sample.pixels) if sample.pixels is not None else hashlib.sha256(sample.data or b"").hexdigest()
            rows = waiting.get((name, source.class_names[sample.label]))
            if not rows:
                raise MecaError(f"{sample.name} of {data} is not what was planted; nothing was written. This is a bug, please report it.")
            found.append((rows.popleft(), name, sample.name))
            yield name, sample.data if name in promised else None

    for (name, content), outcome in decoder.map(read(), lambda item: item[1], pixels=False):
        if content is not None and (isinstance(outcome, str) or outcome is None or (outcome.width, outcome.height, outcome.format) != promised[name]):
            raise MecaError(f"What was planted into {data} cannot be read as it was meant; nothing was written. This is a bug, please report it.")
    if len(found) != len(entries):
        raise MecaError(f"Expected {len(entries)} samples in {data}, found {len(found)}; nothing was written. This is a bug, please report it.")
    return found


def _truth(store: Store, labels: np.ndarray, planned: Plan, again: list[tuple[int, str, str]]) -> pa.Table:
    """Return truth.parquet, in the order in which the data is read."""
    rows = [row for row, _, _ in again]
    names = pa.table({"sample_id": [name for _, name, _ in again], "source": [where for _, _, where in again]})
    table = truth_table(labels, planned, pa.table({})).take(pa.array(rows, pa.int64()))
    table = table.set_column(0, "row", pa.array(np.arange(len(rows))))
    for column in names.column_names:
        table = table.append_column(column, names[column])
    return table.append_column("class_name", pa.array([store.info.class_names[planned.given[row]] for row in rows], pa.string()))


def _record(store: Store, params: Params, poison: PoisonParams, labels: np.ndarray, planned: Plan) -> dict[str, Any]:
    record: dict[str, Any] = {"attack": poison.attack}
    if planned.planted:
        record |= recorded(planned, poison, labels, params.seed)
    return record | {
        "seed": params.seed,
        "meca": __version__,
        "ingested": store.info.root,
        "class_names": list(store.info.class_names),
        "n": len(labels),
        "dropped": store.info.n_train - len(labels),
        "noise": counted(planned.noise),
        "noise_rate": len(planned.noise.rows) / len(labels),
        "params": dict(vars(poison)),
    }
