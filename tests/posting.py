"""Requests to a model's endpoint as any HTTP client sends them."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests

from marship import Client
from marship.engines.torchserve.server import Server

Post = Callable[..., requests.Response]


def endpoint(running: Server, model: str) -> tuple[str, dict[str, str]]:
    """Where a model answers, and the header that it asks for."""
    token = json.loads(running.home.key_file.read_text())["inference"]["key"]
    url = f"{running.record.inference_url}/predictions/{model}"
    return url, {"Authorization": f"Bearer {token}"}


def posting(running: Server, client: Client, model: str) -> Iterator[Post]:
    """Register `<model>.mar` and post to it; in the end its worker is the first one."""
    (worker,) = client.register(f"{model}.mar").workers
    url, token = endpoint(running, model)

    def send(data: object, kind: str = "", **more: object) -> requests.Response:
        headers = {**token, **({"Content-Type": kind} if kind else {})}
        return requests.post(url, data, headers=headers, timeout=60, **more)

    yield send
    assert client.describe(model)[0].workers == (worker,)


def assert_memory_returns(
    post: Post, process: psutil.Process, bodies: Sequence[bytes], times: int
) -> None:
    """Send bad bodies so many times each; the worker refuses all, and holds no more than before."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(post, bodies * 10))
        before = process.memory_info().rss
        answers = pool.map(post, bodies * times)
        assert all(answer.status_code in {400, 413, 415} for answer in answers)
    assert process.memory_info().rss - before < 8 << 20


def forget_peak(process: psutil.Process) -> None:
    """Let `peak_bytes` begin anew: 5 is what proc(5) has clear_refs take for it."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that the process held, ever or since the peak was forgotten."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
