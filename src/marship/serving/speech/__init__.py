"""Transcription of recordings: split into chunks, transcribed a few at a time, and joined."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from marship.contract import Array, Arrays, Contract
from marship.errors import LoadError, MarshipError, RequestError, bare
from marship.serving import sounds
from marship.serving.message import hidden
from marship.serving.model import heap
from marship.serving.sounds import silence
from marship.serving.speech.segment import Segment

MOST_CHUNKS = 2
"""Chunks in one call of the model. Each further one of Whisper tiny takes 200 MB, whatever its
length; two took 17 % less time a chunk than one by one, four 27 %, on one thread."""

MOST_STRETCH = 2
"""Maximum ratio of chunk lengths in one call, as the shorter one is padded."""

MOST_OPEN_S = 600.0
"""No further recording is decoded while more than this is in memory: 64 KB a second."""

LARGE_S = 60.0
"""Memory of a recording longer than this is returned to the system at once."""

TIMEOUT_SHARE = 0.9


class Reader(Protocol):
    """Converts a model's outputs to text."""

    def read(self, outputs: Arrays, seconds: float) -> list[Segment]:
        """The segments of one chunk.

        Args:
            outputs: The model's outputs for this chunk: a batch of one.
            seconds: The chunk's length.
        """


def reader(about: Mapping[str, Any], folder: Path) -> Reader:
    """The reader for the kind of model in speech.json.

    Args:
        about: The content of speech.json.
        folder: The folder with further files.

    Raises:
        LoadError: The kind is unknown, or its reader cannot be created.
    """
    kind = about["kind"]
    if kind == "ctc":
        from marship.serving.speech.ctc import CtcReader

        return CtcReader(about, folder)
    if kind == "whisper":
        from marship.serving.speech.whisper import WhisperReader

        return WhisperReader(about, folder)
    raise LoadError(f"kind in speech.json must be ctc or whisper, got {kind!r}. Package again.")


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """A model's audio input format.

    Attributes:
        contract: The contract; inputs are the samples, and perhaps their number.
        rate: The sample rate.
        chunk_s: The longest chunk.
    """

    contract: Contract
    rate: int
    chunk_s: float

    def __post_init__(self) -> None:
        """Raises: LoadError: The model has other inputs."""
        kinds = [(spec.dtype, len(spec.shape)) for spec in self.contract.inputs]
        if kinds not in ([("float32", 2)], [("float32", 2), ("int64", 1)]):
            raise LoadError(
                "the model must take float32[batch, samples] and perhaps int64[batch], got "
                f"{', '.join(map(str, self.contract.inputs))}."
            )

    def inputs(self, samples: Array) -> Arrays:
        """One chunk's tensors, padded to the model's minimum length."""
        audio, *length = self.contract.inputs
        shortest = audio.shape[1]
        if isinstance(shortest, str):
            shortest = self.contract.bounds.get(shortest, (1, None))[0]
        taken = samples
        if len(samples) < shortest:
            taken = np.zeros(shortest, np.float32)
            taken[: len(samples)] = samples
        tensors: Arrays = {audio.name: taken[None]}
        return tensors | {spec.name: np.array([len(samples)]) for spec in length}


@dataclass(slots=True)
class Recording:
    """One recording, and its transcript so far.

    Attributes:
        body: Its bytes, until it is decoded.
        facts: Duration and format, once it is decoded.
        segments: The transcript so far.
        error: Why transcription failed; it is not continued then.
        was_opened: Whether decoding was attempted.
    """

    body: bytes | memoryview | None
    facts: dict[str, object] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    error: MarshipError | None = None
    was_opened: bool = False
    _samples: Array | None = None
    _chunks: deque[tuple[int, int]] = field(default_factory=deque)
    _rate: int = 1
    _sent_count: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the transcript is complete, or failed."""
        return self.was_opened and not self._chunks

    @property
    def decoded_s(self) -> float:
        """Seconds of decoded audio in memory."""
        return 0.0 if self._samples is None else len(self._samples) / self._rate

    @property
    def left(self) -> int:
        """The number of samples that are not transcribed yet."""
        return sum(stop - start for start, stop in self._chunks)

    def open(self, form: AudioFormat, longest_s: float) -> None:
        """Decode the recording, and split it into chunks without silence."""
        body, self.body, self.was_opened = self.body, None, True
        try:
            sound = sounds.decode(bytes(body or b""), form.rate, longest_s)
            chunks = list(silence.cut(sound.samples, form.rate, form.chunk_s))
        except RequestError as error:
            self.fail(error)
            return
        except Exception:  # an error in decoding one recording must not affect others
            self.fail(hidden("decode"))
            return
        self.facts = dict(sound.facts)
        self._samples, self._rate = sound.samples, form.rate
        self._chunks.extend(chunks)
        self._release()

    def chunks(self) -> Iterator[Array]:
        """The samples of each remaining chunk."""
        if self._samples is not None:
            for start, stop in self._chunks:
                yield self._samples[start:stop]

    def hear(self, outputs: Arrays, voice: Reader) -> None:
        """Add the transcript of the next chunk, from the model's outputs."""
        start, stop = self._chunks.popleft()
        segments = voice.read(outputs, (stop - start) / self._rate)
        self.segments += [segment.moved(start / self._rate) for segment in segments]
        self._release()

    def fail(self, error: MarshipError) -> None:
        """Stop its transcription with an error."""
        self.error, self.was_opened, self.body = bare(error), True, None
        self._chunks.clear()
        self._release()

    def news(self) -> list[Segment]:
        """The segments since the last call."""
        fresh = self.segments[self._sent_count :]
        self._sent_count = len(self.segments)
        return fresh

    def answer(self) -> dict[str, object]:
        """The whole transcript.

        The confidence is the mean of the segments', weighted by duration; None without speech.
        """
        spans = [max(segment.end_s - segment.start_s, 1e-3) for segment in self.segments]
        sums = sum(s.confidence * span for s, span in zip(self.segments, spans, strict=True))
        return {
            "text": " ".join(text for s in self.segments if (text := s.text.strip())),
            "confidence": round(sums / sum(spans), 4) if spans else None,
            **self.facts,
            "segments": [segment.facts() for segment in self.segments],
        }

    def _release(self) -> None:
        if self._samples is None or self._chunks:
            return
        large = self.decoded_s > LARGE_S
        self._samples = None
        if large:
            heap.release_freed()


class Queue:
    """The recordings of a batch, transcribed a few chunks at a time.

    The recording with the least remaining audio is first, so a short one never waits for the end
    of a long one; long ones are not decoded before there is memory.

    Args:
        recordings: All recordings of the batch.
        form: The model's audio format.
        longest_s: Maximum length of a recording.
    """

    def __init__(
        self, recordings: Sequence[Recording], form: AudioFormat, longest_s: float
    ) -> None:
        self._form, self._longest_s = form, longest_s
        self._waiting = deque(sorted(recordings, key=lambda recording: len(recording.body or b"")))
        self._open: list[Recording] = []

    def open_some(self) -> None:
        """Decode as many recordings as memory allows."""
        self._open = [recording for recording in self._open if not recording.is_done]
        while self._waiting and sum(r.decoded_s for r in self._open) < MOST_OPEN_S:
            recording = self._waiting.popleft()
            if recording.was_opened:
                continue  # it has failed
            recording.open(self._form, self._longest_s)
            if not recording.is_done:
                self._open.append(recording)

    def turn(self) -> list[tuple[Recording, Arrays]]:
        """Chunks for the next call of the model; empty when finished."""
        chosen: list[tuple[Recording, Array]] = []
        for recording in sorted(self._open, key=lambda recording: recording.left):
            for samples in recording.chunks():
                sizes = [len(samples), *(len(other) for _, other in chosen)]
                if len(sizes) > MOST_CHUNKS or max(sizes) > MOST_STRETCH * min(sizes):
                    break
                chosen.append((recording, samples))
        turn = []
        for recording, samples in chosen:
            try:
                turn.append((recording, self._form.inputs(samples)))
            except Exception:  # memory, say, for this recording alone
                recording.fail(hidden("decode"))
        return turn


@dataclass(slots=True)
class TranscriptionRequest:
    """One request: its recordings, and how to respond.

    Attributes:
        recordings: By name of the form field.
        streams: Whether segments are streamed.
    """

    recordings: dict[str, Recording]
    streams: bool

    @property
    def is_done(self) -> bool:
        """Whether all recordings are done."""
        return all(recording.is_done for recording in self.recordings.values())

    @property
    def has_begun(self) -> bool:
        """Whether decoding of a recording was attempted, so that errors in it are known."""
        return any(recording.was_opened for recording in self.recordings.values())

    @property
    def failure(self) -> MarshipError | None:
        """The only recording's error; with several, each has its own in the response."""
        if len(self.recordings) > 1:
            return None
        return next(iter(self.recordings.values())).error

    def news(self) -> list[dict[str, object]]:
        """The segments since the last call, with the recording's name if there are several."""
        several = len(self.recordings) > 1
        return [
            ({"name": name} if several else {}) | segment.facts()
            for name, recording in self.recordings.items()
            for segment in recording.news()
        ]

    def answer(self) -> dict[str, object]:
        """The only recording's transcript, or the transcript or error of each."""
        if len(self.recordings) == 1:
            return next(iter(self.recordings.values())).answer()
        rows = []
        for name, recording in self.recordings.items():
            error = recording.error
            facts = {"code": error.code, "message": str(error)} if error else recording.answer()
            rows.append({"name": name, **facts})
        return {"recordings": rows}


class Deadline:
    """The host's timeout, after which it kills a worker that has sent no message.

    Args:
        timeout_s: The host's timeout for a message; None without one.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._limit_s = math.inf if timeout_s is None else TIMEOUT_SHARE * timeout_s
        self._last_message = self._last = time.monotonic()
        self._longest_s = 0.0

    def lap(self, *, says: bool) -> bool:
        """End an iteration; returns whether the next one could exceed the timeout.

        Args:
            says: Whether a message is sent now.
        """
        now = time.monotonic()
        self._longest_s = max(self._longest_s, now - self._last)
        self._last = now
        if says:
            self._last_message = now
        return now - self._last_message + self._longest_s > self._limit_s


# the names that handlers written for earlier versions import
Form, Task = AudioFormat, TranscriptionRequest
