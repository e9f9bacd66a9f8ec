"""What a CTC model heard: from each frame's probabilities to text, with times and confidence.

CTC: Graves et al. 2006. Symbol 0 is the blank; symbol n is character n - 1 of the alphabet. A
path names a symbol for each frame; repeated symbols are one, then blanks fall away.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Array, Arrays
from marship.serving.speech import Segment

BLANK = 0
SPACE = " "
WIDTH = 16
"""So many beginnings are followed at a time."""
UNLIKELY = math.log(1e-5)
"""A symbol less likely than this is not tried."""
LONG_PAUSE_S = 1.0
"""From here on, a pause between words ends a segment."""

Symbols = tuple[int, ...]
_NEVER = -math.inf


def greedy(log_probs: Array) -> Symbols:
    """The symbols of the likeliest path.

    Args:
        log_probs: float32, shape (frames, symbols).
    """
    path = log_probs.argmax(1)
    first = np.append(True, path[1:] != path[:-1])
    return tuple(path[first & (path != BLANK)].tolist())


class Lexicon:
    """Words that may be answered, as what may follow each of their beginnings.

    Args:
        words: Each as its symbols.
        space: The symbol between words.
    """

    def __init__(self, words: Sequence[Symbols], space: int) -> None:
        self.space = space
        self.follow: dict[Symbols, set[int]] = {(): {space}}  # before a word there may be more
        for word in words:
            for end, symbol in enumerate(word):
                self.follow.setdefault(word[:end], set()).add(symbol)
            self.follow.setdefault(word, set()).add(space)

    def begun(self, symbols: Symbols) -> Symbols:
        """What there is of the last word."""
        for place in range(len(symbols) - 1, -1, -1):
            if symbols[place] == self.space:
                return symbols[place + 1 :]
        return symbols

    def is_whole(self, symbols: Symbols) -> bool:
        """Whether the last word is one of the words, or there is none."""
        begun = self.begun(symbols)
        return not begun or self.space in self.follow[begun]


@dataclass(slots=True)
class _Score:
    """Log probabilities of all paths so far that spell one beginning."""

    blank: float = _NEVER
    symbol: float = _NEVER

    @property
    def total(self) -> float:
        return _add(self.blank, self.symbol)


def beam(log_probs: Array, lexicon: Lexicon | None = None, width: int = WIDTH) -> Symbols:
    """The likeliest text: the sum over all its paths counts, not one of them.

    Prefix beam search, Hannun et al. 2014, First-Pass Large Vocabulary Continuous Speech
    Recognition using Bi-Directional Recurrent DNNs, algorithm 1, without a language model.

    Args:
        log_probs: float32, shape (frames, symbols).
        lexicon: Where given, the answer has its words only.
        width: How many beginnings are kept.
    """
    beams: dict[Symbols, _Score] = {(): _Score(blank=0.0)}
    for frame in log_probs.tolist():
        likely = [n for n, value in enumerate(frame) if value > UNLIKELY and n != BLANK]
        found: dict[Symbols, _Score] = {}
        for text, score in beams.items():
            _follow(found, text, score, frame, _next(text, likely, lexicon))
        best = sorted(found.items(), key=lambda item: item[1].total, reverse=True)
        beams = dict(best[:width])
    return _best(list(beams), lexicon)


def _next(text: Symbols, likely: Sequence[int], lexicon: Lexicon | None) -> Sequence[int]:
    """The symbols that may come after a beginning."""
    if lexicon is None:
        return likely
    allowed = lexicon.follow[lexicon.begun(text)]
    return [symbol for symbol in likely if symbol in allowed]


def _follow(
    found: dict[Symbols, _Score],
    text: Symbols,
    score: _Score,
    frame: Sequence[float],
    symbols: Sequence[int],
) -> None:
    """Add one frame to a beginning: it stays as it is, or one symbol follows."""
    total = score.total
    same = found.setdefault(text, _Score())
    same.blank = _add(same.blank, total + frame[BLANK])
    if text:
        same.symbol = _add(same.symbol, score.symbol + frame[text[-1]])
    for symbol in symbols:
        longer = found.setdefault((*text, symbol), _Score())
        before = score.blank if text and text[-1] == symbol else total
        longer.symbol = _add(longer.symbol, before + frame[symbol])


def _best(texts: Sequence[Symbols], lexicon: Lexicon | None) -> Symbols:
    """The first text that ends with a whole word; else the first, without what it began."""
    if lexicon is None:
        return texts[0]
    for text in texts:
        if lexicon.is_whole(text):
            return text
    return texts[0][: len(texts[0]) - len(lexicon.begun(texts[0]))]


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))


def align(log_probs: Array, symbols: Symbols) -> Array:
    """The frames of each symbol on the likeliest path that spells them.

    int64, shape (symbols, 2): the first frame, and the one after the last.

    Args:
        log_probs: float32, shape (frames, symbols).
        symbols: At least one, which some path spells.
    """
    states = np.full(2 * len(symbols) + 1, BLANK)
    states[1::2] = symbols
    # a symbol may follow the one before without a blank where the two differ
    skips = np.append([False, False], (states[2:] != BLANK) & (states[2:] != states[:-2]))
    emitted = log_probs[:, states].astype(np.float64)
    score = np.full(len(states), _NEVER)
    score[:2] = emitted[0, :2]
    steps = np.zeros(emitted.shape, np.int64)
    for frame in range(1, len(emitted)):
        one = np.append(_NEVER, score[:-1])
        two = np.where(skips, np.append([_NEVER, _NEVER], score[:-2]), _NEVER)
        choices = np.stack([score, one, two])
        steps[frame] = choices.argmax(0)
        score = choices.max(0) + emitted[frame]
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    path = np.empty(len(emitted), np.int64)
    for frame in range(len(emitted) - 1, -1, -1):
        path[frame] = state
        state -= steps[frame, state]
    wanted = 2 * np.arange(len(symbols)) + 1
    return np.stack([np.searchsorted(path, wanted), np.searchsorted(path, wanted, "right")], 1)


class CtcReader:
    """Reads a CTC model's outputs as its `speech.json` says.

    Args:
        settings: `alphabet`, a list of characters; `frame_s`, seconds from one frame to the
            next; `words`, those that may be answered, or null for any.
        folder: Where the settings lie; there is nothing more to read in it.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002  all readers are made alike
        self.alphabet: list[str] = settings["alphabet"]
        self.frame_s: float = settings["frame_s"]
        self.lexicon = lexicon_of(settings["words"], self.alphabet)

    def read(self, outputs: Arrays, seconds: float) -> list[Segment]:
        """What was said, a segment for each stretch without a long pause.

        The confidence is the geometric mean of the probabilities of the segment's characters.

        Args:
            outputs: `log_probs`, float32 (1, frames, symbols), and `frames`, int64 (1,).
            seconds: Of the piece.
        """
        log_probs = outputs["log_probs"][0, : outputs["frames"][0]]
        symbols = self._trimmed(beam(log_probs, self.lexicon))
        if not symbols:
            return []
        places = align(log_probs, symbols)
        sure = [
            log_probs[first:end, symbol].max()
            for symbol, (first, end) in zip(symbols, places, strict=True)
        ]
        text = "".join(self.alphabet[symbol - 1] for symbol in symbols)
        return [
            Segment(
                start_s=min(float(places[start, 0]) * self.frame_s, seconds),
                end_s=min(float(places[end - 1, 1]) * self.frame_s, seconds),
                text=text[start:end],
                confidence=math.exp(float(np.mean(sure[start:end]))),
            )
            for start, end in self._stretches(text, places)
        ]

    def _trimmed(self, symbols: Symbols) -> Symbols:
        """Without spaces at the ends, and with single ones between words."""
        space = self.alphabet.index(SPACE) + 1
        kept = [
            s
            for s, last in zip(symbols, (space, *symbols), strict=False)
            if s != space or last != space
        ]
        return tuple(kept[:-1] if kept and kept[-1] == space else kept)

    def _stretches(self, text: str, places: Array) -> Iterator[tuple[int, int]]:
        """Where each segment's characters begin and end."""
        start = 0
        for place, character in enumerate(text):
            if character != SPACE:
                continue
            pause_s = (places[place + 1, 0] - places[place - 1, 1]) * self.frame_s
            if pause_s >= LONG_PAUSE_S:
                yield start, place
                start = place + 1
        yield start, len(text)


def lexicon_of(words: Sequence[str] | None, alphabet: Sequence[str]) -> Lexicon | None:
    """The lexicon of words written in an alphabet; None where any word may be answered."""
    if words is None:
        return None
    number = {character: place for place, character in enumerate(alphabet, 1)}
    return Lexicon([tuple(number[c] for c in word) for word in words], number[SPACE])
