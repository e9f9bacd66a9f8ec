"""The commands as a whole: which flags each has, whatever it does."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from json_page import documented, fields, run
from marship.cli import app
from marship.errors import TokenError

AT_HOME = {"serve", "host", "stop", "logs", "proxy", "autoscale"}
"""What starts, ends or reads what lies in a server's folder, or runs beside it."""
LINES = {"host", "stop", "logs", "set-default", "unregister", "party", "autoscale"}
"""What prints no table."""
ELSEWHERE = {"--url", "--token", "--token-file", "--ca"}

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def flags(name: str) -> set[str]:
    """The options of a command."""
    return {flag for parameter in COMMANDS[name].params for flag in parameter.opts}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_what_talks_to_a_server_takes_its_address(name: str) -> None:
    """All flags of one elsewhere, or none; only what works in the folder has --home alone."""
    found = flags(name)
    talks = "--home" in found and name not in AT_HOME
    assert found & ELSEWHERE == (ELSEWHERE if talks else set())


def test_every_command_is_on_the_page() -> None:
    """Each has `--json` and a row, or prints no table."""
    with_flag = {name for name in COMMANDS if "--json" in flags(name)}
    assert with_flag == set(COMMANDS) - LINES - {"sbom", "openapi"}
    for name in with_flag - {"predict"}:
        assert documented(name)


def test_an_archive_as_json(linear_onnx: Path, tmp_path: Path) -> None:
    """Packing, inspecting, changing settings, keys, signing and verifying."""
    made = fields(run("package", linear_onnx, "--model-store", tmp_path), "package")
    archive = Path(made["path"])
    assert (made["name"], made["size_bytes"]) == ("linear", archive.stat().st_size)
    assert fields(run("inspect", archive), "inspect")["contract"]["inputs"][0]["name"] == "input"
    assert not fields(run("configure", archive), "configure")["is_changed"]
    pair = fields(run("keygen", "k", "--out", tmp_path / "keys"), "keygen")
    signed = fields(run("sign", archive, "--key", pair["private"]), "sign")
    verified = fields(run("verify", archive, "--trust", tmp_path / "keys"), "verify")
    assert verified["key"] == signed["key"] == pair["key"]
    assert "MAR-INF/MANIFEST.json" in verified["files"]


class Refusing(BaseHTTPRequestHandler):
    """A server that accepts no token."""

    def do_GET(self) -> None:
        """Refuse as TorchServe does."""
        body = b'{"code": 400, "type": "InvalidKeyException", "message": "m"}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of such a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


KEYS = '{"inference": {"key": "a"}, "management": {"key": "b"}}'


@pytest.mark.parametrize(
    ("flag", "text", "advice"),
    [
        ("--token-file", "stale", "or pass none where"),
        ("--token-file", KEYS, "or pass none where"),
        ("--token", "", "or pass none where"),
        (None, "", "or unset MARSHIP_MANAGEMENT_TOKEN where"),
    ],
)
def test_a_refused_token_is_reported_with_where_it_came_from(
    refusing: str, tmp_path: Path, flag: str | None, text: str, advice: str
) -> None:
    """The file is named if it held the token, and the variable if that did."""
    file, named = tmp_path / "token", flag == "--token-file"
    file.write_text(text)
    words = ["models", "--url", refusing]
    words += [flag, str(file) if named else "stale"] if flag else []
    known = {} if flag else {"MARSHIP_MANAGEMENT_TOKEN": "stale"}
    done = CliRunner().invoke(app, words, env=known)
    assert isinstance(done.exception, TokenError)
    assert (str(file) in str(done.exception)) == named
    assert advice in str(done.exception)
    assert "the management token must be the server's" in str(done.exception)


def without_roots_rights(*command: str) -> list[str]:
    """A command that may read what its user may, even where that is root."""
    limit = "--bounding-set=-dac_override,-dac_read_search"
    return ["setpriv", limit, *command] if os.geteuid() == 0 else list(command)


def test_words_that_nobody_means_end_in_one_line(tmp_path: Path) -> None:
    """On an ASCII terminal: names too long or not ASCII, files that may not be read, odd numbers.

    What is wrong with such a word is a usage error with advice, never "internal" or a traceback.
    """
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "file").write_text("x")
    (tmp_path / "file").write_text("x")
    if os.geteuid() == 0:
        os.chown(tmp_path / "locked", 65534, 65534)
    (tmp_path / "locked").chmod(0o700 if os.geteuid() == 0 else 0)
    program = Path(__file__).parents[1] / "hostile_words.py"
    hidden = {name: value for name, value in os.environ.items() if "MARSHIP" not in name}
    try:
        done = subprocess.run(
            without_roots_rights(sys.executable, str(program)),
            cwd=tmp_path,
            env=hidden,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        (tmp_path / "locked").chmod(0o700)
    results = json.loads(done.stdout)
    assert len({words[0] for words, _, _ in results}) == len(COMMANDS)
    for words, code, told in results:
        assert code is not None, (words, told)
        errors = [line for line in told.splitlines() if line.startswith("error (")]
        finds = words[0] == "doctor" and code == 1  # ports may be taken by others meanwhile
        assert len(errors) == (code != 0) or (finds and not errors), (words, told)
        assert not any(line.startswith("error (internal)") for line in errors), (words, told)
        if any("locked/file" in word for word in words) and "Permission denied" in told:
            assert code == 2, (words, told)


@pytest.mark.parametrize("command", ["openapi", "client", "logs"])
def test_models_are_completed(command: str) -> None:
    """Where a model of the server is named, the shell asks the server; not for other values."""
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    completes = {one.name: one._custom_shell_complete is not None for one in found.params}
    assert completes["model"]
    assert not completes.get("home", False)
