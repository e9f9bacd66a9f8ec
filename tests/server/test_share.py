"""One client against the others: shares of the cores, and forms that are too large."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from marship import Client
from marship.engines.torchserve.server import Server
from marship.packaging.step import PackageSettings, package
from marship.serving.message import MAX_FORM_FIELDS
from marship.serving.model.session import usable_cores
from posting import endpoint

HANDLER = Path(__file__).parent / "onnx_handlers" / "share_handler.py"
LONGEST_S = 60.0


@pytest.fixture(scope="module")
def shared(linear_onnx: Path, store: Path, client: Client) -> Iterator[str]:
    """A model that returns its number of threads."""
    settings = PackageSettings(model_store=store, name="shared", handler=HANDLER)
    client.register(package(linear_onnx, settings).name, workers=1)
    yield "shared"
    client.unregister("shared")


def threads_become(server: Server, model: str, workers: int, wanted: int) -> float:
    """Poll until each of the workers has the expected threads; return the seconds it took."""
    began = time.monotonic()
    threads: dict[int, int] = {}
    while time.monotonic() - began < LONGEST_S:
        with Client(server.home.path) as patient:  # another connection, of another worker
            told = patient.predict(model, [[1, 2, 3]])
            assert told["right"]
            threads[told["pid"]] = told["threads"]
            (found,) = patient.describe(model)
            alive = {worker.pid for worker in found.workers}
            if len(alive) == workers and [threads.get(pid) for pid in alive] == [wanted] * workers:
                return time.monotonic() - began
    raise AssertionError(f"{workers} workers must have {wanted} threads each, got {threads}")


@pytest.mark.skipif(usable_cores() < 2, reason="one core cannot be shared")
def test_threads_follow_scaling(running: Server, client: Client, shared: str) -> None:
    """Scaled to two and back to one, workers have their share of the cores within seconds.

    Every answer meanwhile is right, whichever session gave it.
    """
    cores = usable_cores()
    threads_become(running, shared, 1, cores)
    client.scale(shared, 2)
    threads_become(running, shared, 2, cores // 2)
    client.scale(shared, 1)
    threads_become(running, shared, 1, cores)


def form(fields: int) -> bytes:
    """A form of the first field, which is the request, and others with nothing in them."""
    head = (
        b'--b\r\nContent-Disposition: form-data; name="body"; filename="b"\r\n'
        b"Content-Type: application/json\r\n\r\n[[1, 2, 3]]\r\n"
    )
    part = b'--b\r\nContent-Disposition: form-data; name="%x"\r\n\r\n\r\n'
    return head + b"".join(part % i for i in range(fields - 1)) + b"--b--\r\n"


@pytest.mark.parametrize(
    ("fields", "status"),
    [(1, 200), (MAX_FORM_FIELDS, 200), (MAX_FORM_FIELDS + 1, 413), (50_000, 413)],
)
def test_a_form_has_a_limit_of_fields(
    running: Server, shared: str, fields: int, status: int
) -> None:
    """A form of up to 1,000 fields succeeds; a larger one is refused, with the number of fields."""
    url, headers = endpoint(running, shared)
    headers["Content-Type"] = "multipart/form-data; boundary=b"
    answer = requests.post(url, form(fields), headers=headers, timeout=60)
    assert answer.status_code == status
    if status == 413:
        assert answer.json()["code"] == "too_large"
        assert f"got {fields}" in answer.json()["message"]
