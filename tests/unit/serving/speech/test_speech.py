"""Recordings are transcribed a few chunks at a time, the shortest first, within bounds."""

from pathlib import Path

import numpy as np
import pytest

from marship.contract import Arrays, Contract, TensorSpec
from marship.errors import LoadError, TooLargeError
from marship.serving import speech
from marship.serving.speech import (
    AudioFormat,
    Deadline,
    Queue,
    Recording,
    Segment,
    TranscriptionRequest,
)
from whistles import RATE, long_whistle, said, wav, whistle

AUDIO = TensorSpec("audio", "float32", ("batch", "samples"), pad_value=0.0)
LENGTH = TensorSpec("length", "int64", ("batch",))


class Echo:
    """A reader that transcribes each chunk as one segment."""

    def read(self, outputs: Arrays, seconds: float) -> list[Segment]:
        """From start to end."""
        return [Segment(0.0, seconds, str(outputs["text"]), 0.5)]


def form(*inputs: TensorSpec, low: int = 1, chunk_s: float = 1.0) -> AudioFormat:
    """How a model takes sound."""
    bounds = {"samples": (low, None)}
    return AudioFormat(
        Contract(inputs or (AUDIO, LENGTH), (), (), "", 20, "batch", bounds), RATE, chunk_s
    )


def hear_all(queue: Queue) -> list[list[Recording]]:
    """Which chunks are transcribed in each turn, until all are."""
    turns = []
    while True:
        queue.open_some()
        if not (turn := queue.turn()):
            return turns
        for recording, inputs in turn:
            recording.hear({"text": np.array(inputs["length"][0])}, Echo())
        turns.append([recording for recording, _ in turn])


@pytest.mark.parametrize(
    "inputs",
    [
        (LENGTH,),
        (AUDIO, AUDIO),
        (TensorSpec("audio", "float64", ("batch", "samples")),),
        (AUDIO, LENGTH, LENGTH),
    ],
)
def test_a_model_that_takes_no_sound_is_refused(inputs: tuple[TensorSpec, ...]) -> None:
    """Samples, and perhaps their number."""
    with pytest.raises(LoadError, match=r"must take float32\[batch, samples\]"):
        form(*inputs)


def test_a_piece_is_filled_up_to_the_shortest_that_the_model_takes() -> None:
    """By its bounds, or by an axis of fixed size; its length stays its own."""
    samples = np.ones(3, np.float32)
    for one in (form(low=5), form(TensorSpec("audio", "float32", ("batch", 5)), LENGTH)):
        inputs = one.inputs(samples)
        assert inputs["audio"].tolist() == [[1, 1, 1, 0, 0]]
        assert inputs["length"].tolist() == [3]
    assert form(low=2).inputs(samples)["audio"].shape == (1, 3)
    assert form(AUDIO).inputs(samples).keys() == {"audio"}


def test_segments_are_moved_to_where_their_piece_lies() -> None:
    """The times of the recording, not of the chunk; in order."""
    recording = Recording(wav(long_whistle("abc", "d", "ef")))
    hear_all(Queue([recording], form(), 60))
    starts = [segment.start_s for segment in recording.segments]
    assert len(starts) == 3
    assert starts == sorted(starts)
    assert starts == pytest.approx([0.0, 1.6, 3.04], abs=0.25)  # 0.2 s of margin
    assert recording.decoded_s == 0
    assert recording.body is None


def test_silence_has_no_piece() -> None:
    """It is done when it is opened: no text, no segments, no confidence."""
    recording = Recording(wav(np.zeros(RATE, np.float32)))
    assert hear_all(Queue([recording], form(), 60)) == []
    assert recording.is_done
    assert recording.answer() == {
        "text": "",
        "confidence": None,
        "seconds": 1.0,
        "format": "wav",
        "segments": [],
    }


def test_a_call_has_few_pieces_of_like_length_and_short_recordings_come_first() -> None:
    """Two at most; none is filled up to more than twice its length."""
    long = Recording(wav(long_whistle(*["abc"] * 5)))
    short, shorter = Recording(said("ab")), Recording(said("a"))
    turns = hear_all(Queue([long, short, shorter], form(), 60))
    assert turns == [[shorter, short], *[[long, long]] * 2, [long]]


def test_no_more_is_decoded_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first's end where both together are over the limit."""
    monkeypatch.setattr(speech, "MOST_OPEN_S", 1.0)
    one, two = Recording(wav(long_whistle("abc"))), Recording(wav(long_whistle("abcd")))
    queue = Queue([one, two], form(), 60)
    queue.open_some()
    assert (one.was_opened, two.was_opened) == (True, False)
    assert hear_all(queue) == [[one], [two]]


def test_confidence_is_weighed_by_time() -> None:
    """Three seconds of 0.9 and one of 0.5 are 0.8."""
    recording = Recording(b"", was_opened=True)
    recording.segments = [Segment(0, 3, " two", 0.9), Segment(5, 6, "five ", 0.5)]
    assert recording.answer()["confidence"] == 0.8
    assert recording.answer()["text"] == "two five"


def test_a_failed_recording_is_transcribed_no_further() -> None:
    """Given up before or after it was opened, it lets go of its samples."""
    error = TooLargeError("too long")
    waiting, heard = Recording(said("a")), Recording(wav(long_whistle("abc", "abc")))
    heard.open(form(), 60)
    waiting.fail(error)
    heard.fail(error)
    assert hear_all(Queue([waiting, heard], form(), 60)) == []
    assert heard.decoded_s == 0
    task = TranscriptionRequest({"x": waiting, "y": heard}, streams=False)
    row = {"code": "too_large", "message": "too long"}
    assert task.answer() == {"recordings": [{"name": "x", **row}, {"name": "y", **row}]}


def test_news_are_reported_once() -> None:
    """With the recording's name where there are several."""
    one, two = Recording(b"", was_opened=True), Recording(b"", was_opened=True)
    task = TranscriptionRequest({"x": one, "y": two}, streams=True)
    two.segments = [Segment(0, 1, "b", 1.0)]
    assert [news["name"] for news in task.news()] == ["y"]
    one.segments = [Segment(0, 1, "a", 1.0)]
    two.segments.append(Segment(1, 2, "c", 1.0))
    assert [(news["name"], news["text"]) for news in task.news()] == [("x", "a"), ("y", "c")]
    assert task.news() == []
    assert (
        "name"
        not in TranscriptionRequest({"body": Recording(b"", segments=one.segments)}, True).news()[0]
    )


def test_the_deadline_comes_before_a_turn_that_may_be_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 10 s, nine count; turns of 3 s: the third would end at 9, a fourth after it."""
    now = [0.0]
    monkeypatch.setattr(speech.time, "monotonic", lambda: now[0])
    deadline = Deadline(10)

    def turn(*, says: bool) -> bool:
        now[0] += 3.0
        return deadline.lap(says=says)

    assert [turn(says=False) for _ in range(3)] == [False, False, True]
    assert [turn(says=True) for _ in range(9)] == [False] * 9


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """And says which are known."""
    with pytest.raises(LoadError, match="must be ctc or whisper, got 'rnnt'"):
        speech.reader({"kind": "rnnt"}, tmp_path)


def test_whistles_hold_still() -> None:
    """The tests above count on it: three letters are 0.54 s."""
    assert len(whistle("abc")) == round(0.54 * RATE)
