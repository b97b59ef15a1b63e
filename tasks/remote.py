"""The DVC remote: a local folder unless MECA_REMOTE_URL says otherwise (`s3://bucket/prefix`); keys come from the AWS variables."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meca.errors import MecaError
from tasks import environment
from tasks.stage import chain

__all__ = ["RemoteUnavailable", "pull", "pull_file", "push"]

# Names of error classes behind which a network was away; looked up by name, since each storage brings its own library.
NETWORK_ERRORS = {
    "ConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError", "HTTPClientError",
    "ClientConnectionError", "ClientOSError", "ServerDisconnectedError", "ServerTimeoutError", "TimeoutError", "gaierror",
}  # fmt: skip


class RemoteUnavailable(MecaError):  # noqa: N818 - the name says what happened
    """The remote could not be reached; another try may help."""

    is_temporary = True


def push(workspace: Path = Path()) -> None:
    """Send what the remote lacks, run cache included.

    Raises:
        RemoteUnavailable: The network was away.
        MecaError: Anything else, such as a refused key or a full disk.
    """
    _transfer(workspace, "push")


def pull(workspace: Path = Path()) -> None:
    """Fetch and check out what the lock file names.

    Raises:
        RemoteUnavailable: The network was away.
        MecaError: Anything else, such as an object whose bytes do not match its hash.
    """
    _transfer(workspace, "pull")


def pull_file(file: Path) -> None:
    """Put the data of one .dvc file beside it, from the cache or the remote of the repository that it lies in.

    Raises:
        RemoteUnavailable: The network was away.
        MecaError: It lies in no DVC repository, or as `pull`.
    """
    _transfer(file.resolve().parent, "pull", targets=[str(file.resolve())])


def _transfer(workspace: Path, direction: str, **options: Any) -> None:
    environment.prepare()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    url = os.environ.get("MECA_REMOTE_URL")
    try:
        root = Repo.find_root(str(workspace)) if options else str(workspace.resolve())
        with Repo(root, config=_configuration(url) if url else None, _wait_for_lock=True) as repo:
            getattr(repo, direction)(**(options or {"run_cache": True}))
    except Exception as error:
        names = {cls.__name__ for link in chain(error) for cls in type(link).__mro__}
        # DVC reports files that failed by their number alone; on a remote behind a network that is taken for the network.
        hidden = bool(url) and urlsplit(url or "").scheme not in ("", "file") and names & {"UploadError", "DownloadError", "FileTransferError"}
        if names & NETWORK_ERRORS or hidden:
            told = environment.without_secrets(f"The DVC remote could not be reached ({error}); look at MECA_REMOTE_URL and the network.")
            raise RemoteUnavailable(told) from None
        if not isinstance(error, DvcException | OSError):
            raise
        raise MecaError(environment.without_secrets(f"dvc {direction} failed: {error}")) from None


def _configuration(url: str) -> dict[str, Any]:
    # verify: DVC trusts what a remote hands out unless told otherwise.
    return {"core": {"remote": "environment"}, "remote": {"environment": {"url": url, "verify": True}}}
