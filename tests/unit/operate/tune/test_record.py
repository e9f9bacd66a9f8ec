"""The file of measurements: a run that was ended goes on from it."""

from pathlib import Path

import pytest

from marship.errors import DataError
from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import LoadSlice, Measured
from marship.operate.tune.record import FILE, MeasurementFile
from marship.operate.tune.search import ToMeasure

KEY = {"archive": "abc", "cores": 2}
ONE, TWO = Candidate("exported", 1, 1, 1), Candidate("int8", 2, 1, 8)
SLICE = LoadSlice(1.0, 100, 0, 1.5, 2.5, 0.25)


def written(folder: Path, *measured: Measured) -> None:
    """A file with these."""
    file = MeasurementFile(folder, KEY)
    for one in measured:
        file.add(one)


def test_what_was_measured_is_known_to_the_next_run(tmp_path: Path) -> None:
    """In the order in which it is asked for again, and once."""
    first, again = Measured(ONE, (SLICE,), 10.0, 1.0), Measured(ONE, (SLICE, SLICE), 11.0, 1.0)
    written(tmp_path, first, Measured(TWO, fault="it does not load"), again)
    file = MeasurementFile(tmp_path, KEY)
    assert file.known == 3
    assert file.recorded(ToMeasure(ONE, 1)) == first
    assert file.recorded(ToMeasure(ONE, 2)) == again
    assert file.recorded(ToMeasure(ONE, 4)) is None
    found = file.recorded(ToMeasure(TWO, 1))
    assert found is not None
    assert found.fault == "it does not load"


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    """As a killed process or a full disk leaves it; what comes next is whole."""
    written(tmp_path, Measured(ONE, (SLICE,)), Measured(TWO, (SLICE,)))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20])
    file = MeasurementFile(tmp_path, KEY)
    assert file.known == 1
    file.add(Measured(TWO, (SLICE,)))
    assert MeasurementFile(tmp_path, KEY).known == 2


def test_measurements_of_another_archive_are_begun_anew(tmp_path: Path) -> None:
    """And it is told that they were."""
    written(tmp_path, Measured(ONE, (SLICE,)))
    other = MeasurementFile(tmp_path, {**KEY, "archive": "def"})
    assert other.is_replaced
    assert other.known == 0
    assert other.recorded(ToMeasure(ONE, 1)) is None


@pytest.mark.parametrize("line", [b"{}\n", b"nothing\n", b'{"candidate": 3, "slices": []}\n'])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, line: bytes) -> None:
    """It is not taken for no measurements."""
    written(tmp_path, Measured(ONE, (SLICE,)))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(DataError, match=r"must hold measurements"):
        MeasurementFile(tmp_path, KEY)
