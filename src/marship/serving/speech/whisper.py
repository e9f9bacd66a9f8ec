"""Decodes Whisper's tokens to text, with timestamps and confidence.

The token decoding is part of the graph (training/transcriber.py). Its outputs for each chunk are
`tokens`, terminated by the end token, `log_probs` and `times` of each token; and `no_speech`, the
probability that there is no speech.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from marship.contract import Array, Arrays
from marship.serving.speech.segment import Segment

SURELY_SILENT, PERHAPS_SILENT = 0.6, 0.3
"""Probabilities of no speech: from the first on there is none, from the second on there is none
where the words are doubtful, too. OpenAI's transcribe.py asks for both 0.6 and doubt, and writes
"you" into silence."""
DOUBTFUL = -1.0
"""Mean log probability of a token, as in OpenAI's transcribe.py."""
BEFORE_S, AFTER_S = 0.15, 0.25
"""Margins of a word before and after the time that the model attends to."""
SENTENCE_ENDS = (".", "?", "!")
NO_ENDS = frozenset(("Mr.", "Mrs.", "Ms.", "Dr.", "St.", "Prof."))
LOOP_TURNS = 3
"""Number of repetitions of the last tokens that count as a decoding loop."""


class WhisperReader:
    """Converts tokens to segments.

    Args:
        about: What speech.json holds: `tokens`, the file with each token's bytes (a JSON list of
            texts, in which each character is a byte), and `end`, the end token.
        folder: Where that file lies.
    """

    def __init__(self, about: Mapping[str, Any], folder: Path) -> None:
        table = orjson.loads((folder / about["tokens"]).read_bytes())
        self._bytes = [token.encode("latin-1") for token in table]
        self._end = int(about["end"])

    def read(self, outputs: Arrays, seconds: float) -> list[Segment]:
        """The sentences of one chunk; none without speech.

        Args:
            outputs: The model's, for this chunk alone: a batch of one.
            seconds: How long the chunk is.
        """
        tokens, log_probs, times = (outputs[k][0] for k in ("tokens", "log_probs", "times"))
        ends = np.flatnonzero(tokens == self._end)
        count = int(ends[0]) if ends.size else without_loop(tokens)
        if is_silence(float(outputs["no_speech"][0]), log_probs[: count + 1]):
            return []
        words = [self._bytes[token] for token in tokens[:count]]
        segments = [
            _segment(words[span], log_probs[span], times[span], seconds)
            for span in sentences(words)
        ]
        return [segment for segment in segments if segment.text]


def is_silence(no_speech: float, log_probs: Array) -> bool:
    """Whether there is no speech, whatever the tokens are."""
    if no_speech > SURELY_SILENT:
        return True
    return no_speech > PERHAPS_SILENT and float(log_probs.mean()) < DOUBTFUL


def without_loop(tokens: Array) -> int:
    """The number of tokens without the repetitions of a loop at their end."""
    total = len(tokens)
    for period in range(1, total // LOOP_TURNS + 1):
        if np.array_equal(
            tokens[total - LOOP_TURNS * period : total - period],
            tokens[total - (LOOP_TURNS - 1) * period :],
        ):
            same = tokens[:-period] == tokens[period:]
            return int(np.flatnonzero(~same)[-1]) + 1 + period if not same.all() else period
    return total


def sentences(words: Sequence[bytes]) -> Iterator[slice]:
    """The tokens of each sentence: a dot within a number or a title does not end one."""
    start, word = 0, b""
    for place, token_text in enumerate(words, 1):
        word = token_text if token_text.startswith(b" ") else word + token_text
        text = word.decode(errors="replace").strip()
        follows = words[place : place + 1]
        if (
            text.endswith(SENTENCE_ENDS)
            and text not in NO_ENDS
            and (not follows or follows[0].startswith(b" "))
        ):
            yield slice(start, place)
            start = place
    if start < len(words):
        yield slice(start, len(words))


def _segment(words: Sequence[bytes], log_probs: Array, times: Array, seconds: float) -> Segment:
    """A sentence; its timestamps are those of its first and last tokens without punctuation."""
    spoken = [place for place, token_text in enumerate(words) if _is_spoken(token_text)] or [0]
    start, end = float(times[spoken[0]]) - BEFORE_S, float(times[spoken[-1]]) + AFTER_S
    start = min(max(start, 0.0), seconds)
    end = min(max(end, start), seconds)
    confidence = math.exp(min(0.0, float(log_probs.mean())))
    return Segment(start, end, b"".join(words).decode(errors="replace").strip(), confidence)


def _is_spoken(token_text: bytes) -> bool:
    """Whether a token has a letter or digit; bytes of non-ASCII characters count as such."""
    return not token_text.isascii() or any(chr(byte).isalnum() for byte in token_text)
