"""A folder of recordings with transcriptions, checked and decoded before training.

The layout is that of Hugging Face's AudioFolder. Either each part has its own table,

    data/train/metadata.csv   data/train/*     for training
    data/test/metadata.csv    data/test/*      for the test only

or one `data/metadata.csv` names all files, as `train/one.wav` and `test/two.wav`. The table has
the columns `file_name` (a path from the table's folder) and `transcription`; a third one,
`speaker`, adds test results for each speaker. Other columns are ignored.

Recordings may have any format that the server accepts, and are decoded by the server's own code.
The samples are kept as 16 bits in a memory-mapped file, so a folder may be larger than memory.
"""

import csv
import hashlib
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from marship import console
from marship.contract import Array
from marship.errors import DataError, RequestError, UsageError
from marship.serving.sounds import decode

PARTS = ("train", "test")
TABLE = "metadata.csv"
NEEDED = ("file_name", "transcription")
SPEAKER = "speaker"
NAMED = 3
"""Most files that an error names; the others are counted."""
SPOKEN_MARKS = "'-"
"""Punctuation that belongs to words; other punctuation is removed."""
CURLY_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table."""

    name: str
    file: Path
    text: str
    speaker: str


@dataclass(frozen=True, slots=True)
class Recordings:
    """Some of a folder's recordings.

    Attributes:
        names: Their paths below the data folder.
        texts: Their transcriptions.
        speakers: Their speakers; empty if the table has none.
        samples: int16, all of a folder one after the other.
        spans: int64, (recordings, 2): start and end of each in `samples`.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    speakers: tuple[str, ...]
    samples: Array
    spans: Array

    def __len__(self) -> int:
        return len(self.names)

    def part(self, places: Array) -> "Recordings":
        """The recordings at these indices; `samples` is shared."""
        names, texts, speakers = (
            tuple(column[place] for place in places)
            for column in (self.names, self.texts, self.speakers)
        )
        return Recordings(names, texts, speakers, self.samples, self.spans[places])

    def sizes(self) -> Array:
        """Number of samples of each."""
        return self.spans[:, 1] - self.spans[:, 0]

    def audio(self, place: int) -> Array:
        """One recording's samples, float32, -1 to 1."""
        raw = self.samples[slice(*self.spans[place])]
        return raw.astype(np.float32) / -np.iinfo(np.int16).min


@dataclass(frozen=True, slots=True)
class AudioFolder:
    """A data folder.

    Attributes:
        alphabet: The characters of the training texts, the space first.
        train: For training.
        test: For the test.
        digest: SHA-256 of all names, texts and samples.
    """

    alphabet: tuple[str, ...]
    train: Recordings
    test: Recordings
    digest: str


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One file: its digest and number of samples, or the error."""

    name: str
    digest: str = ""
    size: int = 0
    fault: str = ""


def load(
    folder: Path, rate: int, longest_s: float, min_duration_s: Callable[[str], float]
) -> AudioFolder:
    """Decode and check all recordings.

    Args:
        folder: The data folder.
        rate: Sample rate to decode to.
        longest_s: No recording may be longer.
        min_duration_s: The shortest recording allowed for a text, in seconds.

    Raises:
        UsageError: The folder has another layout.
        DataError: A row, a text or a file is invalid, or a recording is in both parts.
    """
    parts = {part: _rows(folder, part) for part in PARTS}
    rows = [row for part in PARTS for row in parts[part]]
    learned = len(parts["train"])
    _check_rows(rows)
    alphabet = _alphabet(rows[:learned], rows[learned:])
    with tempfile.TemporaryFile() as store:
        decoded = _read_all(rows, rate, longest_s, store)
        _check_readable(decoded)
        samples = np.memmap(store, np.int16, "r")
    _check_lengths(rows, decoded, rate, min_duration_s)
    _check_once(decoded[:learned])
    _check_apart(decoded[:learned], decoded[learned:])
    ends = np.cumsum([one.size for one in decoded])
    spans = np.stack([np.append(0, ends[:-1]), ends], 1)
    return AudioFolder(
        alphabet,
        _recordings(rows[:learned], samples, spans[:learned]),
        _recordings(rows[learned:], samples, spans[learned:]),
        _digest(rows, decoded, rate),
    )


def spoken(text: str) -> str:
    """A normalized transcription: lower case, single spaces, punctuation only within words."""
    plain = (
        unicodedata.normalize("NFC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    kept = (
        " " if unicodedata.category(one)[0] == "P" and one not in SPOKEN_MARKS else one
        for one in plain
    )
    return " ".join("".join(kept).split())


def _recordings(rows: Sequence[Row], samples: Array, spans: Array) -> Recordings:
    names, texts, speakers = zip(*((row.name, row.text, row.speaker) for row in rows), strict=True)
    return Recordings(names, texts, speakers, samples, spans)


def _rows(folder: Path, part: str) -> list[Row]:
    """The rows of one part.

    Raises:
        UsageError: There is no table for it, or the table has none of its rows.
        DataError: The table cannot be read.
    """
    own, shared = folder / part / TABLE, folder / TABLE
    if own.is_file():
        return list(_read_table(folder, own))
    found = list(_read_table(folder, shared)) if shared.is_file() else []
    rows = [row for row in found if row.name.startswith(f"{part}/")]
    if not rows:
        raise UsageError(
            f"{folder} must hold train/{TABLE} and test/{TABLE}, or one {TABLE} with names that "
            f"begin with train/ and test/, got nothing for {part}. Give each part its recordings."
        )
    return rows


def _read_table(folder: Path, table: Path) -> Iterator[Row]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{table} must begin with a line of names, {' and '.join(NEEDED)} among them, "
                    f"got no {' and no '.join(missing)}. Add it."
                )
            for row in reader:
                if not row["file_name"].strip():
                    raise DataError(
                        f"every row of {table} must name a file, got none in line "
                        f"{reader.line_num}. Add it, or remove the row."
                    )
                path = table.parent / row["file_name"].strip()
                name = str(path.relative_to(folder))
                yield Row(name, path, spoken(row["transcription"]), row.get(SPEAKER, "").strip())
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{table} must be a readable CSV file in UTF-8, got: {error}. Repair it."
        ) from error


def _check_rows(rows: Sequence[Row]) -> None:
    """Check that each row has an existing file, once, and a transcription."""
    missing = [row.name for row in rows if not row.file.is_file()]
    if missing:
        raise DataError(
            f"every file that {TABLE} names must be there, got {len(missing)} of {len(rows)} that "
            f"are not: {_some(missing)}. Add them, or remove the rows."
        )
    seen: set[str] = set()
    twice = [row.name for row in rows if row.name in seen or seen.add(row.name)]
    if twice:
        raise DataError(
            f"{TABLE} must name each file once, got {len(twice)} named again: {_some(twice)}. "
            "Remove the rows that are wrong."
        )
    silent = [row.name for row in rows if not row.text]
    if silent:
        raise DataError(
            f"every row must have a transcription, got {len(silent)} of {len(rows)} without: "
            f"{_some(silent)}. Write down what is said, or remove the rows."
        )


def _alphabet(train: Sequence[Row], test: Sequence[Row]) -> tuple[str, ...]:
    """The characters of the training texts, the space first.

    Raises:
        DataError: A text has characters that are not spoken, or that train does not have.
    """
    odd = {row.name: one for row in (*train, *test) for one in row.text if not _is_spoken(one)}
    if odd:
        raise DataError(
            f"transcriptions must be words of letters, got other characters in {len(odd)}: "
            f"{_some([f'{name} ({one!r})' for name, one in odd.items()])}. Write numbers and signs "
            "as words."
        )
    known = {one for row in train for one in row.text} - {" "}
    unknown = {row.name: one for row in test for one in row.text if one not in known | {" "}}
    if unknown:
        raise DataError(
            f"the characters of test must be in train, got others in {len(unknown)}: "
            f"{_some([f'{name} ({one!r})' for name, one in unknown.items()])}. They would never "
            "be learned: correct the texts, or add recordings to train."
        )
    return (" ", *sorted(known))


def _is_spoken(character: str) -> bool:
    return character in f" {SPOKEN_MARKS}" or unicodedata.category(character)[0] in "LM"


def _read_all(rows: Sequence[Row], rate: int, longest_s: float, store: BinaryIO) -> list[_Decoded]:
    """Decode each file and append its samples to `store`."""
    decoded = []

    def read(row: Row) -> tuple[_Decoded, Array]:
        return _read(row, rate, longest_s)

    with console.progress() as progress, ThreadPoolExecutor(_THREADS) as pool:
        progress.disable = not console.err.is_terminal
        work = progress.track(
            pool.map(read, rows), total=len(rows), description="reading recordings"
        )
        for one, samples in work:
            decoded.append(one)
            try:
                store.write(samples)
            except OSError as error:
                raise DataError(
                    f"{tempfile.gettempdir()} must have room for the decoded recordings, "
                    f"got: {error.strerror}. Set TMPDIR to a folder on a larger disk."
                ) from error
    store.flush()
    return decoded


def _read(row: Row, rate: int, longest_s: float) -> tuple[_Decoded, Array]:
    """Decode one file to int16."""
    none = np.zeros(0, np.int16)
    try:
        audio = decode(row.file.read_bytes(), rate, longest_s).samples
    except RequestError as error:
        return _Decoded(row.name, fault=str(error)), none
    except OSError as error:
        return _Decoded(row.name, fault=f"{error.strerror}."), none
    limits = np.iinfo(np.int16)
    samples = np.rint(audio * -limits.min).clip(limits.min, limits.max).astype(np.int16)
    if not samples.any():
        return _Decoded(row.name, fault="it is silent"), none
    digest = hashlib.blake2b(samples, digest_size=16).hexdigest()
    return _Decoded(row.name, digest, len(samples)), samples


def _check_readable(decoded: Sequence[_Decoded]) -> None:
    bad = [f"{one.name} ({one.fault.rstrip('.')})" for one in decoded if one.fault]
    if bad:
        raise DataError(
            f"every file must be a recording that can be read, got {len(bad)} of {len(decoded)} "
            f"that cannot: {_some(bad)}. Repair or remove them."
        )


def _check_lengths(
    rows: Sequence[Row],
    decoded: Sequence[_Decoded],
    rate: int,
    min_duration_s: Callable[[str], float],
) -> None:
    short = [
        f"{row.name} ({one.size / rate:.2f} s for {len(row.text)} characters)"
        for row, one in zip(rows, decoded, strict=True)
        if one.size / rate < min_duration_s(row.text)
    ]
    if short:
        raise DataError(
            f"every recording must be long enough to say its text, got {len(short)} of "
            f"{len(rows)} that are not: {_some(short)}. Correct the texts, or remove them."
        )


def _check_once(train: Sequence[_Decoded]) -> None:
    known: dict[str, str] = {}
    again = [
        f"{one.name} is {known[one.digest]}"
        for one in train
        if known.setdefault(one.digest, one.name) != one.name
    ]
    if again:
        raise DataError(
            f"no recording must be in train twice, got {len(again)} that are: {_some(again)}. "
            "Remove one of each: some would be held out, and judged too well."
        )


def _check_apart(train: Sequence[_Decoded], test: Sequence[_Decoded]) -> None:
    known = {one.digest: one.name for one in train}
    both = [f"{one.name} is {known[one.digest]}" for one in test if one.digest in known]
    if both:
        raise DataError(
            f"no recording must be in train and in test, got {len(both)} that are: {_some(both)}. "
            "Remove them from one of the two, or the error rate would be too good to be true."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _digest(rows: Sequence[Row], decoded: Sequence[_Decoded], rate: int) -> str:
    digest = hashlib.sha256(str(rate).encode())
    for row, one in zip(rows, decoded, strict=True):
        digest.update(f"{row.name}\0{row.text}\0{row.speaker}\0{one.digest}\n".encode())
    return digest.hexdigest()
