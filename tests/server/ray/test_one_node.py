"""Models on one node of Ray, by the words that TorchServe's clients use."""

import asyncio
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import orjson
import psutil
import pytest
import ray
from ray.serve._private.router import SingletonThreadRouter

import conformance
from conformance import CASES, Case, Host
from hosted import TOKEN, Hosted
from marship import Client
from marship.client.address import Address
from marship.engines.addresses import Target
from marship.engines.engine import Registration
from marship.engines.ray import archives, keeper, node, placing, plan, registration
from marship.engines.ray import cluster as nodes
from marship.engines.ray.access import ClusterAccess
from marship.engines.ray.head import Cluster, start
from marship.engines.ray.settings import RaySettings
from marship.engines.trials import TrialFigures, TrialState
from marship.errors import (
    LoadError,
    NotFoundError,
    NotRunningError,
    PackageError,
    RolloutError,
    ServerError,
    SignatureError,
    StorageError,
    UsageError,
)
from marship.operate.rollout import rollout
from marship.operate.trial.run import TrialListener, canary, running
from marship.operate.trial.settings import CanarySettings
from marship.predict import Run, Watcher, predict_files, sources
from marship.predict.ray import predict_archive
from marship.predict.ray.job import Job
from marship.trust.signature import sign
from ray_hosts import host_of
from served import bearer, serving
from signed import make_key, trusting
from versions import ANSWERS, ROW, add, linear

COUNT = Path(__file__).parents[1] / "onnx_handlers" / "count_handler.py"
ENGINES_OWN = {"an unknown model", "an unknown version", "an unknown model by v2"}
"""Beside TorchServe the direct address passes these on to it: the text is TorchServe's."""


@pytest.fixture
def registered(client: Client) -> Client:
    """A client, with one replica of `lin` 1 on the cluster and nothing else."""
    found = {(one.name, status.version) for one in client.models() for status in one.versions}
    if found == {("lin", "1")} and client.describe("lin")[0].ready == 1:
        return client
    clear(client)
    client.register("lin-1.mar")
    return client


def clear(client: Client) -> None:
    """Unregister all models, the default versions last."""
    for model in client.models():
        versions = [status.version for status in model.versions]
        for version in sorted(versions, key=lambda one: one == model.default_version):
            client.unregister(model.name, version)


def test_nothing_listens_beyond_loopback(cluster: Cluster, registered: Client) -> None:
    """Ray's replicas unpickle what reaches them, and HAProxy's figures ask for no token."""
    mine = {p.pid for p in psutil.process_iter() if _session(p.pid) == cluster.record.pid}
    open_to = {
        (line.laddr.ip, line.laddr.port)
        for line in psutil.net_connections("tcp")
        if line.pid in mine and line.status == psutil.CONN_LISTEN
    }
    assert len(open_to) > 5
    assert {ip.removeprefix("::ffff:") for ip, _ in open_to} == {"127.0.0.1"}
    assert registered.ping() == "Healthy"


def test_no_port_predicts_without_a_token(cluster: Cluster, registered: Client) -> None:
    """Neither the proxy nor those of fronts and replicas behind it, on any path."""
    mine = {p.pid for p in psutil.process_iter() if _session(p.pid) == cluster.record.pid}
    ports = {
        line.laddr.port
        for line in psutil.net_connections("tcp")
        if line.pid in mine and line.status == psutil.CONN_LISTEN
    }
    body = b'{"input": [[1, 2, 3]]}'
    answers = []
    for port in ports:
        for path in ("/predictions/lin", "/", "/ask"):
            connection = HTTPConnection("127.0.0.1", port, timeout=2)
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                answers.append((port, connection.getresponse().read()))
            except (OSError, HTTPException):
                continue
            finally:
                connection.close()
    assert any(b"token" in answer for _, answer in answers)
    assert not [answer for answer in answers if b"16.0" in answer[1]]
    assert registered.predict("lin", {"input": ROW}) == {"output": ANSWERS["1"]}


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def test_a_version_changes_without_a_lost_request(registered: Client, cluster: Cluster) -> None:
    """Requests get the old answer, then the new one, and nothing else; the old one is gone then."""
    host, done, seen = host_of(cluster), threading.Event(), list[tuple[int, bytes]]()
    case = Case("a row", body=b'{"input": [[1, 2, 3]]}')

    def ask() -> None:
        while not done.is_set():
            got = conformance.ask(host, case)
            seen.append((got.status, got.body))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        changed = rollout(registered, "lin-2.mar")
    finally:
        done.set()
        for asker in askers:
            asker.join()
    assert (changed.old.version, changed.new.version) == ("1", "2")
    assert {status for status, _ in seen} == {200}
    assert {body for _, body in seen} == {b'{"output":[[16.0,22.0]]}', b'{"output":[[32.0,44.0]]}'}
    assert [status.version for status in registered.describe("lin", "all")] == ["2"]


def test_a_replica_that_cannot_load_is_rolled_back_with_its_own_error(registered: Client) -> None:
    """Nothing of it stays, and the version before goes on."""
    with pytest.raises(RolloutError, match=r"golden case 0 must agree.*1 is the default as before"):
        rollout(registered, "broken.mar")
    assert [status.version for status in registered.describe("lin", "all")] == ["1"]
    assert registered.predict("lin", {"input": ROW}) == {"output": ANSWERS["1"]}


def test_a_worker_that_dies_is_replaced(registered: Client, cluster: Cluster) -> None:
    """Clients that retry get their answer."""
    killed = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "worker_process.py" in " ".join(process.info["cmdline"] or [])
        and _is_below(process, cluster.record.pid)
    ]
    assert killed
    for process in killed:
        process.kill()
    assert registered.predict("lin", {"input": ROW}) == {"output": ANSWERS["1"]}


def test_a_version_without_replicas_says_so_at_once(registered: Client, cluster: Cluster) -> None:
    """As hosts say it whose workers have died; Serve itself would wait for a replica."""
    host, access = host_of(cluster), ClusterAccess(Target(cluster.home.path))
    access.connect()
    (entry,) = (entry for _, _, entry in nodes.table().entries())
    assert conformance.ask(host, _A_ROW).status == 200
    nodes.delete(entry.app)
    deadline = time.monotonic() + 30  # until every front has been told
    while (got := conformance.ask(host, _A_ROW)).status == 200:
        assert time.monotonic() < deadline
    began = time.monotonic()
    answers = [conformance.ask(host, _A_ROW) for _ in range(8)]  # of both fronts
    assert time.monotonic() - began < 8 * placing._TOLD_S
    assert {answer.status for answer in [got, *answers]} == {503}
    assert {orjson.loads(answer.body)["code"] for answer in answers} == {"no_worker"}
    assert answers[0].headers["retry-after"] == "1"
    registered.unregister("lin")


_A_ROW = Case("a row", body=b'{"input": [[1, 2, 3]]}')


def _is_below(process: psutil.Process, pid: int) -> bool:
    return pid in {parent.pid for parent in process.parents()}


def test_replicas_are_scaled_and_counted(registered: Client) -> None:
    """Up and down, and no further than there is room; each counts what it answered."""
    assert registered.scale("lin", 2).ready == 2
    for _ in range(4):
        registered.predict("lin", {"input": ROW})
    with pytest.raises(LoadError, match=r"lin 1 must have \S+ CPU for \d+ more replicas, got \S+"):
        registered.scale("lin", 900)
    assert registered.scale("lin", 1).ready == 1
    registered.predict("lin", {"input": ROW})
    end = time.monotonic() + 20
    while "marship_requests_total" not in (text := registered.metrics()):
        assert time.monotonic() < end, text
    assert 'model_name="lin",model_version="1",node="127.0.0.1"' in text


def test_a_rollout_keeps_the_bounds(client: Client, lin: Path) -> None:
    """A version that Ray scales is followed by one that Ray scales."""
    clear(client)
    config = "minWorkers: 1\nmaxWorkers: 3\n"
    for version in ("1", "2"):
        source, file = lin / f"lin-{version}.mar", f"bounds-{version}.mar"
        write_with(source, lin / file, config, without=("minWorkers", "maxWorkers"))
    client.register("bounds-1.mar")
    new = rollout(client, "bounds-2.mar").new
    assert (new.min_workers, new.max_workers) == (1, 3)


def test_replicas_follow_the_load(
    client: Client, cluster: Cluster, lin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10 s of a step to 12 clients another replica starts; after it they end."""
    monkeypatch.setattr(plan, "DOWNSCALE_S", 2.0)  # of the minute that a replica is kept
    clear(client)
    config = "minWorkers: 1\nmaxWorkers: 3\n"
    write_with(lin / "lin-1.mar", lin / "grow.mar", config, without=("minWorkers", "maxWorkers"))
    client.register("grow.mar")
    host, done = host_of(cluster), threading.Event()
    case = Case("a row", body=b'{"input": [[1, 2, 3]]}')

    def ask() -> None:
        while not done.is_set():
            conformance.ask(host, case)

    askers = [threading.Thread(target=ask) for _ in range(12)]
    began = time.monotonic()
    for asker in askers:
        asker.start()
    try:
        while len(client.describe("lin")[0].workers) < 2:
            assert time.monotonic() - began < 10
        client_sees = client.describe("lin")[0]
        while client_sees.ready < 2:
            assert time.monotonic() - began < 60
            client_sees = client.describe("lin")[0]
    finally:
        done.set()
        for asker in askers:
            asker.join()
    assert (client_sees.min_workers, client_sees.max_workers) == (1, 3)
    ended = time.monotonic()
    while len(client.describe("lin")[0].workers) > 1:
        assert time.monotonic() - ended < 60
    client.metrics()
    tasks = asyncio.all_tasks(SingletonThreadRouter._asyncio_loop)
    asking = [str(task) for task in tasks if "metrics" in str(task)]
    assert not asking  # a command that has left would show a traceback of theirs
    assert client.predict("lin", {"input": ROW}) == {"output": ANSWERS["1"]}


def test_streams_come_in_parts_as_from_the_direct_host(
    client: Client, cluster: Cluster, lin: Path, tmp_path: Path
) -> None:
    """Lines, and the same as server-sent events; a client of marship reads them one by one."""
    add(lin, linear(tmp_path / "s.onnx", 1), "5", file="count", handler=COUNT)
    clear(client)
    client.register("count.mar")
    lines = Case("lines", body=b'{"input": [[1, 2, 3]]}')
    events = replace(lines, name="events", headers={"Accept": "text/event-stream"})
    with serving(tmp_path / "home", lin) as server:
        with Client(server.home.path) as direct_client:
            direct_client.register("count.mar")
        assert server.record.direct_url is not None
        direct = Host(server.record.direct_url, bearer(server).removeprefix("Bearer "))
        for case in (lines, events):
            on_ray, directly = (conformance.ask(host, case) for host in (host_of(cluster), direct))
            compared = conformance.comparable(case, on_ray), conformance.comparable(case, directly)
            assert compared[0] == compared[1]
            assert on_ray.status == 200
            assert on_ray.body.count(b"number") == 3
    assert list(client.stream("lin", {"input": ROW})) == [
        *({"number": n} for n in range(3)),
        {"all": 3},
    ]


def test_what_is_wrong_is_told_in_one_line(registered: Client) -> None:
    """By the classes that TorchServe's clients know."""
    with pytest.raises(ServerError, match="lin 1 must be registered once"):
        registered.register("lin-1.mar")
    with pytest.raises(NotFoundError, match=r"nothing\.mar must lie in the model store"):
        registered.register("nothing.mar")
    with pytest.raises(NotFoundError, match="other must be registered"):
        registered.describe("other")
    with pytest.raises(UsageError, match="workers must be from 1 to"):
        registered.scale("lin", 0)


def test_a_gpu_where_there_is_none(client: Client, lin: Path) -> None:
    """The registration is refused, and nothing waits for it."""
    clear(client)
    write_with(lin / "lin-1.mar", lin / "gpu.mar", "deviceType: gpu\n")
    with pytest.raises(LoadError, match=r"lin 1 must have 1 GPU for a replica, got 0 on the large"):
        client.register("gpu.mar")
    assert client.models() == []


def test_archives_must_be_signed_on_every_node(
    cluster: Cluster, client: Client, lin: Path, tmp_path: Path
) -> None:
    """By a home with trusted keys: an unsigned archive is refused, a signed one is served."""
    clear(client)
    key = make_key(tmp_path)
    trust = trusting(tmp_path / "trust", key).folder
    home = tmp_path / "home"
    joined = start(
        RaySettings(home=home, model_store=lin, trust=trust, address=cluster.record.cluster)
    )
    assert host_of(joined) == host_of(cluster)
    with Client(home) as trusting_one:
        with pytest.raises(SignatureError, match="lin-2"):
            trusting_one.register("lin-2.mar")
        sign(lin / "lin-2.mar", key)
        trusting_one.register("lin-2.mar")
        assert trusting_one.predict("lin", {"input": ROW}) == {"output": ANSWERS["2"]}
        trusting_one.unregister("lin")


def test_two_homes_change_one_cluster_at_once(
    registered: Client, cluster: Cluster, lin: Path, tmp_path: Path
) -> None:
    """Each version that either registers is there then; a lock ends with its holder's process."""
    joined = start(
        RaySettings(home=tmp_path / "home", model_store=lin, address=cluster.record.cluster)
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(joined.home.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        ExitStack() as held,
        pytest.raises(ServerError, match=rf"held by process {holder.pid} on 127\.0\.0\.1, which x"),
    ):
        list(keeper.take("table", held, timeout_s=0.1, action="x"))
    changes = [
        threading.Thread(target=Client(home).register, args=("lin-2.mar",), kwargs={"name": name})
        for home, name in ((cluster.home.path, "a"), (joined.home.path, "b"))
    ]
    for change in changes:
        change.start()
    holder.kill()
    holder.wait()
    for change in changes:
        change.join()
    assert [model.name for model in registered.models()] == ["a", "b", "lin"]


_HOLDS = """
import contextlib, sys
from marship import Client
from marship.engines.ray import keeper
engine = Client(sys.argv[1]).engine
engine.connect()
with contextlib.ExitStack() as held:
    list(keeper.take("table", held, timeout_s=1, action="holds"))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_node_of_the_keeper_may_be_lost(
    registered: Client, cluster: Cluster, lin: Path, tmp_path: Path
) -> None:
    """Here its actor alone: commands say what to do, and another home takes up what there was."""
    ray.kill(keeper.running())
    deadline = time.monotonic() + 20
    while keeper.find() is not None:
        assert time.monotonic() < deadline
    with pytest.raises(NotRunningError, match="must run marship's keeper"):
        registered.register("lin-2.mar")
    joined = start(
        RaySettings(home=tmp_path / "home", model_store=lin, address=cluster.record.cluster)
    )
    assert host_of(joined) == host_of(cluster)
    assert registered.predict("lin", {"input": ROW}) == {"output": ANSWERS["1"]}
    assert registered.scale("lin", 2).ready == 2
    assert registered.scale("lin", 1).ready == 1


def test_what_a_killed_client_left_is_removed(registered: Client, cluster: Cluster) -> None:
    """Replicas that no list knows of; not those that somebody registers just now."""
    access = ClusterAccess(Target(cluster.home.path))
    wanted = Registration("lin-2.mar", name="left", workers=1)
    with ExitStack() as held:
        admitted = registration.admit(access, wanted, held)
    for app in ("marship-left-2-00", "marship-coming-2-00"):
        registration.deploy(app, admitted, access.record)
    with ExitStack() as held:
        assert keeper.claim("marship-coming-2-00", held) is None
        registration.remove_abandoned()
        assert "marship-left-2-00" not in nodes.details()
        assert "marship-coming-2-00" in nodes.details()
    registered.register("lin-2.mar", name="other")
    assert {app.rpartition("-")[0] for app in nodes.details()} == {
        "", "marship-lin-1", "marship-other-2",
    }  # fmt: skip
    registered.unregister("other")


def test_archives_lie_where_nodes_can_read_them(client: Client, tmp_path: Path) -> None:
    """What a node gets must be what was registered, and an error names the node."""
    clear(client)
    mar = tmp_path / "a.mar"
    mar.write_bytes(b"other bytes")
    lost = archives.ArchiveSource(file="a.mar", digest="0" * 64, url=str(tmp_path / "nowhere"))
    with pytest.raises(
        StorageError, match=r"node 127\.0\.0\.1 must read a\.mar from .*nowhere/000"
    ):
        nodes.probe(lost)
    shared = archives.ArchiveSource(file="a.mar", digest="0" * 64, url=str(tmp_path / "shared"))
    archives.upload(mar, shared)
    with pytest.raises(PackageError, match=r"must get a\.mar as it was registered"):
        nodes.probe(shared)
    assert node.root().stat().st_mode & 0o077 == 0


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    """One line, at once."""
    settings = RaySettings(home=tmp_path / "home", address="127.0.0.1:9")
    with pytest.raises(NotRunningError, match=r"a Ray cluster must listen at 127\.0\.0\.1:9"):
        start(settings)
    with pytest.raises(UsageError, match="address must be HOST:PORT"):
        start(RaySettings(home=tmp_path / "home", address="here"))


@pytest.mark.usefixtures("registered")
def test_commands_take_the_homes_engine(cluster: Cluster) -> None:
    """`--engine ray` says which one is meant, and is refused where the home is another's."""
    command = [sys.executable, "-m", "marship", "describe", "lin", "--engine"]
    seen = {**os.environ, "MARSHIP_HOME": str(cluster.home.path)}
    for engine, code in (("ray", 0), ("torchserve", 2)):
        done = subprocess.run(
            [*command, engine], env=seen, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode == 0) == (code == 0), done.stderr
    assert "the home must be one of torchserve" in done.stderr


def write_with(archive: Path, target: Path, lines: str, *, without: tuple[str, ...] = ()) -> None:
    """A copy of an archive with further lines in its settings, and without some."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "model-config.yaml":
                kept = [
                    line
                    for line in data.decode().splitlines()
                    if not line.startswith(without or ("#",))
                ]
                data = ("\n".join(kept) + "\n" + lines).encode()
            new.writestr(name, data)


@pytest.fixture(scope="module")
def ray_host(cluster: Cluster, client: Client) -> Host:
    """Ray, with `lin` 1."""
    clear(client)
    client.register("lin-1.mar")
    return host_of(cluster)


@pytest.fixture(scope="module")
def torchserve(lin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """TorchServe's direct address and its own, with the same archive."""
    with serving(tmp_path_factory.mktemp("home"), lin) as server:
        with Client(server.home.path) as client:
            client.register("lin-1.mar")
        token = bearer(server).removeprefix("Bearer ")
        assert server.record.direct_url is not None
        yield Host(server.record.direct_url, token), Host(server.record.inference_url, token)


def test_rows_of_files_are_torchserves(
    cluster: Cluster, torchserve: tuple[Host, Host], lin: Path, tmp_path: Path
) -> None:
    """An archive on the cluster writes what `predict` by TorchServe does, byte for byte."""
    (tmp_path / "in").mkdir()
    for number, body in enumerate(('{"input": [[1, 2, 3]]}', "[[0.1, 2, 3]]", "[[1, 2", "[]")):
        (tmp_path / "in" / f"{number}.json").write_text(body)
    found = sources.find([str(tmp_path / "in")]).sources
    by_server, by_archive = tmp_path / "server.jsonl", tmp_path / "archive.jsonl"
    host = torchserve[1]
    address = Address(inference_url=host.url, inference_token=host.token)
    predict_files(Run("lin", found, by_server, "1"), address)
    job = Job(archive=lin / "lin-1.mar", home=cluster.home.path)
    predict_archive(Run("lin", found, by_archive), job, Watcher())
    assert by_archive.read_bytes() == by_server.read_bytes()
    assert [orjson.loads(line)["status"] for line in by_server.open()] == [200, 200, 400, 400]


@pytest.fixture(scope="module")
def container(lin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """`marship host`, which is what runs in a container, with the same archive."""
    folder = tmp_path_factory.mktemp("container")
    (folder / "token").write_text(f"{TOKEN}\n")
    with Hosted(folder / "home", lin / "lin-1.mar", "--require-token", folder / "token") as hosted:
        hosted.ready()
        yield Host(hosted.url.geturl(), TOKEN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_host_answers_alike(
    ray_host: Host, container: Host, torchserve: tuple[Host, Host], case: Case
) -> None:
    """Status, headers and bytes; TorchServe's own address has ids and headers of its own."""
    direct, own = torchserve
    answers = [conformance.ask(host, case) for host in (ray_host, container, direct)]
    assert {answer.status for answer in answers} == {case.status}, answers
    on_ray, hosted, directly = (conformance.comparable(case, answer) for answer in answers)
    assert on_ray == hosted
    if case.name in ENGINES_OWN:
        return
    assert on_ray == directly
    if case.is_model:
        through, answer = conformance.ask(own, case), answers[-1]
        assert (through.status, through.body) == (answer.status, answer.body)
        assert through.headers["content-type"] == answer.headers["content-type"]


def test_a_client_that_has_left_starts_no_cluster(client: Client) -> None:
    """Ray would, at the next call of a thread that knows nothing of the end."""
    from ray._private import auto_init_hook

    assert client.models()
    assert not auto_init_hook.enable_auto_connect


def test_a_canary_takes_over_on_all_fronts(client: Client, cluster: Cluster, lin: Path) -> None:
    """Each request gets a response of one of both versions; the trial is told while it runs."""
    assert lin.is_dir()
    clear(client)
    for version in ("1", "2"):
        client.register(f"lin-{version}.mar")
    host, done, seen = host_of(cluster), threading.Event(), list[tuple[int, bytes]]()
    case = Case("a row", body=b'{"input": [[1, 2, 3]]}')
    states: list[TrialState] = []

    def ask() -> None:
        while not done.is_set():
            got = conformance.ask(host, case)
            seen.append((got.status, got.body))

    class Looks(TrialListener):
        def on_figures(self, share: float, figures: TrialFigures, left_s: float) -> None:  # noqa: ARG002
            states[:] = running(client)

    limits = CanarySettings(steps="0.5,1", minutes=0.1, min_requests=20, max_latency_ratio=50)
    asker = threading.Thread(target=ask)
    asker.start()
    try:
        tried = canary(client, "lin", "2", limits, Looks())
    finally:
        done.set()
        asker.join()
    assert tried.is_promoted, tried
    assert {status for status, _ in seen} == {200}
    assert {body for _, body in seen} == {b'{"output":[[16.0,22.0]]}', b'{"output":[[32.0,44.0]]}'}
    assert [state.order.share for state in states] == [1.0]
    step = tried.steps[0].figures
    assert 0.2 < step.taken / step.asked < 0.8
    assert step.compared == step.differing > 20
    assert client.predict("lin", {"input": ROW}) == {"output": ANSWERS["2"]}
    assert running(client) == []
