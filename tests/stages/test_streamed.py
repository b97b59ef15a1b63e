"""Sets that do not fit into memory: every stage ends in the same bytes."""

from pathlib import Path

import pytest

from meca.params import PRESETS
from tests.stages.chain import METHOD, outputs, quick, run
from tests.stages.conftest import Finished


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_whose_images_stay_in_their_files_ends_in_the_same_bytes(preset: str, finished: Finished, tmp_path: Path) -> None:
    resident, streamed = finished(preset), run(tmp_path, quick(preset, engine__resident=0.0))
    for name in METHOD:
        assert outputs(name, resident) == outputs(name, streamed), name
