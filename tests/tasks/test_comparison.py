"""The evidence that models are compared on, out of a published folder and the data that it names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from meca.data.store import Store, read_parquet, write_parquet
from meca.errors import MecaError
from meca.files import canonical_json
from meca.method.relabel import Relabelled
from meca.params import PACKAGED, read_params, with_settings
from meca.release.manifest import listing
from meca.release.published import Published
from meca.stages import publish
from meca.stages.relabel_finetune import _final
from meca.stages.runtime import execute
from tasks.mlflow.comparison import gather
from tests.making import decide, ingest, make_folder, settings


def published(folder: Path, seed: int) -> tuple[Store, Path, np.ndarray, np.ndarray]:
    """Publish what stage `relabel_finetune` makes of drawn flags, and return who was flagged and what the clean model sees."""
    rng = np.random.default_rng(seed)
    source = make_folder(folder / "data", per_class=12)
    (source / "train" / "cat" / "5.jpeg").write_bytes(b"no image")  # a line without a row, in the middle
    store = ingest(source, folder / "store")
    n = store.info.n_train
    flagged, content = rng.random(n) < 0.5, rng.integers(0, 3, n)
    rows = {int(row): ("poisoned", "remove", None) for row in np.flatnonzero(flagged)}
    paths = decide(store, folder / "work", rows)
    earlier = read_parquet(paths["split"] / "decisions.parquet")
    # Some of the flagged are relabelled, some kept after all, some removed.
    fate = rng.integers(0, 3, n)
    labels = torch.from_numpy(np.array(store.labels[:n]))
    changed, keep = torch.from_numpy(flagged & (fate == 0)), torch.from_numpy(~flagged | (fate < 2))
    final = _final(earlier, Relabelled(torch.where(changed, (labels + 1) % 3, labels), keep, changed), torch.from_numpy(content), "poisoned")
    assert {"clean", "poisoned"} <= set(final["verdict"].to_pylist()) and final["verdict"].to_pylist() != earlier["verdict"].to_pylist()
    write_parquet(final.take(pa.array(rng.permutation(n))), paths["relabel_finetune"] / "decisions.parquet")
    execute(publish, {"store": store.path, **paths, "out": folder / "published"}, settings(), scratch=folder / "scratch")
    return store, folder / "published", flagged, content


@pytest.mark.parametrize("seed", range(3))
def test_the_evidence_is_that_of_the_stages_and_nothing_of_theirs_is_read(seed: int, tmp_path: Path) -> None:
    store, folder, flagged, content = published(tmp_path, seed)
    shutil.rmtree(tmp_path / "work")
    found = gather(store.path, Published.open(folder), settings())
    assert np.array_equal(found.flagged, flagged) and np.array_equal(found.content, content)
    assert found.is_tested and found.seed == read_params(PACKAGED).seed
    assert found.probe == read_params(PACKAGED).raw("relabel_finetune")["probe"] and found.store.info == store.info


def test_data_numbers_and_verdicts_of_another_set_are_no_evidence(tmp_path: Path) -> None:
    store, folder, _, _ = published(tmp_path / "a", 0)
    other = ingest(make_folder(tmp_path / "b", per_class=4), tmp_path / "b" / "store")
    with pytest.raises(MecaError, match=r"The data in .* has the SHA-256"):
        gather(other.path, Published.open(folder), settings())
    for name, value in (("relabel_finetune.probe", 1), ("seed", 9), ("publish.name", "x")):
        with pytest.raises(MecaError, match=r"What params\.yaml says has the SHA-256"):
            gather(store.path, Published.open(folder), with_settings(read_params(PACKAGED), {name: value}))
    gather(store.path, Published.open(folder), with_settings(read_params(PACKAGED), {"promote.min_acc": 0.0}))
    table = read_parquet(folder / "verdicts.parquet")
    for lines in (table.slice(1), table.set_column(3, "label", pa.array([0] * table.num_rows, pa.int64()))):
        write_parquet(lines, folder / "verdicts.parquet")
        with pytest.raises(MecaError, match=r"verdicts\.parquet is not what its manifest says"):
            gather(store.path, Published.open(folder), settings())
        manifest = json.loads((folder / "manifest.json").read_text()) | {"files": listing(folder)}
        (folder / "manifest.json").write_text(canonical_json(manifest))
        with pytest.raises(MecaError, match="are about other samples than"):
            gather(store.path, Published.open(folder), settings())
