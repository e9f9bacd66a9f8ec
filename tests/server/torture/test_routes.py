"""Authorization: every route of TorchServe with every kind of token, as tables.

A cell is the HTTP status; `no` is the refusal of a token (a 401 of a worker, 400 with
InvalidKeyException, or gRPC's PERMISSION_DENIED). Roles: no token, garbage, the right one
without its last letter, the right one before a renewal, and the three of key_file.json.
"""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from figures import Figures
from loads import Tally
from marship import Client
from marship.engines.torchserve import config, properties
from marship.engines.torchserve.server import Server
from marship.operate.proxy import ProxySettings
from nginx import Door, free_port, in_front

pytestmark = pytest.mark.usefixtures("archives")  # lin, and echo

BODY = b"[[1, 2, 3]]"
JSON = {"Content-Type": "application/json"}
TOKEN_ENDS_S = 62

INFERENCE = """
method   path                             none garbage cut old inference management API
OPTIONS  /                                200  200     200 200 200       200        200
GET      /api-description                 200  200     200 200 200       200        200
GET      /                                405  405     405 405 405       405        405
GET      /ping                            no   no      no  no  200       no         no
POST     /predictions/lin                 no   no      no  no  200       no         no
POST     /predictions/lin/1               no   no      no  no  200       no         no
POST     /predictions/lin/9               no   no      no  no  404       no         no
POST     /predictions/none                no   no      no  no  404       no         no
OPTIONS  /predictions/lin                 no   no      no  no  200       no         no
POST     /explanations/lin                no   no      no  no  501       no         no
POST     /invocations?model_name=lin      no   no      no  no  200       no         no
POST     /models/lin/invoke               no   no      no  no  200       no         no
POST     /lin/predict                     no   no      no  no  200       no         no
POST     /lin/1/predict                   no   no      no  no  200       no         no
POST     /v1/models/lin:predict           no   no      no  no  200       no         no
POST     /v1/models/lin:explain           no   no      no  no  501       no         no
POST     /v2/models/lin/infer             no   no      no  no  200       no         no
POST     /v2/models/lin/explain           no   no      no  no  501       no         no
GET      /v1/models/lin                   no   no      no  no  404       no         no
GET      /v2                              no   no      no  no  404       no         no
GET      /v2/health/live                  no   no      no  no  404       no         no
GET      /v2/health/ready                 no   no      no  no  404       no         no
GET      /v2/models/lin/versions/1/ready  no   no      no  no  404       no         no
POST     /wfpredict/none                  no   no      no  no  404       no         no
GET      /models                          no   no      no  no  404       no         no
POST     /models?url=echo.mar             no   no      no  no  404       no         no
PUT      /models/lin?min_worker=2         no   no      no  no  404       no         no
PUT      /models/lin/1/set-default        no   no      no  no  404       no         no
DELETE   /models/lin                      no   no      no  no  404       no         no
GET      /workflows                       no   no      no  no  404       no         no
POST     /workflows?url=echo.mar          no   no      no  no  404       no         no
GET      /token?type=inference            no   no      no  no  404       no         no
GET      /metrics                         no   no      no  no  404       no         no
GET      /key_file.json                   no   no      no  no  404       no         no
GET      /static/none                     no   no      no  no  404       no         no
"""

MANAGEMENT = """
method   path                             none garbage cut old inference management API
OPTIONS  /                                200  200     200 200 200       200        200
GET      /api-description                 200  200     200 200 200       200        200
GET      /                                405  405     405 405 405       405        405
GET      /models                          no   no      no  no  no        200        no
GET      /models/lin                      no   no      no  no  no        200        no
GET      /models/lin/1                    no   no      no  no  no        200        no
GET      /models/lin/all                  no   no      no  no  no        200        no
GET      /models/none                     no   no      no  no  no        404        no
GET      /models/lin?customized=true      no   no      no  no  no        400        no
OPTIONS  /models/lin                      no   no      no  no  no        200        no
GET      /v1/models/lin                   no   no      no  no  no        200        no
POST     /models?url=echo.mar             no   no      no  no  no        200        no
PUT      /models/echo?min_worker=0        no   no      no  no  no        202        no
PUT      /models/echo/1.0?min_worker=0    no   no      no  no  no        202        no
PUT      /models/echo/1.0/set-default     no   no      no  no  no        200        no
DELETE   /models/echo                     no   no      no  no  no        200        no
POST     /models?url=echo.mar             no   no      no  no  no        200        no
DELETE   /models/echo/1.0                 no   no      no  no  no        200        no
POST     /models                          no   no      no  no  no        400        no
PATCH    /models/lin                      no   no      no  no  no        405        no
GET      /workflows                       no   no      no  no  no        200        no
GET      /workflows/none                  no   no      no  no  no        404        no
POST     /workflows?url=echo.mar          no   no      no  no  no        404        no
DELETE   /workflows/none                  no   no      no  no  no        404        no
GET      /models?next=/token              no   no      no  no  no        no         no
GET      /token                           no   no      no  no  no        no         no
GET      /token?type=API                  no   no      no  no  no        no         no
GET      /token?type=inference            no   no      no  no  no        no         200
GET      /token?type=management           no   no      no  no  no        no         200
POST     /predictions/lin                 no   no      no  no  no        404        no
POST     /v2/models/lin/infer             no   no      no  no  no        404        no
GET      /ping                            no   no      no  no  no        404        no
GET      /metrics                         no   no      no  no  no        404        no
GET      /key_file.json                   no   no      no  no  no        404        no
"""

METRICS = """
method   path                             none garbage cut old inference management API
GET      /metrics                         200  200     200 200 200       200        200
OPTIONS  /                                200  200     200 200 200       200        200
GET      /api-description                 200  200     200 200 200       200        200
GET      /                                405  405     405 405 405       405        405
GET      /models                          404  404     404 404 404       404        404
POST     /models?url=echo.mar             404  404     404 404 404       404        404
DELETE   /models/lin                      404  404     404 404 404       404        404
POST     /predictions/lin                 404  404     404 404 404       404        404
GET      /token?type=inference            404  404     404 404 404       404        404
GET      /workflows                       404  404     404 404 404       404        404
"""

DIRECT = """
method   path                             none garbage cut old inference management API
GET      /ping                            200  200     200 200 200       200        200
GET      /v2/health/live                  200  200     200 200 200       200        200
GET      /v2/health/ready                 200  200     200 200 200       200        200
GET      /v2/models/lin/ready             200  200     200 200 200       200        200
GET      /v2/models/lin/versions/1/ready  200  200     200 200 200       200        200
OPTIONS  /predictions/lin                 204  204     204 204 204       204        204
GET      /v2                              401  no      no  no  200       no         no
GET      /v2/models/lin                   401  no      no  no  200       no         no
GET      /v2/models/lin/versions/9        401  no      no  no  404       no         no
POST     /v2/models/lin/infer             401  no      no  no  200       no         no
POST     /v2/models/lin/versions/9/infer  401  no      no  no  404       no         no
POST     /predictions/lin                 401  no      no  no  200       no         no
POST     /predictions/lin/1               401  no      no  no  200       no         no
POST     /predictions/lin/9               401  no      no  no  404       no         no
POST     /predictions/none                401  no      no  no  404       no         no
DELETE   /predictions/lin                 401  no      no  no  405       no         no
OPTIONS  /                                204  204     204 204 204       204        204
GET      /                                200  200     200 200 200       200        200
GET      /page/app.js                     200  200     200 200 200       200        200
GET      /openapi.json                    401  no      no  no  200       no         no
GET      /models                          401  no      no  no  404       no         no
POST     /models?url=echo.mar             401  no      no  no  404       no         no
PUT      /models/lin?min_worker=2         401  no      no  no  404       no         no
DELETE   /models/lin                      401  no      no  no  404       no         no
GET      /token?type=inference            401  no      no  no  404       no         no
POST     /explanations/lin                401  no      no  no  501       no         no
POST     /invocations?model_name=lin      401  no      no  no  404       no         no
POST     /predictions/..%2Fmodels         401  no      no  no  404       no         no
GET      /metrics                         401  no      no  no  404       no         no
GET      /key_file.json                   401  no      no  no  404       no         no
"""

PROXY = """
method   path                             none garbage cut old inference management API
POST     /predictions/lin                 401  no      no  no  200       no         no
POST     /predictions/lin/1               401  no      no  no  200       no         no
GET      /ping                            401  200     200 200 200       200        200
GET      /predictions/lin                 405  405     405 405 405       405        405
OPTIONS  /predictions/lin                 405  405     405 405 405       405        405
POST     /ping                            405  405     405 405 405       405        405
POST     /predictions/none                404  404     404 404 404       404        404
OPTIONS  /                                404  404     404 404 404       404        404
GET      /api-description                 404  404     404 404 404       404        404
POST     /explanations/lin                404  404     404 404 404       404        404
POST     /invocations?model_name=lin      404  404     404 404 404       404        404
POST     /models/lin/invoke               404  404     404 404 404       404        404
POST     /lin/predict                     404  404     404 404 404       404        404
POST     /v1/models/lin:predict           404  404     404 404 404       404        404
POST     /v2/models/lin/infer             404  404     404 404 404       404        404
GET      /v2/health/live                  404  404     404 404 404       404        404
POST     /wfpredict/none                  404  404     404 404 404       404        404
GET      /models                          404  404     404 404 404       404        404
GET      /models/lin                      404  404     404 404 404       404        404
GET      /models/lin/all                  404  404     404 404 404       404        404
POST     /models?url=echo.mar             404  404     404 404 404       404        404
PUT      /models/lin?min_worker=2         404  404     404 404 404       404        404
PUT      /models/lin/1/set-default        404  404     404 404 404       404        404
DELETE   /models/lin                      404  404     404 404 404       404        404
GET      /v1/models/lin                   404  404     404 404 404       404        404
GET      /workflows                       404  404     404 404 404       404        404
POST     /workflows?url=echo.mar          404  404     404 404 404       404        404
DELETE   /workflows/none                  404  404     404 404 404       404        404
GET      /token?type=inference            404  404     404 404 404       404        404
GET      /token?type=management           404  404     404 404 404       404        404
GET      /metrics                         404  404     404 404 404       404        404
GET      /key_file.json                   404  404     404 404 404       404        404
GET      /static/none                     404  404     404 404 404       404        404
"""

GRPC_INFERENCE = """
call                             none  garbage cut   old   inference management API
inference/Ping                   no    no      no    no    OK        no         no
inference/Predictions            no    no      no    no    OK        no         no
inference/StreamPredictions      no    no      no    no    OK        no         no
management/ListModels            lacks lacks   lacks lacks lacks     lacks      lacks
management/RegisterModel         lacks lacks   lacks lacks lacks     lacks      lacks
openinference/ServerLive         lacks lacks   lacks lacks lacks     lacks      lacks
health/Check                     lacks lacks   lacks lacks lacks     lacks      lacks
"""

GRPC_MANAGEMENT = """
call                             none  garbage cut   old   inference management API
management/ListModels            no    no      no    no    no        OK         no
management/DescribeModel         no    no      no    no    no        OK         no
management/RegisterModel         no    no      no    no    no        OK         no
management/ScaleWorker           no    no      no    no    no        OK         no
management/SetDefault            no    no      no    no    no        OK         no
management/UnregisterModel       no    no      no    no    no        OK         no
inference/Predictions            lacks lacks   lacks lacks lacks     lacks      lacks
health/Check                     lacks lacks   lacks lacks lacks     lacks      lacks
"""
"""`lacks`: the port has no such call (UNIMPLEMENTED), whoever asks."""

TABLES = {
    "inference": INFERENCE,
    "direct": DIRECT,
    "management": MANAGEMENT,
    "metrics": METRICS,
    "gRPC inference": GRPC_INFERENCE,
    "gRPC management": GRPC_MANAGEMENT,
    "proxy": PROXY,
}
SERVICES = {
    "inference": "org.pytorch.serve.grpc.inference.InferenceAPIsService",
    "management": "org.pytorch.serve.grpc.management.ManagementAPIsService",
    "openinference": "org.pytorch.serve.grpc.openinference.GRPCInferenceService",
    "health": "grpc.health.v1.Health",
}


def field(number: int, value: bytes) -> bytes:
    """A protobuf field of bytes, text or a message, below 128 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


ASKED = field(1, b"lin") + field(3, field(1, b"data") + field(2, BODY))
SCRATCH, VERSION = field(1, b"echo"), field(2, b"1.0")
MESSAGES = {
    "Predictions": ASKED,
    "StreamPredictions": ASKED,
    "DescribeModel": field(1, b"lin"),
    "RegisterModel": field(9, b"echo.mar"),
    "ScaleWorker": SCRATCH + VERSION,
    "SetDefault": SCRATCH + VERSION,
    "UnregisterModel": SCRATCH + VERSION,
}
"""Of TorchServe's inference.proto and management.proto; the other calls take nothing."""


class Doors:
    """The ways to a server, and the tokens of those who come.

    Args:
        server: It serves lin, and its store has echo.
        proxy: Before it.
    """

    def __init__(self, server: Server, proxy: Door) -> None:
        self.home = server.home
        self._proxy = proxy
        self._urls = {
            "inference": server.record.inference_url,
            "direct": server.record.direct_url or "",
            "management": server.record.management_url,
            "metrics": server.record.metrics_url,
        }
        self._held: dict[str, str] = {}
        self._old = self.keys()
        for name in ("inference", "management"):
            self.send("management", "GET", f"/token?type={name}", self._old["API"])

    def hold(self) -> None:
        """Keep the tokens of now: the acceptor, which follows the models, renews its own."""
        self._held = self.keys()

    def release(self) -> None:
        """Read them anew from now on."""
        self._held = {}

    def keys(self) -> dict[str, str]:
        """The tokens as they are now, or those that are held."""
        if self._held:
            return self._held
        return {k: v["key"] for k, v in json.loads(self.home.key_file.read_text()).items()}

    def token(self, port: str, role: str) -> str | None:
        """What a role shows at a port."""
        keys = self.keys()
        right = own(port)
        others = {
            "none": None,
            "garbage": "garbage!",
            "cut": keys[right][:-1],
            "old": self._old[right],
        }
        return others[role] if role in others else keys[role]

    def cell(self, port: str, row: str, role: str) -> str:
        """What comes of a row of a table."""
        token = self.token(port, role)
        if port.startswith("gRPC"):
            return self.call(port.split()[1], row, token)
        return self.send(port, *row.split(), token)

    def send(self, port: str, method: str, path: str, token: str | None) -> str:
        """The status of a request."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        body = None
        if method == "POST" and port != "management":
            headers, body = {**headers, **JSON}, BODY
        if port == "proxy":
            named = {name.replace("-", "_"): value for name, value in headers.items()}
            answer = self._proxy.ask(method, path, body, **named)
            status, said = answer.status, answer.body
        else:
            line = http.client.HTTPConnection(urlsplit(self._urls[port]).netloc, timeout=30)
            line.request(method, path, body, headers)
            got = line.getresponse()
            status, said = got.status, got.read()
            line.close()
        is_refused = status == 400 and b'"InvalidKeyException"' in said
        is_refused |= status == 401 and token is not None  # by a worker, or the acceptor
        return "no" if is_refused else str(status)

    def call(self, port: str, row: str, token: str | None) -> str:
        """The status of a gRPC call."""
        service, method = row.split("/")
        number = properties.read(self.home.config)[f"grpc_{port}_port"]
        told = () if token is None else (("authorization", f"Bearer {token}"),)
        with grpc.insecure_channel(f"127.0.0.1:{number}") as channel:
            ask = channel.unary_stream(f"/{SERVICES[service]}/{method}")
            try:
                list(ask(MESSAGES.get(method, b""), metadata=told, timeout=30))
            except grpc.RpcError as error:
                status = error.code().name
                return {"PERMISSION_DENIED": "no", "UNIMPLEMENTED": "lacks"}.get(status, status)
        return "OK"


def own(port: str) -> str:
    """Whose token a port asks for."""
    return "management" if "management" in port else "inference"


def read(table: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows, and their cells by role."""
    head, *rows = [line.rsplit(maxsplit=7) for line in table.strip().splitlines()]
    for first, *cells in rows:
        yield first, dict(zip(head[1:], cells, strict=True))


@pytest.fixture(scope="module", params=[None, "production"], ids=["default settings", "production"])
def doors(
    request: pytest.FixtureRequest,
    start: Callable[..., Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Doors]:
    """A server of its own, in both profiles, with the proxy before it."""
    one = start(profile=request.param)
    yield from opened(one, tmp_path_factory.mktemp("routes"))


def opened(one: Server, folder: Path) -> Iterator[Doors]:
    """The ways to a server until the test ends."""
    with Client(one.home.path) as client:
        client.register("lin-1.mar", name="lin", workers=1)
    settings = ProxySettings(
        home=one.home.path,
        out=folder / "proxy",
        listen=f"127.0.0.1:{free_port()}",
        self_signed=True,
        rate=10_000,
        burst=10_000,
    )
    with in_front(settings, ["lin"]) as proxy:
        yield Doors(one, proxy)
    one.stop()


def differences(
    doors: Doors, port: str, tally: Tally, *, is_expired: bool = False
) -> Iterator[str]:
    """Yield the cells of a table that differ from the responses.

    Args:
        doors: The servers.
        port: Which table.
        tally: Counts.
        is_expired: Use the right tokens after they have expired: they count as old ones.
    """
    right = own(port)
    for row, cells in read(TABLES[port]):
        for role, want in {right: cells["old"]}.items() if is_expired else cells.items():
            tally.send()
            began = time.monotonic()
            got = doors.cell(port, row, role)
            if got != want:
                yield f"{port} {row} with {role}: {want} in the table, got {got}"
            into = tally.correct if want in {"200", "202", "OK"} else tally.failed
            tally.count(into if got == want else tally.wrong, got, time.monotonic() - began)


@pytest.mark.parametrize("port", TABLES)
def test_each_token_grants_its_own_api_only(
    doors: Doors, port: str, figures: Figures, request: pytest.FixtureRequest
) -> None:
    """Each response is as in the table, and the models have not changed."""
    tally = Tally()
    with Client(doors.home.path) as client:
        before = client.models()
        wrong = list(differences(doors, port, tally))
        assert not wrong, "\n".join(wrong)
        assert client.models() == before
    figures.add(f"routes and tokens: {port}, {request.node.callspec.id.split('-')[0]}", tally)


def test_an_expired_token_lets_nobody_in(
    full: bool, start: Callable[..., Server], tmp_path: Path, figures: Figures
) -> None:
    """After a minute, the shortest that TorchServe knows, the right tokens are none."""
    if not full:
        pytest.skip("it waits for a minute: --full")
    source = tmp_path / "config.properties"
    text = config.PACKAGED.read_text()
    source.write_text(text.replace("token_expiration_min=60", "token_expiration_min=1"))
    (tmp_path / "out").mkdir()
    tally = Tally()
    for doors in opened(start(config=source), tmp_path / "out"):
        assert doors.cell("inference", "POST /predictions/lin", "inference") == "200"
        doors.hold()
        time.sleep(TOKEN_ENDS_S)  # the shortest lifetime that TorchServe knows
        wrong = [d for port in TABLES for d in differences(doors, port, tally, is_expired=True)]
        assert not wrong, "\n".join(wrong)
        doors.release()
        for name in ("inference", "management"):
            assert doors.cell("management", f"GET /token?type={name}", "API") == "200"
        assert doors.cell("inference", "POST /predictions/lin", "inference") == "200"
    figures.add("routes with expired tokens", tally)
