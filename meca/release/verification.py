"""What a receiver runs on a published folder: hashes, accounting, the data against the verdicts, the signature. Needs no torch.

The folder is somebody else's (meca/release/foreign.py). Nothing in it is parsed before its bytes are known to be those that somebody
vouches for: first the signature, if a key is given; then the manifest, by the hash that is signed; then the hash of every
file, by the manifest; and only when all of them match, what the files hold. Without a key the manifest can be made to fit,
so what is parsed is bounded all the same: by `MAX_JSON`, and for the table of verdicts by `FREE` and `MAX_RATIO`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meca.errors import MecaError
from meca.release.contents import look
from meca.release.foreign import Folder
from meca.release.manifest import ATTESTATION, REPORT

if TYPE_CHECKING:
    pass

__all__ = ["Examined", "examine", "verify"]


@dataclass(frozen=True)
class Examined:
    """What `examine` found."""

    mismatches: list[str]
    signature: str  # unchecked; invalid: nothing else was looked at; valid: what is signed is the key's, whatever the folder holds
    not_listed: tuple[str, ...]  # which of report.html and attestation.json are there


def verify(path: Path, key: Path | None = None, attestation: Path | None = None) -> list[str]:
    """Return what does not match in a published folder, a sentence each; nothing where everything matches.

    Args:
        path: The published folder.
        key: File of an Ed25519 public key (PEM). With it the folder must be signed by that key; without it no signature is looked at.
        attestation: Where the signed statement stands; `attestation.json` in the folder if None.

    Raises:
        UsageError: The key cannot be read, or is none.
    """
    return examine(path, key, attestation).mismatches


def examine(path: Path, key: Path | None = None, attestation: Path | None = None) -> Examined:
    """Return what does not match in a published folder, as `verify` does, and what can be said about its signature."""
    signing = public = None
    if key is not None:
        from meca.release import signing  # needs `cryptography`, which a check of hashes does not

        public = signing.read_public_key(key)
    signature, there = "unchecked" if public is None else "invalid", ()
    try:
        with Folder(path) as folder:
            there = tuple(name for name in (REPORT, ATTESTATION) if folder.holds(name))
            statement = None
            if signing is not None and public is not None:
                statement = signing.Statement.read(folder, public, attestation)
                signature = "valid"
            return Examined(look(folder, statement)[0], signature, there)
    except MecaError as error:
        return Examined([str(error)], signature, there)
