"""One prediction: in which format it is written."""

from pathlib import Path

import pytest

from marship.errors import UsageError
from marship.predict import transcripts
from marship.predict.single import form_of

FORMS = [
    ([], None, None),
    (["srt"], None, "srt"),
    ([], "talk.VTT", "vtt"),
    ([], "answer.json", "json"),
    (["txt"], "talk.txt", "txt"),
]


@pytest.mark.parametrize(("forms", "out", "wanted"), FORMS)
def test_the_flag_or_the_files_name_tells(
    forms: list[str], out: str | None, wanted: str | None
) -> None:
    """Neither is an output for a person to read."""
    assert form_of(forms, out and Path(out)) == wanted


MISTAKES = [
    (["txt", "srt"], None, "must be printed in one format, got --as txt --as srt"),
    ([], "talk.pdf", ".json for one response"),
    (["txt"], "talk.srt", "must be what --out ends in, got txt and talk.srt"),
]


@pytest.mark.parametrize(("forms", "out", "line"), MISTAKES)
def test_what_cannot_be_meant_is_reported(forms: list[str], out: str | None, line: str) -> None:
    """Two formats for one output, a suffix of no format, and two that differ."""
    with pytest.raises(UsageError, match=line):
        form_of(forms, out and Path(out))


def test_an_unknown_form_is_reported() -> None:
    """With those there are."""
    transcripts.check(["vtt", "json"])
    with pytest.raises(UsageError, match="one of txt, srt, vtt, json, got pdf"):
        transcripts.check(["srt", "pdf"])
