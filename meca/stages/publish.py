"""Write what the user gets: the sanitized set, the clean model, a verdict for every sample, the summary and the card."""

import sys
from pathlib import Path
from typing import Any

from meca.data.store import open_store, read_parquet
from meca.errors import MecaError
from meca.files import code_digest, read_json
from meca.params import Params
from meca.power import is_weak
from meca.release.folder import PublishParams, write
from meca.release.verdicts import build
from meca.stages.graph import Groups, Output, interface
from meca.stages.runtime import Context, main

VERDICTS = ("no_evidence", "poisoned", "inconclusive")  # of the stages before; `weak` is what the control makes of the first


def run(
    ctx: Context,
    store: Path,
    partition: Path,
    enhance: Path,
    split: Path,
    control: Path,
    relabel_finetune: Path,
    out: Output,
    *,
    publish: PublishParams,
    # The summary names the numbers behind the result, so all of them are read.
    behind: Groups = Groups(  # noqa: B008 - a tuple
        "ingest",
        "network",
        "detector",
        "engine",
        "partition",
        "enhance",
        "split",
        "control",
        "train_clean",
        "relabel_finetune",
        "publish",
    ),
) -> None:
    """Write the published folder. Where no answer can be defended, it holds the verdicts and no sample and no model."""
    # No ctx.metrics here: metrics.json would be written beside the manifest that must list every file.
    data = open_store(store)
    verdict = _verdict(relabel_finetune, split) | {"control": _control(control)}
    if verdict["verdict"] == "no_evidence" and is_weak(verdict["control"]):
        verdict["verdict"] = "weak"
    inconclusive = verdict["verdict"] == "inconclusive"
    scores = {name: read_parquet(folder / "scores.parquet") for name, folder in (("partition", partition), ("enhance", enhance))}
    verdicts = build(data, read_parquet(relabel_finetune / "decisions.parquet"), scores, inconclusive)
    facts: dict[str, Any] = {
        "preset": ctx.params.preset,
        "seed": ctx.seed,
        "params_sha256": ctx.params.digest(behind),
        "code_sha256": code_digest(),
    }
    model = relabel_finetune / "model.json"
    if not inconclusive and model.is_file() and (weights := read_json(model).get("weights_sha256")):
        facts["weights_sha256"] = weights  # of the file that its training started from
    with ctx.timed("write"):
        write(out, data, verdicts, verdict, publish, facts, None if inconclusive else relabel_finetune)


def _verdict(final: Path, split: Path) -> dict[str, Any]:
    verdict, earlier = (read_json(folder / "verdict.json") for folder in (final, split))
    if verdict["verdict"] not in VERDICTS:
        raise MecaError(
            f"Expected a verdict among {', '.join(VERDICTS)} in {final / 'verdict.json'}, got {verdict['verdict']!r}; run the stage again."
        )
    if earlier["verdict"] == "inconclusive" != verdict["verdict"]:
        raise MecaError(
            f"Stage split found no answer that can be defended, and the final verdict says {verdict['verdict']!r}; this is a bug, please report it."
        )
    return verdict


def _control(folder: Path) -> dict[str, Any]:
    """Return what the summary says of the positive control: no sample, no class, no copy."""
    record = read_json(folder / "control.json")
    return {name: record[name] for name in ("ran", "reason", "lines")}


def params_digest(params: Params) -> str:
    """Return the SHA-256 of every number that decides about the set, as the summary names it."""
    return params.digest(interface("publish", run).groups)


if __name__ == "__main__":
    main(sys.modules[__name__])
