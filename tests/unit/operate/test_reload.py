"""What `marship serve --reload` follows, and how it is asked."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from typer.testing import CliRunner

from marship.cli import app
from marship.errors import MarshipError, NotFoundError, RolloutError, UsageError
from marship.operate import reload
from marship.operate.reload import Reloadable, ReloadListener
from marship.operate.rollout import RolloutListener
from marship.packaging import shipped
from marship.packaging.settings import PackageSettings
from marship.storage import write_json


def test_the_files_of_an_archive_are_followed(tmp_path: Path) -> None:
    """The model's, and those that the settings name; a change of any is seen."""
    names = ("m.onnx", "h.py", "labels.json", "ask.json", "encoder.onnx")
    model, handler, asset, request, graph = (tmp_path / name for name in names)
    for path in (model, handler, asset, request, graph):
        path.touch()
    file = tmp_path / "package.toml"
    file.write_text(
        f'handler = "{handler}"\nasset = ["{asset}"]\ngolden_request = ["{request}"]\n'
        f'graph = ["encoder={graph}"]\n'
    )
    what = Reloadable(model, file)
    state = what.state()
    assert set(state) == {model, file, handler, asset, request, graph}
    for path in state:
        path.write_text(path.read_text() + "\n")
        changed = what.state()
        assert changed != state
        state = changed


def test_a_runs_own_handler_is_followed(tmp_path: Path) -> None:
    """The one that its recipe names, beside all files of the run folder."""
    handler = tmp_path / "mine_handler.py"
    handler.touch()
    run = tmp_path / "run"
    run.mkdir()
    recipe = {"name": "m", "build": "b.py:f", "bounds": {}}
    for named, followed in (
        (str(handler), handler),
        ("onnx_handler.py", shipped.handler("onnx_handler.py")),
    ):
        write_json(run / "recipe.json", {**recipe, "handler": named})
        assert set(Reloadable(run).state()) == {run / "recipe.json", followed}


def test_what_is_broken_is_still_followed(tmp_path: Path) -> None:
    """Settings that do not parse, and a file that an editor has just moved away."""
    model, file = tmp_path / "m.onnx", tmp_path / "package.toml"
    model.touch()
    file.write_text("handler = [")
    what = Reloadable(model, file)
    assert set(what.state()) == {model, file}
    model.unlink()
    assert set(what.state()) == {file}
    with pytest.raises(UsageError, match="must be a readable TOML file"):
        what.settings()


@pytest.mark.parametrize("is_first", [True, False], ids=["first version", "rollout"])
def test_a_newer_save_ends_a_load_that_hangs(
    is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word: the newer one is served, and nobody waits for the timeout of the other."""
    model, store, told = tmp_path / "m.onnx", tmp_path / "store", queue.Queue[object]()
    model.write_text("hangs")
    store.mkdir()
    loading = threading.Event()

    def package(source: Path, settings: PackageSettings) -> Path:
        path = store / f"m-{settings.version}.mar"
        path.write_text(source.read_text())
        return path

    def load(archive: str, on_wait: Callable[[int, int], None]) -> Any:
        while (store / archive).read_text() == "hangs":
            loading.set()
            on_wait(0, 1)
        return MagicMock(version=archive)

    def roll(_client: object, archive: str, *, watcher: RolloutListener) -> Any:
        if is_first:
            raise NotFoundError("no such model")
        try:
            return MagicMock(new=load(archive, watcher.on_wait))
        except MarshipError as error:
            raise RolloutError("the new version must load") from error

    client = MagicMock(model_store=store, register=load)
    client.__enter__.return_value = client
    monkeypatch.setattr(reload, "Client", lambda _home: client)
    monkeypatch.setattr(reload, "rollout", roll)
    monkeypatch.setattr(reload.step, "package", package)
    listener = ReloadListener()
    listener.on_served = lambda _name, version: told.put(version)  # type: ignore[method-assign]
    listener.on_error = told.put  # type: ignore[method-assign]
    reloading = reload.Reloading(tmp_path, Reloadable(model), listener)
    reloading.start()
    try:
        assert loading.wait(20)
        model.write_text("loads, mended")
        assert told.get(timeout=20) == "m-1.0.2.mar"
        loading.clear()
        model.write_text("hangs")
        assert loading.wait(20)
    finally:
        reloading.end()  # ends a load, too
    assert told.empty()
    assert not list(store.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reload", "m.onnx", "--detach"], "--reload must come without --detach"),
        (["--reload", "m.onnx", "--trust", "t"], "--reload must come without --trust"),
        (["--reload", "m.onnx", "--profile", "production"], "must come without --profile"),
        (["--reload-package", "p.toml"], "--reload-package must come with --reload"),
        (["--reload", "m.onnx"], "m.onnx must be a run folder or an ONNX file, got none there"),
    ],
)
def test_flags_that_do_not_go_together(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, before a server starts."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["serve", *words])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert not list(tmp_path.iterdir())
