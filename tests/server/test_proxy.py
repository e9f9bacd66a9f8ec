"""What nginx lets through to TorchServe, what it refuses, and how it says so."""

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from marship import Client
from marship.cli import app
from marship.client.clients import ModelStatus
from marship.engines.torchserve import server
from marship.operate.proxy import ProxySettings
from nginx import Answer, Door, free_port, in_front
from waiting import until
from whistles import long_whistle, pack_ear, wav

TEXTS = ["abc", "dad", "hh", "fee", "cab", "bed"]
TURN_MS = 120
LARGEST = 16 << 20  # max_request_size of the packaged settings
JSON = {"Content_Type": "application/json"}
OCTETS = {"Content_Type": "application/octet-stream"}
CLIENTS = """
import asyncio, sys
from marship import AsyncClient, Client
where = {"inference_url": sys.argv[1], "inference_token": sys.argv[2]}
async def ask():
    async with AsyncClient(**where) as client:
        return await client.predict("echo", "awaiting")
with Client(**where) as client:
    print(client.ping(), client.predict("echo", "blocking")["got"], asyncio.run(ask())["got"])
"""


def on_loopback(folder: Path, home: Path, **changes: object) -> ProxySettings:
    """On a free port, with a certificate of its own."""
    listen = f"127.0.0.1:{free_port()}"
    return ProxySettings(
        home=home, out=folder / "proxy", listen=listen, self_signed=True, **changes
    )


@pytest.fixture(scope="module")
def ear(store: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that streams a chunk every 0.12 s."""
    folder = tmp_path_factory.mktemp("ear")
    made = {"slow_ms": TURN_MS, "batch_size": 1, "option": ("longest_s=60",)}
    pack_ear(folder, name="proxied-ear", **made).rename(store / "proxied-ear.mar")
    client.register("proxied-ear.mar")
    yield "proxied-ear"
    client.unregister("proxied-ear")


@pytest.fixture(scope="module")
def door(
    running: server.Server,
    echo: ModelStatus,
    ear: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Door]:
    """The proxy in front of the shared server; its clients have the token."""
    key = json.loads(running.home.key_file.read_text())["inference"]["key"]
    settings = on_loopback(
        tmp_path_factory.mktemp("door"),
        running.home.path,
        client_timeout_s=2,
        rate=1000,
        burst=1000,
    )
    with in_front(settings, [echo.name, ear]) as one:
        one.headers = {"Authorization": f"Bearer {key}"}
        yield one


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A proxy that lets two requests in, then one a second, and has no server behind it.

    X-Client says where a request comes from: one machine has no two networks of IPv6.
    """
    folder = tmp_path_factory.mktemp("strict")
    (folder / "home").mkdir()
    packaged = Path(server.__file__).with_name("config.properties").read_text()
    nobody = f"inference_address=http://127.0.0.1:{free_port()}"
    text = re.sub("inference_address=http.*", nobody, packaged, count=1)
    (folder / "home" / "config.properties").write_text(text)
    settings = on_loopback(folder, folder / "home", rate=1, burst=1)
    believed = "set_real_ip_from 127.0.0.1; real_ip_header X-Client;"
    with in_front(settings, ["echo"], further=believed) as one:
        one.headers = {"Authorization": "Bearer x"}
        yield one


def assert_refused(answer: Answer, status: int, code: str) -> None:
    """JSON in marship's form, with the request's id and nothing about nginx but its name."""
    assert (answer.status, answer.json()["code"]) == (status, code), answer
    assert set(answer.json()) == {"code", "message"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["server"] == "nginx"
    assert answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (status in (429, 502))


def test_an_exposed_model_serves(door: Door) -> None:
    """With and without a version, and with what the model itself refuses."""
    for path in ("/predictions/echo", "/predictions/echo/1.0", "/predictions/echo?q=1"):
        answer = door.ask("POST", path, b"[1, 2]", **JSON)
        assert (answer.status, answer.json()["got"]) == (200, [1, 2])
    refused = door.ask("POST", "/predictions/echo", b'{"refuse": "no"}', **JSON)
    assert (refused.status, refused.json()) == (400, {"code": "invalid_input", "message": "no"})
    assert door.ask("GET", "/ping").json() == {"status": "Healthy"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/models",
        "/models/echo",
        "/workflows",
        "/wfpredict/echo",
        "/metrics",
        "/api-description",
        "/token?type=inference",
        "/explanations/echo",
        "/invocations",
        "/models/echo/invoke",
        "/v1/models/echo:predict",
        "/v2/models/echo/infer",
        "/predictions",
        "/predictions/",
        "/predictions/other",
        "/predictions/echo/",
        "/predictions/echo/1.0/more",
        "/predictions/echo/..%2f..%2fmodels",
        "/predictions/echo/../../models",
        "/predictions/proxied.ear",
        "/predictions/echo%0d%0a",
        "/predictions/echo%0a",
        "/predictions/echo/1.0%0a",
        "/.marship-error/404",
        "/ping/",
    ],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_every_other_path_is_not_there(door: Door, method: str, path: str) -> None:
    """Management, workflows, metrics, the API's description, other models, ways around."""
    assert_refused(door.ask(method, path, b"[1]", **JSON), 404, "not_found")


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/docs", "/openapi.json"])
def test_the_page_is_not_there_unless_it_is_wanted(door: Door, path: str) -> None:
    """The proxy as shipped passes predictions on, and nothing that describes models."""
    assert_refused(door.ask("GET", path), 404, "not_found")


def test_a_path_reaches_torchserve_as_it_was_matched(door: Door) -> None:
    """A path with dots that ends at a model is normalized before it is forwarded."""
    for path in ("/models/../predictions/echo", "//predictions/./echo", "/predictions/ech%6f"):
        assert door.ask("POST", path, b"1", **JSON).json()["got"] == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "FOO"])
def test_only_post_is_allowed(door: Door, method: str) -> None:
    """OPTIONS would make TorchServe describe the model's API."""
    assert_refused(door.ask(method, "/predictions/echo"), 405, "bad_request")


@pytest.mark.parametrize("given", [None, "", "Bearer", "Basic eDp5", "Bearer a b"])
def test_requests_without_a_token_do_not_reach_torchserve(door: Door, given: str | None) -> None:
    """The proxy responds 401 itself; the worker rejects a wrong token."""
    for method, path in (("POST", "/predictions/echo"), ("GET", "/ping")):
        answer = door.ask(method, path, Authorization=given)
        assert_refused(answer, 401, "token")
        assert door.log(answer.headers["x-request-id"])["upstream_seconds"] == ""
    wrong = door.ask("POST", "/predictions/echo", b"1", Authorization="Bearer wrong", **JSON)
    assert (wrong.status, wrong.json()["code"]) == (401, "token")


def test_six_megabytes_in_and_out(door: Door) -> None:
    """The same bytes come back, of a body with a length and of one in chunks."""
    body = os.urandom(6 << 20)
    assert door.ask("POST", "/predictions/echo", body, **OCTETS).body == body
    chunks = iter([body[:100], body[100:]])  # http.client sends what has no length in chunks
    assert door.ask("POST", "/predictions/echo", chunks, **OCTETS).body == body


def test_a_body_as_large_as_torchserve_takes(door: Door) -> None:
    """One of max_request_size passes, and one byte more is refused."""
    body = bytes(LARGEST)
    assert door.ask("POST", "/predictions/echo", body, **OCTETS).body == body
    assert_refused(
        door.ask("POST", "/predictions/echo", None, Content_Length=str(LARGEST + 1)),
        413,
        "too_large",
    )


def test_headers_and_paths_have_bounds(door: Door) -> None:
    """Those of nginx; all that they let through, TorchServe reads."""
    assert_refused(door.ask("GET", f"/ping?{'x' * 4000}"), 414, "too_large")
    assert_refused(door.ask("GET", "/ping", X_Long="x" * 4000), 431, "too_large")
    assert door.ask("GET", f"/ping?{'x' * 2900}").status == 200
    many = {f"X_{n}": "x" * 1000 for n in range(7)}
    assert_refused(door.ask("GET", "/ping", **many), 431, "too_large")
    del many["X_0"], many["X_1"]
    assert door.ask("GET", "/ping", **many).status == 200


@pytest.mark.parametrize("tls", [True, False])
def test_anything_but_http_over_tls_is_a_bad_request(door: Door, tls: bool) -> None:
    """Garbage within TLS, and plain HTTP where TLS should be."""
    with door.connect() if tls else socket.create_connection(("127.0.0.1", door.port)) as line:
        line.sendall(b"garbage\r\n\r\n" if tls else b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b""
        while data := line.recv(65536):
            said += data
    assert b" 400 " in said.partition(b"\r\n")[0]
    assert json.loads(said.partition(b"\r\n\r\n")[2])["code"] == "bad_request"


def curl(door: Door, *words: str) -> str:
    """What curl prints."""
    command = ["curl", "-sS", "--cacert", str(door.authority), "--max-time", "20", *words]
    command += ["-H", f"Authorization: {door.headers['Authorization']}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_http_2(door: Door, tmp_path: Path) -> None:
    """6 MB there and back over it, as with HTTP/1.1."""
    (tmp_path / "body").write_bytes(os.urandom(6 << 20))
    kind, out = "Content-Type: application/octet-stream", tmp_path / "answer"
    told = curl(
        door,
        *("--http2", "-w", "%{http_version} %{http_code}", "-o", str(out), "-H", kind),
        *("--data-binary", f"@{tmp_path / 'body'}", f"{door.url}/predictions/echo"),
    )
    assert told == "2 200"
    assert out.read_bytes() == (tmp_path / "body").read_bytes()
    for path in ("models", "predictions/echo%0a"):
        refused = curl(door, "--http2", "-d", "1", "-w", "\n%{http_code}", f"{door.url}/{path}")
        assert refused.splitlines()[-1] == "404"


FORM = b'--b\r\nContent-Disposition: form-data; name="body"\r\n\r\n[1]\r\n--b--\r\n'


def test_an_invalid_form_is_the_clients_fault(door: Door) -> None:
    """TorchServe responds 500 and names Java classes; a valid form passes, whatever else it has."""
    for boundary in ("b", '"b"', "b; charset=none", "b ; x=y"):
        kind = {"Content_Type": f"multipart/form-data; boundary={boundary}"}
        assert door.ask("POST", "/predictions/echo", FORM, **kind).json()["got"] == [1]
        broken = door.ask("POST", "/predictions/echo/1.0", FORM.replace(b"name=", b"nom="), **kind)
        assert_refused(broken, 400, "malformed")
    for end in ("; boundary", "; boundary=", ""):
        octets = door.ask(
            "POST", "/predictions/echo", FORM, Content_Type=f"multipart/form-data{end}"
        )
        assert (octets.status, octets.body) == (200, FORM)


@pytest.fixture
def undirected(door: Door, running: server.Server, ear: str, tmp_path: Path) -> Iterator[Door]:
    """A proxy that asks TorchServe's own address alone."""
    home = tmp_path / "home"
    home.mkdir()
    lines = running.home.config.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("direct_address")]
    (home / "config.properties").write_text("".join(kept))
    with in_front(on_loopback(tmp_path / "out", home), [ear]) as one:
        one.headers = door.headers
        yield one


def test_a_worker_that_dies_over_a_form_is_the_servers_fault(
    undirected: Door, ear: str, client: Client
) -> None:
    """TorchServe's 500 looks like that of an invalid form, and is distinguished from it."""
    door = undirected
    (worker,) = client.describe(ear)[0].workers
    process = psutil.Process(worker.pid)
    process.suspend()
    kind = {"Content_Type": "multipart/form-data; boundary=b"}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(door.ask, "POST", f"/predictions/{ear}", FORM, **kind)
        time.sleep(0.5)  # TorchServe hands the request to the suspended worker
        process.terminate()
        process.resume()
        assert_refused(asked.result(), 500, "internal")

    def is_replaced() -> bool:
        (now,) = client.describe(ear)[0].workers
        return now.ready and now.pid != worker.pid

    until(is_replaced, 30, "the next worker")


@pytest.mark.parametrize("told", ["Transfer-Encoding: gzip", "Transfer-Encoding:\tchunked", ""])
def test_http_that_nginx_lacks_is_a_bad_request(door: Door, told: str) -> None:
    """Its own 501 and 505 would be pages, and faults of the server."""
    version = "1.1" if told else "2.0"
    with door.connect() as line:
        line.sendall(f"GET /ping HTTP/{version}\r\nHost: x\r\n{told}\r\n\r\n".encode())
        answer = line.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"code":"bad_request"' in answer


def test_what_curl_sends_without_a_content_type(door: Door, running: server.Server) -> None:
    """It says that JSON is a form: TorchServe alone fails, behind the proxy the model gets it."""
    body = '{"discount": "=100%!"}'
    command, path = ("--data-binary", body), "/predictions/echo"
    alone = curl(door, *command, "-w", "%{http_code}", running.record.inference_url + path)
    assert alone.endswith("500")
    assert "100%!" in alone
    assert curl(door, *command, door.url + path) == body


def test_a_streams_first_line_does_not_wait_for_its_last(door: Door, ear: str) -> None:
    """Its lines pass unbuffered; every other response is read from TorchServe at once."""
    came: list[float] = []
    with door.connect() as line:
        body = wav(long_whistle(*TEXTS))
        head = f"POST /predictions/{ear} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += f"Accept: application/jsonl\r\nAuthorization: {door.headers['Authorization']}\r\n"
        line.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)
        said = b""
        while data := line.recv(65536):
            came += [time.monotonic()] * data.count(b'"start"')
            said += data
    assert len(came) >= len(TEXTS)
    assert came[len(TEXTS) - 1] - came[0] > TURN_MS / 1000
    assert b"x-accel" not in said.lower()


def test_requests_have_ids(door: Door) -> None:
    """A given id is kept, else one is generated; it is in response and log, tokens are not."""
    for given in ("abc-123", None, "with space", "x" * 65):
        answer = door.ask("POST", "/predictions/echo", b"1", X_Request_Id=given, **JSON)
        one = answer.headers["x-request-id"]
        assert (one == given) if given == "abc-123" else re.fullmatch("[0-9a-f]{32}", one)
        entry = door.log(one)
        assert (entry["status"], entry["request"]) == (200, "POST /predictions/echo HTTP/1.1")
        assert entry["upstream_id"] == one
    log = (door.folder / "access.log").read_text()
    assert door.headers["Authorization"].split()[1] not in log


def test_a_client_that_reads_nothing_is_disconnected(door: Door) -> None:
    """TorchServe was done long before; the client has read less than the response."""
    with door.connect(receive_bytes=4096) as line:
        head = f"POST /predictions/echo HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGEST}\r\n"
        head += f"Authorization: {door.headers['Authorization']}\r\nX-Request-Id: slow-reader\r\n"
        head += "Content-Type: application/octet-stream\r\n\r\n"
        line.sendall(head.encode() + bytes(LARGEST))
        entry = door.log("slow-reader")
    assert entry["bytes_out"] < LARGEST
    assert float(entry["upstream_seconds"]) < entry["seconds"] - 1.5


def ended(line: ssl.SSLSocket) -> bool:
    """Whether the other side ends it, politely or not, and says nothing before."""
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        return line.recv(65536) == b""
    return True


def test_a_client_that_stops_sending_is_disconnected(door: Door) -> None:
    """In the middle of its headers or of its body; TorchServe does not see the request."""
    body = f"Content-Length: 9\r\nAuthorization: {door.headers['Authorization']}\r\n\r\n1"
    began = time.monotonic()
    lines = [door.connect() for _ in range(2)]
    for line, rest in zip(lines, ["Content-", f"X-Request-Id: slow-writer\r\n{body}"], strict=True):
        line.sendall(f"POST /predictions/echo HTTP/1.1\r\nHost: x\r\n{rest}".encode())
    for line in lines:
        with line:
            assert ended(line)
    assert 1.5 < time.monotonic() - began < 10
    entry = door.log("slow-writer")
    assert (entry["status"], entry["upstream_seconds"]) == (408, "")


def test_too_many_requests(strict: Door) -> None:
    """From one address: the third at once gets 429 with Retry-After."""
    answers = [strict.ask("GET", "/ping") for _ in range(3)]
    assert_refused(answers[-1], 429, "rate_limit")
    assert answers[-1].headers["retry-after"] == "1"


def test_limits_count_a_network_of_ipv6_as_one_client(strict: Door) -> None:
    """Three hosts of one /64 share them; the neighbouring network, and IPv4, do not."""
    hosts = ["2001:db8::1", "2001:db8::a:b:c:d", "2001:db8::ffff:0:a:a0a"]
    statuses = [strict.ask("GET", "/ping", X_Client=host).status for host in hosts]
    assert statuses == [502, 502, 429]
    others = ["2001:db8:0:1::1", "192.0.2.1", "192.0.2.2"] * 2
    assert [strict.ask("GET", "/ping", X_Client=host).status for host in others] == [502] * 6


def test_no_server_behind_the_proxy(strict: Door) -> None:
    """A request that may pass gets an error that there is no server."""

    def passed() -> Answer | None:
        answer = strict.ask("GET", "/ping")
        return None if answer.status == 429 else answer

    assert_refused(until(passed, 10, "a request that passes", 0.2), 502, "not_running")


def test_too_many_requests_at_a_time(running: server.Server, door: Door, tmp_path: Path) -> None:
    """Of one address: a second one is refused while the first still comes."""
    with in_front(on_loopback(tmp_path, running.home.path, connections=1), ["echo"]) as narrow:
        narrow.headers = door.headers
        with narrow.connect() as line:
            head = "POST /predictions/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            head += f"Authorization: {door.headers['Authorization']}\r\n"
            line.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\n4".encode())
            end = time.monotonic() + 10
            while (second := narrow.ask("GET", "/ping")).status == 200:
                assert time.monotonic() < end
            assert_refused(second, 429, "rate_limit")
            line.sendall(b"2")
            assert line.recv(65536).startswith(b"HTTP/1.1 200")
        end = time.monotonic() + 10
        while narrow.ask("GET", "/ping").status != 200:  # nginx counts it until it has logged it
            assert time.monotonic() < end


def test_marships_clients_work_through_the_proxy(door: Door) -> None:
    """Both of them, with the certificate that SSL_CERT_FILE names."""
    words = [sys.executable, "-c", CLIENTS, door.url, door.headers["Authorization"].split()[1]]
    environment = {**os.environ, "SSL_CERT_FILE": str(door.authority)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Healthy blocking awaiting\n"


@pytest.mark.usefixtures("echo", "ear")
def test_without_names_it_is_all_registered_models(running: server.Server, tmp_path: Path) -> None:
    """Those of the server that runs in the home."""
    words = ["proxy", "--home", str(running.home.path), "--out", str(tmp_path / "proxy")]
    done = CliRunner().invoke(app, [*words, "--self-signed"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "proxy" / "nginx.conf").read_text()
    (models,) = re.findall(r"\(\?<model>(.*?)\)", text)
    assert {"echo", r"proxied\-ear"} <= set(models.split("|"))


def test_a_registered_model_needs_no_archive_of_its_name(
    running: server.Server, client: Client, tmp_path: Path
) -> None:
    """The advice about names is for those that the server does not have either."""
    words = ["proxy", "--home", str(running.home.path), "--out", str(tmp_path), "--self-signed"]
    client.register("echo.mar", name="proxied-other", workers=1)
    done = CliRunner().invoke(app, [*words, "proxied-other", "typo"])
    client.unregister("proxied-other")
    assert done.exit_code == 0, done.output
    assert "is named typo." in done.stderr
