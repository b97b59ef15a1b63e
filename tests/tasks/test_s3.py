"""Copies of a bucket against a real HTTP server that speaks S3, and through a network that fails."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows import cli
from flows.cli import options
from meca.data.store import read_parquet
from meca.errors import InputRefused, MecaError, UsageError
from meca.progress import Progress
from tasks.dvc.remote import RemoteUnavailable
from tasks.s3 import download
from tasks.s3.download import fetch
from tasks.s3.origin import bring, of_workspace
from tests.making import make_folder
from tests.proxy import Fault, Proxy, proxy
from tests.tasks.buckets import connect

URL = "s3://bucket/photos"


@pytest.fixture
def faulty(port: int, client: Any) -> Iterator[tuple[Proxy, Any]]:
    with proxy(("127.0.0.1", port)) as between:
        yield between, connect(between.port)


def put(client: Any, **objects: bytes) -> None:
    for key, data in objects.items():
        client.put_object(Bucket="bucket", Key=key, Body=data)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock"))


THREE = {"photos/cat/a.png": b"a", "photos/cat/b.png": b"bb" * 2**20, "photos/dog/c.png": b""}
FILES = {key.removeprefix("photos/"): data for key, data in THREE.items()}


def test_a_prefix_is_copied_with_its_hashes(client: Any, tmp_path: Path) -> None:
    put(client, **THREE, **{"photos-2/x.png": b"other", "photos/cat/": b"", "elsewhere": b"y"})
    found = fetch(URL, tmp_path / "in")
    assert tree(tmp_path / "in") == FILES and found.path == tmp_path / "in"
    assert (found.objects, found.bytes, found.downloaded) == (3, 1 + 2**22 // 2, 3)
    record = {line["name"]: line for line in read_parquet(tmp_path / "in.snapshot.parquet").to_pylist()}
    assert {name: line["sha256"] for name, line in record.items()} == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert all(line["version"] == "" and line["size"] == len(FILES[name]) for name, line in record.items())
    assert beside(tmp_path / "in") == ["in", "in.snapshot.parquet", "in.snapshot.parquet.seal"]


def test_again_only_what_changed_is_read(client: Any, tmp_path: Path) -> None:
    put(client, **THREE)
    first = fetch(URL, tmp_path / "in")
    inode = (tmp_path / "in" / "cat" / "b.png").stat().st_ino
    assert fetch(URL, tmp_path / "in").downloaded == 0 and fetch(URL, tmp_path / "in").root == first.root
    put(client, **{"photos/cat/a.png": b"A", "photos/new": b"n"})
    client.delete_object(Bucket="bucket", Key="photos/dog/c.png")
    again = fetch(URL, tmp_path / "in")
    assert again.downloaded == 2 and again.root != first.root
    assert tree(tmp_path / "in") == {"cat/a.png": b"A", "cat/b.png": FILES["cat/b.png"], "new": b"n"}
    assert (tmp_path / "in" / "cat" / "b.png").stat().st_ino == inode  # linked, not read again


def test_a_copy_that_was_touched_is_read_again(client: Any, tmp_path: Path) -> None:
    put(client, **THREE)
    fetch(URL, tmp_path / "in")
    (tmp_path / "in" / "cat" / "a.png").write_bytes(b"")  # another size
    assert fetch(URL, tmp_path / "in").downloaded == 1 and tree(tmp_path / "in") == FILES
    (tmp_path / "in" / "cat" / "a.png").write_bytes(b"x")  # the same size
    assert fetch(URL, tmp_path / "in").downloaded == 1 and tree(tmp_path / "in") == FILES
    (tmp_path / "in" / "cat" / "more.png").write_bytes(b"more")  # beside what the records name
    assert fetch(URL, tmp_path / "in").downloaded == 0 and tree(tmp_path / "in") == FILES


def test_versions_are_recorded(client: Any, tmp_path: Path) -> None:
    client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    put(client, **{"photos/a": b"old"})
    put(client, **{"photos/a": b"new"})
    fetch(URL, tmp_path / "in")
    latest = client.head_object(Bucket="bucket", Key="photos/a")["VersionId"]
    assert read_parquet(tmp_path / "in.snapshot.parquet")["version"].to_pylist() == [latest]
    assert tree(tmp_path / "in") == {"a": b"new"}


def test_one_object_is_a_file(client: Any, tmp_path: Path) -> None:
    put(client, **{"sets/photos.zip": b"PK", "sets/photos.zip.old": b"x"})
    assert fetch("s3://bucket/sets/photos.zip", tmp_path / "in").path == tmp_path / "in" / "photos.zip"
    assert tree(tmp_path / "in") == {"photos.zip": b"PK"}


def test_an_object_that_changes_meanwhile_is_never_mixed_in(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(client, **THREE)
    listed = download._listed  # pyright: ignore[reportPrivateUsage]

    def late(*arguments: Any) -> Any:
        found = listed(*arguments)
        put(client, **{"photos/cat/a.png": b"changed"})
        return found

    monkeypatch.setattr(download, "_listed", late)
    with pytest.raises(RemoteUnavailable, match="changed while it was read"):
        fetch(URL, tmp_path / "in")
    assert not (tmp_path / "in").exists()
    monkeypatch.undo()
    assert fetch(URL, tmp_path / "in", client=client).objects == 3
    assert (tmp_path / "in" / "cat" / "a.png").read_bytes() == b"changed"


@pytest.mark.parametrize(
    "key", ["photos/../../evil", "photos//etc/passwd", "photos/a\\b", "photos/x\x1b[2J", "photos/C:evil", "photos/a/" + "n" * 300]
)
def test_a_key_that_is_no_name_refuses(client: Any, key: str, tmp_path: Path) -> None:
    put(client, **{key: b"x", "photos/fine": b"y"})
    with pytest.raises(InputRefused, match="cannot be a file") as refusal:
        fetch(URL, tmp_path / "in")
    assert "\x1b" not in str(refusal.value) and not (tmp_path / "in").exists()


def test_an_object_in_the_place_of_a_folder_refuses(client: Any, tmp_path: Path) -> None:
    put(client, **{"photos/a": b"x", "photos/a/b": b"y"})
    with pytest.raises(InputRefused, match=r"'photos/a' is an object, and 'photos/a/b' needs a folder"):
        fetch(URL, tmp_path / "in")


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///x", "http://bucket/x", "s3://key:secret@bucket/x", "s3://bucket:9000/x", "s3://bucket/x?versionId=1"]
)
def test_an_address_that_is_none_is_a_usage_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Expected an address like s3://bucket/prefix"):
        fetch(url, tmp_path / "in", client=object())


def test_what_is_not_there_or_not_allowed(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputRefused, match="Nothing lies below s3://bucket/none"):
        fetch("s3://bucket/none", tmp_path / "in")
    with pytest.raises(InputRefused, match="does not exist"):
        fetch("s3://no-such-bucket/x", tmp_path / "in")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="set AWS_ACCESS_KEY_ID"):
        fetch(URL, tmp_path / "in")


def test_a_refused_key_is_a_refusal(faulty: tuple[Proxy, Any], tmp_path: Path) -> None:
    between, client = faulty
    body = b"<Error><Code>AccessDenied</Code></Error>"
    between.faults = [Fault(answer=b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))]
    with pytest.raises(InputRefused, match=r"may not be read with these credentials \(AccessDenied\)"):
        fetch(URL, tmp_path / "in", client=client)


BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nshort"


def break_after_the_list(between: Proxy, client: Any, faults: list[Fault], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the objects be listed, and then do to the next connections what `faults` say."""
    listed = download._listed  # pyright: ignore[reportPrivateUsage]

    def then_break(*arguments: Any) -> Any:
        found = listed(*arguments)
        client.close()  # its connections: what comes next opens new ones
        between.faults = faults
        return found

    monkeypatch.setattr(download, "_listed", then_break)
    monkeypatch.setattr(download, "THREADS", 1)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


FAULTS = [Fault(cut=100_000), Fault(cut=0), Fault(answer=BUSY), Fault(answer=b""), Fault(answer=SHORT), Fault(corrupt=50_000)]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_broken_transfer_is_tried_again(fault: Fault, faulty: tuple[Proxy, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    between, client = faulty
    expected = os.urandom(300_000)
    put(client, **{"photos/big": expected})
    faults = [fault]
    break_after_the_list(between, client, faults, monkeypatch)
    assert fetch(URL, tmp_path / "in", client=client).objects == 1
    assert not faults and tree(tmp_path / "in") == {"big": expected}


def test_a_network_that_stays_away_leaves_the_old_copy(faulty: tuple[Proxy, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    between, client = faulty
    put(client, **THREE)
    fetch(URL, tmp_path / "in", client=client)
    put(client, **{"photos/cat/a.png": b"A", "photos/later": b"l"})
    break_after_the_list(between, client, [Fault(answer=b"")] * 1000, monkeypatch)
    with pytest.raises(RemoteUnavailable, match="goes on where it stopped"):
        fetch(URL, tmp_path / "in", client=client)
    assert tree(tmp_path / "in") == FILES


def test_killed_in_the_middle_it_goes_on(client: Any, port: int, tmp_path: Path) -> None:
    objects = {f"photos/{at:03d}": os.urandom(20_000) for at in range(60)}
    put(client, **objects)
    with proxy(("127.0.0.1", port)) as between:
        between.faults = [Fault()] * 1 + [Fault(delay=0.05)] * 1000
        code = "import sys; from pathlib import Path; from tasks.s3 import download as s3; s3.THREADS = 1; s3.fetch(sys.argv[1], Path(sys.argv[2]))"
        environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{between.port}"}
        running = subprocess.Popen([sys.executable, "-c", code, URL, str(tmp_path / "in")], env=environment, cwd=Path(__file__).parents[2])
        journal = tmp_path / "in.fetching.jsonl"
        while running.poll() is None and not (journal.is_file() and journal.read_bytes().count(b"\n") >= 5):
            threading.Event().wait(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
    done = len(journal.read_text().splitlines())
    assert not (tmp_path / "in").exists() and 5 <= done < 60
    gone = json.loads(journal.read_text().splitlines()[0])["key"]
    client.delete_object(Bucket="bucket", Key=gone)  # what was fetched already, and is no longer there
    del objects[gone]
    with open(journal, "a") as file:
        file.write('{"name": "torn')
    found = fetch(URL, tmp_path / "in")
    assert found.objects == 59 and 60 - done - 1 <= found.downloaded <= 60 - done
    assert tree(tmp_path / "in") == {key.removeprefix("photos/"): data for key, data in objects.items()}
    assert beside(tmp_path / "in") == ["in", "in.snapshot.parquet", "in.snapshot.parquet.seal"]


def test_a_full_disk_is_seen_before_anything_is_read(client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(client, **THREE)
    monkeypatch.setattr(download, "SPARE", 2**60)
    with pytest.raises(MecaError, match=r"Expected [\d,]+ MiB of free space"):
        fetch(URL, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_clean_and_fetch_take_an_address(client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_folder(tmp_path / "in", split_folders=False)
    put(client, **{f"photos/{name}": data for name, data in tree(root).items()})
    assert cli.run(["inspect", URL]) == options.USAGE and "meca fetch s3://bucket/photos" in capsys.readouterr().err
    assert cli.run(["fetch", URL, "-o", "copy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == len(tree(root)) and tree(tmp_path / "copy") == tree(root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    assert cli.run(["fetch", URL, "-o", "full"]) == options.USAGE and tree(tmp_path / "full") == {"mine": b"x"}
    seen: dict[str, Any] = {}

    def clean(path: str, output: Path, params: Any, *_: object) -> dict[str, Any]:
        seen.update(files=tree(Path(path)), group=params.raw("ingest"))
        raise InputRefused("enough")

    monkeypatch.setattr("meca.verbs.clean", clean)
    assert cli.run(["clean", URL, "-o", "out"]) == options.REFUSED
    assert seen["files"] == tree(root) and seen["group"]["origin"] == URL


def test_the_source_of_a_workspace_is_brought(client: Any, tmp_path: Path) -> None:
    from tasks.dvc.workspace import create

    put(client, **THREE)
    workspace = create(tmp_path / "w", {"ingest.source": "data/source", "ingest.watch": "data/source", "ingest.origin": URL}, code=False)
    assert of_workspace(workspace) == workspace / "data" / "source"
    assert tree(workspace / "data" / "source") == FILES
    create(workspace, {"ingest.source": "data/source", "ingest.watch": "data/source", "ingest.origin": "s3://bucket/photos/cat/a.png"}, code=False)
    with pytest.raises(UsageError, match="is one object"):
        of_workspace(workspace)
    assert of_workspace(create(tmp_path / "none", {}, code=False)) is None


def test_only_an_address_and_a_dvc_file_are_brought(tmp_path: Path) -> None:
    (tmp_path / "alone.dvc").write_text("outs: []\n")
    with pytest.raises(InputRefused, match=r"alone\.dvc has 0 outs"):
        bring(str(tmp_path / "alone.dvc"), tmp_path / "unused")
    with pytest.raises(UsageError, match=r"Expected an s3:// address or a \.dvc file"):
        bring("https://example.org/x.zip", tmp_path / "unused")


def test_a_bucket_differs_until_it_was_fetched_and_each_difference_has_a_key_of_its_own(client, tmp_path):
    copy = tmp_path / "copy"
    put(client, **{"photos/a": b"one", "photos/b": b"two"})
    keys = [download.difference(URL, copy, client)]
    assert download.difference(URL, copy, client) == keys[0], "the same difference, seen twice"
    assert not copy.exists(), "looking fetches nothing"
    fetch(URL, copy, client=client)
    assert download.difference(URL, copy, client) is None
    put(client, **{"photos-2/c": b"a neighbour"})
    assert download.difference(URL, copy, client) is None
    for data in (b"six", b"two", b"six"):  # back and forth, of one size: each is a change
        put(client, **{"photos/b": data})
        keys.append(download.difference(URL, copy, client))
        assert download.difference(URL, copy, client) == keys[-1]
        fetch(URL, copy, client=client)
        assert download.difference(URL, copy, client) is None
    put(client, **{"photos/b": b"ten"})
    keys.append(download.difference(URL, copy, client))
    put(client, **{"photos/b": b"one"})  # of the same size, and nothing was fetched in between
    keys.append(download.difference(URL, copy, client))
    put(client, **{"photos/c": b"new"})
    keys.append(download.difference(URL, copy, client))
    client.delete_object(Bucket="bucket", Key="photos/c")
    client.delete_object(Bucket="bucket", Key="photos/a")
    keys.append(download.difference(URL, copy, client))
    assert None not in keys
    assert len(set(keys)) == len(keys) == 8


def test_a_copy_that_is_gone_differs_and_a_bucket_that_is_empty_is_refused(client, tmp_path):
    put(client, **{"photos/a": b"one"})
    fetch(URL, tmp_path / "copy", client=client)
    shutil.rmtree(tmp_path / "copy")
    assert download.difference(URL, tmp_path / "copy", client) is not None
    client.delete_object(Bucket="bucket", Key="photos/a")
    with pytest.raises(InputRefused, match="Nothing lies below"):
        download.difference(URL, tmp_path / "copy", client)


def test_a_workspace_without_an_origin_has_no_difference(client, tmp_path):
    from tasks.dvc.workspace import create
    from tasks.s3.origin import difference

    put(client, **{"photos/a": b"one"})
    assert difference(create(tmp_path / "local", code=False)) is None
    place = create(tmp_path / "fetched", {"ingest.origin": URL, "ingest.source": "bucket"}, code=False)
    assert difference(place) is not None
    of_workspace(place)
    assert difference(place) is None


# --- what somebody else left where a copy is made ----------------------------------------------------------------------


def as_a_supplier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MECA_STATE_DIR", str(tmp_path / "suppliers-secret"))


EVIL = b"evil"


def planted_copy(client: Any, folder: Path) -> None:
    """Leave a copy that says of its bytes that they are those of the bucket, as only whoever knows size and ETag can."""
    put(client, **{"photos/a": EVIL, "photos/b": b"more"})
    fetch(URL, folder, client=client)
    record = folder.with_name(f"{folder.name}.snapshot.parquet")
    put(client, **{"photos/a": b"good"})
    told = pq.read_table(record)
    etag = client.head_object(Bucket="bucket", Key="photos/a")["ETag"]
    pq.write_table(told.set_column(told.schema.get_field_index("etag"), "etag", [[etag, *told["etag"].to_pylist()[1:]]]), record)


@pytest.mark.parametrize("whose", ["mine", "of a supplier"])
def test_bytes_that_somebody_else_left_as_a_copy_are_not_used(
    client: Any, tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        if whose == "of a supplier":
            as_a_supplier(patch, tmp_path)
        planted_copy(client, tmp_path / "in")
        assert not download.is_copy(tmp_path / "in"), "it was changed by hand, in both cases"
    assert download.difference(URL, tmp_path / "in", client) is not None
    assert fetch(URL, tmp_path / "in", Progress(), client).downloaded == 2
    assert tree(tmp_path / "in") == {"a": b"good", "b": b"more"} and download.is_copy(tmp_path / "in")
    assert f"What is said of a copy in {tmp_path / 'in'} was not written by this user's meca; it is fetched anew." in capsys.readouterr().err


@pytest.mark.parametrize("whose", ["mine", "of a supplier", "of another bucket", "forged"])
def test_a_journal_is_believed_if_it_is_mine_alone(client: Any, tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(client, **{"photos/a": b"good"})
    (item,) = download._listed(client, URL, "bucket", "photos")  # pyright: ignore[reportPrivateUsage]
    (tmp_path / "in.fetching").mkdir()
    (tmp_path / "in.fetching" / "a").write_bytes(EVIL)
    journal, says = tmp_path / "in.fetching.jsonl", dataclasses.replace(item, sha256=hashlib.sha256(EVIL).hexdigest())
    with monkeypatch.context() as patch:
        if whose == "of a supplier":
            as_a_supplier(patch, tmp_path)
        bucket = "another" if whose == "of another bucket" else "bucket"
        with download._journal(journal, tmp_path / "in", bucket, [says]):  # pyright: ignore[reportPrivateUsage]
            pass
    if whose == "forged":
        journal.write_text(journal.read_text().replace('"version": ""', '"version": "1"'))
    fetch(URL, tmp_path / "in", client=client)
    assert tree(tmp_path / "in") == {"a": EVIL if whose == "mine" else b"good"}
    assert beside(tmp_path / "in") == ["in", "in.snapshot.parquet", "in.snapshot.parquet.seal", *["suppliers-secret"] * (whose == "of a supplier")]


@pytest.mark.parametrize("name", ["in", "in/a", "in.fetching", "in.fetching/cat"])
def test_a_link_in_a_copy_is_refused_and_what_it_leads_to_stays(client: Any, tmp_path: Path, name: str) -> None:
    put(client, **THREE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_text("mine")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=rf"{name} is a link, which meca does not follow"):
        fetch(URL, tmp_path / "in", client=client)
    assert tree(tmp_path / "mine") == {"a.png": b"mine"}


@pytest.mark.parametrize("kind", ["link", "second name", "pipe"])
@pytest.mark.parametrize("name", ["fetching.jsonl", "fetching.jsonl.tmp", "snapshot.parquet", "snapshot.parquet.tmp", "snapshot.parquet.seal"])
def test_records_are_not_written_through_what_has_their_name(client: Any, tmp_path: Path, name: str, kind: str) -> None:
    put(client, **THREE)
    (tmp_path / "mine").write_text("mine")
    if kind == "pipe":
        os.mkfifo(tmp_path / f"in.{name}")
    else:
        (Path.symlink_to if kind == "link" else Path.hardlink_to)(tmp_path / f"in.{name}", tmp_path / "mine")
    fetch(URL, tmp_path / "in", client=client)
    assert tree(tmp_path / "in") == FILES and (tmp_path / "mine").read_text() == "mine" and download.is_copy(tmp_path / "in")


def test_an_object_is_not_written_into_a_file_that_an_older_copy_shares(client: Any, tmp_path: Path) -> None:
    """A fetch links what has not changed; killed then, and with the object changed, it would write into the older copy."""
    put(client, **THREE)
    fetch(URL, tmp_path / "in", client=client)
    (tmp_path / "in.fetching" / "cat").mkdir(parents=True)
    os.link(tmp_path / "in/cat/a.png", tmp_path / "in.fetching/cat/a.png")
    os.link(tmp_path / "in/cat/a.png", tmp_path / "older")
    fetched = download._recorded(tmp_path / "in", "bucket")["cat/b.png"]  # pyright: ignore[reportPrivateUsage]
    with download._journal(tmp_path / "in.fetching.jsonl", tmp_path / "in", "bucket", [fetched]):  # pyright: ignore[reportPrivateUsage]
        pass
    put(client, **{"photos/cat/a.png": b"A"})
    assert fetch(URL, tmp_path / "in", client=client).downloaded == 1 and (tmp_path / "older").read_bytes() == b"a"


def test_a_folder_beside_a_planted_record_is_not_taken_for_a_copy(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, **THREE)
    with monkeypatch.context() as patch:
        as_a_supplier(patch, tmp_path)
        fetch(URL, tmp_path / "in", client=client)
    (tmp_path / "in" / "thesis").write_text("mine")
    assert cli.run(["fetch", URL, "-o", str(tmp_path / "in")]) == options.USAGE and (tmp_path / "in" / "thesis").read_text() == "mine"
    assert "but it holds other files; choose another --output" in capsys.readouterr().err
