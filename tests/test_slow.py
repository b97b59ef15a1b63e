import ast
from pathlib import Path

from tests.slow import listed, measured

ROOT = Path(__file__).parents[1]


def test_the_durations_of_all_phases_and_parameters_count_together() -> None:
    text = """
0.30s setup    tests/a/test_b.py::test_c[1-x]
0.21s call     tests/a/test_b.py::test_c[2-y z]
0.50s call     tests/a/test_b.py::test_d
======= 5 passed in 9.00s =======
"""
    assert measured(text) == ["tests/a/test_b.py::test_c"]


def test_every_name_in_the_list_is_a_test_so_that_a_renamed_one_is_not_taken_for_fast() -> None:
    files = {path: ROOT / path for path in sorted({name.split("::")[0] for name in listed()})}
    trees = {path: ast.parse(file.read_text(encoding="utf-8")) for path, file in files.items() if file.is_file()}
    there = {f"{path}::{node.name}" for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert listed() and sorted(listed() - there) == []
