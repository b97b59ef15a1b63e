"""The rows about services: every promise has tests behind it, and what failed or was skipped counts as failed."""

import ast
from pathlib import Path

import pytest

from benchmarks.reliability import integration
from benchmarks.rows import ROOT

REPORT = """<testsuites><testsuite>
<testcase classname="tests.services.test_x" name="test_good[1]" time="1.5"><properties><property name="value" value="2.25"/></properties></testcase>
<testcase classname="tests.services.test_x" name="test_good[2]" time="1"><failure message="no"/></testcase>
<testcase classname="tests.services.test_x" name="test_gone" time="0"><skipped message="no server"/></testcase>
<testcase classname="tests.services.test_y" name="test_other" time="3"/>
</testsuite></testsuites>"""


@pytest.mark.parametrize("begin", sorted({begin for promise in integration.PROMISES.values() for begin in promise.tests if "::" in begin}))
def test_a_promise_names_tests_that_exist(begin: str) -> None:
    module, _, name = begin.partition("::")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith(name)]


def test_what_failed_or_did_not_run_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    cases = integration.read(tmp_path / "report.xml")
    promises = {
        "one": integration.Promise("n", ("tests.services.test_x::test_good",), "s"),
        "all": integration.Promise("", ("tests.services.",)),
    }
    monkeypatch.setattr(integration, "PROMISES", promises)
    assert integration.judge(cases) == [
        {"name": "one", "tried": 2, "passed": 1, "value": 2.2, "unit": "s", "notes": "n; failed: tests.services.test_x::test_good[2]",
         "seconds": 2.5},
        {"name": "all", "tried": 4, "passed": 2, "value": None, "unit": None, "seconds": 5.5,
         "notes": "failed: tests.services.test_x::test_gone, tests.services.test_x::test_good[2]"},
    ]  # fmt: skip
    monkeypatch.setattr(integration, "PROMISES", {"gone": integration.Promise("", ("tests.services.test_z::",))})
    with pytest.raises(ValueError, match=r"gone: no test is called tests\.services\.test_z::"):
        integration.judge(cases)
