"""Rows can be traced: each names a command that is there, under its own name or the one of today."""

import importlib.util
import json
import re

import pytest

from benchmarks.render import ROOT

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
