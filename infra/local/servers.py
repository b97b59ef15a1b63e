"""MLflow's and Prefect's servers: on PostgreSQL, behind a password, with nothing reported home."""

import sys
from pathlib import Path

import httpx

from infra.local.place import HOST, Place, write_private
from infra.local.postgres import database
from infra.local.process import Program
from infra.settings import REGION, USER, mlflow_auth, mlflow_server, prefect_server
from infra.stores import MODELS_BUCKET
from meca.errors import MecaError

__all__ = ["answers", "mlflow", "prefect", "prepare_mlflow"]


def prepare_mlflow(place: Place) -> None:
    """Write the configuration of its basic auth, which knows no variable for its database.

    Raises:
        MecaError: The environment lacks what the server needs beside its clients.
    """
    from importlib.util import find_spec

    if missing := [package for module, package in (("psycopg2", "psycopg2-binary"), ("flask_wtf", "flask-wtf")) if not find_spec(module)]:
        raise MecaError(f"Expected {' and '.join(missing)} beside MLflow for its server, found none; `make install` brings them (extra `services`).")
    write_private(_auth_file(place), _auth(place))


def mlflow(place: Place) -> list[Program]:
    """Return the tracking server. Artifacts pass through it, so clients need no key for the bucket."""
    port = place.ports["mlflow"]
    variables = {
        **mlflow_server(
            database=database(place, "psycopg2", "mlflow"),
            auth_file=str(_auth_file(place)),
            artifacts=f"s3://{MODELS_BUCKET}/artifacts",
            hosts=f"{HOST}:{port},localhost:{port}",
            login=(USER, place.secrets["mlflow"]),
            session=place.secrets["mlflow_session"],
        ),
        "MLFLOW_S3_ENDPOINT_URL": f"http://{place.address('s3-proxy')}",
        "AWS_ACCESS_KEY_ID": f"{USER}:mlflow",
        "AWS_SECRET_ACCESS_KEY": place.secrets["s3_mlflow"],
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    argv = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", HOST, "--port", str(port), "--workers", "1"]
    return [Program("mlflow", place.folder, argv, variables, depends_on=_auth(place))]


def prefect(place: Place) -> list[Program]:
    """Return the server with its background services. It reads `.env` and `prefect.toml` of its folder, which is its own."""
    folder = place.folder / "prefect"
    variables = {
        **prefect_server(database=database(place, "asyncpg", "prefect"), login=f"{USER}:{place.secrets['prefect']}"),
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "pages"),  # it writes its address into them
    }
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(place.ports["prefect"])]
    return [Program("prefect", place.folder, argv, variables)]


def answers(address: str, seconds: float = 3) -> bool:
    """Tell whether a server of this machine answers with a status of success; no proxy of the environment is asked."""
    try:
        return httpx.get(address, timeout=seconds, trust_env=False).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _auth_file(place: Place) -> Path:
    return place.folder / "mlflow" / "auth.ini"


def _auth(place: Place) -> str:
    return mlflow_auth(database(place, "psycopg2", "mlflow_auth"))
