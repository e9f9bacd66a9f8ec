"""Splits a recording at silence into chunks for a model.

Levels are measured in frames of 20 ms, in dBFS. The threshold adapts to the recording: its quiet
frames give the noise level, its loud ones the voice level. In doubt frames are kept: steady noise
is passed to the model, which can tell noise from speech, and only near silence is dropped.
"""

from collections.abc import Iterator

import numpy as np

from marship.contract import Array

FRAME_S = 0.02
MARGIN_S = 0.2
"""Margin kept on both sides of loud frames: words start and end softly."""
LOWEST_DB = -80.0
"""Below this level is silence; 16-bit silence with dither is at about -93."""
FAINT_DB = -55.0
"""Below this a nearly constant level is background noise of a quiet room."""
STEADY_DB = 12.0
"""Range of a nearly constant level: white noise has 3, speech 30 or more."""
NOISE_PART = 0.1
"""The quietest tenth of the frames gives the noise level."""
ABOVE_NOISE_DB = 6.0
BELOW_VOICE_DB = 30.0
"""A frame this far below the loudest is only kept if it is above the noise."""
LOUD_FRAMES = 5
LATER_DB = 3.0
"""How much louder a pause at a window's end may be than one in its middle, to be chosen."""
PAUSES_S = (0.2, 1.0)
"""Pauses are scored over both lengths: longer and quieter ones are better."""


def cut(samples: Array, rate: int, longest_s: float) -> list[tuple[int, int]]:
    """Find the chunks of a recording that are not silent.

    A chunk is as long as `longest_s` allows, since a model benefits from context. Longer stretches
    are split in the later half of what fits, at the best pause, or without one at the quietest
    place.

    Args:
        samples: float32, shape (samples,), mono.
        rate: The sample rate.
        longest_s: Maximum length of a chunk; at least one frame.

    Returns:
        Starts and ends of chunks in samples, in order and without overlap. Silence is dropped.
    """
    frame = max(1, round(FRAME_S * rate))
    levels = _levels(samples, frame)
    spans = _spans(levels)
    most = int(longest_s * rate) // frame
    chunks = _splits(spans, levels, max(1, most))
    return [(start * frame, min(stop * frame, len(samples))) for start, stop in chunks]


def _levels(samples: Array, frame: int) -> Array:
    """Each frame's level in dB: its power without the DC offset, such as a microphone's bias."""
    whole = len(samples) // frame * frame
    power = _power(samples[:whole].reshape(-1, frame))
    if whole < len(samples):
        power = np.append(power, _power(samples[whole:].reshape(1, -1)))
    levels: Array = 10 * np.log10(np.maximum(power, 10 ** (LOWEST_DB / 10 - 1)))
    return levels


def _power(frames: Array) -> Array:
    power: Array = np.einsum("ij,ij->i", frames, frames) / frames.shape[1] - frames.mean(1) ** 2
    return power


def _spans(levels: Array) -> list[tuple[int, int]]:
    """Starts and ends of runs of frames above the threshold, with margins."""
    if not len(levels) or (threshold := _threshold(levels)) is None:
        return []
    margin = round(MARGIN_S / FRAME_S)
    edges = np.zeros(len(levels) + 1, np.int64)
    loud = np.flatnonzero(levels > threshold)
    np.add.at(edges, np.maximum(loud - margin, 0), 1)
    np.add.at(edges, np.minimum(loud + margin + 1, len(levels)), -1)
    is_sound = np.concatenate(([False], np.cumsum(edges[:-1]) > 0, [False]))
    starts, stops = np.flatnonzero(is_sound[1:] != is_sound[:-1]).reshape(-1, 2).T
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _threshold(levels: Array) -> float | None:
    """The level above which a frame is kept; None if all is silence."""
    rank = min(LOUD_FRAMES, 1 + len(levels) // 20)
    loudest = float(np.partition(levels, -rank)[-rank])
    noise = float(np.quantile(levels, NOISE_PART))
    if loudest < LOWEST_DB or (loudest < FAINT_DB and loudest - noise < STEADY_DB):
        return None
    return max(LOWEST_DB, min(noise + ABOVE_NOISE_DB, loudest - BELOW_VOICE_DB))


def _splits(spans: list[tuple[int, int]], levels: Array, most: int) -> Iterator[tuple[int, int]]:
    """Join spans to chunks of at most that many frames, and split longer ones."""
    if not spans:
        return
    starts, stops = np.array(spans).T
    start, end = spans[0][0], spans[-1][1]
    scores = _scores(levels)
    while end - start > most:
        place = _best(scores, start, most)
        last = np.searchsorted(starts, place) - 1  # the one that starts before the place
        following = np.searchsorted(stops, place, "right")  # the one that ends after it
        yield start, min(place, int(stops[last]))
        start = max(place, int(starts[following]))
    yield start, end


def _scores(levels: Array) -> Array:
    """The loudness around each frame, over two lengths of pauses."""
    scores = np.zeros(len(levels))
    for pause_s in PAUSES_S:
        size = min(round(pause_s / FRAME_S), len(levels))
        scores += np.convolve(levels, np.full(size, 1 / len(PAUSES_S) / size), "same")
    return scores


def _best(scores: Array, start: int, most: int) -> int:
    """The frame to split before, in the later half of what fits."""
    first, last = start + max(1, most // 2), start + most
    window = scores[first : last + 1]
    return first + int(np.argmin(window - np.linspace(0, LATER_DB, len(window))))
