"""Promotion: the clean model becomes a version of the registered model, and the alias moves, when every gate holds.

What is promoted is the model of the published folder, byte for byte, and the gates go by that folder: its summary says
verdict and leak, and the accuracy is measured here, on the data that it names by SHA-256. So a signature over the folder
covers all of it. The challenger is compared with the champion on the challenger's evidence. A refusal leaves the registry
as it was. What the registry holds is looked at before it is believed: names, size and SHA-256 of the files, and that nothing
in it is code.

An alias is last-writer-wins, and MLflow has no condition to put on a write: on one machine a lock keeps two promotions
apart, between machines each reads the alias again before and after it writes, and says so when another one was there.
"""

import getpass
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from meca.data.judged import as_tag, notice
from meca.errors import Inconclusive, MecaError, UsageError
from meca.files import read_json, sha256_file, sha256_tree
from meca.params import Params, read_params
from meca.release.gates import Gate, Gates, _verdict, check, compare
from meca.release.published import Published
from meca.text import plain
from tasks.mlflow.client import TrackingUnavailable, open_client
from tasks.mlflow.comparison import Incomparable, gather, measure
from tasks.mlflow.result import Result, read_result
from tasks.mlflow.tracking import record

__all__ = ["fetch_alias", "history", "model_digest", "promote", "rollback"]

MODEL_STAGE = "relabel_finetune"  # whose model is promoted: the last of the method
PREVIOUS = "previous"  # alias of the version that the alias pointed to before
HISTORY = "meca.history."  # tags of the registered model, one for each time that the alias moved
LOADER = "tasks.mlflow.serving"  # the only module that may load a model of the registry
LOADERS = (LOADER, "tasks.serving")  # and what it was called when older versions were registered
WEIGHTS = ("model.json", "model.safetensors")
SAID = ("verdict", "leak", "leak_power", "seed", "input_sha256", "sanitized_sha256", "params_sha256", "code_sha256")  # in its summary
SAME = ("meca.manifest_sha256", "meca.sanitized_sha256", "meca.model_sha256")  # tags: a version is one model out of one published folder
# What an entry of the registry may hold. All else may be code to somebody.
FILES = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta", *(f"data/model/{name}" for name in WEIGHTS)}
MAX_BYTES = 4 * 2**30  # of one entry


def promote(
    workspace: Path = Path(),
    params: Params | None = None,
    why: str = "",
    key: Path | None = None,
    attestation: Path | None = None,
    uncompared: bool = False,
) -> dict[str, Any]:
    """Register the clean model of a workspace and move the alias to it, if every gate holds. Repeating it changes nothing.

    Args:
        workspace: A workspace with a finished run.
        params: Where the gates stand; the workspace's params.yaml if None.
        why: Goes into the record.
        key: An Ed25519 public key (PEM): the published folder must be signed by it, and the record says so.
        attestation: The signed statement; attestation.json in the published folder if None.
        uncompared: Promote although the champion cannot be measured on this evidence; asks for `why`.

    Returns:
        `model`, `version`, `alias`, `previous` (version before, or None), `new` (whether a version was made), `moved`, `gates`,
        `champion` (figures of the version before on this evidence, or None), `challenger`, `warnings` (sentences).

    Raises:
        Inconclusive: A gate does not hold; the message names each that fails and the distance.
        MecaError: The workspace's model, data or numbers are not those that were evaluated and published, or somebody else moved the
            alias meanwhile.
        UsageError: `uncompared` without `why`.
    """
    if uncompared and not why.strip():
        raise UsageError("Expected --why beside --uncompared: the record must say why a champion that cannot be compared is replaced.")
    result = read_result(workspace)
    params = params or read_params(result.params)
    gates = params.group("promote", Gates)
    name = str(params.raw("track")["registered_model"])
    _check_same_model(result)
    results, signed = list[Gate](), dict[str, str]()
    if key is not None:
        gate, signed = _signature(result.published, key, attestation)
        _refuse([gate], params)  # what nobody signed has no say in the gates
        results.append(gate)
    published = _published(result)
    summary = published.summary
    if not (result.published / "model").is_dir():
        _refuse([_verdict(summary, gates.verdicts)], params)
        raise MecaError(f"{result.published} holds no model, because the verdict is {summary['verdict']}, so there is none to promote.")
    tags = _identity(result, published) | signed
    evidence = gather(result.store, published, read_params(result.params))
    try:
        mine = measure(result.published / "model", evidence)
    except Incomparable as error:
        raise MecaError(f"The model in {result.published} cannot be measured on {result.store}: {error}; run the pipeline again.") from None
    results = check(gates, summary, mine) + results
    _refuse(results, params)  # before the server is asked for anything
    measured: dict[str, Any] = {"challenger": None, "champion": None}
    with open_client(workspace) as client, TemporaryDirectory() as temporary:
        champion = _holder(client, name, gates.alias)
        if champion is not None and not _is_same(champion, tags):
            try:
                theirs = measure(_fetched(champion, Path(temporary)), evidence)
            except TrackingUnavailable:
                raise
            except MecaError as error:
                results.append(_no_comparison(str(champion.version), error, uncompared))
            else:
                results += compare(gates, mine, theirs, str(champion.version))
                measured = {"challenger": asdict(mine), "champion": asdict(theirs)}
    _refuse(results, params)
    tracked = record(workspace, result)
    tags["meca.parent_run"] = tracked["parent"]
    before = None if champion is None else str(champion.version)
    entry = _Entry("promote", why, {gate.name: gate.value for gate in results})
    outcome = _move(workspace, name, gates.alias, tracked["models"][MODEL_STAGE], tracked["runs"][MODEL_STAGE], tags, before, entry)
    if key is not None:
        with open_client(workspace) as client:
            client.log_artifact(tracked["parent"], str(attestation or result.published / "attestation.json"))
    warning = notice(summary.get("judged_at"))
    return {**outcome, **measured, "gates": [gate.__dict__ for gate in results], "warnings": [warning] * bool(warning)}


def rollback(workspace: Path = Path(), params: Params | None = None, why: str = "") -> dict[str, Any]:
    """Move the alias back to the version that it named before, and `previous` to the one before that.

    Args:
        workspace: A workspace, whose params.yaml names the model and the alias.
        params: Used instead of the workspace's params.yaml.
        why: Goes into the record, and must be given.

    Returns:
        `model`, `version`, `alias`, `undone` (the version that lost the alias), `previous` (or None).

    Raises:
        UsageError: There is no version to go back to, or no reason is given.
        MecaError: That version is not what was registered, or somebody else moved the alias meanwhile.
    """
    if not why.strip():
        raise UsageError("Expected --why with a reason: the record of a rollback without one helps nobody.")
    params = params or read_params(workspace / "params.yaml")
    name, alias = str(params.raw("track")["registered_model"]), params.group("promote", Gates).alias
    with open_client(workspace) as client, TemporaryDirectory() as temporary:
        champion, previous = _holder(client, name, alias), _holder(client, name, PREVIOUS)
        if champion is None:
            raise UsageError(f"{name} has no version with the alias {alias}, so there is nothing to undo.")
        events = _events(client, name)
        now = str(champion.version)
        halved = previous is not None and str(previous.version) == now
        if halved and events and events[-1]["to"] != now:  # a rollback was killed after it had moved the alias: finish that one
            target, now = now, str(events[-1]["to"])
        else:
            target = _before(events, now) if previous is None or halved else str(previous.version)
        if target is None or target not in {str(version.version) for version in _search(client, name)}:
            raise UsageError(f"There is no version of {name} before version {now} to go back to.")
        wanted = client.get_model_version(name, target)
        _fetched(wanted, Path(temporary))  # what cannot be served does not get the alias
        if str(champion.version) != target:
            _still(client, name, alias, now)
            client.set_registered_model_alias(name, alias, target)
            _confirm(client, name, alias, target)
        older = _before(events, target)
        if older is not None and any(str(version.version) == older for version in _search(client, name)):
            client.set_registered_model_alias(name, PREVIOUS, older)
        else:
            older = None
            with suppress(Exception):  # it may have no such alias
                client.delete_registered_model_alias(name, PREVIOUS)
        _remember(client, name, _Entry("rollback", why, {}), now, wanted)
    return {"model": name, "version": target, "alias": alias, "undone": now, "previous": older}


def history(workspace: Path = Path(), params: Params | None = None) -> list[dict[str, Any]]:
    """Return every time that the alias moved, oldest first: `action`, `from`, `to`, `who`, `when`, `why` and what was found."""
    params = params or read_params(workspace / "params.yaml")
    with open_client(workspace) as client:
        return _events(client, str(params.raw("track")["registered_model"]))


def fetch_alias(workspace: Path, name: str, alias: str, folder: Path) -> tuple[str, Path]:
    """Download what an alias names and return its version and the folder of its model, `data/model` in MLflow's folder.

    Raises:
        MecaError: There is no such alias, or the entry holds anything but a model of meca as it was registered.
    """
    with open_client(workspace) as client:
        version = _holder(client, name, alias)
        if version is None:
            raise MecaError(f"there is no version of {plain(name)} with the alias {plain(alias)}.")
        return str(version.version), _fetched(version, folder)


def model_digest(folder: Path) -> str:
    """Return the SHA-256 of a model: over name and SHA-256 of its two files."""
    return hashlib.sha256("".join(f"{name}\0{sha256_file(folder / name)}\n" for name in WEIGHTS).encode()).hexdigest()


def _refuse(found: Sequence[Gate], params: Params) -> None:
    if failed := [gate for gate in found if not gate.holds]:
        sentences = "; ".join(f"{gate.sentence} [promote.{gate.name}]" for gate in failed)
        raise Inconclusive(f"Not promoted: {sentences}. The gates stand in {params.origin}, group [promote].")


def _check_same_model(result: Result) -> None:
    """Refuse when the model was changed after it was evaluated: the gates would speak of another one."""
    receipts = {receipt["stage"]: receipt for receipt in map(read_json, result.receipts)}
    evaluated = receipts["evaluate"]["inputs"].get(MODEL_STAGE)
    if evaluated != sha256_tree(result.work / MODEL_STAGE):
        raise MecaError(f"The model in {result.work / MODEL_STAGE} is not the one that was evaluated; run the pipeline again.")


def _published(result: Result) -> Published:
    """Return the published folder, whose model is that of the workspace.

    Raises:
        MecaError: One of the files that matter here is not what the manifest says, or the models differ.
    """
    published, final = Published.open(result.published), result.work / MODEL_STAGE
    for name in WEIGHTS if (published.path / "model").is_dir() else ():
        if published.sha256(f"model/{name}") != sha256_file(final / name):
            raise MecaError(f"{final / name} is not the model/{name} that was published; run the pipeline again.")
    if missing := [name for name in SAID if name not in published.summary]:
        raise MecaError(f"{published.path / 'summary.json'} lacks {missing[0]}; run the pipeline again.")
    return published


def _identity(result: Result, published: Published) -> dict[str, str]:
    """Return the tags of a version: what it was made from, and what it is."""
    summary = published.summary
    receipt = next(r for r in map(read_json, result.receipts) if r["stage"] == MODEL_STAGE)
    return {
        "meca.stage_key": str(receipt["key"]),
        "meca.model_sha256": model_digest(published.path / "model"),
        "meca.input_sha256": str(summary["input_sha256"]),
        "meca.sanitized_sha256": str(summary["sanitized_sha256"]),
        "meca.manifest_sha256": published.manifest_sha256,
        "meca.params_sha256": str(summary["params_sha256"]),
        "meca.code_sha256": str(summary["code_sha256"]),
        "meca.verdict": str(summary["verdict"]),
        "meca.judged_at": as_tag(summary.get("judged_at")),
    }


def _is_same(version: Any, tags: Mapping[str, str]) -> bool:
    return all(version.tags.get(name) == tags[name] for name in SAME)


def _signature(published: Path, key: Path, attestation: Path | None) -> tuple[Gate, dict[str, str]]:
    from meca.release.signing import key_id, read_public_key
    from meca.release.verification import verify

    signer = key_id(read_public_key(key))
    wrong = verify(published, key, attestation)
    sentence = (
        f"the published folder is not as it was signed: {plain(wrong[0], 300)}"
        if wrong
        else f"the published folder is signed by the key {signer[:12]}"
    )
    gate = Gate("signature", "invalid" if wrong else "valid", "valid", not wrong, sentence)
    return gate, {} if wrong else {"meca.attestation_sha256": sha256_file(attestation or published / "attestation.json"), "meca.key_id": signer}


def _no_comparison(version: str, error: MecaError, allowed: bool) -> Gate:
    sentence = f"version {version}, the champion, cannot be compared on this evidence ({plain(str(error).rstrip('.'), 400)})"
    sentence += "; replaced nevertheless, as asked" if allowed else "; --uncompared with --why replaces it nevertheless"
    kind = "unlike" if isinstance(error, Incomparable) else "unreadable"
    return Gate("champion", kind, "comparable", allowed, sentence)


@dataclass(frozen=True)
class _Entry:
    """What the record says about a move of the alias."""

    action: str
    why: str
    gates: Mapping[str, Any]


def _move(
    workspace: Path, name: str, alias: str, source: str, run_id: str, tags: Mapping[str, str], compared: str | None, entry: _Entry
) -> dict[str, Any]:
    """Make the version if it is not there, look at what the registry holds of it, and move the alias to it."""
    with open_client(workspace) as client, TemporaryDirectory() as temporary:  # holds the lock: an alias is last-writer-wins
        _still(client, name, alias, compared)
        _make_model(client, name)
        same = [version for version in _search(client, name) if _is_same(version, tags)]
        if same:
            version = max(same, key=lambda v: int(v.version))
        else:
            # Before there is a version, which would pass for this one ever after.
            held = client.get_logged_model(source.removeprefix("models:/"))
            where = f"The model {held.model_id} that MLflow holds of this result"
            _looked_at(source, where, tags["meca.model_sha256"], Path(temporary) / "held")
            version = client.create_model_version(name, source, run_id, tags=dict(tags), model_id=held.model_id)
        number = str(version.version)
        moved = compared != number
        if model_digest(_fetched(client.get_model_version(name, number), Path(temporary))) != tags["meca.model_sha256"]:
            raise MecaError(f"Version {number} of {name} is not the model of this workspace; the alias stays.")
        if moved:
            _still(client, name, alias, compared)  # it took a while
        for tag, value in tags.items():
            if version.tags.get(tag) != value:
                client.set_model_version_tag(name, number, tag, value)
        if moved:
            if compared is not None:
                client.set_registered_model_alias(name, PREVIOUS, compared)
            client.set_registered_model_alias(name, alias, number)
            _confirm(client, name, alias, number)
        events = _events(client, name)
        if moved or not events or events[-1]["to"] != number:  # the second: killed before it could say so
            _remember(client, name, entry, compared if moved else None, version)
            _confirm(client, name, alias, number)  # once more, so that the last entry of the record is the alias
    return {"model": name, "version": number, "alias": alias, "previous": compared if moved else None, "new": not same, "moved": moved}


def _holding(client: Any, name: str, alias: str) -> str | None:
    """Return the version that an alias names now."""
    holder = _holder(client, name, alias)
    return None if holder is None else str(holder.version)


def _still(client: Any, name: str, alias: str, expected: str | None) -> None:
    if (now := _holding(client, name, alias)) != expected:
        raise MecaError(
            f"The alias {alias} of {name} was moved by somebody else meanwhile: it named {_named(expected)} and names {_named(now)} now. "
            "Nothing was changed; look at it, and promote again."
        )


def _confirm(client: Any, name: str, alias: str, expected: str) -> None:
    if (now := _holding(client, name, alias)) != expected:
        raise MecaError(
            f"The alias {alias} of {name} was moved by somebody else: expected {_named(expected)}, it names {_named(now)}. "
            "Look at it, and promote again."
        )


def _named(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"


def _holder(client: Any, name: str, alias: str) -> Any:
    """Return the version with an alias, None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the model; the alias
            return None
        raise


def _make_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Classifiers trained by meca on data that was sanitized first.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _search(client: Any, name: str) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _fetched(version: Any, folder: Path) -> Path:
    """Download one version, look at what it is, and return the folder of its model.

    Raises:
        MecaError: It holds other files than a model of meca, asks for other code, or is not what was registered.
    """
    where = f"Version {version.version} of {version.name}"
    if not (expected := version.tags.get("meca.model_sha256")):
        raise MecaError(f"{where} was not registered by meca: it has no tag meca.model_sha256.")
    return _looked_at(f"models:/{version.name}/{version.version}", where, expected, folder)


def _looked_at(uri: str, where: str, expected: str, folder: Path) -> Path:
    """Download what MLflow holds at an address, look at what it is, and return the folder of its model."""
    import yaml
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder.mkdir(parents=True, exist_ok=True)
    held: Any = get_artifact_repository(uri)
    listed = dict(_listed(held))
    if odd := sorted(set(listed) - FILES):
        raise MecaError(f"{where} holds {plain(odd[0], 100)!r}, which is no file of a model of meca; it is not loaded.")
    if missing := [name for name in ("MLmodel", *(f"data/model/{name}" for name in WEIGHTS)) if name not in listed]:
        raise MecaError(f"{where} lacks {missing[0]}: the upload did not come to its end, or somebody removed it.")
    size = sum(listed.values())
    if size > min(MAX_BYTES, shutil.disk_usage(folder).free):
        raise MecaError(f"{where} has {size / 2**20:,.0f} MiB, more than there is room for.")
    place = Path(held.download_artifacts("", str(folder)))
    try:
        flavours = yaml.safe_load((place / "MLmodel").read_text(encoding="utf-8"))["flavors"]
        loader = flavours["python_function"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise MecaError(f"The file MLmodel of {where[0].lower() + where[1:]} cannot be read; it is not loaded.") from None
    if set(flavours) != {"python_function"} or loader.get("loader_module") not in LOADERS or loader.get("code") or loader.get("data") != "data/model":
        raise MecaError(f"{where} asks for other code than {LOADER} to load it; it is not loaded.")
    model = place / "data" / "model"
    if (found := model_digest(model)) != expected:
        raise MecaError(f"{where} is not what was registered: expected SHA-256 {expected[:12]}, got {found[:12]}.")
    return model


def _listed(held: Any, below: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    """Yield name and size of every file of an entry."""
    for file in held.list_artifacts(below or None):
        name = str(PurePosixPath(file.path))
        if file.is_dir and depth < 3:
            yield from _listed(held, name, depth + 1)
        else:
            yield name, int(file.file_size or 0)


def _who() -> str:
    """Return who moves the alias: the account that the server knows, else that of this machine."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user:
        with suppress(OSError, KeyError):
            user = getpass.getuser()
    return f"{user or 'unknown'}@{socket.gethostname()}"


def _remember(client: Any, name: str, entry: _Entry, before: str | None, version: Any) -> None:
    """Write down that the alias moved: a tag of its own for each time, so that none is written over, and the version's description."""
    now = datetime.now(UTC)
    said = {
        "action": entry.action, "from": before, "to": str(version.version), "who": plain(_who(), 200), "when": now.isoformat(timespec="seconds"),
        "why": plain(entry.why.strip(), 1000), "gates": dict(entry.gates), "sanitized_sha256": version.tags.get("meca.sanitized_sha256"),
    }  # fmt: skip
    client.set_registered_model_tag(name, f"{HISTORY}{now:%Y%m%dT%H%M%S.%f}.{secrets.token_hex(4)}", json.dumps(said, ensure_ascii=False))
    number = str(version.version)
    text = f"{entry.action} by {said['who']} at {said['when']}" + (f": {said['why']}" if said["why"] else "")
    client.update_model_version(name, number, description=text)


def _events(client: Any, name: str) -> list[dict[str, Any]]:
    """Return the record of a registered model, oldest first; what is no entry of ours is left out."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(name).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []
    found: list[dict[str, Any]] = []
    for key in sorted(tag for tag in tags if tag.startswith(HISTORY)):
        with suppress(ValueError):
            event = json.loads(tags[key])
            if isinstance(event, dict) and {"action", "from", "to"} <= set(event):
                found.append(event)
    return found


def _before(events: Sequence[Mapping[str, Any]], version: str) -> str | None:
    """Return what had the alias before `version` got it by its last promotion."""
    return next((event["from"] for event in reversed(events) if event["action"] == "promote" and event["to"] == version and event["from"]), None)
