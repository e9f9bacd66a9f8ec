"""Write an audio folder of spoken digits: single recordings joined to utterances.

    python training/spoken_digits.py recordings --out digits --leave-out theo
    python training/speech.py --data-dir digits --sample-rate 8000

`recordings` holds files named `<digit>_<speaker>_<index>.wav`, as the Free Spoken Digit Dataset
names them. An utterance is some digits of one speaker with random pauses: up to 8 for the test,
up to `--longest` for training. As that data set recommends, indices 0 to 4 are test data and the
others training data; all recordings of a speaker left out are test data. With `--synthetic` part
of the training data is synthesized by espeak-ng and flite.
"""

import csv
import io
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Annotated

import numpy as np
import soundfile
import soxr
from typer import Argument

from marship import console
from marship.contract import Array
from marship.errors import DataError, UsageError
from marship.settings import flags, setting

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")
TEST_INDICES = range(5)
LONGEST_DIGITS = 8
"""Most digits of a test utterance."""
PAUSE_S = 0.5
"""Longest pause between two digits, and at the ends."""
SPEAKERS = {
    "espeak-ng": ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029"),
    "flite": ("kal", "awb", "rms", "slt"),
}
FLITE_SHARE = 0.25
SILENT_SHARE = 0.01
"""A synthetic word begins and ends where it exceeds this share of its peak."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Size and composition of the data."""

    out: Path = setting(Path("digits"), "folder for train/ and test/")
    leave_out: tuple[str, ...] = setting((), "a speaker to use for the test only; may be repeated")
    utterances: int = setting(1500, "number of training utterances", minimum=1)
    synthetic: float = setting(
        0.0, "share of them spoken by espeak-ng and flite, 0 to 1", minimum=0, maximum=1
    )
    longest: int = setting(3, "most digits of a training utterance", minimum=1)
    voices: int = setting(150, "number of synthetic voices", minimum=1)
    passes: int = setting(2, "how often each test recording is used", minimum=1)
    seed: int = setting(1, "start of every random number")


@dataclass(frozen=True, slots=True)
class Digit:
    """One spoken digit.

    Attributes:
        value: 0 to 9.
        speaker: The speaker's name.
        index: Number among the speaker's recordings of the digit.
        samples: float32.
    """

    value: int
    speaker: str
    index: int
    samples: Array


def read(folder: Path) -> tuple[list[Digit], int]:
    """All recordings of a folder, and their rate.

    Raises:
        UsageError: There are none.
        DataError: They have different rates.
    """
    files = [(file, NAME.fullmatch(file.name)) for file in sorted(folder.glob("*.wav"))]
    found = [(file, match) for file, match in files if match]
    if not found:
        raise UsageError(f"{folder} must hold files like 7_george_12.wav, got none.")
    digits, rates = [], set()
    for file, match in found:
        samples, rate = soundfile.read(file, dtype="float32")
        rates.add(rate)
        digits.append(Digit(int(match[1]), match[2], int(match[3]), samples))
    if len(rates) > 1:
        raise DataError(f"all recordings must have one rate, got {sorted(rates)}.")
    return digits, rates.pop()


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of a speech synthesizer; 1.0 is its default pitch and speed."""

    program: str
    name: str
    pitch: float
    speed: float

    def command(self, word: str) -> list[str]:
        """The command that writes a word as WAV to standard output."""
        if self.program == "flite":
            pitch = f"int_f0_target_mean={110 * self.pitch:.0f}"
            speed = f"duration_stretch={1 / self.speed:.3f}"
            flags = ("-voice", self.name, "--setf", pitch, "--setf", speed)
            return ["flite", *flags, "-t", word, "-o", "/dev/stdout"]
        pitch, speed = round(50 * self.pitch), round(170 * self.speed)
        return ["espeak-ng", "-v", self.name, "-p", str(pitch), "-s", str(speed), "--stdout", word]

    def speak(self, word: str, rate: int) -> Array:
        """A word at this rate, without the silence around it.

        Raises:
            DataError: The program gives no sound.
        """
        done = subprocess.run(self.command(word), capture_output=True, check=False)
        if done.returncode or not done.stdout:
            raise DataError(f"{self.program} must speak {word!r}, got: {done.stderr.decode()}.")
        samples, own_rate = soundfile.read(io.BytesIO(with_true_size(done.stdout)), dtype="float32")
        loud = np.flatnonzero(np.abs(samples) > SILENT_SHARE * np.abs(samples).max())
        if loud.size == 0:
            raise DataError(f"{self.program} must speak {word!r}, got silence.")
        return soxr.resample(samples[loud[0] : loud[-1] + 1], own_rate, rate)


def with_true_size(wav: bytes) -> bytes:
    """Correct the sizes in a WAV header, which a program that writes to a pipe does not know."""
    data = wav.index(b"data") + 8
    size = (len(wav) - data).to_bytes(4, "little")
    total = (len(wav) - 8).to_bytes(4, "little")
    return wav[:4] + total + wav[8 : data - 4] + size + wav[data:]


def draw_voices(count: int, generator: np.random.Generator) -> list[Voice]:
    """Voices of the installed programs, at random pitches and speeds.

    Raises:
        UsageError: Neither program is installed.
    """
    programs = [program for program in SPEAKERS if which(program)]
    if not programs:
        raise UsageError(
            "espeak-ng or flite must be installed for synthetic voices, got neither. "
            "Run: apt install espeak-ng flite; or give --synthetic 0."
        )
    variants = [""] + [f"+{name}" for name in espeak_variants()] if "espeak-ng" in programs else []
    voices = []
    for _ in range(count):
        flite = "flite" in programs and (len(programs) == 1 or generator.random() < FLITE_SHARE)
        program = "flite" if flite else "espeak-ng"
        name = str(generator.choice(SPEAKERS[program]))
        name += "" if flite else str(generator.choice(variants))
        pitch, speed = np.exp(generator.uniform(-0.5, 0.5, 2))
        voices.append(Voice(program, name, float(pitch), float(speed)))
    return voices


def espeak_variants() -> list[str]:
    """espeak-ng's variants of a voice: male, female, old, hoarse."""
    command = ["espeak-ng", "--voices=variant"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return re.findall(r"!v/(\S+)", done.stdout)


def speak(count: int, rate: int, generator: np.random.Generator) -> list[Digit]:
    """Every digit in each of `count` synthetic voices."""
    voices = draw_voices(count, generator)
    jobs = [(number, value) for number in range(len(voices)) for value in range(len(WORDS))]

    def spoken(job: tuple[int, int]) -> Digit:
        number, value = job
        samples = voices[number].speak(WORDS[value], rate)
        return Digit(value, f"synthetic-{number}", 0, samples)

    with ThreadPoolExecutor(2) as pool, console.progress() as progress:
        work = pool.map(spoken, jobs)
        return list(progress.track(work, total=len(jobs), description="speaking digits"))


def join(digits: Sequence[Digit], rate: int, generator: np.random.Generator) -> Array:
    """Digits with random pauses around them."""
    pauses = generator.uniform(0, PAUSE_S, len(digits) + 1) * generator.random(len(digits) + 1)
    parts = [np.zeros(round(pauses[0] * rate), np.float32)]
    for digit, pause in zip(digits, pauses[1:], strict=True):
        parts += [digit.samples, np.zeros(round(pause * rate), np.float32)]
    return np.concatenate(parts)


def grouped(digits: Sequence[Digit]) -> dict[str, list[Digit]]:
    """Group digits by speaker."""
    groups: dict[str, list[Digit]] = {}
    for digit in digits:
        groups.setdefault(digit.speaker, []).append(digit)
    return groups


def draw(
    digits: Sequence[Digit], count: int, longest: int, generator: np.random.Generator
) -> Iterator[list[Digit]]:
    """Draw utterances, each of up to `longest` random digits of a random speaker."""
    groups = list(grouped(digits).values())
    for _ in range(count):
        group = groups[generator.integers(len(groups))]
        size = generator.integers(1, longest + 1)
        yield [group[place] for place in generator.integers(len(group), size=size)]


def deal(
    digits: Sequence[Digit], passes: int, generator: np.random.Generator
) -> Iterator[list[Digit]]:
    """Utterances that use each of a speaker's digits equally often."""
    for group in grouped(digits).values():
        for _ in range(passes):
            order = generator.permutation(len(group))
            while order.size:
                size = generator.integers(1, LONGEST_DIGITS + 1)
                yield [group[place] for place in order[:size]]
                order = order[size:]


def write(
    folder: Path, utterances: Sequence[list[Digit]], rate: int, generator: np.random.Generator
) -> None:
    """Write the files and metadata.csv of one part."""
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file_name", "transcription", "speaker"))
        for number, digits in enumerate(utterances):
            name = f"{digits[0].speaker}-{number:05}.flac"
            soundfile.write(folder / name, join(digits, rate, generator), rate)
            text = " ".join(WORDS[digit.value] for digit in digits)
            table.writerow((name, text, digits[0].speaker))


def split(digits: Sequence[Digit], leave_out: Sequence[str]) -> tuple[list[Digit], list[Digit]]:
    """Split into training and test recordings.

    Raises:
        UsageError: There is no speaker with a name to leave out.
    """
    speakers = sorted({digit.speaker for digit in digits})
    for name in leave_out:
        if name not in speakers:
            raise UsageError(f"leave_out must be one of {', '.join(speakers)}, got {name!r}.")
    parts: tuple[list[Digit], list[Digit]] = ([], [])
    for digit in digits:
        parts[digit.speaker in leave_out or digit.index in TEST_INDICES].append(digit)
    return parts


@flags(Settings)
def main(recordings: Annotated[Path, Argument(help="their folder")], *, settings: Settings) -> None:
    """Write an audio folder of spoken digits."""
    if settings.out.exists():
        raise UsageError(f"{settings.out} must not be there yet, got a file or folder. Remove it.")
    started = time.monotonic()
    generator = np.random.default_rng(settings.seed)
    digits, rate = read(recordings)
    learned, tested = split(digits, settings.leave_out)
    spoken = round(settings.synthetic * settings.utterances)
    train = list(draw(learned, settings.utterances - spoken, settings.longest, generator))
    if spoken:
        train += draw(speak(settings.voices, rate, generator), spoken, settings.longest, generator)
    write(settings.out / "train", train, rate, generator)
    test = list(deal(tested, settings.passes, generator))
    write(settings.out / "test", test, rate, generator)
    console.out.print(
        f"{settings.out} holds {len(train)} training utterances, {spoken} of them synthetic, "
        f"and {len(test)} test utterances;  {time.monotonic() - started:.0f} s",
        soft_wrap=True,
    )


if __name__ == "__main__":
    console.run_recipe(main)
