"""Tells what is said in a recording.

The body is a recording: WAV, FLAC, OGG, Opus or MP3, found from its bytes whatever Content-Type
says. Or it is a multipart form with up to 32 recordings, a part for each.

The response for one recording has the text, and the segments with their times in seconds:

    {"text": "two five", "confidence": 0.93, "seconds": 2.4, "format": "wav", "segments":
     [{"start": 0.2, "end": 2.1, "text": "two five", "confidence": 0.93}], "timings_ms": {...}}

Where nothing is said the text is empty and the confidence null. Several are answered each by
itself, whatever is wrong with the others:

    {"recordings": [{"name": "a", "text": ...}, {"name": "b", "code": ..., "message": ...}]}

With `Accept: application/jsonl` each segment is a line that is sent as soon as it is ready, with
the recording's name where there are several, and the last line is the whole response. What goes
wrong before the first line has its own status, what goes wrong later is the last line:
`{"code": ..., "message": ...}`.

`handler:` in model-config.yaml may set `longest_s`, the longest recording in seconds.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from marship.contract import Arrays
from marship.errors import (
    LoadError,
    MalformedError,
    MarshipError,
    ModelError,
    RequestError,
    TooLargeError,
    UnsupportedMediaError,
)
from marship.serving import speech
from marship.serving.handler import Clock, Reply, Request, hidden
from marship.serving.message import JSON_TYPE
from marship.serving.openapi import media, schemas
from marship.serving.openapi.interface import RECORDING, BodyForm, Interface
from marship.serving.speech import AudioFormat, Deadline, Queue, Recording, TranscriptionRequest
from marship.serving.streaming import StreamHandler

SPEECH_FILE = "speech.json"
LINES_TYPE = "application/jsonl"
MOST_RECORDINGS = 32
LONGEST_S = 3600


class SpeechHandler(StreamHandler):
    """Recordings in, text out."""

    def prepare(self) -> None:
        """Read the archive's speech.json and what model-config.yaml says beside it."""
        self._longest_s = _longest_s(self.config.get("handler") or {})
        try:
            about = orjson.loads((self.folder / SPEECH_FILE).read_bytes())
            self._form = AudioFormat(
                self.contract, int(about["sample_rate"]), float(about["longest_s"])
            )
            self._reader = speech.reader(about, self.folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LoadError(
                f"{SPEECH_FILE} must tell kind, sample_rate, longest_s and what the kind needs, "
                f"got {error!r}. Package again."
            ) from error

    def advice(self) -> object:
        """A request of the right form."""
        return (
            "a recording as the body, WAV, FLAC, OGG, Opus or MP3; or a multipart form with up to "
            f"{MOST_RECORDINGS} of them, a part for each; with Accept: {LINES_TYPE} the segments "
            "come as they are ready"
        )

    def interface(self) -> Interface:
        """A recording or a form of them; a transcript, or its segments one by one."""
        second = {"type": "number", "minimum": 0, "description": "in seconds"}
        segment = schemas.record(
            {"name": schemas.TEXT},
            start=second, end=second, text=schemas.TEXT, confidence=schemas.share("of its words"),
        )  # fmt: skip
        timings = {"type": "object", "additionalProperties": schemas.NUMBER}
        sure = {"anyOf": [schemas.share("of its words"), {"type": "null"}]}
        found = {
            "text": schemas.TEXT,
            "confidence": sure,
            "seconds": second,
            "format": schemas.TEXT,
            "segments": schemas.array(segment),
        }
        one = schemas.record(**found, timings_ms=timings)
        named = schemas.record({**found, **media.FAULT}, name=schemas.TEXT)
        several = schemas.record(recordings=schemas.array(named, 2), timings_ms=timings)
        line = {"anyOf": [segment, one, several, schemas.record(**media.FAULT)]}
        form = {"type": "object", "minProperties": 1}
        return Interface(
            RECORDING,
            (
                *media.RECORDINGS,
                BodyForm("multipart/form-data", form, "several recordings, a part each"),
            ),
            (
                BodyForm(JSON_TYPE, one, "one recording"),
                BodyForm(JSON_TYPE, several, "several"),
                BodyForm(LINES_TYPE, line, "a line for each segment, with Accept"),
            ),
            about=str(self.advice()),
        )

    def answers(self, requests: Sequence[Request], clock: Clock) -> Iterator[dict[int, Reply]]:
        """Each turn transcribes a few chunks, and yields the responses and lines that are ready."""
        tasks: dict[int, TranscriptionRequest] = {}
        ready: dict[int, Reply] = {}
        for index, request in enumerate(requests):
            try:
                self.check_fields(request)
                tasks[index] = _task(request)
            except RequestError as error:
                ready[index] = self._error(error, self._expects())
            except Exception:  # a fault in reading one request must not reach its neighbours
                ready[index] = self._error(hidden("decode"))
        recordings = [r for task in tasks.values() for r in task.recordings.values()]
        queue = Queue(recordings, self._form, self._longest_s)
        deadline = Deadline(self.timeout_s)
        says = False
        while tasks:
            queue.open_some()
            turn = queue.turn()
            clock.lap("decode")
            outputs = self._batcher([inputs for _, inputs in turn])
            clock.lap("infer")
            for (recording, _), output in zip(turn, outputs, strict=True):
                self._hear(recording, output)
            clock.lap("encode")
            ready |= self._ready(tasks, clock)
            says = says or any(reply.more for reply in ready.values())
            if deadline.lap(says=says):
                ready |= self._give_up(tasks)
            yield ready
            ready = {}
        if ready:
            yield ready

    def _hear(self, recording: Recording, output: Arrays | MarshipError) -> None:
        """Decode the model's output for a chunk; an error ends this recording and no other."""
        if recording.error is not None:
            return  # an earlier chunk in the same call failed
        if isinstance(output, MarshipError):
            recording.fail(hidden("run", output) if isinstance(output, ModelError) else output)
            return
        try:
            recording.hear(output, self._reader)
        except ModelError as error:
            recording.fail(hidden("run", error))
        except MarshipError as error:
            recording.fail(error)
        except Exception:  # a fault in reading one recording must not reach its neighbours
            recording.fail(hidden("read"))

    def _ready(self, tasks: dict[int, TranscriptionRequest], clock: Clock) -> dict[int, Reply]:
        """The lines that streams have now, and the responses of done tasks, which it removes."""
        ready = {}
        for index, task in list(tasks.items()):
            try:
                reply = self._reply_now(task, clock)
            except (
                Exception
            ):  # an error in writing one response must not reach the others of its batch
                reply = self._error(hidden("encode"))
            if reply is not None:
                ready[index] = reply
            if reply is not None and not reply.more:
                del tasks[index]
        return ready

    def _reply_now(self, task: TranscriptionRequest, clock: Clock) -> Reply | None:
        """The lines of a stream, the response of a finished task, or nothing yet."""
        lines = b""
        if task.streams:
            lines = b"".join(orjson.dumps(news) + b"\n" for news in task.news())
        if task.is_done and not (lines and task.failure):
            return self._last(task, lines, clock)
        if task.streams and task.has_begun:
            return Reply(lines, LINES_TYPE, more=True)
        return None

    def _last(self, task: TranscriptionRequest, lines: bytes, clock: Clock) -> Reply:
        """The last, or only, part of a response."""
        if task.failure:
            return self._failed(task.failure)
        timings = {step: round(spent * 1e3, 1) for step, spent in clock.seconds.items()}
        answer = task.answer()
        body = orjson.dumps(answer | {"timings_ms": timings})
        return Reply(lines + body + b"\n", LINES_TYPE) if task.streams else Reply(body)

    def _failed(self, error: MarshipError) -> Reply:
        return self._error(error, self._expects() if isinstance(error, RequestError) else None)

    def _give_up(self, tasks: dict[int, TranscriptionRequest]) -> dict[int, Reply]:
        """Answer those that do not stream before the host ends the worker."""
        error = TooLargeError(
            f"recordings must be transcribed within {self.timeout_s:g} s where the response is not "
            f"streamed, got more in this batch. Send Accept: {LINES_TYPE}, or shorter recordings."
        )
        ready = {}
        for index, task in list(tasks.items()):
            if not task.streams:
                for recording in task.recordings.values():
                    recording.fail(error)
                del tasks[index]
                ready[index] = self._failed(error)
        return ready


def _task(request: Request) -> TranscriptionRequest:
    """A request's recordings, not decoded.

    Raises:
        RequestError: There is none, there are too many, or one is no bytes.
    """
    named: dict[str, Any] = {request.name: request.body, **request.fields}
    if len(named) > MOST_RECORDINGS:
        raise TooLargeError(
            f"a request must hold at most {MOST_RECORDINGS} recordings, got {len(named)}. "
            "Send several requests."
        )
    for body in named.values():
        if not isinstance(body, (bytes, bytearray, memoryview)):
            raise UnsupportedMediaError("a recording must be sent as it is, got a JSON value.")
    if not any(named.values()):
        raise MalformedError("a request must hold a recording, got no bytes.")
    recordings = {name: Recording(body) for name, body in named.items()}
    return TranscriptionRequest(recordings, LINES_TYPE in (request.header("accept") or "").lower())


def _longest_s(settings: object) -> float:
    if not isinstance(settings, dict) or not settings.keys() <= {"longest_s"}:
        raise LoadError(
            f"handler in model-config.yaml must set nothing but longest_s, got {settings!r}."
        )
    seconds = settings.get("longest_s", LONGEST_S)
    if type(seconds) not in (int, float) or not 0 < seconds < math.inf:
        raise LoadError(
            "handler.longest_s in model-config.yaml must be a number of seconds over 0, got "
            f"{seconds!r}."
        )
    return float(seconds)
