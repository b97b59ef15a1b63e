"""Promotion: the clean model becomes a version of the registered model, and the alias moves, when every gate holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meca.errors import Inconclusive, MecaError
from meca.files import read_json, sha256_tree
from meca.params import Params, read_params
from tasks import environment
from tasks.tracking import Result, open_client, read_result, record

__all__ = ["Gate", "Gates", "check", "promote"]

MODEL_STAGE = "relabel_finetune"  # whose model is promoted: the last of the method
PREVIOUS = "previous"  # alias of the version that the alias pointed to before


@dataclass(frozen=True)
class Gates:
    """Group `promote` of params.yaml."""

    alias: str
    min_acc: float
    min_recall: float
    max_leak: float
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """One condition and what was found."""

    name: str
    value: float | str | None
    limit: float | str
    holds: bool
    sentence: str


def check(gates: Gates, verdict: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[Gate]:
    """Return every gate with what was found.

    Args:
        gates: The limits.
        verdict: The final verdict.json.
        evaluation: The evaluation.json of the same result.
    """
    final = evaluation.get("final") or {}
    recall = final.get("recall") or []
    worst = None if not recall or None in recall else min(recall)
    found, allowed = str(verdict["verdict"]), ", ".join(gates.verdicts)
    holds = found in gates.verdicts
    return [
        Gate("verdicts", found, allowed, holds, f"the verdict is {found}" + ("" if holds else f", which is none of: {allowed}")),
        _at_least("min_acc", "the accuracy on the test split", final.get("acc"), gates.min_acc),
        _at_least("min_recall", "the recall of the worst class on the test split", worst, gates.min_recall),
        _leak(verdict, gates.max_leak),
    ]


def _at_least(name: str, what: str, value: float | None, limit: float) -> Gate:
    if value is None:
        return Gate(name, None, limit, False, f"{what} is unknown, because there is no test split that covers it; it must be at least {limit:.4g}")
    holds = value >= limit
    return Gate(name, value, limit, holds, f"{what} is {value:.4f}, " + ("at least" if holds else f"{limit - value:.4f} below") + f" {limit:.4g}")


def _leak(verdict: Mapping[str, Any], limit: float) -> Gate:
    what, value = "the leak (docs/files.md) of the final model", verdict.get("leak")
    if value is None:
        holds = verdict["verdict"] != "poisoned"  # nothing is suspected, so there is nothing that could have leaked
        sentence = f"{what} is not measured, because nothing is suspected" if holds else f"{what} is unknown; it must be at most {limit:.4g}"
        return Gate("max_leak", None, limit, holds, sentence)
    holds = value <= limit
    return Gate(
        "max_leak", value, limit, holds, f"{what} is {value:.4f}, " + ("at most" if holds else f"{value - limit:.4f} above") + f" {limit:.4g}"
    )


def promote(workspace: Path = Path(), params: Params | None = None) -> dict[str, Any]:
    """Register the clean model of a workspace and move the alias to it, if every gate holds. Repeating it changes nothing.

    Args:
        workspace: A workspace with a finished run.
        params: Where the gates stand; the workspace's params.yaml if None.

    Returns:
        `model`, `version`, `alias`, `previous` (version before, or None), `new` (whether a version was made), `gates`.

    Raises:
        Inconclusive: A gate does not hold; the message names each that fails and the distance.
        MecaError: What was evaluated is not what stands in the workspace now, or somebody else moved the alias meanwhile.
    """
    result = read_result(workspace)
    params = params or read_params(result.params)
    gates = params.group("promote", Gates)
    _check_same_model(result)
    found = check(gates, read_json(result.work / MODEL_STAGE / "verdict.json"), read_json(result.work / "evaluate" / "evaluation.json"))
    if failed := [gate for gate in found if not gate.holds]:
        sentences = "; ".join(f"{gate.sentence} [promote.{gate.name}]" for gate in failed)
        raise Inconclusive(f"Not promoted: {sentences}. The gates stand in {params.origin}, group [promote].")
    told = record(workspace, result)
    summary = read_json(result.published / "summary.json")
    receipt = next(r for r in map(read_json, result.receipts) if r["stage"] == MODEL_STAGE)
    tags = {
        "meca.stage_key": str(receipt["key"]),
        "meca.sanitized_sha256": str(summary["sanitized_sha256"]),
        "meca.params_sha256": str(summary["params_sha256"]),
        "meca.verdict": str(summary["verdict"]),
        "meca.parent_run": told["parent"],
    }
    outcome = _move(
        workspace, str(params.raw("track")["registered_model"]), gates.alias, told["models"][MODEL_STAGE], told["runs"][MODEL_STAGE], tags
    )
    return {**outcome, "gates": [gate.__dict__ for gate in found]}


def _check_same_model(result: Result) -> None:
    """Refuse when the model was changed after it was evaluated: the gates would speak of another one."""
    receipts = {receipt["stage"]: receipt for receipt in map(read_json, result.receipts)}
    evaluated = receipts["evaluate"]["inputs"].get(MODEL_STAGE)
    if evaluated != sha256_tree(result.work / MODEL_STAGE):
        raise MecaError(f"The model in {result.work / MODEL_STAGE} is not the one that was evaluated; run the pipeline again.")


def _move(workspace: Path, name: str, alias: str, source: str, run_id: str, tags: Mapping[str, str]) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    with open_client(workspace) as client:  # holds the lock: an alias is last-writer-wins
        versions = _versions(client, name)
        before = next((version for version in versions if alias in version.aliases), None)
        same = [version for version in versions if all(version.tags.get(key) == tags[key] for key in ("meca.stage_key", "meca.sanitized_sha256"))]
        version = (
            max(same, key=lambda v: int(v.version))
            if same
            else client.create_model_version(name, source, run_id, tags=dict(tags), model_id=source.removeprefix("models:/"))
        )
        if before is None or str(before.version) != str(version.version):
            if before is not None:
                client.set_registered_model_alias(name, PREVIOUS, str(before.version))
            client.set_registered_model_alias(name, alias, str(version.version))
        try:
            now = str(client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            now = environment.without_secrets(f"nothing ({error})")
        if now != str(version.version):
            raise MecaError(
                f"The alias {alias} of {name} was moved by somebody else: expected version {version.version}, it points to {now}. Promote again."
            )
        moved = before is None or str(before.version) != str(version.version)
        previous = str(before.version) if before is not None and moved else None
    return {"model": name, "version": str(version.version), "alias": alias, "previous": previous, "new": not same, "moved": moved}


def _versions(client: Any, name: str) -> Sequence[Any]:
    """Return every version of the registered model with its aliases; the model is made where it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Classifiers trained by meca on data that was sanitized first.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A search leaves the aliases out; reading each version brings them.
    return [client.get_model_version(name, version.version) for version in client.search_model_versions(f"name = '{name}'")]
