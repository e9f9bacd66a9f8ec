"""Models are registered, called, scaled, updated and removed; errors are one line."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from marship import AsyncClient, Client
from marship.engines.home import Home
from marship.engines.torchserve import server
from marship.errors import (
    InvalidInputError,
    LoadError,
    NotFoundError,
    NotRunningError,
    ServerError,
    TokenError,
    TooLargeError,
    UsageError,
)
from marship.exchange import connections
from waiting import until

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"

Start = Callable[..., server.Server]


def names(client: Client) -> list[str]:
    """The models that are registered."""
    return [model.name for model in client.models()]


@pytest.fixture
def removed(client: Client) -> Iterator[Callable[[str], str]]:
    """Name a model that is unregistered after the test."""
    noted: list[str] = []

    def note(name: str) -> str:
        noted.append(name)
        return name

    yield note
    for name in noted:
        others = {status.version for status in client.describe(name, "all")}
        default = client.describe(name)[0].version
        for version in [*(others - {default}), default]:
            client.unregister(name, version)


def test_register_returns_when_every_worker_is_ready(
    client: Client, removed: Callable[[str], str]
) -> None:
    """Both workers are READY at the end, the callback saw the progress, and predictions succeed."""
    seen: list[tuple[int, int]] = []
    status = client.register(
        "echo.mar", name=removed("both"), workers=2, on_wait=lambda *counts: seen.append(counts)
    )
    assert [worker.ready for worker in status.workers] == [True, True]
    assert seen[0] == (0, 2)
    assert seen[-1] == (2, 2)
    assert client.predict("both", {"x": 1})["got"] == {"x": 1}


def test_scale_waits_for_the_last_worker_both_ways(
    client: Client, removed: Callable[[str], str]
) -> None:
    """Up: as many are ready. Down: as many are left, and the others' processes are gone."""
    client.register("echo.mar", name=removed("scaled"), workers=0)
    with pytest.raises(ServerError, match="no worker"):
        client.predict("scaled", 1)
    up = client.scale("scaled", 2)
    assert (up.ready, up.min_workers, up.max_workers) == (2, 2, 2)
    down = client.scale("scaled", 1)
    assert (down.ready, len(down.workers)) == (1, 1)
    (gone,) = {worker.pid for worker in up.workers} - {worker.pid for worker in down.workers}
    if psutil.pid_exists(gone):
        psutil.Process(gone).wait(timeout=2)  # it was killed, and is ending
    assert client.predict("scaled", 1)["pid"] == down.workers[0].pid


def test_scale_returns_the_number_of_workers(client: Client, removed: Callable[[str], str]) -> None:
    """A second worker that cannot load: the error counts, and gives the worker's reason."""
    client.register("only_one.mar", name=removed("licensed"), workers=1)
    with pytest.raises(ServerError, match=r"got 1 of 2: .*one worker must be enough") as caught:
        client.scale("licensed", 2)
    assert any("one worker must be enough" in note for note in caught.value.__notes__)
    assert client.scale("licensed", 1).ready == 1


def test_a_new_version_serves_when_it_is_made_the_default(
    client: Client, removed: Callable[[str], str]
) -> None:
    """Version 2.0 serves requests that name it, all once it is the default; 1.0 can be removed."""
    client.register("echo.mar", name=removed("rolled"), workers=1)
    client.register("echo-2.mar", name="rolled", workers=1)
    assert client.predict("rolled", 1)["version"] == "1.0"
    assert client.predict("rolled", 1, version="2.0")["version"] == "2.0"
    client.set_default("rolled", "2.0")
    assert client.predict("rolled", 1)["version"] == "2.0"
    (model,) = [model for model in client.models() if model.name == "rolled"]
    assert model.default_version == "2.0"
    assert [status.version for status in model.versions] == ["1.0", "2.0"]
    with pytest.raises(ServerError, match="another version the default first"):
        client.unregister("rolled", "2.0")
    client.unregister("rolled", "1.0")
    assert [status.version for status in client.describe("rolled", "all")] == ["2.0"]


@pytest.mark.parametrize(
    ("archive", "cause"),
    [
        ("raises.mar", "ValueError: the weights must be there, got none"),
        ("lacks_module.mar", "No module named 'module_that_nobody_has'"),
        ("crashes.mar", "Fatal Python error: Segmentation fault"),
        ("vanishes.mar", "it ended without a message"),
    ],
)
def test_a_worker_that_dies_on_load_reports_the_cause(
    client: Client, archive: str, cause: str
) -> None:
    """Within 15 s the first line is the cause, the notes are the log, and nothing stays."""
    began = time.monotonic()
    with pytest.raises(LoadError, match=re.escape(cause)) as caught:
        client.register(archive, workers=2)
    assert time.monotonic() - began < 15
    assert 0 < len(caught.value.__notes__) <= 15
    assert Path(archive).stem not in names(client)


def test_an_interrupted_registration_leaves_nothing(client: Client) -> None:
    """Ctrl-C while a slow model loads: it is unregistered before the exception propagates."""

    def interrupt(_ready: int, _wanted: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.register("slow.mar", workers=1, on_wait=interrupt)
    assert "slow" not in names(client)


def test_a_registration_that_takes_too_long_leaves_nothing(client: Client) -> None:
    """The error says how long was waited."""
    with pytest.raises(LoadError, match=r"not ready after 0\.5 s"):
        client.register("slow.mar", workers=1, timeout_s=0.5)
    assert "slow" not in names(client)


def test_a_killed_worker_is_restarted_and_serves(
    client: Client, removed: Callable[[str], str]
) -> None:
    """After kill -9 another process serves the model, without anyone's help."""
    before = client.register("echo.mar", name=removed("killed"), workers=1).workers[0].pid
    os.kill(before, signal.SIGKILL)

    def another() -> int | None:
        pid = answering(client, "killed")
        return None if pid == before else pid

    pid = until(another, 30, "a response of another worker")
    assert client.wait_ready("killed").workers[0].pid == pid


def answering(client: Client, name: str) -> int | None:
    """The process that serves, if one does."""
    try:
        answer: dict[str, int] = client.predict(name, 1)
    except ServerError:
        return None
    return answer["pid"]


@pytest.mark.parametrize("archive", ["/etc/echo.mar", "../echo.mar", "http://x/echo.mar", ".mar"])
def test_only_a_name_in_the_model_store_is_registered(client: Client, archive: str) -> None:
    """Paths and addresses are refused before the server sees them."""
    with pytest.raises(UsageError, match="name of a file in the model store"):
        client.register(archive)


@pytest.mark.usefixtures("echo")
def test_a_missing_model_or_archive_is_named(client: Client) -> None:
    """Archive, model and version that are missing: what was looked for, and where to look."""
    with pytest.raises(NotFoundError, match=r"nowhere.mar must lie in .*which holds .*echo.mar"):
        client.register("nowhere.mar")
    for ask in (client.describe, client.unregister, lambda name: client.predict(name, 1)):
        with pytest.raises(NotFoundError, match="nothing must be registered"):
            ask("nothing")
    with pytest.raises(NotFoundError, match=r"echo version 9\.9"):
        client.set_default("echo", "9.9")
    with pytest.raises(ServerError, match=r"already registered for model echo\. Unregister"):
        client.register("echo.mar")
    assert client.describe("echo")[0].ready == 1


def test_a_name_that_torchserve_takes_for_a_token_call_is_refused(client: Client) -> None:
    """TorchServe would accept the registration and then refuse every other call about it."""
    with pytest.raises(UsageError, match="must not start with token"):
        client.register("echo.mar", name="tokenizer")


@pytest.mark.usefixtures("echo")
def test_inputs_and_responses_by_content_type(client: Client) -> None:
    """Arrays go as JSON by name, contiguous or not; bytes come back as they went."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    answer = client.predict("echo", {"rows": rows, "columns": rows.T})
    assert answer["got"] == {"rows": rows.tolist(), "columns": rows.T.tolist()}
    assert client.predict("echo", b"\x00\xff") == b"\x00\xff"
    sent = client.predict("echo", b"[1]", content_type="application/json")
    assert sent["got"] == [1]
    with pytest.raises(UsageError, match="must be JSON, arrays or bytes"):
        client.predict("echo", object())


@pytest.mark.usefixtures("echo")
def test_a_models_own_error_keeps_its_code(client: Client) -> None:
    """A 400 whose body has one of our codes is raised as the class of that code."""
    with pytest.raises(InvalidInputError, match=r"^length must be 3$"):
        client.predict("echo", {"refuse": "length must be 3"})


@pytest.mark.usefixtures("echo")
def test_a_request_over_the_limit_is_an_error(client: Client) -> None:
    """max_request_size is 16 MiB: one byte more is refused, and the client can be used again."""
    with pytest.raises(TooLargeError):
        client.predict("echo", bytes(16 * 1024 * 1024 + 1))
    assert client.predict("echo", bytes(1024)) == bytes(1024)


def test_a_token_that_is_given_must_be_right(running: server.Server) -> None:
    """The error says which token, and what to do; it is never replaced behind one's back."""
    with (
        Client(running.home.path, inference_token="wrong") as client,
        pytest.raises(TokenError, match=r"the inference token .* or pass none"),
    ):
        client.predict("echo", 1)


def test_tokens_come_from_the_environment_too(
    running: server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With addresses and tokens no home is needed; without tokens the server refuses."""
    keys = json.loads(running.home.key_file.read_text())
    urls = {
        "inference_url": running.record.inference_url,
        "management_url": running.record.management_url,
    }
    with Client(tmp_path, **urls) as client, pytest.raises(TokenError, match="MARSHIP_HOME"):
        client.ping()
    monkeypatch.setenv("MARSHIP_INFERENCE_TOKEN", keys["inference"]["key"])
    monkeypatch.setenv("MARSHIP_MANAGEMENT_TOKEN", keys["management"]["key"])
    with Client(tmp_path, **urls) as client:
        assert client.ping() == "Healthy"
        with pytest.raises(LoadError, match=r"it died while loading\. See the server's log"):
            client.register("vanishes.mar", workers=1)
        assert "vanishes" not in names(client)


@pytest.fixture(scope="module")
def configured(start: Start, tmp_path_factory: pytest.TempPathFactory) -> server.Server:
    """A server whose configuration loads models, and whose tokens last three seconds."""
    packaged = Path(server.__file__).with_name("config.properties").read_text()
    models = {
        name: {"1.0": {"minWorkers": workers, "maxWorkers": workers, "marName": f"{name}.mar"}}
        for name, workers in [("echo", 2), ("pair", 1)]
    }
    config = tmp_path_factory.mktemp("configured") / "config.properties"
    config.write_text(
        f"{packaged}\ntoken_expiration_min=0.05\nmodels={json.dumps(models)}\n"
        "load_models=echo.mar,pair.mar,only_one.mar\n"
    )
    return start(config=config)


def test_precedence_of_the_number_of_workers(configured: server.Server) -> None:
    """From weak to strong: default_workers_per_model, the `models` entry, the archive, `scale`."""
    with Client(configured.home.path) as client:
        reached = {
            name: client.wait_ready(name, timeout_s=60).ready
            for name in ("pair", "echo", "only_one")
        }
        assert reached == {"pair": 2, "echo": 2, "only_one": 1}
        assert client.scale("pair", 1).ready == 1
        assert client.scale("echo", 1).ready == 1


def test_an_expired_token_is_renewed(configured: server.Server) -> None:
    """After three seconds both are refused, the client takes new ones, and many agree on one."""
    with Client(configured.home.path) as client:
        client.wait_ready("echo")
        before = json.loads(configured.home.key_file.read_text())
        time.sleep(3.2)  # a token's lifetime here is 3 s
        assert client.predict("echo", 1)["got"] == 1
        assert {model.name for model in client.models()} == {"echo", "pair", "only_one"}
        after = json.loads(configured.home.key_file.read_text())
        assert before["inference"]["key"] != after["inference"]["key"]
        assert before["management"]["key"] != after["management"]["key"]
        time.sleep(3.2)  # a token's lifetime here is 3 s
        answers = asyncio.run(ask_together(configured.home.path, 20))
    assert answers == list(range(20))


def test_a_token_is_renewed_before_it_ends(
    configured: server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients send requests all the time: none is rejected, and both use one new token."""
    statuses: list[int] = []

    class Noting(connections.CheckedConnection):
        def getresponse(self) -> http.client.HTTPResponse:
            response = super().getresponse()
            statuses.append(response.status)
            return response

    monkeypatch.setattr(connections, "CheckedConnection", Noting)
    with Client(configured.home.path) as one, Client(configured.home.path) as other:
        one.wait_ready("echo")
        one.predict("echo", 1)  # with a new token, whatever was there
        statuses.clear()
        before, end = configured.home.key_file.read_text(), time.monotonic() + 7
        while time.monotonic() < end:
            one.predict("echo", 1)
            other.predict("echo", 1)
            time.sleep(0.02)  # some hundred requests in the seconds of two tokens
    assert configured.home.key_file.read_text() != before
    assert len(statuses) > 100
    assert set(statuses) == {200}


async def ask_together(home: Path, count: int) -> list[int]:
    """Send requests at the same time."""
    async with AsyncClient(home) as client:
        answers = await asyncio.gather(*(client.predict("echo", i) for i in range(count)))
    return [answer["got"] for answer in answers]


def test_an_expired_token_that_cannot_be_renewed(configured: server.Server, tmp_path: Path) -> None:
    """Without the API key a renewal is refused, and the error says what to do."""
    keys = json.loads(configured.home.key_file.read_text())
    for side in ("inference", "API"):
        keys[side]["key"] = "wrong"
    (tmp_path / "key_file.json").write_text(json.dumps(keys))
    Home(tmp_path).write_record(configured.record)
    with Client(tmp_path) as client, pytest.raises(TokenError, match=r"none that .* MARSHIP_HOME"):
        client.predict("echo", 1)


def test_a_workers_number_given_to_register_wins_over_the_archive(
    client: Client, removed: Callable[[str], str]
) -> None:
    """The archive has two workers; one was requested, so there is one."""
    assert client.register("pair.mar", name=removed("single"), workers=1).ready == 1


def test_a_number_not_given_to_register_is_the_archives(
    client: Client, removed: Callable[[str], str]
) -> None:
    """No number was requested, so the archive's two workers start."""
    assert client.register("pair.mar", name=removed("double")).ready == 2


def test_no_server_is_one_line(tmp_path: Path) -> None:
    """No server in the home: how to start one. None at an address: which, and what to check."""
    with Client(tmp_path) as client, pytest.raises(NotRunningError, match="marship serve"):
        client.models()
    with (
        Client(tmp_path, inference_url="http://127.0.0.1:9") as client,
        pytest.raises(NotRunningError, match=r"127\.0\.0\.1:9/ping.*Check the address"),
    ):
        client.ping()


@pytest.mark.usefixtures("echo")
def test_metrics_are_prometheus_text(client: Client) -> None:
    """Counters of requests are there, by model."""
    client.predict("echo", 1)
    assert 'ts_inference_requests_total{model_name="echo"' in client.metrics()


def test_the_inference_port_has_no_management(running: server.Server) -> None:
    """enable_model_api affects only the management port, which needs its own token."""
    keys = json.loads(running.home.key_file.read_text())
    inference = {"management_url": running.record.inference_url, "management_token": "x"}
    with Client(running.home.path, **inference) as client, pytest.raises(TokenError):
        client.models()
    inference["management_token"] = keys["inference"]["key"]
    with (
        Client(running.home.path, **inference) as client,
        pytest.raises(UsageError, match="has a port for each API"),
    ):
        client.models()
    with (
        Client(running.home.path, management_token=keys["inference"]["key"]) as client,
        pytest.raises(TokenError, match=r"the management token .* or pass none"),
    ):
        client.models()


def test_the_asyncio_client_does_the_same(running: server.Server) -> None:
    """It registers, predicts concurrently, scales and removes; cancelled, it leaves nothing."""
    asyncio.run(walk(running.home.path))


async def walk(home: Path) -> None:
    """The whole life cycle of a model."""
    async with AsyncClient(home) as client:
        status = await client.register("echo.mar", name="walked", workers=1)
        assert status.ready == 1
        answers = await asyncio.gather(*(client.predict("walked", i) for i in range(20)))
        assert [answer["got"] for answer in answers] == list(range(20))
        assert (await client.scale("walked", 0)).workers == ()
        await client.unregister("walked")
        with pytest.raises(NotFoundError, match="walked must be registered"):
            await client.describe("walked")
        task = asyncio.create_task(client.register("slow.mar", workers=1))
        while "slow" not in {model.name for model in await client.models()}:
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not {"walked", "slow"} & {model.name for model in await client.models()}
        assert await client.ping() == "Healthy"
    async with AsyncClient(home, inference_url="http://127.0.0.1:9") as client:
        with pytest.raises(NotRunningError, match="Check the address"):
            await client.ping()


def test_the_curl_examples_work_as_they_are_printed(
    running: server.Server, removed: Callable[[str], str]
) -> None:
    """Every curl of docs/serving.md succeeds against a server with its addresses."""
    removed("curled")
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (script,) = [block for block in blocks if "curl" in block]
    for port, url in [
        ("8080", running.record.inference_url),
        ("8081", running.record.management_url),
        ("8082", running.record.metrics_url),
    ]:
        script = script.replace(f"http://127.0.0.1:{port}", url)
    script = script.replace(".marship", str(running.home.path)).replace("recommend", "curled")
    script = script.replace("curled.mar", "echo.mar")
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"got"' in done.stdout


def test_without_a_token_every_call_is_refused(running: server.Server) -> None:
    """On both ports, `/ping` included."""
    for url in (f"{running.record.management_url}/models", f"{running.record.inference_url}/ping"):
        answer = requests.get(url, timeout=10)
        assert answer.status_code == 400
        assert answer.json()["type"] == "InvalidKeyException"


def test_the_server_itself_refuses_what_is_not_in_the_store(
    running: server.Server, tmp_path: Path
) -> None:
    """With the right token, too: no address, no file elsewhere, and no workflow."""
    keys = json.loads(running.home.key_file.read_text())
    headers = {"Authorization": f"Bearer {keys['management']['key']}"}
    (tmp_path / "x.mar").write_bytes(b"")
    (tmp_path / "x.war").write_bytes(b"")
    for place, url in [
        ("models", "http://127.0.0.1:9/x.mar"),
        ("models", f"file://{tmp_path}/x.mar"),
        ("workflows", "http://127.0.0.1:9/x.war"),
        ("workflows", f"file://{tmp_path}/x.war"),
        ("workflows", "echo.mar"),
    ]:
        answer = requests.post(
            f"{running.record.management_url}/{place}",
            params={"url": url},
            headers=headers,
            timeout=10,
        )
        assert answer.status_code in (400, 404), answer.text
