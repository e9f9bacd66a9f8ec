"""Draws texts that match a regular expression, as an operator holds its inputs against one."""

import re
import string
from collections.abc import Callable, Iterable
from re import _parser  # type: ignore[attr-defined]  # the only parser of patterns that there is
from typing import Any

import numpy as np

COUNT = 8
_MORE = 3
"""Repetitions beyond the least."""
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdigit,
    "SPACE": str.isspace,
    "WORD": lambda character: character.isalnum() or character == "_",
}
_CHARACTERS = string.ascii_letters + string.digits + " _-.,:;/@#"


def matching(pattern: str) -> list[str]:
    """Distinct texts that match a pattern; none where Python does not know its syntax (RE2's).

    Example:
        >>> all(re.fullmatch("[0-9]{4}-(a|b)", text) for text in matching("[0-9]{4}-(a|b)"))
        True
    """
    try:
        parsed = _parser.parse(pattern)
        compiled = re.compile(pattern)
    except re.error:
        return []
    generator = np.random.default_rng(0)
    drawn = (_text(parsed, generator) for _ in range(COUNT))
    return [text for text in dict.fromkeys(drawn) if compiled.fullmatch(text)]


def _text(parsed: Iterable[tuple[Any, Any]], generator: np.random.Generator) -> str:
    return "".join(_part(str(kind), given, generator) for kind, given in parsed)


def _part(kind: str, given: Any, generator: np.random.Generator) -> str:  # noqa: ANN401  by kind
    """A text of one part of a pattern; empty for those that match places."""
    if kind.endswith("REPEAT"):
        least, most, inner = given
        count = generator.integers(least, min(int(most), least + _MORE) + 1)
        return "".join(_text(inner, generator) for _ in range(count))
    if kind == "BRANCH":
        branches = given[1]
        return _text(branches[generator.integers(len(branches))], generator)
    if kind in ("SUBPATTERN", "ATOMIC_GROUP"):
        return _text(given[-1] if kind == "SUBPATTERN" else given, generator)
    choices = _choices(kind, given)
    return choices[generator.integers(len(choices))] if choices else ""


def _choices(kind: str, given: Any) -> list[str]:  # noqa: ANN401  by kind
    """The characters that a part of one character may be; none where it matches a place."""
    if kind == "LITERAL":
        return [chr(given)]
    if kind in ("ANY", "NOT_LITERAL"):
        return [c for c in _CHARACTERS if kind == "ANY" or ord(c) != given]
    return _members(given) if kind == "IN" else []


def _members(items: Iterable[tuple[Any, Any]]) -> list[str]:
    """Characters of a set such as `[^a-z_]`: usual ones, and those that it names."""
    named = [(str(kind), given) for kind, given in items]
    ends = [n for kind, n in named if kind == "LITERAL"]
    ends += [n for kind, given in named if kind == "RANGE" for n in given]
    is_negated = any(kind == "NEGATE" for kind, _ in named)
    return [
        c
        for c in dict.fromkeys(_CHARACTERS + "".join(map(chr, ends)))
        if any(_is_in(c, kind, given) for kind, given in named) != is_negated
    ]


def _is_in(character: str, kind: str, given: Any) -> bool:  # noqa: ANN401  by kind
    if kind == "LITERAL":
        return bool(ord(character) == given)
    if kind == "RANGE":
        return bool(given[0] <= ord(character) <= given[1])
    if kind == "CATEGORY":
        name = str(given).removeprefix("CATEGORY_")
        asked = _CATEGORIES.get(name.removeprefix("NOT_"))
        return asked is not None and asked(character) != name.startswith("NOT_")
    return False
