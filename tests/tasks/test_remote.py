"""The DVC remote on S3: what comes back is what was sent, through networks that fail and past an MD5 that two files share."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import cli
from meca.errors import MecaError
from meca.files import canonical_json, sha256_tree
from tasks import environment
from tasks.dvc import remote
from tasks.dvc.remote import RemoteUnavailable
from tasks.dvc.workspace import create
from tests.proxy import Fault, proxy
from tests.tasks.test_s3 import BUSY, tree

pytestmark = [pytest.mark.platform, pytest.mark.filterwarnings("default")]

# Two files of one MD5 (Wang and Yu, 2004): all that somebody needs who may write to a remote and has made the data.
GOOD = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a085125e8f7cdc99fd91dbdf280373c5b"
    "d8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
)
EVIL = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab50712467eab4004583eb8fb7f8955ad340609f4b30283e4888325f1415a085125e8f7cdc99fd91dbd7280373c5b"
    "d8823e3156348f5bae6dacd436c919c6dd53e23487da03fd02396306d248cda0e99f33420f577ee8ce54b67080280d1ec69821bcb6a8839396f965ab6ff72a70"
)
FILES = {"a.bin": GOOD, "b.bin": b"b" * 300_000, "c.bin": b"c"}


def make_workspace(folder: Path) -> Path:
    """Make a workspace of one stage whose result is here."""
    environment.prepare()
    place = create(folder / "w", {}, code=False)
    program = "import pathlib, shutil; shutil.copytree('source', 'out'); pathlib.Path('receipt.json').write_text(pathlib.Path('said').read_text())"
    (place / "stage.py").write_text(program)
    stage = {"cmd": "python stage.py --out out --receipt receipt.json", "deps": ["source", "said"], "outs": ["out", "receipt.json"]}
    (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"make": stage}}))
    (place / "source").mkdir()
    for name, data in FILES.items():
        (place / "source" / name).write_bytes(data)
    (place / "said").write_text(canonical_json({"stage": "make", "outputs": {"out": sha256_tree(place / "source")}}))
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=place, env=environment.child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each test has a copy of: DVC takes a second to make it."""
    return make_workspace(tmp_path_factory.mktemp("made"))


@pytest.fixture
def local(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose remote is a folder in it."""
    monkeypatch.delenv("MECA_REMOTE_URL", raising=False)
    environment.prepare()
    return Path(shutil.copytree(made, tmp_path / "w", symlinks=True))


@pytest.fixture
def workspace(local: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose remote is the bucket of the test."""
    monkeypatch.setenv("MECA_REMOTE_URL", "s3://bucket/remote")
    return local


def forget(workspace: Path) -> None:
    """Leave what a clone has: no results and no cache."""
    for name in ("out", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(workspace / name, ignore_errors=True)
    (workspace / "receipt.json").unlink(missing_ok=True)


def test_two_files_of_one_md5_are_told_apart(workspace: Path, client: Any, capsys: Any) -> None:
    assert GOOD != EVIL and hashlib.md5(GOOD).digest() == hashlib.md5(EVIL).digest()
    assert cli.run(["push", str(workspace)]) == 0
    forget(workspace)
    assert cli.run(["pull", str(workspace)]) == 0 and tree(workspace / "out") == FILES
    forget(workspace)
    name = hashlib.md5(GOOD).hexdigest()
    client.put_object(Bucket="bucket", Key=f"remote/files/md5/{name[:2]}/{name[2:]}", Body=EVIL)
    assert cli.run(["pull", str(workspace)]) == 2
    said = capsys.readouterr().err
    assert "out is not what stage make wrote: expected SHA-256" in said and "taken out of the workspace" in said
    assert not (workspace / "out").exists()


def test_an_output_without_a_receipt_is_not_believed(workspace: Path) -> None:
    assert remote.check(workspace) == []
    (workspace / "receipt.json").unlink()
    ((path, said),) = remote.check(workspace)
    assert path == workspace / "out" and said == "out has no receipt of its stage."


def test_an_object_with_other_bytes_is_refused_by_dvc_already(workspace: Path, client: Any) -> None:
    remote.push(workspace)
    forget(workspace)
    name = hashlib.md5(FILES["b.bin"]).hexdigest()
    client.put_object(Bucket="bucket", Key=f"remote/files/md5/{name[:2]}/{name[2:]}", Body=b"B" * 300_000)
    with pytest.raises(MecaError):
        remote.pull(workspace)
    assert not (workspace / "out" / "b.bin").exists()


def test_a_remote_of_the_workspace_is_verified_whatever_its_settings_say(local: Path, tmp_path: Path) -> None:
    workspace = local
    config = workspace / ".dvc" / "config"
    config.write_text(config.read_text().replace("verify = true", "verify = false"))
    assert "verify = false" in config.read_text()
    remote.push(workspace)
    forget(workspace)
    remote.pull(workspace)
    # Another object, and a receipt that fits it: so nothing but the MD5 of both says that they were changed.
    (tmp_path / "made").mkdir()
    for name, data in {**FILES, "b.bin": b"B" * 300_000}.items():
        (tmp_path / "made" / name).write_bytes(data)
    said = (workspace / "receipt.json").read_bytes()
    for data, other in (
        (FILES["b.bin"], b"B" * 300_000),
        (said, canonical_json({"stage": "make", "outputs": {"out": sha256_tree(tmp_path / "made")}}).encode()),
    ):
        name = hashlib.md5(data).hexdigest()
        place = workspace / "remote" / "files" / "md5" / name[:2] / name[2:]
        place.chmod(0o644)
        place.write_bytes(other)
    forget(workspace)
    with pytest.raises(MecaError, match="dvc pull failed"):
        remote.pull(workspace)
    assert not (workspace / "out" / "b.bin").exists() and not (workspace / "receipt.json").exists()


DENIED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FAULTS = {"busy": Fault(answer=BUSY), "hangs up": Fault(answer=b""), "denied": Fault(answer=DENIED)}


@pytest.mark.parametrize("fault", FAULTS)
def test_through_a_network_that_fails_nothing_is_half(fault: str, workspace: Path, port: int, monkeypatch: Any, caplog: Any) -> None:
    for name in ("dvc", "dvc_objects", "dvc_data"):  # its handlers hold a stream of the test before this one
        logging.getLogger(name).handlers.clear()
    secret = "canary31secret"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    address = os.environ["AWS_ENDPOINT_URL"]
    for act in (remote.push, remote.pull):
        with proxy(("127.0.0.1", port)) as between:
            between.faults = [Fault(), Fault(), *([FAULTS[fault]] * 3)]
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
            try:
                act(workspace)
            except MecaError as error:
                assert isinstance(error, RemoteUnavailable) or fault == "denied", error
                assert secret not in str(error)
        present = tree(workspace / "out") if (workspace / "out").exists() else {}
        assert all(FILES[name] == data for name, data in present.items())
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        act(workspace)
        assert tree(workspace / "out") == FILES
        if act is remote.push:
            forget(workspace)
    assert secret not in caplog.text


def test_two_that_push_at_once_push_one_set(workspace: Path, client: Any) -> None:
    shutil.copytree(workspace, other := workspace.with_name("other"), symlinks=True)
    program = "from flows.cli import main; main()"
    both = [
        subprocess.Popen([sys.executable, "-c", program, "push", str(place)], env=environment.child_environment(), stderr=subprocess.PIPE, text=True)
        for place in (workspace, other)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    forget(workspace)
    remote.pull(workspace)
    assert tree(workspace / "out") == FILES
