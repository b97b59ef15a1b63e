"""What a process knows of the machine that it runs on, and how it ends with its parent."""

import contextlib
import ctypes
import os
import platform
import signal
import sys
from pathlib import Path

from meca import __version__

__all__ = ["die_with_parent", "peak_mib", "processor", "versions"]


def die_with_parent(signum: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent dies (Linux), so that no second copy is left running."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signum)  # PR_SET_PDEATHSIG
        if os.getppid() == 1 and os.environ.get("MECA_PARENT") not in (None, "1"):
            os._exit(1)


def peak_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def processor() -> str:
    """Return the name of the processor, as the kernel says it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of meca, Python and those libraries of the core that are loaded."""
    found = {"meca": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "pyarrow", "PIL", "sklearn"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found
