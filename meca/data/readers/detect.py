"""Which format lies at a path."""

from pathlib import Path

from meca.data.readers import imagefolder, listed, webdataset
from meca.data.readers import rows as rows_of
from meca.data.readers.files import text
from meca.data.readers.formats import FORMATS, Place
from meca.data.readers.splits import SPLITS, quoted, seeming
from meca.errors import InputRefused, UsageError

__all__ = ["NAMES", "REFUSED", "detect"]


NAMES = ("shapes", "digits", "cifar10", "fashion-mnist")


REFUSED = {  # suffix: why
    **dict.fromkeys((".pt", ".pth", ".pkl", ".pickle", ".bin", ".joblib"), "such files can run code when they are loaded"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "unpack the archive and point to the folder, or pack it as zip, tar or tar.gz"),
    **dict.fromkeys((".npy", ".npz"), "write the images as a folder or as parquet"),
    ".ndjson": "rename it to .jsonl",
    **dict.fromkeys(
        (".json", ".txt", ".lst", ".list", ".tab", ".psv"), "write a list of files as CSV or JSON lines, with the columns path and label"
    ),
}


def detect(path: Path) -> str:
    """Return the format of what lies at `path`.

    Raises:
        InputRefused: Nothing that can be read lies there.
        UsageError: Two formats are plausible, or what lies one folder down looks like splits.
    """
    if webdataset.is_pattern(path):
        return "webdataset"
    place = Place(path)
    if path.is_file():
        found = [name for name, format in FORMATS.items() if format.file(place)]
        found.sort(key=lambda name: place.suffix != f".{name}")  # what the file is called after comes first
        if not found:
            why = REFUSED.get(path.suffix.lower(), "point to a parquet file, a list of files, or to a folder")
            raise InputRefused(f"{text(path.name)} is not a format that meca reads: {why}.")
    elif path.is_dir():
        found = [name for name, format in FORMATS.items() if format.folder(place)]
    else:
        raise InputRefused(f"Nothing found at {path}; expected a folder, a parquet file, a list of files, or one of {', '.join(NAMES)}.")
    if len(found) > 1:
        raise UsageError(f"{path} could be {' or '.join(found)}; say which with --format (params.yaml: ingest.format).{_labels_of(path, found)}")
    if not found:
        _ask_one_down(path)
        tables = [text(table.name) for table in listed.tables_of(path)]
        more = f" If {tables[0]} lists images and their labels, point to it." if tables else ""
        raise InputRefused(
            f"Nothing to read in {path}; expected class folders with PNG, JPEG, WebP or BMP images, a list of files, parquet files, "
            f"CIFAR-10 python batches, or idx files.{more}"
        )
    return found[0]


def _labels_of(path: Path, found: list[str]) -> str:
    """Return where each of the formats that a folder could be takes the labels from; nothing where they do not stand in lists and folders."""
    if "imagefolder" not in found or not {"metadata", "manifest"} & set(found):
        return ""
    lists = listed.metadata_of(path) if "metadata" in found else listed.manifests_of(path)
    columns = ", ".join(map(repr, rows_of.columns_of(lists[0])[:8]))
    name = text(lists[0].relative_to(path).as_posix())
    where = f"the list {name}, with the columns {columns}" if len(lists) == 1 else f"{len(lists)} lists, such as {name} with the columns {columns}"
    return f" {next(name for name in found if name != 'imagefolder')} takes the labels from {where}; imagefolder takes the names of the folders."


def _ask_one_down(path: Path) -> None:
    """Ask about a folder that holds nothing but a folder of what looks like splits.

    Raises:
        UsageError: It does.
    """
    inner = imagefolder.only_folder(path) if path.is_dir() else None
    names = imagefolder.class_folders(inner) if inner else set[str]()
    splits = seeming(sorted(names - set(SPLITS)))
    if inner and splits:
        trained = next((name for name, split in splits.items() if split == "train"), None)
        raise UsageError(
            f"The folders {quoted(splits)} in {text(inner.name)}, one folder down in {path}, look like splits and not like classes. If they are "
            f"splits, point to {text(str(inner / trained)) if trained else 'the one for training'}, or rename them to train and test and point to "
            f"{text(str(inner))}. If they are classes, point to {text(str(inner))} and say --format imagefolder (params.yaml: ingest.format)."
        )
