"""A set on its way into a bucket: readers see the one before or the new one, whatever happens in between."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flows import cli
from flows.cli import options
from meca.errors import Inconclusive, InputRefused, MecaError, UsageError
from meca.release.signing import sign
from meca.release.verification import verify
from tasks.dvc.remote import RemoteUnavailable
from tasks.s3 import download, upload
from tasks.s3.origin import bring
from tasks.s3.upload import publish
from tests.making import make_cleaned, make_folder
from tests.proxy import Fault, proxy
from tests.tasks.buckets import connect
from tests.tasks.test_s3 import BUSY, SHORT, tree

URL = "s3://bucket/sets/birds"
POINTER = "sets/birds/current.json"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two published sets of the same data; of the second, a sample was removed."""
    root = tmp_path_factory.mktemp("sets")
    source = make_folder(root / "in")
    return make_cleaned(root / "one", source, {0: ("poisoned", "relabel", 2)}), make_cleaned(root / "two", source, {0: ("poisoned", "remove", None)})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


def keys(client: Any) -> set[str]:
    return {item["Key"] for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket") for item in page.get("Contents", ())}


def read(client: Any, place: Path) -> dict[str, bytes]:
    """Return what a reader gets."""
    found = download.fetch(URL, place, client=client)
    assert found.version and found.path == place and verify(place) == []
    return tree(place)


class Breaking:
    """A client whose n-th write fails, as when the process is killed there; and all after it."""

    def __init__(self, client: Any, n: int) -> None:
        self.client, self.left = client, n

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.client, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            self.left -= name in ("put_object", "upload_file")
            if self.left < 0:
                raise ConnectionError("gone")
            return call(*arguments, **options)

        return counted if callable(call) else call


def test_a_set_is_published_once_and_read_back_as_it_was(client: Any, sets: tuple[Path, Path], tmp_path: Path) -> None:
    first = publish(sets[0], URL)
    n = len(tree(sets[0]))
    assert (first.url, first.previous, first.objects, first.sent, first.moved) == (f"s3://bucket/{POINTER}", None, n, n, True)
    assert keys(client) == {POINTER, f"sets/birds/{first.version}.json", *(f"sets/birds/{first.version}/{name}" for name in tree(sets[0]))}
    assert read(client, tmp_path / "copy") == tree(sets[0])
    pointer = client.get_object(Bucket="bucket", Key=POINTER)["Body"].read()
    again = publish(sets[0], URL)
    assert (again.version, again.sent, again.moved, again.guarded) == (first.version, 0, False, None)
    assert client.get_object(Bucket="bucket", Key=POINTER)["Body"].read() == pointer


def test_a_new_version_leaves_the_old_one_and_shares_what_is_the_same(client: Any, sets: tuple[Path, Path], tmp_path: Path) -> None:
    old = publish(sets[0], URL)
    read(client, tmp_path / "copy")
    new = publish(sets[1], URL)
    assert new.previous == old.version != new.version and new.moved
    assert json.loads(client.get_object(Bucket="bucket", Key=POINTER)["Body"].read())["previous"] == old.version
    found = download.fetch(URL, tmp_path / "copy")
    same = sum(tree(sets[0]).get(name) == data for name, data in tree(sets[1]).items())
    assert tree(tmp_path / "copy") == tree(sets[1]) and found.downloaded == found.objects - same < found.objects
    assert download.fetch(URL, tmp_path / "copy").downloaded == 0
    assert download.fetch(f"s3://bucket/sets/birds/{old.version}", tmp_path / "old").version is None and tree(tmp_path / "old") == tree(sets[0])
    assert publish(sets[0], URL).sent == 0 and read(client, tmp_path / "copy") == tree(sets[0])


def test_wherever_it_stops_the_old_set_is_there_and_the_same_command_goes_on(client: Any, sets: tuple[Path, Path], tmp_path: Path) -> None:
    publish(sets[0], URL)
    for n in itertools.count():
        try:
            publish(sets[1], URL, client=Breaking(client, n))
        except RemoteUnavailable:
            assert read(client, tmp_path / "copy") == tree(sets[0])
            continue
        break
    # What one try has sent the next does not send again; the last three are the list, the try of a condition, and the pointer.
    assert 3 <= n < len(tree(sets[1])) and read(client, tmp_path / "copy") == tree(sets[1])


def test_wherever_the_first_one_stops_there_is_no_set(client: Any, sets: tuple[Path, Path], tmp_path: Path) -> None:
    for n in range(len(tree(sets[0])) + 3):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        for key in keys(client):
            client.delete_object(Bucket="bucket", Key=key)
        with pytest.raises(RemoteUnavailable, match="goes on where it stopped"):
            publish(sets[0], URL, client=Breaking(client, n))
        assert POINTER not in keys(client)
    assert publish(sets[0], URL).sent == 0 and read(client, tmp_path / "copy") == tree(sets[0])


DENIED = b"<Error><Code>AccessDenied</Code></Error>"
FAULTS = {
    "busy": Fault(answer=BUSY),
    "short": Fault(answer=SHORT),
    "hangs up": Fault(answer=b""),
    "cut in the head": Fault(cut=5),
    "cut in the body": Fault(cut=900),
    "changed on the way": Fault(corrupt=600),
    "late": Fault(delay=4.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_network_that_fails_now_and_then_is_no_obstacle(fault: str, client: Any, port: int, sets: tuple[Path, Path], tmp_path: Path) -> None:
    with proxy(("127.0.0.1", port)) as between:
        breaking = connect(between.port)
        breaking.meta.events.register("before-send.s3", lambda request, **_: request.headers.update({"Connection": "close"}))
        between.faults = [Fault(), FAULTS[fault], Fault(), Fault(), FAULTS[fault]]
        try:
            publish(sets[0], URL, client=breaking)
        except MecaError as error:  # what botocore gives up after two tries here
            assert isinstance(error, RemoteUnavailable) and POINTER not in keys(client)
            publish(sets[0], URL, client=breaking)
        assert between.connections > len(tree(sets[0]))
    assert read(client, tmp_path / "copy") == tree(sets[0])


def test_a_key_that_is_withdrawn_midway_leaves_the_old_set(client: Any, port: int, sets: tuple[Path, Path], tmp_path: Path) -> None:
    publish(sets[0], URL)
    denied = Fault(answer=b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(DENIED), DENIED))
    for n in (1, 4, 9):
        with proxy(("127.0.0.1", port)) as between:
            withdrawn = connect(between.port)
            withdrawn.meta.events.register("before-send.s3", lambda request, **_: request.headers.update({"Connection": "close"}))
            between.faults = [Fault()] * n + [denied] * 500
            with pytest.raises(InputRefused, match=r"may not be written with these credentials \(AccessDenied\)"):
                publish(sets[1], URL, client=withdrawn)
        assert read(client, tmp_path / "copy") == tree(sets[0])


class Forgetful:
    """A server that keeps other bytes than it was sent: once for each object, or always."""

    def __init__(self, client: Any, always: bool) -> None:
        self.client, self.always, self.seen = client, always, set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def put_object(self, **options: Any) -> Any:
        key = options["Key"]
        if "/data/" in key and (self.always or key not in self.seen):
            self.seen.add(key)
            options |= {"Body": options["Body"][:-1] + b"?", "ContentMD5": ""}
            del options["ContentMD5"]
        return self.client.put_object(**options)


def test_what_does_not_read_back_is_sent_again_and_then_refused(client: Any, sets: tuple[Path, Path], tmp_path: Path) -> None:
    publish(sets[0], URL, client=Forgetful(client, always=False))
    assert read(client, tmp_path / "copy") == tree(sets[0])
    with pytest.raises(MecaError, match="does not read back as it was sent; the pointer stays"):
        publish(sets[1], URL, client=Forgetful(client, always=True))
    assert read(client, tmp_path / "copy") == tree(sets[0])


class Between:
    """A client that lets something happen right before the pointer is written; without conditions where `ignores` says so."""

    def __init__(self, client: Any, action: Any, ignores: bool = False, answers: str = "") -> None:
        self.client, self.action, self.ignores, self.answers = client, action, ignores, answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def put_object(self, **options: Any) -> Any:
        conditions = {"IfMatch", "IfNoneMatch"} & set(options)
        if conditions and self.answers:
            raise ClientError({"Error": {"Code": self.answers}, "ResponseMetadata": {"HTTPStatusCode": 501}}, "PutObject")
        if self.ignores:
            options = {key: value for key, value in options.items() if key not in conditions}
        if self.action and (options["Key"] == POINTER or (conditions and self.ignores)):
            action, self.action = self.action, None
            action()
        return self.client.put_object(**options)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("ignores", [False, True])
def test_of_two_that_publish_at_once_one_wins_and_the_other_is_told(
    first: bool,
    ignores: bool,
    client: Any,
    sets: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    if not first:
        publish(make_cleaned(tmp_path, make_folder(tmp_path / "in", per_class=3), {}), URL)
    with pytest.raises(MecaError, match=r"was moved by somebody else meanwhile: it named .* and names .* now"):
        publish(sets[0], URL, client=Between(client, lambda: publish(sets[1], URL), ignores))
    assert read(client, tmp_path / "copy") == tree(sets[1])
    together = publish(sets[0], URL, client=Between(client, lambda: publish(sets[0], URL), ignores)) if not ignores else publish(sets[0], URL)
    assert together.moved and read(client, tmp_path / "copy") == tree(sets[0])


@pytest.mark.parametrize(("ignores", "answers"), [(True, ""), (False, "NotImplemented")])
def test_a_server_without_conditions_is_named_as_one(ignores: bool, answers: str, client: Any, sets: tuple[Path, Path], tmp_path: Path) -> None:
    assert publish(sets[0], URL, client=Between(client, None, ignores, answers)).guarded is False
    assert publish(sets[1], URL).guarded is True and read(client, tmp_path / "copy") == tree(sets[1])


def test_an_upload_in_parts_that_fails_leaves_no_parts(client: Any, port: int, sets: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(upload, "LARGE", 5 * 2**20)
    large = shutil.copytree(sets[0], tmp_path / "large")
    (large / "report.html").write_bytes(b"x" * (11 * 2**20))

    def withheld(request: Any, **_: Any) -> None:
        if "partNumber=3" in request.url:
            raise ConnectionError("gone")

    failing = connect(port)
    failing.meta.events.register("before-send.s3.UploadPart", withheld)
    with pytest.raises(RemoteUnavailable):
        publish(large, URL, client=failing)
    assert not client.list_multipart_uploads(Bucket="bucket").get("Uploads") and POINTER not in keys(client)
    left = client.create_multipart_upload(Bucket="bucket", Key="sets/birds/left")
    other = client.create_multipart_upload(Bucket="bucket", Key="other/left")
    monkeypatch.setattr(upload, "STALE", 10**12)  # the server dates all uploads to 2010
    publish(large, URL)
    assert {u["UploadId"] for u in client.list_multipart_uploads(Bucket="bucket")["Uploads"]} == {left["UploadId"], other["UploadId"]}
    monkeypatch.setattr(upload, "STALE", -(10**9))
    publish(large, URL)
    assert {u["UploadId"] for u in client.list_multipart_uploads(Bucket="bucket")["Uploads"]} == {other["UploadId"]}
    assert read(client, tmp_path / "copy") == tree(large)


def test_a_pointer_or_a_list_that_somebody_changed_is_refused(client: Any, sets: tuple[Path, Path], tmp_path: Path) -> None:
    import hashlib

    version = publish(sets[0], URL).version
    index = json.loads(client.get_object(Bucket="bucket", Key=f"sets/birds/{version}.json")["Body"].read())

    def point(files: Any, claimed: str = "") -> None:
        data = json.dumps({"schema": download.INDEX, "files": files}).encode()
        name = claimed or hashlib.sha256(data).hexdigest()
        client.put_object(Bucket="bucket", Key=f"sets/birds/{name}.json", Body=data)
        client.put_object(Bucket="bucket", Key=POINTER, Body=json.dumps({"schema": download.POINTED, "version": name}).encode())

    line = index["files"][0]
    for files, claimed, sentence in [
        (index["files"][1:], version, "somebody changed it"),
        ([{**line, "name": "../evil"}], "", "not one of meca"),
        ([line, line], "", "not one of meca"),
        ([{**line, "size": -1}], "", "not one of meca"),
        ([{**line, "sha256": "x"}], "", "not one of meca"),
        ("no list", "", "not one of meca"),
    ]:
        point(files, claimed)
        with pytest.raises(InputRefused, match=sentence):
            download.fetch(URL, tmp_path / "copy")
    changed = index["files"][:1]
    point([{**changed[0], "sha256": "0" * 64}])
    name = json.loads(client.get_object(Bucket="bucket", Key=POINTER)["Body"].read())["version"]
    client.put_object(Bucket="bucket", Key=f"sets/birds/{name}/{changed[0]['name']}", Body=b"x" * changed[0]["size"])
    with pytest.raises(RemoteUnavailable, match="is not the file that the pointer's list names"):
        download.fetch(URL, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    client.put_object(Bucket="bucket", Key=POINTER, Body=b'{"mine": 1}')
    with pytest.raises(UsageError, match="no pointer of meca"):
        publish(sets[0], URL)
    assert "current.json" in tree(download.fetch(URL, tmp_path / "data").path), "a file that happens to have the name is a file"


def test_what_is_no_good_set_is_not_published(client: Any, sets: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    broken = shutil.copytree(sets[0], tmp_path / "broken")
    (broken / "summary.json").write_text("{}")
    assert cli.run(["publish", str(broken), URL]) == options.REFUSED and "summary.json was changed" in capsys.readouterr().err
    held = make_cleaned(tmp_path / "held", make_folder(tmp_path / "in"), {}, "inconclusive")
    with pytest.raises(Inconclusive, match="the pointer stays"):
        publish(held, URL)
    assert cli.run(["publish", str(tmp_path), URL]) == options.USAGE and cli.run(["publish", str(sets[0]), "https://bucket"]) == options.USAGE
    assert keys(client) == set()


def test_the_commands_publish_fetch_verify_and_clean(client: Any, sets: tuple[Path, Path], tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    key = Ed25519PrivateKey.generate()
    public = tmp_path / "key.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert cli.run(["publish", str(sets[0]), URL, "--key", str(public)]) == options.REFUSED and "not signed" in capsys.readouterr().err
    sign(sets[0], key, tmp_path / "statement.json")
    assert cli.run(["publish", str(sets[0]), URL, "--key", str(public), "--attestation", "statement.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moved"] is True
    for url, folder in ((URL, "a"), (f"{URL}/current.json", "b")):
        assert cli.run(["fetch", url, "-o", folder]) == 0 and "a published set" in capsys.readouterr().out
        assert cli.run(["verify", folder, "--key", str(public)]) == 0 and "signed with the given key" in capsys.readouterr().out
    data = bring(URL, tmp_path / "brought")
    assert data == tmp_path / "brought" / "data" and tree(data) == tree(sets[0] / "data")


def test_no_message_holds_the_secret_key(client: Any, port: int, sets: tuple[Path, Path], monkeypatch: Any, capfd: Any) -> None:
    secret = "canary77secret"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with proxy(("127.0.0.1", port)) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
        for fault in FAULTS.values():
            between.faults = [Fault(answer=fault.answer or b"", cut=fault.cut)] * 60
            assert cli.run(["publish", str(sets[0]), URL]) in (2, 4)  # 4: a short answer is no pointer
    said = capfd.readouterr()
    assert "could not be written" in said.err and secret not in said.err + said.out
