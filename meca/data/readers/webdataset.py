"""WebDataset: shards of samples in tar archives, the files of a sample side by side: `0001.jpg`, `0001.cls`, `0001.json`.

Members are read in place. What could run code in other readers (`.pkl`, `.pyd`, `.pth`) is never opened: a sample with a
member that is neither image, `cls`, `json` nor `txt` is quarantined. The label is the text of `cls`, or a value of `json`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.decoder.decode import MAX_BYTES
from meca.data.readers.archive import archives_of
from meca.data.readers.files import clean_name, inside, text
from meca.data.readers.imagefolder import SUFFIXES as IMAGES
from meca.data.readers.labels import classes_of, numbered
from meca.data.readers.rows import json_members
from meca.data.readers.source import Found, Source
from meca.data.readers.splits import splits_of
from meca.data.readers.tar_members import Member, Tar
from meca.errors import InputRefused, UsageError

__all__ = ["is_pattern", "open_webdataset", "shards_of"]

PATTERN = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
KEYS = ("label", "cls", "class", "class_name", "category", "target")  # of json, where `cls` is missing
KEPT = ("cls", "json", "txt")
MAX_SHARDS = 1_000_000
MAX_TEXT = 2**20  # bytes of a cls, json or txt member
MAX_TEXTS = 2**30  # bytes of all of them, which are kept to write the shards again


@dataclass
class _Sample:
    key: str
    parts: list[tuple[str, Member, bytes | None]] = field(default_factory=list)  # extension, member, content of a text
    reason: str | None = None
    label: str | None = None


def is_pattern(path: Path) -> bool:
    """Say whether a path stands for numbered shards: `train-{000000..000009}.tar`."""
    return path.suffix == ".tar" and PATTERN.search(path.name) is not None and not path.exists()


def shards_of(path: Path) -> list[Path]:
    """Return the shards that `path` names: itself, those in the folder, or those that its braces count.

    Raises:
        InputRefused: A numbered shard is missing.
    """
    if not is_pattern(path):
        return archives_of(path, (".tar",))
    found = PATTERN.search(path.name)
    assert found is not None, "the pattern was found a line above"
    first, last = int(found[1]), int(found[2])
    if len(PATTERN.findall(path.name)) > 1 or not first <= last < first + MAX_SHARDS:
        raise InputRefused(f"Expected one rising range in {text(path.name)!r}, as in train-{{000000..000009}}.tar.")
    width = len(found[1])
    shards = [path.with_name(f"{path.name[: found.start()]}{number:0{width}d}{path.name[found.end() :]}") for number in range(first, last + 1)]
    missing = next((shard for shard in shards if not shard.is_file() or shard.is_symlink()), None)
    if missing is not None:
        raise InputRefused(f"Expected the shard {text(missing.name)}, found none; check the range in {text(path.name)!r}.")
    return shards


def open_webdataset(path: Path, label_column: str = "auto") -> Source:
    """Return the source of WebDataset shards; `label_column` is `cls`, or the key of the label in `json`.

    Raises:
        InputRefused: A shard is damaged, a name leads out, a sample has no label, or a test class is unknown.
        UsageError: `cls` and `json` disagree, or some shards are named after a split and some are not.
    """
    shards = shards_of(path)
    if not shards:
        raise InputRefused(f"Expected WebDataset shards (.tar) at {text(path.name)}, found none.")
    names = [text(shard.name) for shard in shards]
    wrong = next((name for name, shard in zip(names, shards, strict=True) if clean_name(shard.name) != shard.name or "#" in name), None)
    if wrong is not None:
        raise InputRefused(f"Expected shards with ordinary names without #, got {wrong!r}; rename it.")
    splits = splits_of(names, "shard")
    odd: list[str] = []
    samples: dict[str, list[tuple[Path, str, _Sample]]] = {"train": [], "test": []}
    padded: dict[str, bool] = {}
    room = MAX_TEXTS
    for shard, name in zip(shards, names, strict=True):
        found, used = _index(shard, name, label_column, odd, room)
        room -= used
        samples[splits[name]] += [(shard, f"{name}#{at}", sample) for at, sample in zip(_names(found), found, strict=True)]
        padded[name] = shard.stat().st_size % 10240 == 0
    class_names = classes_of((sample.label or "" for _, _, sample in samples["train"]), "the shards")
    number = numbered(class_names, {where: sample.label or "" for _, where, sample in samples["test"]})

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        opened: tuple[Path, Tar] | None = None
        try:
            for at in np.flatnonzero(take):
                shard, name, sample = samples[split][at]
                if opened is None or opened[0] != shard:
                    if opened is not None:
                        opened[1].__exit__()
                    opened = shard, Tar(shard)
                yield _read(opened[1], sample, name, number[sample.label or ""])
        finally:
            if opened is not None:
                opened[1].__exit__()

    def columns(split: str, take: NDArray[np.bool_]) -> pa.Table:
        chosen = [samples[split][at][2] for at in np.flatnonzero(take)]
        kind = pa.struct([("extension", pa.string()), ("name", pa.string()), ("header", pa.large_binary()), ("data", pa.large_binary())])
        parts = [[{"extension": text(e), "name": text(m.name), "header": m.header, "data": data} for e, m, data in sample.parts] for sample in chosen]
        return pa.table({"parts": pa.array(parts, pa.list_(kind)), "label": pa.array([sample.label for sample in chosen], pa.string())})

    return Source(
        format="webdataset",
        name=text(path.resolve().name.removesuffix(".tar")),
        class_names=class_names,
        labels={split: np.array([number[sample.label or ""] for _, _, sample in listed], np.int64) for split, listed in samples.items()},
        read=read,
        columns=columns,
        options={"shards": [{"name": name, "split": splits[name], "padded": padded[name]} for name in names], "label_column": label_column},
        odd=tuple(odd),
    )


def _names(samples: list[_Sample]) -> list[str]:
    seen: Counter[str] = Counter()
    names: list[str] = []
    for sample in samples:
        seen[sample.key] += 1
        names.append(text(sample.key) + (f"#{seen[sample.key]}" if seen[sample.key] > 1 else ""))
    return names


def _index(shard: Path, name: str, label_column: str, odd: list[str], room: int) -> tuple[list[_Sample], int]:
    """Return the samples of a shard in their order, and how many bytes of text they hold."""
    samples: list[_Sample] = []
    used = 0
    with Tar(shard) as archive:
        for member in archive:
            if member.kind == "folder" or member.name.rstrip("/") in ("", "."):
                continue
            try:
                path = inside(member.name)
            except ValueError as problem:
                raise InputRefused(f"The member {member.name[:200]!r} of {name} {problem}; expected ordinary names.") from None
            stem, _, extension = path.name.partition(".")
            if not stem:
                odd.append(f"{name}#{text(str(path))}")
                continue
            key = str(path.with_name(stem))
            if not samples or samples[-1].key != key:
                samples.append(_Sample(key))
            content = None
            if member.kind == "file" and extension.lower() in KEPT:
                used += member.size
                if member.size > MAX_TEXT or used > room:
                    raise InputRefused(
                        f"Expected members cls, json and txt of at most {MAX_TEXT} bytes, and {MAX_TEXTS} in all, "
                        f"but {text(member.name)!r} of {name} has {member.size}; take them out of the shards."
                    )
                content = archive.read(member)
            samples[-1].parts.append((extension.lower(), member, content))
    times = Counter(sample.key for sample in samples)
    kept: list[_Sample] = []
    for sample in samples:
        where = f"{name}#{text(sample.key)}"
        sample.label = _label(sample, where, label_column)
        sample.reason = "name-twice" if times[sample.key] > 1 else _wrong(sample)
        if sample.label is not None:
            kept.append(sample)
        elif any(f".{extension}" in IMAGES for extension, _, _ in sample.parts):
            raise InputRefused(f"Expected a label for the image {where!r}: a member .cls, or a value in .json (params.yaml: ingest.label_column).")
        else:
            odd.append(where)
    return kept, used


def _wrong(sample: _Sample) -> str | None:
    images = [member for extension, member, _ in sample.parts if f".{extension}" in IMAGES]
    if any(member.kind != "file" for _, member, _ in sample.parts):
        return "link" if any(member.kind == "link" for _, member, _ in sample.parts) else "not-a-file"
    if text(sample.key) != sample.key:
        return "name-not-utf8"
    foreign = next((extension for extension, _, _ in sample.parts if extension not in KEPT and f".{extension}" not in IMAGES), None)
    if foreign is not None:
        return f"member:.{text(foreign)[:20]}"
    if len({extension for extension, _, _ in sample.parts}) < len(sample.parts):
        return "name-twice"
    if len(images) != 1:
        return "several-images" if images else "no-image"
    return "too-many-bytes" if images[0].size > MAX_BYTES else None


def _label(sample: _Sample, where: str, wanted: str) -> str | None:
    found: dict[str, str] = {}
    for extension, _, content in sample.parts:
        if (
            content is None
            or extension == "txt"
            or (extension == "json" and wanted == "cls")
            or (extension == "cls" and wanted not in ("auto", "cls"))
        ):
            continue
        if extension == "cls":
            found["cls"] = _text(content, f"{where}.cls")
            continue
        value = _of_json(content, where, KEYS if wanted == "auto" else (wanted,))
        if value is not None:
            found[f"json ({value[0]})"] = value[1]
    if len(set(found.values())) > 1:
        said = " and ".join(f"{label!r} in {place}" for place, label in found.items())
        raise UsageError(f"{where!r} has the label {said}; say which counts with params.yaml: ingest.label_column (cls, or the key in json).")
    return next(iter(found.values()), None)


def _text(content: bytes, where: str) -> str:
    try:
        label = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        label = ""
    if not label or "\0" in label or "\n" in label:
        raise InputRefused(f"Expected one line of UTF-8 text as label in {where!r}, got {content[:50]!r}.")
    return label


def _of_json(content: bytes, where: str, keys: tuple[str, ...]) -> tuple[str, str] | None:
    try:
        members: dict[str, Any] = {key: value for key, value, _, _ in json_members(content.decode("utf-8"))}
    except ValueError as problem:
        raise InputRefused(f"{where + '.json'!r} is no JSON object ({problem}).") from None
    found = {key: str(members[key]).strip() for key in keys if isinstance(members.get(key), int | str) and not isinstance(members[key], bool)}
    if len(set(found.values())) > 1:
        raise UsageError(
            f"The values {' and '.join(found)} of {where + '.json'!r} could all be the label; say which with params.yaml: ingest.label_column."
        )
    return next(((key, label) for key, label in found.items() if label), None)


def _read(archive: Tar, sample: _Sample, name: str, label: int) -> Found:
    if sample.reason is not None:
        return Found(name, label, reason=sample.reason)
    return next(Found(name, label, data=archive.read(member)) for extension, member, _ in sample.parts if f".{extension}" in IMAGES)
