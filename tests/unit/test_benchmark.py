"""The benchmark's own parts: wrk's output, tables, ratios, request formats."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from marship.errors import DataError, UsageError

Part = Callable[[str], ModuleType]

FOLDER = Path(__file__).parents[2] / "benchmarks"
LINE = (
    'figures {"requests": 3000, "duration_us": 1500000, "bytes": 9, "mean_us": 4.5, "p50_us": 250, '
    '"p90_us": 300, "p99_us": 900, "max_us": 1000, '
    '"errors": {"connect": 0, "read": 1, "write": 0, "status": 2, "timeout": 0}}'
)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Part:
    """Import a file of benchmarks/, as run.py does: from its own folder."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_figures_are_read_from_what_wrk_prints(part: Part) -> None:
    """Requests per second, percentiles and all kinds of errors come from the one line."""
    figures = part("load").parse(f"Running 1s test\n  Latency  1ms\n{LINE}\n")
    assert figures == part("load").Figures(rps=2000.0, p50_us=250, p99_us=900, errors=3)


@pytest.mark.parametrize("output", ["", "unable to connect to 127.0.0.1", f"{LINE}\n{LINE}"])
def test_output_without_one_line_of_figures_is_an_error(part: Part, output: str) -> None:
    """A load generator that failed is no measurement."""
    with pytest.raises(DataError, match="wrk must print"):
        part("load").parse(output)


def test_reported_figures_are_medians_over_the_rounds(part: Part) -> None:
    """One slow round changes nothing, and errors of all rounds count."""
    figures, setup = part("load").Figures, part("peers").Setup("mosec", "latency", 2)
    rounds = [figures(rps, 100 + rps, 200 + rps, 1) for rps in (10.0, 900.0, 20.0)]
    (entry,) = part("report").summarize({setup: {4: rounds}})
    assert entry["peer"] == "mosec"
    assert entry["workers"] == 2
    assert entry["clients"]["4"]["rps"] == 20
    assert entry["clients"]["4"]["p50_us"] == 120
    assert entry["clients"]["4"]["p99_us"] == 220
    assert entry["clients"]["4"]["errors"] == 3


@pytest.mark.parametrize("form", ["json", "npy"])
def test_requests_come_back_as_they_were_sent(part: Part, form: str) -> None:
    """What a server decodes equals what was encoded, in each format."""
    cases = part("cases")
    sent = {"input": np.float32([[0.1, -2.5, 3e-8]])}
    got = cases.decode(cases.encode(sent, form), form, ["input"])
    assert np.array_equal(got["input"].astype(np.float32), sent["input"])


def test_responses_in_the_kserve_format_are_decoded(part: Part) -> None:
    """MLServer sends no other."""
    body = b'{"outputs": [{"name": "output", "shape": [1, 2], "data": [1.5, 2.5]}]}'
    got = part("cases").decode(body, "json", ["output"])
    assert np.array_equal(got["output"], [[1.5, 2.5]])


def entry(peer: str, profile: str, rps: float, p99_us: float = 1.0) -> dict[str, Any]:
    """One server's figures at 64 clients."""
    found = {"rps": rps, "p50_us": 1.0, "p99_us": p99_us, "errors": 0}
    return {"peer": peer, "profile": profile, "workers": 1, "clients": {"64": found}}


def test_ratios_are_against_the_faster_profile(part: Part) -> None:
    """The faster profile counts, the same one is listed too; times must stay below the limit."""
    entries = [
        entry("marship", "latency", 900),
        entry("marship", "throughput", 300, p99_us=5.0),
        entry("mosec", "latency", 400, p99_us=2.0),
        entry("mosec", "throughput", 100, p99_us=1.0),
    ]
    found = {
        (o.against, o.target.figure): (o.ratio, o.reached)
        for o in part("targets").outcomes({"mlp": entries})
    }
    assert found == {
        ("mosec latency", "rps"): (0.75, False),
        ("mosec throughput", "rps"): (3.0, True),
        ("mosec latency", "p99_us"): (2.5, False),
        ("mosec throughput", "p99_us"): (5.0, False),
    }


def test_tables_mark_failed_requests_and_plots_are_written(part: Part, tmp_path: Path) -> None:
    """A figure with failed requests has an asterisk."""
    bad = entry("mosec", "latency", 1234)
    bad["clients"]["64"]["errors"] = 1
    measured = {"machine": {"cores": 2}, "cases": {"mlp": [entry("marship", "latency", 900), bad]}}
    part("report").write(measured, tmp_path)
    text = (tmp_path / "tables.txt").read_text()
    assert "1,234*" in text
    assert "900*" not in text
    assert (tmp_path / "mlp.png").stat().st_size > 1000


def test_a_suite_is_narrowed_to_its_cases(part: Part) -> None:
    """Its peers and clients are its own; what it does not have is refused."""
    run = part("run")
    short = run.BenchSettings(suite="short")
    assert run._parts_of_suite(short) == list(run.SUITES["short"])
    chosen = run._parts_of_suite(replace(short, cases=("mlp", "encoder")))
    assert {each.case for each in chosen} == {"mlp", "encoder"}
    for wrong in ({"suite": "long"}, {"cases": ("x",)}, {"peers": ("mosec",)}, {"clients": ("1",)}):
        with pytest.raises(UsageError):
            run._parts_of_suite(replace(short, **wrong))
