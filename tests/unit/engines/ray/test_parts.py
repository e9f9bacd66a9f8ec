"""What Ray is told and what it tells, without a cluster."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from marship.engines import default
from marship.engines.addresses import Target
from marship.engines.home import Home, ServerRecord
from marship.engines.ray import cluster, gcs, head, loads, noted, problems
from marship.engines.ray.archives import ArchiveSource
from marship.engines.ray.hosted import HostedVersion
from marship.engines.ray.line import Answer, Asked, LinePool
from marship.engines.ray.plan import RunPlan
from marship.engines.ray.settings import RaySettings
from marship.engines.ray.table import Table, TableEntry
from marship.engines.ray.worker import Counts, environment
from marship.engines.torchserve.engine import TorchServe
from marship.engines.torchserve.settings import ServeSettings
from marship.errors import (
    LoadError,
    NotRunningError,
    PackageError,
    SealError,
    ServerError,
    UsageError,
)

ENTRY = TableEntry(
    app="a", archive="m.mar", digest="d", registration="r", files=None, batch_size=1,
    max_batch_delay_ms=1, given_batch_size=None, given_delay_ms=None, timeout_s=1.0, streams=False,
    minimum=1, maximum=1,
)  # fmt: skip


def test_a_table_survives_json_and_knows_its_default() -> None:
    """The first version is the default until another one is made so."""
    table = Table().put("m", "1", ENTRY).put("m", "2", ENTRY)
    assert table.entry("m", None) == ("1", ENTRY)
    changed = table.default("m", "2").without("m", "1")
    assert changed.entry("m", None) == ("2", ENTRY)
    assert changed.entry("m", "1") is None
    assert changed.without("m", "2") == Table()
    assert Table.from_json(table.to_json()) == table
    assert Table.from_json(None) == Table()


@pytest.mark.parametrize(
    ("config", "cpus", "gpus", "bounds"),
    [
        ({}, 0.5, 0.0, (1, 1)),
        ({"minWorkers": 2, "maxWorkers": 5}, 0.5, 0.0, (2, 5)),
        ({"marship": {"intra_op_threads": 4}}, 2.0, 0.0, (1, 1)),
        ({"marship": {"providers": ["cuda", "cpu"], "gpu_share": 0.25}}, 0.5, 0.25, (1, 1)),
        ({"deviceType": "gpu"}, 0.5, 1.0, (1, 1)),
    ],
)
def test_a_plan_follows_the_archive(
    config: dict[str, Any], cpus: float, gpus: float, bounds: tuple[int, int]
) -> None:
    """Resources by threads and device; autoscaling only between different bounds."""
    plan = RunPlan.of(config, workers=None, batch_size=None)
    assert (plan.cpus, plan.gpus, (plan.minimum, plan.maximum)) == (cpus, gpus, bounds)
    assert ("autoscaling_config" in plan.options()) == (bounds[0] < bounds[1])
    fixed = RunPlan.of(config, workers=3, batch_size=8)
    assert (fixed.minimum, fixed.maximum, fixed.batch_size) == (3, 3, 8)


@pytest.mark.parametrize(
    "config",
    [{"minWorkers": 0}, {"batchSize": "8"}, {"marship": {"gpu_share": 2}, "deviceType": "gpu"}],
)
def test_settings_without_a_meaning_are_refused(config: dict[str, Any]) -> None:
    """By the name that they have in the archive."""
    with pytest.raises(PackageError, match=r"in model-config\.yaml must be"):
        RunPlan.of(config, workers=None, batch_size=None)


def test_an_error_of_a_replica_keeps_its_class_and_message() -> None:
    """Through Ray's texts, with a traceback before and behind it."""
    sent = str(problems.ReplicaError(SealError("the key must fit, got another >> one.")))
    got = problems.found(f"Traceback\n  ray...: {sent}\nmore", "a replica")
    assert (type(got), str(got)) == (SealError, "the key must fit, got another >> one.")


def test_a_node_without_the_packages() -> None:
    """Named by what it lacks."""
    text = "Traceback\nModuleNotFoundError: No module named 'marship'\n"
    assert str(problems.found(text, "x")).startswith(
        "every node must have the same packages, got No module named 'marship' on one."
    )
    assert isinstance(problems.found("", "a replica of m"), LoadError)


def test_another_version_of_ray() -> None:
    """Both versions are told, in one line."""
    error = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n"
        "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    refused = problems.refused("10.0.0.1:6379", error)
    assert isinstance(refused, ServerError)
    assert "Ray: 2.59.0" in str(refused)
    assert "Ray: 2.60.0" in str(refused)
    assert "\n" not in str(refused)


@pytest.mark.parametrize(
    ("given", "got"),
    [(None, "got none."), ("none-such", "got no readable one in none-such.")],
)
def test_a_missing_token_is_no_refusal(given: str | None, got: str, tmp_path: Path) -> None:
    """Of the cluster, which was asked nothing: Ray looks for its own token first."""
    code = """
from marship.engines.ray import cluster
from marship.errors import ServerError
cluster.gcs.check_listens = lambda address: None
try:
    cluster.connect("127.0.0.1:1", None)
except ServerError as error:
    print(error)
"""
    named = {} if given is None else {"RAY_AUTH_TOKEN_PATH": given}
    own = {name: text for name, text in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**own, **named, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "this user must have the token of the Ray cluster at 127.0.0.1" in done.stdout
    assert f"{got} Set RAY_AUTH_TOKEN_PATH" in done.stdout


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:6379",
        "127.0.0.1:99999",
        "127.0.0.1:0",
        ":1",
        "h:",
        "h:²",
        "a..b:1",
        f"{'a' * 64}:1",
    ],
)
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    """Said before anything is asked there."""
    with pytest.raises(UsageError, match="cluster's address must be HOST:PORT, got"):
        gcs.checked(address)


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that does this with each connection, on a thread."""
    lines: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:

        def serve(line: socket.socket) -> None:
            with line, suppress(OSError):
                answer(line)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    lines.append(server.accept()[0])
                    pool.submit(serve, lines[-1])

        pool.submit(accept)
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for line in (server, *lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0",
        bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]),  # HTTP/2, and nothing more
    ],
)
def test_another_server_at_the_address(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told at once: Ray would try to reach a cluster there for many minutes."""
    monkeypatch.setattr(gcs, "_RESPONSE_S", 1.0)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)

    def say(line: socket.socket) -> None:
        line.sendall(data)
        while line.recv(1 << 16):
            pass

    with (
        answering(say) as address,
        pytest.raises(
            NotRunningError, match=f"listen at {address}, got (another server|nothing said)"
        ),
    ):
        gcs.check_listens(address)


@pytest.mark.parametrize(
    ("code", "is_cluster"),
    [
        (None, True),
        (grpc.StatusCode.UNAUTHENTICATED, True),
        (grpc.StatusCode.INTERNAL, False),
        (grpc.StatusCode.UNKNOWN, False),
        (grpc.StatusCode.NOT_FOUND, False),
    ],
)
def test_a_server_of_grpc_is_a_cluster_if_it_has_ray_s_method(
    code: grpc.StatusCode | None, is_cluster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it lets this client in is Ray's to tell; proxies of HTTP are not asked."""
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # and there is none

    def alive(_: bytes, context: grpc.ServicerContext) -> bytes:
        if code is not None:
            context.abort(code, "another token")
        return b""

    service, _, method = gcs._ALIVE.strip("/").partition("/")
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with pytest.raises(NotRunningError, match=r"got another server of gRPC there\. Name the"):
            gcs.check_listens(address)
        handlers = {method: grpc.unary_unary_rpc_method_handler(alive)}
        server.add_registered_method_handlers(service, handlers)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        for same in (address, address.replace("127.0.0.1", "127.1")):
            with nullcontext() if is_cluster else pytest.raises(NotRunningError, match="another"):
                gcs.check_listens(same)
        server.stop(None).wait()


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500, 503])
def test_a_server_of_http_2_is_no_cluster(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPC has codes for its statuses that a cluster may have, too: the proxy's 401."""
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    fields = b"\x08\x03%d" % status  # :status, as a literal (RFC 7541, 6.2.2)
    head = len(fields).to_bytes(3) + bytes([1, 5, 0, 0, 0, 1]) + fields  # ends the stream

    def answer(line: socket.socket) -> None:
        line.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        with line.makefile("rb") as asked:
            asked.read(24)  # the preface (RFC 9113, 3.4)
            while frame := asked.read(9):
                asked.read(int.from_bytes(frame[:3]))
                if frame[3] == 1:  # the head of the request
                    line.sendall(head)

    with answering(answer) as address, pytest.raises(NotRunningError, match="another server"):
        gcs.check_listens(address)


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_node_that_has_just_died_is_left_out(
    is_gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray calls it alive until its heartbeats are missed, and then tasks there fail."""
    import ray

    def fail(*_: object, **__: object) -> None:
        raise ray.exceptions.TaskUnschedulableError("doesn't exist any more")

    monkeypatch.setattr(ray, "get", fail)
    monkeypatch.setattr(cluster, "nodes", lambda: [{"NodeID": "a" if is_gone else "b"}])
    with nullcontext() if is_gone else pytest.raises(LoadError, match=r"node 10\.0\.0\.2: "):
        cluster._check_node("b", "10.0.0.2", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (RaySettings(archives="nowhere://x"), "--archives must be one that fsspec reads here"),
        (RaySettings(address="http://127.0.0.1:6379"), "must be HOST:PORT"),
    ],
)
def test_a_bad_setting_starts_nothing(given: RaySettings, said: str, tmp_path: Path) -> None:
    """And leaves no home."""
    with pytest.raises(UsageError, match=said):
        head.start(replace(given, home=tmp_path / "home"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "has"), [("/other", "/a"), ("/other", None), ("/a", "/a"), (None, "/a")]
)
def test_a_cluster_has_one_place_for_archives(
    given: str | None, has: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that joins it cannot choose another, which nothing would use."""
    import ray

    keeper = SimpleNamespace(facts=SimpleNamespace(remote=lambda: {"key": "k", "url": has}))
    monkeypatch.setattr(ray, "get", lambda result: result)
    monkeypatch.setattr(head.keeper, "find", lambda: keeper)
    monkeypatch.setattr(cluster, "connect", lambda *_: None)
    monkeypatch.setattr(cluster, "port", lambda: 8000)
    joins = RaySettings(archives=given, address="10.0.0.1:6379")
    home = Home(tmp_path)
    is_other = given not in (None, has)
    expected = pytest.raises(UsageError, match=f"of the cluster, {has or 'none'}, got /other")
    with expected if is_other else nullcontext():
        head._serve(home, head._record(joins, home, None), joins)
    assert home.key_file.exists() != is_other


def test_a_nodes_warnings_are_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray writes them to standard output, where a command's JSON goes."""
    from ray._private import worker

    problems.keep_output()
    told = {"lines": ["8 PYTHON worker processes"], "pid": "raylet", "is_err": False}
    worker.print_to_stdstream(told, ignore_prefix=False)
    got = capsys.readouterr()
    assert (got.out, "8 PYTHON worker processes" in got.err) == ("", True)
    ours = f"Traceback\n{problems.ReplicaError(SealError('no key'))}\n"
    for text in (ours, "Task x failed. There are infinite retries remaining. Error: Traceback\n"):
        worker.print_to_stdstream({**told, "lines": [text]}, ignore_prefix=False)
    got = capsys.readouterr()
    assert (got.out, got.err) == ("", "")


def test_what_workers_count_is_added_up() -> None:
    """Counters by their error's code; what is no metric is passed over."""
    counts = Counts()
    line = "[METRICS]marship_errors_total.answers:2|#model_name:m,code:malformed|#type:COUNTER|#x\n"
    assert counts.add(line) == (("marship_errors_total", "malformed"), 2.0)
    counts.add(line)
    assert counts.totals == {("marship_errors_total", "malformed"): 4.0}
    assert counts.add("a print\n") is None


def test_each_cluster_gets_its_own_token(tmp_path: Path) -> None:
    """Of clusters that one process connects to in turn: Ray keeps the first token it has read."""
    for name in "ab":
        (tmp_path / name).write_text(name * 64)
    code = """
import pathlib, ray, sys
from marship.engines.ray import cluster
from marship.errors import ServerError
cluster.gcs.check_listens = lambda address: None
ray.init = lambda *_, **__: print(
    ray._raylet.AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
)
for name in "ab":
    cluster.connect("127.0.0.1:1", pathlib.Path(sys.argv[1], name))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["a" * 64, "b" * 64]


def test_a_worker_sees_no_key_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs a model's code."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/x")
    seen = environment({"A": "1"})
    assert seen["A"] == "1"
    assert not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "PYTHONPATH"} & set(seen)


def test_a_home_has_the_engine_that_serves_it(tmp_path: Path) -> None:
    """TorchServe where none ever did; another one that is named is refused."""
    assert default.of_home(tmp_path) is TorchServe
    record = ServerRecord(0, 0.0, "", *["http://h:1"] * 3, "", "", engine="ray", cluster="h:1")
    Home(tmp_path).write_record(record)
    assert default.of_home(tmp_path).__name__ == "RayServe"
    with pytest.raises(UsageError, match="the home must be one of torchserve"):
        default.of_target(Target(tmp_path, engine="torchserve"))
    with pytest.raises(UsageError, match="an engine must be one of torchserve, ray"):
        default.named("java")


def test_settings_of_one_engine_are_refused_for_the_other() -> None:
    """By their flags."""
    with pytest.raises(UsageError, match="--engine ray must come without --grpc-port"):
        ServeSettings(engine="ray", grpc_port=1).of_ray()
    with pytest.raises(UsageError, match="--address and --archives must come with --engine ray"):
        ServeSettings(address="h:1").check_engine()


def serve(answers: list[bytes], path: Path, seen: list[bytes]) -> Any:
    """A server at a unix socket that sends these answers, one for each request."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answers:
            try:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                break
            writer.write(answers.pop(0))
            if not answers or answers[0] == b"":
                answers[:1] = []
                break
        writer.close()

    return asyncio.start_unix_server(answer, path)


def test_a_response_comes_as_it_was_sent(tmp_path: Path) -> None:
    """Whole or in chunks, on one connection; and again on another where a kept one had closed."""
    plain = b"HTTP/1.1 201 Created\r\nX-Name: v\r\ncontent-length: 2\r\n\r\nok"
    chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    seen: list[bytes] = []

    async def ask() -> list[Answer]:
        path = tmp_path / "s"
        async with await serve([plain, chunks, b"", plain], path, seen):
            pool = LinePool(str(path))
            asked = Asked("GET", b"/a?b", [(b"host", b"h"), (b"connection", b"close")])
            got = [await pool.whole(asked) for _ in range(3)]
            pool.close()
            return got

    first, second, third = asyncio.run(ask())
    assert first == third == Answer(201, [(b"X-Name", b"v"), (b"content-length", b"2")], b"ok")
    assert (second.status, second.headers, second.body) == (200, [], b"ab")
    assert set(seen) == {b"GET /a?b HTTP/1.1\r\nhost: h\r\n\r\n"}


def test_a_response_that_is_cut_is_an_error(tmp_path: Path) -> None:
    """Nobody may take it for a whole one."""
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"

    async def ask() -> Answer:
        path = tmp_path / "s"
        async with await serve([cut], path, []):
            return await LinePool(str(path)).whole(Asked("GET", b"/", [(b"host", b"h")]))

    with pytest.raises(ConnectionError):
        asyncio.run(ask())


def test_what_was_deployed_is_held_as_json() -> None:
    """Keys and signatures, too."""
    source = ArchiveSource(
        file="m.mar", digest="d", url=None, signature=b"signed \xff", keys={"k.pub": b"\x00key"}
    )
    version = HostedVersion(
        name="m", version="1", source=source, batch_size=4, startup_s=60.0, has_gpu=False
    )
    plan = RunPlan(
        batch_size=4, timeout_s=1.0, startup_s=60.0, minimum=1, maximum=2, cpus=0.5, gpus=0.0
    )
    assert noted.from_json(noted.to_json(version, plan)) == (version, plan)


def test_autoscaling_is_left_to_ray() -> None:
    """Two that scale the same replicas would work against each other."""
    with pytest.raises(UsageError, match="Ray scales replicas itself"):
        next(iter(loads.loads(None)))  # type: ignore[arg-type]  # it asks nothing of a cluster
