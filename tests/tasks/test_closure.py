"""The import closure: nothing that a program can load is missing, and nothing else is in it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.dvc.closure import closure, dependencies, rendered, stage_module

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    files = {
        "meca/__init__.py": "",
        "meca/a.py": "import os\nfrom meca import b\ndef late():\n    from meca.sub import c\n",
        "meca/b.py": "from .sub.d import x\n",
        "meca/unused.py": "",
        "meca/sub/__init__.py": "",
        "meca/sub/c.py": "PAGE = 'page.html'\n",
        "meca/sub/d.py": "x = 1\n",
        "meca/sub/page.html": "{% include 'page.css' %}",
        "meca/sub/page.css": "",
        "meca/sub/other.css": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_closure_follows_packages_relative_and_late_imports_and_named_resources(project):
    expected = ["__init__.py", "a.py", "b.py", "sub/__init__.py", "sub/c.py", "sub/d.py", "sub/page.css", "sub/page.html"]
    assert closure(project, "meca.a") == [f"meca/{name}" for name in expected]


def test_closure_holds_what_python_loads():
    program = "import sys, meca.data.store; print(*sorted(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'meca'), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert {Path(file).resolve().relative_to(ROOT).as_posix() for file in loaded} <= set(closure(ROOT, "meca.data.store"))


def test_a_folder_stands_for_its_files_where_all_of_them_are_reached(project):
    assert dependencies(project, "meca.a") == ["meca/__init__.py", "meca/a.py", "meca/b.py", *closure(project, "meca.a")[3:]], "other.css is not"
    (project / "meca/sub/other.css").unlink()
    assert dependencies(project, "meca.a") == ["meca/__init__.py", "meca/a.py", "meca/b.py", "meca/sub"]


def test_a_pipeline_without_code_depends_on_data_alone():
    stages = yaml.safe_load(rendered(ROOT, code=False))["stages"]
    assert not [dep for stage in stages.values() for dep in stage["deps"] if dep.endswith(".py") or dep.startswith(("meca", "tasks"))]
    assert stages["ingest"]["deps"] == ["${ingest.watch}"] and stages["split"]["deps"] == ["data/store", "work/partition", "work/enhance"]


def test_a_command_of_another_form_is_named():
    with pytest.raises(ValueError, match="cp a b"):
        stage_module("cp a b")
