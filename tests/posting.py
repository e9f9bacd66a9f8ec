"""Requests to a model's endpoint as any HTTP client sends them."""

import json
from collections.abc import Callable, Iterator

import requests

from marship import Client
from marship.server import Server

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
