"""No server: session.run in a loop in WORKERS processes, for SECONDS; prints its figures."""

import json
import multiprocessing
import os
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

from model import WORKERS, Model

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue


def measure(barrier: Barrier, seconds: float, results: "SimpleQueue[tuple]") -> None:
    """Call the model in a loop and record the time of every call."""
    model = Model()
    tensors = model.read(Path(os.environ["BENCH_BODY"]).read_bytes())
    for _ in range(10):
        model.run(tensors)
    barrier.wait()
    times = []
    end = time.perf_counter() + seconds
    now = time.perf_counter()
    while now < end:
        model.run(tensors)
        after = time.perf_counter()
        times.append(after - now)
        now = after
    times.sort()
    results.put((len(times), times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6))


if __name__ == "__main__":
    seconds = float(sys.argv[1])
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(WORKERS), context.SimpleQueue()
    workers = [
        context.Process(target=measure, args=(barrier, seconds, results)) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    counts, p50s, p99s = zip(*found, strict=True)
    print(
        "figures",
        json.dumps(
            {
                "requests": sum(counts),
                "duration_us": round(seconds * 1e6),
                "p50_us": sum(p50s) / len(p50s),
                "p99_us": max(p99s),
                "errors": {},
            }
        ),
    )
