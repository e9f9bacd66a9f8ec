"""Flags come from dataclasses; a flag wins over the file, the file over the default."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import typer
from hypothesis import given as given_
from hypothesis import strategies as st
from typer.testing import CliRunner

from marship import ExportSettings, OptimizeSettings, PackageSettings
from marship import settings as base
from marship.engines.torchserve.server import ServeSettings
from marship.errors import UsageError
from marship.fit.run import RunSettings
from marship.operate.proxy import ProxySettings
from marship.settings import as_dict, flags, from_dict, setting


@dataclass(frozen=True)
class Settings(base.Settings):
    """One field of every type that a flag can have."""

    epochs: int = setting(10, "passes over the data", minimum=1)
    rate: float = setting(0.5, "step size")
    folder: Path = setting(Path("runs"), "where to write")
    name: str | None = setting(None, "a name")
    again: bool = setting(False, "do it anew")
    tags: tuple[str, ...] = setting(("a",), "may be repeated")


def call(*words: str) -> tuple[int, str, list[Settings]]:
    """Run a command made from the settings: exit code, output, and what it was given."""
    given: list[Settings] = []
    app = typer.Typer()

    @app.command()
    @flags(Settings)
    def main(target: str, settings: Settings) -> None:
        """A command."""
        assert target == "x"
        given.append(settings)

    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["x", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output, given


def test_defaults_are_the_dataclass_s() -> None:
    """Without a flag every field has its default."""
    assert call()[2] == [Settings()]


def test_every_field_has_a_flag() -> None:
    """Each flag sets its field, with dashes for underscores; a repeated flag gives a tuple."""
    words = [
        "--epochs",
        "3",
        "--rate",
        "1",
        "--folder",
        "f",
        "--name",
        "n",
        "--again",
        "--tags",
        "x",
        "--tags",
        "y",
    ]
    assert call(*words)[2] == [Settings(3, 1.0, Path("f"), "n", True, ("x", "y"))]


def test_the_file_wins_over_the_default_and_a_flag_over_the_file(tmp_path: Path) -> None:
    """A TOML file sets the same names; what the command line says stands above it."""
    file = tmp_path / "s.toml"
    file.write_text('epochs = 7\nrate = 2\nfolder = "g"\ntags = ["z"]\n')
    (given,) = call("--settings", str(file), "--epochs", "8")[2]
    assert given == Settings(8, 2.0, Path("g"), tags=("z",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 7", "epoch. Known are: epochs"),
        ('epochs = "7"', "epochs must be of type int"),
        ("epochs = 1.5", "epochs must be of type int"),
        ("epochs", "must be a readable TOML file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    """Unknown names, wrong types and broken syntax are usage errors."""
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words.replace(".", r"\.")):
        call("--settings", str(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path to nothing is a usage error."""
    with pytest.raises(UsageError, match=r"absent\.toml .*got: No such file"):
        call("--settings", str(tmp_path / "absent.toml"))


def test_bounds_hold_on_the_command_line_and_show_in_the_help() -> None:
    """A value under its minimum is refused with exit code 2; help shows text and default."""
    code, output, given = call("--epochs", "0")
    assert (code, given) == (2, [])
    assert "greater than or equal to 1" in output
    assert "passes over the data" in call("--help")[1]


def test_bounds_hold_in_a_file_too(tmp_path: Path) -> None:
    """A file cannot set what a flag may not."""
    file = tmp_path / "s.toml"
    file.write_text("epochs = 0")
    with pytest.raises(UsageError, match="epochs must be at least 1, got 0"):
        call("--settings", str(file))


def test_settings_survive_json() -> None:
    """What as_dict writes, from_dict reads back."""
    settings = Settings(2, 0.1, Path("a/b"), "n", tags=("p", "q"))
    assert from_dict(Settings, as_dict(settings), "test") == settings


KINDS = (
    *(ExportSettings, OptimizeSettings, PackageSettings),
    *(ServeSettings, ProxySettings, RunSettings, Settings),
)
WORD = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
NAME_MAX = 255
"""Bytes of one name in a path, on the file systems that are used."""
PATH = WORD.filter(lambda text: max(map(len, os.fsencode(text).split(b"/"))) <= NAME_MAX)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    Path: st.one_of(PATH, PATH.map(Path)),
    str: WORD,
    bool: st.booleans(),
    tuple[str, ...]: st.one_of(WORD, WORD.map(Path), st.lists(WORD), st.lists(WORD).map(tuple)),
}


def values_of(item: "dataclasses.Field[Any]", hint: Any) -> st.SearchStrategy[Any]:
    """What somebody may write for a field, in Python."""
    kinds = [kind for kind in getattr(hint, "__args__", (hint,)) if kind is not type(None)]
    if hint == tuple[str, ...]:
        return VALUES[hint]
    if kinds[0] not in (int, float):
        return VALUES[kinds[0]]
    low, high = item.metadata["min"], item.metadata["max"]
    whole = st.integers(int(low or 0) + 1, int(high or 1e6))
    return whole if kinds[0] is int else st.one_of(whole, whole.map(float))


@given_(st.data(), st.sampled_from(KINDS))
def test_settings_hold_values_of_their_types(data: st.DataObject, kind: type[Any]) -> None:
    """Texts are taken for paths, one text or path for a tuple of texts, whole numbers for floats.

    They are what the same values from a file come to.
    """
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    chosen = data.draw(st.lists(st.sampled_from(fields), unique_by=lambda item: item.name))
    values = {item.name: data.draw(values_of(item, hints[item.name])) for item in chosen}
    made = kind(**values)
    for name, value in values.items():
        found, hint = getattr(made, name), hints[name]
        if hint == tuple[str, ...]:
            several = value if isinstance(value, list | tuple) else [value]
            assert found == tuple(map(os.fspath, several))
        else:
            assert isinstance(found, hint)
            assert found == (Path(value) if isinstance(found, Path) else value)
    assert made == from_dict(kind, values, "a file")


@given_(st.data(), st.sampled_from(KINDS))
def test_values_of_other_types_are_named(data: st.DataObject, kind: type[Any]) -> None:
    """The error says which setting, and what was given."""
    item = data.draw(st.sampled_from(dataclasses.fields(kind)))
    with pytest.raises(UsageError, match=rf"{item.name} must be .*got <object"):
        kind(**{item.name: object()})


@given_(st.text("aé", min_size=NAME_MAX + 1, max_size=600), st.sampled_from(KINDS))
def test_a_path_that_no_system_takes_is_named(name: str, kind: type[Any]) -> None:
    """A name in it is too long, or all of it."""
    for item in dataclasses.fields(kind):
        if get_type_hints(kind)[item.name] is Path:
            for value in (name, f"runs/{name}/x", "runs/" * 1000):
                with pytest.raises(UsageError, match=f"{item.name} must be a path of at most"):
                    kind(**{item.name: value})


BOUNDED = [
    (kind, item.name, get_type_hints(kind)[item.name], bound)
    for kind in KINDS
    for item in dataclasses.fields(kind)
    for bound in ("min", "max")
    if item.metadata[bound] is not None
]


@given_(
    st.sampled_from(BOUNDED), st.sampled_from([int, np.int64, np.float64, np.array, torch.tensor])
)
def test_bounds_hold_for_numbers_of_libraries(
    field: tuple[type[Any], str, Any, str], make: Callable[[Any], Any]
) -> None:
    """One beyond a bound is refused, whatever type it has."""
    kind, name, hint, bound = field
    if make is np.float64 and hint is not float:
        make = np.int64
    metadata = next(item.metadata for item in dataclasses.fields(kind) if item.name == name)
    value = int(metadata[bound]) + (1 if bound == "max" else -1)
    word = "most" if bound == "max" else "least"
    with pytest.raises(UsageError, match=f"^{name} must be at {word} .*, got {value}"):
        kind(**{name: make(value)})


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", [*NOT_FINITE, *map(np.float32, NOT_FINITE)])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_must_be_finite(kind: type[Any], value: Any) -> None:
    """In Python as on the command line: no bound holds for NaN."""
    for item in dataclasses.fields(kind):
        if get_type_hints(kind)[item.name] is float:
            with pytest.raises(UsageError, match=f"{item.name} must be a finite number"):
                kind(**{item.name: value})
