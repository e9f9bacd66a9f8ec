"""Every recording sent over HTTP gets a response or a clear error, and the worker survives."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

import recordings
from marship import Client
from marship.engines.torchserve.server import Server
from posting import Post, assert_memory_returns, peak_bytes, posting
from recordings import encode
from whistles import RATE, pack_ear, said, whistle

MB = 1 << 20
MINUTES_30 = 1800
HOURS_3 = 3 * 3600


@pytest.fixture(scope="module")
def post(
    store: Path, client: Client, running: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Post]:
    """Post to the model that recognizes pitches; at the end its worker is still the first one."""
    folder = tmp_path_factory.mktemp("ear")
    pack_ear(folder, profile="throughput").rename(store / "ear.mar")
    yield from posting(running, client, "ear")


@pytest.fixture
def process(post: Post, client: Client) -> psutil.Process:
    """The worker's process, after a recording of each format."""
    for kind in recordings.KINDS:
        post(sung("abc", kind))
    (worker,) = client.describe("ear")[0].workers
    return psutil.Process(worker.pid)


def sung(text: str, kind: str, rate: int = RATE, channels: int = 1) -> bytes:
    """A text as a file of any kind."""
    samples = np.interp(
        np.arange(round(len(whistle(text)) * rate / RATE)) * RATE / rate,
        np.arange(len(whistle(text))),
        whistle(text),
    )
    return encode(np.repeat(samples[:, None], channels, 1).astype(np.float32), rate, kind)


def pcm(samples: np.ndarray) -> bytes:
    """Samples as 16 bits."""
    return (samples * 32767).astype("<i2").tobytes()


FLOATS = whistle("abc").copy()
FLOATS[1000] = np.nan
FLAC = sung("abc", "flac")
BAD = {
    "nothing": (b"", 400, "malformed"),
    "text": (b"hello", 415, "unsupported_media"),
    "M4A": (b"\0\0\0\x20ftypM4A " + bytes(500), 415, "unsupported_media"),
    "ADPCM": (recordings.wav(bytes(512), tag=2, bits=4), 415, "unsupported_media"),
    "a WAV of no samples": (recordings.wav(b""), 400, "malformed"),
    "a truncated WAV": (said("abc")[:-100], 400, "malformed"),
    "a truncated FLAC": (FLAC[:-100], 400, "malformed"),
    "a truncated Vorbis": (sung("abc", "vorbis")[:-100], 400, "malformed"),
    "a truncated Opus": (sung("abc", "opus")[:-100], 400, "malformed"),
    "a truncated MP3": (sung("abc", "mp3")[:-100], 400, "malformed"),
    "NaN": (recordings.wav(FLOATS.tobytes(), tag=3, bits=32), 400, "invalid_input"),
    "0 Hz": (recordings.wav(bytes(512), rate=0), 400, "malformed"),
    "a FLAC of 3 hours": (
        recordings.flac_claiming(FLAC, HOURS_3 * RATE),
        413,
        "too_large",
    ),
    "a WAV of 3 hours": (
        recordings.wav(bytes(HOURS_3 * 1000), tag=7, bits=8, rate=1000),
        413,
        "too_large",
    ),
}
LYING = {
    "of 0 bytes": recordings.wav(pcm(whistle("abc")), size=0, riff_size=0),
    "as FFmpeg's through a pipe": recordings.wav(pcm(whistle("abc")), size=0xFFFFFFFF),
    "as SoX's through a pipe": recordings.wav(pcm(whistle("abc")), size=0x7FFFF000),
    "of less": recordings.wav(pcm(whistle("abc")), size=1000),
}


@pytest.mark.parametrize("kind", recordings.KINDS)
def test_every_format_is_transcribed(post: Post, kind: str) -> None:
    """As stereo at 48 kHz, and as mono at 8 kHz, which holds all of these pitches."""
    for rate, channels in ((48_000, 2), (8_000, 1)):
        answer = post(sung("cabdfg", kind, rate, channels)).json()
        assert answer["text"] == "cabdfg"
        assert answer["format"] == kind.split(",", maxsplit=1)[0]
        assert answer["seconds"] == pytest.approx(len(whistle("cabdfg")) / RATE, abs=0.12)


@pytest.mark.parametrize("lie", ["audio/mpeg", "application/json", "text/html"])
def test_the_bytes_count_and_not_the_content_type(post: Post, lie: str) -> None:
    """A WAV under three false names."""
    answer = post(said("bad"), kind=lie).json()
    assert (answer["text"], answer["format"]) == ("bad", "wav")


@pytest.mark.parametrize("case", LYING)
def test_a_wrong_length_in_the_header_loses_nothing(post: Post, case: str) -> None:
    """All letters are transcribed."""
    assert post(LYING[case]).json()["text"] == "abc"


def test_a_form_of_several_recordings(post: Post) -> None:
    """One name for all, as a browser's file field sends them; a broken one affects no other."""
    parts = [said("abc"), b"broken", sung("dad", "mp3"), BAD["NaN"][0], sung("gag", "opus")]
    files = [("file", (str(i), part, "audio/wav")) for i, part in enumerate(parts)]
    rows = post(None, files=files).json()["recordings"]
    assert [row["name"] for row in rows] == ["file", "file#2", "file#3", "file#4", "file#5"]
    assert [row.get("text") for row in rows] == ["abc", None, "dad", None, "gag"]
    codes = [row.get("code") for row in rows]
    assert codes == [None, "unsupported_media", None, "invalid_input", None]


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recording_is_a_clear_error_and_affects_no_other(post: Post, case: str) -> None:
    """Its status and code are right; seven recordings sent at the same time are transcribed."""
    body, status, code = BAD[case]
    texts = ["abc", "bad", "cab", "dada", "egg", "fed", "gaga"]
    with ThreadPoolExecutor(8) as pool:
        bad, *good = pool.map(post, [body, *(said(text) for text in texts)])
    assert (bad.status_code, bad.json()["code"]) == (status, code)
    assert bad.json()["message"]
    assert [answer.json()["text"] for answer in good] == texts


def test_half_an_hour_works_and_its_memory_is_freed(post: Post, process: psutil.Process) -> None:
    """WAV and FLAC: at most three times its bytes and 2.5 times the 115 MB of its samples."""
    word = np.concatenate([whistle("abc"), np.zeros(RATE // 2, np.float32)])
    samples = np.zeros((MINUTES_30 * RATE, 1), np.float32)
    samples[: len(word), 0] = samples[-len(word) :, 0] = word
    before = process.memory_info().rss
    for kind, step in (("wav, mu-law", 2), ("flac", 1)):
        body = encode(samples[::step], RATE // step, kind)
        answer = post(body).json()
        assert (answer["text"], answer["seconds"]) == ("abc abc", MINUTES_30)
        assert peak_bytes(process) - before < 3 * len(body) + 2.5 * samples.nbytes
    assert process.memory_info().rss - before < 32 * MB


def test_a_thousand_bad_recordings_leave_the_memory_as_it_was(
    post: Post, process: psutil.Process
) -> None:
    """Every kind of error, over and over, but for the one of 10 MB."""
    bodies = [body for body, _, _ in BAD.values() if len(body) < MB]
    assert_memory_returns(post, process, bodies, 80)
