"""Read English from Debian packages as a folder of recordings."""

import csv
import gzip
import sys
import wave
from pathlib import Path
from types import ModuleType

import pytest

from marship.errors import DataError
from marship.fit.recipe import resolve
from recipes import REPOSITORY

PROMPTS = """; a comment
thanks: Thank you for calling us.
short: Goodbye.
beep: [this is a beep tone]
digits/one: one two three four
lost: There is no such recording here.
"""


@pytest.fixture(scope="module")
def read_english() -> ModuleType:
    """training/read_english.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/read_english.py:collect")).__module__]


@pytest.fixture
def root(read_english: ModuleType, tmp_path: Path) -> Path:
    """A folder with a few files of each package."""
    sphinx, stamps, prompts, table = (
        tmp_path / place
        for place in (
            read_english.POCKETSPHINX,
            read_english.STAMPS,
            read_english.PROMPTS,
            read_english.PROMPTS_TEXT,
        )
    )
    files = {
        sphinx / "cards/cards.transcription": "<s> ten of clubs  </s> (001)\n",
        sphinx / "cards/001.wav": "card",
        sphinx / "librivox/transcription": "<s> he was not </s> (novel-0880)\n",
        sphinx / "librivox/novel-0880.wav": "novel",
        sphinx / "goforward.raw": "\0\0\1\0",
        stamps / "birds/owl_desc.ogg": "owl",
        stamps / "birds/owl_desc_fr.ogg": "hibou",
        stamps / "birds/owl.txt": "An owl.\nfr.utf8=Un hibou.\n",
        stamps / "birds/nameless_desc.ogg": "?",
        prompts / "thanks.wav": "thanks",
        prompts / "short.wav": "bye",
        prompts / "beep.wav": "beep",
        prompts / "digits/one.wav": "one",
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    table.parent.mkdir(parents=True)
    table.write_bytes(gzip.compress(PROMPTS.encode()))
    return tmp_path


def test_the_folder_says_what_is_spoken(
    read_english: ModuleType, root: Path, tmp_path: Path
) -> None:
    """English alone, sentences alone, and each name has its file."""
    folder = tmp_path / "out"
    read_english.write(read_english.collect(root), folder)
    with (folder / "metadata.csv").open(newline="") as file:
        rows = {row["file_name"]: row["transcription"] for row in csv.DictReader(file)}
    assert rows == {
        "cards/001.wav": "ten of clubs",
        "librivox/novel-0880.wav": "he was not",
        "sphinx/goforward.wav": "go forward ten meters",
        "stamps/owl_desc.ogg": "An owl.",
        "prompts/thanks.wav": "Thank you for calling us.",
        "prompts/digits-one.wav": "one two three four",
    }
    assert all((folder / name).is_file() for name in rows)
    with wave.open(str(folder / "sphinx/goforward.wav")) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (16_000, 2)


def test_a_missing_package_is_named(read_english: ModuleType, tmp_path: Path) -> None:
    """The message is the command that installs it."""
    with pytest.raises(DataError, match="apt-get install pocketsphinx-testdata tuxpaint"):
        read_english.collect(tmp_path)
