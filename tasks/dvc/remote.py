"""The DVC remote: a local folder unless MECA_REMOTE_URL says otherwise (`s3://bucket/prefix`); keys come from the AWS variables.

DVC knows files by MD5, for which two different ones can be made. So what was pulled is compared with the SHA-256 that each
stage wrote into its receipt, and with those of the store and of the published folder: in a chain that ends at dvc.lock.
"""

import contextlib
import itertools
import os
import shlex
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meca.errors import MecaError
from meca.files import read_json, sha256_tree
from meca.text import plain
from tasks import environment
from tasks.dvc.stage import chain, lock_remedy

__all__ = ["RemoteUnavailable", "check", "explained", "pull", "push", "status"]

# Names of error classes behind which a network was away; looked up by name, since each storage brings its own library.
NETWORK_ERRORS = {
    "ConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError", "HTTPClientError",
    "ClientConnectionError", "ClientOSError", "ServerDisconnectedError", "ServerTimeoutError", "TimeoutError", "gaierror",
}  # fmt: skip
STORAGES = {"dvc", "dvc_objects", "dvc_data", "dvc_s3", "dvc_http", "s3fs", "fsspec", "botocore", "aiohttp", "aiobotocore"}  # whose errors are told
UNVERIFIED = {"hdfs", "webhdfs"}  # storages for which DVC knows no such setting


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
    """Fetch and check out what the lock file names, and compare it with the SHA-256 that the stages wrote down.

    Raises:
        RemoteUnavailable: The network was away.
        MecaError: Anything else, such as an object whose bytes do not match its hash. What has another SHA-256 than its
            stage wrote down is taken out of the workspace.
    """
    _transfer(workspace, "pull")
    if wrong := check(workspace):
        for path, _ in wrong:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise MecaError(
            f"{wrong[0][1]} It was taken out of the workspace. The remote is not to be trusted, and neither is {workspace / '.dvc' / 'cache'} "
            "now: remove it, and pull from another remote or run the pipeline."
        )


def check(workspace: Path = Path()) -> list[tuple[Path, str]]:
    """Return the outputs that are not what their stages wrote down, with a sentence each; what is not there is not asked for."""
    wrong: list[tuple[Path, str]] = []
    for path, expected, stage in _written(workspace):
        if path.exists() and (found := sha256_tree(path)) != expected:
            what = (
                f"is not what stage {stage} wrote: expected SHA-256 {expected[:12]}, got {found[:12]}" if expected else "has no receipt of its stage"
            )
            wrong.append((path, f"{plain(path.relative_to(workspace))} {what}."))
    return wrong


def _written(workspace: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield every output of a stage with its SHA-256 and the stage's name, by the commands in dvc.yaml and the receipts."""
    import yaml

    try:
        stages = yaml.safe_load((workspace / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise MecaError(f"Expected {workspace / 'dvc.yaml'} with stages.") from None
    for name, stage in stages.items():
        words = shlex.split(stage["cmd"]) if isinstance(stage, dict) and isinstance(stage.get("cmd"), str) else []
        options = {word[2:].replace("-", "_"): value for word, value in itertools.pairwise(words) if word.startswith("--")}
        if "receipt" not in options:
            continue
        if not (workspace / options["receipt"]).is_file():
            yield from ((workspace / out, "", plain(name, 40)) for out in stage.get("outs", ()) if isinstance(out, str))
            continue
        receipt = read_json(workspace / options["receipt"])
        for output, digest in receipt["outputs"].items():
            if output in options:
                yield workspace / options[output], str(digest), plain(name, 40)


def _transfer(workspace: Path, direction: str) -> None:
    environment.prepare()
    from dvc.repo import Repo

    url = os.environ.get("MECA_REMOTE_URL")
    with explained(direction, url or ""):
        root = str(workspace.resolve())
        with Repo(root, config=_configuration(url) if url else _verified(root), _wait_for_lock=True) as repo:
            getattr(repo, direction)(run_cache=True)


@contextlib.contextmanager
def explained(direction: str, url: str = "") -> Generator[None]:
    """Turn what DVC and its storages raise into one sentence without secrets.

    Args:
        direction: What failed: `push` or `pull`.
        url: The remote, if all that fails there by its number alone is to be taken for the network.

    Raises:
        RemoteUnavailable: The network was away.
        MecaError: Anything else.
    """
    try:
        yield
    except MecaError:
        raise
    except Exception as error:
        links = chain(error)
        names = {cls.__name__ for link in links for cls in type(link).__mro__}
        # DVC reports files that failed by their number alone; on a remote behind a network that is taken for the network.
        hidden = urlsplit(url).scheme not in ("", "file") and names & {"UploadError", "DownloadError", "FileTransferError"}
        if names & NETWORK_ERRORS or hidden or any(map(_is_busy, links)):
            told = environment.without_secrets(f"The DVC remote could not be reached ({error}); look at MECA_REMOTE_URL and the network.")
            raise RemoteUnavailable(told) from None
        if not isinstance(error, OSError) and not {cls.__module__.partition(".")[0] for cls in type(error).__mro__} & STORAGES:
            raise
        raise MecaError(environment.without_secrets(f"dvc {direction} failed: {error}{lock_remedy(error)}")) from None


def status(error: BaseException) -> int:
    """Return the HTTP status that made an error; 0 where it was none. The libraries of storages make an OSError of it, of a number of their own."""
    answer, given = getattr(error, "response", None), getattr(error, "status", 0)
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(answer, dict) else given if isinstance(given, int) else 0


def _is_busy(error: BaseException) -> bool:
    """Tell whether a storage's answer says that it may do better later."""
    return status(error) in (408, 429) or status(error) >= 500


def _configuration(url: str) -> dict[str, Any]:
    # verify: DVC trusts what a remote hands out unless told otherwise.
    return {"core": {"remote": "environment"}, "remote": {"environment": {"url": url, "verify": True}}}


def _verified(root: str) -> dict[str, Any]:
    """Return what makes DVC compare what the remotes of a workspace hand out with its MD5, whatever their settings say."""
    from dvc.config import Config

    named = Config(str(Path(root) / ".dvc"), validate=False)["remote"]
    return {"remote": {name: {"verify": True} for name, block in named.items() if urlsplit(str(block.get("url"))).scheme not in UNVERIFIED}}
