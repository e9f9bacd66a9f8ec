"""Print references beside transcripts, with error rates and the real-time factor.

    marship predict whisper data/read-english --out predictions.jsonl --in-flight 1
    python training/compare_transcripts.py predictions.jsonl --data-dir data/read-english --english

The folder's metadata.csv (file_name, transcription) has the references. Send one recording at a
time, as above: the server's time then belongs to that recording only.
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
    """The recordings and how texts are compared."""

    data_dir: Path = setting(Path("data/read-english"), "folder with metadata.csv")
    english: bool = setting(
        False, "one spelling for numbers, contractions and the like, as Whisper is judged"
    )
    shown: int = setting(12, "recordings to print", minimum=0)


@dataclass(frozen=True, slots=True)
class Pair:
    """One recording.

    Attributes:
        name: The file's name.
        reference: The words that were spoken, normalized.
        transcript: The words that were recognized, normalized.
        sound_s: Its length.
        work_s: Processing time on the server.
    """

    name: str
    reference: str
    transcript: str
    sound_s: float
    work_s: float


def plain(text: str) -> str:
    """Lower-case words of letters and digits."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))


def pairs(predictions: Path, folder: Path, spell: Callable[[str], str]) -> Iterator[Pair]:
    """Reference and transcript of each recording that both files name.

    Raises:
        DataError: One of them cannot be read, or a recording has no transcript.
    """
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            references = {(folder / r["file_name"]).resolve(): r["transcription"] for r in rows}
        for row in map(orjson.loads, predictions.read_bytes().splitlines()):
            if (text := references.get(Path(row["file"]).resolve())) is not None:
                yield pair(row, spell(text), spell(row["answer"]["text"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / TABLE} must have file_name and transcription, and {predictions} "
            f"transcripts of marship predict, one for each file, got: {error!r}."
        ) from error


def pair(row: dict[str, Any], reference: str, transcript: str) -> Pair:
    """A row of predictions, with its reference."""
    response = row["answer"]
    work_ms = sum(response["timings_ms"].values())
    return Pair(Path(row["file"]).name, reference, transcript, response["seconds"], work_ms / 1000)


def marked(one: Pair) -> tuple[str, str]:
    """Both texts as rich's markup, with the words that differ in red."""
    reference, transcript = one.reference.split(), one.transcript.split()
    found = jiwer.process_words(one.reference, one.transcript)
    for chunk in found.alignments[0]:
        if chunk.type != "equal":
            paint(reference, chunk.ref_start_idx, chunk.ref_end_idx)
            paint(transcript, chunk.hyp_start_idx, chunk.hyp_end_idx)
    return " ".join(reference), " ".join(transcript)


def paint(words: list[str], start: int, stop: int) -> None:
    """Make some of the words red."""
    words[start:stop] = [f"[red]{escape(word)}[/]" for word in words[start:stop]]


def print_results(found: list[Pair], shown: int) -> None:
    """Print the table and the figures."""
    table = Table("recording", "reference", "transcript", title="References and transcripts")
    for one in found[:: max(1, len(found) // max(1, shown))][:shown]:  # spread over the whole list
        table.add_row(escape(one.name), *marked(one))
    console.out.print(table)
    references, transcripts = [one.reference for one in found], [one.transcript for one in found]
    words = jiwer.process_words(references, transcripts)
    sound_s, work_s = sum(one.sound_s for one in found), sum(one.work_s for one in found)
    console.out.print(
        f"{len(found)} recordings, {sum(len(text.split()) for text in references):,} words, "
        f"{sound_s:.0f} s of sound\n"
        f"word error rate {words.wer:.1%}, "
        f"character error rate {jiwer.cer(references, transcripts):.1%}\n"
        f"real-time factor {work_s / sound_s:.3f}: {sound_s / work_s:.0f} times as fast as speech"
    )


@flags(Settings)
def main(
    predictions: Annotated[Path, Argument(help="the .jsonl of marship predict")],
    *,
    settings: Settings,
) -> None:
    """Print references beside transcripts."""
    spell: Callable[[str], str] = plain
    if settings.english:
        from whisper import normalizer

        spell = normalizer()
    found = [one for one in pairs(predictions, settings.data_dir, spell) if one.reference]
    if not found:
        raise DataError(
            f"{predictions} must name recordings of {settings.data_dir}, got none of them."
        )
    print_results(found, settings.shown)


if __name__ == "__main__":
    console.run_recipe(main)
