"""An archive serves under plain `torchserve`, where marship is not installed or is another one."""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from marship.engines.torchserve import java
from marship.packaging.step import PackageSettings, package
from waiting import until

OTHER_MARSHIP = "raise ImportError('the marship beside TorchServe, not the archive\\'s')\n"


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A Python with everything that is installed here, but marship.

    A folder named in a .pth file is searched, but the .pth files in it, by which an editable
    install is found, are not read.
    """
    venv.create(tmp_path / "venv", symlinks=True)
    site = tmp_path / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (site / "site-packages" / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path / "venv" / "bin" / "python"


@contextmanager
def plain_torchserve(python: Path, store: Path, archive: str, folder: Path) -> Iterator[str]:
    """TorchServe's own command with stock settings but for ports and tokens; yields its address."""
    ports = [free_port() for _ in range(5)]
    names = ("inference", "management", "metrics")
    addresses = [f"{n}_address=http://127.0.0.1:{p}" for n, p in zip(names, ports, strict=False)]
    grpc = [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
    config = folder / "config.properties"
    config.write_text("\n".join([*addresses, *grpc, "disable_token_authorization=true\n"]))
    (folder / "tmp").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "JAVA_HOME": str(java.find().path.parents[1]),
        "TMPDIR": str(folder / "tmp"),  # Python's
        "TEMP": str(folder / "tmp"),  # Java's, as the torchserve command passes it on
        "LOG_LOCATION": str(folder),
        "METRICS_LOCATION": str(folder),
    }
    command = [python, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
    command += ["--model-store", store, "--ts-config", config, "--models", archive]
    with subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        stdout=(folder / "out.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            yield f"http://127.0.0.1:{ports[0]}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def ask(url: str, model: str, request: object, timeout_s: float = 60) -> object:
    """The first response of the model once it is loaded."""

    def response() -> requests.Response | None:
        with suppress(requests.RequestException):
            got = requests.post(f"{url}/predictions/{model}", json=request, timeout=5)
            return got if got.ok else None
        return None

    return until(response, timeout_s, "a response", 0.1).json()


@pytest.mark.parametrize("beside", ["no marship", "another marship"])
def test_an_archive_carries_all_it_needs(
    linear_onnx: Path, tmp_path: Path, stranger: Path, beside: str
) -> None:
    """With stock settings and without marship, or with a broken one, the model serves."""
    if beside == "another marship":
        other = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages" / "marship"
        other.mkdir()
        (other / "__init__.py").write_text(OTHER_MARSHIP)
    found = subprocess.run(
        [stranger, "-c", "import marship"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1, "marship must not be importable there"
    archive = package(linear_onnx, PackageSettings(model_store=tmp_path / "store"))
    folder = tmp_path / "server"
    folder.mkdir()
    with plain_torchserve(stranger, tmp_path / "store", archive.name, folder) as url:
        answer = ask(url, "linear", {"input": [[1, 2, 3]]})
    assert json.dumps(answer) == '{"output": [[16.0, 22.0]]}'
