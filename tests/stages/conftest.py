"""One finished run of the method for each preset; tests copy what they change."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meca.params import PRESETS

Finished = Callable[[str], Path]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """Return the folder of the run of a preset; nobody writes into it."""
    from tests.stages.chain import quick, run

    made: dict[str, Path] = {}

    def find(preset: str = "default") -> Path:
        assert preset in PRESETS
        if preset not in made:
            made[preset] = run(tmp_path_factory.mktemp(preset), quick(preset))
        return made[preset]

    yield find
