"""The environment in which DVC, MLflow and Prefect are imported: nothing is reported home, defaults that hold.

Each library reads its variables at its first import, so `prepare` is called before that. What the user has set wins.
"""

import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["DEFAULTS", "child_environment", "gpu_limit", "has_gpu", "prepare", "tracking_uri", "without_secrets"]

DEFAULTS: Mapping[str, str] = {
    # Telemetry. MLflow knows only the word `true`, so `DO_NOT_TRACK=1` would not do.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A server inside the process takes 14-22 s to start on two cores; Prefect gives up after 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Dead flow runs are known by their silence; 30 s is the least that Prefect allows, and 180 its default.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # For servers: with leases in memory, one that crashes leaks the slots of its limits for good.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Models come from hostile data and shared registries: no weights that are code.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # Tracking must not hold a run up: the defaults are 7 retries of 120 s each.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Two stages side by side must not spin on each other's cores.
    "GOMP_SPINCOUNT": "10000",
}


def prepare() -> None:
    """Set every variable of `DEFAULTS` that the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def child_environment() -> dict[str, str]:
    """Return the environment for a program that this process starts.

    `python` is this interpreter there, also when its environment is not activated, and the child can see that its parent
    died before it asked the kernel to be told.
    """
    prepare()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "MECA_PARENT": str(os.getpid()), "PYTHONUNBUFFERED": "1"}


def without_secrets(text: str) -> str:
    """Return text whose addresses have lost user, password and query; every message of a library passes through here."""
    return re.sub(r"\?[\w.%+-]+=[^\s'\"]*", "", re.sub(r"(?<=://)[^/\s'\"]*@", "", text))


def tracking_uri(workspace: Path) -> str:
    """Return where MLflow's records go: what the user has set, else a SQLite file in the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.resolve() / 'mlflow.db'}"


def has_gpu() -> bool:
    """Tell whether this host has an NVIDIA device that is not hidden (without importing torch)."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def gpu_limit() -> str | None:
    """Return the name of the limit for stages that need a GPU: this host's, unless MECA_GPU_LIMIT names another or says `none`."""
    name = os.environ.get("MECA_GPU_LIMIT") or f"gpu:{socket.gethostname()}"
    return None if name == "none" else name
