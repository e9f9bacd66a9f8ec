"""Decodes audio: WAV, FLAC, OGG (Vorbis, Opus) and MP3, to float32 mono.

The format is detected from the bytes only. Channels are averaged, then resampled by soxr (HQ).
16 bits at the wanted rate become the integers divided by 32,768, exactly. Nothing is clipped:
samples of lossy codecs and float files may exceed 1.

WAV is decoded by NumPy, the others by libsndfile through soundfile, after their containers were
checked here: libsndfile trusts the length in a header, and silently stops at the end of a truncated
file.

Limits against decompression bombs: the length, by the header and again by the decoded samples.
Decoding takes the memory of the output, up to 4 MB for a block, and two copies of the file unless
it is a WAV.
"""

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from marship.contract import Array
from marship.errors import (
    InvalidInputError,
    MalformedError,
    TooLargeError,
    UnsupportedMediaError,
)
from marship.serving.formats import forms
from marship.serving.model import heap
from marship.serving.sounds import flac, mp3, ogg, wav

if TYPE_CHECKING:
    from soundfile import SoundFile

FORMATS = "WAV, FLAC, OGG (Vorbis, Opus) or MP3"
LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000
MOST_CHANNELS = 64
LOUDEST = 16.0
"""24 dB over full scale: beyond it samples are not audio, or are integers written as float."""
BLOCK_SAMPLES = 1 << 17
"""Of all channels, decoded at a time."""
LARGE_BYTES = 8 << 20
"""Of a file or its samples: from this size on, freed memory is returned to the system at once."""
_FIRST_SECONDS = 30
_UNKNOWN_FRAMES = 1 << 62
_STDERR = 2
_mute = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """Decoded audio.

    Attributes:
        samples: float32, shape (samples,), mono, about -1 to 1, at the requested rate.
        seconds: The recording's length.
        format: wav, flac, vorbis, opus or mp3.
    """

    samples: Array
    seconds: float
    format: str

    @property
    def facts(self) -> dict[str, object]:
        """The metadata for a response, without the samples."""
        return {"seconds": round(self.seconds, 3), "format": self.format}


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream: a file, or a link of a chained OGG.

    Attributes:
        rate: The sample rate.
        channels: The number of channels.
        frames: The number of frames by the header; 0 if unknown.
        read: Yields blocks: float32, shape (frames, channels), each valid until the next.
    """

    rate: int
    channels: int
    frames: int
    read: Callable[[], Iterator[Array]]

    def check(self) -> None:
        """Reject implausible rates and numbers of channels."""
        if not LOWEST_RATE <= self.rate <= HIGHEST_RATE:
            raise MalformedError(
                f"the recording must have {LOWEST_RATE:,} to {HIGHEST_RATE:,} samples a second, "
                f"got {self.rate:,}."
            )
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise MalformedError(
                f"the recording must have 1 to {MOST_CHANNELS} channels, got {self.channels}."
            )


def decode(data: bytes, rate: int, longest_s: float) -> Sound:
    """Decode a recording to mono samples.

    Args:
        data: The file.
        rate: The wanted sample rate.
        longest_s: Maximum length of the recording.

    Raises:
        InvalidInputError: A sample is not finite, or far outside of the range -1 to 1.
        MalformedError: There are no bytes or no samples, or the file is corrupted or truncated.
        TooLargeError: The recording is longer than `longest_s`.
        UnsupportedMediaError: The bytes are not audio of a supported format.
    """
    if not data:
        raise MalformedError(f"the body must hold a recording, {FORMATS}, got no bytes.")
    kind, streams = _open(data)
    track = _Track(rate, longest_s)
    for stream in streams:
        track.add(stream)
    sound = Sound(track.take(), track.seconds, kind)
    if max(len(data), sound.samples.nbytes) >= LARGE_BYTES:
        heap.release_freed()
    return sound


class _Track:
    """Collects samples at one rate."""

    def __init__(self, rate: int, longest_s: float) -> None:
        self.seconds = 0.0
        self._rate = rate
        self._longest_s = longest_s
        self._count = 0
        self._samples = np.empty(round(rate * min(longest_s, _FIRST_SECONDS)) + 1, np.float32)

    def add(self, stream: _Stream) -> None:
        """Append a stream."""
        stream.check()
        before, frames = self.seconds, 0
        self._check_length(before + stream.frames / stream.rate)
        resample = _resampler(stream.rate, self._rate)
        for block in stream.read():
            frames += len(block)
            self.seconds = before + frames / stream.rate
            self._check_length(self.seconds)
            self._append(resample(_to_mono(block), False))
        self._append(resample(np.empty(0, np.float32), True))

    def take(self) -> Array:
        """The samples, without excess memory."""
        if not self._count:
            raise MalformedError("the recording must have samples, got none.")
        self._samples.resize(self._count, refcheck=False)
        return self._samples

    def _check_length(self, seconds: float) -> None:
        if seconds > self._longest_s:
            raise TooLargeError(
                f"the recording must last at most {self._longest_s:,.10g} s, got {seconds:,.1f} s "
                "or more. Send it in parts."
            )

    def _append(self, samples: Array) -> None:
        stop = self._count + len(samples)
        if stop > len(self._samples):
            self._samples.resize(stop + stop // 4, refcheck=False)
        self._samples[self._count : stop] = samples
        self._count = stop


def _resampler(rate: int, wanted: int) -> Callable[[Array, bool], Array]:
    """A function of a block and whether it is the last; its output is delayed by some samples."""
    if rate == wanted:
        return lambda block, _: block
    import soxr

    stream = soxr.ResampleStream(rate, wanted, 1, "float32", "HQ")
    resample: Callable[[Array, bool], Array] = stream.resample_chunk
    return resample


def _to_mono(block: Array) -> Array:
    """The mean of the channels."""
    loudest = max(block.max(), -block.min())
    if not loudest <= LOUDEST:  # also true for NaN
        raise InvalidInputError(
            f"samples must be numbers within -1 to 1, got {loudest:g}. "
            "Divide integers by their full scale before they are written as float."
        )
    if block.shape[1] == 1:
        return block[:, 0]
    mono = block[:, 0] + block[:, 1]
    for channel in range(2, block.shape[1]):
        mono += block[:, channel]
    mono *= np.float32(1 / block.shape[1])
    return mono


def _open(data: bytes) -> tuple[str, Iterator[_Stream]]:
    """The format, and the streams one after the other."""
    if wav.is_wav(data):
        return "wav", iter([_wav(data)])
    if data.startswith(ogg.SIGNATURE):
        found = ogg.streams(data)
        return found[0][0], (_sndfile(pages) for _, pages in found)
    start = mp3.skip_id3(data)
    if data.startswith(flac.SIGNATURE, start):
        return "flac", iter([_flac(data[start:])])
    first = mp3.find(data)
    if first is not None:
        return "mp3", iter([_mp3(data, first)])
    forms.check_compression(data)
    raise UnsupportedMediaError(
        f"the body must hold a recording, {FORMATS}, got bytes that begin with {data[:12]!r}."
    )


def _wav(data: bytes) -> _Stream:
    header = wav.read_header(data)
    frames = BLOCK_SAMPLES // header.channels or 1
    return _Stream(
        header.rate, header.channels, header.frames, lambda: wav.blocks(data, header, frames)
    )


def _flac(data: bytes) -> _Stream:
    header = flac.read_header(data)
    whole = flac.without_frames(data)
    return _Stream(
        header.rate, header.channels, header.frames, lambda: _blocks(_file(whole), header.frames)
    )


def _mp3(data: bytes, first: int) -> _Stream:
    found = mp3.read(data, first)
    return _Stream(found.rate, found.channels, found.frames, lambda: _blocks(_file(found.data)))


def _sndfile(data: bytes) -> _Stream:
    file = _file(data)
    frames = file.frames if file.frames < _UNKNOWN_FRAMES else 0
    return _Stream(file.samplerate, file.channels, frames, lambda: _blocks(file, frames))


def _file(data: bytes) -> "SoundFile":
    """The file as libsndfile opens it."""
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
        def seekable(self) -> bool:
            """False: otherwise soundfile would seek after each block."""
            return False

    try:
        with _muted():
            return Forward(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise _damaged(error) from error


def _blocks(file: "SoundFile", least: int = 0) -> Iterator[Array]:
    """All blocks; `least` is the number of frames by the header.

    An error after these is in data that follows the audio, such as a tag.
    """
    import soundfile

    done = 0
    with file:
        buffer = np.empty((max(1, BLOCK_SAMPLES // file.channels), file.channels), np.float32)
        while True:
            part = buffer[: least - done] if done < least else buffer
            try:
                with _muted():
                    count = file.buffer_read_into(part, "float32")
            except soundfile.LibsndfileError as error:
                if 0 < least <= done:
                    return
                raise _damaged(error) from error
            if not count:
                break
            yield part[:count]
            done += count
    if done < least:
        raise MalformedError(f"the recording must be whole, got {done:,} of {least:,} samples.")


@contextmanager
def _muted() -> Iterator[None]:
    """Suppress standard error: mpg123 prints a line for each corrupted frame.

    libsndfile does not make it quiet, and a client must not fill the worker's log.
    """
    with _mute, open(os.devnull, "wb") as null:  # noqa: PTH123  no file to read
        kept = os.dup(_STDERR)
        os.dup2(null.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)


def _damaged(error: Exception) -> MalformedError:
    return MalformedError(f"the recording must be whole, got one that cannot be read: {error}")
