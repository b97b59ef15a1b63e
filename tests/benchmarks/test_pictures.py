"""A page that is to be shown comes through a gateway, which knows the login; the page does not."""

import base64
import http.server
import json
import threading

import httpx
import pytest

from benchmarks import pictures

LOGIN = "meca:s3cret"


@pytest.fixture
def server():
    """Serve a page behind a login; give its place and what came."""
    came: list[tuple[str, str, str | None, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            came.append((self.command, self.path, self.headers.get("Authorization"), body))
            right = self.headers.get("Authorization") == "Basic " + base64.b64encode(LOGIN.encode()).decode()
            status = 401 if not right else 302 if self.path == "/" else 404 if self.path == "/none" else 200
            answer = json.dumps({"auth": "BASIC", "api_url": "http://elsewhere/api", "n": 1}).encode()
            self.send_response(status)
            self.send_header("Location", "/page")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


def test_the_gateway_adds_the_login_and_passes_on_what_it_is_asked(server):
    place, came = server
    with pictures._gateway(place, LOGIN) as address:
        assert pictures._ask(f"http://{address}/api/search", {"limit": 1})["n"] == 1
        assert httpx.get(f"http://{address}/none").status_code == 404
        page = httpx.get(f"http://{address}/")
        assert page.status_code == 200 and page.headers["Content-Type"] == "application/json", "a server that moves its first page on"
        settings = httpx.get(f"http://{address}/ui-settings?x=1").json()
    assert settings == {"auth": None, "api_url": f"http://{address}/api", "n": 1}
    assert [(method, path) for method, path, _, _ in came] == [
        ("POST", "/api/search"), ("GET", "/none"), ("GET", "/"), ("GET", "/page"), ("GET", "/ui-settings?x=1"),
    ]  # fmt: skip
    assert json.loads(came[0][3]) == {"limit": 1}
    assert {login for _, _, login, _ in came} == {"Basic " + base64.b64encode(LOGIN.encode()).decode()}
