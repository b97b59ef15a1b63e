"""Nothing reports home, and importing the glue loads no platform."""

import socket
import subprocess
import sys

import pytest

from tasks import environment


def test_what_the_user_has_set_wins(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    child = environment.child_environment()
    assert child["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert child["DO_NOT_TRACK"] == "true"  # MLflow does not understand 1
    assert child["PATH"].startswith(str(sys.prefix))


def test_records_go_to_the_workspace_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert environment.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert environment.tracking_uri(tmp_path) == "http://127.0.0.1:5000"


def test_the_limit_of_the_gpu_is_this_hosts_unless_named(monkeypatch):
    monkeypatch.delenv("MECA_GPU_LIMIT", raising=False)
    assert environment.gpu_limit() == f"gpu:{socket.gethostname()}"
    monkeypatch.setenv("MECA_GPU_LIMIT", "gpu:shared")
    assert environment.gpu_limit() == "gpu:shared"
    monkeypatch.setenv("MECA_GPU_LIMIT", "none")
    assert environment.gpu_limit() is None


GLUE = (
    "environment",
    "dvc.stage",
    "mlflow.tracking",
    "dvc.remote",
    "dvc.tracked",
    "dvc.objects",
    "dvc.workspace",
    "prefect.slots",
    "prefect.server",
    "prefect.summary",
    "mlflow.figures",
    "mlflow.serving",
    "dvc.closure",
    "mlflow.comparison",
    "mlflow.registry",
    "s3.upload",
    "s3.download",
    "s3.origin",
    "prefect.notify",
    "prefect.dead_runs",
)
IMPORT = """
import importlib, sys
heavy = {"prefect", "mlflow", "dvc", "torch", "boto3", "matplotlib"}
for name in sys.argv[1:]:
    importlib.import_module(f"tasks.{name}")
    print(name, *sorted(heavy & set(sys.modules)))
"""


def test_importing_the_glue_loads_no_platform_and_no_torch():
    done = subprocess.run([sys.executable, "-c", IMPORT, *GLUE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(GLUE)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("http://host:5000/path", "http://host:5000/path"),
        ("API request to https://me:hidden@host/api failed", "API request to https://host/api failed"),
        ("at postgresql://me:hid@den@host/db.", "at postgresql://host/db."),
        ("https://hidden@host and s3://bucket/key?X-Signature=hidden", "https://host and s3://bucket/key"),
        ("exceeded with url: /?token=hidden/api (Caused by 'x')", "exceeded with url: / (Caused by 'x')"),
        ('told "http://host/?a=hidden&b=hidden" so', 'told "http://host/" so'),
        ("mail somebody@host? yes", "mail somebody@host? yes"),
        ("http://host/a then me@host", "http://host/a then me@host"),
    ],
)
def test_no_address_keeps_its_secrets(text, public):
    assert environment.without_secrets(text) == public
