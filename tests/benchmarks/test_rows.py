"""Rows can be traced: each names a command that is there, under its own name or the one of today."""

import importlib.util
import json
import re

import pytest

from benchmarks import rows as results
from benchmarks.rows import ROOT, code_digest, provenance
from meca.params import PACKAGED, read_params

FILES = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))
RENAMED = dict(re.findall(r"^\| `(benchmarks\.\w+)` \| `(benchmarks\.\w+\.\w+)` \|$", (ROOT / "benchmarks" / "README.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_the_command_of_a_row_is_there_or_stands_in_the_table_of_old_ones(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    modules = {found[1] for row in rows if (found := re.search(r"python -m (\S+)", row.get("command", "")))}
    unknown = {module for module in modules - set(RENAMED) if importlib.util.find_spec(module) is None}
    assert not unknown, f"commands of rows that neither are there nor in benchmarks/README.md: {unknown}"


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_a_renamed_command_is_gone_and_its_new_name_is_there(old):
    assert importlib.util.find_spec(old) is None and importlib.util.find_spec(RENAMED[old]) is not None


def test_a_new_row_carries_its_code_its_parameters_and_its_state(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    params = read_params(PACKAGED)
    results.conclude({"name": "a", "tried": 1, "as_specified": 1, "lost": 0, "notes": ""}, 0.0, "python -m x", False, params)
    results.speed("b", 2.0, "python -m y")
    row, fast = (json.loads((tmp_path / f"{kind}.jsonl").read_text()) for kind in ("reliability", "speed"))
    for found in (row, fast):
        assert {*results.PROVENANCE, "dirty", "code_sha256", "params_sha256"} <= set(found)
        assert isinstance(found["dirty"], bool) and found["code_sha256"] == code_digest()
    assert (row["params_sha256"], fast["params_sha256"]) == (params.digest(), None)
    assert fast["ratio"] is None and fast["n"] == 1 and fast["seconds"] == 2.0
    assert results.read(tmp_path)["reliability"] == [row]


def test_the_code_of_a_row_is_all_code_and_no_row(tmp_path):
    for name in ("meca/a.py", "tests/hostile/b.py", "benchmarks/results/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    found = [code_digest(tmp_path)]
    (tmp_path / "benchmarks/results/c.jsonl").write_text("two")
    assert code_digest.__wrapped__(tmp_path) == found[0]
    for name in ("meca/a.py", "tests/hostile/b.py"):
        (tmp_path / name).write_text("two")
        found.append(code_digest.__wrapped__(tmp_path))
    assert len(set(found)) == 3


def test_what_the_machine_knows_better_replaces_what_a_row_says():
    assert provenance("x", 1.23, None, hardware="a GPU")["hardware"] == "a GPU"
    assert provenance("x", 1.23, None)["seconds"] == 1.2 and provenance("x", 1.23, None)["seed"] is None
