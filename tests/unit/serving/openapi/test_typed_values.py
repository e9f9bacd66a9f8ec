"""Typed clients without a model: values on their way, connections, and names in their code."""

import importlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from marship.cli import app
from marship.client.typed.package import source, write
from marship.client.typed.transport import LENGTH_HEADER, TypedConnection
from marship.errors import NotFoundError, UsageError
from marship.serving.openapi import schemas
from marship.serving.openapi.document import ServedModel, document
from marship.serving.openapi.interface import BodyForm, Interface, opaque

INTEGER, TEXT, NUMBER = {"type": "integer"}, schemas.TEXT, schemas.NUMBER
JSON_TYPE = "application/json"


class Echo(BaseHTTPRequestHandler):
    """Responds with the tensors of a request, or as its path says."""

    protocol_version = "HTTP/1.1"
    late: ClassVar[threading.Event] = threading.Event()

    def do_POST(self) -> None:
        """Give the inputs as outputs."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers.get(LENGTH_HEADER) or 0)
        if self.path == "/lines":
            self._give(b'{"n": 1}\n{"n": 2}\n')
        elif not length:
            self._give(json.dumps(self.path).encode())
        else:
            if self.path == "/late":
                self.late.wait(10)
            head = json.loads(body[:length])
            given = json.dumps({"outputs": head["inputs"]}).encode()
            self._give(given + body[length:], len(given))

    def _give(self, body: bytes, length: int = 0) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if length:
            self.send_header(LENGTH_HEADER, str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Mirror(TypedConnection):
    """The echo, without a server."""

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str], query: Mapping[str, object]
    ) -> tuple[bytes, HTTPMessage]:
        """Give the inputs as outputs."""
        del path, query
        length = int(headers[LENGTH_HEADER])
        given = json.dumps({"outputs": json.loads(body[:length])["inputs"]}).encode()
        found = HTTPMessage()
        found[LENGTH_HEADER] = str(len(given))
        return given + body[length:], found


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where the echo is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Echo.late.set()
        server.shutdown()


def echoed(value: Any, datatype: str) -> Any:
    """A tensor, there and back."""
    mirror = Mirror("http://127.0.0.1:1")
    return mirror.infer("/x", {"x": value}, {"x": datatype}, ("x",))["x"]


TYPES = {
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
EDGES = sorted({side * (2**bits + step) for bits in (0, 7, 8, 11, 15, 16, 24, 31, 32, 53, 63, 64)
                for step in (-1, 0, 1) for side in (-1, 1)})  # fmt: skip


@pytest.mark.parametrize("datatype", TYPES)
def test_an_integer_arrives_as_it_is_or_is_refused(datatype: str) -> None:
    """From each type of integers to each type of a model, at the limits of all."""
    for kind, value in itertools.product([*TYPES.values()][:8], EDGES):
        if not np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            continue
        with np.errstate(all="ignore"):
            changed = np.array(value, kind).astype(TYPES[datatype])
        for given in (np.array([0, value], kind), np.array(value, kind)):
            if np.isfinite(changed) and int(changed) == value:
                found = echoed(given, datatype)
                assert found.dtype == TYPES[datatype]
                assert int(found.flat[-1]) == value
            else:
                with pytest.raises(TypeError, match=f"values that .* has, got {value}"):
                    echoed(given, datatype)


def test_numbers_are_rounded_but_never_to_infinity() -> None:
    """NaN and infinity stay; what is too large for the type is refused."""
    numbers = np.array([0.1, np.nan, np.inf, -np.inf, 65504.0])
    found = echoed(numbers, "FP16")
    assert np.array_equal(found, numbers.astype(np.float16), equal_nan=True)
    for value, datatype, kind in (
        (1e6, "FP16", "float16"), (1e300, "FP32", "float32"), (3.4e38, "BF16", "bfloat16"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"x must hold values that {kind} has, got"):
            echoed(np.array([1.0, value]), datatype)


def test_bfloat16_is_the_nearest() -> None:
    """As PyTorch rounds it, ties to even, for numbers of all sizes; NaN stays NaN."""
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 0x7F7F0000, 5000, np.uint32)
    ties = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    numbers = np.concatenate([bits, ties, [0x3F80FCB9, 0x7FFFFFFF, 0x7FC00000]]).astype(np.uint32)
    numbers = numbers.view(np.float32)
    wanted = torch.from_numpy(numbers).bfloat16().float().numpy()
    assert np.array_equal(echoed(numbers, "BF16"), wanted, equal_nan=True)
    assert echoed(np.float32(1.0077), "BF16") == np.float32(1.0078125)


@pytest.mark.parametrize("value", [None, b"a", 1])
def test_strings_are_strings(value: object) -> None:
    """What is none would arrive as its name."""
    with pytest.raises(TypeError, match=f"x must hold str, got {type(value).__name__}"):
        echoed(np.array(["a", value], object), "BYTES")
    assert echoed(np.array([["ü", ""]]), "BYTES").tolist() == [["ü", ""]]


def test_another_model_than_the_client_was_written_for(url: str) -> None:
    """Its outputs are missed in words."""
    with (
        TypedConnection(url) as connection,
        pytest.raises(TypeError, match="must have the output y, got x"),
    ):
        connection.infer("/x", {"x": np.ones(1)}, {"x": "FP64"}, ("y",))


def test_threads_share_a_connection(url: str) -> None:
    """Each gets its own response."""
    with TypedConnection(url) as connection, ThreadPoolExecutor(4) as threads:

        def ask(number: int) -> int:
            found = connection.infer("/x", {"x": np.array([number])}, {"x": "INT64"}, ("x",))
            return int(found["x"][0])

        assert list(threads.map(ask, range(40))) == list(range(40))


def test_a_response_that_comes_late_is_not_the_next_one(url: str) -> None:
    """After a timeout there is a new connection."""
    with TypedConnection(url, timeout_s=0.2) as connection:
        with pytest.raises(TimeoutError):
            connection.infer("/late", {"x": np.array([1])}, {"x": "INT64"}, ("x",))
        Echo.late.set()
        time.sleep(0.3)  # a sleep: the late response is on its way to a connection that is gone
        found = connection.infer("/x", {"x": np.array([2])}, {"x": "INT64"}, ("x",))
        assert found["x"].tolist() == [2]


def test_lines_may_be_read_between_other_requests(url: str) -> None:
    """They have a connection of their own."""
    with TypedConnection(url) as connection:
        lines = connection.lines("/lines", b"")
        assert next(lines) == {"n": 1}
        assert connection.ask("/a", b"", JSON_TYPE, {"b": True, "c": None}) == "/a?b=true"
        assert list(lines) == [{"n": 2}]


@pytest.mark.parametrize("url", ["127.0.0.1:8079", "ftp://a", "http:///x", ""])
def test_an_address_is_a_url(url: str) -> None:
    """Without http:// it would be the name of no host."""
    with pytest.raises(ValueError, match="url must be such as"):
        TypedConnection(url)


def described(request: object, response: object, kind: str = "other", *parameters: Any) -> Any:
    """The document of a model of one form."""
    forms = (BodyForm(JSON_TYPE, request),), (BodyForm(JSON_TYPE, response),)  # type: ignore[arg-type]
    facts = {**Interface(kind, *forms, parameters=parameters).facts(), "inputs": [], "outputs": []}
    return document([ServedModel("m", "1.0", True, True, facts)], "1")


def optional(**properties: object) -> dict[str, object]:
    """An object whose fields may all be missing."""
    return {"type": "object", "properties": properties}


def query(name: str, schema: object, **more: object) -> dict[str, object]:
    """A parameter."""
    return {"name": name, "in": "query", "schema": schema, **more}


OK = schemas.record(ok=INTEGER)
USED = (
    *("PATH", "decode", "np", "npt", "Any", "Literal", "float", "int", "str", "list", "dict"),
    *("self", "value", "found", "_value", "_found", "OCTETS_TYPE", "Client", "ServiceError"),
    *("Prediction", "Given", "field", "picture", "rate", "recording", "class", "None", "a-b"),
    *("a_b", "a b", "ü", "1", "__proto__", "query", "path", "Iterator", "TypedConnection"),
    *("picture_bytes", "bool", "bytes", "dataclass", "Sequence", "recording_bytes"),
)
ALL = {name: {"type": "number"} for name in USED}
INNER = {name: optional(**{f"{name}!": {"type": "array", "items": NUMBER}}) for name in USED}
CASES: dict[str, tuple[Any, tuple[Any, ...], Any]] = {
    "fields": (described(schemas.record(**ALL), OK), (1.0,) * len(ALL), {"ok": 1}),
    "response": (
        described(schemas.record(t=TEXT), optional(**ALL)), ("a",), dict.fromkeys(ALL, 1.5),
    ),
    "objects": (
        described(schemas.record(t=TEXT), schemas.record(**INNER)),
        ("a",),
        {name: {f"{name}!": [1]} for name in USED},
    ),
    "parameters": (
        described({}, OK, "picture", *(query(name, NUMBER) for name in USED)), (b"a",), {"ok": 1},
    ),
    "any": (described(optional(a=True), optional(b=True, c={"type": "array", "items": True})),
            (), {"b": None, "c": [1]}),
    "deep": (
        described(schemas.record(t=TEXT), schemas.array(schemas.array(schemas.array(TEXT)))),
        ("a",), [[["a"]]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_names_that_its_code_uses_are_given_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, fields and classes of any name: the code runs, and asks the model's path."""
    whole, given, response = CASES[name]
    write(whole, tmp_path / f"named_{name}")
    monkeypatch.syspath_prepend(tmp_path)
    client = importlib.import_module(f"named_{name}").Client("http://127.0.0.1:1")
    asked: list[Any] = []
    client.ask = client.ask_json = lambda *words: asked.append(words) or response
    client.predict(*given)
    assert asked[0][0] == "/predictions/m"
    if name == "fields":
        assert asked[0][1] == dict.fromkeys(ALL, 1.0)


def test_mypy_takes_all_names(tmp_path: Path) -> None:
    """With --strict; tensors, too."""
    for name, (whole, _, _) in CASES.items():
        write(whole, tmp_path / f"typed_{name}")
    spec = {"dtype": "float32", "shape": ["batch"], "datatype": "FP32", "labels": []}
    sides = [{**spec, "name": name} for name in USED]
    facts = {**Interface("tensors", (), ()).facts(), "inputs": sides, "outputs": sides}
    write(document([ServedModel("m", "1", True, True, facts)], "1"), tmp_path / "typed_tensors")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache",
         *(path.name for path in tmp_path.glob("typed_*"))],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_parameters_are_typed_as_declared() -> None:
    """Texts, choices and flags; those of headers are none of the query."""
    text = source(
        described(
            {}, OK, "picture",
            query("mode", {"enum": ["a", "b"]}), query("is_fast", {"type": "boolean"}),
            query("k", INTEGER, required=True), {**query("X-K", TEXT), "in": "header"},
        )
    )  # fmt: skip
    wanted = ", *, mode: Literal['a', 'b'] | None = None, is_fast: bool | None = None, k: int)"
    assert wanted in text
    assert "X" not in text.partition("def predict")[2]


@pytest.mark.parametrize("name", ["class", "None", "a-b"])
def test_a_package_can_be_imported(name: str, tmp_path: Path) -> None:
    """Words of Python's own are refused, too."""
    with pytest.raises(UsageError, match="must name a folder that Python can import"):
        write(described({}, OK), tmp_path / name)


def test_a_client_of_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command reports the version that it wrote: the default one, or the one that is asked."""
    facts = {**opaque(None).facts(), "inputs": [], "outputs": []}
    versions = [ServedModel("m", name, name == "2.0", True, facts) for name in ("1.0", "2.0")]
    whole = document(versions, "1")
    monkeypatch.setattr("marship.cli.interfaces.described", lambda *_: whole)
    for words, version, path in (
        ([], "2.0", "/predictions/m'"), (["--version", "1.0"], "1.0", "/predictions/m/1.0'"),
    ):  # fmt: skip
        out = tmp_path / f"of{version.replace('.', '_')}"
        done = CliRunner().invoke(app, ["client", "m", "--out", str(out), "--json", *words])
        assert json.loads(done.stdout)["version"] == version, done.output
        assert path in (out / "__init__.py").read_text()
    with pytest.raises(NotFoundError, match=r"--version must be one of 1\.0, 2\.0, got 3"):
        source(whole, "3")
