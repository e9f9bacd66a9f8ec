"""Media types of files, by their suffixes."""

import mimetypes
from pathlib import Path

from marship.serving.formats.codec import NPY_TYPE, OCTETS_TYPE

TEXT_TYPE = "text/plain"
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
