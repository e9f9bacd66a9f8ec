"""A session serves only the model that its contract and golden cases describe."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from marship.contract import Contract, GoldenCase, write_golden
from marship.errors import LoadError, ModelError
from marship.proof import graph
from marship.serving.model.session import PROVIDERS, Session, SessionSettings, usable_cores

ONE_THREAD = SessionSettings(intra_op_threads=1)


@pytest.fixture
def folder(linear_onnx: Path, tmp_path: Path) -> tuple[Path, Contract]:
    """A folder with the linear model and one golden case, and its contract."""
    shutil.copy(linear_onnx, tmp_path)
    case = GoldenCase(
        {"input": np.ones((2, 3), np.float32)}, {"output": np.full((2, 2), [6, 9], np.float32)}
    )
    write_golden(tmp_path / "golden.npz", [case])
    return tmp_path, graph.contract_of(tmp_path / "linear.onnx")


def test_golden_cases_are_replayed(folder: tuple[Path, Contract]) -> None:
    """A model with the outputs of the reference passes its replay."""
    path, contract = folder
    times_s = Session(path, contract, ONE_THREAD).replay_golden(path / "golden.npz")
    assert times_s
    assert min(times_s) > 0


def test_a_model_that_predicts_otherwise_is_not_served(folder: tuple[Path, Contract]) -> None:
    """A golden output off by 0.01 fails the load, and the message says by how much."""
    path, contract = folder
    wrong = GoldenCase(
        {"input": np.ones((1, 3), np.float32)}, {"output": np.array([[6, 9.01]], np.float32)}
    )
    write_golden(path / "golden.npz", [wrong])
    strict = replace(contract, tolerance=replace(contract.tolerance, rtol=1e-5))
    with pytest.raises(LoadError, match=r"golden case 0 .* difference of 0\.01"):
        Session(path, strict, ONE_THREAD).replay_golden(path / "golden.npz")


def test_an_altered_file_is_not_loaded(folder: tuple[Path, Contract]) -> None:
    """One changed byte changes the digest, and the load fails before the file is parsed."""
    path, contract = folder
    data = bytearray((path / "linear.onnx").read_bytes())
    data[-1] ^= 1
    (path / "linear.onnx").write_bytes(data)
    with pytest.raises(LoadError, match="SHA-256"):
        Session(path, contract, ONE_THREAD)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no npz"])
def test_a_missing_or_damaged_golden_file_fails_the_load(
    folder: tuple[Path, Contract], content: bytes | None
) -> None:
    """Without golden cases nothing proves the model, so it is not served."""
    path, contract = folder
    (path / "golden.npz").unlink()
    if content is not None:
        (path / "golden.npz").write_bytes(content)
    with pytest.raises(LoadError, match=r"golden\.npz must replay"):
        Session(path, contract, ONE_THREAD).replay_golden(path / "golden.npz")


def test_a_missing_provider_is_named(folder: tuple[Path, Contract]) -> None:
    """A provider that this ONNX Runtime lacks fails the load instead of a silent fallback."""
    path, contract = folder
    missing = next(n for n, full in PROVIDERS.items() if full not in ort.get_available_providers())
    with pytest.raises(LoadError, match=f"provider {missing} must be in the installed"):
        Session(path, contract, SessionSettings(providers=(missing, "cpu")))


def test_a_run_that_fails_is_a_model_error(folder: tuple[Path, Contract]) -> None:
    """What ONNX Runtime raises arrives as our own error."""
    path, contract = folder
    with pytest.raises(ModelError, match="must run the model"):
        Session(path, contract, ONE_THREAD).run({"input": np.zeros((1, 9), np.float32)})


def test_threads_are_cores_divided_by_workers() -> None:
    """Without a number of threads the cores are shared among the workers, one at least."""
    cores = usable_cores()
    assert SessionSettings(workers=1).threads == cores
    assert SessionSettings(workers=1000).threads == 1
    assert SessionSettings(intra_op_threads=3, workers=2).threads == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "5 10"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "50000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_container_quota_limits_the_cores(
    tmp_path: Path, files: dict[str, str], cores: int | None
) -> None:
    """cpu.max of cgroup v2 is quota and period, v1 has a file for each; half a core is one."""
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    unlimited = usable_cores(tmp_path / "absent")
    assert usable_cores(tmp_path) == (unlimited if cores is None else min(cores, unlimited))


BAD_CONFIG = [
    {"providers": ["tpu"]},
    {"providers": "cpu"},
    {"providers": []},
    {"intra_op_threads": 0},
    {"intra_op_threads": "2"},
]


@pytest.mark.parametrize("section", BAD_CONFIG)
def test_bad_settings_fail_the_load(section: dict[str, object]) -> None:
    """model-config.yaml is held against what can be meant, and the message names the key."""
    with pytest.raises(LoadError, match=r"marship\.(providers|intra_op_threads)"):
        SessionSettings.from_config(section)


def test_settings_come_from_model_config() -> None:
    """Providers keep their order; workers and the device are the host's to say."""
    settings = SessionSettings.from_config({"providers": ["cuda", "cpu"]}, workers=4, device_id=1)
    assert settings.providers == ("cuda", "cpu")
    assert settings.workers == 4
    assert settings.device_id == 1
    assert settings.spinning is False


def test_memory_of_the_replay_goes_back(tmp_path: Path) -> None:
    """What golden cases of many rows took is not kept: here 200 MB for one of them."""
    helper, of = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Mul", ["input", "weights"], ["many"]),
        helper.make_node("ReduceMean", ["many", "axes"], ["one"]),
        helper.make_node("Tile", ["one", "repeats"], ["wide"]),
        helper.make_node("ReduceMean", ["wide", "axes"], ["output"]),
    ]
    weights = [
        of(np.ones((1, 300_000), np.float32), "weights"),
        of(np.array([1, 25_000_000]), "repeats"),
        of(np.array([1]), "axes"),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", 1])
        for name in ("input", "output")
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "wide", ends[:1], ends[1:], weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(made, tmp_path / "wide.onnx")
    ones = np.ones((2, 1), np.float32)
    write_golden(tmp_path / "golden.npz", [GoldenCase({"input": ones}, {"output": ones})])
    # in the process of all tests, memory that was swapped out before comes back meanwhile
    code = (
        "import numpy, psutil, sys\n"
        "from pathlib import Path\n"
        "from marship.proof import graph\n"
        "from marship.serving.model.session import Session, SessionSettings\n"
        "folder, rss = Path(sys.argv[1]), lambda: psutil.Process().memory_info().rss\n"
        "contract = graph.contract_of(folder / 'wide.onnx')\n"
        "session, before = Session(folder, contract, SessionSettings(intra_op_threads=1)), rss()\n"
        "session.replay_golden(folder / 'golden.npz')\n"
        "print(rss() - before)\n"
        "session.run({'input': numpy.ones((2, 1), numpy.float32)})\n"
        "print(rss() - before)\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", code, tmp_path], text=True)
    replayed, predicted = map(int, printed.split())
    assert replayed < 50e6
    assert predicted > 150e6


def test_onnx_runtime_keeps_no_telemetry(linear_onnx: Path, tmp_path: Path) -> None:
    """Its file would hold names of the graph and values of requests."""
    code = (
        "import sys; from pathlib import Path; from marship.proof import parity; import numpy\n"
        "run = parity.runner(Path(sys.argv[1]))\n"
        "try: run({'input': numpy.zeros((1, 99), 'f')})\n"
        "except Exception as error: print(error)\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    inherited = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(linear_onnx)],
        env=inherited | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "must run on the inputs" in done.stdout
    assert [path for path in home.rglob("*") if "onnxruntime" in path.name] == []


def test_a_file_that_onnx_runtime_cannot_load_is_named_so(folder: tuple[Path, Contract]) -> None:
    """Even where it is the file that the contract names."""
    path, contract = folder
    (path / "linear.onnx").write_bytes(b"no model")
    digest = hashlib.sha256(b"no model").hexdigest()
    with pytest.raises(LoadError, match="ONNX Runtime must load the model, got"):
        Session(path, replace(contract, digest=digest), ONE_THREAD)
