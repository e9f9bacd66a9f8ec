"""JSON, YAML and TOML that nobody has vouched for, and the files that hold them.

A few bytes must not stand for much: not by YAML's aliases and merge keys, not by nesting, not by
numbers of a million digits. What comes out is plain: None, bool, int, float, str, list, and dict
with str keys, all of it text that can be encoded. Every other text is a `TextError`, in time and
memory that grow with its size alone.
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


class TextError(ValueError):
    """A text is damaged, or stands for more than is allowed; the message is what it holds."""


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to read it; a pipe or a device may never end.

    Raises:
        OSError: There is no such file, or it is something else than a regular file.
    """
    # without O_NONBLOCK, to open a pipe that nobody writes to waits for ever
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def json_value(data: bytes, *, most_bytes: int = MOST_BYTES) -> Any:  # noqa: ANN401
    """The value of a JSON text.

    Raises:
        TextError: It is no JSON, a name stands twice in one object, or it is too much.
    """
    _check_size(len(data), most_bytes)
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise _too_many()
    return _parsed(data, lambda text: json.loads(text, object_pairs_hook=_object, parse_int=_int))


def toml_value(data: bytes) -> dict[str, Any]:
    """The value of a TOML text.

    Raises:
        TextError: It is no TOML, holds a date, or is too much.
    """
    _check_size(len(data), MOST_TOML_BYTES)
    if any(line.count(b".") > MOST_DOTS for line in data.splitlines()):
        raise TextError(f"a line with more than {MOST_DOTS} dots")
    value: dict[str, Any] = _parsed(data, tomllib.loads)
    return value


def yaml_value(data: bytes) -> Any:  # noqa: ANN401  any plain value
    """The value of a YAML text, by YAML 1.1 as PyYAML reads it, without what is not plain.

    Tags of other types, dates, numbers of base 60, merge keys and keys that are no text are
    refused. Aliases count as what they stand for.

    Raises:
        TextError: It is no YAML, is not plain, or is too much.
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
    """A JSON object whose names are there once: readers differ on which of two counts."""
    if len(found := dict(pairs)) != len(pairs):
        raise TextError("a name that stands twice in one object")
    return found


def _too_deep() -> TextError:
    return TextError(f"values in one another, more than {MOST_LEVELS} deep")


def _too_many() -> TextError:
    return TextError(f"more than {MOST_VALUES:,} values")


class _Yaml:
    """Builds the value of one document from PyYAML's events.

    yaml.safe_load builds first and leaves nothing to count: its merge keys copy what they name,
    and 500 bytes of them took 23 s and 757 MB.
    """

    def __init__(self, text: str) -> None:
        self._loader: Any = yaml.SafeLoader(text)  # untyped: its stubs know half of it
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._count = 0

    def document(self) -> Any:  # noqa: ANN401
        """The only document; None where there is none."""
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
