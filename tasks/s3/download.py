"""A local copy of an `s3://` prefix. The bucket's owner and its keys are as little trusted as any supplier.

    <folder>/                     the objects, under their keys
    <folder>.snapshot.parquet     key, version, ETag, size and SHA-256 of each; one file, so that it is old or new
    <folder>.fetching/            what an interrupted fetch has so far; the next one goes on from it

What these say is believed only where this user's meca wrote it about this bucket (`meca.state`); else everything is fetched anew.
Each object is read as it was when it was listed (`If-Match`), its bytes are counted and hashed as they arrive, and the
folder is replaced in one step. Fetched again, it takes only what changed. Keys come from the usual AWS variables.

Where a pointer of `tasks.s3.upload` lies below the prefix, the copy is the set that it names, and nothing else: every file
has the size and the SHA-256 that the list of that version says, and the list has the SHA-256 that the pointer names.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from meca import state
from meca.data.readers.files import inside
from meca.errors import InputRefused, MecaError, UsageError
from meca.files import canonical_json, fresh_folder, lock, open_new, open_plain, refuse_foreign, replace_folder, sha256_file
from meca.progress import Progress
from meca.text import plain
from tasks.dvc.remote import RemoteUnavailable

__all__ = [
    "SCHEME", "Fetched", "connect", "difference", "digest_of", "explained", "fetch", "is_copy", "named_by", "read_small", "split", "upload_errors",
]  # fmt: skip

SCHEME = "s3://"
THREADS = 16  # small objects wait for the network, not for a core
TRIES = 4
CHUNK = 2**20
SPARE = 64 * 2**20  # bytes of the disk that stay free
SCHEMA = pa.schema([*((name, pa.string()) for name in ("name", "key", "etag", "version")), ("size", pa.int64()), ("sha256", pa.string())])
ABSENT = {"NoSuchBucket", "NoSuchKey", "404"}
POINTER = "current.json"  # names the version of a published set; what the three are stands in tasks/s3/upload.py
POINTED, INDEX = "meca.pointer/1", "meca.index/1"
SMALL = 256 * 2**20  # bytes of a list of files at most


@dataclass(frozen=True)
class Fetched:
    """What a fetch found and did."""

    path: Path  # the data: the folder, or the one file that the address names
    objects: int
    bytes: int
    downloaded: int  # objects that came over the network this time
    root: str  # SHA-256 over name and SHA-256 of every object
    version: str | None = None  # of a published set, which a pointer named


@dataclass(frozen=True)
class _Object:
    name: str  # relative path
    key: str
    etag: str
    version: str  # "" where the bucket has no versions, and before it was read
    size: int
    sha256: str  # "" before it was read, unless it is known what it must be


def fetch(url: str, folder: Path, progress: Progress | None = None, client: Any = None) -> Fetched:
    """Make `folder` a copy of the objects below `url` and return what was done.

    Args:
        url: `s3://bucket/prefix`, which stands for a folder `prefix/` or for one object.
        folder: Replaced in one step; its records lie beside it.
        progress: Told what is going on.
        client: A boto3 client; one with the usual AWS variables if None.

    Raises:
        InputRefused: Nothing lies there, access is refused, or a key is no name for a file.
        UsageError: The address or the credentials are missing or wrong; the folder, or what lies in or beside it, is a link or another user's.
        RemoteUnavailable: The network was away, or an object changed while it was read; another try may help.
        MecaError: The disk is too small.
    """
    bucket, prefix = split(url)
    folder = Path(folder)
    for place in (folder, folder.with_name(f"{folder.name}.fetching")):
        refuse_foreign(place, below=True)
    with explained(url):
        client = client or connect()
        with lock(folder.with_name(f"{folder.name}.fetching.lock"), f"The copy {folder}"):
            return _fetch(client, url, bucket, prefix, folder.absolute(), progress)


def difference(url: str, folder: Path, client: Any = None) -> str | None:
    """Compare what lies below `url` with the copy that `fetch` made; nothing is fetched.

    Returns:
        None where they agree, else a key of this very difference: the same until either side changes.

    Raises:
        As `fetch`.
    """
    bucket, prefix = split(url)
    folder = Path(folder).absolute()
    with explained(url):
        client = client or connect()
        _, wanted = _pointed(client, url, bucket, _listed(client, url, bucket, prefix))
    old = _recorded(folder, bucket)
    if _same(wanted, old):
        return None
    # A bucket that goes back to what it was differs anew: the record is written by every fetch that takes something.
    since = f"{_record(folder).stat().st_mtime_ns}" if old else "never"
    return hashlib.sha256("\0".join([url, since, *(f"{o.key}\0{o.etag}\0{o.size}" for o in wanted)]).encode()).hexdigest()


def is_copy(folder: Path) -> bool:
    """Tell whether a folder is a copy by the records of this user's meca, so that it may be replaced."""
    return state.read(_record(folder), "copy", str(folder.resolve())) is not None


def _record(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.snapshot.parquet")


def _recorded(folder: Path, bucket: str) -> dict[str, _Object]:
    """Return what the records of a copy say; nothing where it is gone, is of another bucket, or they are not this user's."""
    data = state.read(_record(folder), "copy", str(folder.resolve())) if folder.is_dir() else None
    if data is None:
        return {}
    table = pq.read_table(BytesIO(data))
    # An ETag says nothing about the objects of another bucket.
    here = (table.schema.metadata or {}).get(b"bucket", b"").decode() == bucket
    return {line["name"]: _Object(**line) for line in table.to_pylist()} if here else {}


def _same(wanted: Sequence[_Object], old: dict[str, _Object]) -> bool:
    return {o.name: (o.key, o.etag, o.size) for o in wanted} == {o.name: (o.key, o.etag, o.size) for o in old.values()}


def _fetch(client: Any, url: str, bucket: str, prefix: str, folder: Path, progress: Progress | None) -> Fetched:
    wanted = _listed(client, url, bucket, prefix)
    version, wanted = _pointed(client, url, bucket, wanted)
    old = _recorded(folder, bucket)
    alone = version is None and len(wanted) == 1 and wanted[0].key == prefix
    if _same(wanted, old) and _intact(folder, old):
        return _fetched(folder, list(old.values()), 0, alone, version)
    temporary = folder.with_name(f"{folder.name}.fetching")
    journal = temporary.with_name(f"{temporary.name}.jsonl")
    here, foreign = _journalled(journal, folder, bucket)
    if progress and (foreign or (folder.is_dir() and _record(folder).exists() and not is_copy(folder))):
        progress.say(state.lasts() or f"What is said of a copy in {folder} was not written by this user's meca; it is fetched anew.")
    if not here:
        fresh_folder(temporary)
    temporary.mkdir(exist_ok=True)
    done: dict[str, _Object] = {}
    for item in wanted:
        # A kill between the last two steps leaves what the journal says in the folder itself.
        for place, held in ((temporary, here.get(item.name)), (folder, here.get(item.name)), (folder, old.get(item.name))):
            # What is known by its SHA-256 may have had another key: two versions of a set share most of their files.
            if held and _is_same(held, item) and _take(place, temporary, held):
                done[item.name] = replace(item, sha256=held.sha256, version=held.version)
                break
    missing = [item for item in wanted if item.name not in done]
    _room(temporary, sum(item.size for item in missing))
    _remove_others(temporary, {item.name for item in wanted})
    with _journal(journal, folder, bucket, here.values()) as finished:
        for count, item in enumerate(_downloaded(client, bucket, missing, temporary), 1):
            done[item.name] = item
            finished(item)
            if progress and (count % 100 == 0 or count == len(missing)):
                progress("fetch", count, len(missing), url)
    found = [done[item.name] for item in wanted]
    replace_folder(temporary, folder)
    _write(folder, bucket, found)
    journal.unlink(missing_ok=True)
    return _fetched(folder, found, len(missing), alone, version)


def split(url: str) -> tuple[str, str]:
    """Return bucket and prefix of an address.

    Raises:
        UsageError: It is none.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment or parts.username or parts.port:
        raise UsageError(f"Expected an address like s3://bucket/prefix, got {plain(url)!r}; keys and endpoints stand in the AWS variables.")
    return parts.netloc, parts.path.strip("/")


def connect() -> Any:
    """Return a client with the usual AWS variables."""
    import boto3.session
    from botocore.config import Config

    retries: Any = {"mode": "standard", "max_attempts": TRIES}
    # Checksums of other kinds than every server knows are not asked for: what arrives is compared by SHA-256 in any case.
    checksums: Any = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    config = Config(retries=retries, connect_timeout=10, read_timeout=60, max_pool_connections=THREADS, **checksums)
    return boto3.session.Session().client("s3", config=config)


def _listed(client: Any, url: str, bucket: str, prefix: str) -> list[_Object]:
    """Return the objects below a prefix, or the one of exactly that key, sorted by name."""
    below = f"{prefix}/" if prefix else ""
    found: dict[str, _Object] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            key: str = item["Key"]
            name = key.rsplit("/", 1)[-1] if key == prefix else key.removeprefix(below)
            if (key != prefix and not key.startswith(below)) or (key.endswith("/") and not item["Size"]):
                continue  # a neighbour such as `prefix-2/`, or the mark that some programs leave for a folder
            try:
                name = str(inside(name))
            except ValueError as problem:
                raise InputRefused(f"The key {plain(key)!r} {problem}; it cannot be a file, so nothing is fetched.") from None
            if name in found:
                raise InputRefused(f"The keys {plain(found[name].key)!r} and {plain(key)!r} are one file; rename one of them.")
            found[name] = _Object(name, key, item["ETag"], "", int(item["Size"]), "")
    for name, item in found.items():
        above = next((str(folder) for folder in PurePosixPath(name).parents if str(folder) in found), None)
        if above:
            raise InputRefused(f"{plain(found[above].key)!r} is an object, and {plain(item.key)!r} needs a folder of that name; rename one of them.")
    if not found:
        raise InputRefused(f"Nothing lies below {plain(url)}; check bucket and prefix.")
    return [found[name] for name in sorted(found)]


def named_by(content: bytes) -> str | None:
    """Return the version that the content of a pointer names; None where it is no pointer."""
    try:
        record = json.loads(content)
        version = record["version"] if record["schema"] == POINTED else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) and re.fullmatch("[0-9a-f]{64}", version) else None


def _pointed(client: Any, url: str, bucket: str, listed: list[_Object]) -> tuple[str | None, list[_Object]]:
    """Return the version that a pointer among the objects names and its files; None and the objects where there is no pointer."""
    pointer = next((item for item in listed if item.name == POINTER and item.size <= CHUNK), None)
    version = named_by(read_small(client, bucket, pointer.key)) if pointer else None
    if pointer is None or version is None:
        return None, listed
    base = pointer.key.removesuffix(POINTER)
    index = read_small(client, bucket, f"{base}{version}.json")
    if hashlib.sha256(index).hexdigest() != version:
        raise InputRefused(f"The list of files of {plain(url)} is not the one that its pointer names: somebody changed it.")
    found: dict[str, _Object] = {}
    try:
        record = json.loads(index)
        if record["schema"] != INDEX:
            raise ValueError(f"its schema is {plain(record['schema'], 40)!r}")
        for line in record["files"]:
            name, size, digest = str(inside(line["name"])), line["size"], line["sha256"]
            if name in found or type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"its line about {plain(name)!r} is none")
            found[name] = _Object(name, f"{base}{version}/{line['name']}", "", "", size, digest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputRefused(f"The list of files of {plain(url)} is not one of meca: {plain(error, 200)}.") from None
    return version, [found[name] for name in sorted(found)]


def read_small(client: Any, bucket: str, key: str) -> bytes:
    """Return the content of a small object."""
    content = BytesIO()
    _tried(lambda: _stream(client, bucket, key, "", content, SMALL))
    return content.getvalue()


def digest_of(client: Any, bucket: str, key: str, size: int) -> str:
    """Return the SHA-256 of an object as it reads, "" where it has another size."""
    found, digest, _ = _tried(lambda: _stream(client, bucket, key, "", None, size + 1))
    return digest if found == size else ""


def _tried(read: Any) -> Any:
    """Return what a read returns; a body that breaks off is read again, which botocore leaves to us."""
    from botocore.exceptions import BotoCoreError

    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except (BotoCoreError, OSError, _Short) as error:
            if attempt == TRIES or (isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError)):
                raise
            time.sleep(random.uniform(0, 0.5 * 2**attempt))  # noqa: S311 - jitter
    raise AssertionError("the last try returns or raises")


def _stream(client: Any, bucket: str, key: str, etag: str, file: IO[bytes] | None, limit: int) -> tuple[int, str, str]:
    """Copy an object into a file and return its size, its SHA-256 and its version; what is longer than `limit` is not read on."""
    if file is not None:  # a try before this one may have written
        file.seek(0)
        file.truncate()
    reply = client.get_object(Bucket=bucket, Key=key, **({"IfMatch": etag} if etag else {}))
    digest, size = hashlib.sha256(), 0
    with contextlib.closing(reply["Body"]) as body:
        while size <= limit and (chunk := body.read(CHUNK)):
            size += len(chunk)
            digest.update(chunk)
            if file is not None:
                file.write(chunk)
    if size != int(reply["ContentLength"]):
        raise _Short(f"{reply['ContentLength']} bytes were announced, {size} came")
    return size, digest.hexdigest(), reply.get("VersionId") or ""


def _intact(folder: Path, objects: dict[str, _Object]) -> bool:
    """Tell whether a copy holds its objects and nothing else. Their bytes are read: a size proves nothing."""
    if {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} != set(objects):
        return False
    with ThreadPoolExecutor(THREADS) as pool:
        return all(pool.map(lambda held: _holds(folder / held.name, held), objects.values()))


def _holds(path: Path, held: _Object) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == held.size and sha256_file(path) == held.sha256


def _journalled(journal: Path, folder: Path, bucket: str) -> tuple[dict[str, _Object], bool]:
    """Return what an interrupted fetch of this user's had finished, and whether there is more that is not ours; a torn last line is dropped."""
    found: dict[str, _Object] = {}
    try:
        with open_plain(journal) as file:
            while (line := file.readline(2**20)).endswith(b"\n"):
                told = json.loads(line)
                if not state.fits(told.pop("seal"), _line(told), "fetched", str(folder.resolve()), bucket):
                    return found, True
                item = _Object(**told)
                found[item.name] = item
    except FileNotFoundError:
        pass
    except (UsageError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return found, True
    return found, False


@contextlib.contextmanager
def _journal(journal: Path, folder: Path, bucket: str, before: Iterable[_Object]) -> Iterator[Callable[[_Object], None]]:
    """Yield what notes an object as finished, in a new journal that begins with those of before: the old file may be a second name of any other."""
    temporary = journal.with_name(f"{journal.name}.tmp")
    with open_new(temporary) as log:

        def finished(item: _Object) -> None:
            told = asdict(item)
            log.write(_line({**told, "seal": state.seal(_line(told), "fetched", str(folder.resolve()), bucket)}))
            log.flush()

        for item in before:
            finished(item)
        os.replace(temporary, journal)
        yield finished


def _line(told: dict[str, Any]) -> bytes:
    return canonical_json(told, indent=None).encode()


def _is_same(held: _Object, item: _Object) -> bool:
    return held.sha256 == item.sha256 if item.sha256 else (held.key, held.etag, held.size) == (item.key, item.etag, item.size)


def _take(place: Path, temporary: Path, held: _Object) -> bool:
    """Link a file that is already here into the new folder, if it still has its bytes."""
    source, target = place / held.name, temporary / held.name
    if not _holds(source, held):
        return False
    if source != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return True


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise MecaError(f"Expected {(needed + SPARE) / 2**20:,.0f} MiB of free space for the copy in {folder.parent}, found {free / 2**20:,.0f}.")


def _remove_others(folder: Path, names: set[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _downloaded(client: Any, bucket: str, objects: Sequence[_Object], folder: Path) -> Iterator[_Object]:
    """Yield the objects as they are finished."""
    for parent in {(folder / item.name).parent for item in objects}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(_download, client, bucket, item, folder / item.name) for item in objects]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _download(client: Any, bucket: str, item: _Object, path: Path) -> _Object:
    return _tried(lambda: _read(client, bucket, item, path))


class _Short(Exception):  # noqa: N818 - it is caught here and becomes a sentence
    """A body that is shorter or longer than its object."""


def _read(client: Any, bucket: str, item: _Object, path: Path) -> _Object:
    with open_new(path) as file:  # never into a file that the folder may share with it
        size, digest, version = _stream(client, bucket, item.key, item.etag, file, item.size)
    if size != item.size:
        raise _Short(f"{item.size} bytes were listed, {size} came")
    if item.sha256 not in ("", digest):
        raise _Short(f"{plain(item.name)} is not the file that the pointer's list names")
    return _Object(item.name, item.key, item.etag, "" if version == "null" else version, size, digest)


def _write(folder: Path, bucket: str, objects: Sequence[_Object]) -> None:
    data, schema = BytesIO(), SCHEMA.with_metadata({"bucket": bucket})
    pq.write_table(pa.Table.from_pylist([asdict(item) for item in objects], schema=schema), data, compression="zstd")
    state.write(_record(folder), data.getvalue(), "copy", str(folder.resolve()))


def _fetched(folder: Path, objects: Sequence[_Object], downloaded: int, alone: bool, version: str | None = None) -> Fetched:
    root = hashlib.sha256("".join(f"{o.name}\0{o.sha256}\n" for o in objects).encode()).hexdigest()
    path = folder / objects[0].name if alone else folder
    return Fetched(path, len(objects), sum(o.size for o in objects), downloaded, root, version)


@contextlib.contextmanager
def upload_errors() -> Iterator[None]:
    """Turn the transfer manager's own error, which hides what it was caused by, into that."""
    from boto3.exceptions import S3UploadFailedError

    try:
        yield
    except S3UploadFailedError as error:
        cause = error.__cause__ or error.__context__
        raise cause if isinstance(cause, Exception) else ConnectionError(str(error)) from None


@contextlib.contextmanager
def explained(url: str, done: str = "read") -> Iterator[None]:
    """Turn what boto3 raises into one sentence and the right exit code. No message holds a key: boto3's do not, and none is added."""
    from botocore import exceptions

    where = plain(url)
    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound, exceptions.TokenRetrievalError) as error:
        raise UsageError(f"{where} cannot be {done} ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.") from None
    except (exceptions.ParamValidationError, exceptions.InvalidRegionError, exceptions.NoRegionError) as error:
        raise UsageError(f"{where} cannot be {done} ({' '.join(str(error).split())}); check the address and the AWS variables.") from None
    except exceptions.ClientError as error:
        code, status = error.response["Error"].get("Code", ""), error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        if code in ("PreconditionFailed", "412"):
            raise RemoteUnavailable(f"An object of {where} changed while it was {done}; the same command starts from the new list.") from None
        if code in ABSENT:
            raise InputRefused(f"{where} does not exist ({code}); check bucket and prefix.") from None
        if status in (401, 403):
            raise InputRefused(f"{where} may not be {done} with these credentials ({code}).") from None
        raise RemoteUnavailable(f"{where} could not be {done} ({code or status}); the same command goes on where it stopped.") from None
    except (exceptions.BotoCoreError, ConnectionError, TimeoutError, _Short) as error:
        raise RemoteUnavailable(
            f"{where} could not be {done} ({' '.join(str(error).split()) or type(error).__name__}); the same command goes on where it stopped."
        ) from None
