"""Every hostile data set ends as specified: refused in a sentence, asked about, set aside by name, or kept; never in an exception."""

from collections import Counter
from pathlib import Path

import pytest

from tests.hostile.corpus import CASES
from tests.hostile.trial import attempt, tree_of

# Of the threats T01 to T45 those that reach a reader, a name or a parameter file; T34 (lists of addresses), T41 and T44 (MLflow) do not.
THREATS = {f"T{number:02d}" for number in (*range(1, 18), *range(20, 34), 35, 40, 42, 43, 45)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(CASES))
def test_a_hostile_set_ends_as_specified(name: str, tmp_path: Path) -> None:
    assert attempt(CASES[name], tmp_path).wrong == []


def test_there_are_at_least_150_cases_of_every_outcome_and_threat() -> None:
    kinds = Counter(case.expected.kind for case in CASES.values())
    assert len(CASES) >= 150 and min(kinds[kind] for kind in ("REFUSE", "USAGE", "QUAR", "KEPT")) >= 20, kinds
    assert {case.threat for case in CASES.values()} >= THREATS
    assert len({(case.id.split("-")[0], case.what) for case in CASES.values()}) == len(CASES), "two cases are the same"


@pytest.mark.parametrize("name", list(CASES)[::7])
def test_a_set_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    trees = []
    for time in ("one", "two"):
        (tmp_path / time / "in").mkdir(parents=True)
        (tmp_path / time / "canary").mkdir()
        (tmp_path / time / "canary" / "secret.png").write_bytes(b"x")
        CASES[name].make(tmp_path / time / "in")
        found = tree_of(tmp_path / time / "in").items()
        trees.append({path: (mode, content) for path, (mode, _, content) in found if not str(content).startswith("/")})  # a link says where it lies
    assert trees[0] == trees[1]
