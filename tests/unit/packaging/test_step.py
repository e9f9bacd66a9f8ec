"""Archives are self-contained, repeatable, and tell where they come from."""

import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from marship.contract import read_golden
from marship.errors import ModelError, PackageError, UsageError
from marship.packaging import step
from marship.packaging.step import PackageSettings, package
from marship.proof import graph as proof_graph
from marship.proof import onnx_proof
from marship.serving.model import weights
from marship.serving.model.session import Session, SessionSettings
from marship.trust import archive
from models import write_model

pytestmark = pytest.mark.slow


def pack(source: Path, store: Path, **settings: object) -> Path:
    """Package with the model store given."""
    return package(source, PackageSettings(model_store=store, **settings))  # type: ignore[arg-type]


def test_building_twice_gives_the_same_bytes(linear_onnx: Path, tmp_path: Path) -> None:
    """Nothing in an archive depends on when or where it was built."""
    first, second = (pack(linear_onnx, tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_an_onnx_file_climbs_little_on_its_way(linear_onnx: Path) -> None:
    """At most 9 returns to a higher room, as docs/design.md says of tools/walk.py."""
    walk = Path(__file__).parents[3] / "tools" / "walk.py"
    words = [sys.executable, walk, "package", linear_onnx]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    count, _ = done.stdout.splitlines()[0].split(", ")[2].split()
    assert 0 < int(count) <= 9


def test_the_throughput_profile_says_why_it_joins_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of fixed size has no rows that could be joined."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "fixed.onnx"))
    pack(tmp_path / "fixed.onnx", tmp_path, profile="throughput")
    assert (
        "requests run alone: input x: float32[2, 3] has no first axis of variable size"
        in capsys.readouterr().err
    )
    pack(tmp_path / "fixed.onnx", tmp_path)
    assert "run alone" not in capsys.readouterr().err


def test_archives_built_at_the_same_time_do_not_meet(linear_onnx: Path, tmp_path: Path) -> None:
    """The archiver's shared staging folder is private to each build, even under one name."""
    with ProcessPoolExecutor(2) as pool:
        built = [pool.submit(pack, linear_onnx, tmp_path / str(i), name="x") for i in range(4)]
        assert len({future.result().read_bytes() for future in built}) == 1


def test_threads_that_build_at_once_leave_the_temp_folder_as_it_was(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """The archiver takes the process's temp folder; one thread must not restore another's."""
    before = tempfile.gettempdir()
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda n: pack(linear_onnx, tmp_path / str(n)), range(4)))
    assert len({path.read_bytes() for path in built}) == 1
    assert tempfile.gettempdir() == before


def test_a_bare_onnx_file_needs_no_recipe(linear_onnx: Path, tmp_path: Path) -> None:
    """The archive holds handler, serving copy, model, contract, golden cases and settings."""
    read = archive.read(pack(linear_onnx, tmp_path, name="lin", version="2.1", batch_size=4))
    assert (read.name, read.version) == ("lin", "2.1")
    assert read.manifest["model"]["handler"] == "onnx_handler.py"
    names = {member.name for member in read.members}
    assert {
        "MAR-INF/MANIFEST.json",
        "contract.json",
        "evidence.json",
        "golden.npz",
        "marship/__init__.py",
        "marship/contract/__init__.py",
        "marship/errors.py",
        "marship/serving/handler.py",
        "model-config.yaml",
        "model.onnx",
        "onnx_handler.py",
    } <= names
    assert not [name for name in names if name.startswith("marship/serving/private/")]
    assert read.config["batchSize"] == 4
    assert read.config["responseTimeout"] == 60
    assert read.config["startupTimeout"] == 120
    assert read.contract is not None
    assert read.contract.batch_axis == "batch"
    assert read.contract.digest == hashlib.sha256(linear_onnx.read_bytes()).hexdigest()
    assert read.evidence["versions"]["onnxruntime"]
    assert read.evidence["source"] == linear_onnx.name


def test_a_model_that_remembers_its_calls_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime moves the averages of batch norm in training, where initializers are equal."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
    node = helper.make_node(
        "BatchNormalization", ["x", *"sbmv"], ["y", "means", "variances"], training_mode=1
    )
    ones = [numpy_helper.from_array(np.ones(4, np.float32), name) for name in "sbmv"]
    graph = helper.make_graph([node], "g", [x], [y], ones)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "training.onnx"))
    with pytest.raises(ModelError, match=r"same outputs twice, got .* with training_mode 0"):
        pack(tmp_path / "training.onnx", tmp_path)
    assert not list(tmp_path.glob("*.mar"))


def test_versions_lie_side_by_side_where_that_is_requested(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """The file's name has the version, the model's has not; without it a version replaces one."""
    first = pack(linear_onnx, tmp_path, name="lin", version="1.0", versioned=True)
    second = pack(linear_onnx, tmp_path, name="lin", version="2.0", versioned=True)
    assert sorted(path.name for path in tmp_path.glob("*.mar")) == ["lin-1.0.mar", "lin-2.0.mar"]
    found = [archive.read(path) for path in (first, second)]
    assert [(a.name, a.version) for a in found] == [("lin", "1.0"), ("lin", "2.0")]
    plain = [pack(linear_onnx, tmp_path, name="lin", version=v) for v in ("1.0", "2.0")]
    assert plain[0] == plain[1] == tmp_path / "lin.mar"


def test_golden_outputs_are_the_models_own(linear_onnx: Path, tmp_path: Path) -> None:
    """A worker must return what the file returned at packaging time."""
    with zipfile.ZipFile(pack(linear_onnx, tmp_path)) as zipped:
        zipped.extract("golden.npz", tmp_path)
    cases = read_golden(tmp_path / "golden.npz")
    assert len(cases) > 1
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    for case in cases:
        np.testing.assert_allclose(case.outputs["output"], case.inputs["input"] @ weights, 1e-5)


def test_an_archive_runs_where_marship_is_not_installed(linear_onnx: Path, tmp_path: Path) -> None:
    """With the archive's folder first on the path, its own copy of marship serves the model."""
    mar = pack(linear_onnx, tmp_path)
    folder = tmp_path / "extracted"
    with zipfile.ZipFile(mar) as zipped:
        zipped.extractall(folder)
    other = tmp_path / "site" / "marship"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('the wrong marship')")
    code = (
        "import sys, pathlib, marship.serving.model.session as s, marship.contract as c\n"
        "f = pathlib.Path(sys.argv[1])\n"
        "contract = c.Contract.from_json((f / 'contract.json').read_bytes())\n"
        "session = s.Session(f, contract, s.SessionSettings())\n"
        "session.replay_golden(f / 'golden.npz')\n"
        "print(s.__file__)"
    )
    path = f"{folder}:{tmp_path / 'site'}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(folder / "marship/serving/model/session.py"), done.stderr


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ({}, (1, 1)),
        ({"profile": "latency"}, (1, 1)),
        ({"profile": "throughput"}, (32, 1)),
        ({"profile": "throughput", "batch_size": 8, "max_batch_delay_ms": 5}, (8, 5)),
    ],
)
def test_a_profile_sets_the_batch_and_a_number_wins(
    linear_onnx: Path, tmp_path: Path, settings: dict[str, object], batch: tuple[int, int]
) -> None:
    """The latency profile runs requests one by one, throughput in batches of 32 within 1 ms."""
    config = archive.read(pack(linear_onnx, tmp_path, **settings)).config
    assert (config["batchSize"], config["maxBatchDelay"]) == batch
    assert config["marship"]["profile"] == settings.get("profile", "latency")


def test_how_long_clients_wait_is_passed_to_torchserve(linear_onnx: Path, tmp_path: Path) -> None:
    """In its own unit; without the setting nothing is dropped."""
    config = archive.read(
        pack(linear_onnx, tmp_path, client_timeout_s=9, profile="throughput")
    ).config
    assert config["clientTimeoutInMills"] == 9000
    assert "clientTimeoutInMills" not in archive.read(pack(linear_onnx, tmp_path)).config


BAD_SETTINGS = [
    ({"profile": "fast"}, "profile must be one of latency, throughput, got 'fast'"),
    ({"name": "../up"}, "name must be"),
    ({"version": "latest"}, "version must be"),
    ({"name": "a" * 201}, "at most 200 characters.*got 201.*--name"),
    ({"name": "a" * 199, "versioned": True}, "at most 200 characters"),
    ({"min_workers": 2}, "max-workers must be"),
    ({"client_timeout_s": 9}, "client-timeout-s must come with a batch size over 1"),
    ({"handler": Path("absent.py")}, r"absent\.py must be a file"),
    ({"asset": ("absent.json",)}, r"absent\.json must be a file"),
]


@pytest.mark.parametrize(("settings", "words"), BAD_SETTINGS)
def test_bad_settings_are_named(
    linear_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    words: str,
) -> None:
    """What cannot be meant is refused before the model is proven, and nothing is written."""
    monkeypatch.setattr(step, "_from_onnx", None)
    with pytest.raises(UsageError, match=words):
        pack(linear_onnx, tmp_path / "store", **settings)
    assert not list((tmp_path / "store").glob("*")) if (tmp_path / "store").exists() else True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class A: ...\nclass B: ...\n", "must define one class, .* got A, B"),
        ("x = 1\n", "must define one class, .* got none"),
        ("class A:\n", "must be Python"),
    ],
)
def test_a_handler_that_torchserve_would_refuse_is_refused_here(
    linear_onnx: Path, tmp_path: Path, text: str, words: str
) -> None:
    """Two classes, none, or a syntax error are named before a worker dies of them."""
    handler = tmp_path / "own_handler.py"
    handler.write_text(text)
    with pytest.raises(UsageError, match=words):
        pack(linear_onnx, tmp_path / "store", handler=handler)


def test_a_handler_that_no_worker_could_import_is_refused(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """What stands before a dot would be a package that the archive does not have."""
    handler = tmp_path / "my.v2_handler.py"
    handler.write_text("def handle(data, context): ...\n")
    with pytest.raises(UsageError, match=r"no dot before \.py, .* got my\.v2_handler\.py"):
        pack(linear_onnx, tmp_path / "store", handler=handler)


def test_a_handler_may_be_a_function(linear_onnx: Path, tmp_path: Path) -> None:
    """A file with a function `handle` may define as many classes as it likes."""
    handler = tmp_path / "own_handler.py"
    handler.write_text("class A: ...\nclass B: ...\ndef handle(data, context): ...\n")
    assert pack(linear_onnx, tmp_path / "store", handler=handler).is_file()


RESERVED = [
    *("model.onnx", "contract.json", "golden.npz", "evidence.json", "model-config.yaml"),
    *("marship", "MAR-INF", "Model.ONNX", "contract.json.sealed", "onnx_handler.py"),
]


@pytest.mark.parametrize("name", RESERVED)
def test_an_asset_cannot_replace_a_part_of_the_archive(
    linear_onnx: Path, tmp_path: Path, name: str
) -> None:
    """Nor the handler; a disk that does not tell cases apart would lose one of them, too."""
    asset = tmp_path / name
    asset.write_text("{}")
    with pytest.raises(UsageError, match=f"{name} must be named otherwise"):
        pack(linear_onnx, tmp_path / "store", asset=(str(asset),))


def outside(path: Path, *locations: str) -> Path:
    """`y = x @ w0 @ w1 ...`, each weight in a file of its own."""
    tensors = [
        numpy_helper.from_array(np.full((8, 8), i + 1, np.float32), f"w{i}")
        for i in range(len(locations))
    ]
    names = ["x", *(f"h{i}" for i in range(1, len(locations))), "y"]
    rows = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in ("x", "y")]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]])
            for i in range(len(locations))
        ],
        "g",
        rows[:1],
        rows[1:],
        tensors,
    )
    model = onnx.load(write_model(path, graph))
    for tensor, location in zip(model.graph.initializer, locations, strict=True):
        place = path.parent / location
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(tensor.raw_data)
        set_external_data(tensor, location)
        tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    return path


PLACES = [
    *((name,) for name in RESERVED),
    ("sub/w.bin", "sub/deeper/w.bin"),
    ("w.bin", "sub/w.bin"),
    ("./w.bin", "./sub//v.bin"),
    ("marship/errors.py", "numpy.py", ".marship-weights.lock", "w w"),
]


@pytest.mark.parametrize("locations", PLACES)
def test_external_data_takes_a_free_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locations: tuple[str, ...]
) -> None:
    """From sub-folders, and where the archive has a file of that name; workers share it."""
    monkeypatch.setattr(weights, "SMALLEST_BYTES", 0)
    folder = tmp_path / "model"
    folder.mkdir()
    path = outside(folder / "outside.onnx", *locations)
    before = path.read_bytes()
    mar = pack(path, tmp_path / "store")
    assert path.read_bytes() == before
    with zipfile.ZipFile(mar) as zipped:
        zipped.extractall(tmp_path / "worker")
    contract = archive.read(mar).contract
    assert contract is not None
    for is_shared in (False, True):
        session = Session(tmp_path / "worker", contract, SessionSettings(share_weights=is_shared))
        session.replay_golden(tmp_path / "worker" / "golden.npz")
        assert session.is_shared is is_shared
        got = session.run({"x": np.ones((1, 8), np.float32)})["y"]
        assert (got == 8 ** len(locations) * math.factorial(len(locations))).all()


def test_a_name_that_is_free_is_kept(tmp_path: Path) -> None:
    """And the model's bytes as well."""
    path = outside(tmp_path / "outside.onnx", "model.onnx.data")
    found = archive.read(pack(path, tmp_path / "store"))
    assert found.contract is not None
    assert found.contract.files == ("model.onnx", "model.onnx.data")
    assert found.contents("model.onnx") == path.read_bytes()


@pytest.mark.parametrize(
    "location", ["../w.bin", "sub/../../w.bin", "/etc/hostname", "link", "up/w"]
)
def test_external_data_that_leaves_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    """By a path or by a link, whether the file is there or not."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w").write_bytes(bytes(256))
    (tmp_path / "w.bin").write_bytes(bytes(256))
    path = outside(folder / "outside.onnx", "w.bin")
    (folder / "link").symlink_to(tmp_path / "w.bin")
    (folder / "up").symlink_to(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"outside\.onnx must be a valid|must lie in its folder"):
        pack(path, tmp_path / "store")
    with pytest.raises(ModelError, match="must lie in its folder"):
        proof_graph.external_files(path)


def test_two_assets_of_one_name_are_refused(linear_onnx: Path, tmp_path: Path) -> None:
    """From two folders; and one whose name would steer a terminal."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.txt").write_text(folder)
    assets = tuple(str(tmp_path / folder / "words.txt") for folder in ("a", "b"))
    with pytest.raises(UsageError, match=r"words\.txt must be named otherwise"):
        pack(linear_onnx, tmp_path / "store", asset=assets)
    (tmp_path / "a\nb").touch()
    with pytest.raises(UsageError, match="letters that can be printed"):
        pack(linear_onnx, tmp_path / "store", asset=(str(tmp_path / "a\nb"),))


def endless(path: Path) -> Path:
    """A model whose Loop has a condition that stays true."""
    flag, rows = TensorProto.BOOL, TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Identity", ["v"], ["vo"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", flag, []),
            helper.make_tensor_value_info("v", rows, ["n", 4]),
        ],
        [
            helper.make_tensor_value_info("co", flag, []),
            helper.make_tensor_value_info("vo", rows, ["n", 4]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "t", "x"], ["y"], body=body)],
        "g",
        [helper.make_tensor_value_info("x", rows, ["n", 4])],
        [helper.make_tensor_value_info("y", rows, ["n", 4])],
        [numpy_helper.from_array(np.array(True), "t")],
    )
    return write_model(path, graph)


def folded(path: Path, size: int, count: int) -> Path:
    """A model that multiplies constants of `size` squared `count` times as it is loaded."""
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["k0"])]
    nodes += [helper.make_node("MatMul", [f"k{i}", "k0"], [f"k{i + 1}"]) for i in range(count)]
    nodes += [
        helper.make_node("ReduceMax", [f"k{count}"], ["top"], keepdims=0),
        helper.make_node("Add", ["x", "top"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array([size, size]), "s")],
    )
    return write_model(path, graph)


def words(process: psutil.Process) -> list[str]:
    """Its command line; one that has ended, whoever left it, has none."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


@pytest.mark.parametrize("kind", ["run", "load"])
def test_a_model_that_does_not_end_is_stopped(tmp_path: Path, kind: str) -> None:
    """In its run, and where ONNX Runtime folds constants as it loads; nothing goes on behind."""
    path = tmp_path / "long.onnx"
    endless(path) if kind == "run" else folded(path, 3000, 500)
    with pytest.raises(ModelError, match=r"long\.onnx must be loaded and run .* within 3 s"):
        pack(path, tmp_path / "store", limit_s=3)
    assert not list(tmp_path.glob("store/*.mar"))
    running = psutil.Process().children(recursive=True)
    assert not [process for process in running if str(path) in words(process)]


def test_a_model_that_needs_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    """It is told before the machine swaps."""
    path = folded(tmp_path / "large.onnx", 2_000_000, 0)
    with pytest.raises(ModelError, match=r"large\.onnx must .*memory"):
        pack(path, tmp_path / "store")


def test_a_model_that_crashes_the_runtime_is_reported(
    linear_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the signal, or by the last line that the process said."""
    for start, told in (
        ("import os; os.kill(os.getpid(), 6)", "SIGABRT.*memory"),
        ("import os; os.kill(os.getpid(), 8)", "SIGFPE.*divides whole numbers.*--example"),
        ("raise SystemExit('the last line')", "the last line"),
    ):
        monkeypatch.setattr(onnx_proof, "_START", start)
        with pytest.raises(ModelError, match=rf"linear\.onnx must be loaded .*{told}"):
            pack(linear_onnx, tmp_path / "store")


def test_a_module_where_packing_is_called_is_not_imported(
    linear_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's folder with model.onnx may hold onnx.py as well."""
    for name in ("onnx.py", "numpy.py", "marship.py", "ast.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert pack(linear_onnx, tmp_path / "store").is_file()


def test_a_failed_build_keeps_the_archive_before_it(linear_onnx: Path, tmp_path: Path) -> None:
    """A build that fails half-way leaves the old archive and no scrap beside it."""
    before = pack(linear_onnx, tmp_path, name="x").read_bytes()
    with pytest.raises(UsageError):
        pack(linear_onnx, tmp_path, name="x", asset=("absent",))
    assert [path.name for path in tmp_path.iterdir()] == ["x.mar"]
    assert (tmp_path / "x.mar").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x0a"])
def test_a_damaged_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no ONNX model is named, in one line."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx must be a valid ONNX model"):
        pack(path, tmp_path)


def test_missing_sources_are_usage_errors(tmp_path: Path) -> None:
    """A path that is not there, and a folder that no recipe wrote, say so."""
    with pytest.raises(UsageError, match="no such file"):
        pack(tmp_path / "absent.onnx", tmp_path)
    with pytest.raises(UsageError, match=r"recipe\.json"):
        pack(tmp_path, tmp_path)


def test_the_archiver_leaves_the_temp_folder_alone(linear_onnx: Path, tmp_path: Path) -> None:
    """A model named like a folder in the temp folder does not delete it."""
    bystander = Path(tempfile.gettempdir()) / "bystander"
    bystander.mkdir(exist_ok=True)
    try:
        pack(linear_onnx, tmp_path, name="bystander")
        assert bystander.is_dir()
    finally:
        shutil.rmtree(bystander, ignore_errors=True)


def test_a_damaged_archive_is_refused(linear_onnx: Path, tmp_path: Path) -> None:
    """A flipped byte, a cut tail, a foreign zip: each is named when it is read."""
    mar = pack(linear_onnx, tmp_path)
    whole = mar.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0xFF
    for content in (bytes(flipped), whole[:-100], b"", b"hello"):
        mar.write_bytes(content)
        with pytest.raises(PackageError, match=r"linear\.mar must be a plain archive"):
            archive.read(mar)
    with zipfile.ZipFile(mar, "w") as foreign:
        foreign.writestr("a", "b")
    with pytest.raises(PackageError, match="of torch-model-archiver"):
        archive.read(mar)
