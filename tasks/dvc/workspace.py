"""A self-contained project folder: its own parameters, code, cache and records, beside the repository and not in it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import meca
from meca.errors import UsageError
from meca.files import atomic_write, refuse_foreign
from meca.params import read_params, with_settings
from tasks.dvc.closure import PACKAGES, rendered

__all__ = ["create"]

ROOT = Path(meca.__file__).parents[1]
CODE = (*PACKAGES, "flows")


def create(path: Path, settings: Mapping[str, Any] | None = None, code: bool = True, root: Path = ROOT) -> Path:
    """Make a folder in which `dvc repro` and the flow run by themselves, and return it.

    Made again with the same settings it stays as it is, file for file, so that a second run finds nothing to do. Results
    in it are never touched.

    Args:
        path: The folder; created where it is missing.
        settings: Parameters that differ from the project's params.yaml, as for `meca.params.with_settings`.
        code: Copy the packages too, so that DVC reruns a stage whose code changed. Without them the installed package
            runs, and its code is no dependency.
        root: The project to copy.

    Raises:
        UsageError: The project's dvc.yaml is not there (meca was not installed from a checkout), a setting is unknown, or a link or
            another user's folder lies where code or DVC's configuration belongs.
    """
    if not (root / "dvc.yaml").is_file():
        raise UsageError(f"Expected the project's dvc.yaml in {root}, found none; install meca from its repository (pip install -e).")
    path = path.resolve()
    refuse_foreign(path / ".dvc")
    for package in CODE if code else ():
        refuse_foreign(path / package, below=True)  # what is not in ours is removed there
    params = with_settings(read_params(root / "params.yaml"), settings or {})
    pipeline = (root / "dvc.yaml").read_text(encoding="utf-8") if code else rendered(root, code=False)
    _write(path / "dvc.yaml", pipeline)
    _write(path / "params.yaml", _yaml(params.tree))
    _write(path / ".dvcignore", (root / ".dvcignore").read_text(encoding="utf-8"))
    # What `dvc init --no-scm` does, without its price and without overwriting the configuration.
    _write(path / ".dvc" / "config", (root / ".dvc" / "config").read_text(encoding="utf-8").replace("[core]\n", "[core]\n    no_scm = true\n", 1))
    (path / ".dvc" / "tmp").mkdir(exist_ok=True)
    for package in CODE if code else ():
        _mirror(root / package, path / package)
    return path


def _yaml(tree: Mapping[str, Any]) -> str:
    import yaml

    return "# Written by meca from the project's params.yaml and the settings of this workspace.\n" + yaml.safe_dump(
        dict(tree), sort_keys=False, width=120
    )


def _write(path: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    if not path.is_file() or path.read_bytes() != data:
        atomic_write(path, data)


def _mirror(source: Path, target: Path) -> None:
    """Make the files below `target` those below `source`; compiled files are left out."""
    wanted = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".tmp"}
    for name in wanted:
        _write(target / name, (source / name).read_bytes())
    for old in [p for p in target.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.relative_to(target) not in wanted]:
        old.unlink()
    for cache in [p for p in target.rglob("__pycache__") if not (source / p.parent.relative_to(target)).is_dir()]:
        shutil.rmtree(cache)
