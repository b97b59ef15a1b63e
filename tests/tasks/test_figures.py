"""The plots are drawn from numbers alone, the same bytes for the same numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.figures import curves, histogram


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    points = [("train.loss", step, 1.0 / (step + 1)) for step in range(5)] + [("test.loss", 0, 2.0)]
    for name in ("a.svg", "b.svg"):
        curves(points, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_histogram_counts_every_sample_once(tmp_path):
    table = pa.table({"suspicion": np.array([0.1, 0.9, 1.0, np.nan], np.float32), "verdict": ["clean", "poisoned", "poisoned", "quarantined"]})
    pq.write_table(table, tmp_path / "verdicts.parquet")
    histogram(tmp_path / "verdicts.parquet", tmp_path / "h.svg")
    assert "<svg" in (tmp_path / "h.svg").read_text()
