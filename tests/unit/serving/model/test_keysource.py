"""A key comes from where its source says, or an error says why not; never with the key in it."""

import os
import stat
from pathlib import Path

import pytest

from marship.errors import SealError, UsageError
from marship.serving.model import keysource

KEY = bytes(range(32))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key as `openssl rand -hex 32` writes it, for its owner alone."""
    path = tmp_path / "seal.key"
    path.write_text(KEY.hex() + "\n")
    path.chmod(0o600)
    return path


def test_a_file_an_environment_and_a_command_give_the_same_key(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ways to one key."""
    monkeypatch.setenv("A_KEY", KEY.hex())
    for source in (f"file:{key_file}", "env:A_KEY", f"command:cat {key_file}"):
        assert keysource.read(source) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_file_that_others_may_touch_is_refused(key_file: Path, mode: int) -> None:
    """The message says what to run."""
    key_file.chmod(mode)
    with pytest.raises(SealError, match=f"owner alone, got mode 0{mode:o}.*chmod 600"):
        keysource.read(f"file:{key_file}")


def test_a_file_behind_a_link_is_judged_by_itself(key_file: Path, tmp_path: Path) -> None:
    """As secrets are mounted; a link's own mode is 0777."""
    link = tmp_path / "link"
    link.symlink_to(key_file)
    assert keysource.read(f"file:{link}") == KEY
    assert stat.S_IMODE(link.lstat().st_mode) == 0o777


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("file:absent", "No such file"),
        ("env:NOT_THERE_AT_ALL", "NOT_THERE_AT_ALL must hold a key"),
        ("command:false", "end with 0, got 1"),
        ("command:not-there-at-all", "No such file"),
        ("command:echo abc", "64 hexadecimal digits, got something else of 3"),
    ],
)
def test_a_key_that_is_not_there_is_said_in_one_line(source: str, says: str) -> None:
    """File, variable and command, each in its own words."""
    with pytest.raises(SealError, match=says):
        keysource.read(source)


@pytest.mark.parametrize("source", ["file", "file:", "command: ", KEY.hex(), "http://x/y"])
def test_a_source_in_another_form_is_not_repeated(source: str) -> None:
    """It might be the key itself, which must get into no log."""
    with pytest.raises(UsageError, match="must be file:PATH") as caught:
        keysource.read(source)
    assert KEY.hex() not in str(caught.value)


def test_a_command_with_an_open_quote_is_named() -> None:
    """Before it is run, and where it is passed on."""
    for use in (keysource.read, keysource.settled):
        with pytest.raises(UsageError, match="quoted as in a shell"):
            use("command:cat 'x")


def test_a_damaged_key_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """One digit too few: the message has its length and nothing of it, and no cause."""
    monkeypatch.setenv("A_KEY", KEY.hex()[:-1])
    with pytest.raises(SealError, match="63 characters") as caught:
        keysource.read("env:A_KEY")
    assert KEY.hex()[:10] not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_source_holds_in_any_folder(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in the extracted archive: a relative path would be seen from there."""
    monkeypatch.chdir(key_file.parent)
    assert keysource.settled("file:seal.key") == f"file:{key_file}"
    settled = keysource.settled("command:cat 'seal.key'")
    assert settled.startswith("command:/")
    assert settled.endswith("/cat seal.key")
    assert keysource.settled("env:NAME") == "env:NAME"
    with pytest.raises(SealError, match="must be a program"):
        keysource.settled("command:not-there-at-all")


def test_a_key_is_tried_before_anything_starts(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source given wins over the environment's; without either there is no key."""
    monkeypatch.delenv(keysource.SOURCE_VARIABLE, raising=False)
    assert keysource.tried(None) is None
    monkeypatch.setenv(keysource.SOURCE_VARIABLE, "file:absent")
    assert keysource.tried(f"file:{key_file}") == f"file:{key_file}"
    with pytest.raises(SealError, match="absent"):
        keysource.tried(None)


def test_forgetting_touches_no_other_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key's variable and the source's are gone; a source that is a file names no variable."""
    monkeypatch.setenv("A_KEY", KEY.hex())
    monkeypatch.setenv("OTHER", "stays")
    monkeypatch.setenv(keysource.SOURCE_VARIABLE, "file:A_KEY")
    keysource.forget()
    assert os.environ["A_KEY"] == KEY.hex()
    monkeypatch.setenv(keysource.SOURCE_VARIABLE, "env:A_KEY")
    keysource.forget()
    assert "A_KEY" not in os.environ
    assert os.environ["OTHER"] == "stays"
    assert keysource.SOURCE_VARIABLE not in os.environ
