"""One thread and no GPU, unless the caller says otherwise: set before torch is imported, which reads them then."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.slow import listed

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MECA_THREADS", "1")
os.environ.setdefault("MECA_DEVICE", "cpu")

# The secret that seals what runs leave: not that of whoever runs the tests. Workers of pytest-xdist inherit the one of their parent.
if "PYTEST_XDIST_WORKER" not in os.environ:
    STATE = tempfile.TemporaryDirectory(prefix="meca-tests-")  # removed when this process ends
    os.environ["MECA_STATE_DIR"] = f"{STATE.name}/state"

settings.register_profile("meca", deadline=None)  # the cores are shared: a test never fails because it took long
settings.load_profile("meca")

# A job in the background of a shell inherits "ignore" for SIGINT, and hands it on to every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = ("tests/integration/", "tests/hostile/test_corpus.py", "tests/data/readers/test_properties.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what starts real servers, unless it is asked for: by name, or by MECA_SERVICES_TESTS."""
    asked = os.environ.get("MECA_SERVICES_TESTS") or any("services" in Path(word.split("::")[0]).parts for word in config.args)
    return True if collection_path == Path(__file__).parent / "services" and not asked else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what was measured to be slow, for `make test-fast`; the longest files go first, or one of them is the end of the run."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    slow = listed()
    for item in items:
        if item.nodeid.split("[")[0] in slow:
            item.add_marker(pytest.mark.slow)
