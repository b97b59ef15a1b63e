"""OpenStack Swift as the S3 server: four small processes, objects as plain files, nothing but Python to install."""

import errno
import fcntl
import getpass
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from infra.local.place import HOST, Place, write_private
from infra.local.process import Program
from infra.settings import REGION, USER
from infra.stores import make_buckets
from meca.errors import MecaError

__all__ = ["complete", "configuration", "environment", "prepare", "programs"]

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("swift.lock")
KINDS = ("account", "container", "object")
ATTRIBUTE = 3000  # bytes beside a file that Swift must be able to keep


def environment() -> Path:
    """Return the folder of Swift's own environment, made from its lock file where it is missing or older.

    Swift brings its own pins, so it shares nothing with meca's environment.

    Raises:
        MecaError: The packages could not be installed.
    """
    home = Path(os.environ.get("MECA_SWIFT", ROOT / ".venv-swift")).resolve()
    folder = home / "environment"
    want = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    stamp = folder / "meca-lock"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == want:  # in an image the folder is read-only
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # two that start at once install once
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == want:
            return folder
        uv = _uv()
        for arguments in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            ["pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), "--require-hashes", "--compile-bytecode", "-r", str(LOCK)],
        ):
            done = subprocess.run([uv, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                said = " ".join(done.stderr.split()) or "no message"
                raise MecaError(f"Swift, the S3 server, could not be installed into {folder}: {said[-600:]}")
        stamp.write_text(want, encoding="utf-8")
    return folder


def prepare(place: Place, host: str = HOST) -> None:
    """Write the configuration and the rings for the ports in force."""
    folder = place.folder / "s3"
    disk = folder / "node" / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    _check_attributes(disk)
    for name, text in configuration(place, host).items():
        write_private(folder / name, text)
    binaries = environment() / "bin"
    ports = [f"{kind}={place.ports[f's3-{kind}']}" for kind in KINDS]
    rings = Path(__file__).with_name("rings.py")
    done = subprocess.run([binaries / "python", "-I", rings, folder, *ports], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise MecaError(f"Swift could not write its rings: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def programs(place: Place) -> list[Program]:
    """Return the four processes, the one that clients speak to last."""
    binaries, folder = environment() / "bin", place.folder / "s3"
    ports = str([place.ports[f"s3-{kind}"] for kind in KINDS])  # they stand in the rings, which all four read
    return [
        Program(
            f"s3-{kind}",
            place.folder,
            [str(binaries / "python"), str(binaries / f"swift-{kind}-server"), str(folder / f"{kind}.conf"), "--verbose"],
            {"PYTHONWARNINGS": "ignore"},  # of eventlet, about its own future, at every start
            depends_on=configuration(place)[f"{kind}.conf"] + ports,
        )
        for kind in (*KINDS, "proxy")
    ]


def complete(place: Place) -> None:
    """Create the buckets."""
    make_buckets(f"http://{place.address('s3-proxy')}", REGION, f"{USER}:{USER}", place.secrets["s3"])


def configuration(place: Place, host: str = HOST) -> dict[str, str]:
    """Return every configuration file by name; `host` is where clients reach it."""
    files = {
        # The suffix goes into the hash that says where an object lies: another one hides everything.
        "swift.conf": f"[swift-hash]\nswift_hash_path_suffix = {place.secrets['s3_hash']}\n[storage-policy:0]\nname = one\ndefault = yes\n",
        "proxy.conf": _default(place, "proxy", host) + _PROXY.format(user=USER, region=REGION, **place.secrets),
    }
    for kind in KINDS:
        files[f"{kind}.conf"] = _default(place, kind, HOST) + _STORAGE.format(kind=kind)
    return files


def _default(place: Place, kind: str, host: str) -> str:
    folder = place.folder / "s3"
    return _DEFAULT.format(host=host, port=place.ports[f"s3-{kind}"], folder=folder, user=_user_name())


# workers = 0: one process each. Without fallocate a file takes no more room than it needs, and no memcached is asked for.
_DEFAULT = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
user = {user}
swift_dir = {folder}
devices = {folder}/node
recon_cache_path = {folder}
mount_check = false
disable_fallocate = true
workers = 0
log_level = INFO
log_udp_host = 127.0.0.1
log_udp_port = 9
"""

# Long patience between processes of one busy machine; the only disk is never given up.
_STORAGE = """\
container_update_timeout = 60
conn_timeout = 10
node_timeout = 60

[pipeline:main]
pipeline = healthcheck {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
conn_timeout = 10
node_timeout = 60

[filter:healthcheck]
use = egg:swift#healthcheck
"""

_PROXY = """\

[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging listing_formats bulk s3api tempauth copy slo dlo versioned_writes symlink proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
conn_timeout = 10
node_timeout = 60
recoverable_node_timeout = 60
error_suppression_limit = 1000000

[filter:s3api]
use = egg:swift#s3api
location = {region}
max_upload_part_num = 10000

[filter:tempauth]
use = egg:swift#tempauth
user_{user}_{user} = {s3} .admin
user_{user}_mlflow = {s3_mlflow} .admin

[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true

[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000

[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:dlo]
use = egg:swift#dlo
[filter:symlink]
use = egg:swift#symlink
"""


def _check_attributes(folder: Path) -> None:
    probe = folder / ".probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.meca", bytes(ATTRIBUTE))
    except OSError as error:
        why = "keeps no extended attributes" if error.errno in (errno.ENOTSUP, errno.EPERM) else f"does not keep {ATTRIBUTE} bytes of them ({error})"
        raise MecaError(
            f"Expected a file system with extended attributes for the S3 server, got {folder}, which {why}; "
            "choose a folder on ext4, xfs or btrfs with --folder or MECA_SERVICES."
        ) from None
    finally:
        probe.unlink(missing_ok=True)


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise MecaError(f"Expected a user with a name for the S3 server, got the number {os.getuid()} alone; add it to /etc/passwd.") from None


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if not found:
        raise MecaError("Expected `uv`, which installs the S3 server, found none; `make install` brings it.")
    return found
