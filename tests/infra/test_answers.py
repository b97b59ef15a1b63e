"""A server of this machine is asked itself, and by nobody else."""

import http.server
import threading

import pytest

from infra.local.servers import answers


@pytest.fixture
def server():
    """Serve by path: /200, /404, /302 to /200; give the address and what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(int(self.path[1:4]))
            self.send_header("Location", "/200")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("path", "expected"), [("200", True), ("204", True), ("404", False), ("503", False), ("302", False)])
def test_only_success_is_an_answer(server, path, expected):
    address, asked = server
    assert answers(f"{address}/{path}") is expected
    assert asked == [f"/{path}"]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/", "http://[", "no address", "http://127.0.0.1:99999/"])
def test_nobody_is_no_answer(address):
    assert answers(address, 0.5) is False


def test_no_proxy_of_the_environment_is_asked(server, monkeypatch):
    address, asked = server
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert answers(f"{address}/200") and asked == ["/200"]
    monkeypatch.setenv("http_proxy", address)
    assert not answers("http://127.0.0.1:9/200") and asked == ["/200"]
