r"""Collect recordings of read English, with transcriptions, from installed Debian packages.

    apt-get install pocketsphinx-testdata tuxpaint-stamps-default \
        asterisk-core-sounds-en asterisk-core-sounds-en-wav
    python training/read_english.py

It writes a folder with metadata.csv, for `training/whisper.py --data-dir` and other tools: readings
of a novel (LibriVox), the names of animals, and prompts of a telephone exchange (8 kHz). Nothing is
downloaded or redistributed.
"""

import csv
import gzip
import re
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marship import console
from marship.errors import DataError
from marship.settings import flags, setting
from marship.storage import replacing

POCKETSPHINX = "usr/share/pocketsphinx/test/data"
STAMPS = "usr/share/tuxpaint/stamps"
PROMPTS = "usr/share/asterisk/sounds/en_US_f_Allison"
PROMPTS_TEXT = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
PACKAGES = {
    POCKETSPHINX: "pocketsphinx-testdata",
    STAMPS: "tuxpaint-stamps-default",
    PROMPTS: "asterisk-core-sounds-en-wav",
    PROMPTS_TEXT: "asterisk-core-sounds-en",
}
RAW = {"goforward": "go forward ten meters"}
"""Samples without a header, 16 bits at 16 kHz; the words are those of goforward.fsg."""
RAW_RATE = 16_000
LEAST_WORDS = 4
"""Of a prompt: shorter ones are parts of sentences, and single letters."""


@dataclass(frozen=True)
class Settings:
    """Source and destination."""

    data_dir: Path = setting(Path("data/read-english"), "folder for recordings and metadata.csv")
    root: Path = setting(Path("/"), "folder that the packages are installed below")


@dataclass(frozen=True)
class Spoken:
    """A recording and its transcription."""

    name: str
    file: Path
    text: str


def collect(root: Path) -> list[Spoken]:
    """All recordings, in the order of their names.

    Raises:
        DataError: A package is not installed.
    """
    missing = [package for place, package in PACKAGES.items() if not (root / place).exists()]
    if missing:
        raise DataError(
            f"{', '.join(missing)} must be installed below {root}, got none of its files. "
            f"Run: apt-get install {' '.join(missing)}"
        )
    found = [*sphinx(root / POCKETSPHINX), *stamps(root / STAMPS)]
    found += prompts(root / PROMPTS, root / PROMPTS_TEXT)
    return sorted(found, key=lambda one: one.name)


def sphinx(folder: Path) -> Iterator[Spoken]:
    """Playing cards, a sentence for a robot, and sentences of Sense and Sensibility."""
    tables = {"cards": "cards/cards.transcription", "librivox": "librivox/transcription"}
    for name, table in tables.items():
        for text, stem in re.findall(r"<s>(.*)</s> \((.+)\)", (folder / table).read_text()):
            yield Spoken(f"{name}/{stem}.wav", folder / name / f"{stem}.wav", text.strip())
    for stem, text in RAW.items():
        yield Spoken(f"sphinx/{stem}.wav", folder / f"{stem}.raw", text)


def stamps(folder: Path) -> Iterator[Spoken]:
    """The names of Tux Paint's stamps; files without a language suffix are English."""
    for file in sorted(folder.rglob("*_desc.ogg")):
        text = file.with_name(f"{file.stem.removesuffix('_desc')}.txt")
        if text.is_file():
            yield Spoken(f"stamps/{file.name}", file, text.read_text().splitlines()[0])


def prompts(folder: Path, table: Path) -> Iterator[Spoken]:
    """Asterisk's prompts; those in brackets are sounds without speech."""
    for line in gzip.decompress(table.read_bytes()).decode().splitlines():
        stem, colon, text = line.partition(": ")
        file = folder / f"{stem}.wav"
        is_speech = not {"[", "("} & set(text) and len(text.split()) >= LEAST_WORDS
        if colon and is_speech and file.is_file():
            yield Spoken(f"prompts/{stem.replace('/', '-')}.wav", file, text.strip())


def write(found: list[Spoken], folder: Path) -> None:
    """Copy the recordings, and write metadata.csv last."""
    for one in found:
        content = one.file.read_bytes()
        with replacing(folder / one.name) as draft:
            if one.file.suffix == ".raw":
                with wave.open(str(draft), "wb") as target:
                    target.setparams((1, 2, RAW_RATE, 0, "NONE", ""))
                    target.writeframes(content)
            else:
                draft.write_bytes(content)
    with (
        replacing(folder / "metadata.csv") as draft,
        draft.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file_name", "transcription"))
        table.writerows((one.name, one.text) for one in found)


@flags(Settings)
def main(settings: Settings) -> None:
    """Collect recordings of read English from installed Debian packages."""
    found = collect(settings.root)
    write(found, settings.data_dir)
    console.out.print(f"{settings.data_dir} holds {len(found)} recordings", soft_wrap=True)


if __name__ == "__main__":
    console.run_recipe(main)
