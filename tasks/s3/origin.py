"""Data that lies elsewhere, brought to this machine before the core reads it: an `s3://` prefix, or what a .dvc file names."""

from pathlib import Path

from meca.errors import InputRefused, UsageError
from meca.params import read_params
from meca.progress import Progress
from meca.text import plain

__all__ = ["bring", "difference", "of_workspace"]

DVC = ".dvc"


def bring(source: str, folder: Path, progress: Progress | None = None) -> Path:
    """Bring a source here and return the path to read; what is here already is not fetched again.

    Args:
        source: An `s3://` address, or a .dvc file; of one whose data lie beside it as it says nothing is copied.
        folder: Where the copy goes.
        progress: Told what is going on.

    Raises:
        UsageError: It is neither.
        MecaError: It cannot be read; `tasks.dvc.remote.RemoteUnavailable` where another try may help.
    """
    if source.startswith("s3://"):
        from tasks.s3 import download  # boto3 takes a second to import

        found = download.fetch(source, folder, progress)
        return _checked(found.path) if found.version else found.path
    if not source.endswith(DVC):
        raise UsageError(f"Expected an s3:// address or a .dvc file, got {source!r}.")
    from tasks.dvc import tracked

    return tracked.copy(Path(source), folder, progress)


def _checked(folder: Path) -> Path:
    """Return the data of a published folder that is as it was published."""
    from meca.release.verification import verify

    if wrong := verify(folder):
        raise InputRefused(f"The set that was fetched to {plain(folder)} is not as it was published: {plain(wrong[0], 300)}")
    if not (folder / "data").is_dir():
        raise InputRefused(f"The set that was fetched to {plain(folder)} holds no samples.")
    return folder / "data"


def of_workspace(workspace: Path, progress: Progress | None = None) -> Path | None:
    """Bring the source of a workspace to where its params.yaml says that `ingest` reads, if it has an origin.

    Raises:
        UsageError: An object, and not a prefix, is named, but `ingest.source` is a folder.
    """
    origin, target = _origin(workspace)
    if not origin:
        return None
    found = bring(origin, target, progress)
    if found != target.absolute():
        raise UsageError(f"params.yaml: {origin} is one object; give the prefix above it, or set ingest.source to {target.name}/{found.name}.")
    return found


def difference(workspace: Path) -> str | None:
    """Return a key of how a workspace's origin differs from what was last brought here; None where it does not, or has no origin.

    Raises:
        As `tasks.s3.download.difference`.
    """
    origin, target = _origin(workspace)
    if not origin:
        return None
    from tasks.s3 import download

    return download.difference(origin, target)


def _origin(workspace: Path) -> tuple[str, Path]:
    group = read_params(workspace / "params.yaml").raw("ingest")
    origin = str(group.get("origin", ""))
    if origin and not origin.startswith("s3://"):
        raise UsageError(f"params.yaml: expected ingest.origin to be empty or an s3:// address, got {origin!r}.")
    return origin, workspace / str(group["source"])
