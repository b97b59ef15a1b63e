"""What a published folder holds, looked at piece by piece: files, counts, decisions, samples."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from meca.data.columns import pc
from meca.data.judged import fits, of_verdicts, on_their_side
from meca.data.store import each_line, pixel_id
from meca.errors import InputRefused, MecaError
from meca.power import FINDS, is_weak
from meca.release.decisions import DECISION_COLUMNS, DECISIONS, describe, parse, resolve
from meca.release.decisions import MAX_BYTES as MAX_DECISIONS
from meca.release.foreign import MAX_JSON, Folder, Unfit, inside, parse_object
from meca.release.verdicts import SCHEMA, count, count_by_class
from meca.text import plain

if TYPE_CHECKING:
    from meca.release.signing import Statement
from meca.release.manifest import MANIFEST, NOT_LISTED, REPORT, root_of

__all__ = [
    "AT_ONCE",
    "ENTRY",
    "FREE",
    "FREE_ROWS",
    "MAX_FOLDERS",
    "MAX_NOTHING",
    "MAX_RATIO",
    "MAX_TEXT",
    "MAX_VERDICTS",
    "MOST",
    "NEEDED",
    "NOTE",
    "NOTES",
    "SAMPLE",
    "WORK",
    "Contents",
    "look",
    "parse_manifest",
    "parse_verdicts",
]


ENTRY = 64  # bytes in manifest.json that each file takes at least: its SHA-256


MAX_NOTHING = 16 * 2**10  # bytes of all files below data/ that hold no sample: the largest is an empty tar archive


MOST = 1000  # sentences; who has so many looks no further


MAX_FOLDERS = 1000  # in which nothing is listed; with the files that are listed and `MOST` that are not, it bounds the walk


# Of verdicts.parquet. The leanest that meca writes has 3.3 bytes a row (copies of one image) and takes 150 in memory, the usual one 50 and 200.
MAX_VERDICTS = 2 * 2**30  # bytes


FREE, MAX_RATIO = 64 * 2**20, 32  # bytes that it may take in memory; and so many times its size


FREE_ROWS = 100_000  # and a row for each byte


MAX_TEXT = 64 * 2**10  # bytes of one value; the longest that meca writes is a path of 4,096 characters


AT_ONCE = 2**16  # rows: each piece comes with all values of its page


WORK = 8  # times what it may take in memory is unpacked in passing, and not kept


NEEDED = (
    "sample_id",
    "source",
    "split",
    "label",
    "verdict",
    "action",
    "new_label",
    "width",
    "height",
    "reasons",
    "reviewer",
    "review_decision",
    "review_time",
    "review_note",
)


NOTE = "review_note"  # stays in a dictionary: one reason may stand in every row


NOTES = "reasons"  # of it is kept whether an image lies on its side


@dataclass(frozen=True)
class Contents:
    """What a published folder says, its files being those that its manifest lists."""

    manifest: Mapping[str, Any]
    manifest_sha256: str
    report_sha256: str | None  # of the page; None where there is none
    summary: Mapping[str, Any]
    verdicts: pa.Table  # the columns `NEEDED`


def look(folder: Folder, statement: "Statement | None" = None) -> tuple[list[str], Contents | None]:
    """Return what does not match in a published folder, and what it says where everything does.

    Args:
        folder: The published folder.
        statement: What was signed about it.
    """
    wrong: list[str] = []
    try:
        data = folder.read(MANIFEST, MAX_JSON)
        digest = hashlib.sha256(data).hexdigest()
        if statement is not None:
            wrong = list(statement.changed(folder, digest))
            if not statement.covers(MANIFEST, digest):
                return wrong, None
        manifest = parse_manifest(data)
        del data
        wrong += _first(_files(folder, manifest))
        if wrong:
            return wrong, None
        summary = parse_object(_listed(folder, manifest, "summary.json", MAX_JSON), "summary.json")
        verdicts = parse_verdicts(_listed(folder, manifest, "verdicts.parquet", MAX_VERDICTS))
        report = folder.sha256(REPORT) if folder.holds(REPORT) else None
        contents = Contents(manifest, digest, report, summary, verdicts)
        # Each check stands on those before it.
        wrong = _first(_accounts(summary, verdicts)) or _first(_decided(folder, contents)) or _first(_samples(folder, contents))
        if statement is not None and not wrong:
            wrong = list(statement.contradicted(contents))
    except (MecaError, pa.ArrowException) as error:
        return [*wrong, (str(error) or type(error).__name__).splitlines()[0]], None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        said = f"{type(error).__name__}: {plain(error, 200)}"
        return [*wrong, f"manifest.json, summary.json or verdicts.parquet lacks what meca writes into it ({said})."], None
    return wrong, None if wrong else contents


def _first(sentences: Iterator[str]) -> list[str]:
    said = list(islice(sentences, MOST + 1))
    return said if len(said) <= MOST else [*said[:MOST], f"More than {MOST} things do not match; the others are not named."]


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Return what manifest.json says.

    Raises:
        Unfit: It is not JSON as meca writes it, or lists no SHA-256 of its files.
    """
    manifest = parse_object(data, MANIFEST, ENTRY)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise Unfit(f"{MANIFEST} lacks what meca writes into it: expected the SHA-256 of every file under files.")
    return manifest


def _files(folder: Folder, manifest: Mapping[str, Any]) -> Iterator[str]:
    listed: dict[str, str] = manifest["files"]
    names = sorted(listed)
    for name in names:
        if not inside(name):
            yield f"{MANIFEST} lists {plain(name)!r}, which is no name inside the folder."
            continue
        try:
            actual = folder.sha256(name)
        except Unfit as problem:
            yield str(problem)
        else:
            if actual != listed[name]:
                yield f"{plain(name)} was changed: expected SHA-256 {plain(listed[name][:12])}, got {actual[:12]}."
    yield from sorted(islice(_others(folder, names), MOST + 1))
    for name in ("summary.json", "verdicts.parquet", "README.md"):
        if name not in listed:
            yield f"{MANIFEST} does not list {name}."
    if manifest.get("sanitized_sha256", ...) != root_of(listed):
        yield f"The SHA-256 of the sanitized set in {MANIFEST} is not that of its files."


def _others(folder: Folder, names: Sequence[str]) -> Iterator[str]:
    """Yield what is there and should not be; `names` are those that are listed, sorted."""

    def first_from(name: str) -> str:
        at = bisect_left(names, name)
        return names[at] if at < len(names) else ""

    strange = 0
    try:
        for name, is_folder in folder.walk():
            if name in NOT_LISTED:
                yield from _irregular(folder, name)
            elif not is_folder:
                if first_from(name) != name:
                    yield f"{plain(name)} is not listed in {MANIFEST}."
            elif not first_from(f"{name}/").startswith(f"{name}/"):
                strange += 1
                if strange > MAX_FOLDERS:
                    yield f"There are more than {MAX_FOLDERS} folders in which {MANIFEST} lists nothing."
                    return
    except Unfit as problem:
        yield str(problem)


def _irregular(folder: Folder, name: str) -> Iterator[str]:
    try:
        folder.size(name)
    except Unfit as problem:
        yield str(problem)


def _listed(folder: Folder, manifest: Mapping[str, Any], name: str, limit: int) -> bytes:
    """Return the bytes of a file, which are those that the manifest lists: what is parsed was hashed."""
    data = folder.read(name, limit)
    if hashlib.sha256(data).hexdigest() != manifest["files"][name]:
        raise Unfit(f"{name} changes while it is read.")
    return data


def parse_verdicts(data: bytes) -> pa.Table:
    """Return the columns `NEEDED` of verdicts.parquet; the others are unpacked in passing.

    Raises:
        InputRefused: It is damaged, has other columns, or unpacks to far more than it is.
    """
    from meca.data.readers.tables import Room, Table  # only here: whoever writes a folder needs no reader

    name = "verdicts.parquet"
    room = Room(name, max(FREE, MAX_RATIO * len(data)), MAX_RATIO)
    work = Room(name, WORK * room.left, WORK * MAX_RATIO)
    others = [column for column in SCHEMA.names if column not in NEEDED]
    kept: list[pa.Table] = []
    with Table(data, name) as table:
        if not table.schema.equals(SCHEMA):
            raise InputRefused(f"{name} has the columns {plain(', '.join(table.schema.names), 500)}, expected {', '.join(SCHEMA.names)}.")
        if sum(table.rows) > max(FREE_ROWS, len(data)):
            raise InputRefused(f"{name} promises {sum(table.rows)} rows in {len(data)} bytes.")
        for group in range(len(table.rows)):
            for columns in (NEEDED, others):
                needed = table.memory(columns, group)
                room.need(needed)
                work.take(needed)
            for piece in table.pieces(NEEDED, work, group, plain=False, at_once=AT_ONCE):
                kept.append(_kept(piece, room))
            for piece in table.pieces(others, work, group, plain=False, at_once=AT_ONCE):
                _refuse_long(piece)
    kinds = {NOTE: pa.dictionary(pa.int32(), pa.string()), NOTES: pa.bool_()}
    schema = pa.schema([(column, kinds.get(column, SCHEMA.field(column).type)) for column in NEEDED])
    return pa.Table.from_batches([batch for piece in kept for batch in piece.to_batches()], schema=schema)


def _kept(piece: pa.Table, room: Any) -> pa.Table:
    """Return a piece of the verdicts as it is kept, which is counted before it is made."""
    _refuse_long(piece)
    columns: dict[str, pa.Array] = {}
    for name in NEEDED:
        column = piece[name].combine_chunks()
        in_places = pa.types.is_dictionary(column.type)
        if SCHEMA.field(name).type == pa.string():
            if name == NOTE:
                column = column if in_places else column.dictionary_encode()
                # It comes with all values of its page.
                used, places = np.unique(pc.fill_null(column.indices, -1).to_numpy(), return_inverse=True)
                values = column.dictionary.take(pa.array(used, mask=used < 0))
                column = pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32), mask=used[places] < 0), values)
            elif in_places:
                room.need(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)
                column = column.cast(pa.string())
        elif name == NOTES:
            column = pa.array(on_their_side(column))
        room.take(column.nbytes)
        columns[name] = column
    return pa.table(columns)


def _refuse_long(piece: pa.Table) -> None:
    for name, column in zip(piece.column_names, piece.columns, strict=True):
        for text in (text for chunk in column.chunks for text in _texts(chunk)):
            longest = pc.max(pc.binary_length(text)).as_py() or 0
            if longest > MAX_TEXT:
                raise InputRefused(f"verdicts.parquet holds a text of {longest} bytes in the column {name}, expected at most {MAX_TEXT}.")


def _texts(array: Any) -> Iterator[Any]:
    """Yield the texts in an array; of a dictionary each one once."""
    if pa.types.is_dictionary(array.type):
        yield array.dictionary
    elif pa.types.is_string(array.type):
        yield array
    elif pa.types.is_list(array.type):
        yield from _texts(array.flatten())
    elif pa.types.is_map(array.type):
        yield from _texts(array.keys)


def _accounts(summary: Mapping[str, Any], verdicts: pa.Table) -> Iterator[str]:
    names = [line["name"] for line in summary["classes"]]
    for column in ("label", "new_label"):
        ends = pc.min_max(verdicts[column]).as_py()
        if (column == "label" and verdicts[column].null_count) or not 0 <= (ends["min"] or 0) <= (ends["max"] or 0) < max(1, len(names)):
            yield f"verdicts.parquet has the {column} {ends['min']} to {ends['max']}, or none, but summary.json names {len(names)} classes."
            return
    counts = count(verdicts)
    if counts != summary["counts"]:
        yield f"summary.json counts {plain(summary['counts'], 300)}, verdicts.parquet {counts}."
    if count_by_class(verdicts, names) != summary["classes"]:
        yield "The counts per class in summary.json are not those of verdicts.parquet."
    judged = summary["judged_at"]
    side = judged["height"], judged["width"]
    if any(type(pixels) is not int for pixels in side) or not fits(judged, of_verdicts(verdicts, verdicts[NOTES].to_numpy(), side)):
        yield "The sizes at which images were judged (judged_at) in summary.json do not fit those in verdicts.parquet."
    sources = verdicts["source"]
    if sources.null_count or not pc.all(pc.less(sources[:-1], sources[1:]), min_count=0).as_py():
        yield "verdicts.parquet is not sorted by source, or names a sample twice."
    if not pc.all(pc.equal(verdicts["split"], "train"), skip_nulls=False, min_count=0).as_py():
        yield "verdicts.parquet judges samples of another split than train."
    if summary["verdict"] in FINDS and (summary["verdict"] == "weak") != is_weak(summary.get("control")):
        yield f"summary.json says {plain(summary['verdict'], 40)}, which is not what the control in it says of the power of the test."
    action, verdict = verdicts["action"], verdicts["verdict"]
    for line in each_line(verdicts.filter(pc.xor(pc.equal(action, "relabel"), pc.is_valid(verdicts["new_label"])))):
        yield f"{plain(line['source'])} has the action {line['action']} and the new label {line['new_label']}."
    held = pc.is_in(verdict, value_set=pa.array(["review", "quarantined"]))
    for line in each_line(verdicts.filter(pc.and_(pc.and_(held, pc.not_equal(action, "quarantine")), pc.is_null(verdicts["review_decision"])))):
        yield f"{plain(line['source'])} has the verdict {line['verdict']} and the action {line['action']}."


def _decided(folder: Folder, contents: Contents) -> Iterator[str]:
    """Compare what the folder says about people's decisions with the decisions themselves."""
    manifest, summary, verdicts = contents.manifest, contents.summary, contents.verdicts
    there = DECISIONS in manifest["files"]
    if manifest["decided_by"] != ("person" if there else "meca"):
        yield f"manifest.json says decided_by {plain(manifest['decided_by'])}, but {DECISIONS} is {'there' if there else 'missing'}."
    data = _listed(folder, manifest, DECISIONS, MAX_DECISIONS) if there else b""
    names = [line["name"] for line in summary["classes"]]
    expected = resolve(verdicts, names, parse(data)) if there else {}
    if summary["decisions"] != (describe(verdicts, data) if there else None):
        yield f"What summary.json says about decisions is not what {DECISIONS} and verdicts.parquet hold."
    named = np.zeros(verdicts.num_rows, bool)
    named[list(expected)] = True
    rows = np.flatnonzero(named).tolist()
    wrong = [
        row for row, line in zip(rows, each_line(verdicts.take(pa.array(rows, pa.int64()))), strict=True) if not expected[row].items() <= line.items()
    ]
    for name in DECISION_COLUMNS:
        if name.startswith("review"):
            wrong += np.flatnonzero(pc.is_valid(verdicts[name]).to_numpy() & ~named).tolist()
    for row in sorted(set(wrong)):
        yield f"{plain(verdicts['source'][row])} is not decided in verdicts.parquet as in {DECISIONS}."
    if there and summary["verdict"] == "inconclusive":
        open_ = pc.fill_null(pc.not_equal(verdicts["verdict"], "quarantined"), True).to_numpy() & ~named
        for row in np.flatnonzero(open_):
            yield f"The verdict is inconclusive, but {DECISIONS} has no decision about {plain(verdicts['source'][row])}."


SAMPLE = pa.schema([("sample_id", pa.string()), ("label", pa.int64()), ("times", pa.int64())])


def _samples(folder: Folder, contents: Contents) -> Iterator[str]:
    """Compare the samples that are there with those that the verdicts let through."""
    summary, verdicts = contents.summary, contents.verdicts
    keep = pc.equal(verdicts["action"], "keep")
    through = pc.or_(keep, pc.equal(verdicts["action"], "relabel"))
    columns = [verdicts["sample_id"], pc.if_else(keep, verdicts["label"], verdicts["new_label"]), pa.array(np.ones(verdicts.num_rows, np.int64))]
    samples = [pa.table(columns, schema=SAMPLE).filter(through)]
    expected = samples[0].num_rows > 0
    if summary["verdict"] == "inconclusive":
        for name in ("data", "model"):
            if folder.holds(name) and (name == "model" or summary["decisions"] is None):
                yield f"The verdict is inconclusive, but {name}/ is there."
    files = [name for name in contents.manifest["files"] if name.startswith("data/")]
    try:
        # Also where nothing should be there: what was removed must not have come back.
        found = _published(folder.path / "data", summary) if files else iter(())
        while batch := list(islice(found, 4096)):
            if None in batch:
                yield "data/ holds samples of another split than train, about which verdicts.parquet says nothing."
            lines = [{"sample_id": sample[0], "label": sample[1], "times": -1} for sample in batch if sample is not None]
            samples.append(pa.Table.from_pylist(lines, schema=SAMPLE))
    except MecaError:
        # Some formats cannot say that there is nothing: an archive without members, arrays of length 0.
        if expected or sum(map(folder.size, files)) > MAX_NOTHING:
            raise
    # How many copies of each sample are still to be found: below zero, one is there that should not be.
    left = pa.concat_tables(samples).group_by(["sample_id", "label"]).aggregate([("times", "sum")])
    for what, sign in (("is published, but not as verdicts.parquet says", -1), ("should be published, but is not", 1)):
        some = left.filter(pc.greater(pc.multiply(left["times_sum"], sign), 0))
        for line in some.sort_by([("sample_id", "ascending"), ("label", "ascending")]).slice(0, 10).to_pylist():
            times = abs(line["times_sum"])
            yield f"The sample {plain(line['sample_id'])[:12]} with label {line['label']} {what}" + (f" ({times} times)." if times > 1 else ".")


def _published(data: Path, summary: Mapping[str, Any]) -> Iterator[tuple[str, int] | None]:
    """Yield id and label of every sample below `data`, as its reader sees it, and None first where it has another split than train."""
    from meca.data.decoder.decode import Decoded
    from meca.data.decoder.pool import Decoder
    from meca.data.readers import BY_NAME, open_format
    from meca.data.readers.source import Found
    from meca.data.writers import format_of

    written = format_of(summary["source"]["format"])
    column = summary["source"]["options"].get("label_column", "auto") if summary["source"]["format"] == written else "auto"
    source = open_format(written, data, column)
    if any(len(labels) for split, labels in source.labels.items() if split != "train"):
        yield None
    label_of = {line["name"]: line["label"] for line in summary["classes"]}
    # A folder knows its classes by name, and a class that lost all its samples has no folder.
    labels = [label_of[name] for name in source.class_names] if written in BY_NAME else list(range(len(source.class_names)))

    def encoded(sample: Found) -> bytes | None:  # arrays that were written as lossless images: the pixels are what was judged
        return None if sample.pixels is not None or summary["source"]["format"] == written else sample.data

    with Decoder() as decoder:
        for sample, image in decoder.map(source.read("train", np.ones(len(source.labels["train"]), bool)), encoded):
            if sample.pixels is not None:
                sample_id = pixel_id(sample.pixels)
            elif isinstance(image, Decoded):
                sample_id = pixel_id(np.ascontiguousarray(image.pixels[:, :, :1]) if image.mode == "L" else image.pixels)
            elif sample.data is None or image is not None:
                sample_id = "unreadable"
            else:
                sample_id = hashlib.sha256(sample.data).hexdigest()
            yield sample_id, labels[sample.label]
