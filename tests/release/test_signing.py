"""The signature over a published folder: the right key and the signed bytes, or a sentence that says what is wrong."""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from flows import cli
from meca import pipeline, verbs
from meca.errors import InputRefused, MecaError, UsageError
from meca.files import sha256_file
from meca.release import signing
from meca.release.manifest import listing, root_of
from meca.release.signing import PAYLOAD_TYPE, check, key_id, make_keys, read_private_key, read_public_key, sign
from meca.release.verification import examine, verify
from meca.stages import publish
from meca.stages.runtime import execute
from tests.making import decide, ingest, make_cleaned, make_folder, seal_run, settings

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
CHANGED = {0: ("poisoned", "remove", None), 1: ("poisoned", "relabel", 2)}
CANARY = "canary5ecret"


def pem(folder: Path, key: Ed25519PrivateKey, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return make_cleaned(folder, make_folder(folder / "in"), CHANGED)


@pytest.fixture
def out(published: Path, tmp_path: Path) -> Path:
    """Return a signed copy."""
    shutil.copytree(published, tmp_path / "out")
    sign(tmp_path / "out", KEY, now=NOW)
    return tmp_path / "out"


def envelope(out: Path) -> dict[str, Any]:
    return json.loads((out / "attestation.json").read_text())


def statement(out: Path) -> dict[str, Any]:
    return json.loads(base64.b64decode(envelope(out)["payload"]))


def seal(out: Path, payload: bytes, key: Ed25519PrivateKey = KEY, kind: str = PAYLOAD_TYPE) -> None:
    """Sign as DSSE says, without the code that is tested."""
    message = b"DSSEv1 " + str(len(kind)).encode() + b" " + kind.encode() + b" " + str(len(payload)).encode() + b" " + payload
    signature = {"keyid": key_id(key.public_key()), "sig": base64.b64encode(key.sign(message)).decode()}
    content = {"payloadType": kind, "payload": base64.b64encode(payload).decode(), "signatures": [signature]}
    (out / "attestation.json").write_text(json.dumps(content))


def restate(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let the holder of the key sign something else."""
    said = statement(out)
    change(said)
    seal(out, json.dumps(said).encode())


def test_the_statement_names_what_is_published_and_how(out: Path, tmp_path: Path) -> None:
    said, summary = statement(out), json.loads((out / "summary.json").read_text())
    assert (said["_type"], said["predicateType"]) == ("https://in-toto.io/Statement/v1", "https://in-toto.io/attestation/svr/v0.2")
    assert {subject["name"]: subject["digest"] for subject in said["subject"]} == {
        "data": {"sha256": summary["sanitized_sha256"]},
        **{name: {"sha256": sha256_file(out / name)} for name in ("manifest.json", "model/model.json", "model/model.safetensors", "report.html")},
    }
    predicate = said["predicate"]
    assert predicate["verifier"]["policies"] == [{"name": "params", "digest": {"sha256": summary["params_sha256"]}}]
    assert predicate["timeCreated"] == "2026-11-21T10:00:00Z"
    assert predicate["properties"] == ["MECA_SCANNED", "MECA_POISON_FOUND", "MECA_POISON_REMOVED"]
    facts = predicate["meca"]
    assert facts["verdict"] == "poisoned" and facts["caps"] == summary["caps"] and facts["counts"] == summary["counts"]
    assert facts["judged_at"] == summary["judged_at"] and facts["judged_at"]["images_reduced"] == 12
    assert facts["meca_version"] and len(facts["code_sha256"]) == len(facts["params_sha256"]) == 64
    _, public = pem(tmp_path, KEY, "key")
    assert check(out, read_public_key(public)) == [] and verify(out, public) == [] and verify(out) == []


def test_weights_that_the_model_started_from_are_in_what_is_signed(tmp_path: Path) -> None:
    store = ingest(make_folder(tmp_path / "in"), tmp_path / "store")
    paths = {"store": store.path, **decide(store, tmp_path / "work", CHANGED), "out": tmp_path / "published"}
    for given in ({}, {"weights_sha256": "a" * 64}):
        (paths["relabel_finetune"] / "model.json").write_text(json.dumps(given))
        execute(publish, paths, settings(), scratch=tmp_path / "scratch")
        sign(paths["out"], KEY, now=NOW)
        said, summary = statement(paths["out"])["predicate"]["meca"], json.loads((paths["out"] / "summary.json").read_text())
        assert said.get("weights_sha256") == summary.get("weights_sha256") == given.get("weights_sha256")
        assert ("weights_sha256" in said) == ("weights_sha256" in summary) == bool(given)
        assert verify(paths["out"], pem(tmp_path, KEY, "key")[1]) == []


def test_the_signature_is_what_dsse_says(out: Path) -> None:
    before = (out / "attestation.json").read_bytes()
    seal(out, base64.b64decode(json.loads(before)["payload"]))
    assert envelope(out) == json.loads(before), "Ed25519 leaves nothing to chance, so an independent signer gives the same bytes"


def test_the_safe_alphabet_of_base64_is_read_too(out: Path) -> None:
    given = envelope(out)
    given["signatures"][0]["sig"] = given["signatures"][0]["sig"].translate(str.maketrans("+/", "-_"))
    given["payload"] = given["payload"].translate(str.maketrans("+/", "-_"))
    (out / "attestation.json").write_text(json.dumps(given))
    assert check(out, KEY.public_key()) == []


def change_envelope(**changes: Any) -> Callable[[Path], object]:
    return lambda out: (out / "attestation.json").write_text(json.dumps({k: v for k, v in {**envelope(out), **changes}.items() if v != ...}))


def flip(out: Path) -> None:
    payload = bytearray(base64.b64decode(envelope(out)["payload"]))
    at = payload.index(b"MECA_POISON_REMOVED")
    payload[at : at + 4] = b"XXXX"
    change_envelope(payload=base64.b64encode(payload).decode())(out)


def list_again(out: Path) -> None:
    files = listing(out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "files": files, "sanitized_sha256": root_of(files)}))


def change_behind_the_manifest(out: Path) -> None:
    (out / "README.md").write_text("trust me")
    list_again(out)


WRONG: list[tuple[str, Callable[[Path], object], str]] = [
    ("a pipe", lambda f: ((f / "attestation.json").unlink(), os.mkfifo(f / "attestation.json")), "attestation.json is a named pipe"),
    ("a key twice", lambda f: (f / "attestation.json").write_text('{"payload": "", "payload": ""}'), "attestation.json is not JSON as meca"),
    ("a large one", lambda f: os.truncate(f / "attestation.json", 2**24 + 1), "attestation.json is larger than 16 MiB"),
    ("no manifest", lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    ("a manifest unsigned", lambda f: restate(f, lambda s: s["subject"].pop(1)), "manifest.json is not covered by the signature"),
    ("a page that is a pipe", lambda f: ((f / "report.html").unlink(), os.mkfifo(f / "report.html")), "report.html is a named pipe"),
    ("a name that leads out", lambda f: restate(f, lambda s: s["subject"][0].update(name="../x")), "'../x' is no name inside the folder"),
    ("no predicate", lambda f: restate(f, lambda s: s.update(predicate=[])), "attestation.json lacks what meca writes into it (TypeError"),
    ("unsigned", lambda f: (f / "attestation.json").unlink(), "attestation.json is missing: this folder is not signed"),
    (
        "a link",
        lambda f: ((f / "attestation.json").rename(f.parent / "a"), (f / "attestation.json").symlink_to(f.parent / "a")),
        "attestation.json is a link",
    ),
    ("no JSON", lambda f: (f / "attestation.json").write_text("x"), "attestation.json is not JSON"),
    ("no envelope", lambda f: (f / "attestation.json").write_text("{}"), "attestation.json is no DSSE envelope: expected payloadType"),
    ("no base64", change_envelope(payload="%"), "attestation.json is no DSSE envelope: payload and signatures must be base64"),
    ("no text", change_envelope(payload=7), "payload and signatures must be base64"),
    ("no signature", change_envelope(signatures=[]), "attestation.json carries no signature"),
    ("odd signatures", change_envelope(signatures=[7]), "attestation.json lacks what meca writes"),
    ("other key", lambda f: sign(f, OTHER), f"signed with another key: expected the key {key_id(KEY.public_key())[:12]}, got"),
    ("other type", lambda f: seal(f, b"{}", kind="text/plain"), "holds the payload type 'text/plain', expected 'application/vnd.in-toto+json'"),
    ("type renamed", change_envelope(payloadType="application/json"), "holds the payload type 'application/json'"),
    ("payload changed", flip, "attestation.json was changed after it was signed"),
    ("other statement", lambda f: restate(f, lambda s: s.update(_type="x")), "holds a statement with _type 'x'"),
    ("other predicate", lambda f: restate(f, lambda s: s.update(predicateType="x")), "holds a statement with predicateType 'x'"),
    ("an empty statement", lambda f: seal(f, b"{}"), "attestation.json lacks what meca writes into it (KeyError"),
    ("a model changed", lambda f: (f / "model/model.safetensors").write_bytes(b"x"), "model/model.safetensors was changed after it was signed"),
    ("a model gone", lambda f: (f / "model/model.json").unlink(), "model/model.json is signed, but it is not there"),
    ("the report changed", lambda f: (f / "report.html").write_text("x"), "report.html was changed after it was signed"),
    ("a report added", lambda f: restate(f, lambda s: s["subject"].pop()), "report.html is not covered by the signature"),
    ("a folder listed again", change_behind_the_manifest, "manifest.json was changed after it was signed"),
    ("data that differ", lambda f: restate(f, lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)), "data was changed after it was signed"),
    ("another verdict", lambda f: restate(f, lambda s: s["predicate"]["meca"].update(verdict="no_evidence")), "The field meca of the statement"),
    ("more properties", lambda f: restate(f, lambda s: s["predicate"]["properties"].append("SAFE")), "The field properties of the statement"),
    ("other parameters", lambda f: restate(f, lambda s: s["predicate"]["verifier"].update(policies=[])), "The parameters that the statement"),
]


@pytest.mark.parametrize(("change", "sentence"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_is_wrong_is_said(change: Callable[[Path], object], sentence: str, out: Path, tmp_path: Path) -> None:
    change(out)
    _, public = pem(tmp_path, KEY, "key")
    assert any(sentence in found for found in verify(out, public)), verify(out, public)


FAILS: dict[str, Callable[[Path], object]] = {
    "unsigned": lambda f: (f / "attestation.json").unlink(),
    "other key": lambda f: sign(f, OTHER),
    "payload changed": flip,
    "no statement": lambda f: seal(f, b"[]"),
}


@pytest.mark.parametrize("name", FAILS)
def test_where_the_signature_fails_nothing_else_is_looked_at(name: str, out: Path, tmp_path: Path) -> None:
    FAILS[name](out)
    (out / "manifest.json").unlink()
    os.mkfifo(out / "manifest.json")
    (out / "verdicts.parquet").write_bytes(b"x")
    found = examine(out, pem(tmp_path, KEY, "key")[1])
    assert found.signature == "invalid" and len(found.mismatches) == 1 and "attestation.json" in found.mismatches[0]


def test_a_manifest_that_was_not_signed_is_not_parsed(out: Path, tmp_path: Path) -> None:
    (out / "manifest.json").write_text("{" * 100)
    (out / "summary.json").write_text("x")
    found = examine(out, pem(tmp_path, KEY, "key")[1])
    assert found.signature == "valid"
    assert [said.split(":")[0] for said in found.mismatches] == ["manifest.json was changed after it was signed"]


def test_a_table_that_was_not_signed_is_not_parsed(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meca.release.contents.parse_verdicts", lambda data: pytest.fail("parsed"))
    (out / "verdicts.parquet").write_bytes(b"x")
    assert [said.split(":")[0] for said in verify(out, pem(tmp_path, KEY, "key")[1])] == ["verdicts.parquet was changed"]


def test_a_key_that_an_envelope_only_names_signs_nothing(out: Path) -> None:
    sign(out, OTHER)
    given = envelope(out)
    given["signatures"][0]["keyid"] = key_id(KEY.public_key())
    (out / "attestation.json").write_text(json.dumps(given))
    assert check(out, KEY.public_key()) == ["attestation.json was changed after it was signed: its signature does not fit its content."]


def test_one_good_signature_among_others_is_enough_and_many_are_not_tried(out: Path) -> None:
    good = envelope(out)["signatures"]
    sign(out, OTHER, now=NOW)
    bad = envelope(out)["signatures"]
    change_envelope(signatures=[*bad, *good])(out)
    assert check(out, KEY.public_key()) == []
    change_envelope(signatures=[*bad * signing.MAX_SIGNATURES, *good])(out)
    assert "signed with another key" in check(out, KEY.public_key())[0]


def test_a_changed_picture_is_found_beside_a_signature_that_holds(out: Path, tmp_path: Path) -> None:
    (out / "data/train/dog/1.jpeg").write_bytes(b"x")
    assert [found.split(":")[0] for found in verify(out, pem(tmp_path, KEY, "key")[1])] == ["data/train/dog/1.jpeg was changed"]


def test_what_does_not_verify_is_not_signed(out: Path) -> None:
    (out / "attestation.json").unlink()
    (out / "README.md").write_text("x")
    with pytest.raises(InputRefused, match=r"Not signed, because .* README\.md was changed"):
        sign(out, KEY)
    assert not (out / "attestation.json").exists()


def test_poison_that_a_person_kept_is_not_called_removed(published: Path, tmp_path: Path) -> None:
    seal_run(Path(shutil.copytree(pipeline.run_folder(published), tmp_path / ".out.meca")))
    shutil.copytree(published, tmp_path / "out")
    decision = {"source": "train/cat/0.jpeg", "action": "keep", "who": "R", "when": "2026-11-21T10:00:00Z", "why": "fine"}
    (tmp_path / "d.jsonl").write_text(json.dumps(decision))
    verbs.apply(tmp_path / "out", tmp_path / "d.jsonl", key=KEY)
    assert statement(tmp_path / "out")["predicate"]["properties"] == ["MECA_SCANNED", "MECA_POISON_FOUND", "MECA_DECIDED_BY_PERSON"]
    assert statement(tmp_path / "out")["predicate"]["meca"]["decisions"]["reviewers"] == ["R"]
    assert verify(tmp_path / "out", pem(tmp_path, KEY, "key")[1]) == []


def test_without_an_answer_there_is_neither_data_nor_model_to_sign(tmp_path: Path) -> None:
    out = make_cleaned(tmp_path, make_folder(tmp_path / "in"), {}, "inconclusive")
    sign(out, KEY)
    assert [subject["name"] for subject in statement(out)["subject"]] == ["manifest.json", "report.html"]
    assert statement(out)["predicate"]["properties"] == ["MECA_SCANNED", "MECA_INCONCLUSIVE"]
    assert check(out, KEY.public_key()) == []


def test_the_statement_of_a_set_whose_test_is_weak_does_not_say_that_there_is_no_evidence(tmp_path: Path) -> None:
    out = make_cleaned(tmp_path, make_folder(tmp_path / "in"), {}, "weak")
    sign(out, KEY)
    predicate, summary = statement(out)["predicate"], json.loads((out / "summary.json").read_text())
    assert predicate["properties"] == ["MECA_SCANNED", "MECA_WEAK_TEST"] and predicate["meca"]["verdict"] == "weak"
    assert predicate["meca"]["control"] == summary["control"] and summary["control"]["ran"]
    public = pem(tmp_path, KEY, "key")[1]
    assert verify(out, public) == []
    restate(out, lambda said: said["predicate"]["meca"]["control"].update(lines=[]))
    assert verify(out, public) == ["The field meca of the statement in attestation.json is not what the folder says."]


def test_a_folder_of_an_older_meca_that_knew_no_control_still_verifies(tmp_path: Path) -> None:
    out = make_cleaned(tmp_path, make_folder(tmp_path / "in"), {}, "no_evidence")
    summary = json.loads((out / "summary.json").read_text())
    del summary["control"]
    (out / "summary.json").write_text(json.dumps(summary))
    list_again(out)
    sign(out, KEY)
    assert "control" not in statement(out)["predicate"]["meca"] and verify(out, pem(tmp_path, KEY, "key")[1]) == []


def test_keys_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    old = os.umask(0)
    try:
        name = make_keys(private, public)
    finally:
        os.umask(old)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert key_id(read_private_key(private).public_key()) == key_id(read_public_key(public)) == name
    for file in (private, public):
        content = file.read_bytes()
        with pytest.raises(UsageError, match="is never written over"):
            make_keys(private, public)
        assert file.read_bytes() == content
        file.unlink()
        if file == private:
            with pytest.raises(UsageError, match=r"key\.pub\.pem exists"):
                make_keys(private, public)
            assert not private.exists()


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MECA_KEY_PASSPHRASE", CANARY)
    assert cli.run(["keygen", str(tmp_path / "key.pem")]) == 0
    assert b"ENCRYPTED" in (tmp_path / "key.pem").read_bytes()
    read_private_key(tmp_path / "key.pem", CANARY.encode())
    with pytest.raises(UsageError, match="is encrypted; set its passphrase in MECA_KEY_PASSPHRASE"):
        read_private_key(tmp_path / "key.pem")
    with pytest.raises(UsageError, match="or its passphrase is another") as caught:
        read_private_key(tmp_path / "key.pem", f"not {CANARY}".encode())
    assert CANARY not in str(caught.value) + str(capsys.readouterr())


def test_what_openssl_makes_is_read(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the program openssl")  # the README names it as the other way to make a key; meca itself needs none
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "k.pem"], check=True, capture_output=True)
    subprocess.run([openssl, "pkey", "-in", tmp_path / "k.pem", "-pubout", "-out", tmp_path / "k.pub.pem"], check=True, capture_output=True)
    assert key_id(read_private_key(tmp_path / "k.pem").public_key()) == key_id(read_public_key(tmp_path / "k.pub.pem"))


Reader = Callable[[Path], Ed25519PrivateKey | Ed25519PublicKey]


@pytest.mark.parametrize(
    ("reader", "content", "sentence"),
    [
        (read_private_key, None, "cannot be read"),
        (read_public_key, None, "cannot be read"),
        (read_private_key, f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n", "found none; `meca keygen` makes one"),
        (read_public_key, f"-----BEGIN PUBLIC KEY-----\n{CANARY}\n-----END PUBLIC KEY-----\n", "found none"),
        (read_public_key, "private", "found a private one"),
        (read_private_key, "public", "found none"),
        (read_private_key, "other kind", "got one of another kind"),
        (read_private_key, CANARY * 10_000, "is larger than 64 KiB"),
    ],
)
def test_a_file_that_is_no_key_is_refused_without_showing_it(reader: Reader, content: str | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    known = {
        "private": KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "public": KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        "other kind": ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }
    text = None if content is None else known.get(content, content)
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError) as caught:
        reader(file)
    assert sentence in str(caught.value) and CANARY not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback would show what the library said"


def test_without_the_library_only_keys_are_refused(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert verify(out) == []
    with pytest.raises(MecaError, match="Keys need the package `cryptography`"):
        verify(out, pem(tmp_path, KEY, "key")[1])


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    private, public = pem(tmp_path, KEY, "key")
    return str(private), str(public)


def test_signing_and_checking_by_command(out: Path, keys: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys
    (out / "attestation.json").unlink()
    assert cli.run(["verify", str(out), "--key", public]) == 1
    assert "this folder is not signed" in capsys.readouterr().out
    assert cli.run(["sign", str(out), "--key", private]) == 0
    assert key_id(KEY.public_key()) in capsys.readouterr().out
    assert cli.run(["verify", str(out), "--key", public]) == 0
    assert "It was signed with the given key." in capsys.readouterr().out
    assert cli.run(["verify", str(out)]) == 0
    assert "a signature, which was not checked" in capsys.readouterr().out
    assert cli.run(["verify", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "unchecked"
    assert cli.run(["verify", str(out), "--key", public, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"verified": True, "mismatches": [], "signature": "valid"}
    other = pem(tmp_path, OTHER, "other")[1].as_posix()
    assert cli.run(["verify", str(out), "--key", other, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["signature"] == "invalid"
    assert cli.run(["verify", str(out), "--key", other]) == 1
    assert "The signature does not hold, so nothing else was looked at." in capsys.readouterr().out
    (out / "README.md").write_text("x")
    assert cli.run(["verify", str(out), "--key", public, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["signature"] == "contents-differ"
    assert cli.run(["verify", str(out), "--key", public]) == 1
    assert "signed with the given key, but the folder is not what was signed" in capsys.readouterr().out


def test_a_page_that_nobody_checked_is_named(out: Path, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    said = "report.html was not checked: only a signature says which page was published."
    (out / "report.html").write_text("trust me")
    assert cli.run(["verify", str(out)]) == 0 and said in capsys.readouterr().out
    (out / "report.html").unlink()
    assert cli.run(["verify", str(out)]) == 0 and said not in capsys.readouterr().out
    (out / "report.html").write_text("the page of the run")
    assert cli.run(["verify", str(out), "--key", keys[1]]) == 0 and said not in capsys.readouterr().out


def test_a_statement_may_stand_elsewhere(out: Path, keys: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys
    (out / "attestation.json").unlink()
    before, apart = listing(out), str(tmp_path / "apart.json")
    assert cli.run(["sign", str(out), "--key", private, "--attestation", apart]) == 0
    assert listing(out) == before and not (out / "attestation.json").exists()
    assert cli.run(["verify", str(out), "--key", public, "--attestation", apart]) == 0
    assert cli.run(["sign", str(out), "--key", private, "--attestation", apart]) == 0, "a statement may be replaced"
    held = Path(private).read_bytes()
    assert cli.run(["sign", str(out), "--key", private, "--attestation", private]) == 4
    assert "exists and is no signed statement" in capsys.readouterr().err and Path(private).read_bytes() == held
    assert cli.run(["sign", str(out), "--key", private, "--attestation", str(out / "data" / "a.json")]) == 4
    assert "Expected --attestation outside of" in capsys.readouterr().err and listing(out) == before
    assert cli.run(["verify", str(out), "--attestation", apart]) == 4
    assert "Expected --key beside --attestation" in capsys.readouterr().err


def test_checking_a_signature_imports_no_torch(out: Path, keys: tuple[str, str]) -> None:
    code = (
        "import sys; from flows.cli import run; code = run(sys.argv[1:]); print(code, *{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    for argv in (["verify", str(out), "--key", keys[1]], ["sign", str(out), "--key", keys[0]]):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120)
        code_, *modules = done.stderr.splitlines()[-1].split()
        assert code_ == "0" and not {"torch", "prefect", "mlflow", "dvc", "boto3", "matplotlib"} & set(modules)


def test_a_key_is_read_before_the_work_and_shown_nowhere(
    keys: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def clean(source: str, out: Path, params: Any, progress: Any, told: Any, key: Any) -> dict[str, Any]:
        calls.append((params, key))
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(verbs, "clean", clean)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wrong = tmp_path / "wrong.pem"
    wrong.write_text(f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n")
    argv = ["clean", "shapes", "-o", str(tmp_path / "x")]
    assert cli.run([*argv, "--sign", str(wrong)]) == 4 and not calls
    assert cli.run([*argv, "--sign", keys[0]]) == 2
    ((params, key),) = calls
    assert isinstance(key, Ed25519PrivateKey) and "key.pem" not in json.dumps(params.tree)
    secret = Path(keys[0]).read_text().splitlines()[1]
    (kept,) = tmp_path.glob("meca-*.traceback.txt")
    for said in (kept.read_text(), *capsys.readouterr(), repr(key)):
        assert secret not in said and CANARY not in said


def test_clean_signs_before_the_folder_appears(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meca.params import read_params

    out = tmp_path / "out"
    run = Path(shutil.copytree(pipeline.run_folder(published), pipeline.run_folder(out)))
    (run / "report").mkdir()
    (run / "report" / "report.html").write_text("page")
    monkeypatch.setattr(verbs, "run", lambda *_: json.loads((run / "published" / "summary.json").read_text()))
    seen: list[bool] = []
    monkeypatch.setattr(verbs, "replace_folder", lambda new, final: (seen.append((new / "attestation.json").is_file()), new.rename(final)))
    verbs.clean("shapes", out, read_params(), key=KEY)
    assert seen == [True] and check(out, KEY.public_key()) == [] and verify(out) == []
    assert not (run / "published" / "attestation.json").exists()
