import ast
from pathlib import Path

from tests.slow import listed, measured

ROOT = Path(__file__).parents[1]


def test_the_durations_of_all_phases_and_parameters_count_together() -> None:
    text = """
0.70s setup    tests/a/test_b.py::test_c[1-x]
0.40s call     tests/a/test_b.py::test_c[2-y z]
0.99s call     tests/a/test_b.py::test_d
======= 5 passed in 9.00s =======
"""
    assert measured(text) == ["tests/a/test_b.py::test_c"]


def test_every_name_in_the_list_is_a_test_so_that_a_renamed_one_is_not_taken_for_fast() -> None:
    missing = []
    for path, function in (name.split("::") for name in sorted(listed())):
        file = ROOT / path
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
        if function not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{path}::{function}")
    assert listed() and missing == []
