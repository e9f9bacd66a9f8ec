"""Libraries of custom operators: packed, verified, loaded in proofs and workers, and named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_extensions
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from marship import check
from marship.cli import app
from marship.contract import Library, digest_files
from marship.errors import LoadError, ModelError, UsageError
from marship.packaging.step import PackageSettings, package
from marship.proof import onnx_proof
from marship.serving.handler import OnnxHandler, Placement
from marship.serving.model import custom_ops, weights
from marship.trust import archive, extract

pytestmark = pytest.mark.slow

DOMAIN = "ai.onnx.contrib"
MACHINES = slice(18, 20)
WIDE = 1100  # 1100 x 1100 x 4 bytes: workers share a copy of such weights
ARM = 183


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of operators for texts, as its makers build it."""
    place = tmp_path_factory.mktemp("library") / "libtexts.so"
    return Path(shutil.copy(onnxruntime_extensions.get_library_path(), place))


def write(path: Path, width: int = 2) -> Path:
    """`upper = upper(text)` and `product = x @ W`: str (batch,), float32 (batch, width)."""
    matrix = np.eye(width, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("StringUpper", ["text"], ["upper"], domain=DOMAIN),
            helper.make_node("MatMul", ["x", "W"], ["product"]),
        ],
        "texts",
        [
            helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width]),
        ],
        [
            helper.make_tensor_value_info("upper", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch", width]),
        ],
        [numpy_helper.from_array(matrix, "W")],
    )
    versions = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that needs the library."""
    return write(tmp_path_factory.mktemp("model") / "texts.onnx")


@pytest.fixture(scope="module")
def mar(model: Path, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its archive."""
    return pack(model, tmp_path_factory.mktemp("store"), library)


def pack(model: Path, store: Path, *libraries: Path) -> Path:
    """Package a model with libraries."""
    chosen = PackageSettings(model_store=store, custom_ops=tuple(map(str, libraries)))
    return package(model, chosen)


def unpack(mar: Path, folder: Path) -> Path:
    """The archive as a worker finds it."""
    extract.unpack(mar, archive.read(mar).plain, folder)
    return folder


def load(folder: Path) -> OnnxHandler:
    """A worker that has loaded the archive."""
    handler = OnnxHandler()
    handler.load(Placement(folder=folder, name="texts", version="1.0", config={}))
    return handler


def test_a_model_with_operators_of_a_library_is_proven_and_runs(mar: Path, tmp_path: Path) -> None:
    """Rows are independent, golden cases replay, and a text is answered."""
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"text": ["some words"], "x": [[1, 2]]}))
    done = check(mar, request)
    assert done.response is not None
    assert json.loads(done.response.body) == {"upper": ["SOME WORDS"], "product": [[1, 2]]}
    assert done.golden_cases > 0
    contract = archive.read(mar).contract
    assert contract is not None
    assert contract.batch_axis == "batch"


def test_runs_that_find_the_axes_of_an_output_have_the_library(
    model: Path, library: Path, tmp_path: Path
) -> None:
    """Shape inference knows no operators of a library, so that the file is run."""
    made = onnx.load(model)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(made, tmp_path / "texts.onnx")
    contract = archive.read(pack(tmp_path / "texts.onnx", tmp_path, library)).contract
    assert contract is not None
    assert len(contract.outputs[0].shape) == 1


def test_the_archive_names_the_library_its_digest_and_its_platform(
    mar: Path, library: Path
) -> None:
    """In the contract; `inspect` shows it, and what every byte's digest is of."""
    read = archive.read(mar)
    wanted = Library("libtexts.so", digest_files(library), custom_ops.here())
    assert read.contract is not None
    assert read.contract.libraries == (wanted,)
    assert read.plain.native_code == ("custom_ops/libtexts.so",)
    assert read.plain.files["custom_ops/libtexts.so"].sha256 == wanted.sha256
    shown = CliRunner().invoke(app, ["inspect", str(mar)]).output
    assert "native code" in shown
    assert f"libtexts.so for {custom_ops.here()}" in shown


def test_what_signs_and_verifies_names_native_code(mar: Path, tmp_path: Path) -> None:
    """Whoever trusts the archive runs it."""
    copy = Path(shutil.copy(mar, tmp_path))
    (tmp_path / "trust").mkdir(mode=0o700)
    for words in (
        ["keygen", "release", "--out", str(tmp_path / "trust")],
        ["sign", str(copy), "--key", str(tmp_path / "trust" / "release.key"), "--json"],
        ["verify", str(copy), "--trust", str(tmp_path / "trust"), "--json"],
    ):
        if words[0] == "verify":
            (tmp_path / "trust" / "release.key").unlink()
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        if words[0] != "keygen":
            assert json.loads(done.stdout)["native_code"] == ["custom_ops/libtexts.so"]


def test_without_its_library_the_error_names_the_operators_and_the_flag(
    model: Path, tmp_path: Path
) -> None:
    """As ONNX Runtime knows no such domain."""
    with pytest.raises(ModelError, match=r"operators of ai\.onnx\.contrib: --custom-ops FILE\.so"):
        pack(model, tmp_path)


def test_other_files_and_libraries_are_refused_in_one_line(
    model: Path, library: Path, tmp_path: Path
) -> None:
    """No such file, no library, another machine's, one without operators, two of one name."""
    text = tmp_path / "text.so"
    text.write_text("\x7fELF and no more")
    other = tmp_path / "libarm.so"
    data = bytearray(library.read_bytes())
    data[MACHINES] = ARM.to_bytes(2, "little")
    other.write_bytes(data)
    stranger = Path(onnx.onnx_cpp2py_export.__file__)
    (tmp_path / "beside").mkdir()
    twice = Path(shutil.copy(library, tmp_path / "beside"))
    for libraries, kind, message in (
        ([tmp_path / "none.so"], UsageError, r"none\.so must be a library .* No such file"),
        ([text], LoadError, r"text\.so must be a shared library of Linux"),
        ([model], LoadError, r"texts\.onnx must be a shared library of Linux"),
        ([other], LoadError, r"libarm\.so must be built for this machine, .*linux-aarch64"),
        ([stranger], LoadError, r"must be a library of custom operators .*RegisterCustomOps"),
        ([library, twice], UsageError, r"names of their own, got two libtexts\.so"),
    ):
        with pytest.raises(kind, match=message) as caught:
            pack(model, tmp_path, *libraries)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.mar"))


def test_a_library_that_ends_the_process_is_named(
    model: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is cut short, and one that leaves with code 0; without any it is the model."""
    cut = tmp_path / "libcut.so"
    cut.write_bytes(library.read_bytes()[:20_000])
    with pytest.raises(LoadError, match=r"libcut\.so must be a library .* while it was loaded"):
        pack(model, tmp_path, cut)
    monkeypatch.setattr(onnx_proof, "_START", "import os; os._exit(0)")
    with pytest.raises(ModelError, match=r"texts\.onnx must be loaded .* got: exit code 0"):
        pack(model, tmp_path, library)
    monkeypatch.setattr(onnx_proof, "_LOAD", "import os; os._exit(0)")
    with pytest.raises(LoadError, match=r"libtexts\.so must be a library .* got: exit code 0"):
        pack(model, tmp_path, library)


def test_sessions_with_copies_of_a_library_come_and_go(
    model: Path, library: Path, tmp_path: Path
) -> None:
    """As in a process that packs or checks several archives: none unloads what another calls."""
    copies = [str(shutil.copy(library, tmp_path / f"libcopy{number}.so")) for number in range(8)]
    program = (
        "import sys; from pathlib import Path; from marship.proof.parity import open_session\n"
        "import onnxruntime_extensions\n"  # one more copy, which shares symbols with the others
        "for path in sys.argv[2:]: open_session(Path(sys.argv[1]), 1, [Path(path)])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, model, *copies], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_a_library_lacks_is_told_of_that_library(
    model: Path, library: Path, tmp_path: Path
) -> None:
    """Nobody is asked for a library that was given; two of the same operators are told."""
    made = onnx.load(model)
    made.graph.node[0].op_type = "StringUpsideDown"
    onnx.save(made, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"libtexts\.so does not have it") as caught:
        pack(tmp_path / "other.onnx", tmp_path, library)
    assert "--custom-ops" not in str(caught.value)
    copy = Path(shutil.copy(library, tmp_path / "libcopy.so"))
    with pytest.raises(ModelError, match="Two of the libraries define the same operators"):
        pack(model, tmp_path, library, copy)


def test_a_named_pipe_is_refused_at_once(model: Path, tmp_path: Path) -> None:
    """Opening it would wait for a writer."""
    os.mkfifo(tmp_path / "lib.so")
    with pytest.raises(LoadError, match=r"lib\.so must be a shared library .* a named pipe"):
        pack(model, tmp_path, tmp_path / "lib.so")


def test_a_worker_runs_no_library_that_is_missing_altered_or_another_machines(
    mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told before any of it is loaded."""
    folder = unpack(mar, tmp_path)
    monkeypatch.setattr(custom_ops, "register", lambda *_: pytest.fail("it was loaded"))
    path = folder / "custom_ops" / "libtexts.so"
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(LoadError, match=r"libtexts\.so must have the SHA-256"):
        load(folder)
    path.unlink()
    with pytest.raises(LoadError, match=r"custom_ops/libtexts\.so must be in the archive"):
        load(folder)
    monkeypatch.setattr(custom_ops.platform, "machine", lambda: "riscv64")
    with pytest.raises(LoadError, match="this machine, linux-riscv64, got one for linux-"):
        load(folder)


def test_workers_share_the_weights_of_such_a_model(library: Path, tmp_path: Path) -> None:
    """The copy is made with the library, and is another one for another library."""
    mar = pack(write(tmp_path / "texts.onnx", WIDE), tmp_path, library)
    folder = unpack(mar, tmp_path / "unpacked")
    handler = load(folder)
    assert handler.session.is_shared
    record = json.loads((folder / weights.COPY_FOLDER / weights.RECORD_FILE).read_text())
    contract = handler.contract
    assert record["key"]["model"] == f"{contract.digest} {contract.libraries[0].sha256}"
    row = np.ones((1, WIDE), np.float32)
    found = handler.session.run({"text": np.array(["a"], object), "x": row})
    assert found["upper"].tolist() == ["A"]
    np.testing.assert_array_equal(found["product"], row)


@settings(max_examples=200)
@given(st.binary(max_size=40), st.booleans())
def test_headers_of_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, is_elf: bool
) -> None:
    """Never another error."""
    path = tmp_path_factory.getbasetemp() / "any.so"
    path.write_bytes(b"\x7fELF\x02\x01" * is_elf + data)
    try:
        found = custom_ops.describe(path)
    except LoadError:
        return
    assert found.platform.startswith("linux-")
