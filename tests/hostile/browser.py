"""Chromium without a window, shut off from the network: what a page did when it was opened."""

import contextlib
import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Opened", "chromium", "open_page"]


@dataclass(frozen=True)
class Opened:
    """A page that was opened."""

    dom: str  # as it stands after its scripts
    console: list[str]  # lines of the console
    asked: list[str]  # addresses that it asked for


def chromium() -> str:
    """Return the program, or skip the test."""
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium: no program called chromium, chromium-browser or google-chrome is on the path")
    return found


@contextlib.contextmanager
def _recorder() -> Iterator[tuple[int, list[str]]]:
    """Give the port of a proxy that answers nothing and writes down what it was asked for."""
    asked: list[str] = []

    class Recorder(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_CONNECT = do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


# What the browser asks for on its own account, whatever the page is.
OWN = re.compile(r"(google(apis|usercontent)?|gstatic|gvt1|chrome|android\.clients)\.|\.google\b|optimizationguide|^(clients|update|edgedl)")


def open_page(page: Path, profile: Path) -> Opened:
    """Open a file; every request that is no file goes to a recorder, which answers nothing."""
    with _recorder() as (port, asked):
        done = subprocess.run(
            [
                chromium(),
                *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update", "--disable-background-networking"),
                *("--disable-extensions", "--disable-sync", "--disable-domain-reliability", "--metrics-recording-only", "--enable-logging=stderr"),
                f"--user-data-dir={profile}",
                f"--proxy-server=127.0.0.1:{port}",
                "--proxy-bypass-list=<-loopback>",
                "--virtual-time-budget=4000",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=180,
            env={**os.environ, "HOME": str(profile)},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        console = [line.partition("CONSOLE")[2] for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Opened(done.stdout, console, [address for address in asked if not OWN.search(address)])
