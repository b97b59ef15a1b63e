"""What a published folder lists of itself."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from meca.files import sha256_file

if TYPE_CHECKING:
    pass

__all__ = ["ATTESTATION", "MANIFEST", "NOT_LISTED", "REPORT", "listing", "root_of"]


MANIFEST, REPORT = "manifest.json", "report.html"


ATTESTATION = "attestation.json"  # the signed statement (meca/release/signing.py)


# The manifest cannot list itself, nor the signature over it; the report is added by `meca clean` and shows what the other files hold.
NOT_LISTED = {MANIFEST, REPORT, ATTESTATION}


def listing(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a published folder by relative name, without `NOT_LISTED`."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {name: sha256_file(folder / name) for name in files if name not in NOT_LISTED}


def root_of(files: Mapping[str, str]) -> str | None:
    """Return the SHA-256 of the sanitized set: over name and hash of every file below `data/`; None where there is none."""
    digest, some = hashlib.sha256(), False
    for name, each in sorted(files.items()):
        if name.startswith("data/"):
            digest.update(f"{name}\0{each}\n".encode(errors="surrogatepass"))
            some = True
    return digest.hexdigest() if some else None
