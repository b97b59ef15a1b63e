"""One tiny workspace for all tests of the platform, and a Prefect server for each file: real DVC, real MLflow on SQLite, real Prefect."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.operations import prefect_server
from tasks import environment
from tasks.dvc.workspace import create

SETTINGS = {
    "ingest.source": "shapes",
    "ingest.shapes_train": 200,
    "ingest.shapes_test": 100,
    "network.width": 8,
    "detector.width": 8,
    "control.when": "never",
    "promote.min_acc": 0.0,
    "promote.min_recall": 0.0,
    "promote.max_leak": 1.0,
    "promote.max_leak_of_power": 99.0,
    "promote.min_leak_power": 0.0,
    "promote.verdicts": ["no_evidence", "poisoned", "inconclusive"],
}


def quick_settings() -> dict[str, Any]:
    """Return settings under which the whole pipeline takes seconds; what it finds does not matter here."""
    from meca.params import read_params
    from tasks.dvc.workspace import ROOT

    params = read_params(ROOT / "params.yaml")

    def short(block: Mapping[str, Any]) -> dict[str, Any]:
        once = {name: min(value, 1) for name, value in block.items() if name in ("epochs", "min_steps", "rounds")}
        return {**block, **once, **{name: short(value) for name, value in block.items() if isinstance(value, Mapping)}}

    groups = ("partition", "enhance", "split", "train_clean", "relabel_finetune")
    return SETTINGS | {f"{group}.{name}": value for group in groups for name, value in short(params.raw(group)).items()}


def run(workspace: Path, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in a workspace, as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=workspace,
        env={**environment.child_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory):
    """Keep the user's own Prefect and MLflow out of the tests."""
    saved = dict(os.environ)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MECA_REMOTE_URL", "MECA_CRON"):
        os.environ.pop(name, None)
    os.environ.update(PREFECT_HOME=str(tmp_path_factory.mktemp("prefect")), OMP_NUM_THREADS="1", MECA_THREADS="1", CI="1")
    environment.prepare()
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A workspace after its first `dvc repro`."""
    path = create(tmp_path_factory.mktemp("workspace"), quick_settings())
    (path / "first.log").write_text(run(path, "dvc", "repro").stdout)
    return path


FRESH = ("prefect.db", "memo_store.toml")  # what a server makes in its first five seconds of work: its tables, and what it has registered there


def keep_fresh(home: Path, kept: Path) -> None:
    """Keep what a server that has served nothing yet has made; a later one starts from it in half the time."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=kept.parent))
    with contextlib.closing(sqlite3.connect(home / FRESH[0])) as source, contextlib.closing(sqlite3.connect(made / FRESH[0])) as copy:
        source.backup(copy)
    shutil.copyfile(home / FRESH[1], made / FRESH[1])
    try:
        made.rename(kept)
    except OSError:  # another worker was faster
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def server(tmp_path_factory, pytestconfig):
    """The address of a real Prefect server; each file has its own, because tests look at all that a server has.

    Its database is a copy of one that the same version of Prefect has made before. An empty one is that of the test of a
    flow that brings its own server.
    """
    home = tmp_path_factory.mktemp("server") / "home"
    cache = getattr(pytestconfig, "cache", None)  # none with -p no:cacheprovider
    kept = cache.mkdir("prefect") / version("prefect") if cache else None
    if kept and kept.is_dir():
        shutil.copytree(kept, home)
    with prefect_server(home) as address:
        if kept and not kept.is_dir():
            keep_fresh(home, kept)
        yield address
