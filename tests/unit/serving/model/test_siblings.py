"""Workers of a model count each other, whatever they end of."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.serving.model import siblings
from marship.serving.model.siblings import Siblings

JOINED = """
import sys
from pathlib import Path
from marship.serving.model.siblings import Siblings
siblings = Siblings(Path(sys.argv[1]))
siblings.join()
print(siblings.count(), flush=True)
sys.stdin.read()
"""


def test_a_killed_worker_is_counted_no_more(tmp_path: Path) -> None:
    """Two processes see one and two workers; after kill -9 of the first, one is left."""
    workers: list[subprocess.Popen[bytes]] = []
    seen = []
    try:
        for _ in range(2):  # the second joins when the first has counted
            worker = subprocess.Popen(
                [sys.executable, "-c", JOINED, tmp_path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            workers.append(worker)
            assert worker.stdout is not None
            seen.append(int(worker.stdout.readline()))
        assert seen == [1, 2]
        workers[0].kill()
        workers[0].wait()
        assert Siblings(tmp_path).count() == 1
        assert len(list((tmp_path / siblings.FOLDER).iterdir())) == 1
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_whoever_comes_and_goes_the_count_is_right(
    tmp_path_factory: pytest.TempPathFactory, moves: list[int]
) -> None:
    """Each of six workers joins or leaves in any order, and all see how many there are."""
    folder = tmp_path_factory.mktemp("model")
    workers, inside = [Siblings(folder) for _ in range(6)], set()
    for move in moves:
        if move in inside:
            workers[move].leave()
            inside.discard(move)
        else:
            workers[move].join()
            inside.add(move)
        assert {worker.count() for worker in workers} == {len(inside)}
    for worker in workers:
        worker.leave()


def test_where_nothing_can_be_written_nobody_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker serves without knowing of others, and says so once."""
    (tmp_path / siblings.FOLDER).write_text("a file in its place")
    assert siblings.joined(tmp_path) is None
    assert "cannot follow" in caplog.text
