"""FLAC: parses STREAMINFO (RFC 9639, 8.2)."""

from dataclasses import dataclass

from marship.errors import MalformedError, UnsupportedMediaError

SIGNATURE = b"fLaC"
BITS = (8, 16, 24)  # supported by libsndfile; others are rare
_END = 42  # of the STREAMINFO, which is first and of fixed size
_FIELDS = slice(18, 26)  # rate, channels, bits and frames, packed in 64 bits
_FRAMES_BITS = 36


@dataclass(frozen=True, slots=True)
class FlacHeader:
    """The fields of STREAMINFO.

    Attributes:
        rate: The sample rate.
        channels: The number of channels.
        frames: The number of frames; 0 if unknown.
    """

    rate: int
    channels: int
    frames: int


def read_header(data: bytes) -> FlacHeader:
    """Read the STREAMINFO.

    Raises:
        MalformedError: It is missing.
        UnsupportedMediaError: A sample has other than 8, 16 or 24 bits.
    """
    if len(data) < _END or data[4] & 0x7F or data[5:8] != b"\0\0\x22":
        raise MalformedError("a FLAC must begin with its STREAMINFO, got only the beginning.")
    fields = int.from_bytes(data[_FIELDS], "big")
    bits = (fields >> 36 & 0x1F) + 1
    if bits not in BITS:
        raise UnsupportedMediaError(f"a FLAC must have 8, 16 or 24 bits a sample, got {bits}.")
    return FlacHeader(
        rate=fields >> 44,
        channels=(fields >> 41 & 7) + 1,
        frames=fields & (1 << _FRAMES_BITS) - 1,
    )


def without_frames(data: bytes) -> bytes:
    """The file with its number of frames removed, at which libsndfile would stop."""
    fields = int.from_bytes(data[_FIELDS], "big") >> _FRAMES_BITS << _FRAMES_BITS
    return b"".join((data[: _FIELDS.start], fields.to_bytes(8, "big"), data[_FIELDS.stop :]))
