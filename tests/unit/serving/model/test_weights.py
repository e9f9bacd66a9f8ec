"""Workers of a model map one copy of its weights, and no copy is trusted that is not proven."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marship.contract import Contract
from marship.errors import LoadError
from marship.proof import graph
from marship.serving.model import weights
from marship.serving.model.session import Session, SessionSettings
from models import write_model
from small_disk import run_on

pytestmark = pytest.mark.slow

WIDTH = 1200  # 2 x 1200 x 1200 x 4 bytes: over the smallest size that is shared
ONE_THREAD = SessionSettings(intra_op_threads=1)
ALONE = SessionSettings(intra_op_threads=1, share_weights=False)
LOAD = """
import sys
from pathlib import Path
from marship.proof import graph
from marship.serving.model import heap, weights
from marship.serving.model.session import Session, SessionSettings
folder = Path(sys.argv[1])
settings = SessionSettings(intra_op_threads=1, share_weights=sys.argv[2:] != ["alone"])
contract = graph.contract_of(folder / "model.onnx")
session = Session(folder, contract, settings)
"""
PRIVATE = """
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))
"""
RELEASED = """
heap.release_freed()  # what reading the contract took
before = private()
"""


@pytest.fixture(scope="module")
def wide_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`output = relu(input @ A) @ B`, 11.5 MB of float32."""
    random = np.random.default_rng(0)
    matrices = [
        numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH), np.float32), name)
        for name in "AB"
    ]
    nodes = [
        helper.make_node("MatMul", ["input", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["output"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])
        for name in ("input", "output")
    ]
    wide = helper.make_graph(nodes, "wide", ends[:1], ends[1:], matrices)
    return write_model(tmp_path_factory.mktemp("wide") / "model.onnx", wide)


@pytest.fixture
def folder(wide_onnx: Path, tmp_path: Path) -> Path:
    """What TorchServe extracts, as far as a session needs it."""
    shutil.copy(wide_onnx, tmp_path)
    return tmp_path


def contract_of(folder: Path) -> Contract:
    """The contract of the model in a folder."""
    return graph.contract_of(folder / "model.onnx")


def answer(folder: Path, settings: SessionSettings = ONE_THREAD) -> np.ndarray:
    """What a worker that loads from this folder says to a fixed input."""
    inputs = np.linspace(-1, 1, 3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)
    return Session(folder, contract_of(folder), settings).run({"input": inputs})["output"]


def copy_of(folder: Path) -> Path:
    """The copy's folder."""
    return folder / weights.COPY_FOLDER


def inode(folder: Path) -> int:
    """The weights' inode: another one after they were made anew."""
    return (copy_of(folder) / weights.WEIGHTS_FILE).stat().st_ino


def flip(path: Path) -> None:
    """Damage a byte in the middle, and hide it as well as a program can."""
    before = path.stat()
    time.sleep(0.02)  # a kernel's clock for files ticks in milliseconds
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0x40]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite_record(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change what the record says."""
    path = copy_of(folder) / weights.RECORD_FILE
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))


def test_a_copy_predicts_to_the_bit_as_the_model_itself(folder: Path) -> None:
    """Mapped by the worker that made it or by a later one, the weights give the same outputs."""
    alone = answer(folder, ALONE)
    assert not copy_of(folder).exists()
    np.testing.assert_array_equal(answer(folder), alone)
    made = inode(folder)
    np.testing.assert_array_equal(answer(folder), alone)
    assert inode(folder) == made
    assert sorted(path.name for path in folder.iterdir()) == [
        ".marship-weights",
        ".marship-weights.lock",
        "model.onnx",
    ]


def test_a_later_worker_holds_hardly_any_weights(folder: Path) -> None:
    """A process that maps the copy takes less than a fifth of the memory of one that does not."""
    script = PRIVATE + LOAD.replace("session =", RELEASED + "session =")
    taken = [
        int(
            subprocess.run(
                [sys.executable, "-c", f"{script}print(private() - before)", str(folder), share],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for share in ("alone", "shared", "shared")
    ]
    alone, _, later = taken
    assert alone > 10_000
    assert later < alone / 5


@pytest.mark.parametrize("name", weights.COPY_FILES)
def test_a_damaged_copy_is_made_anew(folder: Path, name: str) -> None:
    """One flipped byte, its time of change set back, and the copy is replaced."""
    right = answer(folder)
    made = inode(folder)
    flip(copy_of(folder) / name)
    np.testing.assert_array_equal(answer(folder), right)
    assert inode(folder) != made


@pytest.mark.parametrize("name", [*weights.COPY_FILES, weights.RECORD_FILE])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{\x00"])
def test_an_incomplete_copy_is_made_anew(folder: Path, name: str, content: bytes | None) -> None:
    """A file that is missing, empty or foreign is not trusted."""
    right = answer(folder)
    path = copy_of(folder) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    np.testing.assert_array_equal(answer(folder), right)
    assert (copy_of(folder) / weights.MODEL_FILE).stat().st_size > 100
    assert json.loads((copy_of(folder) / weights.RECORD_FILE).read_bytes())["sha256"]


@pytest.mark.parametrize("name", ["format", "model", "onnxruntime", "machine", "processor"])
def test_a_copy_for_another_host_or_model_is_made_anew(folder: Path, name: str) -> None:
    """Another processor, ONNX Runtime, or model in its record, and the copy is replaced."""
    answer(folder)
    made = inode(folder)
    rewrite_record(folder, lambda record: record["key"].update({name: "another"}))
    answer(folder)
    assert inode(folder) != made


def test_another_model_in_the_folder_gets_a_copy_of_its_own(folder: Path) -> None:
    """With the model replaced, its copy is too, and the new model runs."""
    first = answer(folder)
    model = onnx.load(folder / "model.onnx")
    halved = numpy_helper.to_array(model.graph.initializer[0]) / 2
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(halved, "A"))
    onnx.save(model, folder / "model.onnx")
    np.testing.assert_allclose(answer(folder), first / 2, rtol=1e-5)


def test_after_a_boot_the_digests_decide(folder: Path) -> None:
    """Times of another boot prove nothing; an unharmed copy is kept and a damaged one is not."""
    right = answer(folder)
    made = inode(folder)
    rewrite_record(folder, lambda record: record["stamp"].update(boot="another"))
    answer(folder)
    assert inode(folder) == made
    flip(copy_of(folder) / weights.WEIGHTS_FILE)
    rewrite_record(folder, lambda record: record["stamp"].update(boot="another"))
    np.testing.assert_array_equal(answer(folder), right)
    assert inode(folder) != made


def test_workers_that_start_together_make_one_copy(folder: Path) -> None:
    """Four processes at once: one makes the copy, and all map it."""
    script = LOAD + "print(open('/proc/self/maps').read())"

    def load(_: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
        ).stdout

    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(load, range(4)))
    path = str(copy_of(folder) / weights.WEIGHTS_FILE)
    mapped = {line.split()[4] for text in maps for line in text.splitlines() if path in line}
    assert all(path in text for text in maps)
    assert mapped == {str(inode(folder))}


def test_what_a_killed_worker_left_is_cleared_away(folder: Path) -> None:
    """A draft that nobody finished does not stay, and hinders nobody."""
    draft = folder / weights.DRAFT_FOLDER
    draft.mkdir()
    (draft / weights.WEIGHTS_FILE).write_bytes(b"half")
    answer(folder)
    assert copy_of(folder).is_dir()
    assert not draft.exists()


def test_an_altered_model_is_not_copied(folder: Path) -> None:
    """The digest in the contract stands between a file and its copy."""
    contract = contract_of(folder)
    flip(folder / "model.onnx")
    with pytest.raises(LoadError, match="SHA-256"):
        Session(folder, contract, ONE_THREAD)
    assert not copy_of(folder).exists()


def test_a_missing_model_is_named(folder: Path) -> None:
    """Without the model's file the message is the one that was there before copies were."""
    contract = contract_of(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(LoadError, match=r"model\.onnx must be in the archive"):
        Session(folder, contract, ONE_THREAD)


def test_small_models_are_not_copied(linear_onnx: Path, tmp_path: Path) -> None:
    """Where there is little to share, no file and no lock is written."""
    shutil.copy(linear_onnx, tmp_path)
    Session(tmp_path, graph.contract_of(tmp_path / "linear.onnx"), ONE_THREAD)
    assert [path.name for path in tmp_path.iterdir()] == ["linear.onnx"]


def test_external_weights_are_copied_whole(folder: Path) -> None:
    """A copy of a model in two files needs neither of them afterwards."""
    right = answer(folder, ALONE)
    model = onnx.load(folder / "model.onnx")
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    np.testing.assert_array_equal(answer(folder), right)
    alone = folder / "elsewhere"
    shutil.copytree(copy_of(folder), alone)
    session = weights._open(alone, weights.ort.SessionOptions())
    assert session.get_inputs()[0].shape == ["batch", WIDTH]


FULL = 14_000  # KB: holds the model, and not its copy
ON_DISK = (
    'cp "$1" "$0/model.onnx" && {between} "$2" -c "{load}" "$0"; code=$?; ls -A "$0"; exit $code'
)


@pytest.mark.parametrize(
    ("size_kb", "between", "reason"),
    [
        (FULL, "", "write|space|No such file"),
        (FULL * 10, 'mount -o remount,ro "$0" &&', "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_where_no_copy_can_be_written_the_model_is_served(
    wide_onnx: Path, tmp_path: Path, size_kb: int, between: str, reason: str
) -> None:
    """A full disk or a read-only folder costs one warning, and nothing stays behind."""
    load = LOAD.strip().replace('"', "'")
    script = ON_DISK.format(between=between, load=load)
    done = run_on(tmp_path / "disk", size_kb, script, wide_onnx, sys.executable)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("hold their own weights") == 1
    assert any(word in done.stderr for word in reason.split("|")), done.stderr
    assert set(done.stdout.split()) <= {"model.onnx", weights.LOCK_FILE}


def test_a_model_that_cannot_be_copied_is_served_with_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the process that makes the copy fails, its last line stands in the log."""
    monkeypatch.setenv("PYTHONHOME", str(folder))  # no interpreter starts with it
    with caplog.at_level(logging.WARNING):
        answer(folder)
    assert len(caplog.records) == 1
    assert "share_weights: false" in caplog.text
    assert not copy_of(folder).exists()


@pytest.mark.parametrize("settings", [ALONE, SessionSettings(providers=("cpu", "cuda"))])
def test_only_cpu_workers_that_want_it_share(folder: Path, settings: SessionSettings) -> None:
    """Switched off, or with another provider beside the CPU, no copy is made."""
    try:
        Session(folder, contract_of(folder), settings)
    except LoadError:
        assert "cuda" in settings.providers  # this ONNX Runtime may lack it
    assert not copy_of(folder).exists()


def test_the_switch_is_true_or_false() -> None:
    """model-config.yaml turns sharing off; anything but a truth value fails the load."""
    off = {"share_weights": False}
    assert SessionSettings.from_config({}).share_weights
    assert not SessionSettings.from_config(off).share_weights
    with pytest.raises(LoadError, match=r"marship\.share_weights .* got 'no'"):
        SessionSettings.from_config({"share_weights": "no"})


INTEL = (
    "processor\t: 0\nmodel name\t: A\nflags\t\t: sse avx2\ncpu MHz\t\t: 2000\n\nprocessor\t: 1\n"
)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (INTEL.replace("2000", "3000"), True),
        (INTEL.replace("sse avx2", "avx2 sse"), True),
        (INTEL + "flags\t\t: none\n", True),
        (INTEL.replace("avx2", "avx512f"), False),
        (INTEL.replace(": A", ": B"), False),
        ("processor\t: 0\nFeatures\t: asimd\nCPU part\t: 0xd40\n\n", False),
    ],
)
def test_a_processor_is_its_kind_and_features(text: str, same: bool) -> None:
    """Clock and order do not matter; the model's name and any feature do."""
    assert (weights._processor(text) == weights._processor(INTEL)) is same


def test_arm_processors_differ_by_part() -> None:
    """The kernel names Arm's cores by number, under keys of their own."""
    arm = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
    assert weights._processor(arm.format("0xd40")) != weights._processor(arm.format("0xd4f"))


def test_a_killed_worker_leaves_the_copy_to_the_next(folder: Path) -> None:
    """The process that makes the copy goes on, and the next worker waits for it."""
    worker = subprocess.Popen([sys.executable, "-c", LOAD, str(folder)])
    draft = folder / weights.DRAFT_FOLDER
    until = time.monotonic() + 60
    begun = None
    while begun is None and time.monotonic() < until:
        with suppress(FileNotFoundError):
            begun = draft.stat().st_ino
        time.sleep(0.001)  # the draft is there for milliseconds
    worker.kill()
    worker.wait()
    answer(folder)
    assert copy_of(folder).stat().st_ino == begun
