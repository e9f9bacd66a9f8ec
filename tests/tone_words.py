"""Words that are heard as tones, as an audio folder: each letter has its own pitch."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from marship.contract import Array

RATE = 8000
WORDS = ("bad", "cab", "dad", "ace", "bee")
LETTER_S = 0.08
GAP_S = 0.03
"""Silence after each letter: else a doubled one could not be told from a long one."""
PITCHES_HZ = {letter: 400.0 + 500.0 * number for number, letter in enumerate("abcde")}
SPEAKERS = ("low", "high")


def spoken(text: str, generator: np.random.Generator, speaker: str = "low") -> Array:
    """A text as tones, with pauses around the words: float32 (samples,)."""
    higher = 1.1 if speaker == "high" else 1.0
    parts = [pause(generator)]
    for word in text.split():
        for letter in word:
            pitch_hz = PITCHES_HZ[letter] * higher * generator.uniform(0.97, 1.03)
            places = np.arange(round(LETTER_S * generator.uniform(0.8, 1.2) * RATE))
            parts += [np.sin(2 * np.pi * pitch_hz / RATE * places), np.zeros(round(GAP_S * RATE))]
        parts.append(pause(generator))
    sound = np.concatenate(parts) * generator.uniform(0.1, 0.8)
    return (sound + generator.normal(0, 1e-3, len(sound))).astype(np.float32)


def pause(generator: np.random.Generator) -> Array:
    """Silence of random length."""
    return np.zeros(round(generator.uniform(0.1, 0.2) * RATE))


def texts(count: int, generator: np.random.Generator) -> list[str]:
    """Texts of one to three words."""
    return [" ".join(generator.choice(WORDS, generator.integers(1, 4))) for _ in range(count)]


def write_table(folder: Path, rows: Sequence[Sequence[str]], *more: str) -> None:
    """Write `metadata.csv`, with columns beside the needed ones."""
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "transcription", *more), *rows])


def write_part(folder: Path, count: int, seed: int) -> None:
    """Write recordings and their table."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows = []
    for number, text in enumerate(texts(count, generator)):
        name, speaker = f"{number:03}.flac", SPEAKERS[number % len(SPEAKERS)]
        soundfile.write(folder / name, spoken(text, generator, speaker), RATE)
        rows.append((name, text, speaker))
    write_table(folder, rows, "speaker")


def write_tone_words(folder: Path, train: int = 200, test: int = 40) -> Path:
    """Write train/ and test/, each with its table."""
    write_part(folder / "train", train, seed=1)
    write_part(folder / "test", test, seed=2)
    return folder
