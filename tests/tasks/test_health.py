"""Servers that misbehave as no honest one does; the honest ones are in tests/services."""

import datetime
import gzip
import http.server
import json
import ssl
import subprocess
import sys
import threading
import time
from typing import Any, ClassVar

import pytest

from flows import doctor
from tasks import health


class Script(http.server.BaseHTTPRequestHandler):
    """Answers by `answers`: path (without query) -> (status, body, headers), or a callable that takes over."""

    answers: ClassVar[dict] = {}
    seen: ClassVar[list] = []

    def do_GET(self):
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.answers.get(self.path.split("?")[0], self.answers.get("*", (404, b"", {})))
        if callable(answer):
            answer(self)
            return
        status, body, headers = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_PUT = do_GET

    def log_message(self, *_):
        pass


class Quiet(http.server.ThreadingHTTPServer):
    """A client that turns away is no news."""

    def handle_error(self, request: Any, client_address: Any) -> None: ...


@pytest.fixture
def script(monkeypatch):
    """Serve answers and give (address, answers, seen); the login is set."""
    handler = type("Scripted", (Script,), {"answers": {}, "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "meca")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    yield f"http://127.0.0.1:{server.server_port}", handler.answers, handler.seen
    server.shutdown()
    server.server_close()


OPEN_MLFLOW = {"/health": (200, b"OK", {}), "/version": (200, b"3.17.2", {}), "*": (200, b"{}", {})}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_with_the_password(script, status):
    address, answers, seen = script
    answers.update({"*": (status, b"", {"Location": f"{address}/elsewhere"})})
    found = health.mlflow(address)
    assert not found.ok and "points to another address" in found.found
    assert [path for _, path, _ in seen] == ["/health"]
    assert "elsewhere" not in found.found


def test_the_first_question_carries_no_password(script):
    address, answers, seen = script
    answers.update(OPEN_MLFLOW)
    health.mlflow(address)
    assert seen[0] == ("GET", "/health", None)
    assert seen[1][2] == health._basic("meca:s3cret")


def test_an_open_server_is_warned_of(script, monkeypatch):
    address, answers, _ = script
    answers.update(OPEN_MLFLOW)
    for _ in range(2):  # with a login that nobody asks for, and without one
        found = health.mlflow(address)
        assert found.ok and any("authentication is off" in warning for warning in found.warnings)
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    settings = {"server": {"concurrency": {"lease_storage": "prefect.server.concurrency.lease_storage.memory"}}}
    answers.update({"/api/admin/version": (200, b'"0.0.1"', {}), "/api/admin/settings": (200, json.dumps(settings).encode(), {})})
    warned = " ".join(health.prefect(f"{address}/api", None).warnings)
    for word in ("different versions", "authentication is off", "kept in memory"):
        assert word in warned


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"", "refuses the login"),
        (403, b"Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        (403, b"{}", "right to read and write"),
        (404, b"", "the address of the right server"),
        (500, b"password=s3cret", "--backend-store-uri"),
    ],
)
def test_each_status_has_a_next_step_and_no_answer_is_quoted(script, status, body, words):
    address, answers, _ = script
    answers.update({"/health": (200, b"OK", {}), "*": (status, body, {})})
    found = health.mlflow(address)
    assert not found.ok and words in f"{found.found} {found.next}"
    assert "s3cret" not in f"{found}"


@pytest.mark.parametrize("garbage", [b"\x00\xff nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab", b""])
def test_what_speaks_no_http_is_a_finding(script, garbage):
    address, answers, _ = script

    def reply(handler):
        handler.wfile.write(garbage)
        handler.close_connection = True

    answers["*"] = reply
    found = health.mlflow(address)
    assert not found.ok
    assert found.next


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_an_answer_is_read_up_to_a_limit_and_never_unpacked(script, monkeypatch, headers):
    address, answers, _ = script
    monkeypatch.setattr(health, "LARGEST", 1000)
    packed = gzip.compress(bytes(10**6))
    answers["*"] = (200, packed if headers else bytes(10**6), headers)
    server = health._Server(address, None, "NAMES")
    assert server.ask("/") == (packed if headers else bytes(10**6))[:1000]


def serve_tls(tmp_path, script):
    """Turn the server of answers into one with a certificate that nobody signed, and return its address and the certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False).sign(key, hashes.SHA256())
    certificate, secret = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    handler = type("Scripted", (Script,), {"answers": script[1], "seen": []})
    server = Quiet(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"https://localhost:{server.server_port}", certificate


def test_a_certificate_counts_only_where_its_authority_is_named(script, monkeypatch, tmp_path):
    script[1].update(OPEN_MLFLOW)
    server, address, certificate = serve_tls(tmp_path, script)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    try:
        found = health.mlflow(address)
        assert not found.ok and "its certificate is not trusted" in found.found and "REQUESTS_CA_BUNDLE" in found.next
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert health.mlflow(address).ok
        found = health.mlflow(address.replace("localhost", "127.0.0.1"))
        assert not found.ok and "its certificate is not trusted" in found.found, "it is another server's"
    finally:
        server.shutdown()
        server.server_close()


def test_nobody_and_a_proxy_that_cannot_be_used_are_findings(script, monkeypatch):
    assert "does not answer" in health.mlflow("http://127.0.0.1:9").found
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    found = health.mlflow("http://mlflow.example")
    assert not found.ok and "a proxy that cannot be used" in found.found and "ALL_PROXY" in found.next


def test_garbage_instead_of_json_is_a_finding(script):
    address, answers, _ = script
    answers.update({"*": (200, b"<html>", {})})
    found = health.prefect(address, None)
    assert not found.ok and "JSON" in found.found


def test_a_server_that_never_finishes_holds_nobody_up(script, monkeypatch, tmp_path):
    address, answers, _ = script

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    answers["*"] = drip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "DEADLINE", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for name in ("PREFECT_API_URL", "MECA_REMOTE_URL", "MECA_S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    found = {check["name"]: check for check in doctor._servers()}
    assert not found["mlflow"]["ok"] and "no end of its answers" in found["mlflow"]["found"]
    assert found["prefect"]["ok"]


def test_a_check_that_fails_by_itself_says_so_without_its_text(monkeypatch, tmp_path):
    def fail(*given):
        raise RuntimeError("s3cret")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(health, "mlflow", fail)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = {check["name"]: check for check in doctor._servers()}
    assert found["mlflow"]["found"] == "could not be examined (RuntimeError)"


def test_each_bucket_is_named_once(monkeypatch):
    monkeypatch.setenv("MECA_REMOTE_URL", "s3://meca/dvc")
    monkeypatch.setenv("MECA_S3_BUCKET", "meca")
    assert health.buckets({}) == [health.Bucket("meca", "dvc")]
    monkeypatch.setenv("MECA_S3_BUCKET", "other")
    far = {"far": {"url": "s3://meca/dvc", "endpointurl": "http://h", "secret_access_key": "s3cret"}, "near": {"url": "/mnt/x"}}
    found = health.buckets(far)
    assert [(bucket.name, bucket.endpoint) for bucket in found] == [("meca", None), ("meca", "http://h"), ("other", None)]
    assert "s3cret" not in repr(found)


def test_the_profile_s_server_is_found_where_no_variable_names_one(monkeypatch, tmp_path):
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))
    assert health.prefect_in_force() is None
    (tmp_path / "profiles.toml").write_text(
        'active = "team"\n[profiles.team]\nPREFECT_API_URL = "http://prefect.example/api"\nPREFECT_API_AUTH_STRING = "a:b"\n'
    )
    # In a process of its own: Prefect reads its profile once.
    program = "from tasks import health; print(health.prefect_in_force())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout
    assert told.strip() == str(("http://prefect.example/api", health._basic("a:b")))
