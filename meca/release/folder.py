"""The published folder: what it holds, and how it is written."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meca.data.columns import pc
from meca.data.store import Store, write_parquet
from meca.data.writers import Entries, format_of, write_sanitized
from meca.errors import MecaError, UsageError
from meca.files import canonical_json
from meca.power import found_lines
from meca.release.decisions import DECISIONS, describe
from meca.release.manifest import listing, root_of
from meca.release.verdicts import summarize
from meca.text import plain

__all__ = ["MODEL", "PublishParams", "card", "entries", "write"]


MODEL = ("model.json", "model.safetensors")
SENTENCE = 2000  # characters of the card's; it names every trigger of the control


@dataclass(frozen=True)
class PublishParams:
    """The group [publish] of params.yaml, which says what each field means."""

    name: str
    license: str

    def __post_init__(self) -> None:
        """Refuse what could break out of the card's header."""
        for field in ("name", "license"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}", getattr(self, field)):
                raise UsageError(
                    f"params.yaml: expected publish.{field} to be letters, digits, blanks and . _ + - (at most 100), got {getattr(self, field)!r}."
                )


def write(
    out: Path,
    store: Store,
    verdicts: pa.Table,
    verdict: Mapping[str, Any],
    params: PublishParams,
    facts: Mapping[str, Any],
    model: Path | None,
    decisions: bytes | None = None,
) -> dict[str, Any]:
    """Write everything that a published folder holds into the empty folder `out`, the manifest last, and return the summary.

    Args:
        out: An empty folder.
        store: What was judged.
        verdicts: A line for every training sample (`meca.release.verdicts.SCHEMA`).
        verdict: The final verdict.json. Where it is inconclusive, samples are published only if a person decided.
        params: Name and licence for the card.
        facts: What `summarize` wants to know of the run.
        model: Folder of the model to publish; None publishes none.
        decisions: The bytes of decisions.jsonl, if a person decided.

    Raises:
        MecaError: The model is incomplete.
    """
    write_parquet(verdicts, out / "verdicts.parquet")
    if decisions is not None:
        (out / DECISIONS).write_bytes(decisions)
    if decisions is not None or verdict["verdict"] != "inconclusive":
        write_sanitized(store, entries(store, verdicts), out / "data")
    if model is not None:
        (out / "model").mkdir()
        for name in MODEL:
            if not (model / name).is_file():
                raise MecaError(f"Expected the file {model / name}, which does not exist; run stage relabel_finetune again.")
            shutil.copyfile(model / name, out / "model" / name)
    said = None if decisions is None else describe(verdicts, decisions)
    summary = summarize(store, verdicts, verdict, said, sanitized_sha256=root_of(listing(out)), **facts)
    (out / "summary.json").write_text(canonical_json(summary), encoding="utf-8")
    (out / "README.md").write_text(card(store, summary, params), encoding="utf-8")
    files = listing(out)
    manifest = {
        "schema": "meca.manifest/1",
        "files": files,
        "sanitized_sha256": root_of(files),
        "decided_by": "meca" if decisions is None else "person",
    }
    (out / "manifest.json").write_text(canonical_json(manifest), encoding="utf-8")
    return summary


def entries(store: Store, verdicts: pa.Table) -> Entries:
    """Return the samples to publish, in the order of the store."""
    samples = store.samples
    trained = np.flatnonzero(pc.equal(samples["split"], "train").to_numpy())
    sources = samples["source"].take(pa.array(trained))
    at = trained[pc.array_sort_indices(sources).to_numpy()]  # the place of each line of the verdicts, which are sorted by source
    if not samples["source"].take(pa.array(at)).equals(verdicts["source"]):
        raise MecaError("The verdicts are about other samples than the store holds; run stage publish again.")
    kept, relabelled = (pc.equal(verdicts["action"], action).to_numpy() for action in ("keep", "relabel"))
    labels = np.where(relabelled, pc.fill_null(verdicts["new_label"], -1).to_numpy(), verdicts["label"].to_numpy())
    order = np.argsort(at)
    chosen = order[(kept | relabelled)[order]]
    return Entries(samples, at[chosen], labels[chosen])


def card(store: Store, summary: Mapping[str, Any], params: PublishParams) -> str:
    """Return the data set card: the header that Hugging Face reads, and what was done to the data."""
    decided = summary["decisions"]
    published = summary["verdict"] != "inconclusive" or decided is not None
    written = format_of(store.info.source["format"])
    header: dict[str, Any] = {"license": params.license, "pretty_name": params.name, "task_categories": ["image-classification"], "tags": ["meca"]}
    if published and written == "parquet":
        header["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}]
    elif published and written == "webdataset":
        header["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.tar"}]}]
    elif published and written in ("imagefolder", "metadata"):
        header["configs"] = [{"config_name": "default", "data_dir": "data"}]
    # JSON in one line is YAML too, and no name can break out of its quotes.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", "", f"# {_escape(params.name)}", ""]
    counts, source = summary["counts"], summary["source"]
    lines += [_escape(summary["sentence"], SENTENCE), "", _escape(summary["reason"]), ""]
    lines += ["## What was done to the data", ""]
    origin = f", fetched from {_escape(source['options']['origin'])}" if "origin" in source["options"] else ""
    lines += [f"Source: {_escape(source['name'])} ({_escape(source['format'])}){origin}, SHA-256 of the input `{summary['input_sha256']}`."]
    if published:
        lines += [f"Published as {written}; SHA-256 of the published data `{summary['sanitized_sha256']}`."]
        lines += ["Samples that were kept have the bytes that they came with; a relabelled sample differs in its label alone."]
    else:
        lines += ["No sample and no model is published, so that an older set cannot pass for this one."]
    if decided:
        lines += [
            f"A person decided about {decided['samples']} of the samples: {decided['kept']} kept, {decided['relabelled']} relabelled, "
            f"{decided['removed']} removed. `decisions.jsonl` says who, when and why; the columns `review_*` of `verdicts.parquet` say it by sample."
        ]
    lines += ["", "| input | kept | relabelled | removed | quarantined |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(str(counts[key]) for key in ("input", "kept", "relabelled", "removed", "quarantined")) + " |", ""]
    lines += ["| class | input | kept | relabelled in | relabelled out | removed | quarantined |", "|---|---|---|---|---|---|---|"]
    keys = ("input", "kept", "relabelled_in", "relabelled_out", "removed", "quarantined")
    lines += [f"| {_escape(line['name'])} | " + " | ".join(str(line[key]) for key in keys) + " |" for line in summary["classes"]]
    if rows := found_lines(summary.get("control")):
        lines += ["", "## What the test could find here", ""]
        lines += [
            "Known triggers were planted into copies of this set, and the same detection was run on them. Nothing of the copies is published.",
            "",
        ]
        lines += ["| trigger | of all samples | planted | found | learnt | outcome |", "|---|---|---|---|---|---|"]
        lines += ["| " + " | ".join(_escape(row[key]) for key in ("kind", "rate", "planted", "found", "learnt", "state")) + " |" for row in rows]
    lines += ["", *(f"* {_escape(warning)}" for warning in summary["warnings"]), ""]
    lines += [
        f"`verdicts.parquet` has a row for each of the {counts['input']} training samples. `meca verify` checks this folder against `manifest.json`."
    ]
    lines += [
        f"Made by meca {summary['meca_version']}, preset {summary['preset']}, seed {summary['seed']}. Metadata inside image files is kept as it came."
    ]
    return "\n".join(lines) + "\n"


def _escape(value: Any, length: int = 500) -> str:
    """Return text that Markdown shows and does not obey."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$:@-])", r"\\\1", plain(value, length)) if value else ""
