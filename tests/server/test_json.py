"""`--json` prints the fields that docs/json.md lists, and nothing else to standard output."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from json_page import documented, fields, run
from marship import Client
from marship.engines.torchserve import server
from nginx import free_port


@pytest.fixture
def at(running: server.Server) -> Callable[..., Any]:
    """Run a command at the shared server."""
    return lambda *words: run(*words, "--home", running.home.path)


def test_models_on_a_server(at: Callable[..., Any], client: Client, archives: Path) -> None:
    """Registering, scaling, describing, listing, rolling out, applying, status."""
    version = fields(at("register", "lin-1.mar", "--workers", "1"), "register")
    assert (version["ready"], version["archive"]) == (1, "lin-1.mar")
    assert set(version["workers"][0]) == documented("a worker")
    assert fields(at("scale", "lin", "2"), "scale")["ready"] == 2
    (described,) = fields(at("describe", "lin"), "describe")["versions"]
    assert set(described) == documented("a version")
    listed = fields(at("models"), "models")["models"]
    (model,) = [one for one in listed if one["name"] == "lin"]
    assert fields(model, "a model")["default_version"] == "1"
    assert set(model["versions"][0]) == documented("a version")
    rolled = fields(at("rollout", "lin-2.mar", "--workers", "1"), "rollout")
    assert (rolled["new"]["version"], rolled["old_version"]) == ("2", "1")
    state = archives / "state.toml"
    state.write_text('[[model]]\narchive = "lin-2.mar"\nworkers = 2\n')
    (change,) = [c for c in fields(at("apply", state), "apply")["changes"] if c["name"] == "lin"]
    state.unlink()
    assert fields(change, "a change")["kind"] == "scale"
    assert at("apply", _empty(archives), "--dry-run")["changes"]
    found = fields(at("status"), "status")
    assert set(found["server"]) == documented("a server")
    assert any(one["name"] == "lin" for one in found["models"])
    client.unregister("lin")


def _empty(folder: Path) -> Path:
    (folder / "empty.toml").touch()
    return folder / "empty.toml"


def test_the_proxy(at: Callable[..., Any], tmp_path: Path) -> None:
    """What was written, and where it listens."""
    listen = f"127.0.0.1:{free_port()}"
    words = ("proxy", "m", "--self-signed", "--out", tmp_path / "proxy", "--listen", listen)
    assert fields(at(*words), "proxy")["listen"] == listen


def test_a_server_that_starts(store: Path, tmp_path: Path) -> None:
    """Its addresses, read by a program as soon as the server runs."""
    where = ["--home", str(tmp_path / "home")]
    words = ["serve", "--detach", "--free-ports", "--model-store", str(store), "--json", *where]
    command = [sys.executable, "-m", "marship"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    try:
        found = fields(json.loads(done.stdout), "serve")
        assert found["management_url"].startswith("http://127.0.0.1:")
    finally:
        subprocess.run([*command, "stop", *where], check=True, capture_output=True)
