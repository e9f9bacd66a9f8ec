"""Start, supervise and stop TorchServe, one server for each private home folder.

Java is started directly and not by the `torchserve` command: so its process, environment and
temporary folder are known, and several servers can run side by side.
"""

import contextlib
import dataclasses
import http.client
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from marship import storage
from marship.engines import home as homes
from marship.engines import processes
from marship.engines.figures import requests
from marship.engines.home import Home, ServerRecord
from marship.engines.torchserve import config as configs
from marship.engines.torchserve import direct, environment, java, peers, production, properties
from marship.engines.torchserve import store as stores
from marship.engines.torchserve.settings import ServeSettings
from marship.errors import NotRunningError, ServerError, UsageError
from marship.exchange import sockets
from marship.exchange.connections import CheckedConnection
from marship.exchange.limited import LimitedSocket, OverLimitError
from marship.serving.model import keysource

STARTED_LINE = "Model server started."

_POLL_S = 0.05
_RESPONSE_TIMEOUT_S, _LARGEST_RESPONSE_BYTES = 5, 1 << 20
_NO_PORT = "Failed to bind to address"
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
_ERROR_MARKS = ("Invalid configuration", "Exception", "Error", "Could not", "Unrecognized", "fatal")


class _PortTakenError(ServerError):
    """Another program took a port after it was chosen and before Java listened on it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that this process started."""

    home: Home
    record: ServerRecord
    process: subprocess.Popen[bytes]

    def run_until_signal(
        self, *, grace_s: float = 10.0, on_ready: Callable[[], None] | None = None
    ) -> None:
        """Wait for Ctrl-C or SIGTERM, then stop the server; a second signal kills it at once.

        Args:
            grace_s: Processes still running after these seconds are killed.
            on_ready: Called once, when the signal handlers are installed.

        Raises:
            ServerError: The server exited by itself.
        """
        signalled_at: list[float] = []
        group = self.record.group

        def on_signal(_number: int, _frame: object) -> None:
            signalled_at.append(time.monotonic())
            (group.kill if len(signalled_at) > 1 else group.terminate)()

        previous = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            if on_ready:
                on_ready()
            while self.process.poll() is None:
                time.sleep(_POLL_S)
                if signalled_at and time.monotonic() - signalled_at[0] > grace_s:
                    group.kill()
            cause = _startup_error(self.home)
            _end(self.home, self.record, grace_s=0 if signalled_at else grace_s)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if not signalled_at and self.process.returncode not in _STOPPED:  # else by `stop` elsewhere
            raise ServerError(f"TorchServe ended by itself: {cause}. Its logs: {self.home.logs}")

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Stop the server; see `stop`."""
        stop(self.home.path, grace_s=grace_s)


def remembering(settings: ServeSettings) -> ServeSettings:
    """The settings, with the trust folder of the home's last start unless they set one.

    Raises:
        UsageError: Both a trust folder and no_trust are set.
        ServerError: The home's record of the trust folder is corrupted.
    """
    if settings.trust and settings.no_trust:
        raise UsageError("--trust must come without --no-trust, got both. Leave one of them out.")
    if settings.trust or settings.no_trust:
        return settings
    home = Home((settings.home or homes.default_home()).absolute())
    return dataclasses.replace(settings, trust=home.trust())


def start(settings: ServeSettings, *, on_wait: Callable[[float], None] | None = None) -> Server:
    """Start a server in the background, and return when it responds.

    Args:
        settings: What to start, and where. The home remembers `trust` for the next start.
        on_wait: Called repeatedly with the seconds waited so far.

    Raises:
        UsageError: A setting is invalid.
        PackageError: An archive to load at startup is not signed by a trusted key.
        ServerError: A server runs in this home, a port is in use, there is no Java, or
            TorchServe failed to start and was cleaned up.
    """
    home = Home((settings.home or homes.default_home()).absolute())
    production.check_profile(settings.profile, settings.keep_env)
    home.require_stopped()  # otherwise the error would be about its ports
    settings = remembering(settings)
    try:
        return _start(home, settings, on_wait)
    except _PortTakenError:
        if 0 not in settings.ports().values():
            raise
        return _start(home, settings, on_wait)  # with other free ports


def _start(home: Home, settings: ServeSettings, on_wait: Callable[[float], None] | None) -> Server:
    keys = stores.pinned(settings.trust)
    source = configs.locate(settings.config)
    values = configs.resolve(
        source,
        home=home.path,
        model_store=settings.model_store,
        ports=settings.ports(),
        models=settings.models,
        vault=home.verified if keys else None,
        direct=settings.direct,
    )
    home.create()
    with home.locked():
        home.require_stopped()  # one may have started meanwhile
        if settings.profile:
            seal_key = keysource.chosen(settings.seal_key)
            production.check(home, source, values, seal_key, is_signed=keys is not None)
        _clean(home)
        with stores.admitted(home, values, keys) as readable:
            home.write_trust(settings.trust)
            return _launch(home, values, readable, settings, on_wait)


def stop(home_path: str | Path | None = None, *, grace_s: float = 10.0) -> ServerRecord:
    """Stop a home's server and its workers, and remove its sockets and temporary files.

    Args:
        home_path: The server's home folder; None is the default one.
        grace_s: Processes still running after these seconds are killed.

    Returns:
        The server that was stopped.

    Raises:
        NotRunningError: No server ran; leftovers of a killed one are removed.
    """
    home = Home(Path(home_path or homes.default_home()).absolute())
    record = home.running()
    if record is None:
        if home.record() is not None:
            _clean(home)
        raise NotRunningError(f"a server must run in {home.path} to be stopped, got none.")
    _end(home, record, grace_s)
    return record


def status(home_path: str | Path | None = None) -> ServerRecord:
    """The server that runs from a home.

    Raises:
        NotRunningError: No server runs.
    """
    return Home(Path(home_path or homes.default_home()).absolute()).require_running()


def log_files(home_path: str | Path | None = None) -> list[Path]:
    """The logs of a home's server, whether it runs or not.

    Raises:
        UsageError: No server ever ran there.
    """
    home = Home(Path(home_path or homes.default_home()).absolute())
    home.check_readable()
    files = home.log_files()
    if not files:
        raise UsageError(f"{home.path} must be a home with logs, got none. Give it with --home.")
    return files


def _launch(
    home: Home,
    values: Mapping[str, str],
    readable: Mapping[str, str],
    settings: ServeSettings,
    on_wait: Callable[[float], None] | None,
) -> Server:
    seal_key = keysource.tried(settings.seal_key)
    written = requests.variables(home.logs, settings)
    runtime = java.find()
    temporary = home.make_tmp()
    try:
        seen = _environment(settings, readable, temporary, seal_key)
        seen["MARSHIP_CLIENT_KEYS"] = str(home.client_keys)
        if configs.DIRECT_ADDRESS in values:
            seen |= direct.worker_environment(temporary, home, values, written)
        process = _run_java(runtime, home, readable, temporary, seen)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    record = ServerRecord(
        pid=process.pid,
        created=processes.start_time(process.pid),
        boot=processes.boot_id(),
        inference_url=configs.address_url(values, "inference_address"),
        management_url=configs.address_url(values, "management_address"),
        metrics_url=configs.address_url(values, "metrics_address"),
        model_store=values["model_store"],
        tmp=str(temporary),
        seal_key=seal_key,
        trust=str(settings.trust.absolute()) if settings.trust else None,
    )
    server = Server(home, record, process)
    try:
        with _sigterm_raises():
            home.write_record(record)
            _wait_until_up(server, settings.start_timeout_s, on_wait)
            if configs.DIRECT_ADDRESS in values:
                record = _start_direct(home, record, values, written)
                server = dataclasses.replace(server, record=record)
            if settings.profile:
                production.check_tokens(home.key_file)
    except BaseException:
        _end(home, record, grace_s=0)
        raise
    return server


def _start_direct(
    home: Home, record: ServerRecord, values: Mapping[str, str], written: Mapping[str, str]
) -> ServerRecord:
    """Start the acceptor, and note it in the server's record."""
    address, page = values[configs.DIRECT_ADDRESS], values[configs.PROMETHEUS_ADDRESS]
    group = direct.start(home, Path(record.tmp), address, values, written)
    record = record.with_direct(address, group, values.get(configs.GRPC_ADDRESS), page)
    try:
        home.write_record(record)
    except BaseException:
        group.kill()
        raise
    return record


def _run_java(
    runtime: java.Java,
    home: Home,
    values: Mapping[str, str],
    temporary: Path,
    seen: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    with storage.explained(home.config):
        home.logs.mkdir(exist_ok=True)
        (home.path / "workflows").mkdir(exist_ok=True)
        properties.write(home.config, values)
        home.config.chmod(0o600)
    with home.console_log.open("wb") as console:
        return subprocess.Popen(
            java.command(runtime, home, values, temporary),
            cwd=home.path,
            env=seen,
            umask=0o077,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # we pass Ctrl-C on, and the process group is the server's
        )


def _environment(
    settings: ServeSettings, values: Mapping[str, str], temporary: Path, seal_key: str | None
) -> dict[str, str]:
    variables = {
        # a handler cannot ask Java
        "MARSHIP_MAX_REQUEST_SIZE": values.get("max_request_size"),
        "MARSHIP_MAX_RESPONSE_SIZE": values.get("max_response_size"),
        keysource.SOURCE_VARIABLE: seal_key,
    }
    named = list(settings.keep_env)
    if seal_key and seal_key.startswith("env:"):
        named.append(seal_key.removeprefix("env:"))
    return environment.build(temporary, variables, named if settings.profile else None)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise as Ctrl-C does; only the main thread can install a signal handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _wait_until_up(
    server: Server, timeout_s: float, on_wait: Callable[[float], None] | None
) -> None:
    began = time.monotonic()
    while not (_has_logged_start(server.home) and _responds(server.record)):
        waited = time.monotonic() - began
        if server.process.poll() is not None:
            cause = _startup_error(server.home)
            kind = _PortTakenError if _NO_PORT in cause else ServerError
            raise kind(f"TorchServe must start, got: {cause}. Its logs: {server.home.logs}")
        if waited > timeout_s:
            raise ServerError(
                f"TorchServe must respond within {timeout_s:g} s, got no response. "
                f"Its logs: {server.home.logs}"
            )
        if on_wait:
            on_wait(waited)
        time.sleep(_POLL_S)


def _has_logged_start(home: Home) -> bool:
    return STARTED_LINE in home.console_log.read_text(errors="replace")


def _responds(record: ServerRecord) -> bool:
    """Whether Java responds at the management API, if only with an error for the missing token."""

    def check(_base: str, line: LimitedSocket) -> None:
        if not peers.is_held_by(line, record.group):
            raise ConnectionRefusedError("another program listens there")

    one = CheckedConnection(sockets.base_of(record.management_url), check)
    one.limits.restart(_RESPONSE_TIMEOUT_S, _LARGEST_RESPONSE_BYTES)
    try:
        one.request("GET", "/models")
        one.getresponse()
    except (OSError, http.client.HTTPException, OverLimitError):
        return False
    finally:
        one.close()
    return True


def _startup_error(home: Home) -> str:
    """The line of Java's output that best explains why it exited."""
    lines = [line.strip() for line in home.console_log.read_text(errors="replace").splitlines()]
    causes = [line for line in lines if any(word in line for word in _ERROR_MARKS)]
    return (causes or lines or ["no message"])[0]


def _end(home: Home, record: ServerRecord, grace_s: float) -> None:
    if acceptor := record.acceptor:
        acceptor.terminate()
    record.group.end(grace_s)
    _clean(home)


def _clean(home: Home) -> None:
    """Remove the leftovers of a stopped server; logs and settings stay."""
    record = home.record()
    if record is not None:
        record.group.kill()  # orphaned workers of a killed server
        if acceptor := record.acceptor:
            acceptor.kill()
        shutil.rmtree(record.tmp, ignore_errors=True)
        for url in (record.inference_url, record.management_url, record.metrics_url):
            sockets.remove(url)
    for folder in home.passing:
        shutil.rmtree(folder, ignore_errors=True)
    home.key_file.unlink(missing_ok=True)
    home.record_file.unlink(missing_ok=True)
