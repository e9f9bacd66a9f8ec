"""A sealed model served by TorchServe: correct outputs, and no plaintext on any disk."""

import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship import Client
from marship.client.clients import ModelStatus
from marship.engines.torchserve import server
from marship.errors import InvalidInputError, LoadError
from marship.operate.samples import open_all
from marship.packaging.step import PackageSettings, package
from marship.serving.model import sealed
from marship.serving.model.weights import COPY_FOLDER
from models import write_model
from seq2seq import translated, write_decoder, write_encoder, write_handler
from waiting import until

WIDTH = 1100  # 1100 x 1100 x 4 bytes: a plain model of this size gets a copy on the disk
IN_GRAPH, IN_WEIGHTS = b"marker-of-the-graph", b"marker-of-the-weights-24"
MARKERS = (IN_GRAPH, IN_WEIGHTS)
KEY, OTHER_KEY = bytes(range(32)), bytes(32)


@dataclass(frozen=True)
class Place:
    """Where things lie: the author's folder, and the operator's with everything of the server."""

    author: Path
    operator: Path
    model: Path
    key: Path


def write_key(path: Path, key: bytes) -> Path:
    """A key's file, as its owner keeps it."""
    path.touch(mode=0o600)
    path.write_text(key.hex())
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A lookup of rows whose graph and weights hold markers; an id above 1099 fails in the run."""
    author, operator = (tmp_path_factory.mktemp(name) for name in ("author", "operator"))
    for name in ("store", "tmp"):
        (operator / name).mkdir()
    values = np.eye(WIDTH, dtype=np.float32)
    values[0, :6] = np.frombuffer(IN_WEIGHTS, np.float32)
    table = IN_GRAPH.decode()
    graph = helper.make_graph(
        [
            helper.make_node("Max", ["ids", "zero"], ["cut"]),  # so that no range of ids is known
            helper.make_node("Gather", [table, "cut"], ["rows"], name=f"{table}-node"),
        ],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(values, table), numpy_helper.from_array(np.array(0), "zero")],
    )
    model = write_model(author / "rows.onnx", graph)
    return Place(author, operator, model, write_key(author / "seal.key", KEY))


def pack(place: Place, name: str, key: Path) -> Path:
    """Package sealed, into the server's model store."""
    settings = PackageSettings(
        name=name, model_store=place.operator / "store", max_workers=2, seal=f"file:{key}"
    )
    return package(place.model, settings)


@pytest.fixture(scope="module")
def running(place: Place) -> Iterator[server.Server]:
    """A server that knows the source of the key, and whose temp folders are the operator's."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(place.operator / "tmp")
    settings = server.ServeSettings(
        home=place.operator / "home",
        model_store=place.operator / "store",
        free_ports=True,
        seal_key=f"file:{os.path.relpath(place.key)}",
        samples=place.operator / "samples",
        sample_share=1.0,
    )
    try:
        one = server.start(settings)
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
    yield one
    one.stop()


@pytest.fixture(scope="module")
def client(running: server.Server) -> Iterator[Client]:
    """A client of this server."""
    with Client(running.home.path) as one:
        yield one


@pytest.fixture(scope="module")
def rows(client: Client, place: Place) -> ModelStatus:
    """The sealed model with two workers."""
    client.register(pack(place, "rows", place.key).name)
    return client.scale("rows", workers=2)


def holders(folder: Path, words: tuple[bytes, ...]) -> set[Path]:
    """The files below a folder that hold one of the words, read as they lie and overlapping."""
    return {
        path
        for path in folder.rglob("*")
        if path.is_file() and any(word in path.read_bytes() for word in words)
    }


def opened_files(pid: int) -> dict[str, bytes]:
    """What a process has open or mapped of regular files, deleted ones among them."""
    found = {}
    for folder in ("fd", "map_files"):
        for link in Path(f"/proc/{pid}/{folder}").iterdir():
            target = str(link.readlink())
            if target.startswith("/") and link.is_file() and ".so" not in target:
                found[target] = link.read_bytes()
    return found


def test_a_sealed_model_is_served_and_nowhere_to_be_read(
    client: Client, place: Place, running: server.Server, rows: ModelStatus
) -> None:
    """Two workers answer; a request fails in the run; then every file is searched.

    Where the archive was unpacked, logs, settings, temp folders, model store, and what workers
    hold open: neither marker. The same search finds both in the author's plain file.
    """
    wanted = np.zeros((2, WIDTH), np.float32)
    wanted[0, :6], wanted[1, 5] = np.frombuffer(IN_WEIGHTS, np.float32), 1
    for _ in range(4):  # of either worker
        got = client.predict("rows", {"ids": [0, 5]})
        np.testing.assert_array_equal(np.array(got["rows"], np.float32), wanted)
    with pytest.raises(InvalidInputError, match="reference"):
        client.predict("rows", {"ids": [WIDTH]})
    assert holders(place.author, (IN_GRAPH,)) == holders(place.author, (IN_WEIGHTS,))
    assert place.model in holders(place.author, MARKERS)
    unpacked = list(Path(running.record.tmp).rglob(f"model.onnx{sealed.SUFFIX}"))
    assert unpacked
    assert not list(Path(running.record.tmp).rglob(f"{COPY_FOLDER}*"))
    _wait_for("kept back", running.home.worker_log)  # what is logged of it is in the log then
    for folder in {place.operator, Path(running.record.tmp)}:
        assert holders(folder, MARKERS) == set()
    for worker in rows.workers:
        for path, content in opened_files(worker.pid).items():
            assert not any(marker in content for marker in MARKERS), path


def test_a_sealed_archive_of_two_graphs_is_served_and_nowhere_to_be_read(
    client: Client, place: Place, running: server.Server
) -> None:
    """Token by token, as ONNX's reference gives it; the decoder's table lies on no disk."""
    encoder, decoder = write_encoder(place.author), write_decoder(place.author)
    table = next(
        tensor.raw_data for tensor in onnx.load(decoder).graph.initializer if tensor.name == "O"
    )
    settings = PackageSettings(
        name="translate",
        model_store=place.operator / "store",
        handler=write_handler(place.author),
        graph=(f"decoder={decoder}",),
        profile="throughput",
        max_workers=2,
        seal=f"file:{place.key}",
    )
    client.register(package(encoder, settings).name)
    client.scale("translate", workers=2)
    source = [[3, 4, 5], [5, 6, 7]]
    wanted = translated(encoder, decoder, source)
    for _ in range(4):  # of either worker
        assert client.predict("translate", {"source": source}) == {"tokens": wanted}
    assert decoder in holders(place.author, (table,))
    for folder in {place.operator, Path(running.record.tmp)}:
        assert holders(folder, (table,)) == set()
    client.unregister("translate")


def test_a_worker_can_dump_no_core_and_holds_no_key_in_its_environment(
    place: Place, rows: ModelStatus, running: server.Server
) -> None:
    """The limit is 0, the source is gone, and the key is in no file of the server's."""
    for worker in rows.workers:
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
    form, _, path = str(running.record.seal_key).partition(":")
    assert (form, Path(path).is_absolute(), Path(path).resolve()) == ("file", True, place.key)
    assert holders(place.operator, (KEY.hex().encode(), KEY)) == set()


@pytest.mark.usefixtures("rows")
def test_samples_of_requests_to_a_sealed_model_open_with_its_key(
    client: Client, place: Place, tmp_path: Path
) -> None:
    """Workers that forgot the key still seal what they sample; on the disk it cannot be read."""
    ids = [123456789, 7]
    with pytest.raises(InvalidInputError):
        client.predict("rows", {"ids": ids})
    text, root = b'{"ids":[7,7,1,0,9,9]}', place.operator / "samples"
    client.predict("rows", text, content_type="application/json")

    def found() -> list[bytes]:
        files = open_all(root, tmp_path / "plain", f"file:{place.key}").versions
        return [path.read_bytes() for one in files for path in one.folder.glob("*.json")]

    until(lambda: list(root.rglob("*.sealed")) and text in found(), 20, "a sample")
    assert not any(b"123456789" in body for body in found())
    assert holders(place.operator, (text,)) == set()


def test_a_file_that_cannot_be_decrypted_is_one_line(client: Client, place: Place) -> None:
    """Another key, a cut file, another model's file: register says which, and nothing is served."""
    store = place.operator / "store"
    pack(place, "foreign", write_key(place.author / "other.key", OTHER_KEY))
    names = rf"must be opened with the key {sealed.key_name(OTHER_KEY).hex()}, got the key"
    with pytest.raises(LoadError, match=f"a worker of foreign must load, got: .*{names}"):
        client.register("foreign.mar")
    pack(place, "whole", place.key)
    _with_file_of(store / "rows.mar", store / "whole.mar", f"model.weights{sealed.SUFFIX}")
    with pytest.raises(LoadError, match=r"model\.weights\.sealed must be"):
        client.register("whole.mar")
    assert {model.name for model in client.models()} <= {"rows"}
    assert holders(place.operator, MARKERS) == set()


def _wait_for(words: str, log: Path) -> None:
    """Logs are written a little later than responses."""
    until(lambda: words in log.read_text(), 20, f"log of {words!r}")


def _with_file_of(source: Path, target: Path, name: str) -> None:
    """Put one file of an archive in place of another archive's."""
    draft = target.with_suffix(".draft")
    with (
        zipfile.ZipFile(source) as giver,
        zipfile.ZipFile(target) as taker,
        zipfile.ZipFile(draft, "w") as sink,
    ):
        for info in taker.infolist():
            sink.writestr(info, (giver if info.filename == name else taker).read(info.filename))
    shutil.move(draft, target)
