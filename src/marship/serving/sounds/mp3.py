"""MP3: its frames (ISO/IEC 11172-3, 2.4.1.3; 13818-3; Xing's tag as LAME writes it).

There is no container: a file is a sequence of frames, with tags around them. libsndfile takes the
number of frames from Xing's tag, or estimates it from the first frame, and stops there. So frames
are counted here, and libsndfile gets a file with the right number.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from marship.errors import MalformedError

MOST_GARBAGE_BYTES = 1 << 16
"""Maximum bytes before the first frame, excluding tags."""
FRAMES_IN_A_ROW = 3
"""Frames that identify an MP3; fewer if they are the whole file."""
_HEAD_BYTES = 4
_SYNC = 0x7FF  # eleven bits
_RATES = (44_100, 48_000, 32_000)
_SPEEDS = {  # bits a second / 1000, of layer III
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_2_5, _RESERVED, _MPEG_2, _MPEG_1 = range(4)
_LAYER_3 = 1
_MONO = 3
_FASTEST = 14
_HAS_FRAMES, _HAS_BYTES = 1, 2  # of the flags of Xing's tag
_ID3V1_BYTES = 128
_APE_HEAD_BYTES = 32


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header.

    Attributes:
        version: The header's code: 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5.
        rate: The sample rate.
        channels: 1 or 2.
        size_bytes: The frame's size, including its header.
    """

    version: int
    rate: int
    channels: int
    size_bytes: int

    @property
    def samples(self) -> int:
        """Samples per channel."""
        return 1152 if self.version == _MPEG_1 else 576

    @property
    def side_bytes(self) -> int:
        """The size of the side information, after which Xing's tag is."""
        if self.version == _MPEG_1:
            return 17 if self.channels == 1 else 32
        return 9 if self.channels == 1 else 17

    def is_like(self, other: "Frame") -> bool:
        """Whether both may be of one stream."""
        return (self.version, self.rate) == (other.version, other.rate)


@dataclass(frozen=True, slots=True)
class Stream:
    """The frames of a file, without tags around them.

    Attributes:
        data: The frames; the first is a tag with their number.
        rate: The sample rate.
        channels: 1 or 2.
        frames: The number of samples per channel.
    """

    data: bytes
    rate: int
    channels: int
    frames: int


@lru_cache(1 << 12)
def _frame(head: bytes) -> Frame | None:
    """Parse the first 4 bytes of a frame; None if invalid, or without a size."""
    bits = int.from_bytes(head, "big")
    version, layer = bits >> 19 & 3, bits >> 17 & 3
    speed, rate, padding = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1
    if bits >> 21 != _SYNC or layer != _LAYER_3 or version == _RESERVED:
        return None
    if not 0 < speed <= _FASTEST or rate == len(_RATES):
        return None
    hertz = _RATES[rate] // {_MPEG_1: 1, _MPEG_2: 2, _MPEG_2_5: 4}[version]
    words = 144 if version == _MPEG_1 else 72
    bits_s = 1000 * _SPEEDS[3 if version == _MPEG_1 else 2][speed - 1]
    channels = 1 if bits >> 6 & 3 == _MONO else 2
    return Frame(version, hertz, channels, words * bits_s // hertz + padding)


def skip_id3(data: bytes, place: int = 0) -> int:
    """The end of the ID3v2 tags at `place` (ID3 2.4.0, 3.1)."""
    while data[place : place + 3] == b"ID3" and len(data) >= place + 10:
        size = 0
        for byte in data[place + 6 : place + 10]:
            size = size << 7 | byte & 0x7F
        has_footer = data[place + 5] >> 4 & 1
        place += 10 + size + 10 * has_footer
    return place


def find(data: bytes) -> int | None:
    """The start of the first frame; None if the bytes are not an MP3."""
    start = skip_id3(data)
    place = data.find(b"\xff", start, start + MOST_GARBAGE_BYTES)
    while place >= 0:
        if _is_stream(data, place, 1 if place == start else FRAMES_IN_A_ROW):
            return place
        place = data.find(b"\xff", place + 1, start + MOST_GARBAGE_BYTES)
    return None


def _is_stream(data: bytes, place: int, least: int = FRAMES_IN_A_ROW) -> bool:
    """Whether frames of one stream start here; `least` is enough at the end of the file."""
    first = _frame(data[place : place + 4])
    for count in range(FRAMES_IN_A_ROW):
        frame = _frame(data[place : place + 4])
        if first is None or frame is None or not frame.is_like(first):
            return count >= least and _skip_tags(data, place) >= len(data)
        place += frame.size_bytes
    return True


def _skip_tags(data: bytes, place: int) -> int:
    """The end of tags of any type at `place`."""
    start = None
    while place != start:
        start = place
        place = skip_id3(data, place)
        if data[place : place + 3] == b"TAG":
            place += _ID3V1_BYTES
        if data[place : place + 8] == b"APETAGEX":
            place += _APE_HEAD_BYTES + int.from_bytes(data[place + 12 : place + 16], "little")
    return place


def read(data: bytes, start: int) -> Stream:
    """Extract the frames from `start` on.

    Raises:
        MalformedError: The last frame is truncated, there are fewer than in Xing's tag, or
            other data than tags is between frames.
    """
    first = _frame(data[start : start + 4])
    if first is None:
        raise _damaged(f"no frame at byte {start}")
    runs: list[bytes] = []
    count = 0
    for begin, end, frames in _runs(data, start, first):
        runs.append(data[begin:end])
        count += frames
    stream = _counted(b"".join(runs), first, count)
    return Stream(stream, first.rate, first.channels, count * first.samples)


def _runs(data: bytes, place: int, first: Frame) -> Iterator[tuple[int, int, int]]:
    """Runs of contiguous frames: start, end, and number of frames."""
    begin, count = place, 0
    while place < len(data):
        frame = _frame(data[place : place + 4])
        if frame is not None and frame.is_like(first):
            place += frame.size_bytes
            count += 1
            continue
        yield begin, place, count
        begin, count = _skip_tags(data, place), 0
        if begin == place:
            _check_rest(data, place, first)
            return
        place = begin
    if place > len(data) and count:
        raise _damaged("only the beginning of one")
    if count:
        yield begin, place, count


def _check_rest(data: bytes, place: int, first: Frame) -> None:
    """Reject trailing data that is long or holds more frames."""
    if len(data) - place < _HEAD_BYTES and data[place] == _SYNC >> 3:
        raise _damaged("only the beginning of one")
    found = data.find(b"\xff", place)
    is_long = len(data) - place > MOST_GARBAGE_BYTES
    while found >= 0 and not is_long:
        frame = _frame(data[found : found + 4])
        is_long = frame is not None and frame.is_like(first) and _is_stream(data, found)
        found = data.find(b"\xff", found + 1)
    if is_long:
        raise _damaged(f"no frame at byte {place}")


def _counted(data: bytes, first: Frame, count: int) -> bytes:
    """The frames, preceded by a tag with their number."""
    delay = _encoder_delay(data, first)
    if delay is None:
        return _tag(data[:4], first, count) + data
    frames, size = delay
    count -= 1
    if frames > count + 1:  # some encoders include the tag
        raise _damaged(f"{count} of {frames} frames")
    if frames == count and abs(size - len(data)) * 100 <= len(data):
        return data
    return _tag(data[:4], first, count) + data[first.size_bytes :]


def _encoder_delay(data: bytes, first: Frame) -> tuple[int, int] | None:
    """How many frames and bytes the tag in the first frame tells of; 0 for what it leaves out."""
    place = 4 + first.side_bytes
    if data[place : place + 4] not in (b"Xing", b"Info") or first.size_bytes < place + 16:
        return None
    flags, *values = struct.unpack_from(">III", data, place + 4)
    frames = values.pop(0) if flags & _HAS_FRAMES else 0
    return frames, values.pop(0) if flags & _HAS_BYTES else len(data)


def _tag(head: bytes, first: Frame, count: int) -> bytes:
    """A silent frame with the number of frames that follow."""
    largest = (int.from_bytes(head, "big") & ~0xF200 | 0x1_0000 | _FASTEST << 12).to_bytes(4, "big")
    frame = _frame(largest)
    size = frame.size_bytes if frame else 0
    body = bytes(first.side_bytes) + b"Info" + struct.pack(">II", _HAS_FRAMES, count)
    return (largest + body).ljust(size, b"\0")


def _damaged(got: str) -> MalformedError:
    return MalformedError(f"an MP3 must be whole, got {got}.")
