"""The formats: how each opens, and how a file or a folder shows that it is one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from meca.data.readers import archive, cifar, cifar_binary, idx, imagefolder, listed, parquet, rows, webdataset
from meca.data.readers.source import Source
from meca.data.readers.splits import SPLITS

__all__ = ["BY_NAME", "FORMATS", "LABELLED", "Format", "Place"]


@dataclass(frozen=True)
class Place:
    """What lies at a path; what several formats look at is looked up once."""

    path: Path  # an existing file or folder

    @cached_property
    def suffix(self) -> str:
        """The suffix in small letters."""
        return self.path.suffix.lower()

    @cached_property
    def metadata(self) -> list[Path]:
        """The metadata files that the path names."""
        return listed.metadata_of(self.path)

    @cached_property
    def manifests(self) -> list[Path]:
        """The lists of files that the path names."""
        return listed.manifests_of(self.path)

    @cached_property
    def may_be_list(self) -> bool:
        """Whether a file can be a list by what is in it: a parquet file may hold images instead, or both."""
        return self.suffix != ".parquet" or rows.is_list(self.path, is_meant=not parquet.holds_images(self.path))

    @cached_property
    def class_folders(self) -> set[str]:
        """The names of the folders that could be classes."""
        found = imagefolder.class_folders(self.path)
        if not (self.metadata or self.manifests):
            return found
        # The images of a list lie in a folder too, whatever it is called; two folders could be classes.
        found -= set(SPLITS)
        return found if len(found) > 1 else set()

    @cached_property
    def tar(self) -> dict[str, bool]:
        """What the first tar archive looks like: `tar`, `webdataset`, or both; nothing where there is none."""
        tars = archive.archives_of(self.path, archive.TARS)
        return archive.looks_of(tars[0]) if tars else {}


def _never(place: Place) -> bool:
    return False


@dataclass(frozen=True)
class Format:
    """How a format opens and shows itself."""

    open: Callable[..., Source]  # of the path; and of the name of the label's column where one can be named
    file: Callable[[Place], bool] = _never  # whether a file shows that it is one
    folder: Callable[[Place], bool] = _never  # whether a folder does
    has_column: bool = False  # the label stands in a column that can be named
    by_name: bool = False  # the classes are the names that occur: one that loses all its samples is gone


def _is_parquet(place: Place) -> bool:
    # Columns of images are needed for one reading, a column of paths for the other; a file without either is damaged.
    return place.suffix == ".parquet" and (parquet.holds_images(place.path) or not place.may_be_list)


def _holds_parquet(place: Place) -> bool:
    shards = (shard for shard in parquet.shards_of(place.path) if shard.stem != "metadata")
    # A table without images beside class folders is no set of its own: whether it lists theirs will be asked.
    return any(parquet.holds_images(shard) or not (place.class_folders or rows.is_list(shard)) for shard in shards)


def _is_tar(place: Place) -> bool:
    return place.tar.get("tar", False)


def _is_webdataset(place: Place) -> bool:
    return place.tar.get("webdataset", False)


FORMATS: dict[str, Format] = {  # in the order in which they are looked for, and named where two could be meant
    "imagefolder": Format(imagefolder.open_imagefolder, folder=lambda place: bool(place.class_folders), by_name=True),
    "metadata": Format(
        listed.open_metadata,
        file=lambda place: bool(place.metadata) and place.may_be_list,
        folder=lambda place: bool(place.metadata),
        has_column=True,
        by_name=True,
    ),
    "manifest": Format(
        listed.open_manifest,
        file=lambda place: place.suffix in rows.SUFFIXES and not place.metadata and place.may_be_list,
        folder=lambda place: bool(place.manifests),
        has_column=True,
        by_name=True,
    ),
    "parquet": Format(parquet.open_parquet, file=_is_parquet, folder=_holds_parquet, has_column=True),
    "zip": Format(
        archive.open_zip,
        file=lambda place: place.suffix == ".zip",
        folder=lambda place: bool(archive.archives_of(place.path, (".zip",))),
        by_name=True,
    ),
    "tar": Format(archive.open_tar, file=_is_tar, folder=_is_tar, by_name=True),
    "webdataset": Format(webdataset.open_webdataset, file=_is_webdataset, folder=_is_webdataset, has_column=True, by_name=True),
    "cifar-batches": Format(cifar.open_cifar, folder=lambda place: cifar.folder_of(place.path) is not None),
    "cifar-binary": Format(cifar_binary.open_cifar_binary, folder=lambda place: cifar_binary.folder_of(place.path) is not None),
    "idx": Format(idx.open_idx, folder=lambda place: idx.folder_of(place.path) is not None),
}
LABELLED = tuple(name for name, format in FORMATS.items() if format.has_column)
BY_NAME = tuple(name for name, format in FORMATS.items() if format.by_name)
