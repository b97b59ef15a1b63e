"""python -m benchmarks.pictures: a run on real servers, and how MLflow and Prefect show it, as pictures in docs/.

It starts services of its own, lets `meca demo` run against them, opens the pages in Chromium and takes everything away again.
Settings behind it go to the demo: python -m benchmarks.pictures --data digits --set train_clean.epochs=2
"""

import argparse
import base64
import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx

from infra.local import services
from infra.local.place import HOST, Place
from meca.errors import MecaError

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
SIZE = "1440,1000"
MODEL = "meca-clean"  # as params.yaml names it
PATIENCE = 60000  # milliseconds of a page's own time until its picture is taken


def main() -> int:
    """Take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    given, settings = parser.parse_known_args()
    folder = Path(tempfile.mkdtemp(prefix="meca-pictures-"))
    folder.chmod(0o755)  # PostgreSQL comes through as somebody else when we are root
    try:
        services.start(folder / "services", free_ports=True)
        place = Place.of(folder / "services")
        _demo(folder / "workspace", place.client(), settings)
        _take(place, folder, given.output)
    except MecaError as error:
        print(f"meca: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        services.stop(folder / "services")
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _demo(workspace: Path, variables: Mapping[str, str], settings: list[str]) -> None:
    command = [sys.executable, "-c", "from flows.cli import main; main()", "demo", "--folder", str(workspace), *settings]
    code = subprocess.run(command, env={**os.environ, **variables, "PYTHONPATH": str(ROOT)}, check=False).returncode
    if code not in (0, 5):  # 5: a gate refuses the model of a short run
        raise MecaError(f"The demo ended with exit code {code}.")


def _take(place: Place, folder: Path, output: Path) -> None:
    known = place.client()
    mlflow = f"{known['MLFLOW_TRACKING_USERNAME']}:{known['MLFLOW_TRACKING_PASSWORD']}"
    with _gateway(place.address("mlflow"), mlflow) as address:
        found = _ask(f"http://{address}/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"], "filter": "tags.`meca.result_key` != ''"})["runs"]
        _picture(f"http://{address}/#/experiments/1/runs/{found[0]['info']['run_id']}", output / "mlflow-run.png", folder)
        _picture(f"http://{address}/#/models/{MODEL}", output / "mlflow-model.png", folder)
    with _gateway(place.address("prefect"), known["PREFECT_API_AUTH_STRING"]) as address:
        runs = _ask(f"http://{address}/api/flow_runs/filter", {"sort": "START_TIME_DESC", "flows": {"name": {"any_": ["sanitize"]}}, "limit": 1})
        _picture(f"http://{address}/runs/flow-run/{runs[0]['id']}", output / "prefect-run.png", folder)


def _picture(address: str, file: Path, folder: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise MecaError("Expected Chromium, found none; on Debian: apt install chromium.")
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking", f"--window-size={SIZE}"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # it does not run as root otherwise; the pages are our own servers'
    options += [f"--user-data-dir={folder / 'browser'}", f"--virtual-time-budget={PATIENCE}", f"--screenshot={file.resolve()}"]
    subprocess.run([browser, *options, address], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)
    print(file)


def _ask(address: str, body: dict[str, Any]) -> Any:
    return httpx.post(address, json=body, timeout=60, trust_env=False).raise_for_status().json()


@contextlib.contextmanager
def _gateway(server: str, login: str) -> Generator[str]:
    """Stand before a server and add the login to each request, so that it is in no command line and no page asks for it."""
    header = "Basic " + base64.b64encode(login.encode()).decode()

    class Gateway(http.server.BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            headers = {name: self.headers[name] for name in ("Accept", "Content-Type", "User-Agent") if name in self.headers}
            # Our own server's redirects are followed, with the login: it stays in this machine.
            reply = client.request(self.command, f"http://{server}{self.path}", content=body, headers={**headers, "Authorization": header})
            answer = reply.content
            if self.path.split("?")[0].endswith("ui-settings"):  # Prefect's page asks for no password then, and comes through here
                answer = json.dumps({**reply.json(), "auth": None, "api_url": f"http://{self.headers['Host']}/api"}).encode()
            self.send_response(reply.status_code)
            self.send_header("Content-Type", reply.headers.get("Content-Type", "application/octet-stream"))
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = pass_on  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    client = httpx.Client(timeout=60, trust_env=False, follow_redirects=True)
    gateway = http.server.ThreadingHTTPServer((HOST, 0), Gateway)
    thread = threading.Thread(target=gateway.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{HOST}:{gateway.server_port}"
    finally:
        gateway.shutdown()
        gateway.server_close()
        client.close()


if __name__ == "__main__":
    raise SystemExit(main())
