"""Sets whose classes are made of several, so that a class has kinds of content that are no trigger: CIFAR-100 in groups of five, CIFAR-10 in pairs.

    python -m benchmarks.quality.merged FOLDER          FOLDER/cifar100-merged and FOLDER/cifar10-merged
    python -m benchmarks.quality.merged FOLDER --seed 1 other groups

Made of the parquet files of MECA_DATA: what stands in them stays byte for byte, but for the labels and the names of the classes. Which classes go
together is drawn, not chosen by what they show. The same seed makes the same files. `python -m benchmarks.quality --sets FOLDER` reads them.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.rows import ROOT
from meca.data.store import read_parquet
from meca.errors import InputRefused, MecaError, UsageError
from meca.files import fresh_folder, replace_folder

SIZES = {"cifar100": 5, "cifar10": 2}  # classes that become one
SEED = 0  # of the groups; a set has one partition, whatever the seeds of its runs
FEATURES = b"huggingface"


def name_of(source: str) -> str:
    """Return the name of the folder of a merged set."""
    return f"{source}-merged"


def groups(classes: int, size: int, seed: int) -> list[list[int]]:
    """Return which classes go together, each group in order, and the groups by their first class.

    Args:
        classes: Number of them.
        size: Of a group; a divisor of it.
        seed: Of the draw.
    """
    if size < 1 or classes % size:
        raise UsageError(f"Expected a number of classes that groups of {size} divide, got {classes}.")
    order = np.random.default_rng([seed, classes, size]).permutation(classes)
    return sorted(sorted(int(label) for label in part) for part in order.reshape(-1, size))


def merge(source: Path, out: Path, size: int, seed: int = SEED) -> list[str]:
    """Write a data set with the labels of groups, and return the names of its classes.

    Args:
        source: Folder of parquet files with an int64 column `label`, whose class names stand in the metadata `huggingface` of their schema.
        out: Gets a file of the same name for each; what is there is replaced.
        size: Classes of a group.
        seed: Of the draw.

    Raises:
        InputRefused: There are no such files.
    """
    files = sorted(source.glob("*.parquet"))
    if not files:
        raise InputRefused(f"Expected parquet files in {source}, found none; set MECA_DATA to the folder that holds {source.name}.")
    tables = {file.name: read_parquet(file) for file in files}
    names = {name: _names(table.schema, source / name) for name, table in tables.items()}
    first = names[files[0].name]
    if other := next((name for name, found in names.items() if found != first), None):
        raise InputRefused(f"Expected the classes of {files[0].name} in all files of {source}, got others in {other}.")
    together = groups(len(first), size, seed)
    merged = ["+".join(first[label] for label in part) for part in together]
    place = np.empty(len(first), np.int64)
    for number, part in enumerate(together):
        place[part] = number
    temporary = fresh_folder(out.with_name(f".{out.name}.tmp"))
    for name, table in tables.items():
        labels = table["label"].to_numpy()
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(first):
            raise InputRefused(f"Expected labels in 0..{len(first) - 1} in {source / name}, got {labels.min()} to {labels.max()}.")
        at = table.schema.get_field_index("label")
        changed = table.set_column(at, table.schema.field(at), pa.array(place[labels]))
        pq.write_table(changed.replace_schema_metadata(_renamed(table.schema.metadata, merged)), temporary / name)
    replace_folder(temporary, out)
    return merged


def _names(schema: pa.Schema, file: Path) -> list[str]:
    try:
        features = json.loads((schema.metadata or {})[FEATURES])["info"]["features"]
        names, kind = features["label"]["names"], schema.field("label").type
    except (KeyError, TypeError, ValueError):
        raise InputRefused(f"Expected a column `label` and the names of its classes in the schema of {file}, found none.") from None
    if kind != pa.int64() or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputRefused(f"Expected an int64 column `label` and names for its classes in {file}, got {kind} and {names!r:.80}.")
    return names


def _renamed(metadata: dict[bytes, bytes], names: list[str]) -> dict[bytes, bytes]:
    told: dict[str, Any] = json.loads(metadata[FEATURES])
    told["info"]["features"]["label"]["names"] = names
    return {**metadata, FEATURES: json.dumps(told).encode()}


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.merged", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets a folder for each set")
    parser.add_argument("--seed", type=int, default=SEED, help="of the groups; reports are of the usual one")
    arguments = parser.parse_args()
    data = Path(os.environ.get("MECA_DATA") or ROOT.parent / "shared" / "data")
    for source, size in SIZES.items():
        names = merge(data / source, arguments.folder / name_of(source), size, arguments.seed)
        print(f"{arguments.folder / name_of(source)}: {len(names)} classes")
        print("".join(f"    {name}\n" for name in names), end="")


if __name__ == "__main__":
    try:
        main()
    except MecaError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
