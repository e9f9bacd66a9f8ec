"""Reading a CTC model's probabilities: paths, beams, words, times and confidence."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.contract import Array
from marship.serving.speech.ctc import CtcReader, Symbols, align, beam, greedy, lexicon_of

ALPHABET = [" ", "a", "b", "c"]
FRAME_S = 0.02


def log_probs_of(path: str, sure: float = 0.97) -> Array:
    """Frames that say one symbol each, `_` being the blank, float32 (frames, symbols)."""
    symbols = ["_", *ALPHABET]
    rest = (1 - sure) / (len(symbols) - 1)
    rows = [[sure if symbol == said else rest for symbol in symbols] for said in path]
    return np.log(np.array(rows, np.float32))


def text_of(symbols: Symbols) -> str:
    """Symbols as text."""
    return "".join(ALPHABET[symbol - 1] for symbol in symbols)


def collapsed(path: tuple[int, ...]) -> Symbols:
    """What a path spells: repeats are one symbol, blanks none."""
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def by_counting(log_probs: Array) -> dict[Symbols, float]:
    """The probability of every text: all paths are tried."""
    found: dict[Symbols, float] = {}
    frames, symbols = log_probs.shape
    for path in itertools.product(range(symbols), repeat=frames):
        share = math.exp(sum(log_probs[frame, symbol] for frame, symbol in enumerate(path)))
        found[collapsed(path)] = found.get(collapsed(path), 0.0) + share
    return found


def reader(words: list[str] | None = None) -> CtcReader:
    """A reader of the alphabet."""
    about: dict[str, Any] = {"alphabet": ALPHABET, "frame_s": FRAME_S, "words": words}
    return CtcReader(about, Path())


def read(reader: CtcReader, log_probs: Array, padding: int = 0) -> list[Any]:
    """The segments of one chunk, with padded frames behind it."""
    frames = len(log_probs)
    filled = np.pad(log_probs, ((0, padding), (0, 0)))
    outputs = {"log_probs": filled[None], "frames": np.array([frames])}
    return reader.read(outputs, frames * FRAME_S)


def test_greedy_collapses_repeats_and_blanks() -> None:
    """A symbol twice in a row is one; with a blank between it is two."""
    assert text_of(greedy(log_probs_of("_aab_b__ccc"))) == "abbc"
    assert greedy(log_probs_of("___")) == ()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_a_wide_beam_finds_the_likeliest_text(seed: int, frames: int) -> None:
    """It sums over paths as counting all of them does, and so chooses the same text."""
    logits = np.random.default_rng(seed).normal(0, 1.5, (frames, 3))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    shares = by_counting(log_probs)
    assert shares[beam(log_probs, width=1000)] == pytest.approx(max(shares.values()))


def test_the_beam_prefers_the_likeliest_text_to_the_likeliest_path() -> None:
    """Blank, blank is the best single path; but more paths, and more likely together, spell a."""
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert greedy(log_probs) == ()
    assert beam(log_probs) == (1,)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.sampled_from([None, ["a", "ab", "bb"]]))
def test_silence_changes_no_text(seed: int, place: int, words: list[str] | None) -> None:
    """Any number of frames that are surely blank, anywhere, is like one of them."""
    lexicon = lexicon_of(words, ALPHABET)
    logits = np.random.default_rng(seed).normal(0, 2, (6, len(ALPHABET) + 1))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    silence = log_probs_of("_", sure=1 - 1e-6)
    one, many = (
        np.concatenate([log_probs[:place], np.repeat(silence, count, axis=0), log_probs[place:]])
        for count in (1, 500)
    )
    assert beam(one, lexicon) == beam(many, lexicon)


def test_no_frame_makes_every_text_impossible() -> None:
    """Frames that surely say what no word has give a transcript all the same."""
    impossible = np.full((4, len(ALPHABET) + 1), -np.inf)
    impossible[:, 4] = 0.0
    lexicon = lexicon_of(["ab"], ALPHABET)
    assert beam(impossible, lexicon) == ()
    spoken = np.concatenate([log_probs_of("_a_b_"), impossible])
    assert text_of(beam(spoken, lexicon)) == "ab"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20))
def test_a_lexicon_allows_its_words_only(seed: int, frames: int) -> None:
    """Whatever the frames say, the transcript's words are known ones."""
    logits = np.random.default_rng(seed).normal(0, 3, (frames, len(ALPHABET) + 1))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    words = ["ab", "abc", "cc", "b"]
    text = text_of(beam(log_probs, lexicon_of(words, ALPHABET)))
    assert set(text.split()) <= set(words)


def test_a_lexicon_corrects_a_word() -> None:
    """A letter that was not quite audible is the one that makes a word."""
    log_probs = log_probs_of("_a_c_", sure=0.6)
    assert text_of(beam(log_probs)) == "ac"
    assert text_of(beam(log_probs, lexicon_of(["ab", "bb"], ALPHABET))) == "ab"


def test_align_finds_the_frames_of_each_symbol() -> None:
    """First frame and the one after the last, on the best path that spells the text."""
    log_probs = log_probs_of("__aa_a__bb_c")
    assert align(log_probs, (2, 2, 3, 4)).tolist() == [[2, 4], [5, 6], [8, 10], [11, 12]]


def test_align_reads_texts_that_fill_all_frames() -> None:
    """With as many frames as symbols each has one, the first and the last included."""
    assert align(log_probs_of("abc"), (2, 3, 4)).tolist() == [[0, 1], [1, 2], [2, 3]]


def test_the_reader_tells_text_times_and_confidence() -> None:
    """Times are those of the first and the last character; padded frames are not looked at."""
    (segment,) = read(reader(), log_probs_of("____ab_ _cc___"), padding=50)
    assert segment.text == "ab c"
    assert (segment.start_s, segment.end_s) == pytest.approx((4 * FRAME_S, 11 * FRAME_S))
    assert segment.confidence == pytest.approx(0.97, abs=1e-3)


def test_confidence_falls_with_the_probabilities() -> None:
    """The same text from less sure frames is less sure."""
    sure, unsure = (read(reader(), log_probs_of("_a_b_", share)) for share in (0.95, 0.5))
    assert sure[0].text == unsure[0].text
    assert sure[0].confidence > unsure[0].confidence + 0.3


def test_a_long_pause_ends_a_segment() -> None:
    """Words more than a second apart are two segments, each with its own times."""
    first, second = read(reader(), log_probs_of("ab" + "_" * 30 + " " + "_" * 30 + "c_"))
    assert (first.text, second.text) == ("ab", "c")
    assert first.end_s == pytest.approx(2 * FRAME_S)
    assert second.start_s == pytest.approx(63 * FRAME_S)


@pytest.mark.parametrize("path", ["____", "_ _ _", " "])
def test_nothing_said_is_no_segment(path: str) -> None:
    """Blanks and spaces alone give an empty list."""
    assert read(reader(), log_probs_of(path)) == []
    assert read(reader(["ab"]), log_probs_of(path)) == []


def test_spaces_at_the_ends_and_doubled_ones_are_left_out() -> None:
    """The text has single spaces between words, and none around them."""
    (segment,) = read(reader(), log_probs_of("_ _ a _ _b _ "))
    assert segment.text == "a b"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans())
def test_the_reader_responds_whatever_comes(seed: int, frames: int, known: bool) -> None:
    """Noise gives segments in order, within the chunk, with words and a confidence from 0 to 1."""
    logits = np.random.default_rng(seed).normal(0, 4, (frames, len(ALPHABET) + 1))
    log_probs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    segments = read(reader(["ab", "c"] if known else None), log_probs)
    times = [time for one in segments for time in (one.start_s, one.end_s)]
    assert times == sorted(times)
    assert all(0 <= time <= frames * FRAME_S for time in times)
    assert all(one.text and 0 <= one.confidence <= 1 for one in segments)
