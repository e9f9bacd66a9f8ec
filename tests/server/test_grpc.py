"""Triton's clients and a real server: KServe v2 over gRPC, and over HTTP at the direct address."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

import marship
from directly import RIGHT, ROW, until
from echoes import NUMBERS, WIDTH, write_echoes
from marship.client import Client
from marship.engines.torchserve.server import Server
from served import bearer, direct_address, serving, write_model

DOZE = Path(__file__).parent / "onnx_handlers" / "doze_handler.py"
DOCS = Path(__file__).parents[2] / "docs"
TIMEOUT_S = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a gateway and three models: `m`, `echoes`, and `doze`, which takes its time."""
    folder = tmp_path_factory.mktemp("grpc")
    store = folder / "store"
    store.mkdir()
    model = write_model(folder)
    _package(model, name="m", model_store=store)
    _package(write_echoes(folder / "echoes.onnx"), name="echoes", model_store=store)
    _package(
        model, name="doze", model_store=store, handler=DOZE,
        response_timeout_s=TIMEOUT_S,
    )  # fmt: skip
    with serving(folder / "home", store, grpc_port=0) as started:
        with Client(home=folder / "home") as client:
            for name in ("m", "echoes", "doze"):
                client.register(f"{name}.mar", workers=1)
        yield started


def _package(model: Path, **settings: Any) -> None:
    marship.package(model, marship.PackageSettings(profile="throughput", **settings))


@pytest.fixture
def token(server: Server) -> dict[str, str]:
    """Metadata, or headers, with the inference token."""
    return {"authorization": bearer(server)}


@pytest.fixture
def client(server: Server) -> Iterator[over_grpc.InferenceServerClient]:
    """Triton's client of gRPC."""
    assert server.record.grpc_address is not None
    with over_grpc.InferenceServerClient(server.record.grpc_address) as made:
        yield made


@pytest.fixture
def web(server: Server) -> Iterator[over_http.InferenceServerClient]:
    """Triton's client of HTTP, at the direct address."""
    with over_http.InferenceServerClient(direct_address(server)) as made:
        yield made


@pytest.fixture(params=["grpc", "http"])
def either(
    request: pytest.FixtureRequest,
    client: over_grpc.InferenceServerClient,
    web: over_http.InferenceServerClient,
) -> tuple[Any, Any]:
    """Each of Triton's clients in turn, and its module: they have the same methods."""
    return (over_grpc, client) if request.param == "grpc" else (over_http, web)


def row(module: Any, *values: float) -> list[Any]:
    """The input of a model of ten numbers."""
    array = np.array([[*values, *ROW[len(values) :]]], "float32")
    value = module.InferInput("input", [1, 10], "FP32")
    value.set_data_from_numpy(array)
    return [value]


def test_health_needs_no_token(either: tuple[Any, Any]) -> None:
    """The server, each model, and what there is not."""
    _, triton = either
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("m")
    assert triton.is_model_ready("m", "1.0")
    assert not triton.is_model_ready("m", "7")
    assert not triton.is_model_ready("unknown")


def test_metadata(either: tuple[Any, Any], token: dict[str, str]) -> None:
    """Names, types and shapes of a model; the server's name and version."""
    module, triton = either
    options = {"as_json": True} if module is over_grpc else {}
    found = triton.get_model_metadata("echoes", headers=token, **options)
    assert found["name"] == "echoes"
    assert found["versions"] == ["1.0"]
    assert {one["name"] for one in found["inputs"]} == {f"in_{name}" for name in NUMBERS}
    for one in (*found["inputs"], *found["outputs"]):
        assert one["name"].endswith(f"_{one['datatype']}")
        assert list(map(int, one["shape"])) == [-1, WIDTH]
    told = triton.get_server_metadata(headers=token, **options)
    assert (told["name"], told["version"]) == ("marship", marship.__version__)


def test_every_datatype(either: tuple[Any, Any], token: dict[str, str]) -> None:
    """Bit for bit, with the id of the request and the outputs that were selected."""
    module, triton = either
    generator = np.random.default_rng(0)
    arrays = {
        name: (generator.integers(0, 2, (5, WIDTH)) if dtype == "bool" else
               generator.integers(0, 100, (5, WIDTH))).astype(dtype)
        for name, dtype in NUMBERS.items()
    }  # fmt: skip
    inputs = []
    for name, array in arrays.items():
        inputs.append(module.InferInput(f"in_{name}", list(array.shape), name))
        inputs[-1].set_data_from_numpy(array)
    result = triton.infer("echoes", inputs, headers=token, request_id="seven")
    for name, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), array, strict=True)
    wanted = [module.InferRequestedOutput("out_FP16"), module.InferRequestedOutput("out_INT8")]
    result = triton.infer("echoes", inputs, headers=token, outputs=wanted, model_version="1.0")
    np.testing.assert_array_equal(result.as_numpy("out_FP16"), arrays["FP16"], strict=True)
    assert result.as_numpy("out_FP32") is None


def test_http_in_json(web: over_http.InferenceServerClient, token: dict[str, str]) -> None:
    """Without the binary extension, both ways."""
    value = over_http.InferInput("input", [1, 10], "FP32")
    value.set_data_from_numpy(np.array([ROW], "float32"), binary_data=False)
    output = over_http.InferRequestedOutput("output", binary_data=False)
    result = web.infer("m", [value], outputs=[output], headers=token)
    assert result.as_numpy("output").item() == RIGHT


def test_errors_say_what_was_wrong(either: tuple[Any, Any], token: dict[str, str]) -> None:
    """Triton's exceptions have our message and a status."""
    module, triton = either
    other = module.InferInput("other", [1, 10], "FP32")
    other.set_data_from_numpy(np.zeros((1, 10), "float32"))
    for message, grpc_status, http_status, call in (
        ("token must be sent", "UNAUTHENTICATED", 401, lambda: triton.infer("m", row(module))),
        (
            "unknown", "NOT_FOUND", 404,
            lambda: triton.infer("unknown", row(module), headers=token),
        ),
        (
            "7", "NOT_FOUND", 404,
            lambda: triton.infer("m", row(module), model_version="7", headers=token),
        ),
        (
            "inputs must be input", "INVALID_ARGUMENT", 400,
            lambda: triton.infer("m", [other], headers=token),
        ),
        (
            "unknown", "NOT_FOUND", 404,
            lambda: triton.get_model_metadata("unknown", headers=token),
        ),
    ):  # fmt: skip
        with pytest.raises(InferenceServerException, match=message) as caught:
            call()
        wanted = f"StatusCode.{grpc_status}" if module is over_grpc else str(http_status)
        assert caught.value.status() == wanted


def test_a_body_over_the_limit(
    client: over_grpc.InferenceServerClient, token: dict[str, str]
) -> None:
    """16 MB as shipped: it is not read, and the next request is served."""
    value = over_grpc.InferInput("input", [500_000, 10], "FP32")
    value.set_data_from_numpy(np.zeros((500_000, 10), "float32"))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("m", [value], headers=token)
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert client.infer("m", row(over_grpc), headers=token).as_numpy("output").item() == RIGHT


def test_deadlines(client: over_grpc.InferenceServerClient, token: dict[str, str]) -> None:
    """The client's own, and the worker's response timeout, after which it is replaced."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer("doze", row(over_grpc, 1.0), headers=token, client_timeout=0.2)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    with pytest.raises(InferenceServerException, match="must answer within 3 s") as caught:
        client.infer("doze", row(over_grpc, 60.0), headers=token, client_timeout=20)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    until(lambda: not client.is_model_ready("doze"))
    until(lambda: client.is_model_ready("doze"), 60)
    client.infer("doze", row(over_grpc, 0.0), headers=token, client_timeout=20)


def test_a_worker_that_is_killed(
    server: Server, client: over_grpc.InferenceServerClient, token: dict[str, str]
) -> None:
    """UNAVAILABLE for its request and until the next worker is ready; others do not notice."""
    caught: list[InferenceServerException] = []

    def ask() -> None:
        with pytest.raises(InferenceServerException) as error:
            client.infer("doze", row(over_grpc, 2.0), model_version="1.0", headers=token)
        caught.append(error.value)

    with Client(home=server.home.path) as managing:
        until(lambda: client.is_model_ready("doze"), 60)
        (status,) = managing.describe("doze")
        waiting = threading.Thread(target=ask)
        worker = psutil.Process(status.workers[0].pid)
        before = len(worker.net_connections("unix"))
        waiting.start()  # by its version, which nobody asked for: on a connection of its own
        until(lambda: len(worker.net_connections("unix")) > before)
        worker.kill()
        waiting.join(20)
        assert caught[0].status() == "StatusCode.UNAVAILABLE"
        assert client.infer("m", row(over_grpc), headers=token).as_numpy("output").item() == RIGHT
        until(lambda: client.is_model_ready("doze"), 60)
        client.infer("doze", row(over_grpc, 0.0), headers=token)


def gateway(server: Server) -> psutil.Process:
    """The process that listens for gRPC."""
    port = int((server.record.grpc_address or "").rpartition(":")[2])
    for child in psutil.Process(server.record.direct_pid).children():
        if any(line.laddr.port == port for line in child.net_connections("tcp")):
            return child
    raise LookupError("no gateway")


def test_a_gateway_that_is_killed_is_replaced(
    server: Server, client: over_grpc.InferenceServerClient, token: dict[str, str]
) -> None:
    """Within two seconds; the acceptor stays, and the same client goes on."""
    before = {child.pid for child in psutil.Process(server.record.direct_pid).children()}
    killed = gateway(server)
    killed.kill()

    refused: set[str] = set()

    def is_back() -> bool:
        try:
            return bool(client.is_server_live())
        except InferenceServerException as error:
            refused.add(error.status())
            return False

    until(is_back, 2.0)
    assert refused <= {"StatusCode.UNAVAILABLE"}
    assert client.infer("m", row(over_grpc), headers=token).as_numpy("output").item() == RIGHT
    after = {child.pid for child in psutil.Process(server.record.direct_pid).children()}
    assert before - after == {killed.pid}


def test_responses_of_32_clients_are_kept_apart(server: Server, token: dict[str, str]) -> None:
    """Two models at the same time, in batches: each response is its own request's."""
    address = server.record.grpc_address or ""

    def ask(number: int) -> None:
        with over_grpc.InferenceServerClient(address) as client:
            generator = np.random.default_rng(number)
            for turn in range(20):
                name, mine = ("m", "doze")[turn % 2], generator.normal(size=10)
                mine[0] = 0.0  # `doze` sleeps as long
                found = client.infer(
                    name, row(over_grpc, *mine), headers=token, request_id=f"{number}-{turn}"
                )
                assert found.get_response().id == f"{number}-{turn}"
                assert found.get_response().model_name == name
                answers[number, turn] = (mine, found.as_numpy("output").item())

    answers: dict[tuple[int, int], tuple[np.ndarray, float]] = {}
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(32)))
    with Client(home=server.home.path) as client:
        rows = np.array([mine for mine, _ in answers.values()], "float32")
        alone = client.predict("m", rows.tolist())
    np.testing.assert_allclose([found for _, found in answers.values()], np.ravel(alone), rtol=1e-4)


def test_what_the_page_shows(server: Server, token: dict[str, str]) -> None:
    """The block of docs/serving.md runs as it stands, at this server's address."""
    page = (DOCS / "serving.md").read_text()
    (block,) = re.findall(r"```python\n(import tritonclient.*?)```", page, re.DOTALL)
    block = block.replace("127.0.0.1:8001", server.record.grpc_address or "")
    block = block.replace('"regression"', '"m"')
    values = {"key": token["authorization"].split()[1], "row": np.array([ROW], "float32")}
    *lines, last = block.strip().splitlines()
    exec("\n".join(lines), values)  # noqa: S102  our own page
    assert eval(last, values).item() == RIGHT  # noqa: S307
