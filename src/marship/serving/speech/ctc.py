"""CTC decoding: from frame-wise probabilities to text, with timestamps and confidence.

CTC: Graves et al. 2006. Symbol 0 is the blank; symbol n is character n - 1 of the alphabet. A
path has a symbol for each frame; repeated symbols are merged, then blanks are removed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Array, Arrays
from marship.serving.speech.segment import Segment

BLANK = 0
SPACE = " "
WIDTH = 16
"""The beam width."""
UNLIKELY = math.log(1e-3)
"""Symbols less likely than this are pruned."""
LEAST = -80.0
"""A lower bound of probabilities, so that no frame makes every text impossible."""
LONG_PAUSE_S = 1.0
"""Pauses between words of at least this length end a segment."""

Symbols = tuple[int, ...]
_NEVER = -math.inf


def greedy(log_probs: Array) -> Symbols:
    """Greedy decoding: the symbols of the most likely path.

    Args:
        log_probs: float32, shape (frames, symbols).
    """
    path = log_probs.argmax(1)
    first = np.append(True, path[1:] != path[:-1])
    return tuple(path[first & (path != BLANK)].tolist())


class Lexicon:
    """The allowed words as a trie: a node for each prefix.

    Args:
        words: The symbols of each word.
        space: The symbol between words.

    Attributes:
        follow: For each node, the possible next symbols and their nodes.
    """

    START = 0
    """The node between words."""

    def __init__(self, words: Sequence[Symbols], space: int) -> None:
        self.follow: list[dict[int, int]] = [{space: self.START}]  # there may be more spaces
        for word in words:
            place = self.START
            for symbol in word:
                if symbol not in self.follow[place]:
                    self.follow[place][symbol] = len(self.follow)
                    self.follow.append({})
                place = self.follow[place][symbol]
            self.follow[place][space] = self.START
        self.space = space

    def is_whole(self, place: int) -> bool:
        """Whether a word may end at this node, or none has started."""
        return self.space in self.follow[place]


class _Anything(Lexicon):
    """No restriction: any symbol may follow any other."""

    def __init__(self, symbols: int) -> None:
        self.follow = [dict.fromkeys(range(1, symbols), self.START)]

    def is_whole(self, place: int) -> bool:
        return place == self.START


class _Prefix:
    """A prefix of the text: a node in the tree of all hypotheses."""

    __slots__ = ("_longer", "before", "place", "symbol")

    def __init__(self, before: "_Prefix | None", symbol: int, place: int) -> None:
        self.before, self.symbol, self.place = before, symbol, place
        self._longer: dict[int, _Prefix] = {}

    def longer(self, symbol: int, place: int) -> "_Prefix":
        """The prefix extended by a symbol, at that node of the lexicon."""
        found = self._longer.get(symbol)
        if found is None:
            found = self._longer[symbol] = _Prefix(self, symbol, place)
        return found

    def symbols(self) -> Symbols:
        """The symbols of the prefix."""
        found, node = [], self
        while node.before is not None:
            found.append(node.symbol)
            node = node.before
        return tuple(reversed(found))


def beam(log_probs: Array, lexicon: Lexicon | None = None, width: int = WIDTH) -> Symbols:
    """Beam search: the most likely text, by the sum over all its paths.

    Prefix beam search, Hannun et al. 2014, First-Pass Large Vocabulary Continuous Speech
    Recognition using Bi-Directional Recurrent DNNs, algorithm 1, without a language model.

    Args:
        log_probs: float32, shape (frames, symbols).
        lexicon: If given, the text consists of its words only.
        width: The beam width.
    """
    words = lexicon or _Anything(log_probs.shape[1])
    # for each prefix, the probability of all paths that end in a blank, and of all others
    kept = {_Prefix(None, BLANK, words.START): [1.0, 0.0]}
    for blank, symbols in _moments(log_probs):
        found: dict[_Prefix, list[float]] = {}
        for text, (silent, spoken) in kept.items():
            total = silent + spoken
            same = found.setdefault(text, [0.0, 0.0])
            same[0] += total * blank
            same[1] += spoken * symbols.get(text.symbol, 0.0)
            follow = words.follow[text.place]
            for symbol, probability in symbols.items():
                if symbol in follow:
                    longer = found.setdefault(text.longer(symbol, follow[symbol]), [0.0, 0.0])
                    longer[1] += probability * (silent if symbol == text.symbol else total)
        kept = _likeliest(found, width)
    return _whole(list(kept), words)


def _moments(log_probs: Array) -> Iterator[tuple[float, dict[int, float]]]:
    """The probabilities of the blank and of likely symbols, frame by frame.

    Adjacent frames without a likely symbol are merged, as all hypotheses continue equally.
    """
    likely = log_probs > UNLIKELY
    likely[:, BLANK] = False
    probabilities = np.exp(np.maximum(log_probs, LEAST)).astype(np.float64)
    was_silent = False
    for row, frame in zip(likely, probabilities.tolist(), strict=True):
        symbols = row.nonzero()[0].tolist()
        if symbols or not was_silent:
            yield frame[BLANK], {symbol: frame[symbol] for symbol in symbols}
        was_silent = not symbols


def _likeliest(found: dict[_Prefix, list[float]], width: int) -> dict[_Prefix, list[float]]:
    """Keep the `width` best hypotheses, renormalized against underflow."""
    best = sorted(found.items(), key=lambda item: -sum(item[1]))[:width]
    most = sum(best[0][1])
    return {text: [silent / most, spoken / most] for text, (silent, spoken) in best if most}


def _whole(texts: Sequence[_Prefix], words: Lexicon) -> Symbols:
    """The best text that ends with a complete word; else the best without its partial word."""
    for text in texts:
        if words.is_whole(text.place):
            return text.symbols()
    text = texts[0]
    while text.before is not None and text.place != words.START:
        text = text.before
    return text.symbols()


def align(log_probs: Array, symbols: Symbols) -> Array:
    """Forced alignment: the frames of each symbol on the most likely path of the text.

    int64, shape (symbols, 2): the first frame, and the one after the last.

    Args:
        log_probs: float32, shape (frames, symbols).
        symbols: At least one; some path must produce them.
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
    """Decodes a CTC model's outputs with the settings of its `speech.json`.

    Args:
        settings: `alphabet`, a list of characters; `frame_s`, seconds from one frame to the
            next; `words`, the allowed ones, or null for any.
        folder: The folder of the settings; not used.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002  the signature of all readers
        self.alphabet: list[str] = settings["alphabet"]
        self.frame_s: float = settings["frame_s"]
        self.lexicon = lexicon_of(settings["words"], self.alphabet)

    def read(self, outputs: Arrays, seconds: float) -> list[Segment]:
        """The transcript, with a segment for each stretch without a long pause.

        The confidence is the geometric mean of the probabilities of the segment's characters.

        Args:
            outputs: `log_probs`, float32 (1, frames, symbols), and `frames`, int64 (1,).
            seconds: The chunk's length.
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
        """The symbols without leading, trailing and repeated spaces."""
        space = self.alphabet.index(SPACE) + 1
        kept = [
            s
            for s, last in zip(symbols, (space, *symbols), strict=False)
            if s != space or last != space
        ]
        return tuple(kept[:-1] if kept and kept[-1] == space else kept)

    def _stretches(self, text: str, places: Array) -> Iterator[tuple[int, int]]:
        """The start and end of each segment's characters."""
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
    """The lexicon of words in an alphabet; None without restriction."""
    if words is None:
        return None
    number = {character: place for place, character in enumerate(alphabet, 1)}
    return Lexicon([tuple(number[c] for c in word) for word in words], number[SPACE])
