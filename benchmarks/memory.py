"""Private memory and load time of workers: with shared mapped weights, and with their own.

    python benchmarks/memory.py

Two models with random weights: 200 MB of MatMuls, and ResNet-18. For each, processes that load
it as a worker does are started one after the other and stay, then all at the same time; last,
calls to a worker of either kind are timed in turns. Prints a table and then the same as JSON.

Private memory is what a process shares with none (USS), with all workers loaded, above that of
a process beside them which loaded no model. A page that only one process maps counts as its
own, so the workers are read together.
"""

import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Contract
from marship.serving.model.session import Session, SessionSettings

WORKERS = 4
MATMULS, WIDTH = 20, 1600  # 4 bytes x 20 x 1600 x 1600 = 205 MB
PAIRS, ROUNDS = 3, {1: 40, 32: 10}
KINDS = {"in each worker": False, "mapped": True}
MB = 1e6


class Worker:
    """A process that loads a model as a worker does, and runs a command for each input line."""

    def __init__(self, folder: Path, share: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(folder), str(int(share))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.call("import")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def send(self, *words: object) -> None:
        """Send a command without waiting."""
        print(*words, file=self._process.stdin, flush=True)

    def receive(self) -> float:
        """The figure that the last command printed."""
        return float(self._process.stdout.readline())

    def call(self, *words: object) -> float:
        """Send a command and wait for its figure."""
        self.send(*words)
        return self.receive()


def work(folder: Path, share: bool) -> None:
    """Run in a worker's process: read and run commands."""
    session: Session
    for line in sys.stdin:
        order, *words = line.split()
        started = time.perf_counter()
        if order == "load":
            contract = Contract.from_json((folder / "contract.json").read_bytes())
            settings = SessionSettings(intra_op_threads=1, share_weights=share)
            session = Session(folder, contract, settings)
        elif order == "call":
            rows = int(words[0])
            shape = [size if isinstance(size, int) else rows for size in contract.inputs[0].shape]
            inputs = {contract.inputs[0].name: np.ones(shape, np.float32)}
            started = time.perf_counter()
            session.run(inputs)
        figure = private_bytes() if order == "memory" else time.perf_counter() - started
        print(figure, flush=True)


def private_bytes() -> int:
    """Memory that this process shares with none (proc(5), smaps_rollup)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def write_matmuls(path: Path) -> None:
    """A chain of MatMul and Relu, 205 MB of float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(MATMULS):
        matrix = random.standard_normal((WIDTH, WIDTH), np.float32) * (2 / WIDTH) ** 0.5
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"y{layer}"]))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])
        for name in ("x0", f"x{MATMULS}")
    ]
    graph = helper.make_graph(nodes, "matmuls", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def write_resnet18(path: Path) -> None:
    """ResNet-18 (He et al. 2015, table 1), random weights."""
    import torch
    from torch import nn

    def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.first = convolution(inputs, outputs, 3, stride)
            self.second = convolution(outputs, outputs, 3, 1)
            same = inputs == outputs
            self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))

    torch.manual_seed(0)
    blocks = [
        Block(inputs, outputs, stride)
        for before, outputs in ((64, 64), (64, 128), (128, 256), (256, 512))
        for inputs, stride in ((before, 1 if outputs == before else 2), (outputs, 1))
    ]
    stem = [*convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    model = nn.Sequential(*stem, *blocks, *head).eval()
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 224, 224),),
        path,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )


def prepare(name: str, folder: Path) -> None:
    """Write a model with its contract and a golden case, as an extracted archive has them."""
    from marship.contract import write_golden
    from marship.proof import graph, parity

    folder.mkdir()
    {"matmuls": write_matmuls, "resnet18": write_resnet18}[name](folder / "model.onnx")
    contract = graph.contract_of(folder / "model.onnx")
    contract, golden = parity.describe(contract, parity.runner(folder / "model.onnx"))
    (folder / "contract.json").write_text(contract.to_json())
    write_golden(folder / "golden.npz", golden)


def extracted(source: Path, target: Path) -> Path:
    """A fresh copy, as TorchServe extracts an archive."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target)
    return target


def one_after_the_other(folder: Path, share: bool) -> dict[str, list[float]]:
    """Load times, and private memory when all have loaded and when all have been called."""
    with ExitStack() as held:
        bare = held.enter_context(Worker(folder, share))
        workers = [held.enter_context(Worker(folder, share)) for _ in range(WORKERS)]

        def above() -> list[float]:
            base = bare.call("memory")
            return [(worker.call("memory") - base) / MB for worker in workers]

        result = {"load_s": [worker.call("load") for worker in workers], "loaded_mb": above()}
        for rows in ROUNDS:
            for worker in workers:
                worker.call("call", rows)
            result[f"called_{rows}_mb"] = above()
        result["bare_mb"] = [bare.call("memory") / MB]
    return result


def at_the_same_time(folder: Path, share: bool) -> dict[str, list[float]]:
    """Load times of workers that start together, in the order in which they were ready."""
    with ExitStack() as held:
        workers = [held.enter_context(Worker(folder, share)) for _ in range(WORKERS)]
        for worker in workers:
            worker.send("load")
        loads = sorted(worker.receive() for worker in workers)
        restarted = held.enter_context(Worker(folder, share)).call("load")
    return {"together_s": loads, "scaled_up_s": [restarted]}


def latencies(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Milliseconds of a call by rows and kind, medians; and the median of their ratios.

    Calls to workers of both kinds are interleaved. Memory placement influences their speed, so
    several pairs of processes are measured.
    """
    times: dict[str, dict[str, list[float]]] = {
        str(rows): {kind: [] for kind in folders} for rows in ROUNDS
    }
    for _ in range(PAIRS):
        with ExitStack() as held:
            workers = {k: held.enter_context(Worker(f, KINDS[k])) for k, f in folders.items()}
            for worker in workers.values():
                worker.call("load")
            for rows, rounds in ROUNDS.items():
                _call_in_turns(workers, rows, rounds, times[str(rows)])
    result = {}
    for label, by_kind in times.items():
        plain, mapped = by_kind.values()
        result[label] = {kind: statistics.median(by_kind[kind]) for kind in by_kind}
        result[label]["ratio"] = statistics.median(
            m / p for p, m in zip(plain, mapped, strict=True)
        )
    return result


def _call_in_turns(
    workers: dict[str, Worker], rows: int, rounds: int, times: dict[str, list[float]]
) -> None:
    for worker in workers.values():
        worker.call("call", rows)
    for turn in range(rounds):
        for kind in list(workers)[:: 1 if turn % 2 else -1]:
            times[kind].append(workers[kind].call("call", rows) * 1e3)


def measure(name: str, scratch: Path) -> dict[str, Any]:
    """All figures of one model."""
    source = scratch / name
    prepare(name, source)
    result: dict[str, Any] = {}
    folders = {}
    for kind, share in KINDS.items():
        folders[kind] = extracted(source, scratch / f"{name}-{int(share)}")
        together = extracted(source, scratch / f"{name}-{int(share)}-together")
        result[kind] = {
            **one_after_the_other(folders[kind], share),
            **at_the_same_time(together, share),
        }
        shutil.rmtree(together)
    result["call_ms"] = latencies(folders)
    return result


def show(name: str, result: dict[str, Any]) -> None:
    """One model's figures as a Markdown table."""
    kinds = list(KINDS)
    print(f"\n{name}\n\n| | weights {kinds[0]} | weights {kinds[1]} | ratio |\n|---|---|---|---|")

    def row(label: str, unit: str, plain: float, mapped: float, ratio: float | None = None) -> None:
        form = ".0f" if unit == "MB" else ".2f"
        ratio = ratio or mapped / plain
        values = f"{plain:{form}} {unit} | {mapped:{form}} {unit} | {ratio:.2f}"
        print(f"| {label} | {values} |")

    plain, mapped = (result[kind] for kind in kinds)
    for index, worker in ((0, "first"), (1, "second"), (3, "fourth")):
        row(f"{worker} worker, private", "MB", *(r["loaded_mb"][index] for r in (plain, mapped)))
    for rows in ROUNDS:
        label = f"second worker, private, called with {rows}"
        row(label, "MB", *(r[f"called_{rows}_mb"][1] for r in (plain, mapped)))
    for index, worker in ((0, "first"), (1, "second"), (3, "fourth")):
        row(f"{worker} worker, load", "s", *(r["load_s"][index] for r in (plain, mapped)))
    row("four at once, all ready", "s", plain["together_s"][-1], mapped["together_s"][-1])
    row("a fifth worker, load", "s", plain["scaled_up_s"][0], mapped["scaled_up_s"][0])
    for rows, by_kind in result["call_ms"].items():
        times = (by_kind[kind] for kind in kinds)
        row(f"a call of {rows}", "ms", *times, ratio=by_kind["ratio"])


def main() -> None:
    """Measure, print."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        results = {name: measure(name, Path(scratch)) for name in ("matmuls", "resnet18")}
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, ONNX Runtime {onnxruntime.__version__}, one thread for each worker")
    for name, result in results.items():
        show(name, result)
    print(f"\n{json.dumps(results)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]), sys.argv[3] == "1")
    else:
        main()
