"""Promotion against a real MLflow on SQLite: who is better on the same evidence, what is written down, and the way back."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flows import cli
from meca.data.store import open_store, read_parquet, write_parquet
from meca.errors import Inconclusive, MecaError, UsageError
from meca.files import sha256_tree
from meca.params import read_params, with_settings
from meca.release.manifest import listing
from meca.release.signing import key_id, sign
from tasks import environment
from tasks.mlflow import client, registry, serving
from tasks.mlflow.client import open_client
from tasks.mlflow.comparison import Evidence, Incomparable, measure
from tests.workspaces import colours, finished, network, receipt_of

pytestmark = [pytest.mark.platform, pytest.mark.filterwarnings("default")]

seeds = itertools.count(100)  # a seed has its own model, and so its own files in MLflow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use one MLflow for all tests of this file: its tables take ten seconds."""
    environment.prepare()
    folder = tmp_path_factory.mktemp("registry")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    yield folder
    del os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture
def make(place: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return what makes workspaces that promote into a registered model of this test alone."""
    name = f"model-{next(seeds)}"
    return lambda **how: finished(tmp_path / str(how.get("seed", "w")), **{"seed": next(seeds), "track.registered_model": name, **how})


def model_of(workspace: Path) -> str:
    return str(read_params(workspace / "params.yaml").raw("track")["registered_model"])


def state(workspace: Path) -> dict[str, Any]:
    """Return all that the registry says about the model of a workspace."""
    name = model_of(workspace)
    with open_client(workspace) as client:
        found = {version.version: client.get_model_version(name, version.version) for version in client.search_model_versions(f"name = '{name}'")}
        model = dict(client.get_registered_model(name).tags) if found else {}
    return {"tags": model, **{str(n): (sorted(v.aliases), dict(v.tags), v.description) for n, v in found.items()}}


def aliases(workspace: Path) -> dict[str, str]:
    return {alias: number for number, entry in state(workspace).items() if number != "tags" for alias in entry[0]}


def artifacts(workspace: Path) -> Path:
    """Return the folder in which MLflow keeps the model that has the alias."""
    with open_client(workspace) as client:
        version = client.get_model_version_by_alias(model_of(workspace), "champion")
        source = client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    return Path(source.removeprefix("file://"))


def test_a_worse_challenger_is_refused_and_nothing_changes(make):
    assert registry.promote(make(seed=next(seeds)))["version"] == "1"
    worse = make(confused=(2,), seed=next(seeds))
    before = state(worse)
    with pytest.raises(Inconclusive) as refusal:
        registry.promote(worse, why="newer must be better")
    assert "0.6667, that of version 1 on the same evidence 1.0000: 0.3333 worse, more than 0.01 [promote.max_acc_drop]" in str(refusal.value)
    assert "[promote.max_recall_drop]" in str(refusal.value)
    assert state(worse) == before


@pytest.mark.parametrize("name", ["meca.manifest_sha256", "meca.sanitized_sha256", "meca.model_sha256"])
def test_a_version_of_another_set_or_model_is_another_version(name):
    tags = {"meca.manifest_sha256": "k", "meca.sanitized_sha256": "s", "meca.model_sha256": "m", "meca.verdict": "poisoned"}
    assert registry._is_same(SimpleNamespace(tags=tags), tags)
    assert not registry._is_same(SimpleNamespace(tags=tags), {**tags, name: "other"})


def test_a_version_that_holds_another_model_does_not_get_the_alias(make, monkeypatch):
    mine, other = make(seed=next(seeds)), make(seed=next(seeds), confused=(2,))
    monkeypatch.setattr(registry, "_fetched", lambda *_: other / "published" / "model")
    with pytest.raises(MecaError, match=r"Version 1 of .* is not the model of this workspace; the alias stays"):
        registry.promote(mine)
    assert aliases(mine) == {}


def test_an_equal_challenger_is_promoted_and_the_record_says_by_whom_and_why(make, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    first, second = make(seed=next(seeds)), make(seed=next(seeds))
    registry.promote(first, why="the first\nof all")
    outcome = registry.promote(second, why="fresh data")
    assert (outcome["version"], outcome["previous"], outcome["moved"]) == ("2", "1", True)
    assert outcome["champion"] == outcome["challenger"] == {"acc": 1.0, "min_recall": 1.0, "leak": None, "n": 30}
    assert aliases(second) == {"champion": "2", "previous": "1"}
    events = registry.history(second)
    assert [(e["action"], e["from"], e["to"], e["why"]) for e in events] == [
        ("promote", None, "1", "the first of all"),
        ("promote", "1", "2", "fresh data"),
    ]
    assert all(event["who"].startswith("alice@") and event["when"].endswith("+00:00") for event in events)
    assert events[1]["gates"]["max_acc_drop"] == 0.0
    tags, description = state(second)["2"][1:]
    summary = json.loads((second / "published" / "summary.json").read_text())
    assert tags["meca.input_sha256"] == summary["input_sha256"] and tags["meca.sanitized_sha256"] == summary["sanitized_sha256"]
    assert tags["meca.model_sha256"] == registry.model_digest(second / "published" / "model")
    assert "promote by alice@" in description and "fresh data" in description and "meca.key_id" not in tags
    settled = state(second)
    assert registry.promote(second)["moved"] is False and state(second) == settled


@pytest.mark.parametrize(("judged_at", "size"), [(8, "8 x 8 pixels, images up to 12 x 12"), (None, "12 x 12 pixels")])
def test_a_model_that_saw_less_than_the_images_is_promoted_with_a_warning(make, judged_at, size, capsys):
    workspace = make(seed=next(seeds), size=12, judged_at=judged_at)
    assert cli.run(["promote", str(workspace)]) == 0
    assert ("Warning: Images are judged at 8 x 8 pixels" in capsys.readouterr().out) == (judged_at is not None)
    tags = state(workspace)["1"][1]
    assert tags["meca.judged_at"] == size
    with open_client(workspace) as client:
        parent = client.get_run(tags["meca.parent_run"])
    assert parent.data.tags["meca.judged_at"] == size
    assert parent.info.run_name.endswith("no_evidence-at-8-px" if judged_at else "no_evidence")


def test_a_rollback_goes_one_version_back_each_time(make):
    places = [make(seed=next(seeds)) for _ in range(3)]
    for each in places:
        registry.promote(each)
    with pytest.raises(UsageError, match="--why"):
        registry.rollback(places[0], why=" ")
    back = registry.rollback(places[0], why="it fails on dogs")
    assert (back["version"], back["undone"], back["previous"]) == ("2", "3", "1")
    assert aliases(places[0]) == {"champion": "2", "previous": "1"}
    assert registry.rollback(places[0], why="this one, too")["version"] == "1" and aliases(places[0]) == {"champion": "1"}
    settled = state(places[0])
    with pytest.raises(UsageError, match=r"no version of .* before version 1"):
        registry.rollback(places[0], why="more")
    assert state(places[0]) == settled
    assert [(e["from"], e["to"]) for e in registry.history(places[0])] == [(None, "1"), ("1", "2"), ("2", "3"), ("3", "2"), ("2", "1")]
    again = registry.promote(places[2], why="it was the camera")
    assert (again["version"], again["new"], again["previous"]) == ("3", False, "1")
    assert registry.rollback(places[0], why="no")["version"] == "1"


def test_a_rollback_that_was_killed_half_way_is_finished_and_not_repeated(make, monkeypatch):
    places = [make(seed=next(seeds)) for _ in range(3)]
    for each in places:
        registry.promote(each)
    monkeypatch.setattr(registry, "_before", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # the alias has moved, nothing else
    with pytest.raises(KeyboardInterrupt):
        registry.rollback(places[0], why="bad")
    monkeypatch.undo()
    assert aliases(places[0]) == {"champion": "2", "previous": "2"} or aliases(places[0])["champion"] == "2"
    assert registry.rollback(places[0], why="bad")["version"] == "2"
    assert aliases(places[0]) == {"champion": "2", "previous": "1"}
    assert [(e["from"], e["to"]) for e in registry.history(places[0])][-1] == ("3", "2")


def test_a_promotion_that_was_killed_before_its_record_is_recorded_by_the_next(make, monkeypatch):
    workspace = make(seed=next(seeds))
    monkeypatch.setattr(registry, "_remember", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        registry.promote(workspace)
    monkeypatch.undo()
    assert aliases(workspace) == {"champion": "1"} and registry.history(workspace) == []
    registry.promote(workspace)
    assert [(e["from"], e["to"]) for e in registry.history(workspace)] == [(None, "1")] and aliases(workspace) == {"champion": "1"}


def flip(folder: Path) -> None:
    file = folder / "data" / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def plant(folder: Path) -> None:
    (folder / "data" / "model" / "python_model.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")


def redirect(folder: Path, old: str = "tasks.mlflow.serving", new: str = "this") -> None:
    """Let the entry name another module, whose import shows itself."""
    text = (folder / "MLmodel").read_text()
    assert f"loader_module: {old}" in text
    (folder / "MLmodel").write_text(text.replace(f"loader_module: {old}", f"loader_module: {new}"))


def restore(folder: Path) -> None:
    redirect(folder, "this", "tasks.mlflow.serving")


def lose(folder: Path) -> None:
    (folder / "data" / "model" / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (flip, "is not what was registered"),
        (plant, "python_model.pkl"),
        (redirect, "asks for other code"),
        (lose, "lacks data/model/model.safetensors"),
    ],
)
def test_an_entry_that_somebody_changed_is_neither_compared_nor_served_nor_gone_back_to(make, change, sentence, tmp_path):
    bad, good = make(seed=next(seeds)), make(seed=next(seeds))
    registry.promote(bad)
    change(artifacts(bad))
    before = state(good)
    with pytest.raises(Inconclusive, match=r"cannot be compared.*--uncompared.*\[promote\.champion\]") as refusal:
        registry.promote(good)
    assert sentence in str(refusal.value)
    with pytest.raises(UsageError, match="--why"):
        registry.promote(good, uncompared=True)
    with pytest.raises(MecaError) as refused:
        registry.fetch_alias(good, model_of(good), "champion", tmp_path)
    assert sentence in str(refused.value) and "this" not in sys.modules
    assert state(good) == before
    assert registry.promote(good, uncompared=True, why="version 1 was changed")["version"] == "2"
    assert registry.history(good)[-1]["gates"]["champion"] == "unreadable"
    with pytest.raises(MecaError) as refused:
        registry.rollback(good, why="back")
    assert sentence in str(refused.value) and aliases(good) == {"champion": "2", "previous": "1"}


def test_a_champion_of_other_classes_is_no_rival(make):
    registry.promote(make(seed=next(seeds), names=("blue", "green", "rouge")))
    other = make(seed=next(seeds))
    with pytest.raises(Inconclusive, match=r"not the 3 of this data by name and order.*\[promote\.champion\]"):
        registry.promote(other)
    assert registry.promote(other, uncompared=True, why="new classes")["moved"] is True


def test_an_alias_that_somebody_else_moves_meanwhile_stays_theirs(make, monkeypatch):
    first, mine = make(seed=next(seeds)), make(seed=next(seeds))
    registry.promote(first)
    told = registry.record

    def meanwhile(workspace: Path, result: Any) -> Any:
        found = told(workspace, result)
        with open_client(workspace) as client:
            theirs = client.get_model_version(model_of(workspace), "1")
            client.create_model_version(theirs.name, theirs.source, theirs.run_id)
            client.set_registered_model_alias(theirs.name, "champion", "2")
        return found

    monkeypatch.setattr(registry, "record", meanwhile)
    with pytest.raises(MecaError, match=r"moved by somebody else meanwhile: it named version 1 and names version 2 now"):
        registry.promote(mine)
    assert aliases(mine) == {"champion": "2"} and len(state(mine)) == 3  # two versions and the tags


def intruder(mine: Path) -> None:
    """Give the alias to another version, as somebody on another machine would."""
    with open_client(mine) as client:
        theirs = client.get_model_version(model_of(mine), "1")
        made = client.create_model_version(theirs.name, theirs.source, theirs.run_id)
        client.set_registered_model_alias(theirs.name, "champion", made.version)


@pytest.mark.parametrize("where", ["while the model is fetched", "after the alias was set"])
def test_an_alias_that_moves_in_the_last_moment_is_not_taken_for_ours(make, monkeypatch, where):
    first, mine = make(seed=next(seeds)), make(seed=next(seeds))
    registry.promote(first)
    real = {name: getattr(registry, name) for name in ("_fetched", "_confirm")}
    with monkeypatch.context() as patch:
        # The lock is ours already: the intruder's client must not wait for it.
        patch.setattr(client, "patient_lock", lambda *_, **__: contextlib.nullcontext())
        if where == "while the model is fetched":
            patch.setattr(
                registry, "_fetched", lambda version, folder: (str(version.version) == "2" and intruder(mine), real["_fetched"](version, folder))[1]
            )
        else:
            patch.setattr(registry, "_confirm", lambda *a: (intruder(mine), real["_confirm"](*a))[1])
        with pytest.raises(MecaError, match=r"was moved by somebody else"):
            registry.promote(mine)
    assert aliases(mine)["champion"] == "3" and registry.history(mine)[-1]["to"] == "1"


def test_two_promotions_at_once_end_in_one_order(make, tmp_path):
    places = [make(seed=next(seeds)) for _ in range(2)]
    program = "from flows.cli import main; main()"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, "promote", str(w), "--json"], env=environment.child_environment(), stdout=-1, stderr=-1, text=True
        )
        for w in places
    ]
    said = [process.communicate(timeout=200) for process in both]
    codes = [process.returncode for process in both]
    events = [(e["from"], e["to"]) for e in registry.history(places[0])]
    now = aliases(places[0])
    assert 0 in codes and set(codes) <= {0, 2}, said
    if codes == [0, 0]:
        assert now == {"champion": "2", "previous": "1"} and events == [(None, "1"), ("1", "2")]
    else:
        assert "moved by somebody else" in said[codes.index(2)][1] and now == {"champion": "1"} and events == [(None, "1")]


def test_a_signature_is_asked_for_and_written_down(make, tmp_path):
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    files = []
    for name, each in (("key", key), ("other", other)):
        files.append(tmp_path / f"{name}.pem")
        files[-1].write_bytes(each.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    workspace = make(seed=next(seeds))
    statement = tmp_path / "attestation.json"
    with pytest.raises(Inconclusive, match=r"not signed.*\[promote\.signature\]"):
        registry.promote(workspace, key=files[0], attestation=statement)
    sign(workspace / "published", key, statement)
    with pytest.raises(Inconclusive, match=r"another key.*\[promote\.signature\]"):
        registry.promote(workspace, key=files[1], attestation=statement)
    assert state(workspace) == {"tags": {}}
    registry.promote(workspace, key=files[0], attestation=statement)
    tags = state(workspace)["1"][1]
    assert tags["meca.key_id"] == key_id(key.public_key()) and len(tags["meca.attestation_sha256"]) == len(tags["meca.manifest_sha256"]) == 64
    with open_client(workspace) as client:
        assert "attestation.json" in {file.path for file in client.list_artifacts(tags["meca.parent_run"])}


@pytest.fixture
def signer(tmp_path: Path) -> tuple[Path, Callable[[Path], Path]]:
    """Return the file of a public key, and what signs a workspace's published folder with the private one."""
    key, file = Ed25519PrivateKey.generate(), tmp_path / "signer.pem"
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def signed(workspace: Path) -> Path:
        sign(workspace / "published", key, tmp_path / "statement.json")
        return tmp_path / "statement.json"

    return file, signed


def rewritten(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def fit_receipts(workspace: Path) -> None:
    """Make the receipts say that what lies in the workspace was evaluated, as whoever may write there can."""
    rewritten(workspace / receipt_of("evaluate"), inputs={"relabel_finetune": sha256_tree(workspace / "work" / "relabel_finetune")})


def publish_again(workspace: Path, **changes: Any) -> None:
    """Change the summary of the published folder, and let the manifest fit it."""
    published = workspace / "published"
    rewritten(published / "summary.json", **changes)
    rewritten(published / "manifest.json", files=listing(published))


def other_weights(workspace: Path) -> None:
    network(open_store(workspace / "data" / "store"), workspace / "work" / "relabel_finetune", 7, confused=(2,))


def other_classes(workspace: Path) -> None:
    rewritten(workspace / "work" / "relabel_finetune" / "model.json", class_names=["red", "green", "blue"])


def other_layout(workspace: Path) -> None:
    file = workspace / "work" / "relabel_finetune" / "model.json"
    file.write_text(file.read_text() + "\n")


def other_model(workspace: Path) -> None:
    other_weights(workspace)
    for name in registry.WEIGHTS:
        (workspace / "published" / "model" / name).write_bytes((workspace / "work" / "relabel_finetune" / name).read_bytes())


def other_verdicts(workspace: Path) -> None:
    table = read_parquet(workspace / "published" / "verdicts.parquet")
    write_parquet(
        table.set_column(table.column_names.index("clean_pred"), "clean_pred", [[0] * table.num_rows]), workspace / "published" / "verdicts.parquet"
    )


def other_images(workspace: Path) -> None:
    """Put easier data in the place of the store, which is a good one in itself."""
    other = workspace / "other"
    shutil.move(colours(other, n=4).path, workspace / "easy")
    shutil.rmtree(workspace / "data" / "store")
    shutil.move(workspace / "easy", workspace / "data" / "store")


def other_split(workspace: Path) -> None:
    """Let the last images for training pass for those for evaluation."""
    rewritten(workspace / "data" / "store" / "store.json", n_train=10, n_test=50)


def other_numbers(workspace: Path) -> None:
    tree = yaml.safe_load((workspace / "params.yaml").read_text())
    tree["relabel_finetune"]["probe"] = 1
    (workspace / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


BOUND = {
    other_weights: r"work/relabel_finetune/model\.safetensors is not the model/model\.safetensors that was published",
    other_classes: r"work/relabel_finetune/model\.json is not the model/model\.json that was published",
    other_layout: r"work/relabel_finetune/model\.json is not the model/model\.json that was published",
    other_model: r"published/model/model\.safetensors is not what its manifest says",
    other_verdicts: r"published/verdicts\.parquet is not what its manifest says",
    other_images: r"The data in .* has the SHA-256 \w+, and .* was made with",
    other_split: r"store\.json was changed after it was written: it does not describe the files beside it",
    other_numbers: r"What params\.yaml says has the SHA-256 \w+, and .* was made with",
}


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("change", BOUND)
def test_what_is_not_of_the_published_folder_gets_no_alias(change: Callable[[Path], None], is_signed: bool, make: Any, signer: Any) -> None:
    key, signed = signer
    workspace = make(seed=next(seeds))
    statement = signed(workspace)
    change(workspace)
    fit_receipts(workspace)
    with pytest.raises(MecaError) as refusal:
        registry.promote(workspace, **({"key": key, "attestation": statement} if is_signed else {}))
    in_the_folder = is_signed and change in (other_model, other_verdicts)
    assert re.search(r"not as it was signed.*\[promote\.signature\]" if in_the_folder else BOUND[change], str(refusal.value))
    assert state(workspace) == {"tags": {}}


def test_what_the_stages_wrote_beside_the_published_folder_has_no_say_in_the_gates(make, signer):
    key, signed = signer
    good = make(seed=next(seeds), verdict="poisoned")
    places = {name: make(seed=next(seeds), verdict="poisoned", **how) for name, how in (("weak", {"confused": (2,)}), ("leaky", {}))}
    publish_again(places["leaky"], leak=0.7)
    first = registry.promote(good, key=key, attestation=signed(good))
    found = {gate["name"]: gate["value"] for gate in first["gates"]}
    assert (found["min_acc"], found["verdicts"], found["signature"]) == (1.0, "poisoned", "valid")
    before = state(good)
    for name, sentence in (
        ("weak", r"0\.6667, 0\.2333 below 0\.9 \[promote\.min_acc\]"),
        ("leaky", r"0\.7000, 0\.2000 above 0\.5 \[promote\.max_leak\]"),
    ):
        workspace = places[name]
        work = workspace / "work"
        rewritten(work / "evaluate" / "evaluation.json", final={"acc": 1.0, "recall": [1.0, 1.0, 1.0]})
        rewritten(work / "relabel_finetune" / "verdict.json", verdict="no_evidence", leak=0.0, leak_power=1.0)
        rewritten(workspace / receipt_of("relabel_finetune"), params={"seed": 9, "relabel_finetune": {"probe": 0}})
        (work / "split" / "decisions.parquet").unlink()
        (work / "relabel_finetune" / "decisions.parquet").unlink()
        fit_receipts(workspace)
        gates = with_settings(read_params(workspace / "params.yaml"), {"promote.min_acc": 0.9})
        with pytest.raises(Inconclusive, match=sentence):
            registry.promote(workspace, gates, key=key, attestation=signed(workspace))
    assert state(good) == before


def test_a_receipt_makes_no_other_version_and_a_signature_that_comes_later_is_written_down(make, signer):
    key, signed = signer
    workspace = make(seed=next(seeds))
    assert registry.promote(workspace)["new"] is True and "meca.key_id" not in state(workspace)["1"][1]
    rewritten(workspace / receipt_of("relabel_finetune"), key="another")
    again = registry.promote(workspace, key=key, attestation=signed(workspace))
    assert (again["version"], again["new"], again["moved"]) == ("1", False, False)
    assert len(state(workspace)["1"][1]["meca.key_id"]) == 64 and len(registry.history(workspace)) == 1


def test_a_record_that_holds_another_model_makes_no_version(make):
    first, second = make(seed=next(seeds)), make(seed=next(seeds))
    registry.promote(first)
    rewritten(second / receipt_of("relabel_finetune"), key=json.loads((first / receipt_of("relabel_finetune")).read_text())["key"])
    before = state(second)
    with pytest.raises(MecaError, match=r"The model m-\w+ that MLflow holds of this result is not what was registered"):
        registry.promote(second)
    assert state(second) == before


def test_a_champion_whose_model_was_replaced_is_not_called_promoted(make):
    workspace = make(seed=next(seeds))
    registry.promote(workspace)
    flip(artifacts(workspace))
    with pytest.raises(MecaError, match=r"Version 1 of .* is not what was registered"):
        registry.promote(workspace)


def test_a_set_without_a_model_promotes_nothing_whatever_the_gates_say(make):
    workspace = make(seed=next(seeds), verdict="inconclusive")
    with pytest.raises(Inconclusive, match=r"the verdict is inconclusive, which is none of: .*\[promote\.verdicts\]"):
        registry.promote(workspace)
    gates = with_settings(read_params(workspace / "params.yaml"), {"promote.verdicts": ["inconclusive"]})
    with pytest.raises(MecaError, match="holds no model, because the verdict is inconclusive"):
        registry.promote(workspace, gates)


def test_a_set_whose_test_is_weak_is_promoted_only_where_the_gates_list_it(make):
    workspace = make(seed=next(seeds), verdict="weak")
    with pytest.raises(Inconclusive, match=r"the verdict is weak, which is none of: no_evidence, poisoned"):
        registry.promote(workspace)
    gates = with_settings(read_params(workspace / "params.yaml"), {"promote.verdicts": ["no_evidence", "weak"]})
    promoted = registry.promote(workspace, gates)
    with open_client(workspace) as client:
        assert client.get_model_version(promoted["model"], promoted["version"]).tags["meca.verdict"] == "weak"


def test_what_is_served_answers_with_names(make, capsys, monkeypatch):
    import mlflow

    workspace = make(seed=next(seeds))
    registry.promote(workspace)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")  # the check forbids it all the same
    assert cli.run(["check-serving", str(workspace), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == "1" and said["classes"] == ["blue", "green", "red"] and len(said["labels"]) == serving.IMAGES
    redirect(artifacts(workspace))
    assert cli.run(["check-serving", str(workspace)]) == 2
    assert "cannot be served: Version 1" in (complaint := capsys.readouterr().err) and "asks for other code" in complaint
    restore(artifacts(workspace))
    with open_client(workspace):
        model = mlflow.pyfunc.load_model(f"models:/{model_of(workspace)}@champion")
    images = np.zeros((3, 8, 8, 3), np.uint8)
    for label in range(3):
        images[label, ..., 2 - label] = 180
    given = model.predict(images)
    assert list(given["class_name"]) == ["blue", "green", "red"] and given["label"].tolist() == [0, 1, 2]
    larger = model.predict(images.repeat(3, 1).repeat(5, 2))
    assert larger["label"].tolist() == [0, 1, 2], "of another size and shape"
    with pytest.raises(Exception, match="uint8"):
        model.predict(images.astype(np.float32))


def test_the_command_promotes_undoes_and_tells(make, capsys):
    first, second = make(seed=next(seeds)), make(seed=next(seeds))
    assert cli.run(["promote", str(first), "--why", "first"]) == 0 and cli.run(["promote", str(second)]) == 0
    assert cli.run(["promote", str(first), "--rollback"]) == 4
    assert cli.run(["promote", str(first), "--undo", "--why", "no good"]) == 0
    assert "version 1 is champion" in capsys.readouterr().out.splitlines()[-2]
    assert cli.run(["promote", str(first), "--history"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "first" in lines[0] and "no reason given" in lines[1] and "no good" in lines[2]
    assert cli.run(["promote", str(first), "--history", "--rollback"]) == 4


def test_the_leak_is_measured_on_the_evidence_as_leak_py_measures_it(tmp_path):
    from meca.method.leak import cases
    from meca.method.leak import measure as leak_of
    from meca.training.engine import Data

    store = colours(tmp_path)
    model, labels = network(store, tmp_path / "model", 1, (2,)), torch.from_numpy(np.array(store.labels[store.train]))
    flagged = (labels == 1) & (torch.arange(len(labels)) % 3 == 0)
    # A few images of those that could be taken, so that the draw counts, and some that look like the target's, which it must pass over.
    seen = torch.where((labels == 0) & (torch.arange(len(labels)) % 2 == 0), 1, labels)
    evidence = Evidence(store, flagged.numpy(), seen.numpy(), True, 0, 4)
    data = Data(torch.from_numpy(store.pixels(store.train)), labels)
    by_hand = [leak_of(model, cases(data, flagged, seen, seed, 4)).worst for seed in range(6)]
    assert [measure(tmp_path / "model", dataclasses.replace(evidence, seed=seed)).leak for seed in range(6)] == by_hand
    assert len(set(by_hand)) > 1 and None not in by_hand, "which images are drawn decides"
    elsewhere = torch.where(flagged, 2, seen)  # what the suspects show is taken off
    shown = leak_of(model, cases(data, flagged, elsewhere, 0, 4)).worst
    assert measure(tmp_path / "model", dataclasses.replace(evidence, content=elsewhere.numpy())).leak == shown != by_hand[0]
    other = colours(tmp_path / "other", size=12)
    with pytest.raises(Incomparable, match="8x8x3, and these are 12x12x3"):
        measure(tmp_path / "model", dataclasses.replace(evidence, store=other))
    assert measure(tmp_path / "model", dataclasses.replace(evidence, is_tested=False)).leak is None
