"""Recordings are cut at their silences: nothing that sounds is lost, and nothing comes twice."""

import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from marship.serving import sounds
from marship.serving.sounds import silence

RATE = 16_000
LONGEST_S = 30.0
READ_ALOUD = Path("/usr/share/pocketsphinx/test/data/librivox")  # pocketsphinx-testdata


def noise(seconds: float, level_db: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """White noise of this level."""
    draw = np.random.default_rng(seed).normal(0, 10 ** (level_db / 20), round(seconds * rate))
    return draw.astype(np.float32)


def speech(seconds: float, level_db: float = -20.0, seed: int = 0) -> np.ndarray:
    """Syllables: 150 ms loud, 50 ms 25 dB lower."""
    place = np.arange(round(seconds * RATE)) % (RATE // 5)
    loud = np.where(place < 0.15 * RATE, 1, 10 ** (-25 / 20))
    return (noise(seconds, level_db, seed) * loud).astype(np.float32)


def in_seconds(pieces: list[tuple[int, int]], rate: int = RATE) -> list[tuple[float, float]]:
    """Easier to read."""
    return [(start / rate, stop / rate) for start, stop in pieces]


def checked(
    samples: np.ndarray, longest_s: float = LONGEST_S, rate: int = RATE
) -> list[tuple[float, float]]:
    """The chunks in seconds, in order, apart, within the recording, and none too long."""
    pieces = silence.cut(samples, rate, longest_s)
    assert all(type(place) is int for piece in pieces for place in piece)
    assert all(0 <= start < stop <= len(samples) for start, stop in pieces)
    assert all(stop - start <= longest_s * rate for start, stop in pieces)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(pieces))
    return in_seconds(pieces, rate)


@pytest.mark.parametrize("level_db", [-200, -93, -70, -60])
def test_near_silence_has_no_piece(level_db: float) -> None:
    """Nothing at all, dither, a quiet room."""
    assert checked(noise(50, level_db)) == []


def test_no_samples_have_no_piece() -> None:
    """Nor has a single one of silence."""
    assert checked(np.empty(0, np.float32)) == []
    assert checked(np.zeros(1, np.float32)) == []


@pytest.mark.parametrize("level_db", [-50, -30, -10])
def test_steady_noise_is_handed_on(level_db: float) -> None:
    """Whether there is speech in it, the model says."""
    pieces = checked(noise(70, level_db))
    assert (pieces[0][0], pieces[-1][1]) == (0, 70)
    assert all(stop == start for (_, stop), (start, _) in pairwise(pieces))


def test_a_constant_is_silence() -> None:
    """A microphone's bias is no sound, and hides none."""
    bias = np.full(5 * RATE, 0.1, np.float32)
    assert checked(bias) == []
    bias[2 * RATE : 3 * RATE] += speech(1)
    assert checked(bias) == [(pytest.approx(1.8, abs=0.05), pytest.approx(3.2, abs=0.05))]


@pytest.mark.parametrize("level_db", [-3, -20, -40, -60])
@pytest.mark.parametrize("below_db", [40, 100])
def test_silence_around_speech_is_left_out_but_for_a_margin(
    level_db: float, below_db: float
) -> None:
    """Of 0.2 s, however loud the recording is, with the noise 40 dB below the speech or none."""
    samples = noise(10, level_db - below_db)
    samples[3 * RATE : 7 * RATE] += speech(4, level_db)
    assert checked(samples) == [(pytest.approx(2.8, abs=0.05), pytest.approx(7.2, abs=0.05))]


def test_what_is_25_db_softer_than_the_loudest_is_sound() -> None:
    """A second voice far from the microphone, in a room 40 dB below the first."""
    samples = noise(20, -60)
    samples[2 * RATE : 5 * RATE] += speech(3, -20)
    samples[12 * RATE : 15 * RATE] += speech(3, -45)
    ((start, stop),) = checked(samples)
    assert (start, stop) == (pytest.approx(1.8, abs=0.05), pytest.approx(15.2, abs=0.05))


def test_one_word_in_an_hour_is_found() -> None:
    """Half a second of speech, as loud as ever, in a quiet room."""
    samples = np.tile(noise(60, -70), 60)
    samples[1800 * RATE : 1800 * RATE + RATE // 2] += speech(0.5, -30)
    assert checked(samples) == [(pytest.approx(1799.8, abs=0.05), pytest.approx(1800.7, abs=0.05))]


def test_a_click_does_not_hide_soft_speech() -> None:
    """One sample at full scale, and speech at -45 dB."""
    samples = noise(10, -80)
    samples[4 * RATE : 8 * RATE] += speech(4, -45)
    samples[RATE] = 1.0
    (start, stop), *_ = reversed(checked(samples))
    assert (start <= 4.0, stop >= 8.0) == (True, True)


def test_pieces_are_joined_as_long_as_they_fit() -> None:
    """Ten sentences of 4 s with pauses of 1 s: six fit into 30 s, at a pause is the cut."""
    samples = np.concatenate([np.r_[speech(4, seed=i), noise(1, -80)] for i in range(10)])
    pieces = checked(samples)
    near = [(pytest.approx(start, abs=0.3), pytest.approx(stop, abs=0.3)) for start, stop in pieces]
    assert near == [(0, 29), (30, 49)]


def test_the_cut_is_at_the_longest_pause_of_the_later_half() -> None:
    """Not at the last: 0.6 s at 20 s, against 0.2 s at 28 s; nor at 1 s at 10 s, too early."""
    samples = speech(50)
    for start, seconds in ((10, 1.0), (20, 0.6), (28, 0.2)):
        samples[start * RATE : round((start + seconds) * RATE)] *= 1e-3
    (_, stop), (start, _) = checked(samples)
    assert 20 <= stop <= start <= 20.6


def test_a_quieter_pause_is_better_than_one_as_long() -> None:
    """0.4 s 20 dB below the speech at 27 s, and 0.4 s of silence at 18 s."""
    samples = speech(45)
    samples[18 * RATE : round(18.4 * RATE)] = 0
    samples[27 * RATE : round(27.4 * RATE)] = noise(0.4, -45)
    (_, stop), (start, _) = checked(samples)
    assert 18 <= stop <= start <= 18.4


def test_without_a_pause_the_cut_is_at_a_quiet_place() -> None:
    """Between two syllables, with nothing left out."""
    pieces = checked(speech(100))
    assert (pieces[0][0], pieces[-1][1]) == (0, 100)
    for (_, stop), (start, _) in pairwise(pieces):
        assert stop == start
        assert stop % 0.2 > 0.12


@pytest.mark.parametrize("longest_s", [0.5, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_no_sound_is_lost(longest_s: float, rate: int) -> None:
    """Bursts at random places: all that is loud is in the chunks, at any rate and any length."""
    draw = np.random.default_rng(3)
    samples = np.zeros(120 * rate + 77, np.float32)
    for start in draw.uniform(0, 118, 60):
        place, size = round(start * rate), round(draw.uniform(0.05, 2) * rate)
        samples[place : place + size] += noise(size / rate, draw.uniform(-35, -10), rate=rate)
    lost = np.ones(len(samples), bool)
    checked(samples, longest_s, rate)
    for start, stop in silence.cut(samples, rate, longest_s):
        lost[start:stop] = False
    assert not samples[lost].any()


def test_an_hour_is_cut_in_half_a_second() -> None:
    """Of one thread's time."""
    samples = np.tile(np.r_[speech(40), noise(2, -60)], 86)
    started = time.process_time()
    pieces = silence.cut(samples, RATE, LONGEST_S)
    assert time.process_time() - started < 0.5
    assert len(pieces) > 3600 / 30


def joined(pause: np.ndarray) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Sentences read aloud with a pause after each, and where the pauses are."""
    samples, places = np.empty(0, np.float32), []
    for path in sorted(READ_ALOUD.glob("*.wav")) * 3:
        sentence = sounds.decode(path.read_bytes(), RATE, 60).samples
        samples = np.concatenate([samples, sentence, pause])
        places.append(((len(samples) - len(pause)) / RATE, len(samples) / RATE))
    return samples, places


@pytest.mark.skipif(not READ_ALOUD.is_dir(), reason="needs Debian's pocketsphinx-testdata")
@pytest.mark.parametrize("level_db", [-200, -55])
def test_sentences_read_aloud_are_cut_between_them(level_db: float) -> None:
    """Five of LibriVox, three times, with 0.7 s of nothing or of a room's noise after each."""
    samples, places = joined(noise(0.7, level_db))
    pieces = checked(samples)
    assert len(pieces) == 3
    for (_, stop), (start, _) in pairwise(pieces):
        assert any(a - 0.4 <= stop and start <= b + 0.4 for a, b in places)


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
def test_a_synthetic_voice_is_cut_between_its_sentences() -> None:
    """Its WAV comes through a pipe; the cut takes no sound away."""
    text = "This is the first sentence. " * 8
    command = [str(shutil.which("espeak-ng")), "--stdout", text]
    said = subprocess.run(command, capture_output=True, check=True).stdout
    samples = sounds.decode(said, RATE, 60).samples
    pieces = checked(samples, 5.0)
    assert len(pieces) > 2
    for (_, stop), (start, _) in pairwise(pieces):
        between = samples[round((stop - 0.02) * RATE) : round((start + 0.02) * RATE)]
        assert abs(between).max() < 0.02
