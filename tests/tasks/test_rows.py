"""No row is lost or torn, and each says which code, parameters and commit it comes from."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meca.errors import MecaError
from tasks.benchmark import rows
from tasks.benchmark.rows import append, cell, identity, newest, origins, provenance, read_rows, revision, table


def test_rows_are_added_whole_and_the_last_of_a_cell_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for row in ({"key": "a", "n": 1}, {"key": "b", "n": 2}, {"key": "a", "n": 3}):
        append(file, row)
    assert [row["n"] for row in read_rows(file)] == [1, 2, 3]
    assert {name: row["n"] for name, row in newest(read_rows(file), "key").items()} == {"a": 3, "b": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    file.write_text('{"key": "a"}')  # somebody's editor took the last line end away
    append(file, {"key": "b"})
    assert len(read_rows(file)) == 2
    file.write_text('{"key": "a"}\n{"key": ')
    with pytest.raises(MecaError, match=r"rows.jsonl:2: expected a JSON object"):
        read_rows(file)


def test_rows_of_several_processes_are_all_there(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from tasks.benchmark.rows import append\nfor i in range(30): append(Path(sys.argv[1]), {'i': i})"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "rows.jsonl")], cwd=rows.ROOT) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(row["i"] for row in read_rows(tmp_path / "rows.jsonl")) == sorted([*range(30)] * 3)


def test_a_cell_is_named_by_one_key_or_by_several() -> None:
    found = newest([{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 1, "b": "x", "n": 2}, {"a": 1}], "a", "b")
    assert [row.get("n") for row in found.values()] == [2, None]
    assert identity({"a": 1, "b": None}, ("a", "b")) != identity({"a": "1", "b": None}, ("a", "b"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository with one commit, of code and of rows."""
    monkeypatch.delenv("MECA_COMMIT", raising=False)
    monkeypatch.setattr(rows, "revision", revision.__wrapped__)
    for name in ("code.py", "params.yaml", "benchmarks/results/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "one")):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_a_change_of_code_makes_dirty_and_a_new_row_does_not(repository: Path) -> None:
    clean = rows.revision(repository)
    assert clean["dirty"] is False and len(clean["commit"]) >= 7
    (repository / "benchmarks/results/a.jsonl").write_text("one\ntwo\n")
    (repository / "benchmarks/results/b.jsonl").write_text("new\n")
    (repository / "note.txt").write_text("no code")
    assert rows.revision(repository) == clean
    (repository / "sub folder").mkdir()
    (repository / "sub folder" / "new code.py").write_text("new")
    assert rows.revision(repository) == {**clean, "dirty": True}
    (repository / "sub folder" / "new code.py").unlink()
    for name in ("code.py", "params.yaml"):
        (repository / name).write_text("two\n")
        assert rows.revision(repository) == {**clean, "dirty": True}
        (repository / name).write_text("one\n")


def test_without_a_history_nothing_is_invented(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = repository / "inner"  # an installed package inside of some other repository
    inner.mkdir()
    assert rows.revision(inner) == {"commit": None, "dirty": None}
    monkeypatch.setenv("MECA_COMMIT", "abc1234")
    assert rows.revision(repository) == {"commit": "abc1234", "dirty": None}


def test_every_new_row_says_where_it_comes_from() -> None:
    found = provenance("python -m x", 3, "c" * 64, None)
    assert set(found) == {"command", "seed", "commit", "dirty", "code_sha256", "params_sha256", "date"}
    assert found["params_sha256"] is None and found["code_sha256"] == "c" * 64


def test_a_page_marks_the_commit_of_a_row_whose_code_differed_from_it() -> None:
    row = {"command": "x", "commit": "abc1234", "date": "2026-11-23", "seed": 1}
    assert "commit abc1234;" in origins([{**row, "dirty": False}, row])
    assert "commit abc1234, abc1234+;" in origins([{**row, "dirty": True}, row])


def test_a_table_says_its_cells_as_they_are() -> None:
    text = table(("name", "", "n"), [("a", "1.50", "2,000"), (cell("x|y\n<b>"), "", cell(None))], "llr")
    assert text == "| name |  | n |\n|:--|:--|--:|\n| a | 1.50 | 2,000 |\n| x\\|y &lt;b> |  | – |\n"
    assert table(("a", "b", "c"), [], "lr") == "| a | b | c |\n|:--|--:|--:|\n"


@settings(deadline=None, derandomize=True)
@example([["\x01", "", ""]])  # what the library takes for a line between two parts
@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), max_size=4))
def test_no_text_breaks_a_table_or_drops_a_line_of_it(lines: list[list[str]]) -> None:
    text = table(("a", "b", "c"), [[cell(value) for value in line] for line in lines], "l")
    found = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.removesuffix("\n").split("\n")]
    assert [[word[1:-1] for word in line] for line in found[2:]] == [[cell(value) for value in line] for line in lines]
