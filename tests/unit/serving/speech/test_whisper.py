"""What a Whisper model's tokens become: sentences with times, or nothing where nobody speaks."""

import json
from pathlib import Path

import numpy as np
import pytest

from marship.contract import Arrays
from marship.serving.speech.whisper import WhisperReader

WORDS = [
    *("", " Mr", ".", " Good", "win", " left", " Paid", " 3", "5", " dollars", "?", " Oh", " no"),
    *(" caf", "\u00c3", "\u00a9", "!", " "),
]
END = 0
MOST = 40
LIKELY = -0.1


@pytest.fixture
def reader(tmp_path: Path) -> WhisperReader:
    """With the tokens above; two of them are halves of one letter."""
    (tmp_path / "tokens.json").write_text(json.dumps(WORDS))
    return WhisperReader({"tokens": "tokens.json", "end": END}, tmp_path)


def heard(
    words: list[str],
    *,
    no_speech: float = 0.0,
    log_prob: float = LIKELY,
    times: list[float] | None = None,
    ended: bool = True,
) -> Arrays:
    """Outputs of the model that say these words, a second from one to the next."""
    most = MOST if ended else len(words)
    tokens = np.full((1, most), END)
    tokens[0, : len(words)] = [WORDS.index(word) for word in words]
    log_probs = np.zeros((1, most), np.float32)
    log_probs[0, : len(words) + 1] = log_prob
    at = np.zeros((1, most), np.float32)
    at[0, : len(words)] = times or range(1, len(words) + 1)
    return {
        "tokens": tokens,
        "log_probs": log_probs,
        "times": at,
        "no_speech": np.array([no_speech], np.float32),
    }


def test_each_sentence_is_a_segment(reader: WhisperReader) -> None:
    """A title's dot and a number's dot end no sentence; words reach from their time and a bit."""
    words = [" Mr", ".", " Good", "win", " left", ".", " Paid", " 3", ".", "5", " dollars", "?"]
    first, second = reader.read(heard(words), 20.0)
    assert (first.text, second.text) == ("Mr. Goodwin left.", "Paid 3.5 dollars?")
    assert (first.start_s, first.end_s) == pytest.approx((0.85, 5.25))
    assert (second.start_s, second.end_s) == pytest.approx((6.85, 11.25))


def test_times_stay_within_the_piece(reader: WhisperReader) -> None:
    """A word at the very start or end goes no further than the sound."""
    (segment,) = reader.read(heard([" Oh", " no"], times=[0.1, 2.0]), 2.1)
    assert (segment.start_s, segment.end_s) == (0.0, 2.1)


def test_confidence_is_the_mean_probability_of_a_token(reader: WhisperReader) -> None:
    """The geometric mean of the tokens' probabilities."""
    (segment,) = reader.read(heard([" Oh", " no", "!"], log_prob=np.log(0.8)), 5.0)
    assert segment.confidence == pytest.approx(0.8, abs=1e-6)


def test_a_letter_may_be_two_tokens(reader: WhisperReader) -> None:
    """Tokens are bytes: text is decoded when they are together."""
    (segment,) = reader.read(heard([" caf", "\u00c3", "\u00a9"]), 5.0)
    assert segment.text == "caf\u00e9"


@pytest.mark.parametrize(
    ("no_speech", "log_prob", "spoken"),
    [
        (0.95, -0.1, False),
        (0.45, -1.5, False),
        (0.45, -0.5, True),
        (0.1, -1.5, True),
    ],
)
def test_nothing_is_said_where_nobody_speaks(
    reader: WhisperReader, no_speech: float, log_prob: float, spoken: bool
) -> None:
    """A model writes words into silence; it is the probability of no speech that tells."""
    outputs = heard([" Oh", " no"], no_speech=no_speech, log_prob=log_prob)
    assert bool(reader.read(outputs, 5.0)) == spoken


def test_a_text_without_words_is_none(reader: WhisperReader) -> None:
    """Blanks alone, or the end at once, give no segment."""
    assert reader.read(heard([]), 5.0) == []
    assert reader.read(heard([" "]), 5.0) == []


def test_a_loop_is_said_once(reader: WhisperReader) -> None:
    """A text that never ends, and ends with the same words again and again, is cut."""
    words = [" Good", "win", *[" Oh", " no"] * 9]
    (segment,) = reader.read(heard(words, ended=False), 30.0)
    assert segment.text == "Goodwin Oh no"
    (segment,) = reader.read(heard([" no"] * 20, ended=False), 30.0)
    assert segment.text == "no"


def test_words_said_again_stay_where_the_text_ends(reader: WhisperReader) -> None:
    """People do repeat themselves."""
    (segment,) = reader.read(heard([" no"] * 6), 30.0)
    assert segment.text == "no no no no no no"
