"""`marship tune` on real servers: short runs with a model of six weights."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

import marship
import samplers
from json_page import documented
from marship.errors import DataError, PackageError, SealError, UsageError
from marship.operate.samples import open_all
from marship.operate.tune import answers, bench, report, search, served, step, turns
from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import Demands, LoadSlice, Measured
from marship.operate.tune.record import FILE, MeasurementFile
from marship.operate.tune.search import ToMeasure
from marship.operate.tune.settings import TuneSettings
from marship.operate.tune.variants import TunedArchive
from marship.packaging import variants
from marship.serving.hosts.direct.samples import RequestSample
from marship.trust import archive as archives
from small_disk import run_on
from versions import spoil_golden
from waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def short_runs() -> Iterator[None]:
    """Load in slices of a fifth of a second, few starts, and one finalist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_LEAST_S", 0.2)
        patch.setattr(search, "FINALISTS", 1)
        patch.setattr(search, "LEAST", 4)
        patch.setattr(turns, "ROUNDS", turns.LEAST_ROUNDS)
        yield


@pytest.fixture(scope="module")
def mar(linear_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the linear model."""
    store = tmp_path_factory.mktemp("store")
    return marship.package(linear_onnx, marship.PackageSettings(model_store=store))


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `marship samples` writes of three requests in other forms."""
    folder = tmp_path_factory.mktemp("requests")
    made = samplers.writer(folder / "samples", "lin")
    npy = io.BytesIO()
    np.save(npy, np.array([[0, 2, 3]], np.float32))
    for kind, body in (
        ("application/json", b'{"input": [[1, 2, 3]]}'),
        ("application/json", b'{"instances": [[2, 2, 3]]}'),
        ("application/x-npy", npy.getvalue()),
    ):
        made._put(RequestSample("/predictions/lin", "", kind, "", "", body))
    made.write()
    key = samplers.write_key(folder / "key")
    (one,) = open_all(folder / "samples", folder / "plain", key).versions
    assert one.files == len(answers.read(one.folder)) == 3
    return one.folder


def tuning(folder: Path, **settings: object) -> TuneSettings:
    """Settings whose time does not run out, on a busy machine either."""
    short = {"p99_ms": 5000, "clients": 4, "minutes": 3, "results": folder / "results"}
    return TuneSettings(**{**short, **settings})


@pytest.fixture(scope="module")
def tuned(
    mar: Path, requests: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[step.Tuned, bytes]:
    """A run, and the archive as it was before."""
    before = mar.read_bytes()
    folder = tmp_path_factory.mktemp("tuned")
    return step.tune(mar, requests, tuning(folder, out=folder / "out.mar")), before


def test_a_run_measures_compares_and_reports(tuned: tuple[step.Tuned, bytes]) -> None:
    """All that docs/json.md lists, and a picture; with --out the archive stays as it was."""
    done, before = tuned
    assert set(done.fields()) == documented("tune")
    assert done.shipped in [one.candidate for one in done.measured]
    assert all(one.quality == 1.0 for one in done.measured)
    assert any(one.rps > 5 and one.memory_mb > 20 for one in done.measured)
    assert len(done.compared) == 1
    assert (done.folder / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((done.folder / "tune.json").read_text())["grid"] == done.grid
    assert any("--run" in line for line in done.not_tried)
    changed = archives.read(done.archive)
    if done.winner is None:
        assert changed.path.read_bytes() == before
    else:
        cores = os.sched_getaffinity(0)
        assert Candidate.of(changed.config, done.shipped.variant, len(cores), "direct") == (
            done.winner.candidate
        )


def test_nothing_runs_afterwards(tuned: tuple[step.Tuned, bytes]) -> None:
    """Servers, their workers and their folders are gone."""
    assert tuned[0].measured
    left = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # of another test, and just ended
            left.append(" ".join(one.cmdline()))
    assert not [words for words in left if "hosted" in words]


def test_a_second_run_goes_on_from_the_first(
    tuned: tuple[step.Tuned, bytes], mar: Path, requests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at is not served again; turns, which come after the search, are left out."""
    done, _ = tuned
    first = {one.candidate: one for one in done.measured}
    measured: list[Candidate] = []

    def measure(_: object, wanted: ToMeasure) -> Measured:
        measured.append(wanted.candidate)
        assert wanted.slices > 1 or wanted.candidate not in first
        return Measured(wanted.candidate, fault="it is only asked for")

    monkeypatch.setattr(bench.Bench, "measure", measure)
    monkeypatch.setattr(step._Tuning, "_compare", lambda *_: ([], {}))
    path = done.folder / FILE
    before = path.read_text().splitlines()
    again = step.tune(mar, requests, tuning(done.folder.parent, minutes=3))
    after = path.read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) - len(before) == len(measured)
    assert first.keys() <= {one.candidate for one in again.measured}


@pytest.fixture(scope="module")
def place(mar: Path, requests: Path, tmp_path_factory: pytest.TempPathFactory) -> bench.Bench:
    """A bench that knows the shipped settings' responses."""
    folder = tmp_path_factory.mktemp("bench")
    source = TunedArchive.of(archives.read(mar), None, 2)
    samples = answers.read(requests)
    shipped = source.shipped("direct")
    place = bench.Bench(source, shipped, samples, tuning(folder), Demands(500), folder)
    place.prepare()
    return place


def test_what_is_far_too_slow_ends_after_the_first_look(place: bench.Bench) -> None:
    """One slice of four, and it is said."""
    found = place.measure(ToMeasure(place.shipped, 4, least_score=1e9))
    assert found.is_hopeless
    assert len(found.slices) == 1


def test_what_does_not_serve_is_measured_as_such(
    place: bench.Bench, mar: Path, tmp_path: Path
) -> None:
    """With the reason that its worker gave."""
    broken = tmp_path / "broken.mar"
    shutil.copyfile(mar, broken)
    spoil_golden(broken)
    source = TunedArchive.of(archives.read(broken), None, 2)
    changed = dataclasses.replace(place, source=source)
    found = changed.measure(ToMeasure(Candidate(place.shipped.variant, 2, 1, 4), 1))
    assert "golden case" in found.fault
    assert not found.slices


def test_a_load_at_a_rate_is_tuned_for_its_p99(place: bench.Bench) -> None:
    """The rate is kept, and the score is the shorter p99."""
    settings = dataclasses.replace(place.settings, rate=100.0, clients=None)
    at_rate = dataclasses.replace(place, settings=settings, demands=Demands(500, is_open=True))
    found = at_rate.measure(ToMeasure(place.shipped, 1))
    assert 0.5 < found.rps / 100 < 1.5
    assert at_rate.demands.score(found) == pytest.approx(1000 / found.p99_ms)


def test_other_variants_of_the_run_folder_take_the_models_place(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """Model, contract, evidence and settings differ, and the archive loads."""
    np.savez(tmp_path / "data.npz", input=np.random.default_rng(0).random((64, 3), np.float32))
    quick = marship.OptimizeSettings(measure_s=0.1, search_s=1)
    run = marship.optimize(
        linear_onnx, quick, calibration=tmp_path / "data.npz", out=tmp_path / "run"
    ).run_dir
    made = marship.package(run, marship.PackageSettings(model_store=tmp_path, name="m"))
    source = TunedArchive.of(archives.read(made), run, 2)
    assert source.variants.others
    for name in source.variants.others:
        target = tmp_path / f"{name}.mar"
        changed = source.write(Candidate(name, 1, 1, 8), target)
        assert changed.evidence["source"] != source.archive.evidence["source"]
        same = {one.name for one in changed.members} - {
            one.name for one in set(changed.members) - set(source.archive.members)
        }
        assert {"golden.npz", "onnx_handler.py"} <= same
        assert marship.check(target).golden_cases
    report = json.loads((run / "optimize.json").read_text()) | {"model_digest": "0" * 64}
    (run / "optimize.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match=r"another model"):
        variants.find(source.archive, run)


def test_a_request_that_is_refused_is_one_clear_error(mar: Path, tmp_path: Path) -> None:
    """Before anything is tuned, with the file's name."""
    (tmp_path / "bad.json").write_text('{"input": [["x"]]}')
    with pytest.raises(DataError, match=r"bad\.json must be answered, got status 4"):
        step.tune(mar, tmp_path / "bad.json", tuning(tmp_path))


def test_two_kinds_of_load_are_a_usage_error(mar: Path, requests: Path, tmp_path: Path) -> None:
    """As is an unknown host."""
    with pytest.raises(UsageError, match=r"--rate and --clients"):
        step.tune(mar, requests, tuning(tmp_path, rate=5))
    with pytest.raises(UsageError, match=r"host must be one of"):
        step.tune(mar, requests, tuning(tmp_path, host=("apache",)))


def test_a_winner_keeps_the_limit_at_a_rate_too(
    place: bench.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next one wins; where no time is left for it, the turns alone decide."""

    def slices(answered: int, p99_ms: float = 20.0) -> list[LoadSlice]:
        return [LoadSlice(1.0, answered, 0, p99_ms / 2, p99_ms)] * 8

    def calm(_: object, _models: object, best: turns.TurnsResult) -> dict[str, LoadSlice]:
        p99_ms = 600 if best.candidate.batch == 8 else 400
        return {"winner": slices(700, p99_ms)[0], "shipped": slices(700, 300)[0]}

    monkeypatch.setattr(step._Tuning, "_calm", calm)
    found = [
        turns.compare(Candidate("m", 2, 1, batch), slices(answered), slices(1000), Demands(500))
        for batch, answered in ((8, 1400), (4, 1200))
    ]
    recorded = MeasurementFile(tmp_path, {})
    run = step._Tuning(place, [], recorded, tmp_path, lambda _: None, 0.0)
    held, shown = run._held(found, {}, time.monotonic() + 1000)
    best = turns.winner(held)
    assert best is not None
    assert best.candidate.batch == 4
    assert shown["winner"].p99_ms == 400
    assert "p99 of 600 ms at a rate of 700 a second is over the limit of 500 ms" in held[0].why
    assert run._held(found, {}, 0.0) == (found, {})


def test_too_few_minutes_are_refused_with_the_least(
    mar: Path, requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it is known how long servers and slices take, and not when the time is over."""
    monkeypatch.setattr(bench, "_LEAST_S", 2.0)
    with pytest.raises(UsageError, match=r"--minutes must be at least 0\.[5-9]|[1-9].*got 0\.2\."):
        step.tune(mar, requests, tuning(tmp_path, minutes=0.2))
    assert not list(tmp_path.rglob("tune.json"))


@pytest.mark.parametrize(
    ("out", "words"), [("none/out.mar", r"none/out\.mar. Make it"), ("", r"got a folder")]
)
def test_where_nothing_can_be_written_nothing_is_measured(
    mar: Path, requests: Path, tmp_path: Path, out: str, words: str
) -> None:
    """A folder that is not there, or a folder in the archive's place."""
    with pytest.raises(UsageError, match=words):
        step.tune(mar, requests, tuning(tmp_path, out=tmp_path / out))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_an_archive_that_is_replaced_meanwhile_ends_it(
    mar: Path, requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    """In one line; what was measured of another archive is not written down."""
    own = tmp_path / "m.mar"
    shutil.copyfile(mar, own)

    def measure(_: object, wanted: ToMeasure) -> Measured:
        own.unlink()
        if is_there:
            own.write_bytes(b"another")
        return Measured(wanted.candidate, fault="it is another one")

    monkeypatch.setattr(bench.Bench, "measure", measure)
    found = "another file" if is_there else "no file"
    with pytest.raises(PackageError, match=f"must stay as it is while it is tuned, got {found}"):
        step.tune(own, requests, tuning(tmp_path))
    assert (tmp_path / "results" / FILE).read_text().count("\n") == 1


def test_a_sealed_archive_needs_a_key_whose_path_may_be_relative(
    linear_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers run in folders of their own; without a key it is said what tune needs."""
    monkeypatch.chdir(tmp_path)
    source = samplers.write_key(tmp_path / "seal.key")
    sealed = marship.package(
        linear_onnx, marship.PackageSettings(model_store=tmp_path, seal=source)
    )
    (tmp_path / "one.json").write_text('{"input": [[1, 2, 3]]}')
    with pytest.raises(SealError, match=r"Run: MARSHIP_SEAL_KEY=file:PATH marship tune"):
        step.tune(sealed, "one.json", tuning(tmp_path))
    monkeypatch.setenv("MARSHIP_SEAL_KEY", "file:seal.key")
    (tmp_path / "server").mkdir()
    with served.direct(sealed, tmp_path / "server", 60) as model:
        (response,) = answers.ask(model.endpoint, answers.read(tmp_path / "one.json"))
    assert json.loads(response.response) == {"output": [[16, 22]]}


def test_a_full_disk_is_one_clear_line(mar: Path, requests: Path, tmp_path: Path) -> None:
    """Where servers extract the archive; no candidate is blamed for it."""
    words = [sys.executable, "-m", "marship", "tune", mar, "--requests", requests]
    script = 'TMPDIR="$0" exec "$@"'
    done = run_on(tmp_path / "small", 400, script, *words, "--results", tmp_path / "results")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "must fit on the disk, got: no space left. Free some" in done.stderr


def test_a_run_without_answers_is_told_and_drawn(
    tuned: tuple[step.Tuned, bytes], recwarn: pytest.WarningsRecorder
) -> None:
    """Without a warning of the plotter; p99 of few requests is marked as such."""
    done, _ = tuned
    slices = (LoadSlice(1.0, 0, 7, 1e9, 1e9),)
    none = Measured(done.shipped, slices, 90)
    changed = dataclasses.replace(
        done, measured=(none,), compared=(), calm={}, winner=None, minutes=done.seconds / 90
    )
    report.draw(changed, done.folder / "none.png")
    assert not recwarn.list
    assert "p99 - (of 7) ms" in report.line(1, none, done.demands)
    told = " ".join(report.verdict(changed))
    assert "p99 of fewer than 100 requests" in told
    assert "and --minutes" in told


def test_a_server_ends_with_the_process_that_tunes(mar: Path, tmp_path: Path) -> None:
    """Also where that is killed: its end of standard input is closed then."""
    (tmp_path / "token").write_text("0123456789abcdef")
    words = ["marship.operate.tune.hosted", mar, tmp_path / "home", tmp_path / "token"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert "url" in json.loads(process.stdout.readline())
        own = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        assert process.wait(60) == 0
    assert own
    assert not psutil.wait_procs(own, timeout=10)[1]


def test_ctrl_c_ends_all_and_leaves_what_was_measured(
    mar: Path, requests: Path, tmp_path: Path
) -> None:
    """Exit code 130, no process left, and a file from which the next run goes on."""
    shutil.copyfile(mar, tmp_path / "m.mar")
    words = ["tune", "m.mar", "--requests", requests, "--clients", "2", "--minutes", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "marship", *map(str, words), "--results", "r"],
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    path = tmp_path / "r" / FILE
    try:
        until(lambda: path.exists() and path.read_text().count("\n") > 1, 60, "a measurement")
        own = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert not [one for one in own if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    key = json.loads(path.read_text().splitlines()[0])
    assert MeasurementFile(tmp_path / "r", key).known >= 1
