"""What `meca doctor` looks at. Every check ends by itself: heavy imports in a child with a time limit, addresses likewise."""

import configparser
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import environment
from tasks.environment import without_secrets

__all__ = ["examine"]

PATIENCE = 60.0  # seconds for the import of torch on a slow disk
ANSWER = 3.0  # seconds for a server
SPACE = 2 * 2**30  # bytes: less will not hold the smallest demonstration and its environment's caches

_DEVICES = """
import json, torch
cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"cuda": cuda, "threads": torch.get_num_threads(), "built": torch.version.cuda}))
"""

Check = dict[str, Any]


def examine() -> list[Check]:
    """Return a line per check: `name`, `ok` (false where meca cannot work like this), `found`."""
    environment.prepare()
    checks: tuple[Callable[[], Check], ...] = (_python, _packages, _devices, _sandbox, _disk, _data, _dvc, _mlflow, _prefect, _telemetry)
    return [check() for check in checks]


def _check(name: str, ok: bool, found: str) -> Check:
    return {"name": name, "ok": ok, "found": found}


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _python() -> Check:
    return _check("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")


def _packages() -> Check:
    versions = {name: _version(name) for name in ("meca", "torch", "torchvision", "numpy", "pyarrow", "pillow", "dvc", "mlflow", "prefect")}
    missing = [name for name in ("torch", "torchvision", "numpy", "pyarrow", "pillow") if not versions[name]]
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    return _check("packages", not missing, text + (f"; install {', '.join(missing)}" if missing else ""))


def _devices() -> Check:
    try:
        answer = subprocess.run([sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=PATIENCE, check=True)  # noqa: S603
        found = json.loads(answer.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return _check("devices", False, f"torch did not import within {PATIENCE:.0f} s")
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        last = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return _check("devices", False, f"torch does not import: {last[-1] if last else 'no message'}")
    graphics = ", ".join(found["cuda"]) or f"no GPU (torch is built for CUDA {found['built'] or 'none'})"
    return _check("devices", True, f"{graphics}; {found['threads']} threads")


def _sandbox() -> Check:
    from meca.decoder.decode import Decoded
    from meca.decoder.pool import Decoder
    from meca.decoder.worker import samples
    from meca.errors import MecaError

    try:
        with Decoder(1) as decoder:
            read = sum(isinstance(image, Decoded) for _, image in decoder.map(samples(), lambda data: data))
    except MecaError as error:
        return _check("sandbox", False, str(error))
    level = decoder.level or {}
    walls = {"full": "namespaces, limits", "basic": "limits; no namespaces for this user here"}[level["level"]]
    calls = "system calls filtered" if level["seccomp"] else "no filter of system calls (libseccomp is not found)"
    return _check("sandbox", read > 0, f"{level['level']}: {walls}; {calls}")


def _disk() -> Check:
    free = shutil.disk_usage(Path()).free
    return _check("disk", free >= SPACE, f"{free / 2**30:.1f} GiB free here" + ("" if free >= SPACE else f", less than {SPACE / 2**30:.0f}"))


def _data() -> Check:
    folder = os.environ.get("MECA_DATA")
    if not folder:
        return _check("MECA_DATA", True, "not set: cifar10 and fashion-mnist would be downloaded")
    exists = Path(folder).is_dir()
    return _check("MECA_DATA", exists, folder if exists else f"{folder} is no folder")


def _dvc() -> Check:
    file = Path(".dvc/config")
    if not file.is_file():
        return _check("dvc", True, f"{_version('dvc') or 'missing'}; no DVC project in this folder")
    settings = configparser.ConfigParser()
    for path in (file, Path(".dvc/config.local")):
        with contextlib.suppress(configparser.Error):
            settings.read(path, encoding="utf-8")
    remotes = {name: dict(settings[name]) for name in settings.sections() if "remote" in name}
    default = settings.get("core", "remote", fallback="none")
    told = [
        f"remote {without_secrets(block.get('url', '?'))}{'' if block.get('verify') == 'true' else ' (verify is off)'}" for block in remotes.values()
    ]
    unreachable = [block["endpointurl"] for block in remotes.values() if "endpointurl" in block and _answer(block["endpointurl"]) is None]
    text = f"{_version('dvc') or 'missing'}; default remote {default}; {', '.join(told) or 'no remote'}"
    return _check("dvc", not unreachable, text + "".join(f"; {without_secrets(u)} does not answer" for u in unreachable))


def _mlflow() -> Check:
    address = environment.tracking_uri(Path())
    if not address.startswith("http"):
        return _check("mlflow", True, f"{_version('mlflow') or 'missing'}; no server, records in {without_secrets(address)}")
    if _answer(address.rstrip("/") + "/health") is None:
        return _check("mlflow", False, f"{without_secrets(address)} does not answer within {ANSWER:.0f} s")
    is_open = _answer(without_secrets(address).rstrip("/") + "/api/2.0/mlflow/experiments/search?max_results=1") == 200
    return _check("mlflow", True, f"{_version('mlflow') or 'missing'}; {without_secrets(address)} answers" + ("; auth is off" if is_open else ""))


def _prefect() -> Check:
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        return _check("prefect", True, f"{_version('prefect') or 'missing'}; no server set, a temporary one starts with each flow")
    status = _answer(address.rstrip("/") + "/health")
    return _check("prefect", status is not None, f"{without_secrets(address)} " + ("answers" if status else f"does not answer within {ANSWER:.0f} s"))


def _telemetry() -> Check:
    names = ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS", "PREFECT_SERVER_ANALYTICS_ENABLED")
    on = [name for name in names if os.environ.get(name) != environment.DEFAULTS[name]]
    return _check("telemetry", True, f"off, but for what you set: {', '.join(on)}" if on else "off in meca's processes")


def _answer(address: str) -> int | None:
    """Return the status that a server gives, whatever it is; None where nothing answers in time."""
    if not address.startswith(("http://", "https://")):
        return None
    try:
        with urllib.request.urlopen(address, timeout=ANSWER) as reply:  # noqa: S310 - the scheme is checked above
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None
