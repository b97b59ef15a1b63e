"""A published folder, opened once: whoever needs several of its files gets them as its manifest lists them, each read once and bounded.

The folder is somebody else's (meca/release/foreign.py). What is parsed is what was hashed, so nothing can change between the two. `meca verify`
looks at everything in the folder; here is looked at what is asked for, which is right where the rest has no say, or was verified before.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from meca.release.contents import MAX_VERDICTS, parse_manifest, parse_verdicts
from meca.release.foreign import MAX_JSON, Folder, Unfit, parse_object
from meca.release.manifest import MANIFEST
from meca.text import plain

__all__ = ["Published"]


@dataclass(frozen=True)
class Published:
    """What a published folder says of itself, and the way to what else it holds."""

    path: Path
    manifest: Mapping[str, Any]
    manifest_sha256: str
    summary: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read manifest.json, and summary.json as the manifest lists it.

        Raises:
            Unfit: One of them is missing, is no regular file, is too large, or is not what meca writes; or the summary is not what is listed.
        """
        with Folder(path) as folder:
            data = folder.read(MANIFEST, MAX_JSON)
            manifest = parse_manifest(data)
            summary = parse_object(_read(folder, manifest, "summary.json", MAX_JSON), "summary.json")
        return cls(path, manifest, hashlib.sha256(data).hexdigest(), summary)

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file, which is the one that the manifest lists.

        Raises:
            Unfit: It is not listed, is another one, or is no regular file below the folder.
        """
        with Folder(self.path) as folder:
            return _expect(folder, self.manifest, name, folder.sha256(name))

    def verdicts(self) -> pa.Table:
        """Return verdicts.parquet with all of its columns.

        Raises:
            MecaError: It is not what is listed, is damaged, has other columns, or unpacks to far more than it is.
        """
        with Folder(self.path) as folder:
            data = _read(folder, self.manifest, "verdicts.parquet", MAX_VERDICTS)
        try:
            parse_verdicts(data)  # bounds what the columns unpack to, piece by piece; only then are all of them read at once
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                return file.read()
        except (OSError, pa.ArrowException) as error:
            raise Unfit(f"verdicts.parquet cannot be read ({plain(error, 200)}).") from None


def _read(folder: Folder, manifest: Mapping[str, Any], name: str, limit: int) -> bytes:
    data = folder.read(name, limit)
    _expect(folder, manifest, name, hashlib.sha256(data).hexdigest())
    return data


def _expect(folder: Folder, manifest: Mapping[str, Any], name: str, digest: str) -> str:
    listed = manifest["files"].get(name)
    if digest != listed:
        expected = "no such file" if listed is None else f"the SHA-256 {plain(listed[:12])}"
        said = f"{plain(folder.path / name, 300)} is not what its manifest says: expected {expected}, got {digest[:12]}."
        raise Unfit(f"{said} Bring it back, or run the pipeline again.")
    return digest
