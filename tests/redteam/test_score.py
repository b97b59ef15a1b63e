"""A run on planted data against the truth of it: every figure by hand."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flows.cli as cli
from meca import verbs
from meca.data.store import Store, read_parquet, write_parquet
from meca.errors import InputRefused, UsageError
from meca.models import load_model
from meca.training.engine import predict
from tests.making import decide, encode, ingest, settings
from tests.workspaces import COLOURS, network

SIDE = 8


def data(root: Path, n: int = 5) -> Path:
    rng = np.random.default_rng(5)
    for split in ("train", "test"):
        for label, name in enumerate(COLOURS):
            folder = root / split / name
            folder.mkdir(parents=True)
            for at in range(n):
                image = rng.integers(0, 30, (SIDE + at, SIDE + label, 3), np.uint8)
                image[..., 2 - label] += 150
                (folder / f"{split}{label}{at}.png").write_bytes(encode(image))
    return root


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what `meca poison` wrote: 6 of 15 are poison, of class red, and the test split carries the trigger."""
    folder = tmp_path_factory.mktemp("planted")
    changes = {"poison__attack": "badnet", "poison__rate": 0.4, "poison__cap": 1.0}
    verbs.plant(str(data(folder / "in")), folder / "out", settings(**changes), None, {"target_class": "red"}, False, True)
    return folder / "out"


def run_on(source: Path, folder: Path, changed: Mapping[int, tuple[str, str, int | None]] | None = None) -> tuple[Path, Store]:
    """Return a run folder as the stages leave it, and its store."""
    store = ingest(source, folder / "data" / "store", size=SIDE)
    decide(store, folder / "work", changed or {})
    for seed, (name, confused) in enumerate((("enhance", (0, 1)), ("train_clean", (1,)), ("relabel_finetune", ()))):
        network(store, folder / "work" / name, seed, confused)
    (folder / "published").mkdir()
    return folder, store


def test_detection_is_what_the_truth_says_sample_by_sample(planted: Path, tmp_path: Path) -> None:
    truth = {line["source"]: line for line in read_parquet(planted / "truth" / "truth.parquet").to_pylist()}
    probe = ingest(planted / "data", tmp_path / "probe", size=SIDE)
    names = probe.readable["source"].to_pylist()
    poison = [row for row, name in enumerate(names) if truth[name]["is_poisoned"]]
    clean = [row for row in range(15) if row not in poison]
    red = [row for row in clean if truth[names[row]]["class_name"] == "red"]
    original = [truth[names[row]]["original_label"] for row in poison]
    changed = {
        poison[0]: ("poisoned", "relabel", original[0]),
        poison[1]: ("poisoned", "relabel", 2),
        poison[2]: ("poisoned", "remove", None),
        poison[3]: ("poisoned", "keep", None),
        red[0]: ("poisoned", "remove", None),
    }
    run, _ = run_on(planted / "data", tmp_path / "run", changed)
    found = verbs.score(run, planted)
    told = found["detection"]
    assert (told["poisoned"], told["flagged"], told["removed"], told["poison_left"]) == (6, 5, 2, 3)
    assert (told["tpr"], told["fpr"], told["fpr_flagged"]) == (4 / 6, 1 / 9, 1 / len(red))
    assert (told["poison_relabelled"], told["poison_relabelled_rightly"]) == (2, 1)
    (of_red,) = (each for each in found["classes"] if each["name"] == "red")
    assert (of_red["n"], of_red["poisoned"], of_red["flagged"], of_red["tpr"], of_red["fpr"]) == (6 + len(red), 6, 5, 4 / 6, 1 / len(red))
    assert found["matched"] == {"samples": 15, "of_run": 15, "of_truth": 15}
    assert verbs.score(run, planted / "truth") == found


def test_asr_and_ra_are_those_of_the_networks_on_the_written_test_split(planted: Path, tmp_path: Path) -> None:
    run, _ = run_on(planted / "data", tmp_path / "run")
    found = verbs.score(run, planted)
    tests = read_parquet(planted / "truth" / "test.parquet").to_pylist()

    def answers(name: str, view: str) -> np.ndarray:
        pictures = [Image.open(planted / "test" / view / line["file"]).convert("RGB") for line in tests]
        images = np.stack([np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for picture in pictures])
        return predict(load_model(run / "work" / name), torch.from_numpy(images)).argmax(1).numpy()

    labels = np.array([line["label"] for line in tests])
    others = labels != 2
    for name, stage in (("clean", "train_clean"), ("final", "relabel_finetune")):
        clean, triggered = answers(stage, "clean"), answers(stage, "triggered")
        figures = found[name]
        assert figures["acc"] == (clean == labels).mean() and figures["n"] == 15
        assert (figures["asr_k"], figures["asr_n"]) == (int((triggered[others] == 2).sum()), 10)
        assert figures["ra"] == (triggered[others] == labels[others]).mean()


def test_a_class_of_the_run_is_found_by_its_name_and_samples_that_moved_by_their_bytes(planted: Path, tmp_path: Path) -> None:
    """Without one class the others have other numbers; the folder has another depth; a sample of somebody else's is in no truth."""
    shutil.copytree(planted / "data" / "train", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "blue")
    (tmp_path / "moved" / "green" / "new.png").write_bytes(encode(np.zeros((9, 9, 3), np.uint8)))
    run, store = run_on(tmp_path / "moved", tmp_path / "run")
    found = verbs.score(run, planted)
    (of_red,) = (each for each in found["classes"] if each["poisoned"])
    assert store.info.class_names == ("green", "red") and (of_red["label"], of_red["name"], of_red["poisoned"]) == (1, "red", 6)
    assert found["matched"]["samples"] == found["matched"]["of_run"] - 1 and found["matched"]["of_truth"] == 15
    assert (found["final"]["n"], found["final"]["asr_n"]) == (10, 5)
    assert found["final"]["acc"] == 1.0, "the images of the classes that are left, each under the number of its class"
    shutil.copytree(planted / "truth", tmp_path / "truth" / "truth", ignore=shutil.ignore_patterns("test.parquet"))
    without = verbs.score(run, tmp_path / "truth")
    assert without["final"] is None and "plant with --test" in without["unknown"][0] and without["detection"] == found["detection"]


def test_the_command_prints_the_figures_and_a_line_for_each_class(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = run_on(planted / "data", tmp_path / "run", {14: ("poisoned", "remove", None)})
    assert cli.run(["evaluate", str(run), "--truth", str(planted)]) == 0
    said = capsys.readouterr().out
    for line in (r"TPR +\d", r"FPR +\d", r"FPR inside flagged classes \d", r"final +\d.* of 10", r"red +\d+ +6 +\d", r"poison +6, of which"):
        assert re.search(rf"^{line}", said, re.M), line
    assert "Warning" not in said
    assert cli.run(["evaluate", str(run), "--truth", str(planted), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["known"] is True


def test_a_truth_that_is_none_is_refused(planted: Path, tmp_path: Path) -> None:
    run, _ = run_on(planted / "data", tmp_path / "run")
    with pytest.raises(UsageError, match=r"Expected --truth to be what `meca poison` wrote .* found none at"):
        verbs.score(run, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(planted / "truth", other / "truth")
    shutil.copytree(planted / "test", other / "test")
    table = read_parquet(other / "truth" / "truth.parquet")

    def spoil(path: str, content: Any) -> None:
        write_parquet(content, other / "truth" / path) if path.endswith("parquet") else (other / "truth" / path).write_text(json.dumps(content))

    spoil("truth.parquet", table.set_column(table.column_names.index("sample_id"), "sample_id", [["0" * 64] * 15]))
    with pytest.raises(UsageError, match="none of its 15 samples stands there"):
        verbs.score(run, other)
    spoil("truth.parquet", table.drop_columns(["is_cover"]))
    with pytest.raises(InputRefused, match=r"wrong are \['is_cover'\]; poison the data again"):
        verbs.score(run, other)
    spoil("truth.parquet", table)
    tests = read_parquet(other / "truth" / "test.parquet")
    at = tests.column_names.index("file")
    spoil("test.parquet", tests.set_column(at, "file", [["../../truth/attack.json"] * 15]))
    with pytest.raises(InputRefused, match=r"cannot be read .*leaves the folder"):
        verbs.score(run, other)
    record = json.loads((planted / "truth" / "attack.json").read_text())
    spoil("attack.json", {**record, "triggers": [{"target_of": [9, 9, 9]}]})
    with pytest.raises(InputRefused, match="to lead each of 3 classes to one"):
        verbs.score(run, other)
