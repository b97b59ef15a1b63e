"""A server that speaks S3, in memory, and an empty bucket on it."""

import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.tasks.buckets import connect


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    from moto.server import ThreadedMotoServer  # half a second, which a worker that only collects does without

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def client(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = connect(port)
    made.create_bucket(Bucket="bucket")
    yield made
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")).close()
