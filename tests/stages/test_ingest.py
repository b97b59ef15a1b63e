"""Stage ingest: the parameters in, a store out, the same bytes each time."""

from pathlib import Path

import pytest

from meca.data.store import open_store
from meca.errors import InputRefused
from meca.files import sha256_tree
from meca.stages import ingest
from meca.stages.runtime import describe, execute
from tests.making import make_folder, make_shards, settings


def test_the_stage_reads_what_it_says() -> None:
    stage = describe(ingest)
    assert (stage.name, stage.inputs, stage.outputs, stage.groups) == ("ingest", (), ("out",), ("ingest",))


@pytest.mark.parametrize("source", ["folder", "shards", "shapes", "digits"])
def test_two_runs_give_the_same_bytes(source: str, tmp_path: Path) -> None:
    made = {"folder": make_folder, "shards": make_shards}
    path = str(made[source](tmp_path / "in")) if source in made else source
    chosen = settings(ingest__source=path, ingest__size=8, ingest__shapes_train=40, ingest__shapes_test=20, ingest__train_limit=12)
    receipts = [execute(ingest, {"out": tmp_path / name}, chosen, scratch=tmp_path / "scratch") for name in ("a", "b")]
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b") and receipts[0]["key"] == receipts[1]["key"]
    assert receipts[0]["metrics"] == {"n_train": 12, "n_test": open_store(tmp_path / "a").info.n_test, "quarantined": 0}
    files = {"images.npy", "payload.bin", "samples.parquet", "store.json", "metrics.json"} | ({"columns.parquet"} if source == "shards" else set())
    assert {p.name for p in (tmp_path / "a").iterdir()} == files


def test_another_seed_takes_other_samples(tmp_path: Path) -> None:
    for seed in (0, 1):
        chosen = settings(seed=seed, ingest__source="digits", ingest__size=8, ingest__train_limit=20)
        execute(ingest, {"out": tmp_path / str(seed)}, chosen, scratch=tmp_path / "scratch")
    first, second = (set(open_store(tmp_path / str(seed)).samples["source"].to_pylist()[:20]) for seed in (0, 1))
    assert first != second


def test_a_refused_input_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="Nothing found at"):
        execute(ingest, {"out": tmp_path / "store"}, settings(ingest__source=str(tmp_path / "missing")), scratch=tmp_path / "scratch")
    assert not (tmp_path / "store").exists()
