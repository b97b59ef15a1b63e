"""A workspace is complete, its own, and the same when made again."""

import pytest
import yaml

from meca.errors import UsageError
from meca.params import read_params
from tasks.dvc.workspace import ROOT, create


def state(path):
    return {file.relative_to(path).as_posix(): (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def test_made_again_it_stays_as_it_is(tmp_path):
    create(tmp_path / "w", {"ingest.shapes_train": 100})
    before = state(tmp_path / "w")
    create(tmp_path / "w", {"ingest.shapes_train": 100})
    assert state(tmp_path / "w") == before
    assert not [name for name in before if "__pycache__" in name]


def test_settings_are_the_only_difference_of_parameters(tmp_path):
    create(tmp_path / "w", {"ingest.shapes_train": 100, "preset": "paper"})
    expected = yaml.safe_load((ROOT / "params.yaml").read_text())
    expected["ingest"]["shapes_train"], expected["preset"] = 100, "paper"
    assert read_params(tmp_path / "w" / "params.yaml").tree == expected


def test_code_that_is_gone_in_the_project_goes_and_results_stay(tmp_path):
    create(tmp_path / "w")
    (tmp_path / "w" / "meca" / "old.py").write_text("")
    (tmp_path / "w" / "work").mkdir()
    (tmp_path / "w" / "work" / "result").write_text("mine")
    create(tmp_path / "w")
    assert not (tmp_path / "w" / "meca" / "old.py").exists()
    assert (tmp_path / "w" / "work" / "result").read_text() == "mine"


def test_without_code_no_stage_depends_on_code(tmp_path):
    create(tmp_path / "w", code=False)
    assert not (tmp_path / "w" / "meca").exists()
    stages = yaml.safe_load((tmp_path / "w" / "dvc.yaml").read_text())["stages"]
    assert not [dep for stage in stages.values() for dep in stage.get("deps") or () if dep.endswith(".py")]


def test_an_unknown_setting_and_a_missing_project_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"did you mean 'ingest\.size'"):
        create(tmp_path / "w", {"ingest.siez": 3})
    with pytest.raises(UsageError, match="found none"):
        create(tmp_path / "w", root=tmp_path)


@pytest.mark.parametrize("name", ["meca", "tasks/inner", ".dvc"])
def test_nothing_is_removed_or_written_through_a_link_in_a_workspace(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("mine")
    (tmp_path / "w" / name).parent.mkdir(parents=True)
    (tmp_path / "w" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=rf"{name} is a link, which meca does not follow"):
        create(tmp_path / "w")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis"]
