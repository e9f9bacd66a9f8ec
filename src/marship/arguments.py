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
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from marship.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST_NAME, _LONGEST_PATH, _SHOWN = 255, 4095, 100
_TIMES = ("m", "M")
"""NumPy's kinds of time spans and dates."""
MOST_S = 10**9
"""Longer times overflow in the system's clocks."""


def converted(
    hint: Any,  # noqa: ANN401  an annotation
    value: Any,  # noqa: ANN401  values of any type
    name: str,
    low: float | None = None,
    high: float | None = None,
) -> Any:  # noqa: ANN401  the same
    """The value as its annotation has it: a text becomes a path, one text a tuple of texts.

    Raises:
        UsageError: It is of another type, or a number out of bounds or not finite.
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = Path if Path in kinds else next(k for k in kinds if k is not NoneType)
    text = _text(value)
    if kind is Path and text == "":
        raise UsageError(f"{name} must name a file or folder, got ''.")
    if kind is Path and isinstance(text, str):
        return Path(_checked_text(text, name, is_path=True))
    several = (text,) if isinstance(text, str) else value
    if get_origin(kind) is tuple and isinstance(several, list | tuple):
        return tuple(converted(str, _text(one), f"each {name}") for one in several)
    if get_origin(kind) is Literal:
        return _one_of(get_args(kind), value, name)
    expected: Any = get_origin(kind) or kind
    plain = _number(expected, value) if expected in (int, float, bool) else value
    if not isinstance(plain, expected) or (isinstance(plain, bool) and expected is not bool):
        raise UsageError(f"{name} must be of type {expected.__name__}, got {_shown(value)}.")
    if expected in (int, float):
        _check_bounds(name, plain, low, high)
    return plain


def _one_of(choices: tuple[str, ...], value: object, name: str) -> object:
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {_shown(value)}.")
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


def _text(value: object) -> object:
    """A path as its text; anything else, and a path in bytes, as it is."""
    with suppress(TypeError):
        text = os.fspath(value)  # type: ignore[call-overload]  # TypeError for what is no path
        if isinstance(text, str):
            return text
    return value


def _number(kind: type, value: Any) -> Any:  # noqa: ANN401  numbers of any library
    """A number or boolean of another library as Python's; anything else as it is."""
    plain = _scalar(value)
    if kind is bool or isinstance(plain, bool):
        return plain
    is_real = kind is float and hasattr(plain, "__float__")  # bytes are not, which `float` reads
    for convert in (operator.index, float) if is_real else (operator.index,):
        with suppress(TypeError, ValueError, OverflowError):
            return kind(convert(plain))
    return value


def _scalar(value: Any) -> Any:  # noqa: ANN401  values of any type
    """The number in an array or tensor without dimensions, None for others; else the value."""
    if not hasattr(value, "ndim") or (value.ndim == 0 and not hasattr(value, "item")):
        return value
    is_time = getattr(getattr(value, "dtype", None), "kind", "") in _TIMES
    if value.ndim != 0 or is_time or bool(getattr(value, "mask", False)):
        return None  # times may come as a number of nanoseconds
    with suppress(RuntimeError):  # PyTorch's, of a tensor without data
        return value.item()
    return None


def _check_bounds(name: str, value: float, low: float | None, high: float | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value}.")
    if low is not None and value < low:
        raise UsageError(f"{name} must be at least {low}, got {_shown(value)}.")
    if high is not None and value > high:
        raise UsageError(f"{name} must be at most {high}, got {_shown(value)}.")


def _shown(value: object) -> str:
    """The start of a value's representation, in one line."""
    try:
        return " ".join(repr(value).splitlines())[:_SHOWN]
    except ValueError:  # Python writes no integers of thousands of digits
        return "an integer of too many digits"


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
_CHECKED_ORIGINS = (Callable, Literal)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check texts, numbers, paths, dataclasses, callables and literals by their annotations.

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
        most = MOST_S if name.endswith("_s") else None
        value = converted(hints[name], value, name, low=0, high=most)
        return _checked_text(value, name) if isinstance(value, str) else value

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = [check(name, value) for name, value in zip(names, args, strict=False)]
        named = {name: check(name, value) for name, value in kwargs.items()}
        return function(*given, *args[len(given) :], **named)  # type: ignore[arg-type]

    return call


def _is_checked(hint: Any) -> bool:  # noqa: ANN401  an annotation
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return all(
        kind in (*_CHECKED, NoneType) or is_dataclass(kind) or get_origin(kind) in _CHECKED_ORIGINS
        for kind in kinds
    )
