"""The campaign sees what a run leaves behind."""

import fcntl
import subprocess
import sys

from benchmarks.reliability import soak
from tests.integration.small import until


def test_a_process_and_a_lock_that_stay_are_seen(tmp_path):
    place = tmp_path / "workspace"
    place.mkdir()
    (place / "lock").touch()
    assert soak._processes(tmp_path) == [] == soak._locks(place)
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=place, stdin=subprocess.PIPE) as child, open(place / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        until(lambda: [str(child.pid) in text for text in soak._processes(tmp_path)] == [True], 10)
        assert soak._locks(place) == ["lock on lock"]
        child.kill()
    assert soak._processes(tmp_path) == [] == soak._locks(place)
