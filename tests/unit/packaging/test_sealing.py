"""A sealed archive: packed, inspected without its key, loaded with it, given another key."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from leavings import contents, leavings
from marship.cli import app
from marship.contract import GOLDEN_FILE, Contract
from marship.errors import LoadError, ModelError, PackageError, SealError
from marship.packaging import sealing
from marship.packaging.configure import configure
from marship.packaging.sealing import PlainModel, rewrap, split
from marship.packaging.step import PackageSettings, package
from marship.serving.model import sealed
from marship.serving.model.sealed import HEADER_BYTES, Opener, Sealer
from marship.serving.model.session import Session, SessionSettings
from marship.trust import archive
from models import write_model

pytestmark = pytest.mark.slow

KEYS = {"KEY_ONE": bytes(range(32)), "KEY_TWO": bytes(32)}
WIDTH = 64
MARKER = "a-name-that-nobody-may-read"
ONE_THREAD = SessionSettings(intra_op_threads=1)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two operator keys in the environment."""
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key.hex())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`output = input @ W[ids]`, whose graph and weights hold a marker; ids above 63 fail."""
    values = np.eye(WIDTH, dtype=np.float32)
    values.reshape(-1)[1:7] = np.frombuffer(MARKER[:24].encode(), np.float32)
    weights = [
        numpy_helper.from_array(values, MARKER),
        numpy_helper.from_array(np.array([2.0], np.float32), "two"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", [MARKER, "ids"], ["rows"], name=f"{MARKER}-gather"),
            helper.make_node("Mul", ["rows", "two"], ["output"]),
        ],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", WIDTH])],
        weights,
    )
    return write_model(tmp_path_factory.mktemp("model") / "rows.onnx", graph)


def pack(model: Path, store: Path, **settings: object) -> Path:
    """Package sealed with the first key."""
    chosen = {"model_store": store, "seal": "env:KEY_ONE", **settings}
    return package(model, PackageSettings(**chosen))  # type: ignore[arg-type]


def extract(mar: Path, folder: Path) -> Path:
    """The archive as TorchServe lays it out."""
    with zipfile.ZipFile(mar) as zipped:
        zipped.extractall(folder)
    return folder


def load(folder: Path, key: bytes = KEYS["KEY_ONE"]) -> Session:
    """The session that a worker would have."""
    contract = Contract.from_json((folder / "contract.json").read_bytes())
    opener = Opener(folder, "rows", "1.0", key)
    session = Session(folder, contract, ONE_THREAD, opener)
    session.replay_golden(opener.stream(GOLDEN_FILE))
    return session


def test_weights_move_out_of_the_graph_and_nothing_else_changes(model: Path) -> None:
    """Put back, they make the model that was; small ones never left."""
    graph, weights = split(PlainModel(model))
    moved = onnx.load_from_string(graph)
    outside = [t for t in moved.graph.initializer if t.external_data]
    assert [tensor.name for tensor in outside] == [MARKER]
    facts = {entry.key: entry.value for entry in outside[0].external_data}
    assert facts["location"] == sealing.WEIGHTS_FILE
    start = int(facts["offset"])
    outside[0].raw_data = weights[start : start + int(facts["length"])]
    outside[0].ClearField("external_data")
    outside[0].ClearField("data_location")
    assert moved == onnx.load(model)


def test_nothing_of_the_model_is_readable_in_the_archive(model: Path, tmp_path: Path) -> None:
    """Graph, weights and golden cases are there sealed and in no other form."""
    mar = pack(model, tmp_path)
    read = archive.read(mar)
    assert read.sealed == ("golden.npz.sealed", "model.onnx.sealed", "model.weights.sealed")
    assert not {"golden.npz", "model.onnx"} & {member.name for member in read.members}
    assert MARKER[:24].encode() not in mar.read_bytes()
    assert b"-gather" not in mar.read_bytes()


def test_a_sealed_session_is_renewed_without_the_operators_key(model: Path, tmp_path: Path) -> None:
    """With other threads it predicts as before, from the keys of its own files."""
    session = load(extract(pack(model, tmp_path), tmp_path / "x"))
    assert session._opener is not None
    session._opener.forget_key()
    inputs = {"ids": np.array([3, 0, 63])}
    before, first = session.run(inputs)["output"], session._session
    assert session.renew(SessionSettings(intra_op_threads=2))
    assert session._session is not first
    assert session._session.get_session_options().intra_op_num_threads == 2
    assert (session.run(inputs)["output"] == before).all()


def test_a_sealed_model_predicts_as_the_plain_one(model: Path, tmp_path: Path) -> None:
    """Loaded from memory, and no file is written beside it."""
    folder = extract(pack(model, tmp_path), tmp_path / "extracted")
    before = sorted(folder.rglob("*"))
    found = load(folder).run({"ids": np.array([3, 63])})["output"]
    plain = numpy_helper.to_array(onnx.load(model).graph.initializer[0])
    np.testing.assert_array_equal(found, 2 * plain[[3, 63]])
    assert sorted(folder.rglob("*")) == before


def test_a_model_whose_weights_lie_outside_is_sealed_with_them(model: Path, tmp_path: Path) -> None:
    """External data stay a file of their own, sealed."""
    path = tmp_path / "rows.onnx"
    onnx.save(
        onnx.load(model),
        path,
        save_as_external_data=True,
        location="outside.bin",
        size_threshold=1024,
    )
    mar = pack(path, tmp_path)
    assert "outside.bin.sealed" in archive.read(mar).sealed
    folder = extract(mar, tmp_path / "extracted")
    assert load(folder).contract.files == ("model.onnx", "outside.bin")


@pytest.mark.parametrize("location", ["sub/w.bin", "model.weights", "model.onnx"])
def test_weights_in_any_place_are_sealed_under_a_free_name(
    model: Path, tmp_path: Path, location: str
) -> None:
    """From a sub-folder, and where a sealed archive has a file of that name."""
    path = tmp_path / "rows.onnx"
    (tmp_path / "sub").mkdir()
    settings = {"save_as_external_data": True, "location": location, "size_threshold": 1024}
    onnx.save(onnx.load(model), path, **settings)
    folder = extract(pack(path, tmp_path / "store"), tmp_path / "extracted")
    name = "w.bin" if location == "sub/w.bin" else "external-1.data"
    assert load(folder).contract.files == ("model.onnx", name)
    assert MARKER[:24].encode() not in b"".join(
        file.read_bytes() for file in folder.rglob("*") if file.is_file()
    )


def test_a_model_without_large_weights_is_one_sealed_file(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """No file of no bytes is written for weights that are not there."""
    read = archive.read(pack(linear_onnx, tmp_path, name="rows"))
    assert read.sealed == ("golden.npz.sealed", "model.onnx.sealed")
    load(extract(read.path, tmp_path / "extracted"))


@pytest.mark.parametrize("is_outside", [False, True])
def test_weights_of_a_branch_go_into_the_graph(tmp_path: Path, is_outside: bool) -> None:
    """ONNX Runtime takes them from no external file in memory, wherever they lay before."""
    value = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", WIDTH])
    branches = {}
    for name, factor in (("then", 1), ("else", 2)):
        matrix = numpy_helper.from_array(factor * np.eye(WIDTH, dtype=np.float32), f"{name}_w")
        node = helper.make_node("MatMul", ["input", f"{name}_w"], [f"{name}_out"])
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["batch", WIDTH])
        branches[f"{name}_branch"] = helper.make_graph([node], name, [], [out], [matrix])
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    first = numpy_helper.from_array(np.zeros(2, np.int64), "first")
    nodes = [
        helper.make_node("GatherND", ["input", "first"], ["corner"]),
        helper.make_node("Greater", ["corner", "zero"], ["condition"]),
        helper.make_node("If", ["condition"], ["output"], **branches),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", WIDTH])
    graph = helper.make_graph(nodes, "branches", [given], [value], [zero, first])
    path = write_model(tmp_path / "rows.onnx", graph)
    if is_outside:
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="outside.bin")
        assert (tmp_path / "outside.bin").stat().st_size >= 2 * 4 * WIDTH * WIDTH
    data, weights = split(PlainModel(path))
    assert len(weights) == 0
    assert len(data) > 2 * 4 * WIDTH * WIDTH
    session = load(extract(pack(path, tmp_path), tmp_path / "extracted"))
    ones = np.ones((1, WIDTH), np.float32)
    np.testing.assert_array_equal(session.run({"input": ones})["output"], ones)
    np.testing.assert_array_equal(session.run({"input": -ones})["output"], -2 * ones)


def test_the_digest_is_that_of_the_files_as_they_are_opened(model: Path, tmp_path: Path) -> None:
    """The contract of a sealed archive names its files and their digest, as of a plain one."""
    import hashlib

    read = archive.read(pack(model, tmp_path))
    assert read.contract is not None
    opener = Opener(extract(read.path, tmp_path / "x"), "rows", "1.0", KEYS["KEY_ONE"])
    data = b"".join(opener.open(name).tobytes() for name in read.contract.files)
    assert read.contract.digest == hashlib.sha256(data).hexdigest()


def test_what_onnx_runtime_says_of_a_sealed_graph_is_kept_back(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failing run names a node, in its message and on stderr: not if the model is sealed."""
    session = load(extract(pack(model, tmp_path), tmp_path / "extracted"))
    with pytest.raises(ModelError, match="kept back") as caught:
        session.run({"ids": np.array([64])})
    assert caught.value.__suppress_context__
    assert MARKER not in capfd.readouterr().err


def test_a_sealed_graph_that_does_not_load_is_not_quoted(tmp_path: Path) -> None:
    """The error has our words alone, and the model's folder is as it was."""
    (tmp_path / "MAR-INF").mkdir()
    sealer = Sealer(KEYS["KEY_ONE"], "rows", "1.0")
    sealer.write(tmp_path, "model.onnx", io.BytesIO(MARKER.encode()))
    contract = Contract((), (), ("model.onnx",), "", 20)
    with pytest.raises(LoadError, match="kept back"):
        Session(tmp_path, contract, ONE_THREAD, Opener(tmp_path, "rows", "1.0", KEYS["KEY_ONE"]))


@pytest.mark.parametrize("name", ["model.onnx.sealed", "model.weights.sealed", "golden.npz.sealed"])
def test_a_file_of_another_model_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    """The same key, the same contents, another name: each of the files is refused."""
    folder = extract(pack(model, tmp_path), tmp_path / "mine")
    other = extract(pack(model, tmp_path, name="other"), tmp_path / "other")
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(SealError):
        load(folder)


def test_the_wrong_key_opens_nothing(model: Path, tmp_path: Path) -> None:
    """A SealError, and no session."""
    folder = extract(pack(model, tmp_path), tmp_path / "extracted")
    with pytest.raises(SealError, match="must be opened with the key"):
        load(folder, KEYS["KEY_TWO"])


def test_inspect_needs_no_key(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the sealed files and the key that opens them."""
    mar = pack(model, tmp_path)
    monkeypatch.delenv("KEY_ONE")
    shown = CliRunner().invoke(app, ["inspect", str(mar)]).output
    assert "model.onnx.sealed" in shown
    assert f"the key {sealed.key_name(KEYS['KEY_ONE']).hex()}" in shown
    raw = json.loads(CliRunner().invoke(app, ["inspect", "--json", str(mar)]).output)
    assert raw["key_name"] == sealed.key_name(KEYS["KEY_ONE"]).hex()
    assert "model.onnx.sealed" in raw["sealed"]


def test_a_plain_archive_says_nothing_of_seals(linear_onnx: Path, tmp_path: Path) -> None:
    """No key's name, no sealed files."""
    read = archive.read(package(linear_onnx, PackageSettings(model_store=tmp_path)))
    assert (read.sealed, read.key_name) == ((), None)


def parts(mar: Path) -> dict[str, tuple[bytes, bytes]]:
    """Every file of an archive: what a new key may change of it, and the rest."""
    with zipfile.ZipFile(mar) as zipped:
        files = {name: zipped.read(name) for name in zipped.namelist()}
    ends = {name: HEADER_BYTES if name.endswith(".sealed") else 0 for name in files}
    return {
        name: (data[43 : ends[name]], data[:43] + data[ends[name] :])
        for name, data in files.items()
    }


def test_a_new_key_leaves_the_payload_as_it_lies(model: Path, tmp_path: Path) -> None:
    """Of sealed files 68 bytes change, of others none; the old key opens nothing any more."""
    mar = pack(model, tmp_path)
    before, names = parts(mar), zipfile.ZipFile(mar).namelist()
    done = rewrap(mar, "env:KEY_ONE", "env:KEY_TWO")
    assert done.key_before == sealed.key_name(KEYS["KEY_ONE"]).hex()
    assert done.key_after == done.archive.key_name == sealed.key_name(KEYS["KEY_TWO"]).hex()
    after = parts(mar)
    assert zipfile.ZipFile(mar).namelist() == names
    for name, (head, rest) in after.items():
        assert rest == before[name][1]
        assert (head != before[name][0]) == name.endswith(".sealed")
        assert len(head) == (68 if name.endswith(".sealed") else 0)
    folder = extract(mar, tmp_path / "extracted")
    load(folder, KEYS["KEY_TWO"])
    with pytest.raises(SealError, match="must be opened with the key"):
        load(folder)


def test_the_commands_seal_and_rewrap(model: Path, tmp_path: Path) -> None:
    """`package --seal` and `rewrap --from --to --out`, as a person types them."""
    store = str(tmp_path / "store")
    run = CliRunner().invoke
    assert run(app, ["package", str(model), "--model-store", store, "--seal", "env:KEY_ONE"])
    mar, copy = Path(store) / "rows.mar", tmp_path / "copy.mar"
    words = ["rewrap", str(mar), "--from", "env:KEY_ONE", "--to", "env:KEY_TWO", "--out", str(copy)]
    shown = run(app, words).output
    keys = [sealed.key_name(key).hex() for key in KEYS.values()]
    assert [archive.read(path).key_name for path in (mar, copy)] == keys
    assert all(key in shown for key in keys)


def test_a_new_key_may_go_into_a_copy(model: Path, tmp_path: Path) -> None:
    """With `out` the archive stays as it was, and the copy is laid out as it is."""
    mar = pack(model, tmp_path)
    before = mar.read_bytes()
    rewrap(mar, "env:KEY_ONE", "env:KEY_TWO", tmp_path / "copy.mar")
    assert mar.read_bytes() == before
    copy = (tmp_path / "copy.mar").read_bytes()
    assert len(copy) == len(before)


def test_a_rewrap_that_fails_changes_nothing(model: Path, tmp_path: Path) -> None:
    """The wrong old key, no new one, a plain archive: each is said, the archive stays."""
    mar = pack(model, tmp_path)
    before = mar.read_bytes()
    with pytest.raises(SealError, match="must be opened with the key"):
        rewrap(mar, "env:KEY_TWO", "env:KEY_ONE")
    with pytest.raises(SealError, match="must hold a key"):
        rewrap(mar, "env:KEY_ONE", "env:KEY_THREE")
    assert mar.read_bytes() == before
    plain = package(model, PackageSettings(model_store=tmp_path / "plain"))
    with pytest.raises(PackageError, match="must be sealed"):
        rewrap(plain, "env:KEY_ONE", "env:KEY_TWO")


def test_settings_of_a_sealed_archive_change_and_its_version_does_not(
    model: Path, tmp_path: Path
) -> None:
    """Its sealed files are bound to the version; what is configured otherwise still loads."""
    mar = pack(model, tmp_path)
    with pytest.raises(PackageError, match=r"must stay 1\.0.*--version 1\.1"):
        configure(mar, [], version="1.1")
    configure(mar, ["review=0.5"])
    load(extract(mar, tmp_path / "extracted"))


PACK = """
from marship.packaging.step import PackageSettings, package
settings = PackageSettings(model_store=pathlib.Path("store"), seal="env:KEY_ONE")
package(pathlib.Path(sys.argv[1]), settings)
"""


def test_no_plain_copy_is_written_while_an_archive_is_built(model: Path, tmp_path: Path) -> None:
    """No file in the model store or the temporary folder ever holds the marker, or golden cases.

    Those are disks that the run folder's plain files must not get onto.
    """
    files = leavings(tmp_path, PACK, model)
    found = [entry for path in files for entry in contents(path)]
    assert "model.onnx.sealed" in {name for name, _ in found}
    assert [name for name, data in found if MARKER[:24].encode() in data] == []
    assert [name for name, _ in found if name.endswith(".npy")] == []


@pytest.mark.parametrize(
    "code",
    [
        "with tempfile.TemporaryFile() as file: file.write(word)",
        "with tempfile.NamedTemporaryFile() as file: file.write(word)",
        "with tempfile.TemporaryDirectory() as x: pathlib.Path(x, 'a').write_bytes(word)",
        "fd, name = tempfile.mkstemp(); os.unlink(name); os.write(fd, word); os.close(fd)",
        "os.write(os.open('a', os.O_CREAT | os.O_WRONLY), word); os.remove('a')",
        "a = pathlib.Path('a'); a.write_bytes(word); a.write_bytes(b'')",
        "a, b = map(pathlib.Path, 'ab'); a.write_bytes(word); b.touch(); b.replace(a)",
        "z = zipfile.ZipFile('z', 'w', 8); z.writestr('a', word * 9); z.close(); os.remove('z')",
        "subprocess.run(['cp', '/proc/self/environ', 'a'], env={'A': word}); os.remove('a')",
    ],
)
def test_a_plain_copy_would_be_found(tmp_path: Path, code: str) -> None:
    """However it is written, and though it is gone at once."""
    head = f"import os, subprocess, tempfile, zipfile; word = {MARKER!r}.encode()"
    files = leavings(tmp_path, f"{head}\n{code}")
    assert any(MARKER.encode() in data for path in files for _, data in contents(path))


def test_evidence_of_a_sealed_model_names_no_nodes() -> None:
    """How a variant was built lists layers by name; figures stay."""
    variant = {"name": "int8", "speedup": 2.0, "details": {"stays_float": ["conv"]}, "reason": "x"}
    evidence = {"training": {"loss": 1}, "optimize": {"chosen": "int8", "variants": [variant]}}
    kept = sealing.discreet(evidence)
    assert kept["training"] == {"loss": 1}
    assert kept["optimize"] == {"chosen": "int8", "variants": [{"name": "int8", "speedup": 2.0}]}
    assert sealing.discreet({"optimize": None}) == {"optimize": None}
