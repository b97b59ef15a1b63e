"""Two runs are the same if nothing but clocks and hashes of the code differs; everything else is named."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.same_results import compare


def run(folder: Path, summary: object = None, values: tuple[float, ...] = (1.0,), weights: bytes = b"w", page: str = "a" * 64) -> Path:
    for part in ("data", "work", "published", "report"):
        (folder / part).mkdir(parents=True)
    (folder / "published" / "summary.json").write_text(json.dumps(summary or {"verdict": "poisoned", "code_sha256": "1", "counts": [1, 2]}))
    pq.write_table(pa.table({"suspicion": list(values)}), folder / "work" / "decisions.parquet")
    (folder / "work" / "model.safetensors").write_bytes(weights)
    (folder / "report" / "report.html").write_text(f"<p>{page}</p>")
    return folder


def test_clocks_and_hashes_of_the_code_make_no_difference(tmp_path):
    other = {"counts": [1, 2], "code_sha256": "2", "verdict": "poisoned", "seconds": 3}
    assert list(compare(run(tmp_path / "a"), run(tmp_path / "b", other, page="b" * 64))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"summary": {"verdict": "no_evidence", "counts": [1, 2]}}, 'published/summary.json: verdict is "no_evidence", was "poisoned"'),
        ({"summary": {"verdict": "poisoned", "counts": [1, 3]}}, "published/summary.json: counts[1] is 3, was 2"),
        ({"values": (1.5,)}, "work/decisions.parquet: other values"),
        ({"weights": b"x"}, "work/model.safetensors: other bytes"),
        ({"page": "poisoned"}, "report/report.html: other text"),
    ],
)
def test_whatever_else_differs_is_named(tmp_path, change, said):
    assert list(compare(run(tmp_path / "a"), run(tmp_path / "b", **change))) == [said]


def test_a_file_of_one_run_alone_is_named(tmp_path):
    before, after = run(tmp_path / "a"), run(tmp_path / "b")
    (after / "data" / "new").write_text("")
    assert list(compare(before, after)) == ["data/new is there after alone"]
