"""Bounded parsers for untrusted JSON, YAML and TOML, and for files that hold them.

A small input must not expand into a large value: not by YAML's aliases and merge keys, by nesting
or by numbers of a million digits. Values are plain: None, bool, int, float, str, list, and dict
with str keys, and all text can be encoded as UTF-8. Everything else raises a `TextError`, in time
and memory linear in the input's size.
"""

import errno
import json
import os
import stat
import tomllib
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MOST_BYTES = 1 << 20
MOST_YAML_BYTES = 64 << 10  # PyYAML parses about 100 kB a second
MOST_TOML_BYTES = 256 << 10
MOST_LEVELS = 50
MOST_VALUES = 100_000
MOST_DIGITS = 40
MOST_DOTS = (
    200  # of a line of TOML: tomllib's time and memory grow with the square of a key's parts
)

_TAG = "tag:yaml.org,2002:"
_SCALARS = {"null", "bool", "int", "float", "str"}
_SHOWN = 40
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class TextError(ValueError):
    """A text is malformed or exceeds a limit; the message says what it holds."""


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device may never end.

    Raises:
        OSError: The file does not exist, or is not a regular file.
    """
    # without O_NONBLOCK, opening a pipe without a writer blocks forever
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file only says where Git LFS has the real one (its specification, Pointer)."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def json_value(data: bytes, *, most_bytes: int = MOST_BYTES) -> Any:  # noqa: ANN401
    """The value of a JSON text.

    Raises:
        TextError: It is not JSON, an object has a duplicate name, or a limit is exceeded.
    """
    _check_size(len(data), most_bytes)
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise _too_many()
    return _parsed(data, lambda text: json.loads(text, object_pairs_hook=_object, parse_int=_int))


def toml_value(data: bytes) -> dict[str, Any]:
    """The value of a TOML text.

    Raises:
        TextError: It is not TOML, holds a date, or exceeds a limit.
    """
    _check_size(len(data), MOST_TOML_BYTES)
    if any(line.count(b".") > MOST_DOTS for line in data.splitlines()):
        raise TextError(f"a line with more than {MOST_DOTS} dots")
    value: dict[str, Any] = _parsed(data, tomllib.loads)
    return value


def yaml_value(data: bytes) -> Any:  # noqa: ANN401  any plain value
    """The value of a YAML text, by YAML 1.1 as PyYAML reads it, restricted to plain values.

    Tags of other types, dates, sexagesimal numbers, merge keys and keys that are not text are
    rejected. Aliases are counted as the values that they refer to.

    Raises:
        TextError: It is not YAML, is not plain, or exceeds a limit.
    """
    _check_size(len(data), MOST_YAML_BYTES)
    return _parsed(data, lambda text: _Yaml(text).document())


def _parsed(data: bytes, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401
    try:
        value = parse(data.decode())
    except TextError:
        raise
    except RecursionError as error:
        raise _too_deep() from error
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise TextError(" ".join(str(error).split())) from error  # YAML's has several lines
    _check_plain(value)
    return value


def _check_size(size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise TextError(f"{size_bytes:,} bytes, where {most_bytes:,} are allowed")


def _check_plain(value: object) -> None:
    level, count = [value], 0
    for _ in range(MOST_LEVELS):
        for item in level:
            _check_scalar(item)
        level = [child for item in level for child in _children(item)]
        count += len(level)
        if count > MOST_VALUES:
            raise _too_many()
        if not level:
            return
    raise _too_deep()


def _check_scalar(value: object) -> None:
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise TextError(f"a whole number of more than {MOST_DIGITS} digits")
    if not isinstance(value, dict | list | str | int | float | None):
        raise TextError(f"a {type(value).__name__}, {str(value)[:_SHOWN]}, which must be quoted")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise TextError("half of a surrogate pair, which is no character") from error


def _children(value: object) -> Collection[object]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else ()


def _int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise TextError(f"a whole number of more than {MOST_DIGITS} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate names: parsers differ on which of two is used."""
    if len(found := dict(pairs)) != len(pairs):
        raise TextError("a name that stands twice in one object")
    return found


def _too_deep() -> TextError:
    return TextError(f"values in one another, more than {MOST_LEVELS} deep")


def _too_many() -> TextError:
    return TextError(f"more than {MOST_VALUES:,} values")


class _Yaml:
    """Builds the value of one document from PyYAML's events.

    yaml.safe_load builds the value before it can be bounded: merge keys copy what they refer to,
    and 500 bytes of them took 23 s and 757 MB.
    """

    def __init__(self, text: str) -> None:
        self._loader: Any = yaml.SafeLoader(text)  # untyped: its stubs know half of it
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._count = 0

    def document(self) -> Any:  # noqa: ANN401
        """The only document; None if the text is empty."""
        loader = self._loader
        loader.get_event()
        if loader.check_event(yaml.StreamEndEvent):
            return None
        loader.get_event()
        value = self._node(1)
        loader.get_event()
        if not loader.check_event(yaml.StreamEndEvent):
            raise TextError("more than one document")
        return value

    def _node(self, level: int) -> Any:  # noqa: ANN401
        event = self._loader.get_event()
        if isinstance(event, yaml.AliasEvent):
            return self._known(event)
        if level > MOST_LEVELS:
            raise _too_deep()
        before = self._count
        self._add(1)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(event, level)
        else:
            value = self._mapping(event, level)
        if event.anchor is not None:
            if event.anchor in self._anchors:
                raise _in_line(event, f"the anchor {event.anchor[:_SHOWN]} twice")
            self._anchors[event.anchor] = value, self._count - before
        return value

    def _known(self, event: Any) -> Any:  # noqa: ANN401
        if event.anchor not in self._anchors:
            raise _in_line(event, f"an alias to {event.anchor[:_SHOWN]}, which is not there yet")
        value, count = self._anchors[event.anchor]
        self._add(count)
        return value

    def _add(self, count: int) -> None:
        self._count += count
        if self._count > MOST_VALUES:
            raise _too_many()

    def _sequence(self, start: Any, level: int) -> list[Any]:  # noqa: ANN401
        _check_tag(start, f"{_TAG}seq")
        values = []
        while not self._loader.check_event(yaml.SequenceEndEvent):
            values.append(self._node(level + 1))
        self._loader.get_event()
        return values

    def _mapping(self, start: Any, level: int) -> dict[str, Any]:  # noqa: ANN401
        _check_tag(start, f"{_TAG}map")
        values: dict[str, Any] = {}
        while not self._loader.check_event(yaml.MappingEndEvent):
            place = self._loader.peek_event()
            name = self._node(level + 1)
            if not isinstance(name, str):
                raise _in_line(place, "a key that is no text and must be quoted")
            if name in values:
                raise _in_line(place, f"the key {name[:_SHOWN]!r} twice")
            values[name] = self._node(level + 1)
        self._loader.get_event()
        return values

    def _scalar(self, event: Any) -> Any:  # noqa: ANN401
        tag, text, loader = event.tag, event.value, self._loader
        if tag in (None, "!"):
            tag = loader.resolve(yaml.ScalarNode, text, event.implicit)
        if tag == f"{_TAG}merge":
            raise _in_line(event, "a merge key (<<), which must be written out")
        kind = tag.removeprefix(_TAG)
        is_odd = kind in {"int", "float"} and (":" in text or len(text) > MOST_DIGITS)
        if kind in _SCALARS and not is_odd:
            with suppress(ValueError, KeyError, IndexError, OverflowError):
                return getattr(loader, f"construct_yaml_{kind}")(yaml.ScalarNode(tag, text))
        found = f"the {kind[:_SHOWN]} {text[:_SHOWN]!r}, which must be quoted"
        raise _in_line(event, found)


def _check_tag(event: Any, expected: str) -> None:  # noqa: ANN401
    if event.tag not in (None, "!", expected):
        raise _in_line(event, f"the tag {event.tag[:_SHOWN]}")


def _in_line(event: Any, found: str) -> TextError:  # noqa: ANN401
    return TextError(f"{found}, in line {event.start_mark.line + 1}")
