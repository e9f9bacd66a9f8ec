"""Java properties files, as TorchServe's settings: read into a dictionary, and written.

The format is that of `java.util.Properties.load` (Java SE API): comments start with # or !,
a backslash at the end joins lines, elsewhere it escapes the next character.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from marship.errors import UsageError

_BLANKS = " \t\f"
_KEY_AND_VALUE = re.compile(r"((?:\\.|[^\\=: \t\f])+)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
_LINE_END = re.compile(r"\r\n|\n|\r")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_IN_KEYS, _IN_VALUES = "\\=:#! ", "\\"
_PRINTABLE = range(32, 127)
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def read(path: Path) -> dict[str, str]:
    """Read a properties file.

    Raises:
        UsageError: It cannot be read, or a line has no key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"{path} must be a readable properties file, got: {reason}. "
            "Name another one with --config."
        ) from error
    values = {}
    for number, line in _logical_lines(text):
        match = _KEY_AND_VALUE.fullmatch(line)
        if match is None:
            raise UsageError(f"{path} line {number} must read name=value, got {line!r}.")
        values[_unescaped(match[1])] = _unescaped(match[2])
    return values


def write(path: Path, values: Mapping[str, str]) -> None:
    """Write values so that `read` and Java read the same values."""
    lines = (
        f"{_escaped(key, _IN_KEYS)}={_escaped(value, _IN_VALUES)}\n"
        for key, value in values.items()
    )
    path.write_text("".join(lines), encoding="ascii")


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    joined, first = "", 0
    for number, raw in enumerate(_LINE_END.split(text), start=1):
        line = raw.lstrip(_BLANKS)
        if not joined:
            if not line or line[0] in "#!":
                continue
            first = number
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            joined += line[:-1]
            continue
        yield first, joined + line
        joined = ""
    if joined:
        yield first, joined


def _unescaped(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else _CONTROL.get(code, code)

    units = _ESCAPE.sub(plain, text).encode("utf-16", "surrogatepass")
    return units.decode("utf-16", "replace")  # \u escapes are UTF-16 units, as in Java


def _escaped(text: str, special: str) -> str:
    marked = re.sub(rf"([{re.escape(special)}])", r"\\\1", text)
    if marked.startswith(" "):
        marked = "\\" + marked
    units = marked.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if code in _PRINTABLE else f"\\u{code:04x}" for code in codes)
