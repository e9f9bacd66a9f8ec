"""HTTP bodies: decodes content encodings, and parses multipart forms.

Sources: RFC 9110, 8.4 (content encodings); RFC 1952 (gzip); RFC 8878 (zstd); RFC 7578 and RFC 2046,
5.1 (multipart/form-data).
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from email.message import Message
from typing import Any, Protocol
from urllib.parse import parse_qsl

from marship.errors import LoadError, MalformedError, TooLargeError, UnsupportedMediaError
from marship.serving.message import JSON_TYPE, MAX_FORM_FIELDS, Request

FORM_TYPE = "multipart/form-data"
FIELDS_TYPE = "application/x-www-form-urlencoded"
"""What `curl -d` and `--data-binary` call every body, whatever it is."""

_FIRST_FIELD = re.compile(rb"[A-Za-z_][\w.%\[\]-]*=")
"""How a body begins that is named and encoded, as by `curl --data-urlencode`; no JSON does."""
_FIELD_NAME = re.compile(r"[^\W\d][\w.\[\]-]*(#\d+)?")
_MAGIC = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"x\x9c": "deflate"}
"""How bodies begin; deflate is zlib's format (RFC 1950), with its usual level."""
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's `wbits`: deflate is the zlib format (RFC 9110, 8.4.1.2)."""
_ZSTD = "zstd"
_ZSTD_WINDOW_LOG = 23
"""8 MB: no sender may ask for more (RFC 9659), and without a limit 128 MB would be allocated."""
ENCODINGS = (*_WINDOW_BITS, _ZSTD)

MOST_ENCODINGS, MOST_MEMBERS = 3, 1000
"""Limits of encodings, and of gzip members or zstd frames: each costs time, and empty ones almost
no bytes."""

Parameter = tuple[str, str, Any]
"""Name, content type and value."""

_BODY_NAMES = ("body", "data")
_LONGEST_BOUNDARY = 70
_MOST_HEAD_BYTES = 1 << 13
_LONGEST_HEADER = 1 << 11
_MOST_PARAMETERS = 32
"""Of those with parameters, which the standard library reads in quadratic time."""

_CHUNK_BYTES = 1 << 16


def undo_encodings(body: Any, encodings: str, most_bytes: int) -> Any:  # noqa: ANN401  bytes, a view
    """A body without its content encodings.

    Args:
        body: The bytes as received.
        encodings: The header Content-Encoding.
        most_bytes: Maximum size of the decoded body.

    Raises:
        UnsupportedMediaError: An encoding is not in `ENCODINGS`, or there are too many.
        MalformedError: The body is not encoded as the header says.
        TooLargeError: The decoded body is too large, or has too many members.
    """
    names = _names(encodings)
    if isinstance(body, (bytes, bytearray, memoryview)):  # else the host has read it already
        for name in reversed(names):  # the last was applied last
            body = _inflated(body, name, most_bytes)
    return body


def check_compression(body: bytes | bytearray | memoryview) -> None:
    """Refuse a compressed body whose encoding no header names; no JSON or npy file begins so.

    Raises:
        MalformedError: It is gzip, zstd or deflate.
    """
    for magic, name in _MAGIC.items():
        if body[: len(magic)] == magic:
            raise MalformedError(
                f"a compressed body must have its Content-Encoding, got {name} without one. Send "
                f"the header Content-Encoding: {name}, and the Content-Type of what is in it."
            )


def check_form(request: Request) -> None:
    """Refuse a body that a host has taken apart as a form though it is none: `curl -d '[[1]]'`.

    Its pieces are names of fields, in which `+` and `%` have been replaced, or lost: without a `=`
    there is no field at all.

    Raises:
        UnsupportedMediaError: The fields have no names.
    """
    is_whole = request.name == "body" and request.field_count
    if is_whole or not is_fields(request):
        return
    names = (request.name, *request.fields)
    is_one_word = len(names) == 1 and not request.body
    if is_one_word or not all(map(_FIELD_NAME.fullmatch, names)):
        raise untyped()


def is_fields(request: Request) -> bool:
    """Whether a request came as what `curl -d` calls every body."""
    return kind_of(request.header("content-type")) == FIELDS_TYPE


def untyped() -> UnsupportedMediaError:
    """The refusal of a body that came as a form and is none."""
    return UnsupportedMediaError(
        f"Content-Type must say what the body is, got {FIELDS_TYPE}, which curl -d sends of "
        f"itself. Send the header Content-Type: {JSON_TYPE}."
    )


def kind_of(content_type: str | None) -> str:
    """The header's media type without parameters, in lower case; empty without a header."""
    return (content_type or "").partition(";")[0].strip().lower()


def _names(encodings: str) -> list[str]:
    names = [name.strip().lower() for name in encodings.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > MOST_ENCODINGS:
        raise UnsupportedMediaError(
            f"Content-Encoding must name at most {MOST_ENCODINGS} encodings, got {len(names)}."
        )
    for name in names:
        if name not in ENCODINGS:
            raise UnsupportedMediaError(
                f"Content-Encoding must be gzip, zstd, deflate or identity, got {name[:40]!r}."
            )
    return names


def _inflated(body: bytes | bytearray | memoryview, name: str, most_bytes: int) -> bytes:
    whole = bytearray()
    left, members = memoryview(body), 0
    while left:  # there may be several members or frames (RFC 1952, 2.2; RFC 8878, 3)
        members += 1
        if members > MOST_MEMBERS:
            raise TooLargeError(
                f"the body must be {name} in at most {MOST_MEMBERS} members, got more. "
                "Compress it as a whole."
            )
        inflater = _inflater(name)
        while left and not inflater.eof:
            chunk = left[:_CHUNK_BYTES]  # the inflater copies the bytes after a member
            try:
                whole += inflater.decompress(chunk, most_bytes + 1 - len(whole))
            except Exception as error:  # both libraries have an error of their own
                raise MalformedError(f"the body must be {name}, got: {error}.") from error
            if len(whole) > most_bytes:
                raise TooLargeError(
                    f"the body must have at most {most_bytes:,} bytes without its {name}, got "
                    "more. Ask for less at a time."
                )
            left = left[len(chunk) - len(inflater.unused_data) :]
        if not inflater.eof:
            raise MalformedError(f"the body must be {name}, got the beginning of it alone.")
    return bytes(whole)


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview, max_length: int, /) -> bytes: ...


def _inflater(name: str) -> _Inflater:
    if name != _ZSTD:
        return zlib.decompressobj(_WINDOW_BITS[name])
    from backports import zstd

    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=options)


def most_fields(section: Mapping[str, Any]) -> int:
    """The maximum number of form fields, from `marship:` in model-config.yaml.

    Raises:
        LoadError: The value is not a whole number from 1.
    """
    most = section.get("max_form_fields", MAX_FORM_FIELDS)
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise LoadError(
            "marship.max_form_fields in model-config.yaml must be a whole number from 1, "
            f"got {most!r}. Leave it out for {MAX_FORM_FIELDS}."
        )
    return most


def read(body: bytes, content_type: str, most_fields: int) -> tuple[list[Parameter], int]:
    """The fields of a multipart form, in order.

    Args:
        body: The whole body.
        content_type: The header, which has the boundary.
        most_fields: Maximum number of fields; of a larger form none is kept.

    Returns:
        The fields, and their number.

    Raises:
        MalformedError: The body is not a form with this boundary.
    """
    boundary = (_parameter("Content-Type", content_type, "boundary") or "").rstrip()
    if not boundary or len(boundary) > _LONGEST_BOUNDARY or not boundary.isascii():
        raise MalformedError(
            f"Content-Type must name the form's boundary of up to {_LONGEST_BOUNDARY} ASCII "
            f"letters, got {content_type[:200]!r}."
        )
    fields: list[Parameter] = []
    count = 0
    for part in _parts(body, b"--" + boundary.encode()):
        count += 1
        if count <= most_fields:
            fields.append(_field(part))
    return (fields if count <= most_fields else []), count


def _parts(body: bytes, mark: bytes) -> Iterator[bytes]:
    """The parts between the boundaries, with their headers."""
    place = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if place == 1:
        raise MalformedError("the form must begin with its boundary, got none.")
    while True:
        start = place + len(mark)
        if body[start : start + 2] == b"--":
            return
        line_end = body.find(b"\r\n", start)
        if line_end < 0 or body[start:line_end].strip(b" \t"):
            raise MalformedError("a boundary in the form must end its line, got more behind it.")
        stop = body.find(b"\r\n" + mark, line_end)
        if stop < 0:
            raise MalformedError("the form must end with its boundary, got a part without an end.")
        yield body[line_end + 2 : stop] if stop > line_end else b""
        place = stop + 2


def _field(part: bytes) -> Parameter:
    """Name, content type and value of a part."""
    if part.startswith(b"\r\n"):
        head, value = b"", part[2:]
    else:
        end = part.find(b"\r\n\r\n", 0, _MOST_HEAD_BYTES)
        if end < 0:
            raise MalformedError("a part of the form must have headers and a blank line, got none.")
        head, value = part[:end], part[end + 4 :]
    message = Message()
    for line in head.decode("utf-8", "replace").split("\r\n") if head else []:
        header, _, text = line.partition(":")
        message[header.strip() or "-"] = text.strip()
    name = _parameter("Content-Disposition", message.get("content-disposition", ""), "name")
    if name is None:
        raise MalformedError("a part of the form must be named by Content-Disposition, got none.")
    return name, message.get("content-type", ""), value


def _parameter(header: str, text: str, name: str) -> str | None:
    """A header's parameter; None where it has none of that name."""
    if len(text) > _LONGEST_HEADER:
        raise MalformedError(
            f"a form's {header} must have at most {_LONGEST_HEADER} characters, got {len(text)}. "
            "Send shorter names."
        )
    if text.count(";") > _MOST_PARAMETERS:  # which are read in quadratic time
        raise MalformedError(
            f"a form's {header} must have at most {_MOST_PARAMETERS} parameters, got more."
        )
    message = Message()
    message[header] = text
    try:
        found = message.get_param(name, header=header)
    except (TypeError, ValueError) as error:  # parameters in sections (RFC 2231, 3) that do not fit
        raise MalformedError(
            f"a form's {header} must have parameters as in RFC 2045, got {text[:200]!r}."
        ) from error
    return found if isinstance(found, str) else None  # one with a charset: RFC 7578, 4.2 has none


def fill(request: Request, parameters: Sequence[Parameter], count: int) -> None:
    """Give a request its body, content type and fields.

    The body is the parameter `body` or `data`, else the first one.

    Args:
        request: The request to fill.
        parameters: All parameters, or fewer.
        count: The number of parameters; if some were not kept, none is used, and the handler
            rejects the request.
    """
    request.field_count = count
    if count > len(parameters):
        return
    if count == 1:
        request.name, request.content_type, request.body = parameters[0]
        return
    named = dict(unique(parameters))
    if named:
        request.name = next((name for name in _BODY_NAMES if name in named), next(iter(named)))
        request.content_type, request.body = named.pop(request.name)
        request.fields = {name: value for name, (_, value) in named.items()}


def unique(parameters: Sequence[Parameter]) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Content types and values by name, made unique: a form may have several files of one name."""
    seen: Counter[str] = Counter()
    for name, content_type, value in parameters:
        seen[name] += 1
        yield f"{name}#{seen[name]}" if seen[name] > 1 else name, (content_type, value)


def request_of(
    body: bytes, headers: Mapping[str, str], *, most_fields: int, most_bytes: int
) -> Request:
    """A request from an HTTP body and headers: encodings decoded, and a form parsed.

    Args:
        body: The body as received.
        headers: By name in lower case.
        most_fields: Maximum number of form fields.
        most_bytes: Maximum size of the decoded body.

    Raises:
        RequestError: It is invalid; the client gets the message and status.
    """
    if encodings := headers.get("content-encoding"):
        body = undo_encodings(body, encodings, most_bytes)
        headers = {name: value for name, value in headers.items() if name != "content-encoding"}
    content_type = headers.get("content-type", "")
    request = Request(body, content_type, headers=headers)
    if kind_of(content_type) == FORM_TYPE:
        fill(request, *read(body, content_type, most_fields))
    elif kind_of(content_type) == FIELDS_TYPE and _FIRST_FIELD.match(body):
        fill(request, *_read_fields(body, most_fields))
    return request


def _read_fields(body: bytes, most_fields: int) -> tuple[list[Parameter], int]:
    """The fields of a form of names and values (URL Standard, 5.1), and their number, as `read`."""
    count = body.count(b"&") + 1
    if count > most_fields:
        return [], count
    try:
        found = parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise MalformedError("the form must have fields in UTF-8, got other bytes.") from error
    return [(name, "", value.encode()) for name, value in found], len(found)
