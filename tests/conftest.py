"""Models and folders that many tests start from."""

import functools
import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import write_model
from versions import linear

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """The long form of tests/server/torture, and where its figures go."""
    parser.addoption("--full", action="store_true", help="faults and attacks in full: 15 minutes")
    parser.addoption("--report", metavar="PAGE", help="write their figures into this page")


def pytest_configure(config: pytest.Config) -> None:
    """Let PyTorch compute on one thread and Java compile once, here and in what tests start.

    The models are small, and threads that share a busy processor spin while they wait for each
    other. Java's second compiler makes up for its work in minutes, and most of a hundred servers
    live for seconds; without it one starts in half the time. Faults in full are long enough.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not config.getoption("full"):
        os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without looking for garbage, and leave what stays out of later searches.

    It is 780,000 objects, through which each full search would go for half a second. Searches are
    then as rare as in commands: what exports and trains makes many objects and drops few.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files with clusters of Ray: each takes all processors for minutes.

    They would begin at the same time, and time out, as they stand in one folder. Files are given
    to processes in this order, and those with servers come first.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    clusters = [path for path in files if path.parent == TESTS / "server" / "ray"]
    order = [path for path in files if path not in clusters]
    step = sum(TESTS / "server" in path.parents for path in order) // max(len(clusters), 1)
    for number, path in enumerate(clusters):
        order.insert(number * (step + 1), path)
    items[:] = [item for path in order for item in files[path]]


@pytest.hookimpl(optionalhook=True)  # a part of the tests runs without pytest-xdist, too
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: tests wait for servers and timeouts a third of their time."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def linear_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`output = input @ W`: float32 (batch, 3) to (batch, 2)."""
    return linear(tmp_path_factory.mktemp("linear") / "linear.onnx", 1)


@pytest.fixture(scope="session")
def lookup_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`total = sum(table[max(ids, 0)])`: int64 (batch, length) to float32 (batch,).

    Id 0 looks up 0, so 0 pads; an id above 9 passes the contract, which knows no range of ids that
    are cut to size in the graph, and fails in the run.
    """
    table = numpy_helper.from_array(np.arange(10, dtype=np.float32), "table")
    axes = numpy_helper.from_array(np.array([1]), "axes")
    zero = numpy_helper.from_array(np.array(0), "zero")
    graph = helper.make_graph(
        [
            helper.make_node("Max", ["ids", "zero"], ["cut"]),
            helper.make_node("Gather", ["table", "cut"], ["values"]),
            helper.make_node("ReduceSum", ["values", "axes"], ["total"], keepdims=0),
        ],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch"])],
        [table, axes, zero],
    )
    return write_model(tmp_path_factory.mktemp("lookup") / "lookup.onnx", graph)


@pytest.fixture(scope="session")
def torchlib_read_once() -> Iterator[None]:
    """Let all exports of a session share the ONNX functions that PyTorch's operators become.

    torch.onnx.export parses the source of 500 functions each time, a second of processor time and
    more than half of a small model's export. They depend on the opset alone.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    whole = functools.cache(ONNXRegistry.from_torchlib)

    def copied(opset_version: int) -> Any:
        registry = ONNXRegistry()
        registry._opset_version = opset_version
        registry.functions = {
            name: list(found) for name, found in whole(opset_version).functions.items()
        }
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield
