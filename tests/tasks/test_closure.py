"""The import closure: nothing that a program can load is missing, and nothing else is in it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.dvc.closure import closure, rewrite, stage_module

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
        "params.yaml": "preset: default\nseed: 0\npoison: {x: 1}\npartition: {default: {x: 1}, paper: {x: 2}}\n",
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


def test_rewrite_changes_code_and_parameters_and_nothing_else(project):
    (project / "meca" / "a.py").write_text('GROUPS = ("seed", "poison", "partition")\n')
    head = "stages: # kept\n  a:\n    cmd: >-\n      python -m meca.a\n      --out out\n"
    before = head + "    deps:\n      - data\n      - meca/gone.py\n    params:\n      - old\n    outs:\n      - out # kept\n"
    after = before.replace("      - meca/gone.py\n", "      - meca/__init__.py\n      - meca/a.py\n")
    after = after.replace("      - old\n", "      - seed\n      - poison\n      - partition.${preset}\n")
    assert rewrite(project, before) == after
    assert rewrite(project, after) == after


def test_a_command_of_another_form_is_named():
    with pytest.raises(ValueError, match="cp a b"):
        stage_module("cp a b")
