"""One thread and no GPU, unless the caller says otherwise: set before torch is imported, which reads them then."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MECA_THREADS", "1")
os.environ.setdefault("MECA_DEVICE", "cpu")

# A job in the background of a shell inherits "ignore" for SIGINT, and hands it on to every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what starts real servers, unless it is asked for: by name, or by MECA_SERVICES_TESTS."""
    asked = os.environ.get("MECA_SERVICES_TESTS") or any("services" in Path(word.split("::")[0]).parts for word in config.args)
    return True if collection_path == Path(__file__).parent / "services" and not asked else None
