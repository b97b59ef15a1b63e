"""A client of MLflow that waits, gives up in time, and explains in one sentence what went wrong."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meca.errors import MecaError, UsageError
from meca.files import lock, own_folder
from meca.text import plain
from tasks import environment
from tasks.environment import without_secrets
from tasks.mlflow.result import sha256_text
from tasks.mlflow.spool import SPOOL

__all__ = ["PATIENCE", "RATE", "SPEAKERS", "TrackingUnavailable", "explained", "locks", "open_client", "patience", "patient_lock", "time_for"]


PATIENCE = 300.0  # seconds in which a run tells MLflow what it has to tell; MECA_TRACKING_SECONDS says otherwise


RATE = 2**20  # bytes a second that an upload may be as slow as


SPEAKERS = {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "botocore", "boto3"}  # whose errors mean that MLflow could not be told


class TrackingUnavailable(MecaError):  # noqa: N818 - the name says what happened
    """MLflow could not be reached, was too slow or refused; another try may help."""

    is_temporary = True


def patience() -> float | None:
    """Return the seconds that telling MLflow may take in a run; None for as long as it takes (MECA_TRACKING_SECONDS=0)."""
    given = os.environ.get("MECA_TRACKING_SECONDS", "")
    try:
        seconds = float(given) if given else PATIENCE
    except ValueError:
        raise UsageError(f"Expected a number of seconds in MECA_TRACKING_SECONDS, got {plain(given, 40)!r}.") from None
    return seconds if seconds > 0 else None


def locks(workspace: Path) -> Path:
    """Return the folder of the locks of a workspace."""
    return workspace / SPOOL.parent / "locks"


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into one sentence without secrets."""
    try:
        yield
    except MecaError:
        raise
    except Exception as error:
        of_theirs = {cls.__module__.partition(".")[0] for cls in type(error).__mro__} & SPEAKERS
        if not of_theirs and not isinstance(error, OSError):
            raise
        # Without its cause, which a traceback would show: MLflow's message has the address with the password in it.
        said = plain(without_secrets(" ".join(str(error).split())), 300)
        denied = re.search(r"\b(401|403)\b|PERMISSION_DENIED|UNAUTHENTICATED|[Nn]ot authenticated|[Pp]ermission denied", said)
        hint = " Look at MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD." if denied else ""
        raise TrackingUnavailable(f"MLflow ({without_secrets(where)}) could not be used: {type(error).__name__}: {said}{hint}") from None


class _Timed:
    """A client whose calls are refused after a deadline: a server that answers slowly would hold a run up for hours."""

    def __init__(self, client: Any, seconds: float | None) -> None:
        self._client, self._seconds = client, seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def in_time(self) -> None:
        """Raise after the deadline."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TrackingUnavailable(f"MLflow was not told everything within {self._seconds:.0f} s (MECA_TRACKING_SECONDS).")

    def __getattr__(self, name: str) -> Any:
        self.in_time()
        return getattr(self._client, name)


@contextmanager
def time_for(size: int) -> Iterator[None]:
    """Give an upload the time that its size needs; the short limit of all other requests would cut a large model off."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    usual = os.environ[name]
    os.environ[name] = str(max(int(usual), 10 + size // RATE))
    try:
        yield
    finally:
        os.environ[name] = usual


@contextmanager
def open_client(workspace: Path, seconds: float | None = None) -> Iterator[Any]:
    """Yield an MLflow client with a database that exists and is up to date, while nobody else of this workspace writes.

    Processes that make a new database side by side crash, and two that log side by side would both find no run; hence
    one lock, beside the database, for both.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, refuses, or does something unforeseen, here or in the block.
    """
    environment.prepare()
    uri = environment.tracking_uri(workspace)
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    if database is None:
        own_folder(locks(workspace), workspace / SPOOL.parent)
    name = database.with_name(database.name + ".lock") if database else locks(workspace) / f"mlflow-{sha256_text(uri)[:16]}"
    with patient_lock(name), explained(uri):
        import mlflow
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            client = MlflowClient(uri, uri)
            client.search_experiments(max_results=1)  # makes the tables of a new database
        except MlflowException as error:
            if database is None:
                raise
            if "out-of-date" not in str(error):
                raise MecaError(f"{database} is no database of MLflow: {str(error)[:300]}") from error
            _upgrade(uri)
            client = MlflowClient(uri, uri)
        yield _Timed(client, seconds)


def _upgrade(uri: str) -> None:
    import subprocess

    done = subprocess.run(  # noqa: S603 - our own interpreter, the address that the user has set
        [sys.executable, "-m", "mlflow", "db", "upgrade", uri], env=environment.child_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MecaError(f"mlflow db upgrade failed: {done.stderr.strip()[-300:]}")


@contextmanager
def patient_lock(path: Path, what: str = "MLflow's record", patience: float = 300.0) -> Iterator[None]:
    """Hold a lock as `meca.files.lock` does, but wait for its holder first."""
    deadline = time.monotonic() + patience
    while True:
        held = lock(path, what)
        try:
            held.__enter__()
        except MecaError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            continue
        break
    try:
        yield
    finally:
        held.__exit__(None, None, None)
