"""The plots are drawn from numbers alone, the same bytes for the same numbers, and leave no sample out."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.mlflow.figures import counts, curves, drawn, histogram

EDGES = np.linspace(0, 1, 51)
VERDICTS = ("clean", "review", "poisoned", "quarantined")
SUSPICIONS = st.one_of(st.floats(0, 1, width=32), st.sampled_from([float(np.float32(edge)) for edge in EDGES]), st.just(math.nan))


def write(path: Path, samples: list[tuple[float, str]]) -> Path:
    suspicion = np.array([value for value, _ in samples], np.float32)
    pq.write_table(pa.table({"suspicion": suspicion, "verdict": pa.array([name for _, name in samples], pa.string())}), path)
    return path


def words(path: Path) -> str:
    return " ".join(element.text or "" for element in ElementTree.parse(path).iter() if element.tag.endswith("text"))


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    points = [("train.loss", step, 1.0 / (step + 1)) for step in range(5)] + [("test.loss", 0, 2.0)]
    for name in ("a.svg", "b.svg"):
        curves(points, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "loss" in words(tmp_path / "a.svg") and "train" in words(tmp_path / "a.svg")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(samples=st.lists(st.tuples(SUSPICIONS, st.sampled_from(VERDICTS)), max_size=60))
def test_the_histogram_counts_every_sample_once(tmp_path_factory, samples):
    found = counts(write(tmp_path_factory.mktemp("verdicts") / "verdicts.parquet", samples), EDGES)
    for name in VERDICTS[:3]:
        mine = [value for value, verdict in samples if verdict == name and not math.isnan(value)]
        assert int(found[name].sum() if name in found else 0) == len(mine)
        if mine:
            upper = np.cumsum(found[name])
            assert all(upper[i] >= sum(value < EDGES[i + 1] for value in mine) for i in range(50)), "none is counted above its place"
            assert all(upper[i] <= sum(value <= EDGES[i + 1] for value in mine) for i in range(50)), "none is counted below its place"
    assert "quarantined" not in found


def test_the_histogram_shows_what_was_counted(tmp_path):
    samples = [(0.1, "clean"), (0.9, "poisoned"), (1.0, "poisoned"), (0.0, "review"), (math.nan, "quarantined"), (0.5, "poisoned")]
    histogram(write(tmp_path / "verdicts.parquet", samples), tmp_path / "h.svg")
    assert all(text in words(tmp_path / "h.svg") for text in ("clean (1)", "poisoned (3)", "review (1)"))
    assert "quarantined" not in words(tmp_path / "h.svg")


@pytest.mark.parametrize("name", ["$x_1$", "$", "a & <b>", "絵"])
def test_a_name_is_text_and_nothing_else(name):
    text = drawn(lambda figure: figure.text(0.5, 0.5, name), 1, 1)
    assert [element.text for element in ElementTree.fromstring(text).iter() if element.tag.endswith("text")] == [name]


def test_a_figure_names_no_date_and_no_place_on_the_web_but_its_languages():
    text = drawn(lambda figure: figure.add_subplot().plot([0, 1]), 3, 2)
    assert text.startswith("<svg") and "<!DOCTYPE" not in text and "date" not in text.lower() and "matplotlib.org" not in text
