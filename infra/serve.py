"""python -m infra.serve ROLE: what a container of compose.yaml or of Kubernetes runs.

    migrate             roles, databases, tables and buckets: once, before the servers of a new version start
    s3                  the S3 server
    mlflow              the tracking server
    prefect             Prefect's API and pages
    prefect-services    Prefect's schedules, automations, late runs
    worker              takes runs from the work pool and works in the workspace
    run PROGRAM …       a program with the variables of a client

Secrets are files in MECA_SECRETS (/run/secrets). They reach a server as variables and private files, never as arguments.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from infra.settings import REGION, SILENT, USER, client, mlflow_auth, mlflow_server, prefect_server
from infra.stores import DATABASES, MODELS_BUCKET, address, make_buckets, make_databases
from meca.errors import MecaError, UsageError

__all__ = ["main"]

# Where the others are, by the names that compose.yaml and the Kubernetes services give them.
PLACES: Mapping[str, str] = {
    "MECA_POSTGRES": "postgres:5432",
    "MECA_REDIS": "redis:6379",
    "MECA_S3": "http://s3:9000",
    "MECA_MLFLOW": "http://mlflow:5000",
    "MECA_PREFECT": "http://prefect:4200/api",
    "MECA_BIND": "0.0.0.0",  # noqa: S104 - inside a container; what is published outside is said there
    "MECA_HOSTS": "mlflow:5000,localhost:5000,127.0.0.1:5000",  # names under which MLflow may be called
    "MECA_STATE": "/state",  # what may be lost with the container
    "MECA_DATA_FOLDER": "/data",  # what may not: the objects of the S3 server
    "MECA_WORKSPACE": "/workspace",
    "MECA_POOL": "meca",
}


def migrate(arguments: Sequence[str]) -> None:
    """Make what the servers stand on. Without the superuser's password the databases are somebody else's work."""
    secrets = _secrets()
    if "postgres" in secrets:
        host, _, port = _place("MECA_POSTGRES").rpartition(":")
        make_databases(host, int(port), secrets["postgres"], {role: secrets[f"{role}_database"] for role in DATABASES.values()})
    if "s3" in secrets:
        make_buckets(_place("MECA_S3"), REGION, f"{USER}:{USER}", secrets["s3"])
    _run(
        [sys.executable, "-m", "infra.tables"],
        {**SILENT, "MECA_MLFLOW_DATABASE": _database("mlflow"), "MECA_AUTH_DATABASE": _database("mlflow_auth")},
    )
    variables = prefect_server(database=_database("prefect", "asyncpg"), login="", broker=_broker())
    _run([sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"], {**variables, "PREFECT_HOME": str(_state() / "prefect")})
    print("databases, tables and buckets are up to date")


def mlflow(arguments: Sequence[str]) -> None:
    """Become the tracking server."""
    file = _state() / "auth.ini"
    file.unlink(missing_ok=True)
    file.touch(0o600)
    file.write_text(mlflow_auth(_database("mlflow_auth")), encoding="utf-8")
    variables = mlflow_server(
        database=_database("mlflow"),
        auth_file=str(file),
        artifacts=f"s3://{MODELS_BUCKET}/artifacts",
        hosts=_place("MECA_HOSTS"),
        login=(USER, _secret("mlflow")),
        session=_secret("mlflow_session"),
    )
    storage = {
        "MLFLOW_S3_ENDPOINT_URL": _place("MECA_S3"),
        "AWS_ACCESS_KEY_ID": f"{USER}:mlflow",
        "AWS_SECRET_ACCESS_KEY": _secret("s3_mlflow"),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = ["-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "2"]
    _become([sys.executable, *server, "--host", _place("MECA_BIND"), "--port", os.environ.get("MECA_PORT", "5000")], {**variables, **storage})


def prefect(arguments: Sequence[str]) -> None:
    """Become Prefect's API."""
    server = [sys.executable, "-m", "prefect", "server", "start", "--no-services", "--host", _place("MECA_BIND")]
    _become([*server, "--port", os.environ.get("MECA_PORT", "4200")], _prefect())


def prefect_services(arguments: Sequence[str]) -> None:
    """Become Prefect's background services."""
    _become([sys.executable, "-m", "prefect", "server", "services", "start"], _prefect())


def worker(arguments: Sequence[str]) -> None:
    """Become a worker of the pool, in the workspace, which is made where it is missing."""
    from tasks.dvc import workspace

    place = Path(_place("MECA_WORKSPACE"))
    if not (place / "dvc.yaml").is_file():
        workspace.create(place)
    # Its own folder is none of foreign data: Prefect reads `.env` and `prefect.toml` there.
    os.chdir(_state())
    home = {"PREFECT_HOME": str(_state() / "prefect"), "MECA_WORKSPACE": str(place)}
    _become([sys.executable, "-m", "prefect", "worker", "start", "--pool", _place("MECA_POOL"), "--type", "process"], {**_client(), **home})


def run(arguments: Sequence[str]) -> None:
    """Become any program, with the variables of a client."""
    if not arguments:
        raise UsageError("Expected a program after `run`, found none.")
    _become(list(arguments), _client())


def s3(arguments: Sequence[str]) -> None:
    """Run the S3 server until one of its processes ends or the container is told to."""
    from infra.local import s3 as swift
    from infra.local.place import PORTS, Place

    folder = Path(_place("MECA_DATA_FOLDER"))
    (folder / "s3").mkdir(exist_ok=True)
    place = Place(folder, {"s3-proxy": int(os.environ.get("MECA_PORT", PORTS["s3-proxy"]))}, _secrets())
    place.choose_ports(iter(("s3-account", "s3-container", "s3-object")), any_free=False)
    swift.prepare(place, _place("MECA_BIND"))
    children = [subprocess.Popen(program.argv, env={**os.environ, **program.variables}) for program in swift.programs(place)]  # noqa: S603

    def end(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while all(child.poll() is None for child in children):
        time.sleep(0.5)
    end(signal.SIGTERM, None)
    codes = [child.wait() for child in children]
    if any(code not in (0, -signal.SIGTERM) for code in codes):
        raise MecaError("A process of the S3 server ended by itself.")


ROLES: Mapping[str, Callable[[Sequence[str]], None]] = {
    "migrate": migrate, "s3": s3, "mlflow": mlflow, "prefect": prefect, "prefect-services": prefect_services, "worker": worker, "run": run,
}  # fmt: skip


def main() -> int:
    """Take the role that the command line names."""
    try:
        if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
            raise UsageError(f"Expected a role out of {', '.join(ROLES)}, got {sys.argv[1] if len(sys.argv) > 1 else 'none'}.")
        ROLES[sys.argv[1]](sys.argv[2:])
    except MecaError as error:
        print(f"meca: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _place(name: str) -> str:
    return os.environ.get(name) or PLACES[name]


def _secrets() -> dict[str, str]:
    folder = Path(os.environ.get("MECA_SECRETS", "/run/secrets"))
    # Kubernetes puts folders of its own beside the files.
    return {file.name: file.read_text(encoding="utf-8").strip() for file in folder.glob("[a-z]*") if file.is_file()} if folder.is_dir() else {}


def _secret(name: str) -> str:
    found = _secrets().get(name)
    if not found:
        raise UsageError(f"Expected the secret {name} as a file in {os.environ.get('MECA_SECRETS', '/run/secrets')}, found none.")
    return found


def _database(name: str, driver: str = "psycopg2") -> str:
    return address(driver, name, _secret(f"{DATABASES[name]}_database"), _place("MECA_POSTGRES"))


def _broker() -> str:
    return f"redis://:{_secret('redis')}@{_place('MECA_REDIS')}/0"


def _prefect() -> dict[str, str]:
    state = _state() / "prefect"
    variables = prefect_server(database=_database("prefect", "asyncpg"), login=f"{USER}:{_secret('prefect')}", broker=_broker())
    return {**variables, "PREFECT_HOME": str(state), "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(state / "pages")}


def _client() -> dict[str, str]:
    """Return the variables of a client; what the container was given by itself wins."""
    found = _secrets()
    places = {"mlflow": _place("MECA_MLFLOW"), "prefect": _place("MECA_PREFECT"), "s3": _place("MECA_S3")}
    made = client(found, places) if {"mlflow", "prefect", "s3"} <= set(found) else {}
    return {**SILENT, **{name: value for name, value in made.items() if name not in os.environ}}


def _state() -> Path:
    folder = Path(_place("MECA_STATE"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(argv: Sequence[str], variables: Mapping[str, str]) -> None:
    code = subprocess.run(argv, env={**os.environ, **variables}, check=False).returncode  # noqa: S603
    if code:
        raise MecaError(f"{' '.join(argv[1:4])} ended with exit code {code}.")


def _become(argv: Sequence[str], variables: Mapping[str, str]) -> None:
    sys.stdout.flush()
    os.execvpe(argv[0], list(argv), {**os.environ, **variables})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    raise SystemExit(main())
