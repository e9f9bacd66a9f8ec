"""operate.check: an archive loaded in a process of its own, without any server."""

import json
import os
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from marship.cli import app, tables
from marship.errors import LoadError, MarshipError, PackageError, SealError, UsageError
from marship.operate.check import Checked, check
from marship.packaging.step import PackageSettings, package
from versions import linear, spoil_golden
from waiting import until

pytestmark = pytest.mark.slow

BASE = "from marship.serving.handler import OnnxHandler\n\n\nclass Own(OnnxHandler):\n"


def packed(folder: Path, code: str | None = None, **settings: object) -> Path:
    """The linear model with a handler of this code, or the shipped one."""
    folder.mkdir(exist_ok=True)
    handler = None
    if code is not None:
        handler = folder / "own_handler.py"
        handler.write_text(code)
    model = linear(folder / "lin.onnx", 1)
    return package(model, PackageSettings(model_store=folder, handler=handler, **settings))


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The linear model as it is packed by default."""
    return packed(tmp_path_factory.mktemp("lin"))


def written(folder: Path, value: object) -> Path:
    """A request in a file."""
    path = folder / "request.json"
    path.write_text(json.dumps(value))
    return path


def test_an_archive_is_loaded_and_its_golden_cases_replayed(mar: Path, tmp_path: Path) -> None:
    """Times, memory and the response to a request; paths may be texts."""
    done = check(str(mar), str(written(tmp_path, [[1, 2, 3]])))
    assert (done.name, done.version) == ("lin", "1.0")
    assert done.golden_cases > 0
    assert 0 < done.golden_ms < 1000 * done.load_s
    assert 0 < done.before_bytes < done.loaded_bytes <= done.peak_bytes
    assert done.response is not None
    assert (done.response.status, json.loads(done.response.body)) == (200, [[16, 22]])
    assert done.response.size_bytes == len(done.response.body)


def test_an_archive_without_golden_cases_is_said_to_have_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a party's, whose answers are held against others' in each session."""
    tables.show_checked(Checked("m", "1.0", "h.py", 1.0, 1, 0, 0.0, 1, 2, 3))
    shown = capsys.readouterr().out
    assert "none in the archive" in shown
    assert "within the tolerance" not in shown
    assert "one call" not in shown


def test_no_server_need_be_installed(
    mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler loads and responds where TorchServe's package cannot be imported."""
    (tmp_path / "ts").mkdir()
    (tmp_path / "ts" / "__init__.py").write_text("raise ImportError('no TorchServe here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = check(mar, written(tmp_path, [[1, 2, 3]]))
    assert done.response is not None
    assert done.response.status == 200


def test_the_archives_own_copy_of_marship_is_loaded(tmp_path: Path) -> None:
    """What a worker imports is what is tried, whatever is installed."""
    code = BASE + (
        "    def advice(self):\n"
        "        import marship.serving.handler, os\n"
        "        own = os.path.dirname(os.path.abspath(__file__))\n"
        "        return marship.serving.handler.__file__.startswith(own)\n"
    )
    done = check(packed(tmp_path / "own", code), written(tmp_path, "no tensor"))
    assert done.response is not None
    assert done.response.status == 400
    assert json.loads(done.response.body)["expects"] is True


def test_the_limit_of_a_batch_is_the_archives(tmp_path: Path) -> None:
    """A handler sees the response timeout that it was packed with."""
    code = BASE + "    def prepare(self):\n        assert self.timeout_s == 7.0\n"
    check(packed(tmp_path / "own", code, response_timeout_s=7))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_package\n" + BASE + "    pass\n", "no_such_package'. Install it for"),
        (BASE + "    pass\n\n\nclass Other(Own):\n    pass\n", "define one class, got: 2 classes"),
        (BASE + "    def prepare(self):\n        raise KeyError('k')\n", "must load, got KeyError"),
        (BASE + "    def prepare(self):\n        import os; os._exit(3)\n", "exit code 3"),
        (BASE + "    def prepare(self):\n        import os; os.abort()\n", "a crash (SIGABRT)"),
        (BASE + "    def prepare(self):\n        raise SystemExit(0)\n", "exit code 0"),
        (
            BASE + "    def prepare(self):\n        import os; os.kill(os.getpid(), 40)\n",
            "a crash (signal 40)",
        ),
        (
            "class Own:\n    def initialize(self, context): ...\n    def handle(self, d, c): ...\n",
            "must be a handler of marship",
        ),
    ],
)
def test_a_handler_that_does_not_load_is_reported(tmp_path: Path, code: str, words: str) -> None:
    """One line with the reason, whatever the process came to."""
    mar = packed(tmp_path / "own", BASE + "    pass\n")
    extracted = tmp_path / "extracted"
    shutil.unpack_archive(mar, extracted, "zip")
    (extracted / "own_handler.py").write_text(code)
    changed = Path(shutil.make_archive(str(tmp_path / "changed"), "zip", extracted))
    with pytest.raises(LoadError) as caught:
        check(changed)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_handler_that_never_ends_loading_is_ended(tmp_path: Path) -> None:
    """After the archive's startupTimeout."""
    code = BASE + "    def prepare(self):\n        import threading; threading.Event().wait()\n"
    with pytest.raises(LoadError, match="within its startupTimeout of 5 s"):
        check(packed(tmp_path / "own", code, startup_timeout_s=5))


@pytest.mark.parametrize("limit", ["''", "soon", "-1", "[1]"])
def test_a_limit_that_is_none_is_reported(tmp_path: Path, limit: str) -> None:
    """Of a file that somebody changed by hand."""
    mar = packed(tmp_path / "own")
    extracted = tmp_path / "extracted"
    shutil.unpack_archive(mar, extracted, "zip")
    config = extracted / "model-config.yaml"
    config.write_text(config.read_text().replace("Timeout: 120", f"Timeout: {limit}"))
    changed = Path(shutil.make_archive(str(tmp_path / "changed"), "zip", extracted))
    with pytest.raises(LoadError, match=r"model-config\.yaml must be a number"):
        check(changed)


def test_a_handler_may_name_the_type_of_its_context(tmp_path: Path) -> None:
    """As handlers written for earlier versions do."""
    code = "from marship.serving.handler import Context\n" + BASE + "    needs: type = Context\n"
    assert check(packed(tmp_path / "own", code)).golden_cases > 0


def test_modules_are_found_wherever_python_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first folder of PYTHONPATH too: packages of pip install --target lie there."""
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "lying_there.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "words"))
    assert check(packed(tmp_path / "own", "import lying_there\n" + BASE + "    pass\n")).name


def test_what_a_handler_starts_ends_with_the_check(tmp_path: Path) -> None:
    """A process and a thread that never end are neither waited for nor left."""
    code = BASE + (
        "    def prepare(self):\n"
        "        import pathlib, subprocess, threading\n"
        "        child = subprocess.Popen(['sleep', '1000'])\n"
        f"        pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "        threading.Thread(target=threading.Event().wait).start()\n"
    )
    assert check(packed(tmp_path / "own", code)).golden_cases > 0
    child = int((tmp_path / "pid").read_text())

    def has_ended() -> bool:  # what is killed runs on for a moment
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        return True

    until(has_ended, 10, "the end of the handler's process")


def test_golden_cases_that_differ_are_reported(tmp_path: Path) -> None:
    """As a worker would refuse to serve."""
    mar = packed(tmp_path / "own")
    spoil_golden(mar)
    with pytest.raises(LoadError, match="golden case 0"):
        check(mar)


def test_a_sealed_archive_needs_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key comes from where a worker takes it, and the error names the option."""
    monkeypatch.setenv("CHECK_KEY", os.urandom(32).hex())
    mar = packed(tmp_path / "own", seal="env:CHECK_KEY")
    monkeypatch.setenv("MARSHIP_SEAL_KEY", "env:CHECK_KEY")
    assert check(mar).golden_cases > 0
    monkeypatch.delenv("MARSHIP_SEAL_KEY")
    with pytest.raises(MarshipError, match="MARSHIP_SEAL_KEY"):
        check(mar)


def test_what_a_handler_prints_is_no_part_of_the_result(tmp_path: Path) -> None:
    """Standard output of the process is for the result alone."""
    code = BASE + "    def prepare(self):\n        print('{', flush=True)\n"
    assert check(packed(tmp_path / "own", code)).name == "lin"


def test_npy_is_known_by_the_files_name(mar: Path, tmp_path: Path) -> None:
    """Or the type is given."""
    path = tmp_path / "row.npy"
    np.save(path, np.ones((1, 3), np.float32))
    done = check(mar, path)
    assert done.response is not None
    assert done.response.content_type == "application/x-npy"


@pytest.mark.parametrize("name", ["none.mar", "text.mar"])
def test_what_is_no_archive_is_reported(tmp_path: Path, name: str) -> None:
    """A file that is not there, and one that is no archive."""
    (tmp_path / "text.mar").write_text("text")
    with pytest.raises((UsageError, PackageError)):
        check(tmp_path / name)


def test_a_request_that_is_not_there_is_reported(mar: Path, tmp_path: Path) -> None:
    """Before anything is loaded."""
    with pytest.raises(UsageError, match=r"none\.json must be a file with a request's body"):
        check(mar, tmp_path / "none.json")


def test_an_archive_of_an_earlier_marship_is_told_apart() -> None:
    """Its copy of marship loads in a server alone; the message says what to do."""
    earlier = Path(__file__).parents[2] / "earlier" / "diabetes.mar"
    with pytest.raises(LoadError, match=r"got an older one\. Package diabetes again with: marship"):
        check(earlier)


def test_how_to_give_the_key_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that `check` reads; its file may be named relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARSHIP_SEAL_KEY", raising=False)
    Path("key").write_text(os.urandom(32).hex())
    Path("key").chmod(0o600)
    mar = packed(tmp_path / "own", seal="file:key")
    advice = rf"got none\. Run: MARSHIP_SEAL_KEY=file:PATH marship check {mar}$"
    with pytest.raises(SealError, match=advice):
        check(mar)
    monkeypatch.setenv("MARSHIP_SEAL_KEY", "file:key")
    assert check(mar).golden_cases > 0
    monkeypatch.setenv("MARSHIP_SEAL_KEY", "file:absent")
    with pytest.raises(SealError, match="absent"):
        check(mar)


def test_the_command_prints_what_it_found(mar: Path, tmp_path: Path) -> None:
    """A person reads times and memory; the response's body is not printed whole."""
    request = written(tmp_path, [[1, 2, 3]] * 200)
    done = CliRunner().invoke(app, ["check", str(mar), "--request", str(request)])
    assert done.exit_code == 0, done.output
    assert "all within the tolerance" in done.output
    assert "200 application/json" in done.output
    assert "..." in done.output


def test_the_command_fails_where_the_response_is_an_error(mar: Path, tmp_path: Path) -> None:
    """It prints the response, and exits with 1."""
    words = ["check", str(mar), "--request", str(written(tmp_path, [[1, 2]])), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["response"]["status"] == 400


def test_a_handler_that_needs_a_servers_context_is_reported(tmp_path: Path) -> None:
    """What it does in initialize would be passed over."""
    code = BASE + "    def initialize(self, context):\n        super().initialize(context)\n"
    with pytest.raises(LoadError, match="overrides initialize"):
        check(packed(tmp_path / "own", code))


def test_the_limits_are_those_of_a_server_as_shipped(tmp_path: Path) -> None:
    """A response of 7 MB is within max_response_size of config.properties."""
    code = BASE + "    def encode(self, outputs, state):\n        return Reply(bytes(7_000_000))\n"
    code = code.replace("import OnnxHandler", "import OnnxHandler, Reply")
    done = check(packed(tmp_path / "own", code), written(tmp_path, [[1, 2, 3]]))
    assert done.response is not None
    assert (done.response.status, done.response.size_bytes) == (200, 7_000_000)


def test_the_reason_of_an_internal_error_is_shown(tmp_path: Path) -> None:
    """The response holds a reference alone; the error is in the worker's log."""
    code = BASE + "    def decode(self, request):\n        raise KeyError('no such user')\n"
    mar, request = packed(tmp_path / "own", code), written(tmp_path, [[1, 2, 3]])
    done = check(mar, request)
    assert done.response is not None
    assert done.response.status == 500
    assert done.response.log.count("KeyError: 'no such user'") == 1
    assert done.response.log.count("reference") == 1
    shown = CliRunner().invoke(app, ["check", str(mar), "--request", str(request)])
    assert shown.exit_code == 1
    assert "KeyError: 'no such user'" in shown.output


def test_a_response_without_a_fault_has_no_log(mar: Path, tmp_path: Path) -> None:
    """Nor one that is the client's error."""
    for body, status in (([[1, 2, 3]], 200), ("no tensor", 400)):
        done = check(mar, written(tmp_path, body))
        assert done.response is not None
        assert (done.response.status, done.response.log) == (status, "")


def test_a_handler_of_an_earlier_form_is_named(tmp_path: Path) -> None:
    """`answer(requests, send)` is called by nothing: its responses would never be sent."""
    earlier = BASE + "    def answer(self, requests, send):\n        return b''\n"
    with pytest.raises(LoadError, match=r"Own must override .*, got answer\(requests, send\)"):
        check(packed(tmp_path / "earlier", earlier))
    own = BASE + "    def answer(self, question):\n        return 42\n"
    assert check(packed(tmp_path / "own", own)).golden_cases > 0


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ("os._exit(0)", "exit code 0"),
        ("sys.exit('bye')", "bye"),
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
    ],
)
def test_a_request_that_ends_the_process_is_not_blamed_on_loading(
    tmp_path: Path, ends: str, words: str
) -> None:
    """It loaded; the request ended it."""
    code = f"import os, sys\n{BASE}    def decode(self, request):\n        {ends}\n"
    mar = packed(tmp_path / "store", code)
    assert check(mar).golden_cases > 0
    with pytest.raises(LoadError, match=f"must respond to the request.*{words}"):
        check(mar, written(tmp_path, [[1, 2, 3]]))


@pytest.mark.parametrize(
    "report", ['{"load_s":0}', "[1]", '{"response":5}', '{"code":"x"}', "", "{", '{"name":"other"}']
)
def test_a_report_that_the_archives_code_wrote_is_an_error(tmp_path: Path, report: str) -> None:
    """Whatever it is, twice or once."""
    for lines in (report, f"{report}\n{report}"):
        code = (
            f"import os\n{BASE}    def prepare(self):\n"
            f"        os.write(3, {lines.encode()!r})\n        os._exit(0)\n"
        )
        with pytest.raises(LoadError, match="must load"):
            check(packed(tmp_path / "store", code))


def test_memory_that_ends_is_said_in_a_sentence(tmp_path: Path) -> None:
    """The error has no text of its own."""
    code = f"{BASE}    def prepare(self):\n        raise MemoryError\n"
    with pytest.raises(LoadError, match=r"must load, got MemoryError\.$"):
        check(packed(tmp_path / "store", code))


def test_a_handler_that_the_server_brings_is_named(mar: Path, tmp_path: Path) -> None:
    """Only a server can load it."""
    foreign = tmp_path / "foreign.mar"
    with zipfile.ZipFile(mar) as read, zipfile.ZipFile(foreign, "w") as made:
        for item in read.infolist():
            data = read.read(item)
            if item.filename == "MAR-INF/MANIFEST.json":
                manifest = json.loads(data)
                manifest["model"]["handler"] = "image_classifier"
                data = json.dumps(manifest).encode()
            made.writestr(item, data)
    with pytest.raises(LoadError, match="image_classifier must be in the archive"):
        check(foreign)
