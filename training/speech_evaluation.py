"""Word and character error rates of a speech model, and its mistakes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np
import torch
from audiofolder import Recordings
from torch import nn

from marship.contract import Array
from marship.serving.speech.ctc import Symbols

BATCH_SAMPLES = 1 << 21
"""Recordings share a batch as long as their samples, padded, are no more than this."""
SHOWN = 20
"""Most mistakes to write."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Word and character error rates: edits divided by the references' words, or characters."""

    word_error_rate: float
    character_error_rate: float
    words: int


def log_probs_of(model: nn.Module, recordings: Recordings) -> list[Array]:
    """Log probabilities of the symbols for each recording, float32 (frames, symbols)."""
    device = next(model.parameters()).device
    sizes = recordings.sizes()
    order = np.argsort(-sizes, kind="stable")
    found: list[Array] = [np.zeros(0)] * len(recordings)
    start = 0
    while start < len(order):
        count = max(1, BATCH_SAMPLES // sizes[order[start]])
        places = order[start : start + count]
        audio = [torch.from_numpy(recordings.audio(place)) for place in places]
        with torch.no_grad():
            outputs = model(torch.nn.utils.rnn.pad_sequence(audio, True).to(device))
        batch = outputs["log_probs"].float().cpu().numpy()
        for place, log_probs, frames in zip(places, batch, outputs["frames"].tolist(), strict=True):
            found[place] = log_probs[:frames]
        start += count
    return found


def transcribe(
    log_probs: Sequence[Array], alphabet: Sequence[str], read: Callable[[Array], Symbols]
) -> list[str]:
    """Decode each recording's probabilities to text with `read`."""
    return [spelled(read(one), alphabet) for one in log_probs]


def spelled(symbols: Symbols, alphabet: Sequence[str]) -> str:
    """Symbols as text with single spaces."""
    return " ".join("".join(alphabet[symbol - 1] for symbol in symbols).split())


def errors(references: Sequence[str], transcripts: Sequence[str]) -> Errors:
    """The rates over all texts together; every reference has a word."""
    words = jiwer.process_words(list(references), list(transcripts))
    count = words.hits + words.substitutions + words.deletions
    return Errors(words.wer, jiwer.cer(list(references), list(transcripts)), count)


def by_speaker(recordings: Recordings, transcripts: Sequence[str]) -> dict[str, Errors]:
    """The rates for each speaker in the table."""
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for speaker, reference, one in zip(
        recordings.speakers, recordings.texts, transcripts, strict=True
    ):
        texts = groups.setdefault(speaker, ([], []))
        texts[0].append(reference)
        texts[1].append(one)
    return {speaker: errors(*texts) for speaker, texts in sorted(groups.items()) if speaker}


def mistakes(recordings: Recordings, transcripts: Sequence[str]) -> list[dict[str, Any]]:
    """The recordings transcribed wrongly, those with the most wrong words first."""
    rows = [
        {"file": name, "reference": reference, "transcript": one, "edits": edits(reference, one)}
        for name, reference, one in zip(
            recordings.names, recordings.texts, transcripts, strict=True
        )
        if reference != one
    ]
    return sorted(rows, key=lambda row: -row["edits"])[:SHOWN]


def edits(reference: str, transcript: str) -> int:
    """Insertions, deletions and substitutions of words."""
    found = jiwer.process_words(reference, transcript)
    return found.insertions + found.deletions + found.substitutions
