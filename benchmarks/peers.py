"""The model servers: what each needs, how it is started, and where requests go."""

import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import tls_proxy
import venvs
from cases import MEDIA_TYPES, CaseFiles
from load import Request

from marship.errors import ServerError

SERVERS = Path(__file__).parent / "servers"
LATENCY, THROUGHPUT = "latency", "throughput"
WAIT_MS = 1


@dataclass(frozen=True, slots=True)
class Setup:
    """A peer with the settings of one of its profiles."""

    peer: str
    profile: str
    workers: int = 1

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.peer} {self.profile}".strip()


@dataclass(frozen=True, slots=True)
class Running:
    """A server that was started, and the request to send.

    Attributes:
        pid: Its main process; 0 where there is no server.
        request: What clients send; None where there is no server.
        command: Without a server: the command that measures, for its last argument's seconds.
        env: The command's environment.
        further_pids: Processes that belong to it and are not below its main one.
    """

    pid: int
    request: Request | None
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    further_pids: tuple[int, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes below which all of it runs."""
        return (*self.further_pids, self.pid)


Start = Callable[[Setup, CaseFiles, Path], Running]


@dataclass(frozen=True, slots=True)
class Peer:
    """A model server to measure.

    Attributes:
        start: Starts it, given a setup, the case's files and a private folder.
        packages: What its venv holds besides ONNX Runtime, NumPy and orjson; None if it runs
            in marship's own environment.
        profiles: With the batch size of each; 0 is the case's.
        scales: Whether its number of workers matters.
    """

    start: Start
    packages: tuple[str, ...] | None = None
    profiles: Mapping[str, int] = field(default_factory=lambda: {"": 1})
    scales: bool = True


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(setup: Setup, files: CaseFiles, port: int) -> dict[str, str]:
    """Environment of the files in servers/; libraries get one thread, as the session does."""
    batch = PEERS[setup.peer].profiles[setup.profile] or files.case.batch
    return os.environ | {
        "BENCH_MODEL": str(files.model),
        "BENCH_BODY": str(files.body),
        "BENCH_FORM": files.case.form,
        "BENCH_PORT": str(port),
        "BENCH_SECOND_PORT": str(free_port()),
        "BENCH_WORKERS": str(setup.workers),
        "BENCH_BATCH": str(batch),
        "BENCH_WAIT_MS": str(WAIT_MS),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SERVERS),
    }


def spawn(command: list[str], env: Mapping[str, str], folder: Path) -> int:
    """Start a server in a process group of its own; its output goes to a file."""
    with (folder / "console.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ).pid


def _python(script: str, path: str = "/predict") -> Start:
    def start(setup: Setup, files: CaseFiles, folder: Path) -> Running:
        port = free_port()
        python = venvs.python(setup.peer, PEERS[setup.peer].packages or ())
        env = environment(setup, files, port)
        pid = spawn([str(python), str(SERVERS / script)], env, folder)
        return Running(pid, _request(f"http://127.0.0.1:{port}{path}", files))

    return start


def _request(url: str, files: CaseFiles) -> Request:
    return Request(url, {"Content-Type": MEDIA_TYPES[files.case.form]}, files.body)


def marship(setup: Setup, files: CaseFiles, folder: Path, python: str = sys.executable) -> Running:
    """Pack and serve the model with an environment's marship, by default with this one's."""
    running = serve(files.model, setup, folder, python)
    headers = {**running.request.headers, **_request("", files).headers}
    return replace(running, request=replace(running.request, headers=headers, body=files.body))


def direct(setup: Setup, files: CaseFiles, folder: Path) -> Running:
    """The same server, asked where its workers respond themselves."""
    return directly(marship(setup, files, folder), folder)


def directly(running: Running, folder: Path) -> Running:
    """A server of marship in a folder, asked where its workers respond themselves."""
    assert running.request is not None  # noqa: S101  it is a server
    record = json.loads((folder / "home" / "server.json").read_text())
    url = f"{record['direct_url']}/predictions/model"
    return replace(running, request=replace(running.request, url=url))


def serve(source: Path, setup: Setup, folder: Path, python: str = sys.executable) -> Running:
    """Serve an ONNX file or a run folder with marship; the request has no body yet."""
    home = folder / "home"
    (folder / "store").mkdir()
    workers = setup.workers
    packing = f"--profile {setup.profile or LATENCY} --intra-op-threads 1 --name model"
    packing += f" --min-workers {workers} --max-workers {workers}"
    _cli(python, folder, f"package {source.absolute()} --model-store store {packing}")
    _cli(
        python,
        folder,
        "serve --detach --free-ports --home home --model-store store --models model.mar",
    )
    record = json.loads((home / "server.json").read_text())
    token = json.loads((home / "key_file.json").read_text())["inference"]["key"]
    url = f"{record['inference_url']}/predictions/model"
    acceptors = tuple(filter(None, [record.get("direct_pid")]))
    request = Request(url, {"Authorization": f"Bearer {token}"})
    return Running(record["pid"], request, further_pids=acceptors)


def _cli(python: str, folder: Path, words: str) -> None:
    command = [python, "-m", "marship", *words.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"marship {words} must work, got: {done.stderr}")


def _mlserver(setup: Setup, files: CaseFiles, folder: Path) -> Running:
    """Start MLServer; it reads JSON as KServe v2 only, so it gets the tensors in that format."""
    running = _python("mlserver_runtime.py")(setup, files, folder)
    if files.case.form != "json" or running.request is None:
        return running
    url = running.request.url.replace("/predict", "/v2/models/model/infer")
    return replace(running, request=replace(running.request, url=url, body=files.kserve))


def _bentoml(setup: Setup, files: CaseFiles, folder: Path) -> Running:
    port = free_port()
    python = venvs.python(setup.peer, PEERS[setup.peer].packages or ())
    env = environment(setup, files, port) | {
        "BENTOML_HOME": str(folder / "home"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    command = [str(python), "-m", "bentoml", "serve", "bentoml_service:Infer", "--port", str(port)]
    pid = spawn([*command, "--host", "127.0.0.1", "--working-dir", str(SERVERS)], env, folder)
    return Running(pid, _request(f"http://127.0.0.1:{port}/predict", files))


def _ray(setup: Setup, files: CaseFiles, folder: Path) -> Running:
    """Start Ray Serve; the paths of its sockets must be short, so its folder's name is short."""
    port = free_port()
    python = venvs.python(setup.peer, PEERS[setup.peer].packages or ())
    env = environment(setup, files, port) | {
        "BENCH_TEMP": str(folder.parent / f"r{len(setup.name)}{setup.workers}"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    }
    pid = spawn([str(python), str(SERVERS / "ray_server.py")], env, folder)
    return Running(pid, _request(f"http://127.0.0.1:{port}/predict", files))


def _bare(setup: Setup, files: CaseFiles, folder: Path) -> Running:
    del folder
    python = venvs.python(setup.peer, ())
    command = (str(python), str(SERVERS / "bare.py"))
    return Running(0, None, command, environment(setup, files, 0))


def _ping(setup: Setup, files: CaseFiles, folder: Path) -> Running:
    running = marship(setup, files, folder)
    url = running.request.url.partition("/predictions")[0] + "/ping"
    token = {"Authorization": running.request.headers["Authorization"]}
    return replace(running, request=Request(url, token))


def _torchserve(setup: Setup, files: CaseFiles, folder: Path) -> Running:
    """Start stock TorchServe by its own launcher: default settings but addresses and no tokens."""
    from marship.engines.torchserve import java

    store = folder / "store"
    store.mkdir()
    name = files.model.stem
    manifest = {
        "runtime": "python",
        "model": {"modelName": name, "modelVersion": "1.0", "handler": "torchserve_handler.py"},
        "archiverVersion": "0.12.0",
    }
    with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
        archive.write(SERVERS / "torchserve_handler.py", "torchserve_handler.py")
        archive.write(files.model, "model.onnx")
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    ports = [free_port() for _ in range(5)]
    addresses = ("inference", "management", "metrics")
    lines = [f"{a}_address=http://127.0.0.1:{p}" for a, p in zip(addresses, ports, strict=False)]
    lines += [f"grpc_{a}_port={p}" for a, p in zip(addresses, ports[3:], strict=False)]
    lines += [f"default_workers_per_model={setup.workers}"]
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    (folder / "tmp").mkdir()
    env = os.environ | {
        "JAVA_HOME": str(java.find().path.resolve().parents[1]),
        "TMPDIR": str(folder / "tmp"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        str(Path(sys.executable).parent / "torchserve"),
        "--start",
        "--foreground",
        "--ncs",
        "--disable-token-auth",
        "--ts-config",
        "config.properties",
        "--model-store",
        "store",
        "--models",
        f"{name}.mar",
    ]
    pid = spawn(command, env, folder)
    return Running(pid, _request(f"http://127.0.0.1:{ports[0]}/predictions/{name}", files))


def _behind_nginx(start: Start) -> Start:
    """The same server behind nginx, which ends TLS and keeps its connections to it open."""

    def both(setup: Setup, files: CaseFiles, folder: Path) -> Running:
        running = start(setup, files, folder)
        assert running.request is not None  # noqa: S101  these are servers
        parts = urlsplit(running.request.url)
        port = free_port()
        pid = tls_proxy.start(folder / "nginx", port, parts.netloc)
        url = f"https://127.0.0.1:{port}{parts.path}"
        pids = (*running.further_pids, pid)
        return replace(running, request=replace(running.request, url=url), further_pids=pids)

    return both


BARE = "bare session.run"
MARSHIP, DIRECT = "marship", "marship direct"
BEHIND = ", nginx with TLS"
TORCHSERVE = "TorchServe"
PING = "TorchServe /ping"

_MOSEC = Peer(
    _python("mosec_server.py", "/inference"), ("mosec==0.9.8",), {LATENCY: 1, THROUGHPUT: 64}
)
_DIRECT = Peer(direct, profiles={LATENCY: 1, THROUGHPUT: 0})

PEERS: dict[str, Peer] = {
    DIRECT: _DIRECT,
    MARSHIP: Peer(marship, profiles={LATENCY: 1, THROUGHPUT: 0}),
    TORCHSERVE: Peer(_torchserve),
    "mosec": _MOSEC,
    "FastAPI": Peer(
        _python("fastapi_server.py"),
        ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
    ),
    "LitServe": Peer(
        _python("litserve_server.py"),
        ("litserve==0.2.19", "httptools==0.9.0", "uvloop==0.23.0"),
        {LATENCY: 1, THROUGHPUT: 0},
    ),
    "MLServer": Peer(_mlserver, ("mlserver==1.7.1", "uvloop==0.21.0"), {LATENCY: 1, THROUGHPUT: 0}),
    "BentoML": Peer(_bentoml, ("bentoml==1.4.39", "fastapi==0.165.0"), {LATENCY: 1, THROUGHPUT: 0}),
    "Ray Serve": Peer(_ray, ("ray[serve]==2.60.0",), {LATENCY: 1, THROUGHPUT: 0}),
    PING: Peer(_ping, scales=False),
    BARE: Peer(_bare, ()),
    DIRECT + BEHIND: replace(_DIRECT, start=_behind_nginx(direct)),
    "mosec" + BEHIND: replace(_MOSEC, start=_behind_nginx(_MOSEC.start)),
}
"""By name."""

DEFAULT = tuple(name for name in PEERS if not name.endswith(BEHIND))
"""Those that are measured where none is named."""
