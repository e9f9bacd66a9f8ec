"""A worker repeats rows of its joined calls alone, and ends joining where they differ."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marship.contract import Arrays, Contract, TensorSpec
from marship.engines.metrics import joining_ended
from marship.errors import LoadError, MarshipError, ModelError
from marship.serving.hosts.torchserve.report import write
from marship.serving.metrics import Metrics
from marship.serving.model import watch
from marship.serving.model.batch import Batcher
from marship.serving.model.watch import MARKER, Watch

SPEC = TensorSpec("x", "float32", ("batch", "length"), pad_value=0)
CONTRACT = Contract((SPEC,), (TensorSpec("y", "float32", ("batch",)),), ("m",), "", 20, "batch")
ROWS = st.lists(
    st.lists(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2), min_size=1, max_size=3),
    min_size=2,
    max_size=5,
)


def sums(inputs: Arrays) -> Arrays:
    """Each row by itself."""
    return {"y": inputs["x"].sum(1)}


def centred(inputs: Arrays) -> Arrays:
    """Rows that depend on each other: less the mean of the call."""
    total = inputs["x"].sum(1)
    return {"y": total - total.mean()}


def watched(folder: Path, run: Any, share: float = 1.0) -> tuple[Batcher, Watch, Metrics]:
    """A batcher of a model in one worker."""
    batcher = Batcher(CONTRACT, run)
    metrics = Metrics()
    return batcher, Watch("m", folder, batcher, metrics, share), metrics


def ask(batcher: Batcher, *values: float) -> list[float]:
    """Responses to requests of one row."""
    answers = batcher([{"x": np.full((1, 1), value, np.float32)} for value in values])
    return [0.0 if isinstance(a, MarshipError) else float(a["y"][0]) for a in answers]


def repeat_kept(watcher: Watch) -> bool:
    """Do what the thread does; whether there was anything to do."""
    watcher.pass_on()
    if watcher._waiting.empty():
        return False
    watcher.repeat(watcher._waiting.get_nowait())
    return True


def report(metrics: Metrics) -> str:
    """What a worker says of itself."""
    sink = io.StringIO()
    write(metrics, "m", "1.0", sink)
    return sink.getvalue()


def test_a_model_that_mixes_rows_ends_joining(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted, logged with a reference, and each request alone from then on."""
    batcher, watcher, metrics = watched(tmp_path, centred)
    assert ask(batcher, 1, 3) == [-1, 1]
    assert repeat_kept(watcher)
    assert ask(batcher, 1, 3) == [0, 0]
    assert not repeat_kept(watcher)
    reference = json.loads((tmp_path / MARKER).read_text())["reference"]
    assert f"reference {reference}" in caplog.text
    said = report(metrics)
    assert "marship_rechecks_total.rows:1|" in said
    assert "marship_recheck_differences_total.rows:1|" in said
    assert "marship_joining_ended.models:1|" in said
    assert "marship_joining_ended.models:1|" in report(metrics)


def test_it_holds_for_the_versions_other_workers_and_after_a_restart(tmp_path: Path) -> None:
    """A worker that runs looks now and then, one that starts does so first; a new folder joins."""
    other, looking, metrics = watched(tmp_path, centred)
    batcher, watcher, _ = watched(tmp_path, centred)
    ask(batcher, 1, 3)
    repeat_kept(watcher)
    assert other.joins
    looking.look()
    assert not other.joins
    assert "marship_joining_ended.models:1|" in report(metrics)
    assert not watched(tmp_path, centred)[0].joins
    (tmp_path / "again").mkdir()
    fresh, _, metrics = watched(tmp_path / "again", centred)
    assert fresh.joins
    assert "marship_joining_ended.models:0|" in report(metrics)


def test_a_folder_that_cannot_be_written_ends_joining_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says that the other workers do not know."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    batcher, watcher, _ = watched(tmp_path, centred)
    ask(batcher, 1, 3)
    repeat_kept(watcher)
    assert not batcher.joins
    assert "other workers of m go on joining requests" in caplog.text


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=ROWS)
def test_rows_of_their_own_never_end_joining(tmp_path: Path, requests: list[Any]) -> None:
    """Any rows and lengths of a model that keeps them apart: each repeated row agrees."""
    batcher, watcher, metrics = watched(tmp_path, sums)
    batcher([{"x": np.array(rows, np.float32)[:, : 1 + len(rows) % 2]} for rows in requests])
    assert repeat_kept(watcher)
    assert batcher.joins
    assert "marship_rechecks_total.rows:1|" in report(metrics)


def test_nothing_is_repeated_before_the_replies_are_ready(tmp_path: Path) -> None:
    """The joined call is the only one until `pass_on`; one row waits, further ones are dropped."""
    calls: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        calls.append(len(inputs["x"]))
        return sums(inputs)

    batcher, watcher, _ = watched(tmp_path, run)
    ask(batcher, 1, 2, 3)
    assert watcher._waiting.empty()
    watcher.pass_on()
    ask(batcher, 1, 2)
    watcher.pass_on()
    assert watcher._waiting.qsize() == 1
    assert calls == [3, 2]


def test_a_share_of_none_keeps_nothing_and_a_mismatch_still_ends_joining(tmp_path: Path) -> None:
    """Turned off, rows are counted all the same."""
    batcher, watcher, _ = watched(tmp_path, lambda inputs: {"y": inputs["x"][:1, 0]}, share=0)
    assert ask(batcher, 1, 3) == [1, 3]
    assert not batcher.joins
    assert (tmp_path / MARKER).exists()
    assert not repeat_kept(watcher)


def test_the_share_is_that_of_joined_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in ten, by the random numbers; lone requests are never repeated."""
    batcher, watcher, _ = watched(tmp_path, sums, share=0.1)
    numbers = iter([0.0, 0.05] + [0.0, 0.1] * 9)
    monkeypatch.setattr(watch.random, "random", lambda: next(numbers))
    found = []
    for _ in range(10):
        ask(batcher, 1)
        ask(batcher, 1, 2)
        found.append(repeat_kept(watcher))
    assert found == [True] + [False] * 9


def test_a_model_that_takes_no_single_row_is_repeated_with_its_least(tmp_path: Path) -> None:
    """As many rows as the contract requires, all of one request."""
    batcher, watcher, _ = watched(tmp_path, sums)
    batcher.contract = replace(CONTRACT, bounds={"batch": (2, None)})
    batcher([{"x": np.ones((rows, 1), np.float32)} for rows in (2, 3)])
    watcher.pass_on()
    assert len(watcher._waiting.get_nowait().inputs["x"]) == 2


def test_a_run_that_fails_alone_is_logged_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory, say: it proves nothing about rows."""

    def run(inputs: Arrays) -> Arrays:
        if len(inputs["x"]) == 1:
            raise ModelError("no memory")
        return sums(inputs)

    batcher, watcher, _ = watched(tmp_path, run)
    ask(batcher, 1, 2)
    repeat_kept(watcher)
    assert batcher.joins
    assert "failed to repeat" in caplog.text


@pytest.mark.parametrize("share", [-0.1, 1.1, "0.5", True, None, float("nan")])
def test_a_share_that_is_none_is_refused(share: object) -> None:
    """The worker does not load, and says which setting it is."""
    with pytest.raises(LoadError, match=r"marship.recheck_share .* from 0 to 1"):
        watch.share_of({"recheck_share": share})


def test_the_share_is_one_in_a_thousand_unless_set() -> None:
    """0 turns it off."""
    assert watch.share_of({}) == 0.001
    assert watch.share_of({"recheck_share": 0}) == 0


def test_the_figures_tell_which_models_run_alone() -> None:
    """A gauge that was taken back, as by a new registration, is not among them."""
    line = 'marship_joining_ended{model_name="%s",model_version="%s",Hostname="h"} %s\n'
    figures = line % ("a", "1.0", "1.0") + line % ("a", "2.0", "0.0") + line % ("b", "1.0", "1.0")
    assert joining_ended("# HELP x\n" + figures) == {("a", "1.0"), ("b", "1.0")}
