"""Whether the servers that the environment names can be worked with: reached, entered, of the right version, written to.

Every question ends within seconds, also where a server takes the connection and then says nothing. What is asked leaves
nothing behind: a name, a variable, an object are made and taken away. No answer is shown whole, since it may hold anything.
"""

import base64
import importlib.metadata
import json
import os
import re
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from tasks import environment

__all__ = ["ANSWER", "Bucket", "Finding", "buckets", "mlflow", "prefect", "prefect_in_force", "s3"]

ANSWER = 3.0  # seconds for one question
PROBE = "meca-doctor"
LARGEST = 2**20  # bytes of an answer that are read
STRANGER = "Look whether this is the address of the right server."
DIFFERENT = "client and server are of different versions; install the same one on both"


@dataclass(frozen=True)
class Finding:
    """What is to be said of one service: whether it works, what was found, what deserves attention, what to do next."""

    ok: bool
    found: str
    warnings: list[str] = field(default_factory=list)
    next: str = ""


@dataclass(frozen=True)
class Bucket:
    """Where data lies: a bucket, the path in it, and what DVC's configuration says beside the AWS variables."""

    name: str
    prefix: str = ""
    endpoint: str | None = None
    profile: str | None = None
    key: str | None = None
    secret: str | None = field(default=None, repr=False)


class Trouble(Exception):  # noqa: N818 - what stands between us and the service
    """A question that was not answered as it should be."""

    def __init__(self, found: str, next_step: str) -> None:
        super().__init__(found)
        self.found, self.next = found, next_step


def mlflow(address: str) -> Finding:
    """Examine the MLflow server at an address, with the name and password of its variables."""
    server = _Server(address, _mlflow_login(address), "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    told, warnings = f"client {_version('mlflow')}, server {server.shown}", list[str]()
    some_experiments = "/api/2.0/mlflow/experiments/search?max_results=1"
    database = "Its database does not answer; look at the server's log and its --backend-store-uri."
    store = "Its store of artifacts does not answer; look at the server's log, its --artifacts-destination and its AWS variables."
    try:
        server.ask("/health", login=False, hint="Look at MLFLOW_TRACKING_URI; `make services` starts a server on this machine.")
        version = server.ask("/version", hint=database)[:40].decode(errors="replace").strip()
        if not re.match(r"\d+\.\d+", version):
            raise Trouble("does not answer like MLflow", STRANGER)
        told += f" of version {version}"
        if version.split(".")[:2] != _version("mlflow").split(".")[:2]:
            warnings.append(DIFFERENT)
        _json(server.ask(some_experiments, hint=database))
        if server.is_open(some_experiments):
            warnings.append("authentication is off: whoever reaches the server can change the registry (mlflow server --app-name basic-auth)")
        name = {"name": f"{PROBE}-{secrets.token_hex(8)}"}
        server.ask("/api/2.0/mlflow/registered-models/create", "POST", name, hint=database)
        server.ask("/api/2.0/mlflow/registered-models/delete", "DELETE", name, hint=database)
        server.ask("/api/2.0/mlflow-artifacts/artifacts?path=", hint=store)
    except Trouble as trouble:
        return Finding(False, f"{told}: {trouble.found}", warnings, trouble.next)
    return Finding(True, f"{told}; database and artifacts answer, writable", warnings)


def prefect_in_force() -> tuple[str, str | None] | None:
    """Return the address of Prefect's server and what opens it, from the variables or the profile; None without a server."""
    address = os.environ.get("PREFECT_API_URL")
    login, key = os.environ.get("PREFECT_API_AUTH_STRING"), os.environ.get("PREFECT_API_KEY")
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / "profiles.toml")
    if not address and profiles.is_file():  # the import takes seconds
        from prefect.settings import get_current_settings

        api = get_current_settings().api
        address = api.url
        login = api.auth_string.get_secret_value() if api.auth_string else None
        key = api.key.get_secret_value() if api.key else None
    return (address, _basic(login) if login else f"Bearer {key}" if key else None) if address else None


def prefect(address: str, login: str | None) -> Finding:
    """Examine the Prefect server at an address, entered by a value of the header `Authorization`."""
    server = _Server(address, login, "PREFECT_API_AUTH_STRING")
    told, warnings = f"client {_version('prefect')}, server {server.shown}", list[str]()
    database = "Its database does not answer; look at the server's log and its PREFECT_SERVER_DATABASE_CONNECTION_URL."
    try:
        server.ask("/health", login=False, hint="Look at PREFECT_API_URL, which ends in /api; `make services` starts a server on this machine.")
        server.ask("/ready", login=False, hint=database)
        version = str(_json(server.ask("/admin/version", hint=database)))[:40]
        told += f" of version {version}"
        if version != _version("prefect"):
            warnings.append(DIFFERENT)
        if server.is_open("/admin/version"):
            warnings.append("authentication is off: whoever reaches the server can start flows (PREFECT_SERVER_API_AUTH_STRING)")
        if str(_inside(_json(server.ask("/admin/settings", hint=database)), "server", "concurrency", "lease_storage")).endswith(".memory"):
            warnings.append("limits are kept in memory: a crash of the server leaks their slots (PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE)")
        name = f"{PROBE}-{secrets.token_hex(8)}"
        server.ask("/variables/", "POST", {"name": name, "value": 1}, hint=database)
        server.ask(f"/variables/name/{name}", "DELETE", hint=database)
    except Trouble as trouble:
        return Finding(False, f"{told}: {trouble.found}", warnings, trouble.next)
    return Finding(True, f"{told}; database answers, writable", warnings)


def buckets(remotes: Mapping[str, Mapping[str, str]]) -> list[Bucket]:
    """Return the buckets that the variables and DVC's remotes name, each once.

    Args:
        remotes: What `.dvc/config` says, by remote.
    """
    found = [_bucket({"url": os.environ.get("MECA_REMOTE_URL", "")}), *map(_bucket, remotes.values())]
    named = os.environ.get("MECA_S3_BUCKET")
    known = {bucket.name for bucket in found if bucket}
    if named and named not in known:
        found.append(Bucket(named))
    return list(dict.fromkeys(bucket for bucket in found if bucket))


def s3(bucket: Bucket) -> Finding:
    """Examine a bucket: found, readable, writable, with versions, closed to strangers."""
    import boto3.session
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    patience = {"connect_timeout": ANSWER, "read_timeout": ANSWER, "retries": {"total_max_attempts": 1}}
    where, warnings = f"s3://{bucket.name}", list[str]()
    try:
        # A session of its own: the shared one must not be made by two threads at once.
        session = boto3.session.Session(bucket.key, bucket.secret, profile_name=bucket.profile)
        client = session.client("s3", endpoint_url=bucket.endpoint, config=Config(**patience))
        where += f" at {environment.without_secrets(client.meta.endpoint_url)}"
        client.list_objects_v2(Bucket=bucket.name, Prefix=bucket.prefix, MaxKeys=1)
        if client.get_bucket_versioning(Bucket=bucket.name).get("Status") != "Enabled":
            warnings.append("versioning is off: what is overwritten or deleted is lost (aws s3api put-bucket-versioning)")
        key = "/".join(word for word in (bucket.prefix, f"{PROBE}-{secrets.token_hex(8)}") if word)
        made = client.put_object(Bucket=bucket.name, Key=key, Body=PROBE.encode())
        same = client.get_object(Bucket=bucket.name, Key=key)["Body"].read() == PROBE.encode()
        version = {"VersionId": made["VersionId"]} if "VersionId" in made else {}
        client.delete_object(Bucket=bucket.name, Key=key, **version)
        if not same:
            raise Trouble("what was written comes back changed", "Look at the S3 server and at what stands between.")
        if _is_public(session.client("s3", endpoint_url=bucket.endpoint, config=Config(signature_version=UNSIGNED, **patience)), bucket.name):
            warnings.append("authentication is off: strangers can list the bucket")
    except Trouble as trouble:
        return Finding(False, f"{where}: {trouble.found}", warnings, trouble.next)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        return Finding(False, f"{where}: {error.operation_name} is refused ({code})", warnings, _S3_NEXT.get(code, _S3_NEXT["AccessDenied"]))
    except (BotoCoreError, ValueError, OSError) as error:
        name = type(error).__name__
        told = _S3_FOUND.get(name, f"no answer ({name})").format(ANSWER)
        return Finding(False, f"{where}: {told}", warnings, _S3_NEXT.get(name, _S3_NEXT["unreachable"]))
    return Finding(True, f"{where}: readable, writable", warnings)


_S3_KEYS = "Look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
_S3_NEXT = {
    "NoSuchBucket": "Create the bucket, or look at MECA_REMOTE_URL and MECA_S3_BUCKET.",
    "404": "Create the bucket, or look at MECA_REMOTE_URL and MECA_S3_BUCKET.",
    "SignatureDoesNotMatch": _S3_KEYS,
    "InvalidAccessKeyId": _S3_KEYS,
    "NoCredentialsError": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    "PartialCredentialsError": _S3_KEYS,
    "RequestTimeTooSkewed": "Set the clock of this machine.",
    "ExpiredToken": "Fetch new keys: the token has run out.",
    "AccessDenied": "Let these keys list, read, write and delete in this bucket.",
    "ProfileNotFound": "Look at AWS_PROFILE and the profile of DVC's remote.",
    "unreachable": "Look at AWS_ENDPOINT_URL and the network; `make services` starts an S3 server on this machine.",
}
_S3_FOUND = {
    "EndpointConnectionError": "does not answer",
    "ConnectTimeoutError": "does not answer within {:.0f} s",
    "ReadTimeoutError": "does not answer within {:.0f} s",
    "SSLError": "its certificate is not trusted",
    "NoCredentialsError": "no keys are set",
    "ProfileNotFound": "the profile does not exist",
    "PartialCredentialsError": "half a pair of keys is set",
}


def _is_public(stranger: Any, bucket: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        stranger.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except (BotoCoreError, ClientError):
        return False
    return True


class _Server:
    """An address, how to enter it, and the variables that say so."""

    def __init__(self, address: str, login: str | None, variables: str) -> None:
        parts = urlsplit(address)
        self.base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        self.shown = environment.without_secrets(self.base)
        self.login, self.variables = login, variables
        trust = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
        self.trust = ssl.create_default_context(cafile=trust if trust and Path(trust).is_file() else None)

    def ask(self, path: str, method: str = "GET", body: Any = None, *, login: bool = True, hint: str = "") -> bytes:
        """Return an answer of success.

        Raises:
            Trouble: There is none; `hint` is the next step where the status alone does not say it.
        """
        status, answer = self._open(path, method, body, login, hint)
        if 200 <= status < 300:
            return answer
        raise Trouble(*self._meaning(status, answer, hint))

    def is_open(self, path: str) -> bool:
        """Tell whether it answers a stranger."""
        return self._open(path, "GET", None, False, "")[0] == 200

    def _open(self, path: str, method: str, body: Any, login: bool, hint: str) -> tuple[int, bytes]:
        if not self.base.startswith(("http://", "https://")):
            raise Trouble("is no http address", hint)
        headers = {"Content-Type": "application/json", "User-Agent": PROBE, "Accept-Encoding": "identity"}
        headers |= {"Authorization": self.login} if login and self.login else {}
        data = None if body is None else json.dumps(body).encode()
        try:
            # A password goes to the server it was meant for, wherever that one points: no redirect is followed.
            with httpx.stream(method, self.base + path, content=data, headers=headers, timeout=ANSWER, verify=self.trust) as reply:
                return reply.status_code, _beginning(reply)
        except httpx.TimeoutException:
            raise Trouble(f"does not answer within {ANSWER:.0f} s", hint) from None
        except httpx.ConnectError as error:
            if _is_untrusted(error):
                raise Trouble("its certificate is not trusted", "Name the file of your authority in REQUESTS_CA_BUNDLE or SSL_CERT_FILE.") from None
            raise Trouble("does not answer", hint) from None
        except ImportError:
            raise Trouble("lies behind a proxy that cannot be used", "Look at HTTP_PROXY, HTTPS_PROXY and ALL_PROXY.") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            raise Trouble("does not speak HTTP as expected", hint) from None

    def _meaning(self, status: int, answer: bytes, hint: str) -> tuple[str, str]:
        if status == 401:
            return f"{'refuses the login' if self.login else 'asks for a login'}", f"Look at {self.variables}."
        if status == 403 and b"Host header" in answer:
            return "refuses to be called by this name", "Add the name to the server's --allowed-hosts, or use the one it has."
        if status == 403:
            return "does not let this user in", "Ask its administrator for the right to read and write."
        if 300 <= status < 400:
            return "points to another address", "Set the address that it points to, if you trust it."
        return f"answers with status {status}", hint if status >= 500 else STRANGER


def _beginning(reply: httpx.Response) -> bytes:
    """Return what an answer begins with, as it was sent: one that is packed grows without a limit."""
    found = bytearray()
    for part in reply.iter_raw():
        found += part
        if len(found) >= LARGEST:
            break
    return bytes(found[:LARGEST])


def _is_untrusted(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, ssl.SSLCertVerificationError) or _is_untrusted(error.__cause__ or error.__context__))


def _mlflow_login(address: str) -> str | None:
    parts = urlsplit(address)
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return f"Bearer {token}"
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user is None and parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
    return None if user is None else _basic(f"{user}:{password or ''}")


def _basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


def _bucket(block: Mapping[str, str]) -> Bucket | None:
    parts = urlsplit(block.get("url", ""))
    if parts.scheme != "s3":
        return None
    names = ("endpointurl", "profile", "access_key_id", "secret_access_key")
    return Bucket(parts.netloc, parts.path.strip("/"), *(block.get(name) for name in names))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _json(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        raise Trouble("does not answer in JSON", STRANGER) from None


def _inside(tree: Any, *names: str) -> Any:
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
