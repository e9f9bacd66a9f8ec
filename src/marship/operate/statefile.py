"""Parses a state file: the versions of models that a server should have. See `state`."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from marship import profiles, storage
from marship.errors import UsageError

TABLE = "model"
_HEADER = re.compile(rf"\s*\[\[\s*{TABLE}\s*\]\]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model, as declared in the file.

    Attributes:
        where: The file and the line, for messages.
        archive: A file name in the model store.
        name: The model's name; None is the archive's own.
        workers: Number of workers; None is the archive's.
        profile: "latency" or "throughput"; None is the archive's.
        default: Whether it is the model's default version.
    """

    where: str
    archive: str
    name: str | None = None
    workers: int | None = None
    profile: str | None = None
    default: bool = False


def read(path: str | Path) -> list[Entry]:
    """Read a state file.

    Raises:
        UsageError: The file is missing or invalid; the message names the line.
    """
    path = Path(path)
    raw, text = storage.read_toml(path)
    _check_names(raw, [TABLE], str(path))
    tables = raw.get(TABLE, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path} must hold a [[{TABLE}]] for each version, got another {TABLE}.")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if _HEADER.match(line)]
    if len(lines) != len(tables):  # written in another syntax
        lines = []
    places = (f"{path}, line {n}" for n in lines) if lines else (f"{path}",) * len(tables)
    return [_entry(table, where) for table, where in zip(tables, places, strict=True)]


def _entry(table: Mapping[str, Any], where: str) -> Entry:
    _check_names(table, [item.name for item in fields(Entry) if item.name != "where"], where)
    rules: Mapping[str, tuple[Callable[[Any], bool], str]] = {
        "archive": (_is_text, "be the name of a file in the model store"),
        "name": (_is_text, "be a text"),
        "workers": (_is_count, "be a whole number of 1 or more"),
        "profile": (lambda value: value in profiles.PROFILES, "be latency or throughput"),
        "default": (lambda value: isinstance(value, bool), "be true or false"),
    }
    if "archive" not in table:
        raise UsageError(f"{where} must name an archive, got none.")
    for key, value in table.items():
        holds, rule = rules[key]
        if not holds(value):
            raise UsageError(f"{key} in {where} must {rule}, got {value!r}.")
    return Entry(where, **table)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_names(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(known)}."
            raise UsageError(f"{where} must hold known names only, got {name!r}. {hint}")
