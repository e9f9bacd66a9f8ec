"""Word and character error rates of a speech model, and its mistakes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from audiofolder import AudioFolder, Recordings
from confusion import MOST_CLASSES, draw_confusion
from torch import nn

from marship import console
from marship.contract import Array
from marship.serving.speech import ctc
from marship.storage import replacing

BATCH_SAMPLES = 1 << 21
"""Recordings share a batch as long as their samples, padded, are no more than this."""
SHOWN = 20
"""Most mistakes to write."""
NO_WORD = "(none)"
"""What a word left out is taken for, and what an inserted word was."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Word and character error rates: edits divided by the references' words, or characters."""

    word_error_rate: float
    character_error_rate: float
    words: int


def evaluate(model: nn.Module, folder: AudioFolder, chosen: str, picture: Path) -> dict[str, Any]:
    """Error rates on the test recordings: of each decoder, and of the chosen one in detail.

    Draws the confusion matrix of the words, too.
    """
    log_probs = log_probs_of(model, folder.test)
    lexicon = ctc.lexicon_of(known_words(folder), folder.alphabet)
    ways = {
        "greedy": ctc.greedy,
        "any": ctc.beam,
        "known": partial(ctc.beam, lexicon=lexicon),
    }
    texts = {name: transcribe(log_probs, folder.alphabet, read) for name, read in ways.items()}
    rates = {name: errors(folder.test.texts, found) for name, found in texts.items()}
    confused = confusions(folder.test.texts, texts[chosen])
    draw_words(confused, picture)
    speakers = by_speaker(folder.test, texts[chosen])
    return {
        **asdict(rates[chosen]),
        "ways": {name: asdict(found) for name, found in rates.items()},
        "speakers": {name: asdict(found) for name, found in speakers.items()},
        "confusions": confused_most(confused),
        "mistakes": mistakes(folder.test, texts[chosen]),
    }


def known_words(folder: AudioFolder) -> list[str]:
    """All words of the training texts."""
    return sorted({word for text in folder.train.texts for word in text.split()})


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
    log_probs: Sequence[Array], alphabet: Sequence[str], read: Callable[[Array], ctc.Symbols]
) -> list[str]:
    """Decode each recording's probabilities to text with `read`."""
    return [spelled(read(one), alphabet) for one in log_probs]


def spelled(symbols: ctc.Symbols, alphabet: Sequence[str]) -> str:
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


def confusions(references: Sequence[str], transcripts: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often each word was said and each transcribed, by pairs of aligned words.

    Example:
        >>> confusions(["two five"], ["two nine one"])[("five", "nine")]
        1
    """
    counts: Counter[tuple[str, str]] = Counter()
    found = jiwer.process_words(list(references), list(transcripts))
    for chunks, said, heard in zip(
        found.alignments, found.references, found.hypotheses, strict=True
    ):
        for chunk in chunks:
            before = said[chunk.ref_start_idx : chunk.ref_end_idx]
            after = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            counts.update(zip_longest(before, after, fillvalue=NO_WORD))
    return counts


def confused_most(counts: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    """The most frequent mistakes."""
    wrong = [(pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]]
    return [{"said": a, "transcribed": b, "count": count} for (a, b), count in wrong[:SHOWN]]


def draw_words(counts: Counter[tuple[str, str]], file: Path) -> None:
    """Write the confusion matrix as a picture: of all words, or of the most frequent mistakes'."""
    ordered = sorted(counts, key=lambda pair: (pair[0] == pair[1], -counts[pair]))
    named = dict.fromkeys([NO_WORD, *(word for pair in ordered for word in pair)])
    words = sorted([*named][:MOST_CLASSES])
    number = {word: place for place, word in enumerate(words)}
    shown = [pair for pair in counts.elements() if number.keys() >= {*pair}]
    pairs = torch.tensor([[number[word] for word in pair] for pair in shown])
    figure = draw_confusion(predicted=pairs[:, 1], labels=pairs[:, 0], classes=words)
    with replacing(file) as draft:
        figure.savefig(draft, dpi=100, format="png")


def print_metrics(results: dict[str, Any], recordings: int) -> None:
    """Print the metrics."""
    from rich.table import Table

    title = f"Word error rate {results['word_error_rate']:.4f} on {recordings} recordings"
    table = Table("", "words", "word errors", "character errors", title=title)
    for name, found in (*results["ways"].items(), *results["speakers"].items()):
        rates = (found["word_error_rate"], found["character_error_rate"])
        table.add_row(name, str(found["words"]), *(f"{rate:.4f}" for rate in rates))
    console.out.print(table)
