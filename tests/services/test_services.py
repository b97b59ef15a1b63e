"""Each service does its work, asks for its password, and keeps it to itself."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError


def s3(env, **given):
    keys = {"aws_access_key_id": env["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"], **given}
    return boto3.client(
        "s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name=env["AWS_DEFAULT_REGION"], config=Config(retries={"max_attempts": 1}), **keys
    )


def run(program: str, env: dict[str, str]) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "PREFECT_"))}
    done = subprocess.run([sys.executable, "-c", program], env={**clean, **env}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def status_of(address: str, data: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(address, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_bucket_keeps_versions_and_refuses_to_overwrite_on_request(services):
    client, bucket = s3(services.env), services.env["MECA_S3_BUCKET"]
    first = client.put_object(Bucket=bucket, Key="a/b", Body=b"one")["VersionId"]
    second = client.put_object(Bucket=bucket, Key="a/b", Body=b"two")["VersionId"]
    assert first != second
    assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"two"
    assert client.get_object(Bucket=bucket, Key="a/b", VersionId=first)["Body"].read() == b"one"
    with pytest.raises(ClientError, match="PreconditionFailed") as refused:
        client.put_object(Bucket=bucket, Key="a/b", Body=b"three", IfNoneMatch="*")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert [found["Key"] for found in client.list_objects_v2(Bucket=bucket, Prefix="a/")["Contents"]] == ["a/b"]


def test_a_wrong_secret_opens_no_bucket(services):
    bucket = services.env["MECA_S3_BUCKET"]
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3(services.env, aws_secret_access_key="wrong").list_objects_v2(Bucket=bucket)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3(services.env, aws_access_key_id="meca:nobody").list_objects_v2(Bucket=bucket)
    assert status_of(f"{services.env['AWS_ENDPOINT_URL']}/{bucket}") in (401, 403, 412)


def test_mlflow_records_and_proxies_artifacts_to_a_bucket_that_its_client_has_no_key_for(services):
    without_keys = {name: value for name, value in services.env.items() if not name.startswith("AWS_")}
    program = """
import mlflow
mlflow.set_experiment("talk")
with mlflow.start_run() as run:
    mlflow.log_metric("acc", 0.5)
    mlflow.log_text("through the proxy", "note.txt")
text = mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt")
print(run.info.run_id, mlflow.get_run(run.info.run_id).data.metrics["acc"], text)
"""
    run_id, value, text = run(program, without_keys).split(" ", 2)
    assert (value, text) == ("0.5", "through the proxy")
    keys = [found["Key"] for found in s3(services.env).list_objects_v2(Bucket="mlflow").get("Contents", [])]
    assert any(key.endswith(f"{run_id}/artifacts/note.txt") for key in keys)


def test_mlflow_answers_nobody_without_the_password_or_under_another_name(services):
    address = f"{services.env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    assert status_of(address) == 401
    assert status_of(address, Authorization="Basic bWVjYTp3cm9uZw==") == 401
    assert status_of(address, Host="evil.example") == 403


def test_prefect_takes_a_flow_with_the_password_only(services):
    program = """
from prefect import flow
@flow(persist_result=False)
def hello():
    return 7
state = hello(return_state=True)
print(state.type.value, state.state_details.flow_run_id)
"""
    state, flow_run = run(program, services.env).split()
    assert state == "COMPLETED"
    import base64

    secret = base64.b64encode(services.env["PREFECT_API_AUTH_STRING"].encode()).decode()
    address = f"{services.env['PREFECT_API_URL']}/flow_runs/filter"
    assert status_of(address, b"{}") == 401
    assert status_of(address, b"{}", Authorization="Basic bWVjYTp3cm9uZw==") == 401
    request = urllib.request.Request(address, b"{}", {"Content-Type": "application/json", "Authorization": f"Basic {secret}"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        assert flow_run in {found["id"] for found in json.load(reply)}
