"""What a receiver runs on a published folder: hashes, accounting, the data against the verdicts, the signature. Needs no torch."""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from meca.compute import pc
from meca.decisions import DECISION_COLUMNS, DECISIONS, describe, parse, resolve
from meca.errors import MecaError
from meca.files import sha256_file
from meca.judged import of_verdicts
from meca.store import each_line, pixel_id, read_parquet
from meca.verdicts import SCHEMA, count, count_by_class

__all__ = ["ATTESTATION", "listing", "read_object", "root_of", "verify"]

ATTESTATION = "attestation.json"  # the signed statement (meca/signing.py)
# The manifest cannot list itself, nor the signature over it; the report is added by `meca clean` and shows what the other files hold.
NOT_LISTED = {"manifest.json", "report.html", ATTESTATION}
MAX_JSON = 256 * 2**20
MAX_NOTHING = 16 * 2**10  # bytes of all files below data/ that hold no sample: the largest is an empty tar archive


def listing(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a published folder by relative name, without `NOT_LISTED`."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {name: sha256_file(folder / name) for name in files if name not in NOT_LISTED}


def root_of(files: Mapping[str, str]) -> str | None:
    """Return the SHA-256 of the sanitized set: over name and hash of every file below `data/`; None where there is none."""
    lines = [f"{name}\0{digest}\n" for name, digest in sorted(files.items()) if name.startswith("data/")]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def verify(path: Path, key: Path | None = None, attestation: Path | None = None) -> list[str]:
    """Return what does not match in a published folder, a sentence each; nothing where everything matches.

    Args:
        path: The published folder.
        key: File of an Ed25519 public key (PEM). With it the folder must be signed by that key; without it no signature is looked at.
        attestation: Where the signed statement stands; `attestation.json` in the folder if None.

    Raises:
        UsageError: The key cannot be read, or is none.
    """
    wrong: list[str] = []
    if key is not None:
        from meca import signing  # needs `cryptography`, which a check of hashes does not

        wrong = signing.check(path, signing.read_public_key(key), attestation)
    return wrong + _contents(path)


def _contents(path: Path) -> list[str]:
    try:
        manifest = read_object(path / "manifest.json")
        wrong = list(_files(path, manifest))
        if not wrong:
            # Each check stands on those before it.
            summary = read_object(path / "summary.json")
            verdicts = read_parquet(path / "verdicts.parquet")
            wrong = list(_accounts(summary, verdicts)) or list(_decided(path, manifest, summary, verdicts)) or list(_samples(path, summary, verdicts))
    except (MecaError, pa.ArrowException) as error:
        return [str(error).splitlines()[0]]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return [f"manifest.json, summary.json or verdicts.parquet lacks what meca writes into it ({type(error).__name__}: {error})."]
    return wrong


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file that others may have written.

    Raises:
        MecaError: The file is missing, larger than 256 MiB, or holds no JSON object.
    """
    try:
        if file.stat().st_size > MAX_JSON:
            raise MecaError(f"{file.name} is larger than {MAX_JSON // 2**20} MiB.")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise MecaError(f"{file.name} is missing.") from None
    except (ValueError, RecursionError):
        raise MecaError(f"{file.name} is not JSON.") from None
    if not isinstance(value, dict):
        raise MecaError(f"{file.name} holds no object.")
    return value


def _files(path: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    listed: dict[str, str] = manifest["files"]
    for name, expected in sorted(listed.items()):
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
            yield f"manifest.json lists {name!r}, which is no name inside the folder."
            continue
        links = [part for part in (path / name, *(path / name).parents) if part.is_symlink() and part.is_relative_to(path) and part != path]
        if links:
            yield f"{name} is, or lies behind, a link."
        elif not (path / name).is_file():
            yield f"{name} is missing."
        elif (actual := sha256_file(path / name)) != expected:
            yield f"{name} was changed: expected SHA-256 {str(expected)[:12]}, got {actual[:12]}."
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if name not in listed and name not in NOT_LISTED and (file.is_symlink() or not file.is_dir()):
            yield f"{name} is not listed in manifest.json."
        elif name in NOT_LISTED and file.is_symlink():
            yield f"{name} is a link."
    for name in ("summary.json", "verdicts.parquet", "README.md"):
        if name not in listed:
            yield f"manifest.json does not list {name}."
    if manifest["sanitized_sha256"] != root_of(listed):
        yield "The SHA-256 of the sanitized set in manifest.json is not that of its files."


def _accounts(summary: Mapping[str, Any], verdicts: pa.Table) -> Iterator[str]:
    if not verdicts.schema.equals(SCHEMA):
        yield f"verdicts.parquet has the columns {', '.join(verdicts.column_names)}, expected {', '.join(SCHEMA.names)}."
        return
    counts = count(verdicts)
    if counts != summary["counts"]:
        yield f"summary.json counts {summary['counts']}, verdicts.parquet {counts}."
    if count_by_class(verdicts, [line["name"] for line in summary["classes"]]) != summary["classes"]:
        yield "The counts per class in summary.json are not those of verdicts.parquet."
    judged = summary["judged_at"]
    side = judged["height"], judged["width"]
    if any(type(pixels) is not int for pixels in side) or of_verdicts(verdicts, side) != judged:
        yield "The sizes at which images were judged (judged_at) in summary.json do not fit those in verdicts.parquet."
    sources = verdicts["source"]
    if sources.null_count or not pc.all(pc.less(sources[:-1], sources[1:]), min_count=0).as_py():
        yield "verdicts.parquet is not sorted by source, or names a sample twice."
    if not pc.all(pc.equal(verdicts["split"], "train"), skip_nulls=False, min_count=0).as_py():
        yield "verdicts.parquet judges samples of another split than train."
    for line in each_line(verdicts.select(["source", "verdict", "action", "new_label", "review_decision"])):
        if (line["action"] == "relabel") != (line["new_label"] is not None):
            yield f"{line['source']} has the action {line['action']} and the new label {line['new_label']}."
        if line["verdict"] in ("review", "quarantined") and line["action"] != "quarantine" and line["review_decision"] is None:
            yield f"{line['source']} has the verdict {line['verdict']} and the action {line['action']}."


def _decided(path: Path, manifest: Mapping[str, Any], summary: Mapping[str, Any], verdicts: pa.Table) -> Iterator[str]:
    """Compare what the folder says about people's decisions with the decisions themselves."""
    there = (path / DECISIONS).is_file()
    if manifest["decided_by"] != ("person" if there else "meca"):
        yield f"manifest.json says decided_by {manifest['decided_by']}, but {DECISIONS} is {'there' if there else 'missing'}."
    data = (path / DECISIONS).read_bytes() if there else b""
    names = [line["name"] for line in summary["classes"]]
    expected = resolve(verdicts, names, parse(data)) if there else {}
    if summary["decisions"] != (describe(verdicts, data) if there else None):
        yield f"What summary.json says about decisions is not what {DECISIONS} and verdicts.parquet hold."
    nothing = dict.fromkeys(DECISION_COLUMNS)
    for at, line in enumerate(each_line(verdicts.select(["source", "verdict", *DECISION_COLUMNS]))):
        wanted = expected.get(at, nothing)
        if any(line[name] != wanted[name] for name in DECISION_COLUMNS if at in expected or name.startswith("review")):
            yield f"{line['source']} is not decided in verdicts.parquet as in {DECISIONS}."
        if there and summary["verdict"] == "inconclusive" and at not in expected and line["verdict"] != "quarantined":
            yield f"The verdict is inconclusive, but {DECISIONS} has no decision about {line['source']}."


def _samples(path: Path, summary: Mapping[str, Any], verdicts: pa.Table) -> Iterator[str]:
    """Compare the samples that are there with those that the verdicts let through."""
    # How many copies of each sample are still to be found: below zero, one is there that should not be.
    balance: Counter[tuple[str, int]] = Counter(
        (line["sample_id"], line["label"] if line["action"] == "keep" else line["new_label"])
        for line in each_line(verdicts.select(["sample_id", "action", "label", "new_label"]))
        if line["action"] in ("keep", "relabel")
    )
    if summary["verdict"] == "inconclusive":
        for name in ("data", "model"):
            if (path / name).exists() and (name == "model" or summary["decisions"] is None):
                yield f"The verdict is inconclusive, but {name}/ is there."
    files = [file for file in (path / "data").rglob("*") if file.is_file()]
    expected = bool(balance)
    try:
        # Also where nothing should be there: what was removed must not have come back.
        for sample in _published(path / "data", summary) if files else ():
            if sample is None:
                yield "data/ holds samples of another split than train, about which verdicts.parquet says nothing."
                continue
            balance[sample] -= 1
            if not balance[sample]:
                del balance[sample]
    except MecaError:
        # Some formats cannot say that there is nothing: an archive without members, arrays of length 0.
        if expected or sum(file.stat().st_size for file in files) > MAX_NOTHING:
            raise
    for what, sign in (("is published, but not as verdicts.parquet says", -1), ("should be published, but is not", 1)):
        for (sample_id, label), times in heapq.nsmallest(10, ((sample, sign * left) for sample, left in balance.items() if sign * left > 0)):
            yield f"The sample {sample_id[:12]} with label {label} {what}" + (f" ({times} times)." if times > 1 else ".")


def _published(data: Path, summary: Mapping[str, Any]) -> Iterator[tuple[str, int] | None]:
    """Yield id and label of every sample below `data`, as its reader sees it, and None first where it has another split than train."""
    from meca.decoder.decode import Decoded
    from meca.decoder.pool import Decoder
    from meca.readers import BY_NAME, open_format
    from meca.readers.source import Found
    from meca.writers import format_of

    written = format_of(summary["source"]["format"])
    column = summary["source"]["options"].get("label_column", "auto") if summary["source"]["format"] == written else "auto"
    source = open_format(written, data, column)
    if any(len(labels) for split, labels in source.labels.items() if split != "train"):
        yield None
    label_of = {line["name"]: line["label"] for line in summary["classes"]}
    # A folder knows its classes by name, and a class that lost all its samples has no folder.
    labels = [label_of[name] for name in source.class_names] if written in BY_NAME else list(range(len(source.class_names)))

    def pictured(sample: Found) -> bytes | None:  # arrays that were written as lossless images: the pixels are what was judged
        return None if sample.pixels is not None or summary["source"]["format"] == written else sample.data

    with Decoder() as decoder:
        for sample, image in decoder.map(source.read("train", np.ones(len(source.labels["train"]), bool)), pictured):
            if sample.pixels is not None:
                sample_id = pixel_id(sample.pixels)
            elif isinstance(image, Decoded):
                sample_id = pixel_id(np.ascontiguousarray(image.pixels[:, :, :1]) if image.mode == "L" else image.pixels)
            elif sample.data is None or image is not None:
                sample_id = "unreadable"
            else:
                sample_id = hashlib.sha256(sample.data).hexdigest()
            yield sample_id, labels[sample.label]
