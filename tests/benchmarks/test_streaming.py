"""The benchmark of sets that stay in their files: every part is measured, in both arms where the set fits, and no cell twice."""

from pathlib import Path

import pytest

from benchmarks.speed import streaming
from benchmarks.speed.harness import Bench
from benchmarks.speed.performance import page
from tasks.benchmark.rows import read_rows


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of two sets of 8 px."""
    folder = tmp_path_factory.mktemp("measured")
    bench = Bench(folder / "speed.jsonl", "python -m benchmarks.memory", quick=True)
    for n in (96, 192):
        streaming.generate(folder / "images.npy", n, 8)
        for part in streaming.PARTS:
            streaming.measure(bench, folder / "images.npy", part)
    return folder / "speed.jsonl"


def test_every_part_has_a_row_with_both_arms(measured: Path) -> None:
    rows = read_rows(measured)
    assert [(row["part"], row["images"]) for row in rows] == [(part, n) for n in (96, 192) for part in streaming.PARTS]
    assert all(row["handled"] == row["images"] and row["ratio"] > 0 and row["holds"] and row["resident_mib"] is not None for row in rows)
    assert "Sets that stay in their files" in page(rows) and "training, 96 x 8 px" in page(rows)


def test_what_has_a_row_is_not_measured_again(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.subprocess, "run", lambda *_, **__: pytest.fail("measured again"))
    before = len(read_rows(measured))
    streaming.main(["--side", "8", "--images", "96", "192", "--out", str(measured)])
    added = read_rows(measured)[before:]
    assert {row["group"] for row in added} == {"scaling"} and len(added) == len(streaming.PARTS), "of one size nothing grows with pixels"


def test_small_sets_come_first_and_of_large_ones_the_cheap_parts_alone() -> None:
    found = streaming.cells()
    sizes = [side**2 * n for side, n, _ in found]
    assert sizes == sorted(sizes) and len(found) == len(streaming.SIDES) * len(streaming.NUMBERS)
    assert found[0][2] == tuple(streaming.PARTS) and found[-1] == (224, 100_000, streaming.CHEAP)


def test_the_peak_is_that_of_memory_which_is_given_back() -> None:
    with streaming.peak() as grown:
        block = bytearray(96 << 20)
        block[:] = b"1" * len(block)
        del block
    assert grown[0] > 90
    with pytest.raises(SystemExit, match="2"):
        streaming.main(["--quick"])
