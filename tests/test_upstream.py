"""Whether the upstream answers, and what is believed of it."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sglang_cached_addon import upstream as module
from sglang_cached_addon.upstream import FRESH_SECONDS, State, Upstream


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate for 127.0.0.1 that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "self-signed.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class Stub(ThreadingHTTPServer):
    """Answers every request with one status, and notes what came."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = status
        self.received: list[tuple[str, str, dict[str, str], bytes]] = []
        self.scheme = "http"

    def secure(self, context: ssl.SSLContext) -> None:
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append((self.command, self.path, headers, body))
        self.send_response(self.server.status)
        if self.server.status in (301, 302, 307):
            self.send_header("Location", dead_url())
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    with stub:
        thread = threading.Thread(target=stub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield stub
        finally:
            stub.shutdown()
            thread.join()


@contextmanager
def saying(data: bytes) -> Iterator[str]:
    """The URL of a server that sends this to whoever connects, and hangs up if it is not empty."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                connection.recv(65536)
                if data:
                    connection.sendall(data)
                else:
                    connection.recv(65536)  # until the client has had enough

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def dead_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def check(upstream: Upstream, now: float = 0.0) -> State:
    return asyncio.run(asyncio.wait_for(upstream.check(now), 20))


@pytest.mark.parametrize("status", [200, 204, 301, 307, 401, 404, 500, 503])
def test_any_status_is_up(status: int) -> None:
    """A server that wants a key, or has no such route, would be reported as down."""
    with serving(Stub(status)) as stub:
        upstream = Upstream(stub.url)
        assert upstream.state is State.UNKNOWN
        assert check(upstream) is State.UP
        assert upstream.state is State.UP
        assert [(method, path) for method, path, _, _ in stub.received] == [("GET", "/v1/models")]


def nothing_listens() -> Upstream:
    return Upstream(dead_url())


def no_such_host() -> Upstream:
    return Upstream("http://no-such-host.invalid:30000")


@pytest.mark.parametrize("make", [nothing_listens, no_such_host])
def test_down(make: Callable[[], Upstream]) -> None:
    """A server that is not there would be reported as up, or fail the start."""
    upstream = make()
    assert check(upstream) is State.DOWN
    assert upstream.state is State.DOWN


def test_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that accepts and says nothing would hang the start and `/health`."""
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.2)
    with saying(b"") as url:
        assert check(Upstream(url)) is State.DOWN


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"HTTP/1.0 200 OK\r\n\r\n",
    ],
)
def test_head_is_enough(data: bytes) -> None:
    """A server that answers slowly or in an old way would be reported as down."""
    with saying(data) as url:
        assert check(Upstream(url)) is State.UP


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 what\r\n\r\n", b"\0" * 70000],
    ids=["ssh", "status", "endless"],
)
def test_not_http(data: bytes) -> None:
    """A wrong port (of SSH, say) would give a traceback in place of the warning."""
    with saying(data) as url:
        assert check(Upstream(url)) is State.DOWN


def test_freshness() -> None:
    """Every `/health` would cost the upstream a request, or tell of what was long ago."""
    with serving(Stub()) as stub:
        upstream = Upstream(stub.url)
        for now, probes in (
            (100.0, 1),
            (100.0, 1),
            (100.0 + FRESH_SECONDS, 1),
            (100.1 + FRESH_SECONDS, 2),
            (100.2 + FRESH_SECONDS, 2),
        ):
            assert check(upstream, now) is State.UP
            assert len(stub.received) == probes, now


def test_seen() -> None:
    """`/health` would deny what requests have just shown."""
    with serving(Stub()) as stub:
        upstream = Upstream(stub.url)
        upstream.seen(False, 100.0)
        assert upstream.state is State.DOWN
        assert check(upstream, 101.0) is State.DOWN
        assert stub.received == []
        assert check(upstream, 101.0 + FRESH_SECONDS) is State.UP
    upstream.seen(True, 200.0)
    assert check(upstream, 201.0) is State.UP
    assert check(upstream, 201.0 + FRESH_SECONDS) is State.DOWN


def test_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's proxy setting would make a local server look down."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead_url())
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(Stub()) as stub:
        assert check(Upstream(stub.url)) is State.UP


@pytest.mark.parametrize(("insecure", "state"), [(False, State.DOWN), (True, State.UP)])
def test_self_signed(insecure: bool, state: State, tmp_path: Path) -> None:
    """A stranger's certificate would be believed, or `--insecure` not help."""
    stub = Stub()
    stub.secure(self_signed(tmp_path))
    with serving(stub):
        assert check(Upstream(stub.url, insecure=insecure)) is state
        assert len(stub.received) == int(insecure)


def test_post() -> None:
    """An abort would not reach the upstream, or be refused for want of its key."""
    with serving(Stub(500)) as stub:
        upstream = Upstream(stub.url)
        headers = {"authorization": "Bearer key", "content-type": "application/json"}
        asyncio.run(upstream.post("/abort_request", b'{"rid":"a"}', headers))
        ((method, path, received, body),) = stub.received
        assert (method, path, body) == ("POST", "/abort_request", b'{"rid":"a"}')
        assert headers.items() <= received.items()


def test_post_to_nobody() -> None:
    """An abort while the upstream is away would fail with a traceback."""
    asyncio.run(Upstream(dead_url()).post("/abort_request", b"{}", {}))
