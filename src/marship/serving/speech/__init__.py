"""Transcription of recordings: cut into chunks, decoded a few at a time, joined again."""

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
"""A chunk shares no call with one that is longer by more than this: it would be padded."""

MOST_OPEN_S = 600.0
"""No further recording is decoded while more than this is held decoded: 64 KB a second."""

LARGE_S = 60.0
"""What a recording longer than this took is given back to the system at once."""

TIMEOUT_SHARE = 0.9


class Reader(Protocol):
    """Turns what the model gives into words."""

    def read(self, outputs: Arrays, seconds: float) -> list[Segment]:
        """The segments of one chunk.

        Args:
            outputs: The model's, for this chunk alone: a batch of one.
            seconds: How long the chunk is.
        """


def reader(about: Mapping[str, Any], folder: Path) -> Reader:
    """The reader for a kind of model, as speech.json tells it.

    Args:
        about: What speech.json holds.
        folder: Where the kind's own files lie.

    Raises:
        LoadError: The kind is unknown, or its reader lacks something.
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
    """How the model takes sound.

    Attributes:
        contract: Its inputs: the samples, and perhaps their number.
        rate: Samples of a second.
        chunk_s: The longest chunk.
    """

    contract: Contract
    rate: int
    chunk_s: float

    def __post_init__(self) -> None:
        """Raises: LoadError: The model takes something else."""
        kinds = [(spec.dtype, len(spec.shape)) for spec in self.contract.inputs]
        if kinds not in ([("float32", 2)], [("float32", 2), ("int64", 1)]):
            raise LoadError(
                "the model must take float32[batch, samples] and perhaps int64[batch], got "
                f"{', '.join(map(str, self.contract.inputs))}."
            )

    def inputs(self, samples: Array) -> Arrays:
        """One chunk's tensors: as it is, or padded to the shortest that the model takes."""
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
    """One recording, and what is known of it by now.

    Attributes:
        body: Its bytes, until it is opened.
        facts: Seconds and format, once it is opened.
        segments: The transcript so far.
        error: Why its transcription failed; no more of it is decoded then.
        was_opened: Whether it was decoded, or found to be no sound.
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
        """Whether its transcription is complete, or failed."""
        return self.was_opened and not self._chunks

    @property
    def decoded_s(self) -> float:
        """Seconds of sound that lie decoded in memory."""
        return 0.0 if self._samples is None else len(self._samples) / self._rate

    @property
    def left(self) -> int:
        """Samples that are not transcribed yet."""
        return sum(stop - start for start, stop in self._chunks)

    def open(self, form: AudioFormat, longest_s: float) -> None:
        """Decode it, and cut it into chunks that hold sound."""
        body, self.body, self.was_opened = self.body, None, True
        try:
            sound = sounds.decode(bytes(body or b""), form.rate, longest_s)
            pieces = list(silence.cut(sound.samples, form.rate, form.chunk_s))
        except RequestError as error:
            self.fail(error)
            return
        except Exception:  # a fault in decoding one recording must not reach its neighbours
            self.fail(hidden("decode"))
            return
        self.facts = dict(sound.facts)
        self._samples, self._rate = sound.samples, form.rate
        self._chunks.extend(pieces)
        self._release()

    def pieces(self) -> Iterator[Array]:
        """The samples of each chunk that is not transcribed yet."""
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
        """Give it up."""
        self.error, self.was_opened, self.body = bare(error), True, None
        self._chunks.clear()
        self._release()

    def news(self) -> list[Segment]:
        """The segments since this was last asked."""
        fresh = self.segments[self._sent_count :]
        self._sent_count = len(self.segments)
        return fresh

    def answer(self) -> dict[str, object]:
        """The whole transcript.

        The confidence is the mean of the segments', each by its length in time; None where
        nothing was said.
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

    The recording with the least left comes first, so a short one never waits for the end
    of a long one; long ones are not decoded before there is room.

    Args:
        recordings: All of them.
        form: How the model takes sound.
        longest_s: The longest recording.
    """

    def __init__(
        self, recordings: Sequence[Recording], form: AudioFormat, longest_s: float
    ) -> None:
        self._form, self._longest_s = form, longest_s
        self._waiting = deque(sorted(recordings, key=lambda recording: len(recording.body or b"")))
        self._open: list[Recording] = []

    def open_some(self) -> None:
        """Decode as many recordings as there is room for."""
        self._open = [recording for recording in self._open if not recording.is_done]
        while self._waiting and sum(r.decoded_s for r in self._open) < MOST_OPEN_S:
            recording = self._waiting.popleft()
            if recording.was_opened:
                continue  # it was given up
            recording.open(self._form, self._longest_s)
            if not recording.is_done:
                self._open.append(recording)

    def turn(self) -> list[tuple[Recording, Arrays]]:
        """Chunks for the next call of the model; empty when finished."""
        chosen: list[tuple[Recording, Array]] = []
        for recording in sorted(self._open, key=lambda recording: recording.left):
            for samples in recording.pieces():
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
    """One request: its recordings, and how they are answered.

    Attributes:
        recordings: By their names in the form.
        streams: Whether segments are sent as they are ready.
    """

    recordings: dict[str, Recording]
    streams: bool

    @property
    def is_done(self) -> bool:
        """Whether all of it can be answered."""
        return all(recording.is_done for recording in self.recordings.values())

    @property
    def has_begun(self) -> bool:
        """Whether a recording of it was opened: what is wrong with the bytes is known then."""
        return any(recording.was_opened for recording in self.recordings.values())

    @property
    def failure(self) -> MarshipError | None:
        """The only recording's error; where there are several, each has its own in the answer."""
        if len(self.recordings) > 1:
            return None
        return next(iter(self.recordings.values())).error

    def news(self) -> list[dict[str, object]]:
        """The segments since this was last asked, with their recording's name if it has others."""
        several = len(self.recordings) > 1
        return [
            ({"name": name} if several else {}) | segment.facts()
            for name, recording in self.recordings.items()
            for segment in recording.news()
        ]

    def answer(self) -> dict[str, object]:
        """The only recording's answer, or each one's answer or error."""
        if len(self.recordings) == 1:
            return next(iter(self.recordings.values())).answer()
        rows = []
        for name, recording in self.recordings.items():
            error = recording.error
            told = {"code": error.code, "message": str(error)} if error else recording.answer()
            rows.append({"name": name, **told})
        return {"recordings": rows}


class Deadline:
    """When the host takes a worker that says nothing for dead, and kills it with all it holds.

    Args:
        timeout_s: How long it waits for a message; None is as long as it takes.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._limit_s = math.inf if timeout_s is None else TIMEOUT_SHARE * timeout_s
        self._last_message = self._last = time.monotonic()
        self._longest_s = 0.0

    def lap(self, *, says: bool) -> bool:
        """A turn is over; whether another one could come too late.

        Args:
            says: Whether a message goes out now.
        """
        now = time.monotonic()
        self._longest_s = max(self._longest_s, now - self._last)
        self._last = now
        if says:
            self._last_message = now
        return now - self._last_message + self._longest_s > self._limit_s


# the names that handlers written for earlier versions import
Form, Task = AudioFormat, TranscriptionRequest
