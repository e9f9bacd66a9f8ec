"""The page that Prometheus reads."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from marship.engines.figures import families, sheets, workers
from marship.engines.figures.families import HELP, Page
from marship.engines.torchserve.scraping import add_frontend
from marship.serving import sheet
from marship.serving.hosts.direct.seats import Staff
from marship.serving.metrics import Metrics
from prometheus import promtool, samples

JAVA = """\
# HELP marship_requests_total Torchserve prometheus counter metric with unit: requests
# TYPE marship_requests_total counter
marship_requests_total{model_name="m",model_version="1.0",} 7.0
marship_requests_total{model_name="older",model_version="1.0",} 5.0
# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="m",model_version="default",hostname="vm",} 2.0
"""
STAFF = [Staff("m", "1.0", 2, 3, 4), Staff('a"b\\c\n', "2", 0, 0, 0)]
OF_M = 'model_name="m",model_version="1.0"'


def counted(folder: Path, name: str, requests: int) -> Metrics:
    """A worker that has had some requests."""
    metrics = Metrics()
    metrics.share(folder, name, "1.0" if name in {"m", "gone"} else "2")
    for _ in range(requests):
        metrics.add_batch(2, {"decode": 0.01, "infer": 0.02, "encode": 0.0}, ["malformed"])
        metrics.add_times([0.0, 0.0], 0.0, ["ok", "malformed"])
        metrics.add_error("malformed")
        metrics.add_recheck(differs=True)
    metrics.load()
    return metrics


def test_promtool_finds_no_fault_in_what_is_ours(tmp_path: Path) -> None:
    """Neither form nor names, units nor missing help; labels are escaped."""
    kept = [counted(tmp_path, name, 3) for name in ("m", "m", 'a"b\\c\n')]
    page = workers.page_of(tmp_path, STAFF, 9).render()
    assert kept
    assert promtool(["check", "metrics"], page) == (0, "")
    assert {line.split()[2] for line in page.decode().splitlines() if line[:6] == "# HELP"} <= set(
        HELP
    )


def test_all_workers_of_a_version_are_added_up(tmp_path: Path) -> None:
    """Counters and buckets; a worker that died counts on, and versions that are gone do not."""
    first, second = counted(tmp_path, "m", 3), counted(tmp_path, "m", 4)
    del first
    third = counted(tmp_path, "gone", 5)
    found = samples(workers.page_of(tmp_path, STAFF, 9).render().decode())
    assert second is not third
    assert found[f"marship_requests_total{{{OF_M}}}"] == 14
    assert found[f'marship_errors_total{{{OF_M},code="malformed"}}'] == 7
    family = "marship_request_duration_seconds"
    assert found[f'{family}_count{{{OF_M},code="malformed"}}'] == 7
    assert found[f'{family}_bucket{{{OF_M},code="ok",le="+Inf"}}'] == 7
    assert found[f"marship_workers{{{OF_M}}}"] == 2
    assert found[f'marship_worker_deaths_total{{{OF_M},cause="memory"}}'] == 0  # it has begun
    assert found[f"marship_workers_wanted{{{OF_M}}}"] == 3
    assert found[f"marship_requests_in_flight{{{OF_M}}}"] == 4
    memory = [n for n in found if n.startswith("marship_worker_resident_memory_bytes")]
    assert memory == [f'marship_worker_resident_memory_bytes{{{OF_M},worker="1"}}']  # who lives
    assert not [name for name in found if "gone" in name]


def test_torchserves_own_page_is_added_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    """Workers report to TorchServe, too; those of archives of earlier versions do nothing else."""
    kept = counted(tmp_path, "m", 3)
    page = workers.page_of(tmp_path, STAFF, 9)
    add_frontend(page, JAVA)
    text = page.render().decode()
    assert kept
    assert promtool(["check", "metrics"], text.encode()) == (0, "")
    found = samples(text)
    assert found[f"marship_requests_total{{{OF_M}}}"] == 6
    assert found['marship_requests_total{model_name="older",model_version="1.0",}'] == 5
    name = 'ts_inference_requests_total{model_name="m",model_version="default",hostname="vm",}'
    assert found[name] == 2
    assert f"marship_requests_total{{{OF_M},}}" not in found


def test_a_version_that_is_unregistered_leaves_torchserves_part_too(tmp_path: Path) -> None:
    """TorchServe keeps its copies of counters, with other sums: they would look like a restart."""
    kept = counted(tmp_path, "m", 3)
    page = workers.page_of(tmp_path, [], 0)
    add_frontend(page, JAVA)
    found = samples(page.render().decode())
    assert kept
    assert not [name for name in found if "marship" in name and 'model_name="m"' in name]
    assert found['marship_requests_total{model_name="older",model_version="1.0",}'] == 5


@given(st.lists(st.floats(0, 1e6), max_size=30), st.lists(st.floats(0, 1e3), unique=True))
def test_buckets_are_cumulated(seen: list[float], bounds: list[float]) -> None:
    """Each has what is at most its bound, the last one all (Exposition formats, histograms)."""
    bounds = sorted(bounds)
    made = sheet.Sheet()
    at = made.place("h_seconds", "histogram", (), bounds)
    for value in seen:
        made.values[at + sum(bound < value for bound in bounds)] += 1
        made.values[at + len(bounds) + 1] += value
    page = Page()
    for series, values in made.read():
        page.family(series.name, series.kind).add_series({}, series, values)
    found = samples(page.render().decode())
    for bound in bounds:
        assert found[f'h_seconds_bucket{{le="{bound!r}"}}'] == sum(v <= bound for v in seen)
    assert found['h_seconds_bucket{le="+Inf"}'] == found["h_seconds_count"] == len(seen)


def test_the_memory_of_a_process_that_has_ended_is_none() -> None:
    """A worker may die while the page is made."""
    assert sheets.resident_bytes(1 << 22) == 0
    assert list(families.read("")) == []
