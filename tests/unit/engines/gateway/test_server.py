"""KServe v2 over gRPC, as Triton's client and plain gRPC see it."""

import contextlib
import json
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from directly import RIGHT, ROW, Place, service, until
from echoes import NUMBERS, WIDTH
from gateways import Gateway
from marship.engines.gateway import server, statuses, wire
from marship.engines.gateway.messages import kind
from marship.engines.gateway.responses import SENT_AT_ONCE_BYTES
from marship.engines.gateway.upstream import Upstream, UpstreamResponse
from marship.serving.handler import OnnxHandler
from marship.serving.hosts.direct import routes
from marship.serving.hosts.direct.limits import Limits
from marship.serving.message import Reply

Code = grpc.StatusCode
TOKEN = "x" * 20


def rows(generator: np.random.Generator, dtype: str, count: int = 2) -> np.ndarray:
    """Values of a datatype, its limits among them."""
    shape = (count, WIDTH)
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if dtype.startswith("float"):
        return generator.normal(size=shape).astype(dtype)
    bounds = np.iinfo(dtype)
    made = generator.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)
    made[0, :2] = bounds.min, bounds.max
    return made


def inputs(arrays: dict[str, np.ndarray]) -> list[triton.InferInput]:
    """Triton's inputs, raw."""
    made = []
    for datatype, array in arrays.items():
        one = triton.InferInput(f"in_{datatype}", list(array.shape), datatype)
        made.append(one.set_data_from_numpy(array))
    return made


def row(values: list[float] = ROW, name: str = "input") -> list[triton.InferInput]:
    """The input of the model of ten numbers."""
    one = triton.InferInput(name, [1, len(values)], "FP32")
    return [one.set_data_from_numpy(np.array([values], "float32"))]


def infer(channel: grpc.Channel, request: Any, *metadata: tuple[str, str], **options: Any) -> Any:
    """The response to a request of our own messages."""
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda one: one if type(one) is bytes else one.SerializeToString(),
        response_deserializer=kind("ModelInferResponse").FromString,
    )
    return call.with_call(request, metadata=metadata, timeout=options.pop("timeout", 20), **options)


def request(model: str = "m", *, raw: bytes | None = None, version: str = "") -> Any:
    """A request for the model of ten numbers."""
    made = kind("ModelInferRequest")(model_name=model, model_version=version)
    made.inputs.add(name="input", datatype="FP32", shape=[1, 10])
    data = np.array(ROW, "float32").tobytes() if raw is None else raw
    made.raw_input_contents.append(data)
    return made


def refused(channel: grpc.Channel, *args: Any, **options: Any) -> grpc.RpcError:
    """The error of a request that must not succeed."""
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, *args, **options)
    return caught.value


def told(call: Any) -> dict[str, str]:
    """A call's trailing metadata."""
    return dict(call.trailing_metadata())


@pytest.fixture
def served(place: Place, diabetes: Path) -> None:
    """The model `m` of ten numbers, with one worker."""
    place.add(service(diabetes))
    place.follow(m=("1.0",), idle=("1.0",))


@pytest.mark.usefixtures("served")
def test_health_and_metadata(client: triton.InferenceServerClient, place: Place) -> None:
    """Triton's client takes a healthy server for one, and reads what a model takes and gives."""
    assert client.is_server_live()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1.0")
    assert not client.is_model_ready("m", "2.0")
    assert not client.is_model_ready("idle")
    assert not client.is_model_ready("unknown")
    assert not client.is_server_ready()  # a model has no worker
    place.follow(m=("1.0",))
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "marship"
    found = client.get_model_metadata("m")
    (taken,), (given,) = found.inputs, found.outputs
    assert (taken.name, taken.datatype, list(taken.shape)) == ("input", "FP32", [-1, 10])
    assert (given.name, given.datatype, list(given.shape)) == ("output", "FP32", [-1, 1])
    assert list(found.versions) == ["1.0"]


def test_metadata_of_axes_that_are_multiples(
    place: Place, client: triton.InferenceServerClient, diabetes: Path
) -> None:
    """HTTP has them as parameters, for which gRPC's message has no place."""
    loaded = service(diabetes)
    loaded.contract = replace(loaded.contract, steps={"batch": 2})
    place.add(loaded)
    place.follow(m=("1.0",))
    told = json.loads(routes.metadata("m", ["1.0"], loaded.contract).body)
    assert told["parameters"] == {"steps": {"batch": 2}}
    assert client.get_model_metadata("m").inputs[0].name == "input"


def test_all_datatypes(place: Place, client: triton.InferenceServerClient, echoes: Any) -> None:
    """Raw both ways, limits of each datatype among the values."""
    place.add(echoes, "echoes")
    place.follow(echoes=("1.0",))
    generator = np.random.default_rng(0)
    arrays = {datatype: rows(generator, dtype) for datatype, dtype in NUMBERS.items()}
    result = client.infer("echoes", inputs(arrays), request_id="seven")
    assert result.get_response().id == "seven"
    for datatype, array in arrays.items():
        found = result.as_numpy(f"out_{datatype}")
        np.testing.assert_array_equal(found, array, strict=True)


def test_selected_outputs(place: Place, client: triton.InferenceServerClient, echoes: Any) -> None:
    """Those that are named, in their order; an unknown one is refused."""
    place.add(echoes, "echoes")
    place.follow(echoes=("1.0",))
    arrays = {name: rows(np.random.default_rng(1), dtype) for name, dtype in NUMBERS.items()}

    def names(*wanted: str) -> list[str]:
        outputs = [triton.InferRequestedOutput(name) for name in wanted]
        response = client.infer("echoes", inputs(arrays), outputs=outputs).get_response()
        assert len(response.raw_output_contents) == len(wanted)
        return [output.name for output in response.outputs]

    assert names("out_INT8", "out_FP64") == ["out_INT8", "out_FP64"]
    assert names("out_BOOL") == ["out_BOOL"]
    with pytest.raises(InferenceServerException, match="outputs must name some of"):
        names("out_INT9")


@pytest.mark.usefixtures("served")
def test_typed_contents_get_typed_contents(channel: grpc.Channel) -> None:
    """A client that has no code for raw tensors needs none."""
    made = kind("ModelInferRequest")(model_name="m", id="7")
    made.inputs.add(
        name="input", datatype="FP32", shape=[1, 10], contents={"fp32_contents": ROW}
    )  # fmt: skip
    response, call = infer(channel, made, ("x-request-id", "mine"))
    assert response.outputs[0].contents.fp32_contents[0] == RIGHT
    assert not response.raw_output_contents
    assert told(call)["x-request-id"] == "mine"
    assert "dur=" in told(call)["server-timing"]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("made", "status", "code"),
    [
        (request("unknown"), Code.NOT_FOUND, "not_found"),
        (request("m", version="9"), Code.NOT_FOUND, "not_found"),
        (request("a/../m?x=1"), Code.NOT_FOUND, "not_found"),
        (request("idle"), Code.UNAVAILABLE, "no_worker"),
        (request(""), Code.INVALID_ARGUMENT, "malformed"),
        (request("m" * 9000), Code.INVALID_ARGUMENT, "too_large"),
        (request(raw=b"123"), Code.INVALID_ARGUMENT, "malformed"),
        (request(raw=np.full(10, np.nan, "float32").tobytes()), Code.INVALID_ARGUMENT, None),
        (b"\xff\xff no message", Code.INVALID_ARGUMENT, "malformed"),
        (kind("ModelInferRequest")(model_name="m"), Code.INVALID_ARGUMENT, "invalid_input"),
        (request(raw=bytes(1 << 21)), Code.RESOURCE_EXHAUSTED, None),
    ],
)
def test_statuses(channel: grpc.Channel, made: Any, status: Code, code: str | None) -> None:
    """Each refusal has its status and our code, and the next request is served."""
    error = refused(channel, made)
    assert error.code() == status, error.details()
    if code is not None:
        assert told(error)["error-code"] == code
        assert " must " in error.details()
    assert infer(channel, request())[0].raw_output_contents


@pytest.mark.parametrize(
    ("response", "status", "code"),
    [
        (
            UpstreamResponse(404, {}, b'{"code": 404, "message": "Model not found"}'),
            "NOT_FOUND",
            "not_found",
        ),
        (UpstreamResponse(500, {}, b'{"code": 500, "message": "it"}'), "INTERNAL", "server"),
        (UpstreamResponse(503, {}, b"<html>"), "UNAVAILABLE", "server"),
        (UpstreamResponse(403, {}, b'{"code": "x", "message": "it"}'), "PERMISSION_DENIED", "x"),
        (UpstreamResponse(504, {}, b'{"code": "x", "message": "it"}'), "DEADLINE_EXCEEDED", "x"),
        (UpstreamResponse(429, {}, b"[]"), "RESOURCE_EXHAUSTED", "server"),
        (UpstreamResponse(418, {}, b"1"), "INVALID_ARGUMENT", "server"),
        (UpstreamResponse(599, {}, b""), "INTERNAL", "server"),
    ],
)
def test_responses_of_others(response: UpstreamResponse, status: str, code: str) -> None:
    """The engine's, or a proxy's: a status and a code, whatever the body holds."""
    made = statuses.refusal(response)
    assert (made.status.name, made.code) == (status, code)


@pytest.mark.usefixtures("served")
def test_an_error_carries_the_id_of_its_request(channel: grpc.Channel) -> None:
    """That which the client gave, or one of the server's."""
    assert (
        told(refused(channel, request("unknown"), ("x-request-id", "mine")))["x-request-id"]
        == "mine"
    )
    assert told(refused(channel, request("unknown")))["x-request-id"]


@pytest.mark.usefixtures("served")
def test_compressed_messages_are_bounded_as_they_unfold(channel: grpc.Channel) -> None:
    """A small one is served; 20 MB of zeros in 20 KB are refused."""
    gzip = grpc.Compression.Gzip
    assert infer(channel, request(), compression=gzip)[0].raw_output_contents
    bomb = request(raw=bytes(20 << 20))
    assert len(zlib.compress(bomb.SerializeToString())) < 1 << 15
    assert refused(channel, bomb, compression=gzip).code() == Code.RESOURCE_EXHAUSTED


@pytest.fixture
def guarded(tmp_path: Path, diabetes: Path) -> Any:
    """A server that requires a token."""
    key_file = tmp_path / "key_file.json"
    told = {"inference": {"key": TOKEN, "expiration time": "2999-01-01T00:00:00Z"}}
    key_file.write_text(json.dumps(told))
    place = Place(key_file)
    place.add(service(diabetes))
    place.follow(m=("1.0",))
    yield place
    place.close()


def test_tokens(guarded: Place) -> None:
    """Predictions and metadata require one; health does not."""
    with (
        Gateway(guarded.socket) as gateway,
        triton.InferenceServerClient(gateway.address) as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        right = {"authorization": f"Bearer {TOKEN}"}
        for headers in ({}, {"authorization": "Bearer y"}, {"authorization": TOKEN}):
            for ask in (
                lambda headers: client.infer("m", row(), headers=headers),
                lambda headers: client.get_model_metadata("m", headers=headers),
                lambda headers: client.get_server_metadata(headers=headers),
            ):
                with pytest.raises(InferenceServerException, match="the inference token") as caught:
                    ask(headers)
                assert caught.value.status() == str(Code.UNAUTHENTICATED)
        assert client.infer("m", row(), headers=right).as_numpy("output")[0, 0] == RIGHT
        assert client.get_model_metadata("m", headers=right).name == "m"


class Silent:
    """A server that reads requests and never responds."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)

    def asked(self, line: socket.socket | None = None) -> socket.socket:
        """The connection of a request, once that is there: a new one, or this again."""
        if line is None:
            line, _ = self._listener.accept()
            line.settimeout(10)
        data = b""
        while b"/infer HTTP/1.1" not in data:
            data += line.recv(1 << 16)
        return line

    def is_asked(self, seconds: float) -> bool:
        """Whether a request comes in this time."""
        return bool(select.select([self._listener], [], [], seconds)[0])

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


def is_ended(line: socket.socket) -> bool:
    """Whether the other side closes it; waits until then."""
    while data := line.recv(1 << 16):
        assert data  # the rest of the request
    line.close()
    return True


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Silent]:
    """A server in place of the direct address."""
    made = Silent(tmp_path / "s")
    yield made
    made.close()


def test_a_deadline_ends_the_request(silent: Silent, tmp_path: Path) -> None:
    """DEADLINE_EXCEEDED for the client, and its HTTP connection is closed."""
    with Gateway(tmp_path / "s") as gateway, grpc.insecure_channel(gateway.address) as channel:
        under_way = infer_later(channel, timeout=1)
        line = silent.asked()
        assert is_ended(line)
        with pytest.raises(grpc.RpcError) as caught:
            under_way.result(20)
        assert caught.value.code() == Code.DEADLINE_EXCEEDED


def test_peers_that_go_away_end_their_requests(silent: Silent, tmp_path: Path) -> None:
    """By cancelling, or by closing their connection without a word."""
    with Gateway(tmp_path / "s") as gateway:
        with grpc.insecure_channel(gateway.address) as channel:
            under_way = infer_later(channel)
            line = silent.asked()
            under_way.cancel()
            assert is_ended(line)
        channel = grpc.insecure_channel(gateway.address)
        under_way = infer_later(channel)
        line = silent.asked()
        channel.close()
        assert is_ended(line)


@pytest.mark.parametrize("count", [1, 40])
def test_a_killed_client(silent: Silent, tmp_path: Path, count: int) -> None:
    """Its requests end with its connection: nothing waits for what nobody reads."""
    code = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
calls = [call.future(bytes.fromhex(sys.argv[2])) for _ in range(int(sys.argv[3]))]
calls[0].result()
"""
    with Gateway(tmp_path / "s") as gateway:
        words = [gateway.address, request().SerializeToString().hex(), str(count)]
        client = subprocess.Popen([sys.executable, "-c", code, *words])
        lines = [silent.asked() for _ in range(count)]
        client.kill()
        client.wait(10)
        assert all(map(is_ended, lines))


def infer_later(channel: grpc.Channel, timeout: float = 60) -> Any:
    """A request that is under way as long as this is kept."""
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return call.future(request().SerializeToString(), timeout=timeout)


def test_a_full_queue_is_resource_exhausted(place: Place, held: Any, channel: grpc.Channel) -> None:
    """One runs, one waits, the third is told to come back."""
    under_way = [infer_later(channel)]
    assert held.entered.acquire(timeout=10)
    under_way.append(infer_later(channel))
    (worker,) = place.workers
    until(lambda: worker._lane.load == 2)
    error = refused(channel, request())
    assert error.code() == Code.RESOURCE_EXHAUSTED
    assert told(error)["error-code"] == "busy"
    assert told(error)["retry-after"] == "1"
    held.goes.release(2)
    assert all(each.result(20) for each in under_way)


def test_a_worker_that_dies_is_unavailable(place: Place, held: Any, channel: grpc.Channel) -> None:
    """With the request in its hands: nobody knows whether it ran, so it is not sent again."""
    under_way = infer_later(channel)
    assert held.entered.acquire(timeout=10)
    (worker,) = place.workers
    (connection,) = worker._connections
    worker._loop.call_soon_threadsafe(connection.transport.abort)
    with pytest.raises(grpc.RpcError) as caught:
        under_way.result(20)
    assert caught.value.code() == Code.UNAVAILABLE
    assert told(caught.value)["error-code"] == "no_answer"
    assert not held.entered.acquire(timeout=0.2)


def test_nobody_behind_the_gateway(tmp_path: Path) -> None:
    """UNAVAILABLE at once, for health as well."""
    with Gateway(tmp_path / "none") as gateway, grpc.insecure_channel(gateway.address) as channel:
        assert refused(channel, request()).code() == Code.UNAVAILABLE
        with triton.InferenceServerClient(gateway.address) as client:
            with pytest.raises(InferenceServerException) as caught:
                client.is_server_live()
            assert caught.value.status() == str(Code.UNAVAILABLE)


def test_too_many_calls(held: Any, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's own bound, with the code of a full queue."""
    monkeypatch.setattr(server, "_MOST_RUNNING", 1)
    under_way = infer_later(channel)
    assert held.entered.acquire(timeout=10)
    error = refused(channel, request())
    assert error.code() == Code.RESOURCE_EXHAUSTED
    assert told(error)["error-code"] == "busy"
    held.goes.release()
    assert under_way.result(20)


@pytest.mark.usefixtures("served")
def test_a_fault_of_the_gateway_tells_nothing(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """INTERNAL with a reference, which the log has with the reason."""

    async def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Upstream, "post", fail)
    error = refused(channel, request())
    assert error.code() == Code.INTERNAL
    assert "secret" not in error.details()
    assert error.details().rpartition(" ")[2] in caplog.text
    assert "a secret" in caplog.text


@pytest.mark.usefixtures("served")
def test_responses_of_32_clients_are_kept_apart(gateway: Gateway) -> None:
    """Each on a connection of its own, every response its own request's."""
    values = np.random.default_rng(2).normal(size=(32, 10)).astype("float32")
    with triton.InferenceServerClient(gateway.address) as client:
        alone = [client.infer("m", row(v.tolist())).as_numpy("output").item() for v in values]

    def ask(number: int) -> None:
        with triton.InferenceServerClient(gateway.address) as client:
            for turn in range(20):
                mine = (number + turn) % 32
                result = client.infer("m", row(values[mine].tolist()), request_id=f"{mine}")
                assert result.get_response().id == str(mine)
                assert result.as_numpy("output").item() == pytest.approx(alone[mine], rel=1e-5)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(32)))


def large(field: str, value: Any, count: int) -> bytes:
    """A request whose one input has many typed values."""
    made = kind("ModelInferRequest")(model_name="m")
    datatypes = {"int_contents": "INT32", "bytes_contents": "BYTES", "bool_contents": "BOOL",
                 "fp32_contents": "FP32"}  # fmt: skip
    tensor = made.inputs.add(name="input", datatype=datatypes[field], shape=[1, count])
    getattr(tensor.contents, field).extend([value] * count)
    return bytes(made.SerializeToString())


class Ticks:
    """The longest time that a gateway's loop kept others waiting, and worked meanwhile."""

    def __init__(self, gateway: Gateway) -> None:
        self._loop, self.longest_s, self.longest_cpu_s = gateway._loop, 0.0, 0.0
        self._last, self._is_done = time.monotonic(), False
        self._last_cpu: float | None = None

    def __enter__(self) -> "Ticks":
        self._loop.call_soon_threadsafe(self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done = True

    def _tick(self) -> None:
        now, cpu = time.monotonic(), time.thread_time()
        self.longest_s = max(self.longest_s, now - self._last)
        self.longest_cpu_s = max(self.longest_cpu_s, cpu - (self._last_cpu or cpu))
        self._last, self._last_cpu = now, cpu
        if not self._is_done:
            self._loop.call_later(0.005, self._tick)


def many_values(count: int) -> bytes:
    """An input."""
    (tensor,) = kind("ModelInferRequest").FromString(large("int_contents", 1, count)).inputs
    return bytes(tensor.SerializeToString())


LARGE_BYTES = 1 << 24
"""The limit as shipped."""


def large_messages() -> dict[str, Any]:
    """Messages of about the limit, by what fills them; the last bytes of some break them."""
    start = kind("ModelInferRequest")(model_name="m").SerializeToString()
    parameters = kind("ModelInferRequest")(model_name="m")
    tensor = parameters.inputs.add(name="input", datatype="FP32", shape=[1, 10])
    for number in range(200_000):
        tensor.parameters[str(number)].bool_param = True
    shape = kind("ModelInferRequest")(model_name="m")
    shape.inputs.add(shape=[0] * (LARGE_BYTES - 100))
    most = LARGE_BYTES - (1 << 16)
    return {
        **{f"field {number}": start + bytes([number << 3 | 2, 0]) * (most // 2)
           for number in range(1, 16)},
        "parameters": parameters.SerializeToString(),
        "shape": shape.SerializeToString(),
        "name": request("é" * (most // 2 - 50)).SerializeToString(),
        "version": request(version="é" * (most // 2 - 50)).SerializeToString(),
        "id": start + kind("ModelInferRequest")(id="\0" * most).SerializeToString(),
        "integers": large("int_contents", 1, most),
        "booleans": large("bool_contents", True, most),
        "many inputs": start + b"".join(
            wire.head(5, len(one)) + one for one in [many_values(most // 1024)] * 1024
        ),
        "texts": large("bytes_contents", b"", most // 2),
        "floats": large("fp32_contents", 1.0, most // 4),
    }  # fmt: skip


def test_large_messages_keep_nobody_waiting(place: Place, folder: Path) -> None:
    """Whatever fills them: other calls are answered while they are looked at."""
    place.add(service(folder))
    place.follow(m=("1.0",))
    options = [("grpc.max_send_message_length", -1)]
    with (
        Gateway(place.socket, request_bytes=LARGE_BYTES) as gateway,
        grpc.insecure_channel(gateway.address, options) as channel,
    ):
        for what, message in large_messages().items():
            with Ticks(gateway) as ticks:
                code = refused(channel, message).code()
            assert code in (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED), what
            assert ticks.longest_s < 0.5, what
            assert ticks.longest_cpu_s < 0.25, what


def half(channel: grpc.Channel, method: str = "ModelInfer", *metadata: tuple[str, str]) -> Any:
    """A call whose message never comes."""
    call = channel.stream_unary(f"/inference.GRPCInferenceService/{method}")
    return call.future(iter(threading.Event().wait, 0), metadata=metadata, timeout=20)


@pytest.mark.usefixtures("served")
def test_a_message_has_its_time_and_is_not_received_without_a_token(
    place: Place, tmp_path: Path
) -> None:
    """Before it is there its memory is the client's to take."""
    key_file = tmp_path / "key_file.json"
    ends = "2999-01-01T00:00:00Z"
    key_file.write_text(json.dumps({"inference": {"key": TOKEN, "expiration time": ends}}))
    right = ("authorization", f"Bearer {TOKEN}")
    with (
        Gateway(place.socket, key_file=key_file, message_s=0.5) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
    ):
        began = time.monotonic()
        assert half(channel).exception().code() is Code.UNAUTHENTICATED
        assert time.monotonic() - began < 0.4
        assert told(refused(channel, request()))["error-code"] == "token"
        late = half(channel, "ModelInfer", right).exception()
        assert (late.code(), told(late)["error-code"]) == (Code.DEADLINE_EXCEEDED, "slow")
        assert half(channel, "ModelReady").exception().code() is Code.DEADLINE_EXCEEDED
        waiting = [half(channel, "ModelInfer", right) for _ in range(100)]
        assert infer(channel, request(), right)
        assert {one.exception().code() for one in waiting} == {Code.DEADLINE_EXCEEDED}


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ModelReady", "ModelInfer"])
def test_who_has_no_token_and_sends_nothing_keeps_nobody_out(
    guarded: Place, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Whatever it opens: others are answered at once, as if it were not there."""
    monkeypatch.setattr(server, "_OPEN_MESSAGE_S", 60.0)
    monkeypatch.setattr(server, "_MOST_RUNNING", 1)
    right = {"authorization": f"Bearer {TOKEN}"}
    with (
        Gateway(guarded.socket, LARGE_BYTES, key_file=guarded.key_file) as gateway,
        triton.InferenceServerClient(gateway.address) as client,
    ):
        channel = grpc.insecure_channel(gateway.address, [("grpc.use_local_subchannel_pool", 1)])
        calls = [half(channel, method) for _ in range(100)]
        until(lambda: sum(call.done() for call in calls) >= 84)  # the newest 16 may have places
        assert client.is_server_live(client_timeout=2)
        assert client.is_server_ready(client_timeout=2)
        assert client.is_model_ready("m", client_timeout=2)
        found = client.infer("m", row(), headers=right, client_timeout=2)
        assert found.as_numpy("output")[0, 0] == RIGHT
        ended = {call.exception().code() for call in calls if call.done()}
        wanted = Code.UNAUTHENTICATED if method == "ModelInfer" else Code.RESOURCE_EXHAUSTED
        assert ended == {wanted}
        channel.close()


def test_health_of_a_worker_that_hangs_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that need no token are bounded where nothing answers: the oldest end."""
    monkeypatch.setattr(server, "_OPEN_RUNNING", 4)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(64)
    with Gateway(tmp_path / "s") as gateway, grpc.insecure_channel(gateway.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        name = kind("ModelReadyRequest")(name="m").SerializeToString()
        calls = [call.future(name, timeout=20) for _ in range(20)]
        until(lambda: sum(each.done() for each in calls) == 16)
        assert {told(each)["error-code"] for each in calls if each.done()} == {"busy"}
        for each in calls:
            each.cancel()
    listener.close()


LARGE_ROW = bytes(1 << 20)
"""Raw values: the largest message of the tests' gateways, but for a few bytes."""


def large_later(channel: grpc.Channel, timeout: float = 30) -> Any:
    """A large request that is under way."""
    made = request(raw=LARGE_ROW[: -(1 << 10)]).SerializeToString()
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return call.future(made, timeout=timeout)


def drained(line: socket.socket) -> socket.socket:
    """The connection of a large request, once all of it is there."""
    left = len(LARGE_ROW) - (1 << 17)  # some came with its head
    while left > 0:
        left -= len(line.recv(1 << 16))
    return line


REFUSAL = b'{"code": "x", "message": "it"}'
RESPONSE = b"HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(REFUSAL)
RESPONSE += REFUSAL


@pytest.fixture
def two_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two of the largest messages at a time."""
    monkeypatch.setattr(server, "_MESSAGES_BYTES", 1 << 21)
    monkeypatch.setattr(server, "_FEW", 1)


@pytest.mark.usefixtures("two_messages")
def test_messages_of_running_calls_count(silent: Silent, tmp_path: Path) -> None:
    """Until they are answered: others wait for their memory, in order."""
    with Gateway(tmp_path / "s") as gateway, grpc.insecure_channel(gateway.address) as channel:
        calls = [large_later(channel) for _ in range(5)]
        lines = [drained(silent.asked()) for _ in range(2)]
        assert not silent.is_asked(0.3)
        for _ in range(3):
            lines.pop(0).sendall(RESPONSE)
            lines.append(drained(silent.asked()))
        for line in lines:
            line.sendall(RESPONSE)
        assert {call.exception().code() for call in calls} == {Code.INVALID_ARGUMENT}


@pytest.mark.usefixtures("two_messages")
def test_who_gets_no_memory_is_told_to_come_back(silent: Silent, tmp_path: Path) -> None:
    """With the code of a full queue; its own deadline comes first where it is shorter."""
    with (
        Gateway(tmp_path / "s", message_s=0.5) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
    ):
        kept = [large_later(channel) for _ in range(2)]
        lines = [drained(silent.asked()) for _ in range(2)]
        assert large_later(channel, 0.2).exception().code() is Code.DEADLINE_EXCEEDED
        error = large_later(channel).exception()
        assert (error.code(), told(error)["error-code"]) == (Code.RESOURCE_EXHAUSTED, "busy")
        assert told(error)["retry-after"] == "1"
        for line in lines:
            line.sendall(RESPONSE)
        assert {call.exception().code() for call in kept} == {Code.INVALID_ARGUMENT}


def without_window(address: str, message: bytes) -> socket.socket:
    """A connection of HTTP/2 with a call, whose client never lets more of its response come.

    grpc's own client takes what comes, whether or not anyone reads it.
    """

    def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
        return struct.pack(">IBI", len(data) << 8 | kind, flags, stream) + data

    headers = {":method": "POST", ":scheme": "http", ":authority": "x", "te": "trailers",
               ":path": "/inference.GRPCInferenceService/ModelInfer",
               "content-type": "application/grpc"}  # fmt: skip
    packed = b"".join(
        b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in header)
        for header in headers.items()
    )
    data = b"\0" + struct.pack(">I", len(message)) + message
    host, _, port = address.rpartition(":")
    line = socket.create_connection((host, int(port)), timeout=10)
    start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(4, 1, 0, b"")
    line.sendall(start + frame(1, 4, 1, packed) + frame(0, 1, 1, data))
    return line


def large_body(size: int = 2_000_000) -> tuple[bytes, bytes]:
    """JSON and so many bytes of a tensor."""
    entry = {"name": "y", "datatype": "UINT8", "shape": [size]}
    entry["parameters"] = {"binary_data_size": size}
    text = json.dumps({"model_name": "m", "model_version": "1", "outputs": [entry]}).encode()
    return text, bytes(size)


def large_response(size: int = 2_000_000) -> bytes:
    """The same as a response of HTTP."""
    text, data = large_body(size)
    head = f"inference-header-content-length: {len(text)}\r\n"
    head += f"content-length: {len(text) + len(data)}\r\n"
    return b"HTTP/1.1 200 OK\r\n" + head.encode() + b"\r\n" + text + data


def take_some(line: socket.socket) -> None:
    """Take as much of a response as comes without a word of the client."""
    taken = 0
    while taken < SENT_AT_ONCE_BYTES - 1:
        taken += len(line.recv(1 << 16))


def read_to_end(line: socket.socket) -> None:
    """Read until the other side closes."""
    while line.recv(1 << 16):
        pass


@pytest.mark.usefixtures("two_messages")
def test_a_client_that_reads_nothing_keeps_others_waiting_for_a_while_only(
    silent: Silent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is closed then, and others get their responses; where none waits it stays."""
    monkeypatch.setattr(server, "_TAKEN_S", 0.5)
    response = large_response()
    with Gateway(tmp_path / "s") as gateway, grpc.insecure_channel(gateway.address) as channel:
        reads_nothing = without_window(gateway.address, request().SerializeToString())
        first = silent.asked()
        first.sendall(response)
        take_some(reads_nothing)
        reads_nothing.settimeout(1.0)
        with pytest.raises(TimeoutError):
            read_to_end(reads_nothing)
        reads_nothing.settimeout(10)
        files = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            call = infer_later(channel)
            silent.asked(first).sendall(response)
            assert len(call.result(20)) > 2_000_000
            read_to_end(reads_nothing)
            reads_nothing.close()
            reads_nothing = without_window(gateway.address, request().SerializeToString())
            silent.asked(first).sendall(response)
            take_some(reads_nothing)
        assert len(list(Path("/proc/self/fd").iterdir())) <= files + 2
        reads_nothing.close()


@pytest.mark.usefixtures("two_messages")
def test_responses_count_until_they_are_read_and_are_not_refused(
    silent: Silent, tmp_path: Path
) -> None:
    """The model has worked for them: they wait for memory until their calls' own deadlines."""
    response = large_response()
    with (
        Gateway(tmp_path / "s", message_s=0.1) as gateway,
        grpc.insecure_channel(gateway.address) as channel,
    ):
        reads_nothing = without_window(gateway.address, request().SerializeToString())
        first = silent.asked()
        call, short = infer_later(channel), infer_later(channel, 1.0)
        lines = [silent.asked(), silent.asked()]
        first.sendall(response)
        take_some(reads_nothing)
        for line in lines:
            line.sendall(response[: 1 << 10])
        assert short.exception().code() is Code.DEADLINE_EXCEEDED
        assert not call.done()
        reads_nothing.close()
        for line in lines:
            with contextlib.suppress(OSError):  # the one with the deadline is closed
                line.sendall(response[1 << 10 :])
        assert len(call.result(20)) > 2_000_000


@pytest.mark.usefixtures("two_messages")
def test_messages_and_responses_do_not_wait_for_each_other(silent: Silent, tmp_path: Path) -> None:
    """Whichever of them fill their memory: the model has worked for a response."""
    response = large_response()
    with Gateway(tmp_path / "s") as gateway, grpc.insecure_channel(gateway.address) as channel:
        reads_nothing = without_window(gateway.address, request().SerializeToString())
        first = silent.asked()
        first.sendall(response)
        take_some(reads_nothing)
        calls = [large_later(channel) for _ in range(2)]
        lines = [drained(silent.asked(first)), drained(silent.asked())]
        for line in lines:
            line.sendall(RESPONSE)
        assert {call.exception().code() for call in calls} == {Code.INVALID_ARGUMENT}
        reads_nothing.close()
        call = infer_later(channel)
        line = silent.asked()
        silent_calls = [half(channel) for _ in range(3)]
        line.sendall(response)
        assert len(call.result(20)) > 2_000_000
        for each in silent_calls:
            each.cancel()


def test_a_model_is_asked_for_no_more_than_its_worker_may_keep(
    silent: Silent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its responses are known each counts as the largest; other models do not wait."""
    monkeypatch.setattr(server, "_UNREAD_BYTES", 3 << 20)
    small = large_response(100)
    with Gateway(tmp_path / "s") as gateway, grpc.insecure_channel(gateway.address) as channel:
        calls = [infer_later(channel) for _ in range(6)]
        lines = [silent.asked() for _ in range(3)]
        assert not silent.is_asked(0.3)
        other = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
            request("other").SerializeToString(), timeout=20
        )
        silent.asked().sendall(RESPONSE)
        assert other.exception().code() is Code.INVALID_ARGUMENT
        lines.pop().sendall(RESPONSE)  # an error tells nothing of the size
        lines.append(silent.asked())
        assert not silent.is_asked(0.3)
        for _ in range(2):
            lines[0].sendall(small)
            silent.asked(lines[0])
        for line in lines:
            line.sendall(small)
        assert sorted(call.exception() is None for call in calls) == [False] + [True] * 5
        many = [infer_later(channel) for _ in range(12)]
        lines = [silent.asked(line) for line in lines] + [silent.asked() for _ in range(9)]
        for line in lines:
            line.sendall(small)
        assert all(call.exception() is None for call in many)


@pytest.mark.usefixtures("two_messages")  # so that calls wait for each other
def test_a_cut_response_that_was_larger_than_expected_is_asked_for_again(
    silent: Silent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, in its turn as the largest; one of the expected size, or not begun, is lost."""
    monkeypatch.setattr(server, "_UNREAD_BYTES", 3 << 20)
    last = b"\r\nconnection: close\r\n\r\n"
    small, large = (large_response(size).replace(b"\r\n\r\n", last, 1) for size in (100, 900_000))

    def answer(line: socket.socket, data: bytes) -> None:
        line.sendall(data)
        line.close()

    with Gateway(tmp_path / "s") as gateway, grpc.insecure_channel(gateway.address) as channel:
        first = infer_later(channel)
        answer(silent.asked(), small)
        assert first.exception() is None
        calls = [infer_later(channel) for _ in range(6)]
        for line in [silent.asked() for _ in range(6)]:  # all are thought to be small
            answer(line, large[:10_000])
        again = [silent.asked() for _ in range(3)]
        assert not silent.is_asked(0.3)
        for line, data in zip(again, (b"", large, large), strict=True):
            answer(line, data)
        for _ in range(3):
            answer(silent.asked(), large)
        assert sorted(call.exception() is None for call in calls) == [False] + [True] * 5
        expected = infer_later(channel)
        answer(silent.asked(), large[:10_000])
        assert expected.exception().code() is Code.UNAVAILABLE


class LargeTensors(OnnxHandler):
    """Responds with a tensor of two million bytes, when it is told to."""

    def prepare(self) -> None:
        """Wait."""
        self.goes = threading.Event()

    def call_s(self, rows: int) -> float:  # noqa: ARG002
        """On a thread, so that the worker's loop goes on."""
        return 1.0

    def encode(self, outputs: Any, state: Any) -> Reply:  # noqa: ARG002
        """Zeros."""
        assert self.goes.wait(30)
        text, body = large_body()
        header = ("inference-header-content-length", str(len(text)))
        return Reply(text + body, "application/octet-stream", headers=(header,))


def test_honest_calls_with_large_responses_keep_their_connections(
    diabetes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway waits for memory, longer than a worker keeps so much for who reads nothing."""
    monkeypatch.setattr(server, "_MESSAGES_BYTES", 8 << 20)
    monkeypatch.setattr(server, "_FEW", 1)
    monkeypatch.setattr(server, "_TAKEN_S", 2.0)
    monkeypatch.setattr(server, "_UNREAD_BYTES", 6 << 20)
    place = Place(limits=Limits(unsent_bytes=8 << 20))
    model = service(diabetes, kind=LargeTensors)
    options = [("grpc.max_receive_message_length", -1)]
    try:
        place.add(model, batch=1)
        place.follow(m=("1.0",))
        with (
            Gateway(place.socket, request_bytes=9 << 18) as gateway,
            grpc.insecure_channel(gateway.address, options) as channel,
        ):
            message = request().SerializeToString()
            take_nothing = [without_window(gateway.address, message) for _ in range(4)]
            calls = [infer_later(channel) for _ in range(16)]
            time.sleep(0.5)  # as many calls reach the worker as the gateway lets
            model.goes.set()
            assert [call.exception() for call in calls] == [None] * 16
            for line in take_nothing:
                line.close()
    finally:
        place.close()


def test_a_message_is_freed_once_it_is_sent(silent: Silent, tmp_path: Path) -> None:
    """Not when its call ends: by then there is a response, too."""
    code = """
import pathlib, sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
call(pathlib.Path(sys.argv[2]).read_bytes())
"""
    with Gateway(tmp_path / "s") as gateway:
        message = tmp_path / "message"
        message.write_bytes(request(raw=LARGE_ROW[: -(1 << 10)]).SerializeToString())
        client = subprocess.Popen([sys.executable, "-c", code, gateway.address, message])
        tracemalloc.start()
        line = drained(silent.asked())
        until(lambda: tracemalloc.get_traced_memory()[0] < len(LARGE_ROW) // 2)
        tracemalloc.stop()
        client.kill()
        client.wait(10)
        assert is_ended(line)
