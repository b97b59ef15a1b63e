"""Where a result of the pipeline lies, and what it is called."""

import argparse
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meca.errors import UsageError

__all__ = ["MANIFEST", "MODEL_FILES", "PARENT_FILES", "Result", "read_result", "result_key", "sha256_text"]


PARENT_FILES = ("verdicts.parquet", "summary.json", "README.md")  # of `published`, whose images stay in DVC


MANIFEST = "manifest.json"  # uploaded last: where it is, all of the others are


MODEL_FILES = ("model.json", "model.safetensors")


@dataclass(frozen=True)
class Result:
    """Where a result of the pipeline lies."""

    workspace: Path
    receipts: tuple[Path, ...]  # in the order of the pipeline
    store: Path
    work: Path
    published: Path
    report: Path
    out: Path
    params: Path
    when: float | None = None  # seconds since 1970 at which it was finished; now if None


def read_result(workspace: Path, argv: Sequence[str] | None = None) -> Result:
    """Return the paths of a workspace's result, from the command line or from the command of `track` in dvc.yaml.

    Raises:
        UsageError: The workspace has no dvc.yaml with a stage `track`.
    """
    parser = argparse.ArgumentParser(prog="python -m tasks.mlflow.tracking", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--receipts", type=Path, nargs="+", required=True, help="what the stages say of themselves, in order")
    for name, what in {
        "store": "the data as the defender received it",
        "work": "the folder of the stages' folders",
        "published": "the sanitized set",
        "report": "the folder of the page",
        "out": "output",
        "params": "parameter file",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    if argv is None:
        argv = _track_arguments(workspace / "dvc.yaml")
    found = vars(parser.parse_args(argv))
    receipts = tuple(workspace / path for path in found.pop("receipts"))
    return Result(workspace, receipts, **{name: workspace / path for name, path in found.items()})


def _track_arguments(pipeline: Path) -> list[str]:
    import yaml

    try:
        cmd = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]["track"]["cmd"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise UsageError(f"Expected {pipeline} with a stage `track`; make a workspace first.") from None
    return shlex.split(cmd)[3:]


def result_key(receipts: Sequence[dict[str, Any]]) -> str:
    """Return the name of a result of the pipeline: the SHA-256 over the keys of its stages."""
    return sha256_text(json.dumps([[receipt["stage"], receipt["key"]] for receipt in receipts]))


def sha256_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
