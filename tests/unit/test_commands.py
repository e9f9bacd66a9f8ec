"""The commands as a whole: which flags each has, whatever it does."""

from typing import Any

import pytest
import typer

from marship.cli import app

AT_HOME = {"serve", "stop", "logs", "proxy"}
"""What starts, ends or reads what lies in a server's folder."""
ELSEWHERE = {"--url", "--token", "--token-file", "--ca"}

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def flags(name: str) -> set[str]:
    """The options of a command."""
    return {flag for parameter in COMMANDS[name].params for flag in parameter.opts}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_what_talks_to_a_server_takes_its_address(name: str) -> None:
    """All flags of one elsewhere, or none; only what works in the folder has --home alone."""
    found = flags(name)
    talks = "--home" in found and name not in AT_HOME
    assert found & ELSEWHERE == (ELSEWHERE if talks else set())
