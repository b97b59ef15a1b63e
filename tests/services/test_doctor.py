"""`meca doctor` against real servers: what works, what does not, and what to do about it."""

import json
import os
import urllib.request

import pytest

from flows import cli, doctor
from infra.local.place import Place
from tasks import health
from tests.services.test_services import s3


@pytest.fixture
def ask(services, monkeypatch, tmp_path):
    """Return what the doctor says of each server, with some variables changed."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "PREFECT_", "MECA_REMOTE", "MECA_S3"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    # A machine that runs many tests at once is slower than one on which somebody asks.
    monkeypatch.setattr(health, "ANSWER", 20.0)
    monkeypatch.setattr(doctor, "DEADLINE", 200.0)

    def asked(**changes):
        for name, value in {**services.env, **changes}.items():
            monkeypatch.setenv(name, value)
        return {check["name"]: check for check in doctor._servers()}

    return asked


def test_everything_works_and_nothing_is_left_behind(services, ask, monkeypatch, capsys):
    monkeypatch.setenv("MECA_DEVICE", "cpu")
    ask()
    assert cli.run(["doctor"]) == 0
    told = capsys.readouterr()
    for line in ("ok  mlflow       client", "ok  prefect      client", "ok  s3           s3://meca at http://127.0.0.1"):
        assert line in told.out
    assert "warning" not in told.out and "next" not in told.out
    assert not [secret for secret in Place.of(services.folder).secrets.values() if secret in told.out + told.err]
    client = s3(services.env)
    versions = client.list_object_versions(Bucket="meca", Prefix="dvc/")
    assert not [found for kind in ("Versions", "DeleteMarkers") for found in versions.get(kind, []) if health.PROBE in found["Key"]]
    assert health.PROBE not in fetched(services, "MLFLOW", "/api/2.0/mlflow/registered-models/search")
    assert health.PROBE not in fetched(services, "PREFECT", "/variables/filter", b"{}")


def fetched(services, which, path, data=None):
    env = services.env
    login = env["PREFECT_API_AUTH_STRING"] if which == "PREFECT" else f"{env['MLFLOW_TRACKING_USERNAME']}:{env['MLFLOW_TRACKING_PASSWORD']}"
    address = (env["PREFECT_API_URL"] if which == "PREFECT" else env["MLFLOW_TRACKING_URI"]) + path
    request = urllib.request.Request(address, data, {"Content-Type": "application/json", "Authorization": health._basic(login)})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read().decode()


def test_a_wrong_password_is_told_from_a_missing_server(ask):
    found = ask(MLFLOW_TRACKING_PASSWORD="wr0ng", PREFECT_API_AUTH_STRING="meca:wr0ng", AWS_SECRET_ACCESS_KEY="wr0ng")
    assert [found[name]["ok"] for name in ("mlflow", "prefect", "s3")] == [False, False, False]
    assert "refuses the login" in found["mlflow"]["found"] and "MLFLOW_TRACKING_PASSWORD" in found["mlflow"]["next"]
    assert "refuses the login" in found["prefect"]["found"] and "PREFECT_API_AUTH_STRING" in found["prefect"]["next"]
    assert "SignatureDoesNotMatch" in found["s3"]["found"] and "AWS_SECRET_ACCESS_KEY" in found["s3"]["next"]
    assert "wr0ng" not in json.dumps(found)


def test_no_password_at_all_is_asked_for(ask, monkeypatch, services):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING"):
        services.env.pop(name)
    try:
        found = ask()
    finally:
        services.env = json.loads(services.command("env", "--json").stdout)
    assert "asks for a login" in found["mlflow"]["found"]
    assert "asks for a login" in found["prefect"]["found"]


def test_a_server_that_refuses_its_name_says_which_option_helps(ask, services):
    found = ask(MLFLOW_TRACKING_URI=services.env["MLFLOW_TRACKING_URI"].replace("127.0.0.1", "127.1"))
    assert "refuses to be called by this name" in found["mlflow"]["found"] or "does not let" in found["mlflow"]["found"]
    assert not found["mlflow"]["ok"]
    assert "--allowed-hosts" in found["mlflow"]["next"]


def test_a_bucket_that_is_missing_or_keeps_no_versions_is_named(ask, services):
    missing = ask(MECA_REMOTE_URL="s3://nowhere/dvc", MECA_S3_BUCKET="nowhere")
    assert not missing["s3"]["ok"] and "NoSuchBucket" in missing["s3"]["found"] and "Create the bucket" in missing["s3"]["next"]
    s3(services.env).create_bucket(Bucket="forgetful")
    forgetful = ask(MECA_REMOTE_URL="s3://forgetful", MECA_S3_BUCKET="forgetful")
    assert forgetful["s3"]["ok"] and "versioning is off" in forgetful["s3"]["warnings"][0]
    assert "Contents" not in s3(services.env).list_objects_v2(Bucket="forgetful")


def test_dvc_s_own_remote_is_examined_with_its_own_keys(ask, services, tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    remote = far\n['remote \"far\"']\n    url = s3://meca/far\n")
    (tmp_path / ".dvc" / "config.local").write_text(
        f"['remote \"far\"']\n    endpointurl = {services.env['AWS_ENDPOINT_URL']}\n    access_key_id = meca:meca\n    secret_access_key = 10%wr0ng\n"
    )
    found = ask(MECA_REMOTE_URL="", MECA_S3_BUCKET="", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert not found["s3"]["ok"] and "SignatureDoesNotMatch" in found["s3"]["found"]
    assert "verify is off for far" in doctor._dvc()["warnings"][0]
    assert "wr0ng" not in json.dumps([found, doctor._dvc()])


def test_servers_that_are_down_are_told_from_the_database_behind_them(ask, services, monkeypatch):
    with services.stopped("postgres"):
        found = ask()
        for name in ("mlflow", "prefect"):
            assert not found[name]["ok"] and "Its database does not answer" in found[name]["next"]
        assert found["s3"]["ok"]
    with services.stopped("s3"):
        found = ask()
        assert not found["s3"]["ok"] and "does not answer" in found["s3"]["found"] and "AWS_ENDPOINT_URL" in found["s3"]["next"]
        assert not found["mlflow"]["ok"] and "Its store of artifacts does not answer" in found["mlflow"]["next"]
        assert found["prefect"]["ok"]
    with services.paused("mlflow", "prefect", "s3"), monkeypatch.context() as hurried:
        hurried.setattr(health, "ANSWER", 3.0)
        found = ask()
        for name in ("mlflow", "prefect", "s3"):
            assert not found[name]["ok"] and "does not answer within 3 s" in found[name]["found"]
    assert all(check["ok"] for check in ask().values())
