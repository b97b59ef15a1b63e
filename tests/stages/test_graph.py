"""The graph is what the signatures say, whether they are read from the source or from the loaded module."""

import importlib
from pathlib import Path

import pytest

from meca.stages.graph import graph, read_interface
from meca.stages.runtime import describe

STAGES = Path(importlib.import_module("meca.stages").__path__[0])


@pytest.mark.parametrize("name", graph())
def test_the_source_says_what_the_loaded_run_says(name: str) -> None:
    assert read_interface(STAGES / f"{name}.py") == describe(importlib.import_module(f"meca.stages.{name}"))


def test_a_stage_stands_behind_those_that_it_reads_and_no_folder_is_written_twice() -> None:
    written: list[str] = []
    for name, (reads, writes) in graph().items():
        assert {*reads} <= {*written}, name
        written += writes
    assert len(written) == len({*written})


def test_what_is_published_records_the_numbers_of_every_stage_behind_it() -> None:
    steps = graph()
    behind, open_ = set[str](), ["publish"]
    while open_:
        behind.add(name := open_.pop())
        open_ += [other for other, step in steps.items() if {*step.writes} & {*steps[name].reads} and other not in behind]
    wanted = {group for name in behind - {"poison"} for group in describe(importlib.import_module(f"meca.stages.{name}")).groups}
    assert {*describe(importlib.import_module("meca.stages.publish")).groups} == wanted


def test_a_file_is_all_that_a_new_stage_needs(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("def run(ctx, a: Path, out: Output, *, b: B, a_params: A, more: Groups = Groups('c')) -> None: ...")
    (tmp_path / "a.py").write_text("def run(ctx, out: Output) -> None: ...")
    (tmp_path / "helper.py").write_text("x = 1")
    assert graph(tmp_path) == {"a": ((), ("work/a",)), "b": (("work/a",), ("work/b",))}
    found = read_interface(tmp_path / "b.py")
    assert found is not None and found.groups == ("c", "b", "a") and found.parameters == {"b": "b", "a_params": "a"}


def test_an_input_that_nobody_writes_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def run(ctx, lost: Path, out: Output) -> None: ...")
    with pytest.raises(ValueError, match=r"got \{'a': \['lost'\]\}"):
        graph(tmp_path)
