"""infra/local can be told anything at any moment: twice, after a crash, on ports that others hold, by two at once."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg2
import pytest

from infra.local import postgres, process, s3
from infra.local.place import Place
from meca.errors import MecaError
from tests.services import conftest
from tests.services.conftest import ROOT, place


@pytest.fixture(scope="module")
def small():
    """A place with PostgreSQL alone, which starts in seconds."""
    with place("meca-small-") as found:
        found.start("postgres")
        yield found


def pids(found, name="postgres"):
    lines = json.loads(found.command("status", "--json", check=False).stdout)
    return next(line["pids"] for line in lines if line["service"] == name)


def query(found, text, database="mlflow", **given):
    known = Place.of(found.folder)
    words = {"user": "mlflow", "password": known.secrets["mlflow_database"], "dbname": database, **given}
    with contextlib.closing(psycopg2.connect(host="127.0.0.1", port=known.ports["postgres"], connect_timeout=10, **words)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute(text)
            return cursor.fetchall() if cursor.description else None


def test_started_twice_it_runs_once(small):
    before = pids(small)
    assert "postgres  runs already" in small.start("postgres")
    assert pids(small) == before != []


def test_a_database_opens_to_its_own_role_and_password_alone(small):
    assert query(small, "select current_user") == [("mlflow",)]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        query(small, "select 1", password="wrong")
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        query(small, "select 1", database="prefect")


def test_what_was_written_survives_a_crash(small):
    query(small, "create table if not exists kept as select 7 as number")
    before = pids(small)
    small.kill("postgres")
    assert small.status()["postgres"] == "stopped"
    small.start("postgres")
    assert pids(small) != before
    assert query(small, "select number from kept") == [(7,)]


def test_a_start_that_was_cut_short_is_completed(small):
    with contextlib.closing(
        psycopg2.connect(
            host="127.0.0.1", port=Place.of(small.folder).ports["postgres"], user="postgres", dbname="postgres",
            password=Place.of(small.folder).secrets["postgres"],
        )
    ) as connection:  # fmt: skip
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("drop database prefect")
    (small.folder / "run" / "postgres.complete").unlink()
    small.start("postgres")
    found = Place.of(small.folder)
    assert query(small, "select 1", "prefect", user="prefect", password=found.secrets["prefect_database"]) == [(1,)]


def test_a_cluster_that_was_half_made_is_made_anew():
    with place("meca-half-") as found:
        (found.folder / "postgres" / "data.new" / "base").mkdir(parents=True)
        (found.folder / "postgres" / "data.new" / "PG_VERSION").write_text("15\n")
        found.start("postgres")
        assert query(found, "select 1") == [(1,)]
        assert not (found.folder / "postgres" / "data.new").exists()
        assert not (found.folder / "postgres" / "password").exists()


def test_a_port_that_somebody_took_is_replaced_and_kept_from_then_on(small):
    port = Place.of(small.folder).ports["postgres"]
    small.stop("postgres")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        small.start("postgres")
        moved = Place.of(small.folder).ports["postgres"]
        assert moved != port
        assert query(small, "select 1") == [(1,)]
    small.restart("postgres")
    assert Place.of(small.folder).ports["postgres"] == moved


def test_a_record_of_another_process_is_no_reason_to_end_it(small):
    bystander = subprocess.Popen(["sleep", "60"])
    record = small.folder / "run" / "mlflow.json"
    try:
        for text in (json.dumps({"pid": bystander.pid, "started": 1, "fingerprint": ""}), json.dumps({"pid": bystander.pid}), '{"pid": 1', ""):
            record.write_text(text)
            assert small.status()["mlflow"] == "stopped"
            small.stop("mlflow")
            assert not record.exists()
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_whose_record_was_lost_is_found_and_ended(small):
    before = pids(small)
    (small.folder / "run" / "postgres.json").unlink()
    assert small.status()["postgres"] == "stopped"
    small.start("postgres")
    assert pids(small) != before
    left = {member.pid for member in process.members(small.folder)}
    assert not left & set(before)


def test_two_that_start_at_once_start_one(small):
    small.stop("postgres")
    command = [sys.executable, "-m", "infra.local", "--folder", str(small.folder), "start", "postgres", "--free-ports"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate(timeout=200) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert sorted("already" in out for out, _ in told) == [False, True]
    leaders = [member for member in process.members(small.folder) if member.cmdline()[:1] and "-D" in member.cmdline()]
    assert len(leaders) == 1


def test_a_server_sees_nothing_of_the_variables_of_whoever_starts_it(small, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-key-of-the-user")
    small.restart("postgres")
    found = psutil.Process(pids(small)[0]).environ()
    assert found[process.PLACE] == str(small.folder)
    assert "AWS_SECRET_ACCESS_KEY" not in found


def test_an_unknown_name_is_refused(small):
    refused = small.command("stop", "postgrss", check=False)
    assert refused.returncode == 4
    assert "Expected services out of postgres, s3, mlflow, prefect, got postgrss" in refused.stderr


def test_a_place_that_was_never_started_says_so(tmp_path):
    found = conftest.Services(tmp_path / "none")
    assert "start them first" in found.command("env", check=False).stderr
    assert found.command("status", check=False).returncode == 1
    assert "nothing runs" in found.command("stop").stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_a_folder_that_postgres_cannot_reach_is_named(tmp_path):
    tmp_path.chmod(0o700)
    refused = conftest.Services(tmp_path / "deep").command("start", "postgres", "--free-ports", check=False)
    assert refused.returncode == 2
    assert "can reach, because PostgreSQL does not run as root" in refused.stderr
    assert process.members(tmp_path / "deep") == []


def test_a_file_system_without_attributes_is_named(tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    found = Place(tmp_path)
    with pytest.raises(MecaError, match=r"Expected a file system with extended attributes .* keeps no extended attributes"):
        s3.prepare(found)


def test_without_postgresql_the_tests_are_skipped_and_make_integration_fails(monkeypatch):
    def missing():
        raise MecaError("Expected PostgreSQL 14 or newer")

    monkeypatch.setattr(postgres, "find", missing)
    monkeypatch.delenv("MECA_SERVICES_TESTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Expected PostgreSQL"), place("meca-never-"):
        pass
    monkeypatch.setenv("MECA_SERVICES_TESTS", "1")
    with pytest.raises(pytest.fail.Exception, match="Expected PostgreSQL"), place("meca-never-"):
        pass


def test_nothing_outlives_a_session_that_is_killed(tmp_path):
    note = tmp_path / "folder"
    program = f"""
import time
from pathlib import Path
from tests.services.conftest import place
with place("meca-killed-") as found:
    found.start("postgres")
    Path({str(note)!r}).write_text(str(found.folder))
    time.sleep(300)
"""
    session = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_for(note.exists, 120, session)
        folder = Path(note.read_text())
        assert process.members(folder) != []
    finally:
        session.send_signal(signal.SIGKILL)
        session.wait()
    wait_for(lambda: not folder.exists(), 120)
    # Not a moment later: PostgreSQL would end by itself within a minute, when it misses its folder.
    assert process.members(folder) == []


def wait_for(what, seconds, session=None):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline and (session is None or session.poll() is None)
        time.sleep(0.1)


def test_half_a_service_is_seen_and_mended(services):
    victim = process.members(services.folder, "s3-object")[0]
    victim.kill()
    victim.wait(10)
    assert services.status()["s3"] == "half"
    assert "s3        runs:" in services.start()
    assert services.status()["s3"] == "answers"


def test_what_is_paused_is_called_so_and_goes_on(services):
    with services.paused("mlflow"):
        assert services.status() == {"postgres": "answers", "s3": "answers", "mlflow": "paused", "prefect": "answers"}
    assert services.status()["mlflow"] == "answers"


def test_what_stands_on_a_service_that_moved_is_started_again(services):
    before = pids(services, "mlflow"), pids(services, "s3")
    port = Place.of(services.folder).ports["postgres"]
    services.stop("postgres")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        services.start()
    assert set(services.status().values()) == {"answers"}
    assert pids(services, "mlflow") != before[0]
    assert pids(services, "s3") == before[1]


def test_no_secret_stands_in_a_command_line_a_log_or_an_open_file(services):
    secrets = set(Place.of(services.folder).secrets.values())
    lines = [" ".join(member.cmdline()) for member in process.members(services.folder)]
    assert len(lines) > 7
    assert not [line for line in lines if any(secret in line for secret in secrets)]
    for log in (services.folder / "logs").iterdir():
        assert not any(secret in log.read_text(errors="replace") for secret in secrets), log
    holding = []
    for file in services.folder.rglob("*"):
        if file.is_file() and "node" not in file.parts and "data" not in file.parts:
            if any(secret in file.read_text(errors="replace") for secret in secrets):
                holding.append(file.name)
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    # Nor can other users of the machine read objects, tables, models or logs.
    for folder in ("logs", "run", "s3", "mlflow", "prefect", "postgres/data"):
        assert stat.S_IMODE((services.folder / folder).stat().st_mode) == 0o700, folder
    assert {"secrets.json", "client.env", "auth.ini", "proxy.conf", "swift.conf"} <= set(holding)


def test_the_file_for_the_shell_says_what_env_says(services):
    told = subprocess.run(
        ["/bin/sh", "-c", f"set -a; . {services.folder}/client.env; env"], env={"PATH": os.defpath}, capture_output=True, text=True, check=True
    ).stdout
    found = dict(line.split("=", 1) for line in told.splitlines())
    assert {name: found[name] for name in services.env} == services.env
    told = subprocess.run(
        ["/bin/sh", "-c", f'eval "$({sys.executable} -m infra.local --folder {services.folder} env)"; env'],
        cwd=ROOT, env={"PATH": os.defpath}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert {name: dict(line.split("=", 1) for line in told.splitlines())[name] for name in services.env} == services.env
