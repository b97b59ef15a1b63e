"""Sets and results in a real S3 server (Swift): published behind one pointer, pushed and pulled, through crashes of it."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from meca.errors import InputRefused, MecaError
from meca.release.verification import verify
from tasks import environment
from tasks.dvc import remote
from tasks.dvc.remote import RemoteUnavailable
from tasks.s3 import download, upload
from tasks.s3.upload import publish
from tests.making import make_cleaned, make_folder
from tests.tasks import test_remote
from tests.tasks.test_s3 import tree

pytestmark = [pytest.mark.filterwarnings("default")]

PROGRAM = "from flows.cli import main; main()"


@pytest.fixture
def url(services: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Return an address of this test's own, with the variables that lead to it set."""
    environment.prepare()
    for name, value in services.env.items():
        if name.startswith(("AWS_", "MECA_")):
            monkeypatch.setenv(name, value)
    return f"s3://{services.env['MECA_S3_BUCKET']}/{tmp_path.name}-{time.time_ns()}"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sets")
    source = make_folder(root / "in")
    return make_cleaned(root / "one", source, {0: ("poisoned", "relabel", 2)}), make_cleaned(root / "two", source, {0: ("poisoned", "remove", None)})


def read(url: str, place: Path) -> dict[str, bytes]:
    found = download.fetch(url, place)
    assert found.version and verify(place) == []
    return tree(place)


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], env=environment.child_environment(), stdout=-1, stderr=-1, text=True)


def test_a_set_goes_there_and_comes_back(url, sets, tmp_path):
    first = publish(sets[0], url)
    assert first.moved and first.guarded is True, "Swift knows If-None-Match"
    assert read(url, tmp_path / "copy") == tree(sets[0])
    assert publish(sets[0], url).moved is False
    second = publish(sets[1], url)
    assert second.moved and second.previous == first.version and second.guarded is False, "and not If-Match on writes"
    assert read(url, tmp_path / "copy") == tree(sets[1])


def test_of_two_publishers_at_once_each_reader_sees_a_whole_set(url, sets, tmp_path):
    publish(make_cleaned(tmp_path / "old", make_folder(tmp_path / "in", per_class=3), {}), url)
    before = read(url, tmp_path / "copy")
    both = [start("publish", str(each), url, "--json") for each in sets]
    seen = []
    while any(process.poll() is None for process in both):
        seen.append(read(url, tmp_path / "copy"))
    said = [process.communicate() for process in both]
    codes = [process.returncode for process in both]
    allowed = [before, *map(tree, sets)]
    assert all(each in allowed for each in seen) and set(codes) <= {0, 2} and 0 in codes, said
    assert all("moved by somebody else" in err for code, (_, err) in zip(codes, said, strict=True) if code)
    assert read(url, tmp_path / "copy") in allowed[1:]


@pytest.mark.parametrize("seconds", [0.0, 0.4, 0.8])
def test_a_publisher_that_is_killed_leaves_the_old_set_and_the_next_goes_on(seconds, url, sets, tmp_path, monkeypatch):
    publish(sets[0], url)
    bucket, prefix = download.split(url)
    running = start("publish", str(sets[1]), url)
    known, deadline = len(keys(bucket, prefix)), time.monotonic() + 60
    while running.poll() is None and len(keys(bucket, prefix)) == known and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(seconds)
    running.kill()
    running.communicate()
    assert read(url, tmp_path / "copy") in (tree(sets[0]), tree(sets[1]))
    assert publish(sets[1], url).version and read(url, tmp_path / "copy") == tree(sets[1])


def keys(bucket: str, prefix: str) -> set[str]:
    pages = download.connect().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"] for page in pages for item in page.get("Contents", ())}


def test_a_server_that_crashes_midway_leaves_the_old_set(url, sets, tmp_path, services, monkeypatch):
    publish(sets[0], url)
    real, left = upload._Publication._send, [4]

    def dies(self: Any, item: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            services.kill("s3")
        real(self, item)

    monkeypatch.setattr(upload._Publication, "_send", dies)
    with pytest.raises(RemoteUnavailable, match="goes on where it stopped"):
        publish(sets[1], url)
    monkeypatch.undo()
    for name, value in services.env.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    services.start("s3")
    assert read(url, tmp_path / "copy") == tree(sets[0])
    publish(sets[1], url)
    assert read(url, tmp_path / "copy") == tree(sets[1])


def test_a_server_that_hangs_is_given_up(url, sets, services):
    client = boto3.client("s3", config=Config(connect_timeout=2, read_timeout=2, retries={"mode": "standard", "max_attempts": 2}))
    with services.paused("s3"):
        started = time.monotonic()
        with pytest.raises(RemoteUnavailable):
            publish(sets[0], url, client=client)
        assert time.monotonic() - started < 30
    assert publish(sets[0], url, client=client).moved


def test_a_wrong_secret_is_a_refusal_that_does_not_show_it(url, sets, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary55wrong")
    with pytest.raises(InputRefused, match="may not be written with these credentials") as refusal:
        publish(sets[0], url)
    assert "canary55wrong" not in str(refusal.value)


def test_a_large_object_goes_in_parts_and_leaves_none_behind(url, sets, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(upload, "LARGE", 5 * 2**20)
    large = shutil.copytree(sets[0], tmp_path / "large")
    (large / "report.html").write_bytes(os.urandom(11 * 2**20))
    publish(large, url)
    assert read(url, tmp_path / "copy") == tree(large)
    (large / "report.html").write_bytes(os.urandom(11 * 2**20))
    failing = download.connect()

    def withheld(request: Any, **_: Any) -> None:
        if "partNumber=3" in request.url:
            raise ConnectionError("gone")

    failing.meta.events.register("before-send.s3.UploadPart", withheld)
    with pytest.raises(RemoteUnavailable):
        publish(large, url, client=failing)
    bucket, prefix = download.split(url)
    assert not download.connect().list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads")
    publish(large, url)
    assert read(url, tmp_path / "copy") == tree(large)


@pytest.fixture
def workspace(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = test_remote.make_workspace(tmp_path)
    monkeypatch.setenv("MECA_REMOTE_URL", f"{url}/remote")
    return made


def test_what_was_pushed_comes_back_and_another_file_of_the_same_md5_does_not(workspace, url, services):
    import hashlib

    remote.push(workspace)
    test_remote.forget(workspace)
    remote.pull(workspace)
    assert tree(workspace / "out") == test_remote.FILES
    test_remote.forget(workspace)
    name = hashlib.md5(test_remote.GOOD).hexdigest()
    bucket, prefix = download.split(url)
    download.connect().put_object(Bucket=bucket, Key=f"{prefix}/remote/files/md5/{name[:2]}/{name[2:]}", Body=test_remote.EVIL)
    with pytest.raises(MecaError, match="is not what stage make wrote"):
        remote.pull(workspace)
    assert not (workspace / "out").exists()


def test_a_push_that_is_cut_off_is_finished_by_the_next(workspace, services):
    with services.stopped("s3"), pytest.raises(RemoteUnavailable):
        remote.push(workspace)
    pushing = start("push", str(workspace))
    threading.Event().wait(3)
    services.kill("s3")
    pushing.communicate(timeout=200)
    services.start("s3")
    remote.push(workspace)
    test_remote.forget(workspace)
    remote.pull(workspace)
    assert tree(workspace / "out") == test_remote.FILES


def test_the_pointer_says_what_it_names(url, sets):
    done = start("publish", str(sets[0]), url, "--json")
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    bucket, prefix = download.split(url)
    pointer = json.loads(download.read_small(download.connect(), bucket, f"{prefix}/current.json"))
    summary = json.loads((sets[0] / "summary.json").read_text())
    assert pointer["version"] == json.loads(out)["version"] and pointer["sanitized_sha256"] == summary["sanitized_sha256"]
