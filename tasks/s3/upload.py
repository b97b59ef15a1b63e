"""A published folder on `s3://`, where readers see the set of before or the new one and never half of one.

    <prefix>/<version>/…         the files of the folder, under a name that their SHA-256 decides; never changed afterwards
    <prefix>/<version>.json      their names, sizes and SHA-256; <version> is the SHA-256 of this object
    <prefix>/current.json        the pointer: which version is the set; written last, after every object was read back

Published again, only what is missing is sent; a version that the pointer names already stays. The pointer is written on the
condition that it is still the one that was read, where the server knows conditions; what it does is tried, not assumed.
`meca fetch` follows the pointer (tasks/s3/download.py).
"""

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meca.errors import Inconclusive, InputRefused, MecaError, UsageError
from meca.files import canonical_json, sha256_file
from meca.progress import Progress
from meca.release import published as released
from meca.release.verification import verify
from meca.text import plain
from tasks.s3 import download

__all__ = ["Published", "publish", "published_folder"]

LARGE = 64 * 2**20  # bytes from which an object is sent in parts
STALE = 24 * 3600  # seconds after which an upload in parts was left behind by a process that was killed
REFUSED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}  # by a condition
UNKNOWN = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest"}  # a condition, to this server
NO_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class Published:
    """What a publication did."""

    url: str  # of the pointer
    version: str  # SHA-256 of the list of files
    previous: str | None  # that the pointer named before
    objects: int
    bytes: int
    sent: int  # objects that went over the network this time
    moved: bool  # whether the pointer was written
    guarded: bool | None  # whether the server refuses a pointer that changed meanwhile; None where nothing was written


def published_folder(run: Path) -> Path:
    """Return the published folder of a run: the output of `clean` itself, or `published` in a workspace.

    Raises:
        UsageError: There is none.
    """
    for folder in (run, run / "published"):
        if (folder / "manifest.json").is_file():
            return folder
    raise UsageError(f"Expected a published folder or a workspace with one, found no manifest.json in {plain(run)}.")


def publish(
    folder: Path, url: str, key: Path | None = None, attestation: Path | None = None, progress: Progress | None = None, client: Any = None
) -> Published:
    """Bring a published folder to `url` and let the pointer there name it.

    Args:
        folder: A published folder.
        url: `s3://bucket/prefix`.
        key: An Ed25519 public key (PEM) that must have signed the folder.
        attestation: The signed statement, if it lies elsewhere than in the folder; it goes along as attestation.json.
        progress: Told what is going on.
        client: A boto3 client; one with the usual AWS variables if None.

    Raises:
        InputRefused: The folder is not as it was published or signed, or the bucket refuses us.
        Inconclusive: The folder holds no set, because no answer could be defended; the pointer stays.
        UsageError: The address or the credentials are missing or wrong.
        RemoteUnavailable: The network was away; the same command goes on.
        MecaError: What was sent cannot be read back as it was, or somebody else moved the pointer meanwhile.
    """
    bucket, prefix = download.split(url)
    if wrong := verify(folder, key, attestation):
        raise InputRefused(f"{plain(folder)} is not published, because it is not as it was written: {plain(wrong[0], 300)}")
    summary = released.Published.open(folder).summary
    if not (folder / "data").is_dir():
        raise Inconclusive(
            f"{plain(folder)} holds no set (its verdict is {plain(summary['verdict'], 40)}), so nothing is published and the pointer stays."
        )
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}
    if attestation is not None:
        files["attestation.json"] = attestation
    with download.explained(url, "written"):
        return _Publication(client or download.connect(), bucket, f"{prefix}/" if prefix else "", files, progress).run(summary)


class _Publication:
    """One folder on its way."""

    def __init__(self, client: Any, bucket: str, base: str, files: Mapping[str, Path], progress: Progress | None) -> None:
        self.client, self.bucket, self.base, self.files, self.progress = client, bucket, base, files, progress
        self.listed = [{"name": name, "size": path.stat().st_size, "sha256": sha256_file(path)} for name, path in sorted(files.items())]
        self.index = canonical_json({"schema": download.INDEX, "files": self.listed}).encode()
        self.version = hashlib.sha256(self.index).hexdigest()

    def run(self, summary: Mapping[str, Any]) -> Published:
        """Send, read back, and move the pointer."""
        etag, before = self._pointer()
        self._abort_stale()
        there = dict(self._there())
        missing = [item for item in self.listed if there.get(item["name"]) != item["size"]]
        self._all("send", missing, self._send)
        damaged = [item for item, good in zip(self.listed, self._all("read back", self.listed, self._reads_back), strict=True) if not good]
        self._all("send again", damaged, self._send)  # by another program, or on the way
        if wrong := [item for item, good in zip(damaged, self._all("read back", damaged, self._reads_back), strict=True) if not good]:
            raise MecaError(f"{plain(self._key(wrong[0]['name']))} does not read back as it was sent; the pointer stays. Do not trust this storage.")
        self._put(f"{self.base}{self.version}.json", self.index)
        if download.read_small(self.client, self.bucket, f"{self.base}{self.version}.json") != self.index:
            raise MecaError("The list of files does not read back as it was sent; the pointer stays.")
        moved, guarded = before != self.version, None
        if moved:
            guarded = self._move(etag, before, summary)
        return Published(
            f"s3://{self.bucket}/{self.base}{download.POINTER}", self.version, before if moved else None, len(self.listed),
            sum(item["size"] for item in self.listed), len({item["name"] for item in [*missing, *damaged]}), moved, guarded,
        )  # fmt: skip

    def _key(self, name: str) -> str:
        return f"{self.base}{self.version}/{name}"

    def _all(self, what: str, items: Sequence[dict[str, Any]], work: Any) -> list[Any]:
        done: list[Any] = []
        with ThreadPoolExecutor(download.THREADS) as pool:
            jobs = [pool.submit(work, item) for item in items]
            try:
                for count, job in enumerate(jobs, 1):
                    done.append(job.result())
                    if self.progress and (count % 100 == 0 or count == len(items)):
                        self.progress("publish", count, len(items), what)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return done

    def _there(self) -> Iterator[tuple[str, int]]:
        below = self._key("")
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below):
            for item in page.get("Contents", ()):
                yield item["Key"].removeprefix(below), int(item["Size"])

    def _abort_stale(self) -> None:
        """Drop what killed processes left of uploads in parts: it is invisible and costs. Younger ones may be somebody's."""
        from botocore.exceptions import ClientError

        with suppress(ClientError):  # a server without such lists; or it is not for us to see
            for upload in self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.base).get("Uploads", ()):
                if time.time() - upload["Initiated"].timestamp() > STALE:
                    self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def _send(self, item: Mapping[str, Any]) -> None:
        from boto3.s3.transfer import TransferConfig

        path, key = self.files[item["name"]], self._key(item["name"])
        if item["size"] < LARGE:
            self._put(key, path.read_bytes())
        else:  # aborted when a part fails
            config = TransferConfig(multipart_threshold=LARGE, multipart_chunksize=LARGE, max_concurrency=4)
            with download.upload_errors():
                self.client.upload_file(str(path), self.bucket, key, Config=config)

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentMD5=digest, **condition)

    def _reads_back(self, item: Mapping[str, Any]) -> bool:
        return download.digest_of(self.client, self.bucket, self._key(item["name"]), item["size"]) == item["sha256"]

    def _pointer(self) -> tuple[str | None, str | None]:
        """Return the ETag of the pointer and the version that it names; None where there is none."""
        from botocore.exceptions import ClientError

        key = f"{self.base}{download.POINTER}"
        try:
            reply = self.client.get_object(Bucket=self.bucket, Key=key)
            content = reply["Body"].read(download.SMALL)
        except ClientError as error:
            if error.response["Error"].get("Code") in ("NoSuchKey", "404"):
                return None, None
            raise
        version = download.named_by(content)
        if version is None:
            raise UsageError(f"s3://{self.bucket}/{plain(key)} is there and no pointer of meca; publish to another prefix.")
        return reply["ETag"], version

    def _move(self, etag: str | None, before: str | None, summary: Mapping[str, Any]) -> bool:
        """Write the pointer and return whether the server would have refused one that had changed."""
        from botocore.exceptions import ClientError

        now = datetime.now(UTC).isoformat(timespec="seconds")
        told = {
            "verdict": summary["verdict"],
            "judged_at": summary["judged_at"],
            "input_sha256": summary["input_sha256"],
            "sanitized_sha256": summary["sanitized_sha256"],
        }
        content = canonical_json({"schema": download.POINTED, "version": self.version, "previous": before, "when": now, **told}).encode()
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        guarded = self._knows({"IfNoneMatch": "*"} if etag is None else {"IfMatch": NO_ETAG})
        if not guarded:
            if self._pointer() != (etag, before):
                raise self._lost(before)
            condition = {}
        try:
            self._put(f"{self.base}{download.POINTER}", content, **condition)
        except ClientError as error:
            if error.response["Error"].get("Code") not in REFUSED:
                raise
        if self._pointer()[1] != self.version:
            raise self._lost(before)
        return guarded

    def _knows(self, condition: Mapping[str, str]) -> bool:
        """Tell whether the server refuses a write by a condition, on the list of files: written once more, it is the same."""
        from botocore.exceptions import ClientError

        try:
            self._put(f"{self.base}{self.version}.json", self.index, **condition)
        except ClientError as error:
            if error.response["Error"].get("Code") in REFUSED | {"NoSuchKey", "404"}:
                return True
            if error.response["Error"].get("Code") not in UNKNOWN:
                raise
        return False

    def _lost(self, before: str | None) -> MecaError:
        _, now = self._pointer()
        return MecaError(
            f"The pointer s3://{self.bucket}/{plain(self.base)}{download.POINTER} was moved by somebody else meanwhile: it named "
            f"{(before or 'nothing')[:12]} and names {(now or 'nothing')[:12]} now. Look at it, and publish again; all objects are there."
        )
