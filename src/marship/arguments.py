"""What Python callers pass: checked against the annotations before anything is done with it."""

import functools
import inspect
import math
import operator
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from marship.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST_NAME, _LONGEST_PATH, _SHOWN = 255, 4095, 100
MOST_S = 10**9
"""Longer times overflow in the system's clocks."""


def converted(hint: Any, value: Any, name: str) -> Any:  # noqa: ANN401  values of any type
    """The value as its annotation has it: a text becomes a path, one text a tuple of texts.

    Raises:
        UsageError: It is of another type.
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = Path if Path in kinds else next(k for k in kinds if k is not NoneType)
    is_text = isinstance(value, str | os.PathLike)
    if kind is Path and is_text:
        return Path(_checked_text(os.fspath(value), name, is_path=True))
    several = (value,) if is_text else value
    if get_origin(kind) is tuple and isinstance(several, list | tuple):
        return tuple(converted(str, _plain(one), f"each {name}") for one in several)
    expected = get_origin(kind) or kind
    if expected in (int, float) and not isinstance(value, bool):
        value = _number(expected, value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise UsageError(f"{name} must be of type {expected.__name__}, got {value!r}.")
    return value


def _checked_text(value: str, name: str, *, is_path: bool = False) -> str:
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} must be text in UTF-8, got {value[:_SHOWN]!r}.") from error
    if b"\0" in encoded:
        raise UsageError(f"{name} must be text without NUL, got {value[:_SHOWN]!r}.")
    longest = max(map(len, encoded.split(b"/")))
    if is_path and (longest > _LONGEST_NAME or len(encoded) > _LONGEST_PATH):
        raise UsageError(
            f"{name} must be a path of at most {_LONGEST_PATH} bytes, its names of at most "
            f"{_LONGEST_NAME}, got {value[:_SHOWN]!r}..."
        )
    return value


def _plain(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _number(kind: type, value: Any) -> Any:  # noqa: ANN401  numbers of any library
    """A number of NumPy's as Python's; anything else as it is."""
    with suppress(TypeError, ValueError, OverflowError):
        if hasattr(value, "__index__"):
            return kind(operator.index(value))
        if kind is float and hasattr(value, "__float__"):
            return float(value)
    return value


def check_number(name: str, value: object, low: float | None, high: float | None) -> None:
    """Check a number against its bounds; other values are fine.

    Raises:
        UsageError: It is out of bounds, or not finite.
    """
    if not isinstance(value, int | float):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value}.")
    if low is not None and value < low:
        raise UsageError(f"{name} must be at least {low}, got {value}.")
    if high is not None and value > high:
        raise UsageError(f"{name} must be at most {high}, got {value}.")


def from_json(kind: type[T], values: object) -> T:
    """A dataclass from untrusted values by name.

    Raises:
        UsageError: A field is missing or unknown, or a value is of another type.
    """
    if not isinstance(values, dict):
        raise UsageError(f"it must be an object, got {values!r:.100}.")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    missing = {n for n, item in known.items() if item.default is MISSING} - set(values)
    if missing or not set(values) <= set(known):
        raise UsageError(f"it must have the fields {', '.join(known)}, got {', '.join(values)}.")
    hints = get_type_hints(kind)
    return kind(**{name: converted(hints[name], value, name) for name, value in values.items()})


_CHECKED = (str, int, float, bool, Path)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check arguments that are texts, numbers, paths or dataclasses by their annotations.

    Numbers must not be negative, and times at most `MOST_S`. Arguments of other types are passed
    on as they are.

    Raises:
        UsageError: At a call: an argument is of another type, or out of bounds.

    Example:
        >>> @checked
        ... def wait(name: str, *, timeout_s: float = 1.0) -> float:
        ...     return timeout_s
        >>> wait("tiny", timeout_s=2)
        2.0
    """
    parameters = inspect.signature(function).parameters
    hints = {n: p.annotation for n, p in parameters.items() if _is_checked(p.annotation)}
    names = tuple(parameters)

    def check(name: str, value: Any) -> Any:  # noqa: ANN401  as given
        if name not in hints:
            return value
        value = converted(hints[name], value, name)
        if isinstance(value, str):
            return _checked_text(value, name)
        if not isinstance(value, bool):
            check_number(name, value, 0, MOST_S if name.endswith("_s") else None)
        return value

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = [check(name, value) for name, value in zip(names, args, strict=False)]
        named = {name: check(name, value) for name, value in kwargs.items()}
        return function(*given, *args[len(given) :], **named)  # type: ignore[arg-type]

    return call


def _is_checked(hint: Any) -> bool:  # noqa: ANN401  an annotation
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return all(kind in (*_CHECKED, NoneType) or is_dataclass(kind) for kind in kinds)
