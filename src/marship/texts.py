"""JSON and YAML in archives that nobody has vouched for: no large text is read, and no deep one.

What such texts say is printed and walked through, so a few bytes must not stand for much: not
by compression, not by YAML's aliases, not by nesting.
"""

import json
import zipfile
from collections.abc import Callable, Collection
from typing import Any

MOST_BYTES = 1 << 20
MOST_LEVELS = 50


def read(zipped: zipfile.ZipFile, name: str) -> bytes:
    """A file of an archive that holds a text.

    Raises:
        KeyError: There is no such file.
        ValueError: It is too large.
    """
    info = zipped.getinfo(name)
    if info.file_size > MOST_BYTES:
        raise ValueError(f"{name} of {info.file_size:,} bytes, where {MOST_BYTES:,} are allowed")
    with zipped.open(info) as file:
        return file.read(MOST_BYTES)  # with a number: else a lying header's data is unpacked whole


def parsed(text: bytes, parse: Callable[[bytes], Any] = json.loads) -> Any:  # noqa: ANN401
    """The value of a text.

    Raises:
        ValueError: It nests too deep, or repeats itself too often; or as `parse` raises.
    """
    try:
        value = parse(text)
    except RecursionError as error:
        raise _too_deep() from error
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [child for item in level for child in _children(item)]
        if len(level) > MOST_BYTES:
            raise ValueError("more values than the text has characters")
        if not level:
            return value
    raise _too_deep()


def _children(value: object) -> Collection[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep() -> ValueError:
    return ValueError(f"values in one another, more than {MOST_LEVELS} deep")
