"""Clients against a server that means harm: time and memory are bounded whatever it sends."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from marship import AsyncClient, Client
from marship.errors import (
    MarshipError,
    NoAnswerError,
    NotRunningError,
    ServerError,
    TLSError,
    TooLargeError,
    UsageError,
)
from marship.exchange import limited
from stranger import Send, Stranger, drips, floods, sends

OK = b"HTTP/1.1 200 OK\r\n"
JSON = OK + b"Content-Type: application/json\r\n"
LINES = OK + b"Content-Type: application/jsonl\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SOON_S, LATE_S, MAX_BYTES = 0.25, 8, 10_000

Ask = Callable[..., Any]
Start = Callable[..., Stranger]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start such a server."""
    started: list[Stranger] = []

    def run(send: Send, tls: ssl.SSLContext | None = None) -> Stranger:
        started.append(Stranger(send, tls))
        return started[-1]

    yield run
    for one in started:
        one.close()


def settings(url: str, given: dict[str, Any]) -> dict[str, Any]:
    """Of a client."""
    few = {"timeout_s": 20, "max_response_bytes": MAX_BYTES, "retry_s": 0}
    return {"inference_url": url, "inference_token": "TOKEN", **few, **given}


def blocking(url: str, *, streams: bool = False, **given: Any) -> Any:
    """A response by `Client`."""
    with Client(**settings(url, given)) as client:
        return list(client.stream("m", [1])) if streams else client.predict("m", [1])


def awaiting(url: str, *, streams: bool = False, **given: Any) -> Any:
    """The same by `AsyncClient`."""

    async def ask() -> Any:
        async with AsyncClient(**settings(url, given)) as client:
            if streams:
                return [line async for line in client.stream("m", [1])]
            return await client.predict("m", [1])

    return asyncio.run(ask())


CLIENTS = pytest.mark.parametrize("ask", [blocking, awaiting])


@CLIENTS
@pytest.mark.parametrize(
    ("begins", "drop", "streams"),
    [
        (b"", b"H", False),
        (OK + b"X-A: ", b"a", False),
        (OK, b"X-A: a\r\n", False),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", False),
        (JSON + b"Content-Length: 9999\r\n\r\n", b"1", False),
        (JSON + b"\r\n", b"1", False),
        (JSON + CHUNKED, b"1\r\n1\r\n", False),
        (JSON + CHUNKED, b"0", False),
        (JSON + CHUNKED + b"1;", b"a", False),
        (JSON + CHUNKED + b"1\r\n1\r\n0\r\nX-A: ", b"a", False),
        (LINES + CHUNKED, b"1\r\n1\r\n", True),
        (LINES + b"Content-Length: 9999\r\n\r\n", b"1", True),
        (LINES + b"\r\n", b"1", True),
    ],
)
def test_the_timeout_is_for_the_whole_exchange(
    start: Start, ask: Ask, begins: bytes, drop: bytes, streams: bool
) -> None:
    """Wherever in it the bytes come one by one: a stream's line has to end, too."""
    server, began = start(drips(begins, drop)), time.monotonic()
    with pytest.raises(ServerError) as caught:
        ask(server.url, streams=streams, timeout_s=SOON_S)
    assert time.monotonic() - began < LATE_S
    is_late = isinstance(caught.value, NoAnswerError) and caught.value.timed_out
    # aiohttp refuses what cannot be HTTP, and both of them too many headers
    assert is_late or drop in (b"H", b"X-A: a\r\n")


@CLIENTS
@pytest.mark.parametrize(
    ("begins", "drop", "streams"),
    [
        (JSON + b"Content-Length: 10001\r\n\r\n", b"", False),
        (JSON + b"\r\n", b"1", False),
        (JSON + CHUNKED, b"1000\r\n" + b"1" * 0x1000 + b"\r\n", False),
        (b"HTTP/1.1 500 Fault\r\n\r\n", b"1", False),
        (LINES + b"\r\n", b"1", True),
        (LINES + CHUNKED, b"1000\r\n" + b"1" * 0x1000 + b"\r\n", True),
    ],
)
def test_a_response_has_a_largest_size(
    start: Start, ask: Ask, begins: bytes, drop: bytes, streams: bool
) -> None:
    """Told or not, of an error and a redirect as well, and of each line of a stream."""
    server = start(floods(begins, drop) if drop else drips(begins, b""))
    with pytest.raises(TooLargeError, match="10,000 bytes at most"):
        ask(server.url, streams=streams)


@pytest.mark.parametrize(
    ("begins", "drop"),
    [
        (JSON + CHUNKED + b"1;", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (JSON + CHUNKED + b"1\r\n1\r\n0\r\n", b"X-A: a\r\n"),
    ],
)
@CLIENTS
def test_what_is_no_body_is_bounded_too(start: Start, ask: Ask, begins: bytes, drop: bytes) -> None:
    """The parser's own lines end by their number, by their bytes, or by the deadline."""
    server = start(floods(begins, drop))
    with pytest.raises((TooLargeError, ServerError)):
        ask(server.url, timeout_s=2)


@CLIENTS
@pytest.mark.parametrize(
    "head",
    [
        *(b"Content-Length: " + length for length in (b"9" * 5000, b"\xb2", b"-1", b"+1", b"1_0")),
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Content-Length: 1, 2",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: identity",
    ],
)
def test_a_body_without_a_certain_end_is_refused(start: Start, ask: Ask, head: bytes) -> None:
    """Two readers could take different bytes of it for the response."""
    server = start(sends(JSON + head + b"\r\n\r\n", b"12"))
    with pytest.raises(ServerError):
        ask(server.url)


@CLIENTS
@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x1b[2J\xff\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        JSON + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n",
        JSON + b"X-A: a\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_no_http_is_refused(start: Start, ask: Ask, data: bytes) -> None:
    """It would be the same the next time: nothing is retried."""
    server = start(sends(data))
    with pytest.raises(ServerError, match=r"must respond in HTTP/1\.1, got") as caught:
        ask(server.url, retry_s=20)
    assert (server.taken, str(caught.value).isprintable()) == (1, True)


@CLIENTS
@pytest.mark.parametrize("head", [OK, OK + b"Content-Ty", JSON, JSON + b"Content-Length: 9\r\n"])
def test_headers_that_are_cut_off_are_no_response(start: Start, ask: Ask, head: bytes) -> None:
    """What has no length ends with the connection: it would be a success without a body."""
    with pytest.raises(NoAnswerError, match="a connection that the server closed"):
        ask(start(sends(head)).url)


@CLIENTS
@pytest.mark.parametrize("status", [b"302 Found", b"101 Switching Protocols"])
def test_a_redirect_is_no_response(start: Start, ask: Ask, status: bytes) -> None:
    """It is not followed, its body, which has no end, is not read, and nothing is retried."""
    begins = b"HTTP/1.1 " + status + b"\r\nLocation: http://127.0.0.1:9/\r\n\r\n"
    server = start(floods(begins, b"1"))
    with pytest.raises(ServerError, match="must respond without a redirect, got status"):
        ask(server.url, retry_s=20)
    assert server.taken == 1


@CLIENTS
def test_a_body_of_the_largest_size_is_read(start: Start, ask: Ask) -> None:
    """Exactly as many bytes as are allowed."""
    body = b"1" * MAX_BYTES
    plain = OK + b"Content-Type: text/plain\r\n"
    assert ask(start(sends(plain + b"Content-Length: 10000\r\n\r\n", body)).url) == body
    assert ask(start(sends(plain + b"\r\n", body)).url) == body


@CLIENTS
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-" + "y" * 500])
def test_no_encoding_is_requested_or_taken(start: Start, ask: Ask, encoding: str) -> None:
    """A kilobyte of it may be a gigabyte; nothing is decoded, and nothing is retried."""
    head = JSON + f"Content-Encoding: {encoding}\r\nContent-Length: 9\r\n\r\n".encode()
    server = start(sends(head, b"\x1f\x8b\x08......"))
    with pytest.raises(ServerError, match=r"got content-encoding '[a-z-]{2,40}'"):
        ask(server.url, retry_s=20)
    assert server.taken == 1
    assert b"accept-encoding: identity" in server.received.lower()


@CLIENTS
@pytest.mark.parametrize(
    "address",
    [
        "http://bob:pw@127.0.0.1:{port}",
        "http://bob@127.0.0.1:{port}",
        "http://127.0.0.1:{port}?a=b",
        "http://127.0.0.1:{port}#a",
        "http://127.0.0.1:{port}\\@x",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://127.0.0.1:port",
        "http://",
        "http://127.0.0.1:{port}/a\r\nHost: b",
        "http://[::1",
        "ftp://127.0.0.1:{port}",
        "127.0.0.1:{port}",
        "file:///etc/passwd",
    ],
)
def test_an_address_is_one(start: Start, ask: Ask, address: str) -> None:
    """A password in it would go in place of the token; neither is shown, and nothing is sent."""
    server = start(sends(JSON + b"Content-Length: 1\r\n\r\n1"))
    with pytest.raises(UsageError, match="inference_url must be http") as caught:
        ask(address.replace("{port}", str(server.place[1])))
    assert "pw" not in str(caught.value)
    assert server.taken == 0


@CLIENTS
def test_the_environment_takes_no_part(
    start: Start, ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither a proxy nor .netrc, and no cookie of an earlier response."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login EVIL password EVIL\n")
    netrc.chmod(0o600)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    server = start(sends(JSON + b"Set-Cookie: a=b\r\nContent-Length: 1\r\n\r\n1"))
    assert ask(server.url) == 1
    assert b"authorization: bearer token" in server.received.lower()
    assert server.received.lower().count(b"authorization") == 1


@CLIENTS
@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "a\nb"])
def test_a_token_that_is_no_header_is_not_sent(start: Start, ask: Ask, token: str) -> None:
    """It is one of our errors."""
    server = start(sends(JSON + b"Content-Length: 1\r\n\r\n1"))
    with pytest.raises(MarshipError):
        ask(server.url, inference_token=token)
    assert b"Evil" not in server.received


def certified(
    folder: Path, *, name: str = "127.0.0.1", days: int = 1
) -> tuple[ssl.SSLContext, Path]:
    """What a server with a certificate for a name shakes hands with, and the certificate."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if name[0].isdigit():
        names = [x509.IPAddress(ipaddress.ip_address(name))]
    made = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(pem) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, path


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Trust a certificate."""

    def trust(path: Path) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        limited.tls_context.cache_clear()

    limited.tls_context.cache_clear()
    yield trust
    limited.tls_context.cache_clear()


FINE = sends(JSON + b"Content-Length: 1\r\n\r\n1")


@CLIENTS
def test_a_certificate_that_is_trusted(
    start: Start, ask: Ask, tmp_path: Path, trusting: Callable[[Path], None]
) -> None:
    """Both clients read SSL_CERT_FILE; the deadline holds over TLS as well."""
    tls, path = certified(tmp_path)
    trusting(path)
    assert ask(start(FINE, tls).url) == 1
    with pytest.raises(NoAnswerError) as caught:
        ask(start(drips(JSON + b"Content-Length: 99\r\n\r\n", b"1"), tls).url, timeout_s=1)
    assert caught.value.timed_out
    with pytest.raises(TooLargeError):
        ask(start(floods(JSON + b"\r\n", b"1"), tls).url)


@CLIENTS
@pytest.mark.parametrize(
    ("changes", "is_trusted", "reason"),
    [
        ({}, False, "self-signed certificate"),
        ({"days": -1}, True, "certificate has expired"),
        ({"name": "localhost"}, True, "IP address mismatch"),
    ],
)
def test_a_certificate_that_is_not_accepted(  # noqa: PLR0913, PLR0917  fixtures and cases
    start: Start,
    ask: Ask,
    tmp_path: Path,
    trusting: Callable[[Path], None],
    changes: dict[str, Any],
    is_trusted: bool,
    reason: str,
) -> None:
    """The error tells why; nothing is sent, and nothing is retried."""
    tls, path = certified(tmp_path, **changes)
    if is_trusted:
        trusting(path)
    server = start(FINE, tls)
    with pytest.raises(TLSError, match=f"certificate that is valid for it, got: .*{reason}"):
        ask(server.url, retry_s=20)
    assert (server.taken, server.received) == (1, b"")


@CLIENTS
def test_a_server_without_tls(ask: Ask) -> None:
    """Plain HTTP at the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        line, _ = listener.accept()
        line.recv(1000)
        line.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    with listener, pytest.raises(TLSError, match=r"must speak TLS .*wrong version number"):
        ask(f"https://127.0.0.1:{listener.getsockname()[1]}", retry_s=20)


@CLIENTS
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_handshake_that_does_not_come(ask: Ask, scheme: str) -> None:
    """Connections that are taken by the kernel alone, and nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        with pytest.raises(NoAnswerError) as caught:
            ask(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", timeout_s=SOON_S)
        assert caught.value.timed_out
        assert time.monotonic() - began < LATE_S


@CLIENTS
def test_a_handshake_that_is_cut_off_is_a_lost_connection(ask: Ask) -> None:
    """Somebody listens there: a retry may help, and starting a server does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            line.recv(1000)
            line.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(NoAnswerError, match="a connection that the server closed"):
            ask(f"https://127.0.0.1:{listener.getsockname()[1]}")


@CLIENTS
def test_a_server_that_wants_a_client_s_certificate(
    ask: Ask, tmp_path: Path, trusting: Callable[[Path], None]
) -> None:
    """TLS 1.3 refuses once the handshake seems done: it is reported as TLS, and not retried."""
    tls, path = certified(tmp_path)
    trusting(path)
    tls.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            secured = tls.wrap_socket(line, server_side=True, do_handshake_on_connect=False)
            with contextlib.suppress(ssl.SSLError):
                secured.do_handshake()
            while socket.socket.recv(secured, 1000):
                pass  # to close before all is read would be a reset, and take the reason with it

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(TLSError, match="certificate required"):
            ask(f"https://127.0.0.1:{listener.getsockname()[1]}", retry_s=20)


@CLIENTS
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nobody_listens(ask: Ask, scheme: str) -> None:
    """As ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NotRunningError, match="got no connection"):
        ask(f"{scheme}://127.0.0.1:{port}")
