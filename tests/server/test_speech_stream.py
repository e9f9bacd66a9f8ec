"""Speech over HTTP: segments as they are ready, and what becomes of the others in the batch."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests

from marship import AsyncClient, Client
from marship.engines.torchserve.server import Server
from marship.errors import (
    MarshipError,
    NoAnswerError,
    NotFoundError,
    ServerError,
    TooLargeError,
    UnsupportedMediaError,
)
from posting import endpoint
from waiting import until
from whistles import RATE, long_whistle, pack_ear, said, wav

Ask = Callable[..., requests.Response]
TEXTS = ["abc", "dad", "hh", "fee", "cab", "bed", "edge", "fade"]
LINES = {"Accept": "application/jsonl"}
TURN_MS = 80  # a call of the model takes about that


@pytest.fixture(scope="module")
def ear(store: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model that recognizes whistles, slowly, with batches of four."""
    folder = tmp_path_factory.mktemp("ear")
    settings = {"batch_size": 4, "max_batch_delay_ms": 150, "option": ("longest_s=60",)}
    pack_ear(folder, name="slow-ear", slow_ms=TURN_MS, **settings).rename(store / "slow-ear.mar")
    client.register("slow-ear.mar")
    yield "slow-ear"
    client.unregister("slow-ear")


@pytest.fixture(scope="module")
def ask(ear: str, running: Server) -> Ask:
    """Post to it without reading the response."""
    url, token = endpoint(running, ear)

    def send(data: bytes, **headers: str) -> requests.Response:
        return requests.post(url, data, headers={**token, **headers}, timeout=60, stream=True)

    return send


@pytest.fixture(scope="module")
def long() -> bytes:
    """Eight segments, each a chunk of its own: four model calls."""
    return wav(long_whistle(*TEXTS))


@pytest.fixture
def worker(client: Client, ear: str) -> Iterator[None]:
    """The same worker before and after."""
    before = client.describe(ear)[0].workers
    yield
    assert client.describe(ear)[0].workers == before


def values(answer: requests.Response) -> Iterator[tuple[float, Any]]:
    """Each line's value, and when it came."""
    for line in answer.iter_lines(chunk_size=None):
        yield time.monotonic(), json.loads(line)


@pytest.mark.usefixtures("worker")
def test_segments_arrive_while_others_are_transcribed(ask: Ask, long: bytes) -> None:
    """Chunked, status 200 with the first; seconds until the last, which is the full response."""
    answer = ask(long, **LINES)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/jsonl"
    assert answer.headers["transfer-encoding"] == "chunked"
    times, lines = zip(*values(answer), strict=True)
    *segments, whole = lines
    assert [segment["text"] for segment in segments] == TEXTS
    assert whole["segments"] == segments
    assert times[-1] - times[0] > 1.5 * TURN_MS / 1000  # three turns, on a machine twice as fast


@pytest.mark.usefixtures("worker")
def test_requests_of_a_batch_get_their_responses_early(ask: Ask, long: bytes) -> None:
    """A long stream, a short response, a short stream and an error, in one batch: none waits."""
    bodies = [(long, LINES), (said("abc"), {}), (said("dad"), LINES), (b"no", {})]

    def done(body: bytes, headers: dict[str, str]) -> tuple[float, int, list[Any]]:
        answer = ask(body, **headers)
        lines = [line for _, line in values(answer)]
        return time.monotonic(), answer.status_code, lines

    with ThreadPoolExecutor(4) as pool:
        streamed, short, brief, bad = pool.map(lambda pair: done(*pair), bodies)
    assert [line["text"] for line in streamed[2][:-1]] == TEXTS
    assert (short[1], short[2][0]["text"]) == (200, "abc")
    assert [line["text"] for line in brief[2]] == ["dad", "dad"]
    assert (bad[1], bad[2][0]["code"]) == (415, "unsupported_media")
    assert max(short[0], brief[0], bad[0]) < streamed[0] - TURN_MS / 1000


@pytest.mark.usefixtures("worker")
def test_early_errors_have_a_status_and_later_ones_a_line(ask: Ask) -> None:
    """415 before the stream begins; 200 and an error as the last line after that."""
    answer = ask(b"no", **LINES)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")
    assert answer.headers["content-type"] == "application/json"
    answer = ask(wav(long_whistle("abc", "dad", "hh", "a!")), **LINES)
    *segments, error = [line for _, line in values(answer)]
    assert answer.status_code == 200
    assert [segment["text"] for segment in segments] == ["abc", "dad", "hh"]
    assert error["code"] == "internal"


@pytest.mark.usefixtures("worker")
def test_a_connection_is_used_again_after_a_stream(running: Server, ear: str, long: bytes) -> None:
    """The stream is terminated, and the next response on the same connection is right."""
    url, token = endpoint(running, ear)
    with requests.Session() as session:
        session.headers.update(token)
        answer = session.post(url, long, headers=LINES, stream=True, timeout=60)
        connection = answer.raw.connection
        assert len(list(values(answer))) == len(TEXTS) + 1
        again = session.post(url, said("abc"), stream=True, timeout=60)
        assert again.json()["text"] == "abc"
        assert again.raw.connection in {None, connection}
        assert len(session.adapters["http://"].poolmanager.pools) == 1


@pytest.mark.usefixtures("worker")
def test_a_client_that_disconnects_affects_no_other(ask: Ask, long: bytes, ear: str) -> None:
    """Five disconnect after the headers or before: the same worker serves the next."""
    for _ in range(2):
        answer = ask(long, **LINES)
        assert next(values(answer))
        answer.close()
    request = ask(b"").request
    where = urlsplit(request.url)
    for sent in (len(long), len(long) // 2, 0):
        with socket.create_connection((where.hostname, where.port)) as gone:
            gone.sendall(
                f"POST /predictions/{ear} HTTP/1.1\r\nHost: x\r\nAccept: application/jsonl\r\n"
                f"Authorization: {request.headers['Authorization']}\r\n"
                f"Content-Length: {len(long)}\r\n\r\n".encode()
                + long[:sent]
            )
    assert ask(said("abc")).json()["text"] == "abc"


@pytest.mark.usefixtures("worker")
def test_the_client_yields_segments(client: Client, ear: str, long: bytes) -> None:
    """`transcribe` yields segments, `stream` also the full response, `predict` only that."""
    segments = list(client.transcribe(ear, long))
    assert [segment["text"] for segment in segments] == TEXTS
    *same, whole = client.stream(ear, long)
    assert same == segments == whole["segments"]
    assert client.predict(ear, long)["segments"] == segments
    assert list(client.transcribe(ear, wav(np.zeros(RATE, np.float32)))) == []


@pytest.mark.usefixtures("worker")
def test_a_client_that_stops_early_closes_its_connection(
    running: Server, ear: str, long: bytes
) -> None:
    """Dropped or closed, blocking: the next request succeeds."""
    with Client(running.home.path) as client:
        for segment in client.transcribe(ear, long):
            assert segment["text"] == TEXTS[0]
            break
        segments = client.transcribe(ear, long)
        assert next(segments)["text"] == TEXTS[0]
        segments.close()
        assert client.predict(ear, said("abc"))["text"] == "abc"


@pytest.mark.usefixtures("worker")
def test_the_asyncio_client_does_the_same(running: Server, ear: str, long: bytes) -> None:
    """Three at a time, one of them refused, one of them stopping early."""

    async def heard(client: AsyncClient, body: bytes, most: int) -> list[str]:
        texts: list[str] = []
        async for segment in client.transcribe(ear, body):
            texts.append(segment["text"])
            if len(texts) == most:
                break
        return texts

    async def all_heard() -> list[Any]:
        async with AsyncClient(running.home.path) as client:
            asked = [heard(client, long, 99), heard(client, long, 2), heard(client, b"no", 99)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            whole = [line async for line in client.stream(ear, said("abc"))]
            return [*found, whole[-1]["text"]]

    whole, two, refused, last = asyncio.run(all_heard())
    assert whole == TEXTS
    assert two == TEXTS[:2]
    assert isinstance(refused, UnsupportedMediaError)
    assert last == "abc"


@pytest.mark.usefixtures("worker")
def test_errors_are_the_clients_own_classes(client: Client, ear: str) -> None:
    """Before the first segment and after it; an unknown model; no request is sent before."""
    segments = client.transcribe("nobody", b"")
    with pytest.raises(NotFoundError):
        next(segments)
    with pytest.raises(UnsupportedMediaError, match="must hold a recording"):
        next(client.transcribe(ear, b"no"))
    with pytest.raises(TooLargeError, match="at most 60 s"):
        next(client.transcribe(ear, wav(np.zeros(61 * RATE, np.float32))))
    segments = client.transcribe(ear, wav(long_whistle("abc", "dad", "a!")))
    assert [next(segments)["text"], next(segments)["text"]] == ["abc", "dad"]
    with pytest.raises(ServerError, match="under reference"):
        next(segments)


def test_a_worker_that_dies_breaks_the_stream(client: Client, ear: str, long: bytes) -> None:
    """The client gets an error, blocking and awaiting, and the next worker serves."""

    def kill() -> None:
        os.kill(client.describe(ear)[0].workers[0].pid, signal.SIGKILL)

    segments = client.transcribe(ear, long)
    assert next(segments)["text"] == TEXTS[0]
    kill()
    with pytest.raises(NoAnswerError):
        list(segments)

    def text() -> str | None:
        with suppress(MarshipError):
            return client.predict(ear, said("abc"))["text"]
        return None

    assert until(text, 60, "a response of the next worker") == "abc"
