"""What autoscaling tells of its decisions, and the bounds that it takes."""

import os
import re
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from directly import ARCHIVE
from marship.engines.home import Home
from marship.errors import NotRunningError, ServerError, UsageError
from marship.operate.autoscale import record
from marship.operate.autoscale.bounds import bounds_of
from marship.operate.autoscale.exposition import Exposition
from marship.operate.autoscale.policy import Scale
from marship.operate.autoscale.record import ScalingState
from marship.operate.autoscale.settings import ScalingSettings

STATE = ScalingState("m", "1.0", 1, 3, 1, 4, "panic", "9 requests in hand", busy=0.5, ups=2)


def test_a_state_is_read_while_its_process_lives(tmp_path: Path) -> None:
    """`marship status` shows what runs, and nothing that ran once or is damaged."""
    home = Home(tmp_path)
    assert record.read(home) == []
    record.write(home, [STATE])
    assert record.read(home) == [STATE]
    text = home.autoscale_file.read_text()
    home.autoscale_file.write_text(text.replace(str(os.getpid()), "999999999"))
    assert record.read(home) == []
    home.autoscale_file.write_text('{"process": 3}')
    assert record.read(home) == []


def test_metrics_tell_each_figure_and_the_cause() -> None:
    """Each line is of Prometheus' text format; what is unknown is left out."""
    text = record.metrics([STATE, replace(STATE, name="n", p99_s=0.25)])
    line = re.compile(r"# (HELP|TYPE) marship_\w+ .+|marship_\w+\{(\w+=\"[^\"]*\",?)+\} [0-9.e+-]+")
    assert all(line.fullmatch(each) for each in text.splitlines())
    assert 'marship_autoscale_wanted{model_name="m",model_version="1.0"} 3' in text
    assert 'marship_autoscale_ups_total{model_name="m",model_version="1.0"} 2' in text
    assert text.count("marship_autoscale_p99_seconds{") == 1
    assert len(re.findall(r'model_name="m".*cause="\w+"\} 1\n', text)) == 1
    assert 'cause="panic"} 1' in text


def test_metrics_have_an_address() -> None:
    """Prometheus reads what was decided last; other paths are 404, and a taken port is refused."""
    with Exposition(0) as shown:
        shown.states = [STATE]
        port = urlsplit(shown.url).port or 0

        def get(path: str) -> tuple[int, str]:
            line = HTTPConnection("127.0.0.1", port, timeout=5)
            line.request("GET", path)
            response = line.getresponse()
            return response.status, response.read().decode()

        assert get(urlsplit(shown.url).path) == (200, record.metrics([STATE]))
        assert get("/")[0] == 404
        with pytest.raises(UsageError, match=r"metrics_port must be free, got \d+: "):
            Exposition(port)


def bounds(status: dict[str, Any], **settings: Any) -> Scale:
    """The bounds of a version of the archive of diabetes, which says one worker."""
    engine: Any = SimpleNamespace(model_store=ARCHIVE.parent)
    given = SimpleNamespace(
        **{"name": "m", "archive": ARCHIVE.name, "batch_size": 8, "min_workers": 3} | status
    )
    return bounds_of(engine, given, ScalingSettings(**settings))  # type: ignore[arg-type]  # no more is read


def test_bounds_are_those_given_else_the_archives() -> None:
    """What the server has now is no bound: an autoscaler before this one may have set it."""
    assert bounds({}) == Scale(1, 1, 8)
    assert bounds({}, max_workers=4) == Scale(1, 4, 8)
    assert bounds({}, min_workers=2) == Scale(2, 2, 8)
    assert bounds({}, min_workers=2, max_workers=5) == Scale(2, 5, 8)
    gone = {"archive": "gone.mar", "max_workers": 6}
    assert bounds(gone) == Scale(3, 6, 8)


def test_bounds_that_cross_are_refused() -> None:
    """With both numbers."""
    with pytest.raises(UsageError, match="got 5 and 2 for m"):
        bounds({}, min_workers=5, max_workers=2)


def test_one_autoscaler_runs_for_a_home(tmp_path: Path) -> None:
    """A second one is refused, and a folder that was never a server's home."""
    home = Home(tmp_path)
    with pytest.raises(NotRunningError), home.autoscaling():
        pass
    home.lock_file.touch()
    refused = pytest.raises(ServerError, match="only one autoscaling may run")
    with home.autoscaling(), refused, home.autoscaling():
        pass
    with home.autoscaling():
        pass
