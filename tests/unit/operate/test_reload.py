"""What `marship serve --reload` follows, and how it is asked."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from marship.cli import app
from marship.errors import UsageError
from marship.operate.reload import Reloadable
from marship.packaging import shipped
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
