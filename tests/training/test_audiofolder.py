"""A folder of recordings: what is found in it, and what is said of one that will not do."""

import csv
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from marship.errors import DataError, UsageError
from marship.fit.recipe import resolve
from recipes import REPOSITORY
from tone_words import RATE, write_table, write_tone_words

LONGEST_S = 5.0


@pytest.fixture(scope="module")
def audiofolder() -> ModuleType:
    """training/audiofolder.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/audiofolder.py:load")).__module__]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A small folder of tone words, to be damaged."""
    return write_tone_words(tmp_path / "words", train=12, test=6)


def load(audiofolder: ModuleType, folder: Path, rate: int = RATE) -> Any:
    """The folder, where a text needs 10 ms a character."""
    return audiofolder.load(folder, rate, LONGEST_S, lambda text: 0.01 * len(text))


def rows_of(folder: Path) -> list[list[str]]:
    """A table's rows without its names."""
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def change(folder: Path, **texts: str) -> None:
    """Give some files, named without their ending, other transcriptions."""
    rows = [[row[0], texts.get(f"n{row[0][:3]}", row[1]), row[2]] for row in rows_of(folder)]
    write_table(folder, rows, "speaker")


def test_it_gives_names_texts_speakers_and_samples(audiofolder: ModuleType, words: Path) -> None:
    """Each row as its table states it, each sound as its file holds it, at 16 bits."""
    folder = load(audiofolder, words)
    assert folder.alphabet == (" ", "a", "b", "c", "d", "e")
    for part, found in (("train", folder.train), ("test", folder.test)):
        rows = rows_of(words / part)
        assert [f"{part}/{row[0]}" for row in rows] == list(found.names)
        assert [row[1] for row in rows] == list(found.texts)
        assert [row[2] for row in rows] == list(found.speakers)
        for place, row in enumerate(rows):
            want, _ = soundfile.read(words / part / row[0], dtype="float32")
            np.testing.assert_allclose(found.audio(place), want, atol=2**-15)


def test_a_part_of_it_has_the_same_sounds(audiofolder: ModuleType, words: Path) -> None:
    """Recordings chosen by their places keep their texts and samples."""
    train = load(audiofolder, words).train
    part = train.part(np.array([7, 2]))
    assert part.texts == (train.texts[7], train.texts[2])
    np.testing.assert_array_equal(part.audio(0), train.audio(7))
    np.testing.assert_array_equal(part.sizes(), train.sizes()[[7, 2]])


def test_one_table_may_name_the_files_of_both_parts(audiofolder: ModuleType, words: Path) -> None:
    """With train/ and test/ before the names, it is the same folder as with two tables."""
    two = load(audiofolder, words)
    rows = []
    for part in ("train", "test"):
        rows += [[f"{part}/{row[0]}", *row[1:]] for row in rows_of(words / part)]
        (words / part / "metadata.csv").unlink()
    write_table(words, rows, "speaker")
    one = load(audiofolder, words)
    assert one.train.names == two.train.names
    assert one.digest == two.digest


def test_other_formats_and_rates_are_taken(audiofolder: ModuleType, words: Path) -> None:
    """WAV and OGG at other rates, in stereo, last as long as before at the rate asked for."""
    sizes = load(audiofolder, words).train.sizes()
    rows = rows_of(words / "train")
    for number, (rate, ending) in enumerate(((16000, "wav"), (22050, "ogg"))):
        samples, _ = soundfile.read(words / "train" / rows[number][0])
        places = np.arange(0, len(samples), RATE / rate)
        slower = np.interp(places, np.arange(len(samples)), samples)
        rows[number][0] = f"other{number}.{ending}"
        soundfile.write(words / "train" / rows[number][0], np.stack([slower, slower], 1), rate)
    write_table(words / "train", rows, "speaker")
    np.testing.assert_allclose(load(audiofolder, words).train.sizes(), sizes, atol=3)


@pytest.mark.parametrize(
    ("written", "learned"),
    [
        ("Bad  Cab", "bad cab"),
        ("bad, cab!", "bad cab"),
        ("dad\N{RIGHT SINGLE QUOTATION MARK}s", "dad's"),
        ("a-b", "a-b"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ],
)
def test_texts_are_learned_as_they_are_spoken(
    audiofolder: ModuleType, written: str, learned: str
) -> None:
    """Lower case, single spaces, no punctuation but in words, composed letters."""
    assert audiofolder.spoken(written) == learned


def test_the_digest_names_content(audiofolder: ModuleType, words: Path, tmp_path: Path) -> None:
    """A copy has the same digest; another text, another sample or another rate has not."""
    whole = load(audiofolder, words).digest
    copy = shutil.copytree(words, tmp_path / "copy")
    assert load(audiofolder, copy).digest == whole
    assert load(audiofolder, copy, rate=16000).digest != whole
    change(copy / "train", n003="bee bee")
    assert load(audiofolder, copy).digest != whole
    shutil.copy(words / "train/metadata.csv", copy / "train/metadata.csv")
    samples, rate = soundfile.read(copy / "train/003.flac", dtype="int16")
    samples[100] += 1
    soundfile.write(copy / "train/003.flac", samples, rate)
    assert load(audiofolder, copy).digest != whole


def test_a_missing_part_is_a_usage_error(audiofolder: ModuleType, words: Path) -> None:
    """Without a table for a part it is said what the folder must hold."""
    (words / "test/metadata.csv").unlink()
    with pytest.raises(UsageError, match=r"train/metadata.csv and test/metadata.csv.* for test"):
        load(audiofolder, words)


def test_a_table_without_its_columns_is_refused(audiofolder: ModuleType, words: Path) -> None:
    """The columns that are missing are named."""
    table = words / "train/metadata.csv"
    table.write_text(table.read_text().replace("transcription", "text"))
    with pytest.raises(DataError, match=r"got no transcription"):
        load(audiofolder, words)


def test_a_table_that_is_no_text_is_refused(audiofolder: ModuleType, words: Path) -> None:
    """Bytes that are not UTF-8 are one clear error."""
    (words / "train/metadata.csv").write_bytes(b"file_name,transcription\nx.wav,\xff\xfe\n")
    with pytest.raises(DataError, match=r"must be a readable CSV file in UTF-8"):
        load(audiofolder, words)


def test_missing_files_are_named_and_counted(audiofolder: ModuleType, words: Path) -> None:
    """Three are named, the others counted."""
    for number in range(5):
        (words / f"train/{number:03}.flac").unlink()
    message = r"5 of 18 that are not: train/000.flac, train/001.flac, train/002.flac and 2 more"
    with pytest.raises(DataError, match=message):
        load(audiofolder, words)


def test_rows_without_text_are_refused(audiofolder: ModuleType, words: Path) -> None:
    """An empty transcription, or one of punctuation alone, is no text."""
    change(words / "train", n001="", n004=" ... ")
    with pytest.raises(DataError, match=r"2 of 18 without: train/001.flac, train/004.flac"):
        load(audiofolder, words)


def test_rows_that_name_a_file_again_are_refused(audiofolder: ModuleType, words: Path) -> None:
    """A file has one row."""
    rows = rows_of(words / "train")
    write_table(words / "train", [*rows, rows[2]], "speaker")
    with pytest.raises(DataError, match=r"1 named again: train/002.flac"):
        load(audiofolder, words)


def test_rows_without_a_name_are_refused(audiofolder: ModuleType, words: Path) -> None:
    """A row that names nothing is no recording."""
    write_table(words / "train", [*rows_of(words / "train"), ["", "bad", "low"]], "speaker")
    with pytest.raises(DataError, match=r"every row .* must name a file, got none in line 14"):
        load(audiofolder, words)


def test_characters_that_nobody_speaks_are_refused(audiofolder: ModuleType, words: Path) -> None:
    """Digits and signs must be written as words."""
    change(words / "train", n001="bad 7", n002="cab 50 %")
    with pytest.raises(DataError, match=r"in 2: train/001.flac \('7'\), train/002.flac \('0'\)"):
        load(audiofolder, words)


def test_characters_only_in_test_are_refused(audiofolder: ModuleType, words: Path) -> None:
    """What is never learned cannot be judged."""
    change(words / "test", n003="zebra")
    with pytest.raises(DataError, match=r"got others in 1: test/003.flac \('"):
        load(audiofolder, words)


def test_unreadable_files_are_named_with_the_reason(audiofolder: ModuleType, words: Path) -> None:
    """No audio, no samples, silence and too long a recording each have their own reason."""
    (words / "train/000.flac").write_text("no sound")
    soundfile.write(words / "train/001.flac", np.zeros(0), RATE)
    soundfile.write(words / "train/002.flac", np.zeros(RATE), RATE)
    noise = np.random.default_rng(1).normal(0, 0.1, round(RATE * (LONGEST_S + 1)))
    soundfile.write(words / "test/000.flac", noise, RATE)
    with pytest.raises(DataError, match=r"got 4 of 18 that cannot: train/000.flac \(.*and 1 more"):
        load(audiofolder, words)
    for name in ("000", "001"):
        shutil.copy(words / "train/005.flac", words / f"train/{name}.flac")
    with pytest.raises(DataError, match=r"train/002.flac \(it is silent\), test/000.flac \("):
        load(audiofolder, words)


def test_recordings_too_short_for_their_text_are_refused(
    audiofolder: ModuleType, words: Path
) -> None:
    """A text that could not be said in the time is wrong, or its file is."""
    change(words / "train", n001="bad " * 200)
    with pytest.raises(DataError, match=r"1 of 18 that are not: train/001.flac \(\d.*characters\)"):
        load(audiofolder, words)


def test_a_recording_twice_in_train_is_refused(audiofolder: ModuleType, words: Path) -> None:
    """It would be learned from and held out, in whatever format."""
    samples, rate = soundfile.read(words / "train/001.flac", dtype="int16")
    soundfile.write(words / "train/copy.wav", samples, rate)
    rows = [*rows_of(words / "train"), ["copy.wav", "bad", "low"]]
    write_table(words / "train", rows, "speaker")
    with pytest.raises(DataError, match=r"1 that are: train/copy.wav is train/001.flac"):
        load(audiofolder, words)


def test_a_recording_in_both_parts_is_refused(audiofolder: ModuleType, words: Path) -> None:
    """The error rate would be too good to be true."""
    shutil.copy(words / "train/001.flac", words / "test/004.flac")
    with pytest.raises(DataError, match=r"1 that are: test/004.flac is train/001.flac"):
        load(audiofolder, words)
