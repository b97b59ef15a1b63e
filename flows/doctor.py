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
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks import environment, health
from tasks.environment import without_secrets

__all__ = ["examine"]

PATIENCE = 60.0  # seconds for the import of torch on a slow disk
DEADLINE = 30.0  # seconds for all questions to all servers, which are asked side by side
SPACE = 2 * 2**30  # bytes: less will not hold the smallest demonstration and its environment's caches

_DEVICES = """
import json, torch
cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"cuda": cuda, "threads": torch.get_num_threads(), "built": torch.version.cuda}))
"""

Check = dict[str, Any]


def examine() -> list[Check]:
    """Return a line per check: `name`, `ok` (false where meca cannot work like this), `found`, `warnings`, `next` (step)."""
    environment.prepare()
    checks: tuple[Callable[[], Check], ...] = (_python, _packages, _devices, _sandbox, _disk, _seals, _data, _dvc)
    return [*(check() for check in checks), *_servers(), _runs(), _telemetry()]


def _check(name: str, ok: bool, found: str, warnings: Sequence[str] = (), next_step: str = "") -> Check:
    return {"name": name, "ok": ok, "found": found, "warnings": list(warnings), "next": next_step}


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
    from meca.data.decoder.decode import Decoded
    from meca.data.decoder.pool import Decoder
    from meca.data.decoder.worker import samples
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


def _seals() -> Check:
    from meca import state

    why = state.lasts()
    return _check(
        "seals", True, "none that last: every run begins anew" if why else "a run knows what an earlier one of this user left", [why] if why else []
    )


def _data() -> Check:
    folder = os.environ.get("MECA_DATA")
    if not folder:
        return _check("MECA_DATA", True, "not set: cifar10 and fashion-mnist would be downloaded")
    exists = Path(folder).is_dir()
    return _check("MECA_DATA", exists, folder if exists else f"{folder} is no folder")


def _dvc() -> Check:
    if not Path(".dvc/config").is_file():
        return _check("dvc", True, f"{_version('dvc') or 'missing'}; no DVC project in this folder")
    settings = _dvc_settings()
    remotes = _remotes(settings)
    told = [f"remote {without_secrets(block.get('url', '?'))}" for block in remotes.values()]
    unverified = [name for name, block in remotes.items() if block.get("verify") != "true"]
    trusting = f"verify is off for {', '.join(unverified)}: DVC hands out whatever it finds there (dvc remote modify … verify true)"
    default = settings.get("core", "remote", fallback="none")
    return _check(
        "dvc", True, f"{_version('dvc') or 'missing'}; default remote {default}; {', '.join(told) or 'no remote'}", [trusting] if unverified else []
    )


def _dvc_settings() -> configparser.ConfigParser:
    settings = configparser.ConfigParser(interpolation=None)  # a key may hold a percent sign
    for path in (Path(".dvc/config"), Path(".dvc/config.local")):
        with contextlib.suppress(configparser.Error):
            settings.read(path, encoding="utf-8")
    return settings


def _remotes(settings: configparser.ConfigParser) -> dict[str, dict[str, str]]:
    """Return DVC's remotes by name; their sections are called `'remote "name"'`."""
    return {name.strip("'").removeprefix("remote").strip(' "'): dict(settings[name]) for name in settings.sections() if "remote" in name}


def _servers() -> list[Check]:
    """Ask every server that the environment names, side by side; one that never finishes holds nobody up."""
    found = health.buckets(_remotes(_dvc_settings()))
    asked: list[tuple[str, Callable[[], Check]]] = [("mlflow", _mlflow), ("prefect", _prefect)]
    asked += [("s3", lambda bucket=bucket: _finding("s3", health.s3(bucket))) for bucket in found]
    answers: dict[int, Check] = {}

    def ask(number: int, question: Callable[[], Check]) -> None:
        try:
            answers[number] = question()
        except Exception as error:  # its text may hold anything
            told = f"could not be examined ({type(error).__name__})"
            answers[number] = _check(asked[number][0], False, told, next_step="Look at the variables that name it.")

    threads = [threading.Thread(target=ask, args=(number, question), daemon=True) for number, (_, question) in enumerate(asked)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + DEADLINE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no end of its answers within {DEADLINE:.0f} s"
    return [
        answers.get(number) or _check(name, False, late, next_step="Look at the server's log and load.") for number, (name, _) in enumerate(asked)
    ]


def _finding(name: str, found: health.Finding) -> Check:
    return _check(name, found.ok, found.found, found.warnings, found.next)


def _mlflow() -> Check:
    address = environment.tracking_uri(Path())
    if not address.startswith("http"):
        return _check("mlflow", True, f"{_version('mlflow') or 'missing'}; no server, records in {without_secrets(address)}")
    return _finding("mlflow", health.mlflow(address))


def _prefect() -> Check:
    server = health.prefect_in_force()
    if server is None:
        return _check("prefect", True, f"{_version('prefect') or 'missing'}; no server set, a temporary one starts with each flow")
    return _finding("prefect", health.prefect(*server))


def _runs() -> Check:
    from tasks.prefect import dead_runs

    return _check("runs", *dead_runs.examine())


def _telemetry() -> Check:
    names = ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS", "PREFECT_SERVER_ANALYTICS_ENABLED")
    on = [name for name in names if os.environ.get(name) != environment.DEFAULTS[name]]
    return _check("telemetry", True, f"off, but for what you set: {', '.join(on)}" if on else "off in meca's processes")
