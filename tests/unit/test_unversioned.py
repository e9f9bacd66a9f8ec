"""No command leaves a secret where `git add .` takes it: tried with git itself."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from marship import unversioned
from marship.cli import app
from marship.engines.home import Home
from marship.errors import UsageError
from marship.operate import proxy
from marship.trust import keys


def git(tree: Path, *words: str) -> str:
    """What git prints."""
    command = [shutil.which("git") or "git", "-C", str(tree), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A work tree, which is the current folder; at the end it has no secret in its index."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").touch()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    git(tmp_path, "add", ".")
    added = git(tmp_path, "ls-files").split()
    assert "code.py" in added
    secrets = [name for name in added if name.endswith((".key", "key_file.json", "server.json"))]
    assert secrets == []
    assert b"PRIVATE" not in b"".join((tmp_path / name).read_bytes() for name in added)


def test_a_new_folder_is_ignored_whole(tree: Path) -> None:
    """As README has it: the public key goes with the trust folder that it is copied into."""
    done = CliRunner().invoke(app, ["keygen", "release"])
    assert done.exit_code == 0, done.output
    assert (tree / "keys").stat().st_mode & 0o777 == 0o700
    assert "keys" not in git(tree, "status", "--porcelain", "--untracked-files=all")
    keys.generate("second", Path("keys"))
    keys.generate("third", tree / "deep" / "keys")


@pytest.mark.parametrize("place", [".", "sub"])
def test_in_a_folder_that_is_there_the_key_alone_is_ignored(tree: Path, place: str) -> None:
    """Its other files, new ones too, are git's as before."""
    (tree / place).mkdir(exist_ok=True)
    for name in ("release", "second"):
        keys.generate(name, Path(place))
    (tree / place / "new.py").touch()
    told = git(tree, "status", "--porcelain", "--untracked-files=all")
    assert f"{place}/new.py".removeprefix("./") in told
    assert "release.pem" in told
    assert ".key" not in told


@pytest.mark.parametrize(
    ("text", "is_enough"),
    [
        ("*.pyc\n", False),
        ("*.key\n", True),
        ("/release.key\n", True),
        ("*.key\n!release.key\n", False),
    ],
)
def test_a_gitignore_of_somebody_else_is_not_edited(tree: Path, text: str, is_enough: bool) -> None:
    """It names the key, or nothing is written."""
    (tree / ".gitignore").write_text(text)
    if is_enough:
        keys.generate("release", Path())
    else:
        with pytest.raises(UsageError, match=r"ignored by git, .*Add the line /release\.key"):
            keys.generate("release", Path())
        assert not (tree / "release.key").exists()
    assert (tree / ".gitignore").read_text() == text


def test_without_a_work_tree_anything_goes(tmp_path: Path) -> None:
    """Nobody could add it."""
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    assert keys.generate("release", tmp_path).private.is_file()


def test_rules_of_the_folder_above_do_not_count(tree: Path) -> None:
    """Git takes the deeper rule first."""
    (tree / ".gitignore").write_text("!*.key\n!keys/\n!keys/**\n")
    keys.generate("release", Path("keys"))


def test_a_servers_home(tree: Path) -> None:
    """With its tokens; an older home gets the rule at its next start, and a new one is empty."""
    home = Home(tree / ".marship")
    home.create()
    home.create()  # a .gitignore alone is no reason to refuse it
    with home.locked():
        home.key_file.write_text("{}")
        home.record_file.write_text("{}")
    (home.path / unversioned.IGNORE_FILE).unlink()
    home.create()
    assert ".marship" not in git(tree, "status", "--porcelain", "--untracked-files=all")


def test_a_home_with_a_gitignore_of_somebody_else(tree: Path) -> None:
    """It names the tokens, or no server starts there."""
    home = Home(tree / "srv")
    home.path.mkdir()
    (home.path / ".gitignore").write_text("*.log\n")
    with pytest.raises(UsageError, match=r"key_file\.json must be ignored by git"):
        home.create()
    (home.path / ".gitignore").write_text("key_file.json\nserver.json\n")
    home.create()
    home.key_file.write_text("{}")


Settings = Callable[..., proxy.ProxySettings]


@pytest.fixture
def settings(tree: Path) -> Settings:
    """A trial of a proxy."""
    (tree / ".gitignore").write_text("/config.properties\n")
    return lambda **given: proxy.ProxySettings(home=tree / "home", self_signed=True, **given)


def test_a_trial_of_the_proxy(tree: Path, settings: Settings) -> None:
    """Its certificate's key, and what nginx logs there."""
    for _ in range(2):
        proxy.write(settings(), ["lin"])
    assert (tree / "proxy").stat().st_mode & 0o777 == 0o700
    assert "proxy" not in git(tree, "status", "--porcelain", "--untracked-files=all")


def test_a_folder_of_somebody_else_keeps_its_mode(tree: Path, settings: Settings) -> None:
    """Named by --out, it may be a web server's: the key alone is closed, and ignored."""
    folder = tree / "etc"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    proxy.write(settings(out=folder), ["lin"])
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "self-signed.key").stat().st_mode & 0o077 == 0
    assert "etc/nginx.conf" in git(tree, "status", "--porcelain", "--untracked-files=all")


@pytest.mark.parametrize(
    ("given", "listens"),
    [
        ({"self_signed": True}, "127.0.0.1:8443"),
        ({"self_signed": True, "listen": "8443"}, "8443"),
        ({"self_signed": True, "listen": "0.0.0.0:443"}, "0.0.0.0:443"),
        ({}, "8443"),
    ],
)
def test_a_trial_is_for_this_machine(given: dict[str, object], listens: str) -> None:
    """Unless the caller wants it otherwise."""
    assert proxy.ProxySettings(**given).address == listens


@given(st.from_regex(keys._NAME, fullmatch=True))
def test_a_keys_name_means_nothing_to_git(name: str) -> None:
    """No wildcard, no comment, no negation, no blank at its end."""
    assert not set(name) & set("*?[]!#\\/ \n")
