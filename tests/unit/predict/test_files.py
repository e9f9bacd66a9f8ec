"""Predictions of many files: every file gets its row, whatever the server or the disk does.

The server is a small one of aiohttp on loopback that speaks TorchServe's two ports: a real one
cannot be made to drop a connection, refuse a request and answer the next, or count how many it
holds at a time. The ordinary path, and kills, are tested with a real one in tests/server.
"""

import asyncio
import collections
import csv
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from marship import predict
from marship.client.address import Address
from marship.engines.home import Home, ServerRecord
from marship.engines.processes import boot_id, start_time
from marship.errors import NotFoundError, ServerError, UsageError
from marship.predict import Run, Watcher, asking, predict_files, sources
from marship.predict.rows import Row
from marship.predict.transcripts import Transcripts

MODEL = {
    "modelName": "m",
    "modelVersion": "1.0",
    "modelUrl": "m.mar",
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 1,
    "maxBatchDelay": 1,
    "responseTimeout": 30,
    "loadedAtStartup": False,
    "workers": [{"id": "1", "pid": 1, "status": "READY"}],
    "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0},
}
HttpResponse = Callable[[bytes, web.Request], Awaitable[web.StreamResponse]]


class StandIn:
    """TorchServe's two ports, with responses that a test chooses.

    `asked` has every body sent, `types` as what, `paths` where to.
    """

    def __init__(self, home: Path, answer: HttpResponse) -> None:
        self.home, self.answer = Home(home), answer
        self.asked: list[bytes] = []
        self.types: list[str] = []
        self.paths: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner, port = self._do(self._start())
        url = f"http://127.0.0.1:{port}"
        self.home.create()
        self.home.lock_file.touch()  # as a start does
        self.home.config.write_text("job_queue_size=50\nmax_request_size=5000\n")
        record = ServerRecord(
            os.getpid(), start_time(os.getpid()), boot_id(), url, url, url, str(home), str(home)
        )
        self.home.write_record(record)

    def close(self) -> None:
        """Listen no more."""
        if self._thread.is_alive():
            self._do(self._runner.cleanup())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_get("/models/m", self._describe)
        app.router.add_get("/models/m/1.0", self._describe)
        app.router.add_post("/predictions/m/1.0", self._predict)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, runner.addresses[0][1]

    async def _describe(self, _request: web.Request) -> web.Response:
        return web.json_response([MODEL])

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append(body)
        self.types.append(request.content_type)
        self.paths.append(request.path)
        return await self.answer(body, request)


async def label(body: bytes, _request: web.Request) -> web.Response:
    """The body as a label."""
    return web.json_response({"label": body.decode(), "score": 0.5})


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[HttpResponse], StandIn]]:
    """Start a stand-in with these responses."""
    started: list[StandIn] = []

    def start(answer: HttpResponse = label) -> StandIn:
        started.append(StandIn(tmp_path / "home", answer))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Twelve files, a.txt to l.txt, whose content is their letter."""
    folder = tmp_path / "files"
    folder.mkdir()
    for letter in "abcdefghijkl":
        (folder / f"{letter}.txt").write_text(letter)
    found = sources.find([str(folder)], [".txt"]).sources
    return Run("m", found, tmp_path / "out.csv")


def read(path: Path) -> list[dict[str, str]]:
    """A CSV's rows by column."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_file_gets_its_row(serve: Callable[..., StandIn], run: Run) -> None:
    """Sorted, with its response; a second run sends nothing, --again everything."""
    server = serve()
    done = predict_files(run, Address(home=server.home.path))
    assert [row["label"] for row in read(run.out)] == list("abcdefghijkl")
    assert (done.failed, done.predicted_before, set(server.types)) == ([], 0, {"text/plain"})
    again = predict_files(run, Address(home=server.home.path))
    assert (len(server.asked), again.predicted_before, again.predicted) == (12, 12, 12)
    predict_files(replace(run, again=True, content_type="x/y"), Address(home=server.home.path))
    assert (len(server.asked), server.types[-1]) == (24, "x/y")


def test_what_failed_or_changed_is_sent_again(serve: Callable[..., StandIn], run: Run) -> None:
    """The next run predicts those two files alone, and their new rows stand for the old."""

    async def answer(body: bytes, request: web.Request) -> web.Response:
        if body == b"b":
            problem = {"code": "malformed", "message": "no picture"}
            return web.json_response(problem, status=400)
        return await label(body, request)

    server = serve(answer)
    (bad,) = predict_files(run, Address(home=server.home.path)).failed
    assert (bad.status, bad.error) == (400, "malformed: no picture")
    server.asked.clear()
    server.answer = label
    run.sources[3].path.write_text("D")
    done = predict_files(run, Address(home=server.home.path))
    assert sorted(server.asked) == [b"D", b"b"]
    assert not done.failed
    assert [row["label"] for row in read(run.out)] == list("abcDefghijkl")


@pytest.mark.parametrize("trouble", ["busy", "lost"])
def test_passing_trouble_is_waited_out(
    serve: Callable[..., StandIn], run: Run, trouble: str
) -> None:
    """Each file's first request meets a full queue, or a lost connection; all get a row."""
    seen: set[bytes] = set()

    async def answer(body: bytes, request: web.Request) -> web.Response:
        if body in seen:
            return await label(body, request)
        seen.add(body)
        if trouble == "lost":
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"code": 503, "message": "full"}, status=503)

    class Counter(Watcher):
        troubles = 0

        def on_trouble(self) -> None:
            self.troubles += 1

    server, counter = serve(answer), Counter()
    assert not predict_files(run, Address(home=server.home.path), counter).failed
    assert (counter.troubles, len(server.asked)) == (12, 24)


def test_a_file_whose_workers_die_is_sent_three_times(
    serve: Callable[..., StandIn], run: Run
) -> None:
    """One crash may be chance and is retried; a file that workers crash on is a row."""
    died = {"code": 507, "type": "InternalServerException", "message": "Worker died."}
    asked: collections.Counter[bytes] = collections.Counter()

    async def answer(body: bytes, request: web.Request) -> web.Response:
        asked[body] += 1
        if body == b"c" or (body == b"d" and asked[body] == 1):
            return web.json_response(died, status=507)
        return await label(body, request)

    (bad,) = predict_files(run, Address(home=serve(answer).home.path)).failed
    assert (bad.file[-5:], bad.status) == ("c.txt", 507)
    assert bad.error.startswith("worker_died: ")
    assert (asked[b"c"], asked[b"d"], asked[b"e"]) == (3, 2, 1)


def test_a_file_over_the_response_timeout_is_sent_once(
    serve: Callable[..., StandIn], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that had its time was ended for it: one is enough, and the row says why."""
    died = {"code": 500, "type": "InternalServerException", "message": "Worker died."}
    monkeypatch.setitem(MODEL, "responseTimeout", 1)
    asked: collections.Counter[bytes] = collections.Counter()

    async def answer(body: bytes, request: web.Request) -> web.Response:
        asked[body] += 1
        if body == b"c":
            await asyncio.sleep(1)  # TorchServe ends a worker no earlier
            return web.json_response(died, status=500)
        return await label(body, request)

    (bad,) = predict_files(run, Address(home=serve(answer).home.path)).failed
    assert (bad.file[-5:], bad.status) == ("c.txt", 504)
    assert bad.error.startswith("response_timeout: ")
    assert set(asked.values()) == {1}


def test_a_file_that_is_without_a_response_is_a_row(
    serve: Callable[..., StandIn], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others have responses, one whose connection always ends is a failure of its own."""
    monkeypatch.setattr(asking, "RETRY_S", 0.5)

    async def answer(body: bytes, request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)  # some retries, and no more, fit into RETRY_S
        if body == b"c":
            assert request.transport is not None
            request.transport.abort()
        return await label(body, request)

    server = serve(answer)
    (bad,) = predict_files(replace(run, in_flight=2), Address(home=server.home.path)).failed
    assert (bad.file[-5:], bad.status) == ("c.txt", None)
    assert bad.error.startswith("no_answer: ")


def test_a_server_that_is_gone_ends_the_run(
    serve: Callable[..., StandIn], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error says so; rows are kept, and the next run predicts the rest."""
    monkeypatch.setattr(asking, "RETRY_S", 0.5)
    server = serve()

    class Closer(Watcher):
        rows = 0

        def on_row(self, row: Row) -> None:
            assert row.has_response
            self.rows += 1
            if self.rows == 4:
                server.close()

    closer = Closer()
    with pytest.raises(ServerError, match=r"must respond within 0\.5 s") as caught:
        predict_files(replace(run, in_flight=1), Address(home=server.home.path), closer)
    assert caught.value.code == "server"
    assert len(read(run.out)) == closer.rows < 12
    after = serve()
    assert not predict_files(run, Address(home=after.home.path)).failed
    assert len(after.asked) == 12 - closer.rows


async def gone(_body: bytes, _request: web.Request) -> web.Response:
    """TorchServe's response if a version is not registered."""
    problem = {"code": 404, "type": "ModelVersionNotFoundException", "message": "gone"}
    return web.json_response(problem, status=404)


def test_the_version_in_the_rows_is_called_whatever_the_default_is(
    serve: Callable[..., StandIn], run: Run
) -> None:
    """One version from the first file to the last: the default is looked up once.

    When it is unregistered in the middle the run ends, saying so; answers are kept.
    """
    server = serve()

    class Exchanger(Watcher):
        def on_row(self, row: Row) -> None:
            assert row.model == "m 1.0"
            server.answer = gone

    with pytest.raises(NotFoundError, match=r"m 1\.0 must stay registered .*--again or another"):
        predict_files(replace(run, in_flight=1), Address(home=server.home.path), Exchanger())
    assert set(server.paths) == {"/predictions/m/1.0"}
    assert [row["label"] for row in read(run.out)] == ["a"]


def test_a_restart_is_waited_out_until_the_models_are_back(
    serve: Callable[..., StandIn], run: Run
) -> None:
    """A lost connection, and 404 as long as the models are not registered again.

    The second file was not on its way when the server ended: it meets the 404 alone.
    """
    met: collections.Counter[bytes] = collections.Counter()
    is_back = asyncio.Event()

    async def answer(body: bytes, request: web.Request) -> web.StreamResponse:
        met[body] += 1
        if body == b"a" and met[body] == 1 and request.transport is not None:
            request.transport.abort()
        elif body == b"a":
            is_back.set()
        else:
            await is_back.wait()
        return await (label if body > b"b" or met[body] > 3 else gone)(body, request)

    assert not predict_files(
        replace(run, in_flight=2), Address(home=serve(answer).home.path)
    ).failed
    assert (met[b"a"], met[b"b"]) == (4, 4)


def test_what_took_too_long_is_not_sent_again(
    serve: Callable[..., StandIn], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would only add to the load: the file's row says so, as a single prediction does."""
    monkeypatch.setattr(predict, "longest_wait_s", lambda *_: 0.5)

    async def answer(body: bytes, request: web.Request) -> web.StreamResponse:
        if body == b"c":
            await asyncio.sleep(1.5)  # longer than the client waits
        return await label(body, request)

    server = serve(answer)
    (bad,) = predict_files(run, Address(home=server.home.path)).failed
    assert bad.error.startswith("no_answer: ")
    assert server.asked.count(b"c") == 1


def test_files_that_cannot_be_sent_are_rows(serve: Callable[..., StandIn], run: Run) -> None:
    """One that vanished, one that became a folder, one over the server's limit, never sent."""
    server = serve()
    gone, folder, large = (source.path for source in run.sources[:3])
    gone.unlink()
    folder.unlink()
    folder.mkdir()
    large.write_bytes(b"x" * 5001)
    failed = predict_files(run, Address(home=server.home.path)).failed
    assert [row.status for row in failed] == [None] * 3
    assert failed[0].error == "unreadable: No such file or directory"
    assert failed[1].error == "unreadable: Is a directory"
    assert "at most 5000 bytes, got 5001" in failed[2].error
    assert len(server.asked) == 9


@pytest.mark.parametrize("bounds", [(3, 100, 3), (8, 2, 2), (8, 1, 1)])
def test_requests_and_bytes_in_flight_are_bounded(
    serve: Callable[..., StandIn],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    bounds: tuple[int, int, int],
) -> None:
    """The server never holds more requests than the limit, nor files of more bytes."""
    in_flight, most_bytes, most = bounds
    monkeypatch.setattr(asking, "MOST_BYTES_IN_FLIGHT", most_bytes)
    held = highest = 0

    async def answer(body: bytes, request: web.Request) -> web.Response:
        nonlocal held, highest
        held += 1
        highest = max(highest, held)
        await asyncio.sleep(0.02)  # others may come in the meantime
        held -= 1
        return await label(body, request)

    server = serve(answer)
    assert not predict_files(
        replace(run, in_flight=in_flight), Address(home=server.home.path)
    ).failed
    assert highest == most
    with pytest.raises(UsageError, match="job_queue_size of 50, got 51"):
        predict_files(replace(run, in_flight=51), Address(home=server.home.path))


BODIES = [
    (b'{"label":"x"}', "text/plain", {"label": "x"}),
    (b"just text", "", {"answer": "just text"}),
    (b"[1, 2]", "application/json", {"answer": "1;2"}),
]


@pytest.mark.parametrize(("body", "kind", "wanted"), BODIES)
def test_responses_without_a_type_are_read(
    serve: Callable[..., StandIn], run: Run, body: bytes, kind: str, wanted: dict[str, str]
) -> None:
    """JSON that says it is text, and text, are responses: stock handlers name no type."""

    async def answer(_body: bytes, _request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": kind} if kind else {})

    predict_files(run, Address(home=serve(answer).home.path))
    assert wanted.items() <= read(run.out)[0].items()


def test_octets_are_no_row(serve: Callable[..., StandIn], run: Run) -> None:
    """A response that is neither JSON, npy nor text is an error, not garbled."""

    async def answer(_body: bytes, _request: web.Request) -> web.Response:
        return web.Response(body=b"\xff\xd8\xff")

    failed = predict_files(run, Address(home=serve(answer).home.path)).failed
    assert len(failed) == 12
    assert "got 3 other bytes" in failed[0].error


def test_what_is_true_of_every_file_ends_the_run(
    serve: Callable[..., StandIn], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such model, and a model without workers, are told before a file is sent."""
    server = serve()
    with pytest.raises(NotFoundError, match="absent must be registered"):
        predict_files(replace(run, model="absent"), Address(home=server.home.path))
    monkeypatch.setitem(MODEL, "workers", [])
    with pytest.raises(ServerError, match="marship scale m 1"):
        predict_files(run, Address(home=server.home.path))
    assert not run.out.exists()
    assert not server.asked


LINES = "application/jsonl"


@pytest.fixture
def talks(tmp_path: Path) -> Run:
    """Three recordings, a.wav to c.wav, whose content is their letter."""
    for letter in "abc":
        (tmp_path / f"{letter}.wav").write_text(letter)
    found = sources.find([str(tmp_path)]).sources
    forms = Transcripts(tmp_path / "out.transcripts", tmp_path, ("txt",))
    return Run("m", found, tmp_path / "out.jsonl", transcripts=forms)


async def hear(body: bytes, request: web.Request) -> web.StreamResponse:
    """A segment, some time, and the whole response."""
    assert request.headers["Accept"] == LINES
    response = web.StreamResponse(headers={"Content-Type": LINES})
    await response.prepare(request)
    segment = {"start": 0.0, "end": 1.0, "text": body.decode()}
    await response.write(orjson.dumps(segment) + b"\n")
    await asyncio.sleep(0.05)  # the lines arrive one by one
    await response.write(orjson.dumps({"text": body.decode(), "segments": [segment]}) + b"\n")
    return response


def test_recordings_are_requested_line_by_line(serve: Callable[..., StandIn], talks: Run) -> None:
    """The last line is the response: so a recording may take longer than any timeout."""
    assert not predict_files(talks, Address(home=serve(hear).home.path)).failed
    rows = [orjson.loads(line) for line in talks.out.read_bytes().splitlines()]
    assert [row["answer"]["text"] for row in rows] == ["a", "b", "c"]
    assert talks.transcripts is not None
    assert (talks.transcripts.folder / "b.wav.txt").read_text() == "b\n"


def test_a_stream_that_breaks_off_is_requested_again(
    serve: Callable[..., StandIn], talks: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it had been streamed; no half transcript is ever written."""
    monkeypatch.setattr(asking, "RETRY_S", 0.2)
    broken: set[bytes] = set()

    async def answer(body: bytes, request: web.Request) -> web.StreamResponse:
        if body in broken:
            return await hear(body, request)
        broken.add(body)
        response = web.StreamResponse(headers={"Content-Type": LINES})
        await response.prepare(request)
        await response.write(b'{"start": 0, "end": 1, "text": "half"}\n')
        await asyncio.sleep(0.4)  # the segment is read before the connection ends
        assert request.transport is not None
        request.transport.abort()
        return response

    server = serve(answer)
    assert not predict_files(talks, Address(home=server.home.path)).failed
    assert len(server.asked) == 6
    assert talks.transcripts is not None
    assert (talks.transcripts.folder / "b.wav.txt").read_text() == "b\n"
