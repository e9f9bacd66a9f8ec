"""Run every command with words that nobody means, on an ASCII terminal, and tell what came of it.

Run by tests/unit/test_commands.py in a folder with `file` and `locked/file`, which is closed to it.
Prints a JSON list of [words, exit code, what went to standard error, or a traceback].
"""

import io
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import typer

from marship import console
from marship.cli import app

COMMAND: Any = typer.main.get_command(app)  # made once, which takes longer than a case
LONG = "a" * 301
TEXTS = (LONG, "\xfc\udcff", "locked/file", "file/below")
NUMBERS = ("99999", "-1", "nan")
ALWAYS = {"serve": ["--config", "some"], "proxy": ["--self-signed"], "sbom": ["some"]}
"""No server must start; a proxy goes on further; what is installed takes sbom long."""


def hostile(parameter: Any) -> tuple[str, ...]:
    """Values for a parameter."""
    return NUMBERS if parameter.bare_type in (int, float) else TEXTS


def cases() -> Iterator[list[str]]:
    """Each command with each value of its arguments, then with each value of each option."""
    for name, command in COMMAND.commands.items():
        needed = [p for p in command.params if p.param_type_name == "argument" and p.required]
        options = [p for p in command.params if p.param_type_name == "option"]
        plain = [name, *("1" if hostile(p) is NUMBERS else "some" for p in needed)]
        plain += ALWAYS.get(name, [])
        for option in options:
            if option.required:
                plain += [option.opts[0], "some"]
        yield plain
        for place, argument in enumerate(needed, start=1):
            for value in hostile(argument):
                yield [*plain[:place], value, *plain[place + 1 :]]
        for option in options:
            if option.bare_type is bool:
                yield [*plain, option.opts[0]]
                continue
            for value in hostile(option):
                yield [*plain, option.opts[0], value]


def run(words: list[str]) -> tuple[int | None, str]:
    """The exit code, and what went to standard error; None and a traceback where it got out."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    kept = sys.stdout, sys.stderr, sys.argv
    sys.stdout, sys.stderr = streams
    sys.argv = ["marship", *words]
    code: int | None = 0
    told = ""
    try:
        console.run(COMMAND)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        code, told = None, traceback.format_exc()
    finally:
        sys.stdout, sys.stderr, sys.argv = kept
    for stream in streams:
        with suppress(UnicodeEncodeError):
            stream.flush()
    return code, told or streams[1].buffer.getvalue().decode()  # type: ignore[attr-defined]


if __name__ == "__main__":
    results = [[words, *run(words)] for words in cases()]
    sys.stdout.write(json.dumps(results))
