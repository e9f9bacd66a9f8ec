"""Metrics that outlive the worker that counts them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marship.serving import sheet
from marship.serving.metrics import Metrics

COUNT = """
import sys, time
from pathlib import Path
from marship.serving import sheet
mine = sheet.claimed(Path(sys.argv[1]), "m", "1.0")
at = mine.place("requests_total", "counter")
gauge = mine.place("ended", "gauge")
for _ in range(int(sys.argv[2])):
    mine.values[at] += 1
mine.values[gauge] = 7
print(flush=True)
sys.stdin.read()
"""


def start(folder: Path, times: int) -> subprocess.Popen[bytes]:
    """A process that has counted, and lives on."""
    words = [sys.executable, "-c", COUNT, str(folder), str(times)]
    begun = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert begun.stdout is not None
    assert begun.stdout.readline() == b"\n"
    return begun


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def values(folder: Path, name: str) -> list[float]:
    """What the sheets have of a series."""
    return [v[0] for one in sheet.read(folder) for series, v in one.series if series.name == name]


def test_a_killed_worker_has_lost_nothing_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """Two that live have a sheet each; whoever comes after one that was killed takes over its own.

    Its gauge is not taken over, and whether anybody counts in it can be seen.
    """
    first, second = start(tmp_path, 5), start(tmp_path, 7)
    assert sorted(values(tmp_path, "requests_total")) == [5, 7]
    assert {one.pid for one in sheet.read(tmp_path)} == {first.pid, second.pid}
    end(first)
    assert sorted(values(tmp_path, "requests_total")) == [5, 7]
    assert {one.pid for one in sheet.read(tmp_path)} == {0, second.pid}
    third = start(tmp_path, 0)
    assert values(tmp_path, "requests_total") == [5, 7]
    assert len(list(tmp_path.iterdir())) == 2
    for each in (second, third):
        end(each)


def test_a_new_worker_begins_with_no_gauge(tmp_path: Path) -> None:
    """What a gauge says is of a worker that lives."""
    end(start(tmp_path, 1))
    assert values(tmp_path, "ended") == [7]
    held = sheet.claimed(tmp_path, "m", "1.0")
    assert values(tmp_path, "ended") == [0]
    assert held.series


def test_what_is_no_sheet_is_left_out_and_begun_anew(tmp_path: Path) -> None:
    """A file that was cut, or that another program wrote, keeps nobody from counting."""
    sheet.claimed(tmp_path, "m", "1.0")
    (path,) = tmp_path.iterdir()
    for content in (b"", b"marship1", b"marship1" + b"\xff" * 70000, os.urandom(1 << 17)):
        path.with_stem("other-0").write_bytes(content)
        assert [one.model for one in sheet.read(tmp_path)] == ["m"]
    broken = path.with_stem(path.stem.replace("-0", "-1"))
    broken.write_bytes(b"marship1" + (9).to_bytes(8, "little") + b"\0" * 48 + b"{not json" * 99)
    both = [sheet.claimed(tmp_path, "m", "1.0") for _ in range(2)]
    assert len(both) == 2
    assert [one.model for one in sheet.read(tmp_path) if one.number] == ["m"]


@pytest.mark.parametrize(
    "row",
    [
        {"name": "a b", "kind": "counter", "labels": [], "bounds": [], "at": 0},
        {"name": "a", "kind": "other", "labels": [], "bounds": [], "at": 0},
        {"name": "a", "kind": "counter", "labels": [["x y", "1"]], "bounds": [], "at": 0},
        {"name": "a", "kind": "counter", "labels": [], "bounds": [], "at": -5},
        {"name": "a", "kind": "histogram", "labels": [], "bounds": [1.0], "at": 1 << 30},
        {"name": "a"},
    ],
)
def test_a_series_that_cannot_be_shown_spoils_no_other_sheet(
    tmp_path: Path, row: dict[str, object]
) -> None:
    """Whatever a handler writes into its own one: the page has those of all others."""
    good, bad = (sheet.claimed(tmp_path, name, "1.0") for name in ("good", "bad"))
    good.place("requests_total", "counter")
    bad._write(row, 0)
    assert [one.model for one in sheet.read(tmp_path)] == ["good"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=300), unique=True, max_size=40))
def test_any_labels_are_read_as_they_were_written(tmp_path: Path, texts: list[str]) -> None:
    """Quotes, line ends and all else; where no room is left it is said, and nothing is damaged."""
    made = sheet.claimed(tmp_path, 'a"\n', "\0")
    made.values[:] = 0
    wanted = {}
    for number, text in enumerate(texts):
        try:
            at = made.place("n", "counter", (("code", text),))
        except ValueError:
            break
        made.values[at] = number
        wanted[text] = float(number)
    found = {
        dict(series.labels)["code"]: found[0]
        for one in sheet.read(tmp_path)
        for series, found in one.series
    }
    assert wanted.items() <= found.items()


def test_codes_without_end_leave_the_others_right() -> None:
    """A handler that makes up codes fills the sheet; all that fits stays as it is."""
    metrics = Metrics()
    for number in range(1000):
        metrics.add_batch(1, {"infer": 0.1}, [f"made_up_{number}"])
        metrics.add_error(f"made_up_{number}")
        metrics.load()
    metrics.add_batch(3, {"infer": 0.1})
    assert metrics.load()[0] == 1003
    with pytest.raises(ValueError, match="must have room"):
        metrics._sheet.place("more", "histogram", (), [0.5] * len(metrics._sheet.values))
