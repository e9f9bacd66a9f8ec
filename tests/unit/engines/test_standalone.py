"""`marship host`: archives served without TorchServe, from a real process."""

import json
import py_compile
import socket
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from hosted import TOKEN, Hosted, Load, exchange
from marship.engines import listeners
from marship.engines.standalone import archives, figures, tokens
from marship.engines.standalone.host import run
from marship.engines.standalone.settings import HostSettings, split
from marship.errors import LoadError, MarshipError, SealError, SignatureError, UsageError
from marship.packaging.step import PackageSettings, package
from marship.trust import signature
from namespaces import UNSHARE
from prometheus import promtool
from signed import FILES, make_key, trusting, write
from versions import linear
from waiting import until

pytestmark = pytest.mark.slow

OPEN = "--no-tokens"
FREE = HostSettings(address="127.0.0.1:0", metrics_address="127.0.0.1:0", no_tokens=True)
SLOW = """
import os, pathlib, time
from marship.serving.handler import OnnxHandler


class Slow(OnnxHandler):
    def decode(self, request):
        if request.header("x-slow"):
            pathlib.Path(os.environ["BEGUN"]).touch()
            time.sleep(2)  # as a model that takes long
        return super().decode(request)
"""
SLOW_REQUEST = (
    b"POST /predictions/lin HTTP/1.1\r\nHost: h\r\nX-Slow: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n[[1,2,3]]"
)


def packed(folder: Path, name: str = "lin", code: str | None = None, **settings: object) -> Path:
    """The linear model with a handler of this code, or the shipped one."""
    folder.mkdir(exist_ok=True, parents=True)
    handler = None
    if code is not None:
        handler = folder / f"{name}_handler.py"
        handler.write_text(code)
    model = linear(folder / f"{name}.onnx", 1)
    return package(model, PackageSettings(model_store=folder, handler=handler, **settings))


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The linear model as it is packed by default."""
    return packed(tmp_path_factory.mktemp("lin"))


@pytest.fixture(scope="module")
def slow_mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose requests with a header take two seconds."""
    return packed(tmp_path_factory.mktemp("slow"), code=SLOW)


def test_an_archive_answers_like_a_worker_of_torchserve(mar: Path, tmp_path: Path) -> None:
    """Both protocols, tokens, probes and figures; nothing but the home is written to."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    words = (mar, "--require-token", tmp_path / "token", "--workers", "2")
    with Hosted(tmp_path / "home", *words) as host:
        host.listens()
        assert host.get("/v2/health/live")[0] == 200
        host.ready()

        def ask(path: str, body: object) -> tuple[int, bytes]:
            return exchange(host.address, "POST", path, body, TOKEN)

        assert ask("/predictions/lin", [[1, 2, 3]]) == (200, b"[[16.0,22.0]]")
        tensor = {"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        status, body = ask("/v2/models/lin/infer", {"inputs": [tensor]})
        assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [16, 22])
        assert ask("/predictions/lin", [[1, 2]])[0] == 400
        assert ask("/predictions/other", [[1, 2]])[0] == 404
        assert exchange(host.address, "POST", "/predictions/lin", [[1, 2, 3]])[0] == 401
        assert host.get("/v2/models/lin/ready")[0] == 200
        until(lambda: 'marship_requests_total{model_name="lin"' in host.page(), 20, "figures")
        assert 'marship_workers{model_name="lin",model_version="1.0"} 2' in host.page()
        times = (
            'marship_request_duration_seconds_count{model_name="lin",model_version="1.0",code="ok"}'
        )
        until(lambda: f"{times} 2.0" in host.page(), 20, "the times")
        assert promtool(["check", "metrics"], host.page().encode()) == (0, "")
        (tmp_path / "token").write_text("another-token-of-24-signs")
        until(lambda: ask("/predictions/lin", [[1, 2, 3]])[0] == 401, 20, "a new token")
        host.terminate()
        assert host.wait() == 0
    assert not (tmp_path / "home" / "tmp").exists()
    assert not (tmp_path / "home" / "key_file.json").exists()


RESTRICTED = """
mount -t tmpfs none "$0" && mount -o remount,ro,bind / &&
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def test_a_host_writes_below_its_home_alone(mar: Path, tmp_path: Path) -> None:
    """It serves without any rights, below a root that is read-only."""
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel lets only root mount a file system")
    (tmp_path / "run").mkdir()
    before = (*UNSHARE, "sh", "-c", RESTRICTED, str(tmp_path / "run"))
    words = ("--home", tmp_path / "run" / "home", mar, OPEN)
    with Hosted(tmp_path / "log", *words, before=before) as host:
        host.ready()
        assert exchange(host.address, "POST", "/predictions/lin", [[1, 2, 3]])[0] == 200
        assert "CapEff:\t0000000000000000" in Path(f"/proc/{host.process.pid}/status").read_text()
        host.terminate()
        assert host.wait() == 0


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_sigterm_under_load_loses_nothing(mar: Path, tmp_path: Path, connection: str) -> None:
    """Every request that was sent has its response; the next connection is refused."""
    with (
        Hosted(tmp_path / "one", mar, OPEN) as first,
        Hosted(tmp_path / "two", mar, OPEN) as second,
    ):
        first.ready()
        second.ready()
        addresses = [first.address, second.address]
        load = Load(addresses, "/predictions/lin", [[1, 2, 3]], 8, Connection=connection)
        until(lambda: load.answered > 200, 60, "200 responses")
        first.terminate()
        assert first.wait(30) == 0
        before = load.answered
        until(lambda: load.answered > before + 100, 60, "responses of the other")
        load.stop()
    assert load.lost == []
    assert load.closes >= 8
    assert "without" not in first.text()


def test_what_is_under_way_is_finished_within_the_grace_period(
    slow_mar: Path, tmp_path: Path
) -> None:
    """A request of two seconds is answered after SIGTERM, and readiness says no meanwhile."""
    begun = tmp_path / "begun"
    with Hosted(tmp_path / "home", slow_mar, OPEN, BEGUN=str(begun)) as host:
        host.ready()
        probe = socket.create_connection(host.address, timeout=30)
        line = socket.create_connection(host.address, timeout=30)
        line.sendall(SLOW_REQUEST)
        until(begun.exists, 20, "a request that is under way")
        host.terminate()
        until(lambda: refuses(host.address), 20, "no new clients")
        probe.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n")
        assert probe.makefile("rb").read().startswith(b"HTTP/1.1 503")
        answer = line.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"[[16.0,22.0]]")
        assert host.wait(30) == 0
        for one in (probe, line):
            one.close()


def refuses(address: tuple[str, int]) -> bool:
    """Whether nobody can connect; handshakes are dropped for a moment, then refused."""
    try:
        socket.create_connection(address, timeout=0.5).close()
    except (ConnectionRefusedError, TimeoutError):
        return True
    return False


def test_the_grace_period_ends(slow_mar: Path, tmp_path: Path) -> None:
    """What takes longer is cut off, and the log says how many."""
    begun = tmp_path / "begun"
    words = (slow_mar, OPEN, "--grace-s", "0.2")
    with Hosted(tmp_path / "home", *words, BEGUN=str(begun)) as host:
        host.ready()
        with socket.create_connection(host.address, timeout=30) as line:
            line.sendall(SLOW_REQUEST)
            until(begun.exists, 20, "a request that is under way")
            host.terminate()
            assert host.wait(30) == 0
    assert "got 1 without" in host.text()


def test_a_worker_that_dies_is_started_again(mar: Path, tmp_path: Path) -> None:
    """Readiness says no until the golden cases were replayed again."""
    with Hosted(tmp_path / "home", mar, OPEN) as host:
        host.ready()
        (worker,) = psutil.Process(host.process.pid).children()
        worker.kill()
        until(lambda: host.get("/v2/health/ready")[0] == 503, 20, "a host that is not ready")
        host.ready()
        assert exchange(host.address, "POST", "/predictions/lin", [[1, 2, 3]])[0] == 200
        assert "signal 9" in host.text()


def test_workers_end_with_a_host_that_is_killed(mar: Path, tmp_path: Path) -> None:
    """None is left, and the next host starts in the same home."""
    with Hosted(tmp_path / "home", mar, OPEN) as host:
        host.ready()
        workers = psutil.Process(host.process.pid).children()
        host.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
    with Hosted(tmp_path / "home", mar, OPEN) as host:
        host.ready()


def test_only_what_a_pinned_key_has_signed_is_served(mar: Path, tmp_path: Path) -> None:
    """An archive that is unsigned, or changed since, ends the start with one line."""
    keys = tmp_path / "keys"
    key = make_key(keys)
    trust = trusting(tmp_path / "trust", key).folder
    own = tmp_path / "lin.mar"
    own.write_bytes(mar.read_bytes())
    with Hosted(tmp_path / "unsigned", own, OPEN, "--trust", trust) as host:
        assert host.wait() == 1
        assert "error (signature)" in host.text()
    signature.sign(own, key)
    with Hosted(tmp_path / "home", own, OPEN, "--trust", trust) as host:
        host.ready()


def test_an_archive_is_fetched_and_served_if_a_pinned_key_has_signed_it(
    mar: Path, tmp_path: Path
) -> None:
    """Not before: without the signature nothing of it is served."""
    store = tmp_path / "store"
    store.mkdir()
    own = store / "lin.mar"
    own.write_bytes(mar.read_bytes())
    key = make_key(tmp_path / "keys")
    trust = trusting(tmp_path / "trust", key).folder
    handler = partial(SimpleHTTPRequestHandler, directory=str(store))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/lin.mar"
        with pytest.raises(SignatureError):
            run([url], replace(FREE, home=tmp_path / "home", trust=trust))
        signature.sign(own, key)
        with Hosted(tmp_path / "home", url, OPEN, "--trust", trust) as host:
            host.ready()
            assert exchange(host.address, "POST", "/predictions/lin", [[1, 2, 3]])[0] == 200
        server.shutdown()


def test_a_sealed_model_is_opened_with_the_key_of_a_variable(tmp_path: Path) -> None:
    """As a Secret gives it; without the key the host says so."""
    key = "ab" * 32
    (tmp_path / "key").write_text(key)
    (tmp_path / "key").chmod(0o600)
    mar = packed(tmp_path / "lin", seal=f"file:{tmp_path / 'key'}")
    with pytest.raises(SealError):
        run([str(mar)], replace(FREE, home=tmp_path / "home"))
    words = (mar, OPEN, "--seal-key", "env:SECRET")
    with Hosted(tmp_path / "home", *words, SECRET=key) as host:
        host.ready()
        assert exchange(host.address, "POST", "/predictions/lin", [[1, 2, 3]])[0] == 200


FAULTS = [
    ("from marship.serving.handler import OnnxHandler\nimport none_such\n", "none_such"),
    ("from marship.serving.handler import OnnxHandler\n", "must define one class"),
    (SLOW.replace("decode", "initialize"), "overrides initialize"),
    (SLOW.replace("def decode(self, request):", "def prepare(self):\n        1 / 0"), "division"),
]


@pytest.mark.parametrize(("code", "said"), FAULTS, ids=["import", "class", "own", "prepare"])
def test_a_model_that_cannot_load_ends_the_host(
    mar: Path, tmp_path: Path, code: str, said: str
) -> None:
    """With its own error, which Kubernetes shows as the reason."""
    broken = tmp_path / "lin.mar"
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(broken, "w") as target:
        for info in source.infolist():
            data = code.encode() if info.filename == "onnx_handler.py" else source.read(info)
            target.writestr(info.filename, data)
    with pytest.raises(LoadError, match=said):
        run([str(broken)], replace(FREE, home=tmp_path / "home"))


def test_wrong_words_are_refused(mar: Path, tmp_path: Path) -> None:
    """Before clients can connect."""
    (tmp_path / "short").write_text("abc")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.mar").write_bytes(b"junk")
    lin, none = str(mar), tmp_path / "none"
    for given, changed, said in [
        ([lin], {"no_tokens": False}, "--require-token and --no-tokens must be given, got neither"),
        ([lin], {"require_token": none}, "got both"),
        ([lin], {"no_tokens": False, "require_token": none}, "must be readable"),
        ([lin], {"no_tokens": False, "require_token": tmp_path / "short"}, "at least 16"),
        ([str(none)], {}, "none must be a .mar file"),
        ([str(tmp_path / "empty")], {}, "must hold .mar files"),
        ([str(tmp_path / "junk.mar")], {}, "junk.mar must be"),
        ([lin, lin], {}, "one version of each model"),
        (["http://127.0.0.1:9/lin.mar"], {}, "pinned key"),
        ([lin], {"address": "8080"}, "must be HOST:PORT"),
        ([lin], {"address": "192.0.2.1:80"}, "must be free"),
    ]:
        settings = replace(FREE, home=tmp_path / "home", **changed)
        with pytest.raises(MarshipError, match=said):
            run(given, settings)
        assert not (tmp_path / "home" / "tmp").exists()


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    """As of every command."""
    with Hosted(tmp_path / "home", tmp_path / "none.mar", OPEN) as host:
        assert host.wait() == 2
        (line,) = host.text().strip().splitlines()
        assert line.startswith("error (usage)")


def test_bytecode_is_taken_for_modules_that_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes it, and compiles the one that differs."""
    own = tmp_path / "marship"
    own.mkdir()
    for name in ("same", "other"):
        (own / f"{name}.py").write_text(f"VALUE = '{name}'\n")
        py_compile.compile(str(own / f"{name}.py"))
    monkeypatch.setattr(archives, "_OWN", own)
    carried = {"marship/same.py": b"VALUE = 'same'\n", "marship/other.py": b"VALUE = 'OTHER'\n"}
    mar = write(tmp_path / "lin.mar", {**FILES, **carried})
    model = archives.prepare(mar, None, tmp_path / "out")
    copy = model.folder / "marship"
    assert [file.name.split(".")[0] for file in (copy / "__pycache__").iterdir()] == ["same"]
    known = sorted(file.read_bytes() for file in (copy / "__pycache__").iterdir())
    code = "import same, other; print(same.VALUE, other.VALUE)"
    words = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, '{copy}'); {code}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "same OTHER\n"
    assert known[0] in [file.read_bytes() for file in (copy / "__pycache__").iterdir()]


def test_figures_add_up_and_tell_how_busy_workers_are() -> None:
    """Two workers that compute half of the time are half busy; old reports leave the window."""
    found = figures.ModelFigures('a"b', "1.0", wanted=2, ready=2)
    for second in range(100):
        spent = 1.0 if second < 50 else 0.0
        counts = [("marship_infer_seconds_total", "", spent), ("marship_errors_total", "busy", 1)]
        found.add({"counts": counts, "gauges": []}, now=float(second))
        if second == 49:
            assert found.busy == pytest.approx(0.5)
    assert found.busy == 0
    page = figures.page([found], 3).decode()
    label = 'model_name="a\\"b",model_version="1.0"'
    assert f'marship_errors_total{{{label},code="busy"}} 100' in page
    assert f"marship_infer_seconds_total{{{label}}} 50.0" in page
    assert "\nmarship_connections 3\n" in page


def test_addresses_have_a_host_and_a_port() -> None:
    """Of version 4 and 6, and by name."""
    assert split("address", "127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert split("address", "[::]:1") == ("::", 1)
    with listeners.clients("::", 0) as both:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, both.getsockname()[1]), timeout=5).close()
    for wrong in ("8080", "::1:80", "h:99999", "h:", ":80", "http://h:80"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            split("address", wrong)
    with pytest.raises(UsageError, match="both"):
        HostSettings(no_tokens=True, require_token=Path("t")).check()


def test_a_token_that_is_taken_away_stays_the_last_one(tmp_path: Path) -> None:
    """A Secret is exchanged by a link: for a moment nothing may be there."""
    source, key_file = tmp_path / "token", tmp_path / "key.json"
    source.write_text(TOKEN)
    token = tokens.TokenFile(source, key_file)
    source.unlink()
    token.renew()
    assert json.loads(key_file.read_text())["inference"]["key"] == TOKEN
    source.write_text(f"{TOKEN}2")
    token.renew()
    assert json.loads(key_file.read_text())["inference"]["key"] == f"{TOKEN}2"


def test_what_is_wrong_with_a_token_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The host looks every second; and a full disk of its own must not be the last look."""
    source, home = tmp_path / "token", tmp_path / "home"
    home.mkdir()
    source.write_text("a-token-of-22-signs---")
    token = tokens.TokenFile(source, home / "key.json")
    source.unlink()
    for _ in range(3):
        token.renew()
    source.write_text("another-of-22-signs---")
    (home / "key.json").unlink()
    (home / "key.json").mkdir()  # nothing can be written there
    for _ in range(3):
        token.renew()
    assert len(caplog.messages) == 2
    assert all("The last token stays." in text for text in caplog.messages)
    (home / "key.json").rmdir()
    token.renew()
    assert "another-of-22-signs" in (home / "key.json").read_text()


def test_a_scheme_has_no_case(tmp_path: Path) -> None:
    """RFC 3986, 3.1: what `marship image --fetch-from` takes is no path for the host."""
    for url in ("HTTP://me:hidden@x/lin.mar", "https://me:hidden@x/lin.mar"):
        with pytest.raises(UsageError, match="got a URL without --trust") as caught:
            archives.find([url], None, tmp_path)
        assert "hidden" not in str(caught.value)
