"""What a node keeps of archives and clusters, and what it does where that is damaged."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray

from marship.engines import names
from marship.engines.home import Home
from marship.engines.ray import archives, front, head, node, worker
from marship.engines.ray import keeper as keepers
from marship.engines.ray.archives import ArchiveSource
from marship.engines.ray.keeper import Keeper
from marship.engines.ray.line import Asked
from marship.engines.ray.settings import RaySettings
from marship.errors import LoadError, MarshipError, NotRunningError, PackageError
from marship.serving.hosts.direct import routes
from marship.serving.hosts.direct.tokens import Tokens
from signed import FILES, write


@pytest.fixture(autouse=True)
def own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's folder of its own."""
    monkeypatch.setattr(node, "root", lambda: tmp_path)


@pytest.mark.parametrize("damage", ["archive", "cut", "missing", "other", "emptied"])
def test_a_damaged_cache_is_mended(damage: str, tmp_path: Path) -> None:
    """A disk was full, or a cleaner took what is old: the next replica has the archive's files."""
    mar = write(tmp_path / "lin.mar")
    source = ArchiveSource(file="lin.mar", digest=archives.digest_of(mar), url=None)

    def kept(_digest: str) -> Iterator[bytes]:
        yield mar.read_bytes()

    folder = node.place(source, kept).folder
    held = folder.parent / "archive.mar"
    untouched = (folder / "handler.py").stat().st_ino
    match damage:
        case "archive":
            held.write_bytes(b"other")
        case "cut":
            held.write_bytes(held.read_bytes()[:1000])
        case "missing":
            (folder / "model.onnx").unlink()
        case "other":
            (folder / "model.onnx").write_bytes(FILES["model.onnx"][::-1])
        case "emptied":
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    assert node.place(source, kept).folder == folder
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert archives.digest_of(held) == source.digest
    if damage != "emptied":  # workers may run there
        assert (folder / "handler.py").stat().st_ino == untouched


def test_the_keeper_takes_a_damaged_archive_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has one only if it is the one."""
    monkeypatch.setattr(keepers, "_kv", lambda *_given, **_settings: None)
    keeper, data = Keeper(None, None, "session"), b"an archive"
    (tmp_path / "a").write_bytes(data)
    digest = archives.digest_of(tmp_path / "a")
    assert not keeper.has(digest)
    keeper.add("upload", data)
    assert keeper.finish("upload", digest)
    assert keeper.has(digest)
    (tmp_path / "kept" / "session" / f"{digest}.mar").write_bytes(data[:4])
    assert not keeper.has(digest)


def test_the_keeper_removes_what_nobody_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No archive of a version, nor one that a living client is registering, half of one neither."""
    living = {"a", "b"}
    monkeypatch.setattr(keepers, "_kv", lambda *_given, **_settings: None)
    monkeypatch.setattr(keepers, "_process_of", lambda owner: owner if owner in living else None)
    keeper, others = Keeper(None, None, "session"), Keeper(None, None, "other")
    digests = {}
    for name in ("listed", "coming", "gone"):
        (tmp_path / name).write_bytes(name.encode())
        digests[name] = digest = archives.digest_of(tmp_path / name)
        for one in (keeper, others):
            one.add("upload", name.encode())
            assert one.finish("upload", digest)
    keeper.want(digests["coming"], "a")
    keeper.want(digests["coming"], "b")
    keeper.add(f"{digests['coming']}-1", b"com")
    keeper.add(f"{digests['gone']}-1", b"go")

    def held() -> set[str]:
        keeper.sweep([digests["listed"]])
        return {name for name, digest in digests.items() if keeper.has(digest)}

    parts = tmp_path / "kept" / "session"
    assert held() == {"listed", "coming"}
    assert [path.name for path in parts.glob("*.part")] == [f"{digests['coming']}-1.part"]
    keeper.unwant(digests["coming"], "a")  # it has listed another version, or failed
    assert held() == {"listed", "coming"}
    living.remove("b")  # killed
    assert held() == {"listed"}
    assert not list(parts.glob("*.part"))
    assert all(map(others.has, digests.values()))


@pytest.mark.parametrize(
    "fault",
    [
        NotRunningError("the cluster must run marship's keeper, got none."),
        ray.exceptions.RayActorError(),
        ray.exceptions.GetTimeoutError("too long"),
        ray.exceptions.RayTaskError("sweep", "", OSError("no space left")),
    ],
)
def test_a_change_that_was_made_is_no_failure_for_what_could_not_be_swept(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is written by then: the next change sweeps again."""

    def fails(*_given: object, **_settings: object) -> None:
        raise fault

    monkeypatch.setattr(keepers, "running", Mock())
    monkeypatch.setattr(ray, "get", fails)
    keepers.sweep([])
    monkeypatch.setattr(keepers, "running", fails)
    keepers.sweep([])


def test_a_keeper_removes_what_clusters_left_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of one that runs, or ran just now."""
    monkeypatch.setattr(keepers, "_kv", lambda *_given, **_settings: None)
    running = Keeper(None, None, "running")
    for name in ("old", "new"):
        Keeper(None, None, name)._lock.close()
    for name in ("old", "running"):
        os.utime(tmp_path / "kept" / name, (0, 0))
    Keeper(None, None, "own")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"running", "new", "own"}
    del running


def archive(folder: Path, number: int) -> tuple[ArchiveSource, archives.Kept]:
    """One of many, and what reads it."""
    mar = write(folder / "lin.mar", {**FILES, "number.txt": b"%d" % number})
    data = mar.read_bytes()
    digest = archives.digest_of(mar)
    mar.unlink()
    return ArchiveSource(file="lin.mar", digest=digest, url=None), lambda _: iter([data])


def test_a_node_keeps_what_is_in_use_and_some_more(tmp_path: Path) -> None:
    """The latest ones; whoever uses one never sees it go."""
    found = [archive(tmp_path, number) for number in range(10)]
    with ExitStack() as held:
        used = [node.place(*found[number], held).folder for number in (0, 1)]
        for source, kept in found[2:]:
            node.place(source, kept)
        assert all((folder / "model.onnx").exists() for folder in used)
        there = [number for number, one in enumerate(found) if (tmp_path / one[0].digest).exists()]
        assert there == [0, 1, 5, 6, 7, 8, 9]
    node.place(*found[9])
    there = [number for number, one in enumerate(found) if (tmp_path / one[0].digest).exists()]
    assert there == [5, 6, 7, 8, 9]
    assert node.place(*found[0]).folder == used[0]


def test_an_archive_stays_while_another_process_puts_it_in_place(tmp_path: Path) -> None:
    """Before it is in use, and after: at each moment in which others place theirs."""
    (source, kept), *others = [archive(tmp_path, number) for number in range(7)]

    def slowly(digest: str) -> Iterator[bytes]:
        for other in others:  # each removes all that it may
            node.place(*other)
        assert (tmp_path / source.digest).is_dir()
        yield from kept(digest)

    with ExitStack() as held:
        folder = node.place(source, slowly, held).folder
        for other in others:
            node.place(*other)
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize("version", ["1", "1.0", "2024-11-30", "1.0_b"])
def test_versions_that_can_be_in_names_of_files(version: str) -> None:
    """Those of marship, and what others usually take."""
    assert names.checked_version(version) == version


@pytest.mark.parametrize("version", ["", "1/../x", "..", "1 0", "1\n", "\u0661", "1" * 33])
def test_versions_that_cannot(version: str) -> None:
    """Nothing outside of the keeper's folder is written, and no name is too long."""
    with pytest.raises(PackageError, match="a version must be of letters, digits"):
        names.checked_version(version)


def test_a_haproxy_that_outlived_its_cluster_is_ended(tmp_path: Path) -> None:
    """It holds the port; another cluster's goes on."""
    sleeps = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with ExitStack() as held:
        ours, others = (
            held.enter_context(
                subprocess.Popen(
                    [*sleeps, f"{tmp_path}/{folder}/h/haproxy.cfg"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for folder in ("ours", "others")
        )
        for process in (ours, others):
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
        head._kill_haproxy(tmp_path / "ours")
        assert ours.wait(10) == -9
        assert others.poll() is None
        others.kill()


def test_a_home_joins_where_another_ones_front_listens(tmp_path: Path) -> None:
    """The port of a cluster that is joined is taken; that of one's own must be free."""
    with ExitStack() as held:
        line = held.enter_context(head.socket.create_server(("127.0.0.1", 0)))
        port = line.getsockname()[1]
        joins = RaySettings(inference_port=port, address="10.0.0.1:6379")
        assert head._record(joins, Home(tmp_path), None).cluster == "10.0.0.1:6379"
        with pytest.raises(MarshipError, match="must be free"):
            head._record(RaySettings(inference_port=port), Home(tmp_path), None)
    assert head._record(RaySettings(address=""), Home(tmp_path), None).cluster == ""


def test_a_worker_that_ends_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is all that can be told."""
    script = tmp_path / "ends.py"
    script.write_text("import os\nos._exit(3)\n")
    monkeypatch.setattr(worker, "SCRIPT", script)
    task = {"name": "m", "folder": str(tmp_path)}
    started = worker.ReplicaWorker(
        task, worker.environment({}), tmp_path / "log", lambda _line: None, lambda: None
    )
    with pytest.raises(LoadError, match=r"its end by itself \(exit code 3\)"):
        started.wait_ready(30)


def test_two_tokens_are_none(tmp_path: Path) -> None:
    """As the direct host joins the lines of a header (RFC 9110, 5.3), the right one among them."""
    asks = front.Front.__new__(front.Front)
    asks._tokens = Tokens(front._write_key(tmp_path, "right"))
    route = routes.find(b"/predictions/m")
    assert route is not None
    right, wrong = (b"authorization", b"Bearer right"), (b"authorization", b"Bearer wrong")
    for headers, is_let in [
        ([right], True),
        ([wrong], False),
        ([wrong, right], False),
        ([], False),
    ]:
        assert asks._may(Asked("POST", b"/predictions/m", headers), route) == is_let
