"""One function for each thing that reads what nobody vouches for: it takes bytes, and any exception but ours is a finding.

A target brings seeds, valid files that the mutations start from, and where a format guards itself with checksums a function
that mends them: otherwise every change would be turned away at the door.
"""

import functools
import gzip
import json
import pickle  # to write what the reader must read without unpickling
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from meca.data.ingest import read_source
from meca.data.readers import FORMATS, IngestParams, open_format
from meca.data.readers.detect import detect
from meca.data.readers.files import clean_name, inside
from meca.data.store import open_store
from meca.errors import InputRefused, UsageError
from meca.files import canonical_json
from meca.params import PACKAGED, read_params
from meca.release import contents
from meca.release.decisions import parse
from meca.release.foreign import Unfit, parse_object
from meca.release.verdicts import SCHEMA
from tests.data.readers.test_cifar_versions import make_100
from tests.hostile import archives, cifar, idx, images, lists, webdataset
from tests.hostile import parquet as tables
from tests.hostile.parts import encoded, folder, good, saved, write

__all__ = ["TARGETS", "Target"]

One = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """What is fuzzed."""

    one: One  # raises nothing, or has found something
    seeds: Callable[[], list[bytes]]
    formats: frozenset[str] = frozenset()  # of `meca.data.readers.FORMATS`
    mend: Callable[[bytes], bytes] = bytes  # puts right the checksums of changed bytes
    words: tuple[bytes, ...] = ()  # what a change may put in


@functools.cache
def _room() -> Path:
    return Path(tempfile.mkdtemp(prefix="meca-fuzz-"))


@contextmanager
def _place(name: str) -> Iterator[Path]:
    """Give an empty folder, and take it away."""
    place = _room() / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _read(format: str, path: Path, label_column: str = "auto") -> None:
    """Open a source and read all of it; what it says about itself has to fit."""
    try:
        if format == "auto":
            format = detect(path)
        source = open_format(format, path, label_column)
        for split, labels in source.labels.items():
            take = np.ones(len(labels), bool)
            found = list(source.read(split, take))
            assert [sample.label for sample in found] == labels.tolist(), "the samples are not those of the labels"
            assert all(0 <= sample.label < len(source.class_names) for sample in found), "a label without a name"
            assert all((sample.data is not None) + (sample.pixels is not None) + (sample.reason is not None) >= 1 for sample in found), (
                "a lost sample"
            )
            for text in (source.name, *source.class_names, *source.odd, *(sample.name for sample in found)):
                text.encode()  # it goes into files that are UTF-8
            assert source.question is None or source.question() != "", "a question without words"
            if source.columns is not None:
                assert source.columns(split, take).num_rows == len(labels), "columns that do not fit"
    except (InputRefused, UsageError) as problem:
        assert str(problem), "refused without a word"


def _file(format: str, name: str, beside: Callable[[], dict[str, bytes]] | None = None, label_column: str = "auto") -> One:
    """Return a target whose bytes are the file `name`, with further files beside it."""
    given = functools.cache(beside or dict)

    def one(data: bytes) -> None:
        with _place(name.replace("/", "-")) as place:
            write(place, given() | {name: data})
            _read(format, place if beside else place / name, label_column)

    return one


def _read_image(data: bytes) -> None:
    with _place("picture") as place:
        folder(place / "in", {"cat/x.png": data})
        params = IngestParams(str(place / "in"), "", "", "imagefolder", "auto", 8, 0, 0, 10, 0, 1.0)
        read_source(params, 0, place / "store")  # one bad image refuses nothing
        store = open_store(place / "store")
        line = store.samples.to_pylist()[3]
        assert line["source"] == "cat/x.png" and (line["reason"] is None) == (line["row"] >= 0)
        assert store.payload(line["offset"], line["bytes"]) == data, "the bytes of the sample are not those of its file"


def _params(data: bytes) -> None:
    with _place("params") as place:
        write(place, {"params.yaml": data})
        try:
            params = read_params(place / "params.yaml")
            params.group("ingest", IngestParams)
            params.digest()
        except UsageError as problem:
            assert str(problem)


def _decisions(data: bytes) -> None:
    try:
        for decision in parse(data):
            assert decision.who.strip() and decision.why.strip() and (decision.source or decision.sample_id)
    except InputRefused as problem:
        assert str(problem)


def _judged(data: bytes) -> None:
    try:
        contents.parse_verdicts(data)
    except InputRefused as problem:
        assert str(problem)


def _json(data: bytes) -> None:
    try:
        canonical_json(parse_object(data, "x")).encode(errors="surrogatepass")
    except Unfit as problem:
        assert str(problem)


def _judgements() -> list[bytes]:
    rows = [{"sample_id": f"{at:064}", "source": f"{at}.png", "split": "train", "label": at % 2, "reasons": ["x"]} for at in range(9)]
    return [tables.packed(pa.Table.from_pylist(rows, schema=SCHEMA), compression=kind, row_group_size=5) for kind in ("none", "zstd")]


def _name(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        path = inside(text)
        assert not path.is_absolute() and ".." not in path.parts and path.parts
    except ValueError as problem:
        assert str(problem)
    cleaned = clean_name(text)
    assert cleaned not in ("", ".", "..") and "/" not in cleaned and "\0" not in cleaned and len(cleaned.encode()) <= 255


def _mended_png(data: bytes) -> bytes:
    """Return a PNG with the right checksum behind every chunk whose length makes sense."""
    if data[:4] != b"\x89PNG":
        return data
    found, at = bytearray(data), 8
    while at + 12 <= len(found):
        size = struct.unpack_from(">I", found, at)[0]
        if at + 12 + size > len(found):
            break
        struct.pack_into(">I", found, at + 8 + size, zlib.crc32(found[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(found)


def _mended_tar(data: bytes) -> bytes:
    """Return a tar archive with the right checksum in every block that looks like a header."""
    found = bytearray(data)
    for at in range(0, len(found) - 511, 512):
        if found[at + 257 : at + 262] == b"ustar":
            found[at + 148 : at + 156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return bytes(found)


def _tar_gz(data: bytes) -> None:
    TARGETS_OF["tar-gz-packed"](gzip.compress(_mended_tar(data), 1, mtime=0))


def _idx_gz(data: bytes) -> None:
    TARGETS_OF["idx-gz-packed"](gzip.compress(data, 1, mtime=0))


def _images() -> list[bytes]:
    kinds = [encoded(1, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
    return [*kinds, encoded(1, "JPEG", progressive=True), saved(images.FRAMES[0], exif=images.exif({0x0112: 6})), images.adam7(), images.deep(3, 2)]


def _cifar_100() -> dict[str, bytes]:
    with _place("cifar-100") as place:
        make_100(place)
        return {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def _shards() -> list[bytes]:
    plain = tables.packed(tables.table(["a", "b"]), compression="none", write_page_checksum=False)
    return [
        plain,
        tables.packed(tables.table(), compression="snappy"),
        tables.packed(tables.table(more=["x"] * tables.N), compression="zstd", version="1.0"),
    ]


def _decision_lines() -> list[bytes]:
    line = '{"source": "cat/0.png", "action": "relabel", "new_label": "dog", "who": "me", "when": "2026-01-02T03:04:05+00:00", "why": "a dog"}\n'
    return [(line * 3).encode(), line.replace('"source": "cat/0.png"', f'"sample_id": "{"0" * 64}"').encode()]


JSON_WORDS = (b'"label"', b'"path"', b'"split"', b"\\ud800", b"1e999", b"NaN", b"null", b"[[[[", b'{"a":', b"9" * 400)
CSV_WORDS = (b"path", b"label", b"split", b'"', b'""', b"\r\n", b"\0", b"\xef\xbb\xbf", b";", b"\t", b"../", b"file://")
PICKLE_WORDS = (b"cos\nsystem\n", b"cnumpy\ndtype\n", b"R", b"b", b"q\0", b"h\0", b"\x85", b"\x86", b"(", b"t", b"s", b"u", b"\x8b", b"G" + bytes(8))
BATCHES = cifar.BATCHES
META = {f"{BATCHES}/batches.meta": cifar.META}
RECORDS = {"cifar-10-batches-bin/batches.meta.txt": b"a\nb\nc\nd\n"}
TARGETS_OF: dict[str, One] = {
    "tar-gz-packed": _file("tar", "x.tar.gz"),
    "idx-gz-packed": _file("idx", f"{idx.IMAGES}.gz", lambda: {f"{idx.LABELS}.gz": gzip.compress(idx.GOOD[idx.LABELS], mtime=0)}),
}


BESIDE = [(path, "cat") for path in good()]


def _manifest(name: str) -> One:
    return _file("manifest", name, lambda: lists.IMAGES)


TARGETS: dict[str, Target] = {
    "picture": Target(
        _read_image, _images, frozenset({"imagefolder"}), _mended_png, (b"IHDR", b"acTL", b"iCCP", b"zTXt", b"Exif\0\0", b"\xff\xda", b"VP8X")
    ),
    "csv": Target(
        _manifest("list.csv"), lambda: [lists.as_csv(lists.ROWS), lists.as_csv(lists.ROWS, "\r\n")], frozenset({"manifest"}), words=CSV_WORDS
    ),
    "jsonl": Target(_manifest("list.jsonl"), lambda: [lists.as_json(lists.ROWS)], frozenset({"manifest"}), words=JSON_WORDS),
    "list-parquet": Target(_manifest("list.parquet"), lambda: [lists.parquet_rows(lists.ROWS)], frozenset({"manifest"})),
    "metadata": Target(
        _file("metadata", "metadata.csv", lambda: {"0.png": encoded(0), "1.png": encoded(1)}),
        lambda: [b"file_name,label,note\n0.png,cat,x\n1.png,dog,y\n"],
        frozenset({"metadata"}),
        words=CSV_WORDS,
    ),
    **{
        f"beside-{suffix}": Target(_file("imagefolder", f"labels.{suffix}", good), seeds, words=words)  # it is looked at only to ask about it
        for suffix, seeds, words in (
            ("csv", lambda: [lists.as_csv(BESIDE)], CSV_WORDS),
            ("json", lambda: [json.dumps(dict(BESIDE)).encode(), json.dumps({"labels": BESIDE}).encode()], JSON_WORDS),
            ("parquet", lambda: [lists.parquet_rows(BESIDE)], ()),
        )
    },
    "parquet": Target(_file("parquet", "train.parquet"), _shards, frozenset({"parquet"})),
    "zip": Target(
        _file("zip", "x.zip"), lambda: [archives.zip_bytes(good()), archives.zip_bytes(good(), 0), archives.quoted_bomb()], frozenset({"zip"})
    ),
    "tar": Target(
        _file("tar", "x.tar"),
        lambda: [archives.tar_bytes(good()), archives.ended(archives.pax(("path", "cat/y.png")) + archives.FILE), archives.linked(b"2")],
        frozenset({"tar"}),
        _mended_tar,
    ),
    "tar-gz": Target(_tar_gz, lambda: [archives.tar_bytes(good())], frozenset({"tar"})),
    "webdataset": Target(
        _file("webdataset", "train-000.tar"),
        lambda: [archives.tar_bytes(webdataset.shard()), archives.tar_bytes(webdataset.shard("json"))],
        frozenset({"webdataset"}),
        _mended_tar,
        (*JSON_WORDS, b".pkl", b".json", b".cls"),
    ),
    "cifar-batch": Target(
        _file("cifar-batches", f"{BATCHES}/data_batch_1", lambda: META),
        lambda: [pickle.dumps(cifar.GOOD, 2), pickle.dumps(cifar.GOOD, 4), cifar.array(cifar.TWO)],
        frozenset({"cifar-batches"}),
        words=PICKLE_WORDS,
    ),
    "cifar-meta": Target(
        _file("cifar-batches", f"{BATCHES}/batches.meta", lambda: {f"{BATCHES}/data_batch_1": pickle.dumps(cifar.GOOD, 2)}),
        lambda: [cifar.META],
        frozenset({"cifar-batches"}),
        words=PICKLE_WORDS,
    ),
    "cifar-100": Target(
        _file("cifar-batches", "cifar-100-python/train", _cifar_100),
        lambda: [_cifar_100()["cifar-100-python/train"]],
        frozenset({"cifar-batches"}),
        words=PICKLE_WORDS,
    ),
    "cifar-binary": Target(
        _file("cifar-binary", "cifar-10-batches-bin/data_batch_1.bin", lambda: RECORDS), lambda: [cifar.RECORDS], frozenset({"cifar-binary"})
    ),
    "cifar-binary-names": Target(
        _file("cifar-binary", "cifar-10-batches-bin/batches.meta.txt", lambda: {"cifar-10-batches-bin/data_batch_1.bin": cifar.RECORDS}),
        lambda: [b"a\nb\nc\nd\n"],
        frozenset({"cifar-binary"}),
    ),
    "idx-images": Target(_file("idx", idx.IMAGES, lambda: {idx.LABELS: idx.GOOD[idx.LABELS]}), lambda: [idx.GOOD[idx.IMAGES]], frozenset({"idx"})),
    "idx-labels": Target(_file("idx", idx.LABELS, lambda: {idx.IMAGES: idx.GOOD[idx.IMAGES]}), lambda: [idx.GOOD[idx.LABELS]], frozenset({"idx"})),
    "idx-gz": Target(_idx_gz, lambda: [idx.GOOD[idx.IMAGES]], frozenset({"idx"})),
    "idx-gz-packed": Target(TARGETS_OF["idx-gz-packed"], lambda: [gzip.compress(idx.GOOD[idx.IMAGES], mtime=0)], frozenset({"idx"})),
    "tar-gz-packed": Target(TARGETS_OF["tar-gz-packed"], lambda: [gzip.compress(archives.tar_bytes(good()), mtime=0)], frozenset({"tar"})),
    "params": Target(
        _params,
        lambda: [PACKAGED.read_bytes()],
        words=(b"&a ", b"*a", b"!!python/name:os.system", b"<<: ", b"? ", b"- ", b": ", b".nan", b"017", b"2026-02-31"),
    ),
    "decisions": Target(_decisions, _decision_lines, words=(*JSON_WORDS, b'"action"', b'"relabel"', b'"new_label"')),
    "verdicts": Target(_judged, _judgements),
    "json": Target(_json, lambda: [b'{"files": {"a/b.png": "00"}, "sanitized_sha256": null, "n": [1.5, true]}'], words=JSON_WORDS),
    "name": Target(
        _name, lambda: [b"images/0.png", b"a/b/../c", "é/\u202e.png".encode()], words=(b"../", b"\\", b"\0", b"C:", b"file://", b"\xff", b"\x1b")
    ),
}
assert set(FORMATS) == set().union(*(target.formats for target in TARGETS.values())), "a reader without a target"
