"""WAV: parses chunks and samples (Microsoft, Multimedia Programming Interface 1.0).

Not decoded by libsndfile, which accepts a truncated file as complete.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from marship.contract import Array
from marship.errors import MalformedError, UnsupportedMediaError

UNKNOWN_BYTES = 0x7FFF_0000
"""Sizes from this on mean unknown: a writer to a pipe cannot seek back to fill it in.

espeak-ng and SoX write 0x7FFFF000, arecord 0x80000000, FFmpeg 0xFFFFFFFF.
"""
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")
_EXTENSIBLE = 0xFFFE
_SUBFORMAT = slice(24, 40)
_MEDIA_TYPE = bytes.fromhex("0000 0000 1000 8000 00aa 0038 9b71")  # the rest of its GUID


@dataclass(frozen=True, slots=True)
class WavHeader:
    """The header before the samples.

    Attributes:
        codec: The format tag and the bits of a sample.
        rate: The sample rate.
        channels: The number of channels.
        start: The start of the samples, in bytes.
        stop: The end of the samples.
    """

    codec: tuple[int, int]
    rate: int
    channels: int
    start: int
    stop: int

    @property
    def frame_bytes(self) -> int:
        """The size of one sample of all channels."""
        return self.channels * self.codec[1] // 8

    @property
    def frames(self) -> int:
        """The number of complete frames; a partial one at the end is ignored."""
        return (self.stop - self.start) // self.frame_bytes


def is_wav(data: bytes) -> bool:
    """Whether the bytes are a RIFF file of type WAVE."""
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def read_header(data: bytes) -> WavHeader:
    """Read the chunks up to the samples.

    Raises:
        MalformedError: A chunk is missing or truncated.
        UnsupportedMediaError: The samples have an unsupported format, such as ADPCM.
    """
    place, form = 12, b""
    while place + _CHUNK.size <= len(data):
        name, size = _CHUNK.unpack_from(data, place)
        place += _CHUNK.size
        if name == b"data":
            return _header(form, place, _end(data, place, size))
        if name == b"fmt ":
            form = data[place : place + size]
        place += size + size % 2
    raise MalformedError("a WAV must be whole, got one without samples.")


def _header(form: bytes, start: int, stop: int) -> WavHeader:
    try:
        tag, channels, rate, _, frame_bytes, bits = _FORMAT.unpack_from(form)
    except struct.error as error:
        raise MalformedError("a WAV must tell its format before its samples.") from error
    if tag == _EXTENSIBLE:
        guid = form[_SUBFORMAT]
        tag = int.from_bytes(guid[:2], "little") if guid[2:] == _MEDIA_TYPE else tag
    if (tag, bits) not in _READERS:
        raise UnsupportedMediaError(
            "a WAV must hold PCM of 8, 16, 24 or 32 bits, float of 32 or 64, A-law or mu-law, "
            f"got format 0x{tag:04X} with {bits} bits."
        )
    if not channels or frame_bytes != channels * bits // 8:
        raise MalformedError(
            f"a WAV's frame must be its channels' samples, got {channels} channels of {bits} bits "
            f"in {frame_bytes} bytes."
        )
    return WavHeader((tag, bits), rate, channels, start, stop)


def _end(data: bytes, start: int, size: int) -> int:
    """The end of the samples, by the actual data rather than by the header."""
    stop = start + size
    if size >= UNKNOWN_BYTES or (not size and not _is_honest(data)):
        return len(data)
    if stop > len(data):
        raise MalformedError(
            f"a WAV must be whole, got {len(data) - start} of {size} bytes of samples."
        )
    return stop if _are_chunks(data, stop + size % 2) else len(data)


def _is_honest(data: bytes) -> bool:
    """Whether the RIFF size, which an encoder fills in last, is right."""
    return int.from_bytes(data[4:8], "little") + 8 == len(data)


def _are_chunks(data: bytes, place: int) -> bool:
    """Whether the samples are followed by chunks, or by too little to be further samples."""
    while place + _CHUNK.size <= len(data):
        name, size = _CHUNK.unpack_from(data, place)
        if not name.isascii() or not name.decode().isprintable():
            return False
        place += _CHUNK.size + size + size % 2
    return place <= len(data) + 1  # the padding of the last one may be missing


def blocks(data: bytes, header: WavHeader, frames: int) -> Iterator[Array]:
    """The samples in blocks of frames: float32, shape (frames, channels)."""
    read, size = _READERS[header.codec], header.frame_bytes
    stop = header.start + header.frames * size
    for place in range(header.start, stop, frames * size):
        count = min(frames * size, stop - place)
        raw = np.frombuffer(data, np.uint8, count, place)
        yield read(raw).reshape(-1, header.channels)


def _unsigned(raw: Array) -> Array:
    return (raw.astype(np.float32) - 128) / 128


def _signed(kind: str) -> Callable[[Array], Array]:
    scale = np.float32(2.0 ** (1 - 8 * np.dtype(kind).itemsize))
    return lambda raw: raw.view(kind).astype(np.float32) * scale


def _signed_24(raw: Array) -> Array:
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    wide[:, 1:] = raw.reshape(-1, 3)
    return _signed("<i4")(wide.reshape(-1))


def _floating(kind: str) -> Callable[[Array], Array]:
    def read(raw: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are rejected later
            return raw.view(kind).astype(np.float32)

    return read


def _looked_up(table: Array) -> Callable[[Array], Array]:
    return lambda raw: table[raw]


def _a_law() -> Array:
    """The value of each byte (ITU-T G.711, table 1)."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = code >> 4 & 7, code & 15
    size = np.where(exponent > 0, (2 * mantissa + 33) << exponent, 4 * mantissa + 2)
    return (np.where(code & 0x80, size, -size) * 4 / 2**15).astype(np.float32)


def _mu_law() -> Array:
    """The value of each byte (ITU-T G.711, table 2)."""
    code = ~np.arange(256) & 0xFF
    size = ((2 * (code & 15) + 33) << (code >> 4 & 7)) - 33
    return (np.where(code & 0x80, -size, size) * 4 / 2**15).astype(np.float32)


_PCM, _FLOAT, _A_LAW, _MU_LAW = 1, 3, 6, 7
_READERS: dict[tuple[int, int], Callable[[Array], Array]] = {
    (_PCM, 8): _unsigned,
    (_PCM, 16): _signed("<i2"),
    (_PCM, 24): _signed_24,
    (_PCM, 32): _signed("<i4"),
    (_FLOAT, 32): _floating("<f4"),
    (_FLOAT, 64): _floating("<f8"),
    (_A_LAW, 8): _looked_up(_a_law()),
    (_MU_LAW, 8): _looked_up(_mu_law()),
}
