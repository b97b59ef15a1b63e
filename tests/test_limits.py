"""Stage programs under the limits of the system: a sentence and exit code 2, nothing half-written, and the same command continues."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meca.data.ingest import _Collector
from meca.data.readers.source import Found
from meca.data.store import open_store
from meca.errors import MecaError
from meca.files import sha256_tree
from meca.stages.graph import Output
from meca.stages.runtime import Context, execute
from tests.making import make_folder, params, settings
from tests.test_pipeline import stage

ROOT = Path(__file__).parents[1]


def ingest(folder: Path, limit: int | None = None, value: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the program under a soft limit, on a folder of images."""
    source = folder / "source"
    if not source.exists():
        make_folder(source)
    (folder / "params.yaml").write_text(json.dumps(settings(ingest__source=str(source), ingest__size=32).tree))
    arguments = ["--out", str(folder / "out"), "--params", str(folder / "params.yaml"), "--receipt", str(folder / "receipt.json")]

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))

    return subprocess.run(
        [sys.executable, "-m", "meca.stages.ingest", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, preexec_fn=restrict, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whole")
    assert ingest(folder).returncode == 0
    return sha256_tree(folder / "out")


@pytest.mark.parametrize("size", [0, 1000, 73_000, 73_800])  # in the lock, in the payload, in the pixels, in the last bytes of images.npy
def test_files_that_may_not_grow_end_the_stage_with_a_sentence_and_nothing_half_written(size: int, whole: str, tmp_path: Path) -> None:
    failed = ingest(tmp_path, resource.RLIMIT_FSIZE, size)
    assert failed.returncode == MecaError.exit_code and "Traceback" not in failed.stderr
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("meca ingest: Could not go on: files may not be so large here; raise the limit (`ulimit -f`)")
    assert not list(tmp_path.glob("out*")) and not (tmp_path / "receipt.json").exists()
    assert ingest(tmp_path).returncode == 0 and sha256_tree(tmp_path / "out") == whole


def test_a_process_without_descriptors_blames_no_sample() -> None:
    program = """
import os, resource, sys
from pathlib import Path, PurePosixPath
from meca.data.readers.files import read_below, read_capped
here = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
held = [os.open(here, os.O_RDONLY) for _ in range(8 - len(os.listdir("/proc/self/fd")) + 1)]
for read in (lambda: read_capped(here, 10**6), lambda: read_below(here.parent, PurePosixPath(here.name), 10**6)):
    try: read()
    except OSError as error: assert error.errno == 24, error
    else: raise SystemExit("read without a descriptor")
"""
    subprocess.run([sys.executable, "-c", program, __file__], check=True, cwd=ROOT)


def test_a_run_that_the_disk_cannot_hold_is_refused_at_its_first_image(tmp_path: Path) -> None:
    sample = Found("a", 0, pixels=np.zeros((8, 8, 3), np.uint8))
    with _Collector(tmp_path, ("a",), None, "squash", 10, (10, 1000)) as collector:
        collector.add(sample, None, "train")
    with (
        pytest.raises(MecaError, match="A run on this data needs about 5"),
        _Collector(tmp_path, ("a",), None, "squash", 10, (10**12, 0)) as collector,
    ):
        collector.add(sample, None, "train")
    assert not list(tmp_path.iterdir())


def test_a_stage_that_fails_leaves_no_room_taken(tmp_path: Path) -> None:
    def fill(ctx: Context, out: Output) -> None:
        (out / "big").write_bytes(bytes(1000))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        execute(stage("first", ("ingest",), fill), {"out": tmp_path / "out"}, settings(), scratch=tmp_path / "scratch")
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def test_two_runs_on_one_input_that_write_elsewhere_share_no_checkpoints(tmp_path: Path) -> None:
    seen: list[Any] = []
    module = stage("first", ("ingest",), lambda ctx, out: seen.append(ctx.checkpoints))
    for name in ("a", "b", "a"):
        execute(module, {"out": tmp_path / name}, settings(), scratch=tmp_path / "scratch")
    assert seen[0] == seen[2] != seen[1]


def test_a_shrunken_set_has_the_pixels_of_its_rows(tmp_path: Path) -> None:
    """`rewrite` writes row by row: dropped rows are missing, changed ones have the new pixels, all others their own."""
    from meca.data.ingest import read_source
    from meca.data.store import rewrite

    read_source(params(source="shapes"), 0, tmp_path / "old")
    old = open_store(tmp_path / "old")
    keep = np.ones(old.info.n, bool)
    keep[[0, 7]] = False
    new = np.full(old.images.shape[1:], 9, np.uint8)
    rewrite(old, tmp_path / "new", {3: (new, 1)}, keep)
    expected = np.asarray(old.images).copy()
    expected[3] = new
    assert np.array_equal(open_store(tmp_path / "new").images, expected[keep])
    with pytest.raises(ValueError, match="reshape"):
        rewrite(old, tmp_path / "wrong", {3: (new[:4], 1)}, keep)
