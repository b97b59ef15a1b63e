"""A campaign counts what really happened, and the page shows it beside what was expected."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import rows
from benchmarks.reliability import corpus as reliability
from benchmarks.reliability import hostile
from tests.fuzz import targets
from tests.fuzz.targets import Target
from tests.hostile import corpus
from tests.hostile.case import keep


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Leave three cases: one as it is, one of which the wrong thing is expected, one that is not tried."""
    right, wrong, untried = (corpus.CASES[name] for name in ("zip-link", "zip-doubled-name", "zip-device"))
    wrong = dataclasses.replace(wrong, expected=keep(6))
    monkeypatch.setattr(corpus, "CASES", {case.id: case for case in (right, wrong)})
    monkeypatch.setattr(corpus, "MODULES", {key: [] for key in hostile.TITLES} | {"archives": [right, wrong, untried]})
    return [right.id, wrong.id, untried.id]


def test_a_campaign_leaves_a_row_and_the_page_shows_every_case(three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    assert reliability.main(["--hostile"]) == 1, "one case did not end as expected"
    (row,) = (json.loads(line) for line in (tmp_path / "reliability.jsonl").read_text().splitlines())
    assert (row["name"], row["tried"], row["as_specified"], row["lost"]) == ("hostile-inputs", 2, 1, 0)
    assert row["command"] == "python -m benchmarks.reliability --hostile" and row["commit"] and row["seconds"] > 0
    found = hostile.outcomes(tmp_path)
    assert [found[name]["as_specified"] for name in three[:2]] == [True, False]
    page = hostile.page(found, [row])
    lines = {name: next(line for line in page.splitlines() if line.startswith(f"| {name} ")) for name in three}
    assert lines["zip-link"] == "| zip-link | T11 | a symbolic link (zip) | QUAR: link (1), 6 kept | as specified |"
    assert lines["zip-doubled-name"].endswith("** |") and "expected KEPT: 6 kept" in lines["zip-doubled-name"]
    assert lines["zip-device"].endswith("| – |")
    assert "1 of 2 that were tried ended as specified" in page and "python -m benchmarks.reliability --hostile" in page


def test_the_page_has_a_line_for_every_case_and_no_name_breaks_its_table() -> None:
    page = hostile.page({}, [])
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| case")]
    assert len(lines) == len(corpus.CASES) and all(line.replace("\\|", "").count("|") == 6 for line in lines)
    assert "<script" not in page and "0 of 0 that were tried" in page


def test_fuzzing_leaves_a_row_that_counts_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(data: bytes) -> None:
        if b"%" in data:
            raise KeyError("planted")

    monkeypatch.setattr(
        targets, "TARGETS", {name: Target(one, lambda: [b"nothing here"], words=(b"%",)) for name, one in (("a", fragile), ("b", len))}
    )
    monkeypatch.setattr(reliability, "FUZZ_SECONDS", 0.5)
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    assert reliability.main(["--fuzz"]) == 1
    (row,) = (json.loads(line) for line in (tmp_path / "reliability.jsonl").read_text().splitlines())
    assert row["name"] == "fuzzed inputs" and row["tried"] > 100 and row["tried"] - row["as_specified"] == 1 and row["lost"] == 0
    assert [file.name[:2] for file in (tmp_path / ".fuzz").glob("*.bin")] == ["a-"]


def test_without_a_campaign_the_command_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reliability.main([])
    assert "expected one of --hostile" in capsys.readouterr().err
