"""The speech handler: recordings in, text out, at once or line by line."""

import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ts.context import RequestProcessor

from marship.errors import LoadError
from marship.serving import sounds, speech
from marship.serving.hosts.torchserve.wire import WireHeaders
from marship.serving.message import Reply, Request
from marship.serving.sounds import silence
from whistles import RATE, long_whistle, pack_ear, said, wav, whistle
from workers import Worker, load_module

Start = Callable[[Path, type], Worker]
HANDLER = "speech_handler"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that hears whistles."""
    return pack_ear(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def ear(archive: Path, worker: Start) -> Worker:
    """A worker of it."""
    return worker(archive, load_module(HANDLER).SpeechHandler)


def asked(body: bytes, **fields: bytes) -> Request:
    """A request for lines."""
    return Request(body, fields=fields, headers={"accept": "application/jsonl"})


def stream(ear: Worker, *requests: Request) -> list[dict[int, Reply]]:
    """The parts of a batch's answers, turn by turn."""
    return [ready for ready, _ in ear.handler.replies(requests)]


def lines(*replies: Reply) -> list[Any]:
    """The values of all lines."""
    return [json.loads(line) for reply in replies for line in reply.body.splitlines()]


def text_of(body: bytes) -> Any:
    """A JSON answer without what differs from run to run."""
    return {k: v for k, v in json.loads(body).items() if k != "timings_ms"}


def test_a_recording_is_transcribed(ear: Worker) -> None:
    """Text, segments with times in seconds, confidence, length, format and timings."""
    (answer,) = ear({"body": wav(long_whistle("abc dad", "hh"))}, content_type="text/plain")
    assert answer.status == 200
    found = answer.json()
    assert set(found.pop("timings_ms")) == {"decode", "infer", "encode"}
    segments = found.pop("segments")
    assert found == {
        "text": "abc dad hh",
        "confidence": pytest.approx(1.0, abs=0.01),
        "seconds": 3.96,
        "format": "wav",
    }
    assert [segment["text"] for segment in segments] == ["abc dad", "hh"]
    assert [segment["start"] for segment in segments] == pytest.approx([0.06, 2.44], abs=0.03)
    assert [segment["end"] for segment in segments] == pytest.approx([1.12, 2.7], abs=0.03)


def test_silence_is_no_text(ear: Worker) -> None:
    """And no segment; the confidence is null, for there is nothing to be sure of."""
    (answer,) = ear({"body": wav(np.zeros(2 * RATE, np.float32))})
    assert text_of(answer.body) == {
        "text": "", "confidence": None, "seconds": 2.0, "format": "wav", "segments": [],
    }  # fmt: skip


def test_clips_of_different_lengths_get_the_same_alone_and_together(ear: Worker) -> None:
    """The shorter is padded in a shared call: text, times and confidence stay."""
    texts = ["a", "abc", "ad cab", "hh", "bad dad", "fade a hedge"]
    bodies = [said(text) for text in texts]
    sizes: list[int] = []
    run = ear.handler.session.run
    ear.handler._batcher.run = lambda inputs: sizes.append(len(inputs["audio"])) or run(inputs)
    together = [text_of(answer.body) for answer in ear(*({"body": body} for body in bodies))]
    assert max(sizes) == 2
    alone = [text_of(ear({"body": body})[0].body) for body in bodies]
    assert together == alone
    assert [answer["text"] for answer in together] == texts


def test_other_rates_and_a_clip_shorter_than_the_model_takes(ear: Worker) -> None:
    """Eight kHz is resampled; five milliseconds of sound are filled up."""
    low = whistle("abc")[::2]
    assert ear({"body": wav(low, RATE // 2)})[0].json()["text"] == "abc"
    (answer,) = ear({"body": wav(whistle("a")[1000:1080])})
    assert (answer.status, answer.json()["text"]) == (200, "")


def test_several_recordings_are_transcribed_each_by_itself(ear: Worker) -> None:
    """By name, in order; a bad one has its code and harms none, the last included."""
    (answer,) = ear(
        {
            "first": said("abc"),
            "text": b"hello",
            "cut": said("abc")[:200],
            "defect": said("a!"),
            "empty": b"",
            "last": said("dad"),
        }
    )
    rows = answer.json()["recordings"]
    assert [row["name"] for row in rows] == ["first", "text", "cut", "defect", "empty", "last"]
    assert [row.get("code") for row in rows] == [
        None, "unsupported_media", "malformed", "internal", "malformed", None,
    ]  # fmt: skip
    assert (rows[0]["text"], rows[5]["text"]) == ("abc", "dad")
    assert "Gather" not in rows[3]["message"]  # ONNX Runtime's words are for the log


@pytest.mark.parametrize(
    ("row", "status", "code"),
    [
        ({"body": b""}, 400, "malformed"),
        ({}, 400, "malformed"),
        ({"body": b"hello"}, 415, "unsupported_media"),
        ({"body": {"a": 1}}, 415, "unsupported_media"),
        ({f"f{i}": b"x" for i in range(33)}, 413, "too_large"),
    ],
)
def test_a_bad_request_says_what_is_expected(
    ear: Worker, row: dict[str, object], status: int, code: str
) -> None:
    """Alone, and in a batch with a good one."""
    bad, good = ear(row, {"body": said("abc")})
    assert (bad.status, bad.json()["code"]) == (status, code)
    assert "a recording as the body" in bad.json()["expects"]
    assert good.json()["text"] == "abc"


def test_a_recording_over_the_limit_is_413(tmp_path: Path, worker: Start) -> None:
    """The handler's setting, in seconds."""
    archive = pack_ear(tmp_path, option=("longest_s=0.6",))
    ear = worker(archive, load_module(HANDLER).SpeechHandler)
    short, long = ear({"body": said("abc")}, {"body": said("abcd")})
    assert short.json()["text"] == "abc"
    assert (long.status, long.json()["code"]) == (413, "too_large")
    assert "at most 0.6 s" in long.json()["message"]


@pytest.mark.parametrize("option", ["longest_s=0", "longest_s=long", "beam=3"])
def test_a_wrong_setting_is_refused_at_the_start(
    tmp_path: Path, worker: Start, option: str
) -> None:
    """A value that cannot be meant, or a name that is none."""
    archive = pack_ear(tmp_path, option=(option,))
    with pytest.raises(LoadError, match="longest_s"):
        worker(archive, load_module(HANDLER).SpeechHandler)


def test_an_archive_without_its_description_is_refused(
    tmp_path: Path, archive: Path, worker: Start
) -> None:
    """speech.json tells the rate, the longest piece and how outputs are read."""
    ear = worker(archive, load_module(HANDLER).SpeechHandler)
    about = tmp_path / "extracted" / "speech.json"
    about.write_text(json.dumps({"kind": "ctc", "sample_rate": RATE}))
    with pytest.raises(LoadError, match=r"speech\.json must tell .*'longest_s'"):
        ear.handler.prepare()
    about.unlink()
    with pytest.raises(LoadError, match=r"speech\.json must tell"):
        ear.handler.prepare()


def test_segments_come_as_lines_and_the_whole_response_last(ear: Worker) -> None:
    """Parts that others follow, and a last one; their segments are those of the whole answer."""
    texts = ["abc", "dad", "hh", "fee", "cab"]
    body = wav(long_whistle(*texts))
    turns = stream(ear, asked(body))
    replies = [turn[0] for turn in turns]
    assert [reply.more for reply in replies] == [True] * (len(replies) - 1) + [False]
    assert len(replies) > 2
    assert {reply.content_type for reply in replies} == {"application/jsonl"}
    *segments, whole = lines(*replies)
    assert [segment["text"] for segment in segments] == texts
    assert segments == whole["segments"]
    (at_once,) = ear({"body": body})
    assert text_of(at_once.body) == {k: v for k, v in whole.items() if k != "timings_ms"}


def test_a_stream_of_one_turn_is_one_response(ear: Worker) -> None:
    """Silence, a short clip, and bytes that are no sound with their status."""
    (turn,) = stream(ear, asked(wav(np.zeros(RATE, np.float32))))
    assert [line["text"] for line in lines(turn[0])] == [""]
    (turn,) = stream(ear, asked(said("abc")))
    assert [line["text"] for line in lines(turn[0])] == ["abc", "abc"]
    (turn,) = stream(ear, asked(b"hello"))
    assert (turn[0].status, turn[0].more) == (415, False)


def test_a_stream_that_fails_midway_ends_with_the_error(ear: Worker) -> None:
    """What was heard before has been sent; the error has code and message."""
    turns = stream(ear, asked(wav(long_whistle("abc", "dad", "hh", "fee", "a!"))))
    *parts, last = [turn[0] for turn in turns]
    assert [line["text"] for line in lines(*parts)] == ["abc", "dad", "hh", "fee"]
    assert (last.status, lines(last)[0]["code"]) == (500, "internal")


def test_a_stream_of_several_recordings_names_them(ear: Worker) -> None:
    """Each line in its turn; the last one has an answer or error for each recording."""
    turns = stream(ear, asked(wav(long_whistle("abc", "dad")), b=said("hh"), c=b"no"))
    *segments, whole = lines(*(turn[0] for turn in turns))
    assert [(line["name"], line["text"]) for line in segments] == [
        ("body", "abc"), ("b", "hh"), ("body", "dad"),
    ]  # fmt: skip
    assert [row.get("text", row.get("code")) for row in whole["recordings"]] == [
        "abc dad", "hh", "unsupported_media",
    ]  # fmt: skip


def test_neighbours_of_a_stream_are_served_before_its_end(ear: Worker) -> None:
    """A bad one and a short one are ready in turns before the last."""
    long = asked(wav(long_whistle(*["abc"] * 6)))
    turns = stream(ear, long, Request(said("dad")), Request(b"no"))
    ready = {index: turn for turn, answers in enumerate(turns) for index in answers}
    assert ready[2] == 0
    assert ready[1] < ready[0]
    assert ready[0] == len(turns) - 1


def test_a_transcript_that_takes_too_long_is_refused_before_the_worker_is_killed(
    tmp_path: Path, worker: Start
) -> None:
    """TorchServe waits two turns here: 413 with advice; the same recording streams to its end."""
    archive = pack_ear(tmp_path, slow_ms=50)
    ear = worker(archive, load_module(HANDLER).SpeechHandler)
    assert ear.handler.timeout_s == 60
    ear.handler.timeout_s = 0.05
    body = wav(long_whistle(*["abc"] * 6))
    (late,) = ear({"body": body})
    assert (late.status, late.json()["code"]) == (413, "too_large")
    assert "Send Accept: application/jsonl" in late.json()["message"]
    *_, last = stream(ear, asked(body))
    assert len(lines(last[0])[-1]["segments"]) == 6


def test_torchserves_own_writer_sends_the_same_lines(ear: Worker) -> None:
    """Where its transport stays: parts over its socket, whole answers at the end."""
    ours, theirs = socket.socketpair()
    rows = [{"body": wav(long_whistle(*["abc"] * 6))}, {"body": said("dad")}]
    ear.context.cl_socket = theirs
    ear.context.request_ids = {0: "id-0", 1: "id-1"}
    ear.context.request_processor = [
        RequestProcessor({"Accept": "application/jsonl"}),
        RequestProcessor({}),
    ]
    received = bytearray()
    reading = threading.Thread(target=lambda: [received.extend(b) for b in iter_socket(ours)])
    reading.start()
    whole = ear.handler.handle(rows, ear.context)
    theirs.close()
    reading.join()
    messages = split(bytes(received))
    assert {name for message in messages for name in message} == {"id-0"}
    assert {headers["ts_stream_next"] for m in messages for headers, _ in m.values()} == {"true"}
    sent = b"".join(body for message in messages for _, body in message.values()) + whole[0]
    assert [json.loads(line)["text"] for line in sent.splitlines()][:6] == ["abc"] * 6
    assert ear.context.get_response_headers(0)["ts_stream_next"] == "false"
    assert "ts_stream_next" not in ear.context.get_response_headers(1)
    assert json.loads(whole[1])["text"] == "dad"


def iter_socket(sock: socket.socket) -> Any:
    """What comes, until the other end closes."""
    while data := sock.recv(65_536):
        yield data


def split(data: bytes) -> list[dict[str, tuple[dict[str, str], bytes]]]:
    """Messages as {request: (headers, body)}, read as ModelResponseDecoder.java reads them."""
    place, messages = 0, []

    def number() -> int:
        nonlocal place
        place += 4
        return int(struct.unpack_from("!i", data, place - 4)[0])

    def text(size: int) -> bytes:
        nonlocal place
        place += size
        return data[place - size : place]

    while place < len(data):
        message = {}
        assert number() == 200
        text(number())
        while (size := number()) != -1:
            name = text(size).decode()
            text(number())
            assert number() == 200
            text(number())
            headers = {text(number()).decode(): text(number()).decode() for _ in range(number())}
            message[name] = (headers, text(number()))
        messages.append(message)
    return messages


def failing(original: Callable[..., Any], samples: Callable[..., int]) -> Callable[..., Any]:
    """A function that fails as no one foresaw with a recording of half a second."""

    def fails(*given: Any) -> Any:
        if abs(samples(*given) - RATE // 2) < RATE // 10:
            raise KeyError("secret")
        return original(*given)

    return fails


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "decoding": lambda patch: patch.setattr(
        sounds, "decode", failing(sounds.decode, lambda body, *_: len(body) // 2)
    ),
    "cutting": lambda patch: patch.setattr(
        silence, "cut", failing(silence.cut, lambda found, *_: len(found))
    ),
    "the model's inputs": lambda patch: patch.setattr(
        speech.AudioFormat,
        "inputs",
        failing(speech.AudioFormat.inputs, lambda _, found: len(found)),
    ),
    "reading the model's outputs": lambda patch: patch.setattr(
        speech.Recording,
        "hear",
        failing(speech.Recording.hear, lambda recording, *_: round(recording.decoded_s * RATE)),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unforeseen_fault_is_one_recordings_own(
    ear: Worker, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Wherever it happens, neighbours in the batch and in the form have their texts."""
    good, bad = wav(long_whistle("abc dad", "hh")), wav(np.tile(whistle("a"), 9)[: RATE // 2])
    FAULTS[fault](monkeypatch)
    first, broken, form, last = ear(
        {"body": good}, {"body": bad}, {"a": good, "b": bad, "c": good}, {"body": good}
    )
    assert [first.status, broken.status, form.status, last.status] == [200, 500, 200, 200]
    assert first.json()["text"] == last.json()["text"] == "abc dad hh"
    rows = form.json()["recordings"]
    assert [row.get("text", row.get("code")) for row in rows] == [
        "abc dad hh", "internal", "abc dad hh",
    ]  # fmt: skip
    assert b"secret" not in broken.body + form.body


def test_a_response_that_cannot_be_written_fails_alone(
    ear: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's text that is no UTF-8 is its own 500, as one answer and as lines."""
    read = ear.handler._reader.read

    def odd(outputs: Any, seconds: float) -> Any:
        found = read(outputs, seconds)
        return [replace(segment, text=segment.text.replace("hh", "\ud800")) for segment in found]

    monkeypatch.setattr(ear.handler._reader, "read", odd)
    good, bad = wav(whistle("dad")), wav(whistle("hh"))
    answers: dict[int, Reply] = {}
    for ready in stream(ear, Request(good), Request(bad), asked(bad), asked(good)):
        answers |= {index: reply for index, reply in ready.items() if not reply.more}
    assert [answers[index].status for index in range(4)] == [200, 500, 500, 200]
    assert json.loads(answers[0].body)["text"] == "dad"


def test_a_header_that_is_no_text_fails_alone(ear: Worker) -> None:
    """A byte that is no UTF-8 in one request's headers is that request's error."""
    size = struct.pack("!i", 6)
    headers = WireHeaders(size + b"accept" + struct.pack("!i", 1) + b"\xff")
    odd = Request(wav(whistle("hh")), headers=headers)
    (ready,) = stream(ear, Request(wav(whistle("dad"))), odd)
    assert [ready[index].status for index in range(2)] == [200, 500]
