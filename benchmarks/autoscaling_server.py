"""One load against a real server: one worker, four, and as many as autoscaling chooses.

    python benchmarks/autoscaling_server.py [--rounds 1]

The handler sleeps as long as each request says, so that four workers fit on two cores. The same
requests are replayed in simulated time, for comparison. Prints the second table of
docs/autoscaling.md.
"""

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import networks
import numpy as np
from autoscaling import row
from simulation import Outcome, Simulation, Trace, fixed, marship

import marship as public
from marship.engines.torchserve import server
from marship.engines.torchserve.settings import ServeSettings
from marship.operate.autoscale.policy import Scale
from marship.operate.autoscale.settings import ScalingSettings

MOST, CALL_S, WINDOW_S, COOL_DOWN_S, SAMPLE_S = 4, 0.1, 20, 20, 0.5
STEPS = ((40, 4.0), (80, 16.0), (40, 8.0), (80, 2.0))
"""Seconds, and requests a second."""
HANDLER = '''
"""Takes as many seconds for a request as its first value says."""
import time
from marship.serving.handler import OnnxHandler


class Doze(OnnxHandler):
    """Tensors in and out, late."""

    def decode(self, request):
        """Sleep before the model runs."""
        inputs, state = super().decode(request)
        time.sleep(float(next(iter(inputs.values()))[0, 0]))
        return inputs, state
'''


def trace() -> Trace:
    """The requests: Poisson arrivals, calls of 0.1 s on average."""
    rng = np.random.default_rng(1)
    rates = np.concatenate([np.full(seconds, rate) for seconds, rate in STEPS])
    expected = np.concatenate([[0.0], np.cumsum(rates)])
    times = np.cumsum(rng.exponential(1.0, int(expected[-1] * 1.3)))
    times = np.interp(times[times < expected[-1]], expected, np.arange(len(expected)) + 0.0)
    return Trace("steps", len(rates), times, rng.lognormal(np.log(CALL_S), 0.3, len(times)))


async def replay(home: Path, drawn: Trace, url: str) -> tuple[Outcome, int]:
    """Send each request when it is due; what came of it, and how many failed."""
    outcome, failed, began = Outcome(), 0, time.monotonic()

    async with public.AsyncClient(home, inference_url=url, retry_s=0) as client:

        async def ask(due_s: float, call_s: float) -> None:
            nonlocal failed
            await asyncio.sleep(max(0.0, began + due_s - time.monotonic()))
            try:
                await client.predict("doze", {"input": [[call_s] + [0.0] * 9]})
            except public.MarshipError:
                failed += 1
            ended_s = time.monotonic() - began
            outcome.ended_s.append(ended_s)
            outcome.took_s.append(ended_s - due_s)

        pairs = zip(drawn.arrivals.tolist(), drawn.services.tolist(), strict=True)
        await asyncio.gather(*(ask(due_s, call_s) for due_s, call_s in pairs))
    return outcome, failed


@contextlib.contextmanager
def counted(home: Path, outcome: Outcome) -> Iterator[None]:
    """Count the workers that there are, ready or not."""
    ended = threading.Event()

    def look() -> None:
        last = time.monotonic()
        with public.Client(home) as client:
            while not ended.wait(SAMPLE_S):
                (status,) = client.describe("doze")
                now = time.monotonic()
                outcome.worker_s += len(status.workers) * (now - last)
                outcome.wanted.append(status.min_workers)
                last = now

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def autoscaling(home: Path) -> Iterator[None]:
    """`marship autoscale`, as long as this is entered."""
    command = [
        *(sys.executable, "-m", "marship", "autoscale", "doze", "--home", home),
        *("--window-s", str(WINDOW_S), "--cool-down-s", str(COOL_DOWN_S)),
    ]
    process = subprocess.Popen(list(map(str, command)))
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def measure(home: Path, drawn: Trace, workers: int, *, scales: bool, url: str) -> None:
    """Replay the trace once, and print its row."""
    with public.Client(home) as client:
        client.scale("doze", workers)
    counts = Outcome()
    with contextlib.ExitStack() as held:
        if scales:
            held.enter_context(autoscaling(home))
        held.enter_context(counted(home, counts))
        outcome, failed = asyncio.run(replay(home, drawn, url))
    outcome.worker_s, outcome.wanted = counts.worker_s, counts.wanted
    name = "autoscale" if scales else f"{workers} workers"
    print(row(f"{name}, server ({failed} failed)", outcome, drawn.seconds), flush=True)


def main() -> None:
    """Simulate, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own-address", action="store_true", help="TorchServe's instead")
    flags = parser.parse_args()
    drawn, scale = trace(), Scale(1, MOST)
    settings = ScalingSettings(window_s=WINDOW_S, cool_down_s=COOL_DOWN_S)
    print(f"{len(drawn.arrivals):,} requests in {drawn.seconds:g} s", flush=True)
    for name, chooser, workers in (
        ("1 workers", fixed(1), 1),
        (f"{MOST} workers", fixed(MOST), MOST),
        ("autoscale", marship(scale, settings), 1),
    ):
        outcome = Simulation(drawn, chooser, workers).run()
        print(row(f"{name}, simulated", outcome, drawn.seconds), flush=True)
    with tempfile.TemporaryDirectory(prefix="autoscaling-") as name:
        place, home, store = Path(name), Path(name) / "home", Path(name) / "store"
        (place / "doze_handler.py").write_text(HANDLER)
        networks.write_mlp(place / "model.onnx")
        store.mkdir()
        public.package(
            place / "model.onnx",
            public.PackageSettings(
                name="doze", model_store=store, handler=place / "doze_handler.py",
                min_workers=1, max_workers=MOST,
            ),
        )  # fmt: skip
        started = server.start(ServeSettings(home=home, model_store=store, free_ports=True))
        try:
            with public.Client(home) as client:
                client.register("doze.mar")
            url = started.record.inference_url if flags.own_address else started.record.direct_url
            for workers, scales in ((1, False), (MOST, False), (1, True)):
                measure(home, drawn, workers, scales=scales, url=str(url))
        finally:
            started.stop()


if __name__ == "__main__":
    main()
