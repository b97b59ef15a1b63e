"""Small real data sets, stores and decisions for tests."""

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from meca import pipeline, power, state
from meca.data.ingest import read_source
from meca.data.readers import IngestParams
from meca.data.store import Store, open_store
from meca.files import canonical_json, sha256_tree
from meca.params import PACKAGED, Params, read_params, with_settings
from meca.stages import publish
from meca.stages.graph import graph
from meca.stages.runtime import execute

NAMES = ["cat", "dog", "émeu"]


def real_data(*parts: str) -> Path:
    """Return a path below the real data, or skip the test."""
    root = Path(os.environ.get("MECA_DATA", "../shared/data"))
    if not root.joinpath(*parts).exists():
        pytest.skip(f"needs the real data {'/'.join(parts)}: set MECA_DATA to the folder that holds it")
    return root.joinpath(*parts)


def pixels(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encode(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, kind, **options)
    return buffer.getvalue()


def make_folder(root: Path, per_class: int = 4, split_folders: bool = True, kind: str = "JPEG") -> Path:
    """Write an ImageFolder of three classes; images differ in size."""
    for s, split in enumerate(("train", "test") if split_folders else ("",)):
        for c, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                (folder / f"{i}.{kind.lower()}").write_bytes(encode(pixels(100 * s + 10 * c + i, 9 + i, 12), kind))
    return root


def table(labels: list[int], start: int = 0, names: list[str] | None = NAMES, **changes: Any) -> pa.Table:
    """Return a table in Hugging Face's form, with one further column."""
    images = [{"bytes": encode(pixels(start + i)), "path": f"{start + i}.png"} for i in range(len(labels))]
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64()), ("origin", pa.string())]
    columns: dict[str, Any] = {"image": images, "label": labels, "origin": [f"site {start + i}" for i in range(len(labels))], **changes}
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), "further": "kept"} if names else None
    schema = pa.schema([field for field in fields if columns[field[0]] is not None], metadata=metadata)
    return pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)


def make_shards(root: Path) -> Path:
    root.mkdir(parents=True)
    for i in range(2):
        pq.write_table(table([0, 1, 2, 0, 1, 2], start=10 * i), root / f"train-0000{i}-of-00002.parquet", row_group_size=4)
    pq.write_table(table([0, 1, 2], start=50), root / "test-00000-of-00001.parquet")
    return root


def params(**changes: Any) -> IngestParams:
    values: dict[str, Any] = {**read_params(PACKAGED).raw("ingest"), "size": 8, "shapes_train": 40, "shapes_test": 20}
    return IngestParams(**{**values, **changes})


def ingest(source: Path | str, out: Path, **changes: Any) -> Store:
    read_source(params(source=str(source), **changes), 0, out)
    return open_store(out)


Decisions = Mapping[int, tuple[str, str, int | None]]  # row: verdict, action, new label


def control_record(**states: str) -> dict[str, Any]:
    """Return control.json in which each kind of trigger had one try at 5 %, with this outcome; without one the control was not run."""
    if not states:
        return {"schema": "meca.control/1", **power.not_run("control.when is never")}
    tries = {
        "found": {"planted": 5, "found": True, "learnt": True},
        "missed": {"planted": 5, "found": False, "learnt": True},
        "not learnt": {"planted": 5, "found": False, "learnt": False},
        "not measured": {"planted": 5, "found": False, "learnt": None},
        "not planted": {"planted": 0, "found": False, "learnt": None},
    }
    lines = [power.line(kind, 0.05, 100, [tries[state]]) for kind, state in states.items()]
    return {"schema": "meca.control/1", "ran": True, "reason": "", "lines": lines, "samples": 100, "copies": [], "tries": []}


def decide(store: Store, work: Path, changed: Decisions, verdict: str = "poisoned", control: Mapping[str, Any] | None = None) -> dict[str, Path]:
    """Write what the stages before `publish` leave behind; what is not in `changed` is kept. The verdict `weak` is what the control makes of one."""
    if verdict == "weak":
        verdict, control = "no_evidence", control or control_record(badnet="found", blend="missed")
    n = store.info.n_train
    rows = {"row": list(range(n)), "sample_id": store.ids[:n]}
    chosen = [changed.get(row, ("clean", "keep", None)) for row in range(n)]
    suspicion = pa.array(np.linspace(0, 1, n), pa.float32())
    decisions = {
        **rows,
        "label": store.labels[:n],
        "verdict": [v for v, _, _ in chosen],
        "action": [a for _, a, _ in chosen],
        "new_label": pa.array([label for _, _, label in chosen], pa.int64()),
        "suspicion": suspicion,
        "enhanced_pred": [0] * n,
        "clean_pred": [1] * n,
        "reasons": [["low-consistency"] if v == "poisoned" else [] for v, _, _ in chosen],
    }
    paths = {name: work / name for name in ("partition", "enhance", "split", "control", "relabel_finetune")}
    for name, path in paths.items():
        path.mkdir(parents=True)
        if name == "control":
            (path / "control.json").write_text(canonical_json(control or control_record()))
        elif name in ("partition", "enhance"):
            scores = {**rows, "suspicion": suspicion, "likely_clean": [True] * n, "kl": pa.array([0.5] * n, pa.float32())}
            pq.write_table(pa.table(scores), path / "scores.parquet")
        else:
            pq.write_table(pa.table(decisions), path / "decisions.parquet")
            answer = {"verdict": verdict, "reason": "Because of this test.", "target_class": 1 if verdict == "poisoned" else None}
            rate = {"value": 0.1, "low": 0.0, "high": 0.2} if verdict == "poisoned" else None
            answer |= {"estimated_rate": rate, "caps": [], "leak": 0.0, "leak_power": 0.9}
            (path / "verdict.json").write_text(json.dumps(answer))
    (paths["relabel_finetune"] / "model.json").write_text("{}")
    (paths["relabel_finetune"] / "model.safetensors").write_bytes(b"weights")
    return paths


def settings(**changes: Any) -> Params:
    return with_settings(read_params(PACKAGED), {key.replace("__", "."): value for key, value in changes.items()})


def publish_store(store: Store, folder: Path, changed: Decisions, verdict: str = "poisoned", control: Mapping[str, Any] | None = None) -> Path:
    """Run stage publish on decisions and return the published folder."""
    paths = {"store": store.path, **decide(store, folder / "work", changed, verdict, control), "out": folder / "published"}
    execute(publish, paths, settings(), scratch=folder / "scratch")
    return folder / "published"


def make_cleaned(folder: Path, source: Path | str, changed: Decisions, verdict: str = "poisoned") -> Path:
    """Write what `meca clean` leaves behind, the published folder `out` and the run folder beside it with its seals, and return `out`."""
    out, run = folder / "out", folder / ".out.meca"
    small = {"train_limit": 20, "test_limit": 10} if isinstance(source, str) else {}
    publish_store(ingest(source, run / "data" / "store", **small), run, changed, verdict)
    (run / "work" / "evaluate").mkdir()
    shutil.copytree(run / "published", out)
    (out / "report.html").write_text("the page of the run")
    seal_run(run)
    return out


def seal_run(run: Path) -> Path:
    """Give a run folder the receipts and the seals that it would have here, and return it."""
    now = {"code": "of this test", "input": "of this test"}
    state.write(run / ".meca" / "identity.json", canonical_json(now).encode(), "identity", str(run.resolve()))
    for name, (_, writes) in graph().items():
        receipt = pipeline._receipt(run, name)  # pyright: ignore[reportPrivateUsage]
        outputs = {"out" if len(writes) == 1 else Path(path).name: sha256_tree(run / path) for path in writes if (run / path).exists()}
        record = canonical_json({"params": read_params(PACKAGED).tree, "outputs": outputs}).encode()
        names, seals = pipeline._seal_name(run, name, now), pipeline._seals(run, name)  # pyright: ignore[reportPrivateUsage]
        state.write(receipt, record, *names, seals=seals)
    return run
