"""Media types of files, by their suffixes."""

import mimetypes
from pathlib import Path

from marship.errors import MalformedError
from marship.serving.formats.codec import (
    JSON_TYPE,
    NPY_MAGIC,
    NPY_TYPE,
    OCTETS_TYPE,
    UNTYPED,
    read_json,
)
from marship.serving.formats.forms import kind_of

TEXT_TYPE = "text/plain"
_UNKNOWN = ".bin"
_TYPES = mimetypes.MimeTypes()  # Python's built-in table, not the machine's
for _suffix, _type in {
    ".npy": NPY_TYPE,
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".wav": "audio/wav",
    ".webp": "image/webp",
}.items():
    _TYPES.add_type(_type, _suffix)


def media_type(path: Path) -> str:
    """A file's media type by its suffix; application/octet-stream if unknown."""
    kind, encoding = _TYPES.guess_type(f"x{path.suffix}", strict=False)
    return kind if kind and not encoding else OCTETS_TYPE


def suffix_of(content_type: str, body: bytes) -> str:
    """The suffix of a file with a request's body, by which `media_type` finds its type again.

    A body without a type that says anything is JSON or npy where it reads as such, as for `codec`.

    Example:
        >>> suffix_of("image/jpeg", b""), suffix_of("", b"[[1]]"), suffix_of("", b"1 2")
        ('.jpg', '.json', '.bin')
    """
    kind = kind_of(content_type)
    if kind.endswith("+json"):
        return ".json"
    if kind not in UNTYPED:
        return _TYPES.guess_extension(kind, strict=False) or _UNKNOWN
    if body[: len(NPY_MAGIC)] == NPY_MAGIC:
        return ".npy"
    try:
        read_json(body, JSON_TYPE)
    except MalformedError:
        return _UNKNOWN
    return ".json"
