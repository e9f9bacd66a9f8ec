"""A run over many files as a person at a terminal watches it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from marship import console
from marship.cli.responses import show_predictions, show_response
from marship.predict import Run
from marship.predict.outcome import Outcome
from marship.predict.rows import Row
from marship.predict.screen import Screen
from marship.predict.sources import Source
from waiting import until

ROWS = [
    Row("a", "m 1.0", 200),
    Row("b", "m 1.0", 415, "unsupported_media_type: no picture"),
    Row("c", "m 1.0", 200),
]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 100 columns gets on stderr."""
    terminal = io.StringIO()
    monkeypatch.setattr(
        console, "err", Console(file=terminal, force_terminal=True, color_system=None, width=100)
    )
    return terminal


def run(count: int) -> Run:
    """A run over so many files."""
    files = [Source.at(Path(str(number))) for number in range(count)]
    return Run("m", files, Path("out.csv"))


def wait_for(text: str, shown: io.StringIO) -> None:
    """The terminal is drawn some ten times a second."""
    until(lambda: text in shown.getvalue(), 5, f"print of {text!r}")


def test_the_bar_goes_up_with_every_row(shown: io.StringIO) -> None:
    """From nothing to all of three files, with the one that failed counted beside them."""
    with Screen(run(5)) as screen:
        screen.on_start(3, 2, is_torn=False)
        assert "2 predicted before, 3 to send" in shown.getvalue()
        wait_for("0/3", shown)
        for number, row in enumerate(ROWS, 1):
            assert f"{number}/3" not in shown.getvalue()
            screen.on_row(row)
            wait_for(f"{number}/3", shown)
    assert "m  1 failed" in shown.getvalue()


def test_trouble_is_reported_while_it_lasts(shown: io.StringIO) -> None:
    """The bar says what is waited for, until the next row."""
    with Screen(run(3)) as screen:
        screen.on_start(3, 0, is_torn=False)
        screen.on_trouble()
        wait_for("waiting for the server", shown)
        screen.on_row(ROWS[0])
        wait_for("1/3", shown)
    *_, last = shown.getvalue().partition("1/3")
    assert "waiting" not in last


def test_a_summary_shows_the_beginning_of_long_responses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a pipe, where no terminal cuts them, too: the table has them whole."""
    long = "x" * 100_000
    done = Outcome(0, 1.0)
    done.take(Row(str(n), "m 1.0", 200, answer={"label": long, long: 1}) for n in range(20))
    show_predictions(done, run(20), [])
    told = capsys.readouterr().out
    assert "20 predicted, 0 failed" in told
    assert "xxx..." in told
    assert len(told) < 20_000


@pytest.mark.parametrize("width", [120, 80, 40])
@pytest.mark.parametrize("rate", [0.5, 98.4, 123_456.0])
def test_progress_keeps_to_one_line(rate: float, width: int) -> None:
    """What is too wide is cut, whatever the rate: lines of the log are counted by people, too."""
    bar = console.progress(unit="files")
    number = bar.add_task("digits  1,234 failed", total=100_000, completed=99_999)
    bar.tasks[number].finished_speed = rate
    file = io.StringIO()
    Console(file=file, width=width).print(bar.get_renderable())
    assert file.getvalue().count("\n") == 1


def test_reasons_are_read_as_texts(capsys: pytest.CaptureFixture[str]) -> None:
    """Records within a record, such as a recommendation's reasons, are no Python of ours."""
    reason = {"event": 0, "item": 50, "title": "Star Wars (1977)", "importance": 0.8725}
    rows = [
        {
            "item": 181,
            "title": "Jedi",
            "score": 8.7,
            "because": [reason, reason | {"title": "[b]"}],
        },
        {"item": 1, "title": "Toy Story", "score": 3.0, "because": []},
    ]
    show_response({"items": rows})
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert "Star Wars (1977) 0.8725; [b] 0.8725" in first
    assert second.split() == ["1", "Toy", "Story", "3"]
