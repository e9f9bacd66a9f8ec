"""`marship serve --reload`: a saved handler takes over, and a broken one does not."""

import queue
import shutil
from pathlib import Path

import pytest

from conformance import Case, Host, ask
from marship import Client
from marship.errors import MarshipError, RolloutError, UsageError
from marship.operate.reload import Reloadable, Reloading, ReloadListener
from marship.packaging.shipped import HANDLERS
from served import bearer, serving
from versions import ROW, linear

TIMEOUT_S = 60
ADVICE = """
    def advice(self):
        return "three numbers, please"
"""


class Told(ReloadListener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: queue.Queue[str | MarshipError | OSError] = queue.Queue()

    def on_served(self, name: str, version: str) -> None:
        """Keep the version."""
        self.lines.put(f"{name} {version}")

    def on_error(self, error: MarshipError | OSError) -> None:
        """Keep the error."""
        self.lines.put(error)

    def next(self) -> str | MarshipError | OSError:
        """What is told next."""
        return self.lines.get(timeout=TIMEOUT_S)


@pytest.mark.parametrize("is_broken_first", [False, True])
def test_saves_are_served_and_broken_ones_are_told(tmp_path: Path, is_broken_first: bool) -> None:
    """What does not parse is refused, what does not load is rolled back, what does takes over."""
    store = tmp_path / "store"
    store.mkdir()
    handler = tmp_path / "mine_handler.py"
    good = (HANDLERS / "onnx_handler.py").read_text()
    handler.write_text("raise RuntimeError('early')\n" + good if is_broken_first else good)
    file = tmp_path / "package.toml"
    file.write_text(f'name = "mine"\nhandler = "{handler}"\nversion = "7"\n')
    told = Told()
    with serving(tmp_path / "home", store) as server, Client(server.home.path) as client:
        what = Reloadable(linear(tmp_path / "m.onnx", 1), file)
        reloading = Reloading(server.home.path, what, told)
        reloading.start()
        try:
            if is_broken_first:
                assert "early" in str(told.next())
                assert client.models() == []
                handler.write_text(good)
                assert told.next() == "mine 7.2"
                return
            assert told.next() == "mine 7.1"
            assert client.predict("mine", {"input": ROW}) == {"output": [[16, 22]]}
            handler.write_text(good + "\nx = = 1\n")
            assert isinstance(told.next(), UsageError)
            handler.write_text(good + "\nraise RuntimeError('at load')\n")
            error = told.next()
            assert isinstance(error, RolloutError)
            assert "RuntimeError: at load" in str(error)
            assert client.predict("mine", {"input": ROW}) == {"output": [[16, 22]]}
            new = tmp_path / "new.py"  # as many editors save
            new.write_text(good + ADVICE)
            shutil.move(new, handler)
            assert told.next() == "mine 7.4"
            host = Host(server.record.inference_url, bearer(server).removeprefix("Bearer "))
            refused = ask(host, Case("a short row", "/predictions/mine", b'{"input": [[1]]}'))
            assert b"three numbers, please" in refused.body
            assert [path.name for path in store.iterdir()] == ["mine-7.4.mar"]
        finally:
            reloading.end()
    assert not list(store.iterdir())
