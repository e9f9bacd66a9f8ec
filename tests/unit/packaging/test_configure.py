"""A handler's settings: written into an archive, read, changed, and nothing else with them."""

import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marship.cli import app
from marship.errors import PackageError, UsageError
from marship.packaging.configure import configure, parsed
from marship.packaging.step import PackageSettings, package
from marship.trust import archive

pytestmark = pytest.mark.slow


@pytest.fixture
def mar(linear_onnx: Path, tmp_path: Path) -> Path:
    """An archive with two settings of its handler's."""
    return pack(linear_onnx, tmp_path, "review=0.4", "block=0.8")


def pack(model: Path, store: Path, *options: str) -> Path:
    """Package with options."""
    return package(model, PackageSettings(model_store=store, option=options))


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file in an archive."""
    return {member.name: member.sha256 for member in archive.read(path).members}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.4", 0.4),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("3", 3),
        ("-2", -2),
        ("true", True),
        ("cat", "cat"),
        ("a b=c", "a b=c"),
        ("'0.4'", "0.4"),
        ("", None),
    ],
)
def test_values_are_what_they_look_like(text: str, value: object) -> None:
    """Numbers, true and false, texts; quotes make a text, nothing is no setting."""
    found = parsed([f"x={text}"])["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["review"], "name=value"),
        (["Review=1"], "small letters"),
        (["a.b=1"], "small letters"),
        (["=1"], "name=value"),
        (["a=[1, 2]"], "number, a text, true or false"),
        (["a={b: 1}"], "number, a text"),
        (["a=2026-01-01"], "Quote it"),
        (["a=.nan"], "number, a text"),
        (["a=1e999"], "number, a text"),
        (["a='"], "Quote it"),
        (["a=1", "a=2"], "once"),
    ],
)
def test_other_options_are_refused(options: list[str], says: str) -> None:
    """One line that tells how to write them."""
    with pytest.raises(UsageError, match=says):
        parsed(options)


def test_packaged_options_are_the_handlers_section(mar: Path, linear_onnx: Path) -> None:
    """They stand in model-config.yaml under `handler`; without any there is no such section."""
    assert archive.read(mar).config["handler"] == {"block": 0.8, "review": 0.4}
    bare = pack(linear_onnx, mar.parent / "bare")
    assert "handler" not in archive.read(bare).config


def test_a_change_concerns_one_file(mar: Path) -> None:
    """All others keep their bytes, and the archive keeps its order of files."""
    before, order = digests(mar), zipfile.ZipFile(mar).namelist()
    done = configure(mar, ["review=0.5", "note=new"])
    after = digests(mar)
    assert done.changed
    assert done.after == {"block": 0.8, "note": "new", "review": 0.5}
    assert {name for name in before if before[name] != after[name]} == {"model-config.yaml"}
    assert zipfile.ZipFile(mar).namelist() == order
    assert [path.name for path in mar.parent.glob("*.mar*")] == [mar.name]


def test_a_change_is_what_packaging_would_have_made(mar: Path, linear_onnx: Path) -> None:
    """Configured or packaged, in whatever order: equal settings are equal bytes."""
    whole = mar.read_bytes()
    configure(mar, ["review=0.5"])
    assert mar.read_bytes() != whole
    configure(mar, ["review=0.4"])
    assert mar.read_bytes() == whole
    bare = pack(linear_onnx, mar.parent / "bare")
    configure(bare, ["review=0.4"])
    configure(bare, ["block=0.8"])
    assert bare.read_bytes() == whole
    configure(bare, ["review=", "block="])
    assert bare.read_bytes() == pack(linear_onnx, mar.parent / "none").read_bytes()


def test_a_new_version_is_in_the_manifest(mar: Path) -> None:
    """The same model can be registered beside the one that runs."""
    before = digests(mar)
    done = configure(mar, ["review=0.5"], "1.1")
    after = digests(mar)
    assert (done.version_before, done.archive.version) == ("1.0", "1.1")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"MAR-INF/MANIFEST.json", "model-config.yaml"}


def test_reading_changes_nothing(mar: Path) -> None:
    """Neither does setting what is set."""
    before = (mar.read_bytes(), mar.stat().st_mtime_ns, mar.stat().st_ino)
    assert configure(mar, []).after == {"block": 0.8, "review": 0.4}
    assert not configure(mar, ["review=0.4"], "1.0").changed
    assert (mar.read_bytes(), mar.stat().st_mtime_ns, mar.stat().st_ino) == before
    assert configure(mar, ["block=1"]).after["block"] == 1
    assert configure(mar, ["block=true"]).changed


def test_a_bad_version_is_refused(mar: Path) -> None:
    """Before anything is written."""
    before = mar.read_bytes()
    with pytest.raises(UsageError, match="digits and dots"):
        configure(mar, ["review=1"], "new")
    assert mar.read_bytes() == before


def test_an_archive_without_settings_is_said(tmp_path: Path) -> None:
    """An archive of another maker, with no model-config.yaml, is left alone."""
    path = tmp_path / "other.mar"
    with zipfile.ZipFile(path, "w") as zipped:
        manifest = '{"model": {"modelName": "a", "modelVersion": "1", "handler": "h.py"}}'
        zipped.writestr("MAR-INF/MANIFEST.json", manifest)
    before = path.read_bytes()
    with pytest.raises(PackageError, match=r"model-config\.yaml, got none"):
        configure(path, ["a=1"])
    assert path.read_bytes() == before


def test_the_command_says_what_to_do_next(mar: Path) -> None:
    """Old and new value, and the commands that bring the change to a running server."""
    run = CliRunner().invoke
    shown = run(app, ["configure", str(mar)])
    assert "0.4" in shown.stdout
    assert "register" not in shown.stdout
    name = mar.stem
    shown = run(app, ["configure", str(mar), "review=0.5", "block="])
    assert "0.5 (was: 0.4)" in shown.stdout
    assert "the handler's default (was: 0.8)" in shown.stdout
    assert f"marship unregister {name} --version 1.0 && marship register {mar.name}" in shown.stdout
    shown = run(app, ["configure", str(mar), "review=0.6", "--version", "1.1"])
    assert f"marship register {mar.name} && marship set-default {name} 1.1" in shown.stdout
