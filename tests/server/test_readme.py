"""Every command and example of the README does what it says, in the order it stands there.

Changed are only the size of the training, the data (ours, generated) and the ports.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marship.engines.torchserve import server
from marship.errors import NotRunningError
from mini_movielens import write_mini
from own_model import write_own_model

README = (Path(__file__).parents[2] / "README.md").read_text()
QUICK = "--epochs 2 --width 8 --data-dir mini"


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language, with continued lines joined."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [block.replace("\\\n", " ") for block in found]


@pytest.fixture(scope="module")
def shell(place: Path) -> Iterator["Shell"]:
    """A shell in a checkout's folder; a server it started is stopped."""
    write_mini(place / "mini")
    write_own_model(place)
    yield Shell(place)
    with contextlib.suppress(NotRunningError):
        server.stop(place / ".marship")


class Shell:
    """Runs the README's lines, with what the tests change in them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.url = ""

    def __call__(self, *words: str) -> str:
        """Run a command; it must succeed."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            words,
            cwd=self.place,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout

    def block(self, text: str) -> str:
        """Run a block's lines in one shell."""
        text = text.replace("source .venv/bin/activate", ": in the environment already")
        text = text.replace(
            "training/recommend.py ", f"training/recommend.py {QUICK} --data-dir mini "
        )
        text = re.sub(r"(marship serve .*--detach)", r"\1 --free-ports", text)
        out = self("bash", "-euc", text.replace("http://127.0.0.1:8079", self.url or "none"))
        self.url = server.status(self.place / ".marship").direct_url or "none"
        return out


def test_the_path_by_hand(shell: Shell) -> None:
    """Train, export, optimize, package, serve, register, predict and scale, line by line."""
    (block,) = [block for block in blocks("bash") if "training/recommend.py" in block]
    commands = [line for line in block.splitlines() if line.split("#")[0].strip()]
    assert len(commands) < 10, "the README promises a path of under ten commands"
    out = shell.block(block)
    assert "title" in out
    assert "2 ready" in out


def test_plain_curl(shell: Shell) -> None:
    """The response to the curl example has three films."""
    (block,) = [block for block in blocks("bash") if "curl" in block]
    assert shell.block(block).count('"title"') == 3


def test_the_python_example(shell: Shell) -> None:
    """The client example prints three lines of score and title."""
    (block,) = blocks("python")
    lines = shell("python", "-c", block).splitlines()
    assert len(lines) == 3
    assert all(re.match(r"-?\d+\.\d+ \S", line) for line in lines)


def test_your_own_model(shell: Shell) -> None:
    """The example of your own model is exported, optimized, packed and served."""
    (block,) = [block for block in blocks("bash") if "my_package" in block]
    shell.block(block)
    shell("marship", "register", "mine")
    answer = shell("marship", "predict", "mine", "--json", '{"input": [[1, 2, 3]]}')
    assert [float(x) for x in re.findall(r"\d\.\d+", answer)] == pytest.approx([2.0], rel=1e-4)


def test_in_production(shell: Shell) -> None:
    """A signed model on a production server, its proxy, and a new version rolled out over it."""
    shell("marship", "stop")
    safe, version = (
        next(block for block in blocks("bash") if words in block)
        for words in ("marship keygen", "marship rollout")
    )
    shell.block(safe)
    assert "location" in (shell.place / "proxy" / "nginx.conf").read_text()
    shell.block(version)
    told = shell("marship", "describe", "mine", "--version", "all")
    assert re.findall(r"mine (\d\.\d)", told) == ["2.0"]
    answer = shell("marship", "predict", "mine", "--json", '{"input": [[1, 2, 3]]}')
    assert [float(x) for x in re.findall(r"\d\.\d+", answer)] == pytest.approx([2.0], rel=1e-4)


def test_every_link_leads_somewhere() -> None:
    """The README's relative links are files of the repository."""
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (Path(__file__).parents[2] / link).is_file(), link
