"""A workspace whose pipeline takes a second: what the flow needs of a real one, and a body that a test chooses."""

import json
from pathlib import Path

import yaml

from meca.report.text import plain
from tasks.workspace import create

SUMMARY = {
    "verdict": "no_evidence",
    "sentence": "Nothing was found.",
    "counts": {"input": 2, "kept": 2, "relabelled": 0, "removed": 0, "quarantined": 0},
    "classes": [{"name": "a", "input": 2, "kept": 2}],
    "warnings": [],
}

FIRST = """
import json, os, sys, time
from pathlib import Path
from meca.stages.runtime import die_with_parent
die_with_parent()
{body}
Path("data").mkdir(exist_ok=True)
Path("data/first").write_text(Path("input").read_text())
"""

PUBLISH = """
import json
from pathlib import Path
Path("published").mkdir(exist_ok=True)
Path("published/summary.json").write_text(json.dumps({summary!r} | {{"input": Path("data/first").read_text()}}))
"""


def small(path: Path, body: str = "", gpu: bool = False, **summary: object) -> Path:
    """Make a workspace of three stages; the first one runs `body`, and the second publishes a summary with the keys given."""
    create(path, code=False)
    (path / "input").write_text("one")
    (path / "first.py").write_text(FIRST.format(body=body))
    (path / "publish.py").write_text(PUBLISH.format(summary=SUMMARY | summary))
    (path / "report.py").write_text("from pathlib import Path\nPath('report').mkdir(exist_ok=True)\nPath('report/report.html').write_text('page')\n")
    stages = {
        "first": {"cmd": "python first.py", "deps": ["input", "first.py"], "outs": ["data"], "meta": {"gpu": gpu}},
        "publish": {"cmd": "python publish.py", "deps": ["data", "publish.py"], "outs": ["published"]},
        "report": {"cmd": "python report.py", "deps": ["published", "report.py"], "outs": ["report"]},
    }
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return path.resolve()


def touch(workspace: Path, text: str) -> None:
    """Change the input, so that every stage runs again."""
    (workspace / "input").write_text(plain(text))


def published(workspace: Path) -> dict[str, object]:
    """Return what the last run published."""
    return json.loads((workspace / "published" / "summary.json").read_text())
