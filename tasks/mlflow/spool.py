"""What MLflow could not be told, kept whole and sealed until it can."""

import shutil
import time
from pathlib import Path

from meca import state
from meca.errors import UsageError
from meca.files import atomic_write, canonical_json, fresh_folder, own_folder, read_json, refuse_foreign, replace_folder, sha256_tree, sync
from tasks.environment import without_secrets
from tasks.mlflow.result import MANIFEST, MODEL_FILES, PARENT_FILES, Result, result_key

__all__ = ["SPOOL", "SPOOLED", "drop", "foreign", "spool", "untold"]


SPOOL = Path(".meca") / "spool"  # in the workspace


SPOOLED = "spooled.json"  # in each folder of the spool: since when and why


def spool(workspace: Path, result: Result, why: str) -> Path:
    """Keep all that MLflow is to be told about a result, as copies: the next run replaces the files. Return the folder.

    Args:
        workspace: Whose spool it is.
        result: What could not be told.
        why: For people.
    """
    receipts = [read_json(path) for path in result.receipts]
    folder = own_folder(workspace / SPOOL, workspace / SPOOL.parent) / result_key(receipts)[:24]
    if _is_ours(folder):
        return folder
    temporary = fresh_folder(folder.with_name(folder.name + ".tmp"))
    wanted = [*result.receipts, result.params, result.workspace / "dvc.lock", result.report / "report.html"]
    wanted += [result.published / name for name in (*PARENT_FILES, MANIFEST)]
    wanted += [result.work / str(receipt["stage"]) / name for receipt in receipts for name in ("curves.jsonl", *MODEL_FILES)]
    for path in wanted:
        if path.is_file():
            copy = temporary / path.relative_to(result.workspace)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            sync(copy)
    places = {name: value.relative_to(result.workspace).as_posix() for name, value in vars(result).items() if isinstance(value, Path)}
    places["receipts"] = [path.relative_to(result.workspace).as_posix() for path in result.receipts]
    record = {"schema": "meca.spool/1", "when": time.time(), "why": without_secrets(why)[:2000], "places": places}
    atomic_write(temporary / SPOOLED, canonical_json(record))
    state.write(_seal_of(folder), sha256_tree(temporary).encode(), "spool", folder.name)
    replace_folder(temporary, folder)
    return folder


def _seal_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256")


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder of the spool is as this user's meca wrote it, wherever its workspace has come to lie."""
    if not folder.is_dir():
        return False
    try:
        refuse_foreign(folder, below=True)
    except UsageError:
        return False
    return state.read(_seal_of(folder), "spool", folder.name) == sha256_tree(folder).encode()


def drop(folder: Path) -> None:
    """Remove what was told."""
    if _is_ours(folder):
        shutil.rmtree(folder)
        for beside in folder.parent.glob(f"{folder.name}.sha256*"):
            beside.unlink()


def untold(workspace: Path = Path()) -> list[Path]:
    """Return the folders of the spool that this user's meca wrote, oldest first.

    Raises:
        UsageError: The spool is a link or another user's.
    """
    for folder in (workspace / SPOOL.parent, workspace / SPOOL):
        refuse_foreign(folder)
    found = [(float(read_json(file)["when"]), file.parent) for file in (workspace / SPOOL).glob(f"*/{SPOOLED}") if _is_ours(file.parent)]
    return [folder for _, folder in sorted(found)]


def foreign(workspace: Path) -> list[Path]:
    """Return what lies in the spool and was not put there by this user's meca."""
    ours = untold(workspace)
    return sorted(path for path in (workspace / SPOOL).glob("*") if path not in ours and not path.name.endswith((".tmp", ".sha256", ".seal")))
