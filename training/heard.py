"""Print references beside transcripts, with error rates and the real-time factor.

    marship predict whisper data/read-english --out heard.jsonl --in-flight 1
    python training/heard.py heard.jsonl --data-dir data/read-english --english

The folder's metadata.csv (file_name, transcription) has the references. Send one at a time, as
above: then the server's own time for a recording is its alone.
"""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jiwer
import orjson
from rich.markup import escape
from rich.table import Table
from typer import Argument

from marship import console
from marship.errors import DataError
from marship.settings import flags, setting

TABLE = "metadata.csv"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compared, and how."""

    data_dir: Path = setting(Path("data/read-english"), "folder with metadata.csv")
    english: bool = setting(
        False, "one spelling for numbers, contractions and the like, as Whisper is judged"
    )
    shown: int = setting(12, "recordings to print", minimum=0)


@dataclass(frozen=True, slots=True)
class Pair:
    """One recording.

    Attributes:
        name: Its file.
        said: The words, in the spelling that counts.
        heard: Likewise.
        sound_s: How long it is.
        work_s: How long the server worked on it.
    """

    name: str
    said: str
    heard: str
    sound_s: float
    work_s: float


def plain(text: str) -> str:
    """Words of small letters and digits."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))


def pairs(answers: Path, folder: Path, spell: Callable[[str], str]) -> Iterator[Pair]:
    """What was said and heard in each recording that both files name.

    Raises:
        DataError: One of them cannot be read, or a recording has no answer.
    """
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            said = {(folder / r["file_name"]).resolve(): r["transcription"] for r in rows}
        for row in map(orjson.loads, answers.read_bytes().splitlines()):
            if (text := said.get(Path(row["file"]).resolve())) is not None:
                yield pair(row, spell(text), spell(row["answer"]["text"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / TABLE} must have file_name and transcription, and {answers} transcripts as "
            f"marship predict writes them, one for each file, got: {error!r}."
        ) from error


def pair(row: dict[str, Any], said: str, heard: str) -> Pair:
    """What a row of answers tells."""
    answer = row["answer"]
    work_ms = sum(answer["timings_ms"].values())
    return Pair(Path(row["file"]).name, said, heard, answer["seconds"], work_ms / 1000)


def marked(one: Pair) -> tuple[str, str]:
    """Both texts as rich's markup, with the words that differ in red."""
    said, heard = one.said.split(), one.heard.split()
    found = jiwer.process_words(one.said, one.heard)
    for chunk in found.alignments[0]:
        if chunk.type != "equal":
            paint(said, chunk.ref_start_idx, chunk.ref_end_idx)
            paint(heard, chunk.hyp_start_idx, chunk.hyp_end_idx)
    return " ".join(said), " ".join(heard)


def paint(words: list[str], start: int, stop: int) -> None:
    """Make some of the words red."""
    words[start:stop] = [f"[red]{escape(word)}[/]" for word in words[start:stop]]


def tell(found: list[Pair], shown: int) -> None:
    """Print the table and the figures."""
    table = Table("recording", "said", "heard", title="What was said, and what was heard")
    for one in found[:: max(1, len(found) // max(1, shown))][:shown]:  # of all kinds
        table.add_row(escape(one.name), *marked(one))
    console.out.print(table)
    said, heard = [one.said for one in found], [one.heard for one in found]
    words = jiwer.process_words(said, heard)
    sound_s, work_s = sum(one.sound_s for one in found), sum(one.work_s for one in found)
    console.out.print(
        f"{len(found)} recordings, {sum(len(text.split()) for text in said):,} words, "
        f"{sound_s:.0f} s of sound\n"
        f"word error rate {words.wer:.1%}, character error rate {jiwer.cer(said, heard):.1%}\n"
        f"real-time factor {work_s / sound_s:.3f}: {sound_s / work_s:.0f} times as fast as speech"
    )


@flags(Settings)
def main(
    answers: Annotated[Path, Argument(help="the .jsonl of marship predict")],
    *,
    settings: Settings,
) -> None:
    """Print references beside transcripts."""
    spell: Callable[[str], str] = plain
    if settings.english:
        from whisper import normalizer

        spell = normalizer()
    found = [one for one in pairs(answers, settings.data_dir, spell) if one.said]
    if not found:
        raise DataError(f"{answers} must name recordings of {settings.data_dir}, got none of them.")
    tell(found, settings.shown)


if __name__ == "__main__":
    console.run_recipe(main)
