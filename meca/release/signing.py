"""Who stands behind a published folder: an in-toto statement in a DSSE envelope, signed with Ed25519 (attestation.json).

The statement names the manifest, the sanitized set, every file of the model and the report by SHA-256, and says what was
found and by which code and parameters (predicate: in-toto's Simple Verification Result). A signature proves where a folder
comes from and that nobody changed it; it does not prove that the data are clean.

`cryptography` is imported when a key is used and not before: everything else works without it.
"""

import base64
import binascii
import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meca import __version__
from meca.data.columns import pc
from meca.errors import InputRefused, MecaError, UsageError
from meca.files import atomic_write, canonical_json, sync
from meca.release.contents import Contents, look
from meca.release.foreign import Folder, Missing, Unfit, parse_object, read_object
from meca.release.manifest import ATTESTATION, MANIFEST, REPORT
from meca.text import plain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["Statement", "check", "key_id", "make_keys", "read_private_key", "read_public_key", "sign"]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/svr/v0.2"
FOUND = {"no_evidence": "MECA_NO_EVIDENCE", "weak": "MECA_WEAK_TEST", "poisoned": "MECA_POISON_FOUND", "inconclusive": "MECA_INCONCLUSIVE"}
FACTS = (
    "verdict",
    "judged_at",
    "caps",
    "control",
    "counts",
    "preset",
    "seed",
    "params_sha256",
    "code_sha256",
    "weights_sha256",
    "meca_version",
    "input_sha256",
    "sanitized_sha256",
    "decisions",
)
OPTIONAL = ("control", "weights_sha256")  # a folder of an older meca knows of no control, and only a training that started from weights of them
MAX_KEY = 64 * 2**10  # bytes
MAX_STATEMENT = 16 * 2**20  # bytes of attestation.json; the names of all reviewers stand in it
MAX_SIGNATURES = 16


def sign(folder: Path, key: "Ed25519PrivateKey", attestation: Path | None = None, now: datetime | None = None) -> str:
    """Sign a published folder and return the id of the key. A folder that does not verify is not signed.

    Args:
        folder: A published folder.
        key: The private key.
        attestation: The file to write; `attestation.json` in the folder if None.
        now: The time that the statement gives; information only, nothing is decided by it.

    Raises:
        UsageError: `attestation` would be a file of the folder, or is there and is no envelope.
        InputRefused: The folder is not as it was published.
    """
    file = attestation or folder / ATTESTATION
    if attestation is not None:
        _check_place(attestation, folder)
    with Folder(folder) as opened:
        wrong, contents = look(opened)
    if contents is None:
        raise InputRefused(f"Not signed, because {folder} is not as it was published: {wrong[0]}")
    time = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    payload = canonical_json(_statement(contents, time), indent=None).encode()
    name = key_id(key.public_key())
    signature = {"keyid": name, "sig": base64.b64encode(key.sign(_encoding(PAYLOAD_TYPE, payload))).decode()}
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(), "signatures": [signature]}
    atomic_write(file, canonical_json(envelope))
    return name


def _check_place(file: Path, folder: Path) -> None:
    place = file.resolve()
    if place.is_relative_to(folder.resolve()) and place != (folder / ATTESTATION).resolve():
        raise UsageError(f"Expected --attestation outside of {folder}, or {ATTESTATION} in it: the folder holds only what its manifest lists.")
    if file.exists():
        # The name of the key given twice would be the end of the key.
        with contextlib.suppress(MecaError):
            if read_object(file).get("payloadType") == PAYLOAD_TYPE:
                return
        raise UsageError(f"{plain(file)} exists and is no signed statement; choose another --attestation.")


def check(folder: Path, key: "Ed25519PublicKey", attestation: Path | None = None) -> list[str]:
    """Return what does not hold about the signature of a published folder, a sentence each.

    It says by hash that manifest, model and page are those that were signed. That the folder holds what the manifest lists, and
    that the statement says of it what it holds, is for `verify` to say.

    Args:
        folder: A published folder.
        key: The only key that is trusted.
        attestation: The file of the envelope; `attestation.json` in the folder if None.
    """
    try:
        with Folder(folder) as opened:
            return list(Statement.read(opened, key, attestation).changed(opened, opened.sha256(MANIFEST)))
    except MecaError as error:
        return [str(error)]


@dataclass(frozen=True)
class Statement:
    """What the holder of a key has signed about a published folder."""

    name: str  # of the file that it stands in
    subjects: Mapping[str, str]  # SHA-256 by name
    predicate: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Folder, key: "Ed25519PublicKey", attestation: Path | None = None) -> "Statement":
        """Return the statement about a folder; of the folder itself nothing but `attestation.json` is opened.

        Args:
            folder: A published folder.
            key: The only key that is trusted.
            attestation: The file of the envelope; `attestation.json` in the folder if None.

        Raises:
            MecaError: There is none, or the key did not sign it.
        """
        name = attestation.name if attestation else ATTESTATION
        try:
            if attestation is None:
                data = folder.read(name, MAX_STATEMENT)
            else:
                with Folder(attestation.parent) as place:
                    data = place.read(name, MAX_STATEMENT)
        except Missing as problem:
            raise Missing(f"{str(problem).rstrip('.')}: this folder is not signed.") from None
        try:
            statement = _open(parse_object(data, name), key, name)
            subjects = {str(subject["name"]): str(subject["digest"]["sha256"]) for subject in statement["subject"]}
            predicate = statement["predicate"]
            _of_predicate(predicate)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Unfit(f"{name} lacks what meca writes into it ({type(error).__name__}: {plain(error, 100)}).") from None
        return cls(name, subjects, predicate)

    def covers(self, subject: str, digest: str) -> bool:
        """Tell whether this is what was signed."""
        return self.subjects.get(subject) == digest

    def changed(self, folder: Folder, manifest: str) -> Iterator[str]:
        """Yield which files are not those that were signed. They are hashed and not parsed; `manifest` is the hash of manifest.json."""
        actual = {MANIFEST: manifest}
        for subject in sorted({*self.subjects, MANIFEST, *([REPORT] if folder.holds(REPORT) else [])} - {"data"}):
            try:
                digest = actual.get(subject) or folder.sha256(subject)
            except Missing:
                yield f"{plain(subject)} is signed, but it is not there."
                continue
            except Unfit as problem:
                yield str(problem)
                continue
            yield from self._compare(subject, digest)

    def contradicted(self, contents: Contents) -> Iterator[str]:
        """Yield where the statement says other than a folder whose files match."""
        actual = _subjects(contents)
        if actual != self.subjects:  # what the statement says about other files would only repeat that they are others
            for subject in sorted(self.subjects.keys() | actual.keys()):
                if subject not in actual:
                    yield f"{plain(subject)} is signed, but it is not there."
                else:
                    yield from self._compare(subject, actual[subject])
            return
        expected = _statement(contents, "")["predicate"]
        for field, given, wanted in zip(("properties", "meca", "policies"), _of_predicate(self.predicate), _of_predicate(expected), strict=True):
            if given == wanted:
                continue
            if field == "policies":
                yield f"The parameters that the statement in {self.name} names are not those of the folder."
            else:
                yield f"The field {field} of the statement in {self.name} is not what the folder says."

    def _compare(self, subject: str, digest: str) -> Iterator[str]:
        if subject not in self.subjects:
            yield f"{plain(subject)} is not covered by the signature in {self.name}."
        elif self.subjects[subject] != digest:
            signed = plain(self.subjects[subject][:12])
            yield f"{plain(subject)} was changed after it was signed: expected SHA-256 {signed}, got {digest[:12]}."


def _of_predicate(predicate: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return predicate["properties"], predicate["meca"], predicate["verifier"]["policies"]


def _encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that DSSE signs: type and content with their lengths, so that neither can pass for the other."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _open(envelope: Mapping[str, Any], key: "Ed25519PublicKey", name: str) -> dict[str, Any]:
    """Return the statement, which is parsed only when its signature holds."""
    from cryptography.exceptions import InvalidSignature

    if set(envelope) != {"payloadType", "payload", "signatures"} or not isinstance(envelope["signatures"], list):
        raise MecaError(f"{name} is no DSSE envelope: expected payloadType, payload and signatures, got {plain(', '.join(sorted(envelope)), 100)}.")
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise MecaError(f"{name} holds the payload type {plain(envelope['payloadType'], 80)!r}, expected {PAYLOAD_TYPE!r}.")
    payload, signatures = _decoded(envelope["payload"], name), envelope["signatures"][:MAX_SIGNATURES]
    if not signatures:
        raise MecaError(f"{name} carries no signature.")
    for each in signatures:
        try:
            key.verify(_decoded(each["sig"], name), _encoding(PAYLOAD_TYPE, payload))
            break
        except InvalidSignature:
            continue
    else:
        expected, given = key_id(key), [plain(each.get("keyid"), 64) for each in signatures]
        if expected in given:
            raise MecaError(f"{name} was changed after it was signed: its signature does not fit its content.")
        raise MecaError(f"{name} was signed with another key: expected the key {expected[:12]}, got {', '.join(each[:12] for each in given)}.")
    statement = parse_object(payload, f"The statement in {name}")
    for field, wanted in (("_type", STATEMENT), ("predicateType", PREDICATE)):
        if statement[field] != wanted:
            raise MecaError(f"{name} holds a statement with {field} {plain(statement[field], 80)!r}, expected {wanted!r}.")
    return statement


def _decoded(text: Any, name: str) -> bytes:
    try:
        return base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)  # DSSE allows both alphabets
    except (AttributeError, binascii.Error):
        raise MecaError(f"{name} is no DSSE envelope: payload and signatures must be base64.") from None


def _subjects(contents: Contents) -> dict[str, str]:
    """Return SHA-256 by name. That of `data` is the manifest's `sanitized_sha256`: over name and hash of each file below it."""
    files = {name: digest for name, digest in contents.manifest["files"].items() if name.startswith("model/")}
    page = {} if contents.report_sha256 is None else {REPORT: contents.report_sha256}
    root = contents.manifest["sanitized_sha256"]
    return {MANIFEST: contents.manifest_sha256, **files, **page, **({} if root is None else {"data": str(root)})}


def _statement(contents: Contents, time: str) -> dict[str, Any]:
    summary, verdicts = contents.summary, contents.verdicts
    properties = ["MECA_SCANNED", FOUND[summary["verdict"]]]
    # A person may have kept what meca holds for poison; then this is not claimed.
    kept = pc.and_(pc.equal(verdicts["verdict"], "poisoned"), pc.equal(verdicts["action"], "keep"))
    if summary["verdict"] == "poisoned" and not pc.any(kept, min_count=0).as_py():
        properties.append("MECA_POISON_REMOVED")
    if summary["decisions"] is not None:
        properties.append("MECA_DECIDED_BY_PERSON")
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(_subjects(contents).items())],
        "predicateType": PREDICATE,
        "predicate": {
            "verifier": {"id": f"urn:meca:{__version__}", "policies": [{"name": "params", "digest": {"sha256": summary["params_sha256"]}}]},
            "timeCreated": time,
            "properties": properties,
            "meca": {name: summary[name] for name in FACTS if name in summary or name not in OPTIONAL},
        },
    }


def key_id(key: "Ed25519PublicKey") -> str:
    """Return the name of a key: the SHA-256 of its public half (DER, SubjectPublicKeyInfo) as 64 hex digits."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_private_key(file: Path, passphrase: bytes | None = None) -> "Ed25519PrivateKey":
    """Return the private key in a PEM file. No message of this function holds anything of the file.

    Args:
        file: PKCS #8, as `meca keygen` and `openssl genpkey -algorithm ed25519` write it.
        passphrase: For an encrypted key.

    Raises:
        UsageError: The file cannot be read, holds no Ed25519 private key, or needs another passphrase.
    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_key(file)
    encrypted = b"ENCRYPTED PRIVATE KEY" in data
    if encrypted and passphrase is None:
        raise UsageError(f"The key in {plain(file)} is encrypted; set its passphrase in MECA_KEY_PASSPHRASE.")
    try:
        key = load_pem_private_key(data, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = ", or its passphrase is another" if encrypted else ""
        raise UsageError(f"Expected an Ed25519 private key in PEM in {plain(file)}, found none{why}; `meca keygen` makes one.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"Expected an Ed25519 private key in {plain(file)}, got one of another kind; `meca keygen` makes one.")
    return key


def read_public_key(file: Path) -> "Ed25519PublicKey":
    """Return the public key in a PEM file.

    Raises:
        UsageError: The file cannot be read, or holds no Ed25519 public key.
    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read_key(file)
    if b"PRIVATE KEY" in data:
        raise UsageError(
            f"Expected a public key in {plain(file)}, found a private one: whoever checks needs the public half, and nobody else the other."
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"Expected an Ed25519 public key in PEM in {plain(file)}, found none.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"Expected an Ed25519 public key in {plain(file)}, got one of another kind.")
    return key


def make_keys(private: Path, public: Path, passphrase: bytes | None = None) -> str:
    """Write a new pair of keys in PEM and return their id. The private one can be read by its owner alone (mode 0600).

    Args:
        private: A file that does not exist yet.
        public: A file that does not exist yet.
        passphrase: Encrypts the private key.

    Raises:
        UsageError: One of the files exists: a key is never written over.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat, PublicFormat

    for file in (private, public):
        if file.exists() or file.is_symlink():
            raise UsageError(f"{plain(file)} exists, and a key is never written over; choose another name.")
    key = Ed25519PrivateKey.generate()
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    contents = {
        private: (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), 0o600),
        public: (key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644),
    }
    for file, (content, mode) in contents.items():
        try:
            # Created with its mode: there is no moment in which others can read it.
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise UsageError(f"Expected to write the key {plain(file)}, which failed ({error.strerror}); choose another place.") from None
        sync(file.parent)
    return key_id(key.public_key())


def _read_key(file: Path) -> bytes:
    try:
        with open(file, "rb") as opened:
            data = opened.read(MAX_KEY + 1)
    except OSError as error:
        raise UsageError(f"Expected a key in PEM, {plain(file)} cannot be read ({error.strerror}); check the path.") from None
    if len(data) > MAX_KEY:
        raise UsageError(f"Expected a key in PEM, {plain(file)} is larger than {MAX_KEY // 2**10} KiB.")
    return data


def _need_cryptography() -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise MecaError("Keys need the package `cryptography`, which is not installed here; `make install` brings it.")
