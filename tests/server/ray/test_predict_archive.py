"""Many files predicted by an archive on a cluster of Ray: the same rows as by a server."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from marship import Client
from marship.engines.ray import node
from marship.engines.ray.head import Cluster, start
from marship.engines.ray.settings import RaySettings
from marship.errors import NotRunningError, SealError, SignatureError, StorageError
from marship.packaging.step import PackageSettings, package
from marship.predict import Run, Watcher, sources
from marship.predict.ray import predict_archive
from marship.predict.ray.job import Job, check_readable
from marship.predict.rows import Row
from signed import make_key, trusting
from versions import ANSWERS, ROW, add, linear

DIE = Path(__file__).parents[1] / "onnx_handlers" / "die_handler.py"
FILES = 100


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Files of three numbers, one of them broken, in shares for a worker each."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:03}.json").write_text(f'{{"input": [[{number}, 2, 3]]}}')
    (folder / "007.json").write_text("[[1, 2")
    return Run("lin", sources.find([str(folder)]).sources, tmp_path / "out.csv")


@pytest.fixture(scope="module")
def job(cluster: Cluster, lin: Path) -> Job:
    """Version 1 of `lin`, from the home of the cluster."""
    return Job(archive=lin / "lin-1.mar", home=cluster.home.path)


class Seen(Watcher):
    """What a run tells; it may be interrupted at a row."""

    def __init__(self, most: int = FILES + 1) -> None:
        self.waiting, self.rows, self._most = 0, list[Row](), most

    def on_start(self, waiting: int, done: int, *, is_torn: bool) -> None:
        """How many files are predicted now."""
        del done, is_torn
        self.waiting = waiting

    def on_row(self, row: Row) -> None:
        """Stop as Ctrl-C does."""
        self.rows.append(row)
        if len(self.rows) == self._most:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on(job: Job, run: Run) -> None:
    """Only what has no response is predicted again, and another run at once is refused."""
    told: list[str] = []

    class Interrupted(Seen):
        def on_row(self, row: Row) -> None:
            if not told:
                with pytest.raises(StorageError) as other:
                    predict_archive(run, job, Watcher())
                told.append(str(other.value))
            super().on_row(row)

    with pytest.raises(KeyboardInterrupt):
        predict_archive(run, job, Interrupted(40))
    assert "must be written by one run at a time" in told[0]
    second = Seen()
    done = predict_archive(run, job, second)
    assert FILES - 40 <= second.waiting == len(second.rows) <= FILES - 39
    assert done.predicted == FILES - 1
    names = [line.partition(b",")[0] for line in run.out.read_bytes().splitlines()[1:]]
    assert names == sorted(set(names))
    assert len(names) == FILES
    assert [row.status for row in done.failed] == [400]


def test_a_file_that_ends_workers_is_one_row(job: Job, run: Run, tmp_path: Path) -> None:
    """Those asked at the same time get their response: they are asked once more, alone."""
    add(tmp_path, linear(tmp_path / "d.onnx", 1), "6", file="die", handler=DIE)
    few = replace(run, sources=run.sources[10:30], in_flight=8)
    done = predict_archive(few, replace(job, archive=tmp_path / "die.mar"), Watcher())
    (failed,) = done.failed
    assert failed.file.endswith("013.json")
    assert (failed.status, failed.error.partition(":")[0]) == (503, "worker_died")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(run: Run) -> Iterator[str]:
    """The same files on a web server."""
    handler = partial(_Quiet, directory=run.out.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/in"
        server.shutdown()


def test_nodes_read_urls(job: Job, run: Run, web: str) -> None:
    """By fsspec; what changed there since is predicted again."""
    few = [f"{web}/{number:03}.json" for number in (6, 7, 8)]
    by_url = replace(run, sources=sources.find(few).sources)
    done = predict_archive(by_url, job, Watcher())
    assert (done.predicted, [row.file for row in done.failed]) == (2, [few[1]])
    run.sources[7].path.write_text('{"input": [[1, 2, 3]]}')
    again = replace(run, sources=sources.find(few).sources)
    second = Seen()
    assert not predict_archive(again, job, second).failed
    assert [row.file for row in second.rows] == [few[1]]


def test_sealed_models_run_where_nodes_have_the_key(
    cluster: Cluster, run: Run, tmp_path: Path
) -> None:
    """Served and over files; without the key a node says so."""
    key = tmp_path / "seal.key"
    key.touch(mode=0o600)
    key.write_text(bytes(range(32)).hex())
    store = tmp_path / "store"
    package(
        linear(tmp_path / "s.onnx", 1),
        PackageSettings(name="sealed", model_store=store, seal=f"file:{key}"),
    )
    given = RaySettings(model_store=store, address=cluster.record.cluster)
    opened = start(replace(given, home=tmp_path / "with", seal_key=f"file:{key}"))
    with Client(opened.home.path) as holder:
        holder.register("sealed.mar")
        assert holder.predict("sealed", {"input": ROW}) == {"output": ANSWERS["1"]}
        holder.unregister("sealed")
    few = replace(run, sources=run.sources[:2])
    archive = Job(archive=store / "sealed.mar", home=opened.home.path)
    assert predict_archive(few, archive, Watcher()).predicted == 2
    with pytest.raises(SealError, match="sealed"):
        predict_archive(replace(few, again=True), replace(archive, home=cluster.home.path), Seen())


def test_an_archive_must_be_signed(job: Job, run: Run, tmp_path: Path) -> None:
    """By a key of the trust folder, before any node is asked."""
    trust = trusting(tmp_path / "trust", make_key(tmp_path)).folder
    with pytest.raises(SignatureError, match="lin-1"):
        predict_archive(run, replace(job, trust=Path(trust)), Watcher())


def test_a_node_must_see_the_same_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names itself and the file where the folder is not shared."""
    monkeypatch.setattr(node, "address", lambda: "10.0.0.2")
    source = run.sources[0]
    check_readable(source, source.stamp().modified)
    with pytest.raises(StorageError, match=r"node 10\.0\.0\.2 must .*000.json.*got: another file"):
        check_readable(source, "2001-01-01")
    source.path.unlink()
    with pytest.raises(StorageError, match=r"got: No such file or directory\. Put the files"):
        check_readable(source, "2001-01-01")


def test_no_cluster(job: Job, run: Run, tmp_path: Path) -> None:
    """Neither one of the home, nor at the address."""
    with pytest.raises(NotRunningError, match="got none of the home"):
        predict_archive(run, replace(job, home=tmp_path / "none"), Watcher())
    with pytest.raises(NotRunningError, match=r"must listen at 127\.0\.0\.1:9"):
        predict_archive(run, replace(job, address="127.0.0.1:9"), Watcher())


@pytest.mark.usefixtures("cluster")
def test_the_command(cluster: Cluster, job: Job, run: Run) -> None:
    """It prints a summary and nothing of Ray's own, and takes an archive for this engine alone."""
    command = [sys.executable, "-m", "marship", "predict", str(job.archive), "in"]
    seen = {**os.environ, "MARSHIP_HOME": str(cluster.home.path), "COLUMNS": "120"}

    def do(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words],
            cwd=run.out.parent,
            env=seen,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    done = do("--engine", "ray")
    assert done.returncode == 1
    assert "99 predicted, 1 failed" in done.stdout
    lines = [line for line in done.stderr.splitlines() if "100/100" not in line]  # progress
    assert lines == []
    for words, line in (
        (("--address", "127.0.0.1:9"), "must come with an archive and --engine ray"),
        (("--engine", "ray", "--version", "1"), "--version must come with a model's name"),
    ):
        refused = do(*words)
        assert refused.returncode == 2
        assert line in refused.stderr
        assert refused.stderr.count("\n") == 1
