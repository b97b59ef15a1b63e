"""What is asked about class folders before their names are taken for labels, unless somebody has said that they are.

A folder is a class where nothing speaks against it. A list that names the images, names that look like splits, and folders
inside of folders do: then the labels may stand somewhere else, and a set with wrong labels must not be certified.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from meca.data.readers.beside import Beside, Listing, find_list, is_table
from meca.data.readers.files import OTHER_SUFFIXES, SUFFIXES
from meca.data.readers.rows import SUFFIXES as LISTS
from meca.data.readers.splits import quoted, renamed, seeming

__all__ = ["Contents", "question", "question_of_lists"]

IMAGES = (*SUFFIXES, *OTHER_SUFFIXES)


@dataclass(frozen=True)
class Contents:
    """What a folder or an archive holds, by name."""

    where: str  # the folder or the archive, as sentences call it
    format: str  # imagefolder, zip or tar
    classes: Sequence[str]
    depth: int  # which part of a path is the class folder
    paths: Sequence[str]  # of the samples
    beside: Sequence[Beside] = field(default=())  # what else lies there

    @property
    def is_packed(self) -> bool:
        """Whether it is an archive, in which nothing can be renamed or pointed to."""
        return self.format != "imagefolder"

    @property
    def unpack(self) -> str:
        """What has to be done before something in it can be changed."""
        return "unpack the archive and " if self.is_packed else ""

    def images(self) -> Iterable[str]:
        """Return the paths of what is named like an image."""
        return (path for path in self.paths if path.lower().endswith(IMAGES))


def question(contents: Contents) -> str | None:
    """Return what has to be asked before the folders are read as classes, with the ways to go on; None where they are clear."""
    listing = find_list(contents.beside, contents.images, contents.classes)
    if listing is not None:
        return _about_list(contents, listing)
    below = _below(contents)
    splits = seeming(contents.classes)
    return _about_splits(contents, splits, below) if splits else _about_folders(contents, below)


def question_of_lists(where: str, used: Sequence[str], paths: Sequence[str], classes: Sequence[str], beside: Iterable[Beside]) -> str | None:
    """Return what has to be asked where a folder has a list that is understood, and another one that names the same images."""
    other = find_list((file for file in beside if is_table(file.name)), lambda: paths, classes)
    if other is None:
        return None
    return f"{where} holds the lists {' and '.join(used)} and {other}: which one counts? Point to that file."


def _as_classes(contents: Contents) -> str:
    return f"--format {contents.format} (params.yaml: ingest.format)"


def _about_list(contents: Contents, listing: Listing) -> str:
    name = listing.name
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in LISTS:
        way = "rename it to .jsonl" if suffix == ".ndjson" else "write it as CSV with the columns path and label"
        way = f"{contents.unpack}{way} and point to it"
    elif listing.is_understood:
        way = f"{contents.unpack}point to {name}" + ("" if contents.is_packed or "/" in name else ", or say --format manifest")
    else:
        way = f"{contents.unpack}let its first line name the columns path and label, with paths as seen from the list, and point to {name}"
    folders = f"the folder{'s' * (len(contents.classes) > 1)} {quoted(contents.classes)}"
    if len(contents.classes) > 1:
        other = f"If they are the names of the folders, say so with {_as_classes(contents)}."
    else:
        other = f"As a class folder (--format {contents.format}) there is only this one, and two classes are needed: make a folder for each class."
    return (
        f"The list {listing} lies beside the images of {contents.where}, which are in {folders}: where do the labels stand? "
        f"If they stand in the list, {way}. {other}"
    )


@dataclass(frozen=True)
class _Below:
    """What a class folder holds."""

    is_flat: bool  # an image lies in it, and not only in folders of it
    folders: frozenset[str]  # those in it that hold images
    deeper: str  # the path to the folder that holds them, where each folder on the way holds nothing but the next one


def _below(contents: Contents) -> dict[str, _Below]:
    """Return for each class folder where its images lie."""
    top: dict[str, list[tuple[str, ...]]] = {}
    folders: set[tuple[str, ...]] = set()
    for path in contents.images():
        folders.add(tuple(path.split("/")[:-1]))  # few, where the images are many
    for parts in folders:
        top.setdefault(parts[contents.depth], []).append(parts)
    return {name: _shape(found, contents.depth + 1) for name, found in top.items()}


def _shape(found: list[tuple[str, ...]], at: int) -> _Below:
    start = at
    while all(len(parts) > at for parts in found) and len({parts[at] for parts in found}) == 1:
        at += 1
    flat = any(len(parts) == at for parts in found)
    if flat and at > start and all(len(parts) == at for parts in found):
        return _Below(True, frozenset(), "/".join(found[0][:at]))  # one folder in the other, and images at the end
    return _Below(flat, frozenset(parts[at] for parts in found if len(parts) > at), "/".join(found[0][:at]))


def _about_splits(contents: Contents, splits: Mapping[str, str], below: Mapping[str, _Below]) -> str:
    others = [name for name in contents.classes if name not in splits]
    trained = [name for name, split in splits.items() if split == "train"]
    held = [below[name] for name in trained if name in below]
    above = "/".join(contents.paths[0].split("/")[: contents.depth]) if contents.paths else ""
    place = {name: f"{above}/{name}".lstrip("/") for name in splits}
    new = renamed(splits)
    if not held or any(shape.is_flat or not shape.folders for shape in held):
        way = (
            f"{contents.unpack}put the images of each class into a folder of its own below train/ and test/, "
            "or point to a list of them (CSV) with the columns path, label and split"
        )
    elif new and not others and all(_is_split(below.get(name), place[name]) for name in splits):
        words = ", ".join(f"{name!r} to {word}" for name, word in new.items() if name != word)
        goal = f"point to {above!r}" if above else "point to that folder" if contents.is_packed else ""
        way = contents.unpack + " and ".join(part for part in (f"rename {words}" if words else "", goal) if part)
        way += f", or point to {place[trained[0]]!r} alone"
    else:
        way = f"{contents.unpack}point to {quoted(shape.deeper for shape in held)}" + (", the one that is for training" if len(held) > 1 else "")
    return (
        f"The folders {quoted(splits)} in {contents.where} look like splits and not like classes{f', beside {quoted(others)}' if others else ''}. "
        f"If they are splits, {way}. If they are classes, say so with {_as_classes(contents)}."
    )


def _is_split(shape: _Below | None, place: str) -> bool:
    """Say whether a folder would be read as a split once it is called so: its class folders lie right in it."""
    return shape is not None and not shape.is_flat and bool(shape.folders) and shape.deeper == place


def _about_folders(contents: Contents, below: Mapping[str, _Below]) -> str | None:
    deep = {name: shape for name, shape in below.items() if not shape.is_flat and len(shape.folders) > 1}
    if not deep:
        return None
    shape = deep[min(deep)]
    if len(deep) == 1:
        way = f"{contents.unpack}point to {shape.deeper!r}"
    else:
        way = f"{contents.unpack}move those folders into one folder, and point to it"
    return (
        f"The images of {quoted(sorted(deep))} in {contents.where} lie in folders of it, such as {quoted(sorted(shape.folders), 3)}: which folders "
        f"are the classes? If they are {quoted(contents.classes, 3)}, say so with {_as_classes(contents)}. If they are those further down, {way}."
    )
