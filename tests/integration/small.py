"""A workspace whose pipeline takes a second: what the flow needs of a real one, and a body that a test chooses."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tasks.dvc.workspace import create

SUMMARY = {
    "verdict": "no_evidence",
    "sentence": "Nothing was found.",
    "counts": {"input": 2, "kept": 2, "relabelled": 0, "removed": 0, "quarantined": 0},
    "classes": [{"name": "a", "input": 2, "kept": 2}],
    "warnings": [],
    "judged_at": {"height": 32, "width": 32, "largest": None, "images_reduced": 0},
}

FIRST = """
import os, sys, time
from pathlib import Path
from meca.stages.runtime import die_with_parent
die_with_parent()
source = Path("{source}")
text = "".join(path.read_text() for path in (sorted(source.rglob("*.txt")) if source.is_dir() else [source]))
{body}
Path("data").mkdir(exist_ok=True)
Path("data/first").write_text(text)
"""

PUBLISH = """
import json
from pathlib import Path
Path("published").mkdir(exist_ok=True)
Path("published/summary.json").write_text(json.dumps({summary!r} | {{"input": Path("data/first").read_text()}}))
"""

REPORT = "from pathlib import Path\nPath('report').mkdir(exist_ok=True)\nPath('report/report.html').write_text('page')\n"


def small(path: Path, body: str = "", gpu: bool = False, origin: str = "", **summary: object) -> Path:
    """Make a workspace of three stages and return it.

    Args:
        path: The folder.
        body: Runs in the first stage, which then copies its input.
        gpu: The first stage needs one.
        origin: The input is fetched from there; else it is the file `input`.
        summary: Keys of what the second stage publishes.
    """
    create(path, {"ingest.origin": origin, "ingest.source": "bucket"} if origin else {}, code=False)
    source = "bucket" if origin else "input"
    if not origin:
        (path / "input").write_text("one")
    (path / "first.py").write_text(FIRST.format(body=body, source=source))
    (path / "publish.py").write_text(PUBLISH.format(summary=SUMMARY | summary))
    (path / "report.py").write_text(REPORT)
    stages = {
        "first": {"cmd": "python first.py", "deps": [source, "first.py"], "outs": ["data"], "meta": {"gpu": gpu}},
        "publish": {"cmd": "python publish.py", "deps": ["data", "publish.py"], "outs": ["published"]},
        "report": {"cmd": "python report.py", "deps": ["published", "report.py"], "outs": ["report"]},
    }
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return path.resolve()


def published(workspace: Path) -> dict[str, Any]:
    """Return what the last run published."""
    return json.loads((workspace / "published" / "summary.json").read_text())


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for a condition and return what it says; what never comes true is an error."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)
    return found


@contextmanager
def receiver(delay: float = 0, status: int = 200, location: str = "", drips: bool = False) -> Iterator[tuple[str, list[Any]]]:
    """Give the address of a receiver of notices and what it has taken."""
    taken: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null"))
            time.sleep(delay)
            with suppress(OSError):
                for i in range(200 * drips):  # a header without an end: each read of the client is in time
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " if i == 0 else b"x")
                    time.sleep(0.1)
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/notices", taken
    finally:
        server.shutdown()
        server.server_close()
