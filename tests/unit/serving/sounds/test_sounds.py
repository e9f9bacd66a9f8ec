"""Bytes of recordings become mono samples, or one of four errors."""

import struct
import tracemalloc

import numpy as np
import pytest
import soxr

import recordings
from marship.errors import (
    InvalidInputError,
    MalformedError,
    RequestError,
    TooLargeError,
    UnsupportedMediaError,
)
from marship.serving import sounds
from recordings import decoded, encode, mended, recording, voice, wav
from stopwatch import at_most

RATE = 16_000
LONGEST_S = 60.0
CODES = np.arange(-(2**15), 2**15, 7, np.int16)


def decode(data: bytes, rate: int = RATE, longest_s: float = LONGEST_S) -> np.ndarray:
    """The samples alone."""
    sound = sounds.decode(data, rate, longest_s)
    assert sound.samples.dtype == np.float32
    return sound.samples


def refusal(data: bytes, longest_s: float = LONGEST_S) -> type[RequestError]:
    """The kind of the error."""
    with pytest.raises(RequestError) as raised:
        sounds.decode(data, RATE, longest_s)
    assert str(raised.value)
    return type(raised.value)


@pytest.mark.parametrize("kind", recordings.WAVS)
def test_a_wav_is_what_libsndfile_reads(kind: str) -> None:
    """Every codec, mono and stereo, to the bit."""
    for channels in (1, 2):
        data = recording(kind, channels=channels)
        wanted, rate = decoded(data)
        sound = sounds.decode(data, rate, LONGEST_S)
        mean = wanted[:, 0] if channels == 1 else (wanted[:, 0] + wanted[:, 1]) / 2
        assert np.array_equal(sound.samples, mean)
        assert sound.facts == {"seconds": 1.0, "format": "wav"}


def test_16_bits_are_integers_over_32768() -> None:
    """At the wanted rate nothing is computed but this division."""
    assert np.array_equal(decode(wav(CODES.tobytes())), CODES / np.float32(32768))


@pytest.mark.parametrize("codec", [(6, "a-law"), (7, "mu-law")])
def test_all_256_bytes_of_a_law_and_mu_law(codec: tuple[int, str]) -> None:
    """Are the values that libsndfile's tables have."""
    data = wav(bytes(range(256)), tag=codec[0], bits=8)
    assert np.array_equal(decode(data), decoded(data)[0][:, 0])


@pytest.mark.parametrize("kind", recordings.OTHERS)
@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
def test_the_others_are_what_libsndfile_reads(kind: str, rate: int) -> None:
    """Resampled as a whole, within 1e-6; the blocks leave no trace. Opus is decoded at 48 kHz."""
    data = recording(kind, 12.3, rate, 2)
    wanted, found = decoded(data)
    sound = sounds.decode(data, RATE, LONGEST_S)
    assert sound.format == kind.split(",", maxsplit=1)[0]
    assert sound.seconds == pytest.approx(len(wanted) / found, abs=1e-6)
    assert len(sound.samples) == pytest.approx(12.3 * RATE, abs=1)
    if kind != "opus" or rate == 48_000:
        whole = soxr.resample(wanted.mean(1), found, RATE, "HQ")
        assert abs(sound.samples - whole).max() < 1e-6


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 22_050, 44_100, 96_000, 384_000])
def test_blocks_are_resampled_as_the_whole(rate: int) -> None:
    """Within 1e-6 of soxr's HQ, from the lowest rate to the highest."""
    samples = voice(3.0, rate)
    found = decode(encode(samples, rate, "wav, float"))
    assert abs(found - soxr.resample(samples[:, 0], rate, RATE, "HQ")).max() < 1e-6


@pytest.mark.parametrize("channels", [3, 6, 8])
def test_more_channels_are_averaged(channels: int) -> None:
    """As in WAV and in FLAC."""
    for kind in ("wav, 16 bits", "flac"):
        samples = voice(1.0, RATE, channels)
        wanted = samples.mean(1)
        assert abs(decode(encode(samples, RATE, kind)) - wanted).max() < 2**-15


def test_an_opus_keeps_what_is_above_its_old_rate() -> None:
    """The head's rate is that of what was encoded, or 0; libsndfile would decode at 8 kHz."""
    data = recording("opus", 2.0, 48_000)
    first, *pages = recordings.ogg_pages(data)
    place = first.index(b"OpusHead") + 12
    unknown = mended(first[:place] + bytes(4) + first[place + 4 :])
    assert np.array_equal(decode(b"".join([unknown, *pages])), decode(data))


def test_float_over_full_scale_is_kept() -> None:
    """What a codec overshoots is no fault, and clipping it would be one."""
    samples = np.array([0.5, -1.3, 2.0], np.float32)
    assert np.array_equal(decode(wav(samples.tobytes(), tag=3, bits=32)), samples)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, 23_000.0])
def test_a_sample_that_is_no_sound_is_refused(bad: float) -> None:
    """NaN, infinite, or integers written as float; also where double exceeds float32."""
    samples = np.zeros(1000)
    samples[777] = bad
    assert refusal(wav(samples.tobytes(), tag=3, bits=64)) is InvalidInputError
    single = samples.astype(np.float32)
    assert refusal(wav(single.tobytes(), tag=3, bits=32)) is InvalidInputError


PCM = (CODES // 3).tobytes()
LIST = recordings.chunk(b"LIST", b"INFOISFT\x05\0\0\0Lavf\0\0")


@pytest.mark.parametrize(
    "data",
    [
        wav(PCM, size=0, riff_size=0),
        wav(PCM, size=0, riff_size=36),
        wav(PCM, size=0xFFFFFFFF, riff_size=0xFFFFFFFF),
        wav(PCM, size=0x7FFFF000, riff_size=0x7FFFF024),
        wav(PCM, size=0x80000000, riff_size=0x80000024),
        wav(PCM, riff_size=7),
        wav(PCM, size=1000),
        wav(PCM, after=LIST),
        wav(PCM, after=LIST + recordings.chunk(b"id3 ", b"x" * 9)),
        wav(PCM + b"\1"),
    ],
    ids=["0", "never mended", "FFmpeg", "SoX", "arecord", "riff", "less", "LIST", "more", "odd"],
)
def test_a_wav_that_lies_about_its_length_loses_nothing(data: bytes) -> None:
    """What pipes leave, what was never mended; and what follows the samples is no sound."""
    assert np.array_equal(decode(data), CODES // 3 / np.float32(32768))


def test_a_wav_of_no_samples() -> None:
    """Honestly empty: what follows is no sound either."""
    assert refusal(wav(b"")) is MalformedError
    assert refusal(wav(b"", after=LIST)) is MalformedError


def long_flac(claim: int) -> bytes:
    """Two seconds of FLAC with another claim."""
    return recordings.flac_claiming(recording("flac", 2.0), claim)


@pytest.mark.parametrize("claim", [0, 1, 1000, 31_999])
def test_a_flac_that_claims_fewer_or_nothing_loses_nothing(claim: int) -> None:
    """All are read."""
    assert np.array_equal(decode(long_flac(claim)), decode(recording("flac", 2.0)))


def test_a_flac_with_tags_around_it() -> None:
    """Before it, and behind it where it says how many samples it has."""
    data = recording("flac", 2.0)
    tagged = recordings.ID3V2 + data + recordings.ID3V1
    assert np.array_equal(decode(tagged), decode(data))


MP3 = recording("mp3", 3.0, 44_100, 2)
ONLY_FRAMES = recordings.without_xing(MP3)


@pytest.mark.parametrize(
    "data",
    [
        recordings.ID3V2 + MP3,
        recordings.ID3V2 * 2 + MP3 + recordings.APE + recordings.ID3V1,
        b"garbage \xff\xfb " * 500 + MP3,
        MP3 + bytes(1000),
        recordings.xing_claiming(MP3, 9),
    ],
    ids=["ID3", "tags", "garbage", "zeros", "few"],
)
def test_an_mp3_with_things_around_it(data: bytes) -> None:
    """Tags, garbage and a wrong number of frames change the samples in no way, or only the trim."""
    found, wanted = sounds.decode(data, 44_100, LONGEST_S), decode(MP3, 44_100)
    if data != recordings.xing_claiming(MP3, 9):
        assert np.array_equal(found.samples, wanted)
    assert found.seconds == pytest.approx(3.0, abs=0.1)


def test_an_mp3_without_its_number_of_frames_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    """Of these 3 seconds libsndfile, guessing from the first frame, reads 1.3."""
    assert len(decoded(ONLY_FRAMES)[0]) < 0.6 * len(decoded(MP3)[0])
    assert len(decode(ONLY_FRAMES, 44_100)) == pytest.approx(3 * 44_100, abs=2400)
    assert capfd.readouterr() == ("", "")


def test_two_mp3_in_one_are_both_transcribed(capfd: pytest.CaptureFixture[str]) -> None:
    """The first's tag tells of the first alone; a tag of the second lies between."""
    both = decode(MP3 + recordings.ID3V2 + MP3, 44_100)
    assert len(both) == pytest.approx(6 * 44_100, abs=5000)
    assert np.std(both[4 * 44_100 :]) > 0.05
    assert capfd.readouterr() == ("", "")


def test_several_streams_in_an_ogg() -> None:
    """One after the other all are decoded, whatever their codecs; side by side the first is."""
    vorbis, opus = recording("vorbis", 1.0, 16_000), recording("opus", 2.0, 48_000, 2)
    parts = [decode(vorbis), decode(opus)]
    chain = sounds.decode(vorbis + opus + vorbis, RATE, LONGEST_S)
    assert np.array_equal(chain.samples, np.concatenate([*parts, parts[0]]))
    assert chain.seconds == pytest.approx(4.0, abs=1e-3)
    first, other = recordings.ogg_pages(vorbis), recordings.ogg_pages(opus)
    video = mended(first[0].replace(b"\1vorbis", b"\x80theora"), serial=77)
    mixed = [video, first[0], other[0], *first[1:], *other[1:]]
    assert np.array_equal(decode(b"".join(mixed)), parts[0])


def test_an_ogg_without_an_end_of_stream() -> None:
    """Phones leave it out: whole pages are a whole file."""
    *pages, last = recordings.ogg_pages(recording("opus"))
    open_end = b"".join([*pages, mended(last, flags=0)])
    assert np.array_equal(decode(open_end), decode(recording("opus")))


VORBIS = recording("vorbis", 5.0)
PAGES = recordings.ogg_pages(VORBIS)
SPEEX = mended(PAGES[0].replace(b"\1vorbis", b"Speex  "))
FLAC = recording("flac")
WAV = recording("wav, 16 bits")
NOT_SOUND = {
    "text": b"hello",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "M4A": b"\0\0\0\x20ftypM4A " + bytes(500),
    "WebM": b"\x1aE\xdf\xa3" + bytes(500),
    "AIFF": b"FORM\0\0\1\0AIFF" + bytes(500),
    "AVI": b"RIFF" + struct.pack("<I", 500) + b"AVI " + bytes(500),
    "noise": np.random.default_rng(1).bytes(300_000),
    "MP3 in a WAV": wav(PCM, tag=0x55),
    "ADPCM": wav(PCM, tag=2, bits=4),
    "12 bits": wav(PCM, bits=12),
    "Speex": SPEEX + b"".join(PAGES[1:]),
    "MP2": b"\xff\xfd\x90\x44".ljust(417, b"\0") * 9,
    "FLAC of 20 bits": FLAC[:20] + bytes([FLAC[20] & 0xFE | 1, FLAC[21] & 0xF | 0x30]) + FLAC[22:],
}
DAMAGED = {
    "nothing": b"",
    "a WAV's head": WAV[:30],
    "a WAV without samples": WAV[:36],
    "a cut WAV": WAV[:-100],
    "a WAV that claims more": wav(PCM, size=len(PCM) + 1000),
    "a WAV without its format": b"RIFF\0\0\0\0WAVE" + recordings.chunk(b"data", PCM),
    "a WAV of 0 channels": wav(PCM, channels=0),
    "a WAV of 100 channels": wav(PCM, channels=100),
    "500 Hz": wav(PCM, rate=500),
    "0 Hz": wav(PCM, rate=0),
    "500 kHz": wav(PCM, rate=500_000),
    "a FLAC's head": FLAC[:30],
    "a cut FLAC": FLAC[: len(FLAC) // 2],
    "a cut FLAC that claims nothing": recordings.flac_claiming(FLAC[: len(FLAC) // 2], 0),
    "a FLAC that claims more": recordings.flac_claiming(FLAC, 20_000),
    "a damaged FLAC": FLAC[:9000] + b"\0\0" + FLAC[9002:],
    "a FLAC of no samples": recordings.flac_claiming(FLAC, 0)[:42],
    "a cut Vorbis": VORBIS[:-100],
    "a cut page's head": b"".join(PAGES[:-1]) + PAGES[-1][:20],
    "the first page": PAGES[0],
    "a damaged page": VORBIS[:9000] + b"\0\0" + VORBIS[9002:],
    "a page left out": b"".join(PAGES[:3] + PAGES[4:]),
    "garbage between pages": b"".join([*PAGES[:3], b"garbage", *PAGES[3:]]),
    "a cut Opus": recording("opus")[:-100],
    "too many streams": recording("opus", 0.1) * 300,
    "a cut MP3": MP3[: len(MP3) // 2],
    "an MP3 that lacks frames": recordings.xing_claiming(MP3, 200),
    "an MP3 with a hole": ONLY_FRAMES[:9000] + ONLY_FRAMES[9100:],
}


@pytest.mark.parametrize("case", NOT_SOUND)
def test_what_is_no_recording_is_unsupported(case: str) -> None:
    """415: another kind of file, or a codec that is not read."""
    assert refusal(NOT_SOUND[case]) is UnsupportedMediaError


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_not_whole_is_malformed(case: str) -> None:
    """400: cut off, damaged, empty, or of a form that no recorder has."""
    assert refusal(DAMAGED[case]) is MalformedError


HOURS_3 = 3 * 3600
LONG = {
    "wav": lambda: wav(bytes(HOURS_3 * 8_000), tag=7, bits=8, rate=8_000),
    "wav of unknown length": lambda: wav(bytes(HOURS_3 * 8_000), tag=7, bits=8, rate=8_000, size=0),
    "flac": lambda: recordings.flac_claiming(FLAC, HOURS_3 * 16_000),
    "vorbis": lambda: b"".join([*PAGES[:-1], mended(PAGES[-1], granule=HOURS_3 * 16_000)]),
    "mp3": lambda: recordings.without_xing(recording("mp3", 3.0)) * (HOURS_3 // 3),
}


@pytest.mark.parametrize("case", LONG)
def test_3_hours_are_refused_before_they_are_decoded(case: str) -> None:
    """By what the file says, or by counting its frames: within a second."""
    data = LONG[case]()
    with at_most(1.0):
        assert refusal(data, longest_s=3600) is TooLargeError


@pytest.mark.parametrize("case", LONG)
def test_what_is_refused_costs_no_more_than_copies_of_the_file(case: str) -> None:
    """Two, and the first half minute of samples; none for a WAV."""
    data = LONG[case]()
    tracemalloc.start()
    assert refusal(data, longest_s=3600) is TooLargeError
    copies = 0 if case.startswith("wav") else 2
    assert tracemalloc.get_traced_memory()[1] < copies * len(data) + (4 << 20)
    tracemalloc.stop()


def test_what_comes_out_counts_where_the_file_says_less() -> None:
    """A FLAC that claims a thousand samples and has two seconds, with one allowed."""
    assert refusal(long_flac(1000), longest_s=1.0) is TooLargeError
    assert refusal(long_flac(0), longest_s=1.0) is TooLargeError
    assert refusal(recording("opus", 0.7) * 2, longest_s=1.0) is TooLargeError


def test_a_recording_may_last_as_long_as_is_allowed() -> None:
    """To the sample."""
    assert len(decode(wav(bytes(2 * RATE)), longest_s=1.0)) == RATE
    assert refusal(wav(bytes(2 * RATE + 2)), longest_s=1.0) is TooLargeError
