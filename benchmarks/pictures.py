"""Serves photographs of mixed sizes, and compares with decoding and session.run alone.

    python training/tagger.py
    marship export runs/tagger
    python benchmarks/pictures.py --run-dir runs/tagger --photos ~/Pictures

Both sides decode the same JPEG files with the same code, in interleaved rounds, in the same number
of processes, with one thread for each call. The difference is the cost of serving: load generator,
frontend, and the worker's reading and writing of messages.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

import load
import peers
from peers import LATENCY, Running, Setup

from marship import console
from marship.errors import UsageError
from marship.settings import flags, setting

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

SUFFIXES = (".jpg", ".jpeg")
MOST_PHOTOS = 200


@dataclass(frozen=True)
class PicturesSettings:
    """What is served, and under which load."""

    run_dir: Path = setting(Path("runs/tagger"), "run folder of an exported image model")
    photos: Path = setting(Path("photos"), "folder of JPEG files")
    workers: int = setting(2, "workers, and processes that decode and run alone", minimum=1)
    clients: int = setting(8, "connections at once", minimum=1)
    seconds: int = setting(5, "length of one measurement", minimum=1)
    rounds: int = setting(5, "rounds; medians over them are reported", minimum=1)
    settle: int = setting(12, "seconds of warm-up", minimum=1)
    torchserve: bool = setting(False, "send them to TorchServe's own address")


@flags(PicturesSettings)
def main(settings: PicturesSettings) -> None:
    """Serve photographs, and compare with decoding and session.run alone."""
    load.require_wrk()
    photos = sorted(p for p in settings.photos.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not photos:
        raise UsageError(f"{settings.photos} must hold JPEG files, got none.")
    photos = photos[:MOST_PHOTOS]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        running = peers.serve(
            settings.run_dir, Setup("marship", LATENCY, settings.workers), Path(folder)
        )
        if not settings.torchserve:
            running = peers.directly(running, Path(folder))
        try:
            served, bare = _measure_in_rounds(_with_photos(running, photos), photos, settings)
            breakdown = _breakdown(running, photos)
        finally:
            load.end(*running.pids)
    size_kb = statistics.mean(photo.stat().st_size for photo in photos) / 1e3
    console.out.print(f"{len(photos)} photographs of {size_kb:.0f} KB, {settings.workers} workers")
    console.out.print(f"served                   {statistics.median(served):8.1f} images/s")
    console.out.print(f"decoding and session.run {statistics.median(bare):8.1f} images/s")
    ratios = [mine / theirs for mine, theirs in zip(served, bare, strict=True)]
    console.out.print(f"ratio                    {statistics.median(ratios):8.2f}")
    console.out.print(f"one photograph after the other, mean: {breakdown}")


def _with_photos(running: Running, photos: Sequence[Path]) -> Running:
    request = replace(running.request, body=photos[0], others=tuple(photos[1:]))
    return replace(running, request=request)


def _measure_in_rounds(
    running: Running, photos: Sequence[Path], settings: PicturesSettings
) -> tuple[list[float], list[float]]:
    """Images per second of both sides, one entry for each round."""
    served, bare = [], []
    with load.awake(*running.pids):
        load.measure(running.request, settings.clients, settings.settle)
    for round_ in range(settings.rounds):
        with load.awake(*running.pids):
            figures = load.measure(running.request, settings.clients, settings.seconds)
        if figures.errors:
            raise UsageError(f"every photograph must get a response, got {figures.errors} errors.")
        served.append(figures.rps)
        bare.append(_measure_bare(photos, settings))
        console.err.print(f"round {round_ + 1}: {served[-1]:.1f} served, {bare[-1]:.1f} bare")
    load.thaw(*running.pids)
    return served, bare


def _measure_bare(photos: Sequence[Path], settings: PicturesSettings) -> float:
    """Images per second of processes that only decode and run the model."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(settings.workers), context.SimpleQueue()
    processes = [
        context.Process(target=_run_bare, args=(photos, settings, barrier, results))
        for _ in range(settings.workers)
    ]
    for process in processes:
        process.start()
    counts = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(counts) / settings.seconds


def _run_bare(
    photos: Sequence[Path],
    settings: PicturesSettings,
    barrier: Barrier,
    results: "SimpleQueue[int]",
) -> None:
    import onnxruntime as ort

    from marship.serving import pictures

    about = json.loads((settings.run_dir / "picture.json").read_text())
    shortest = pictures.shortest_side(about["side"], about["crop"])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = settings.run_dir / _chosen(settings.run_dir)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    bodies = [photo.read_bytes() for photo in photos]
    session.run(None, {name: pictures.decode(bodies[0], shortest).pixels[None]})
    barrier.wait()
    end = time.perf_counter() + settings.seconds
    done = 0
    while time.perf_counter() < end:
        picture = pictures.decode(bodies[done % len(bodies)], shortest)
        session.run(None, {name: picture.pixels[None]})
        done += 1
    results.put(done)


def _chosen(run_dir: Path) -> str:
    """The file of a run folder that `marship package` packs."""
    report = run_dir / "optimize.json"
    chosen = json.loads(report.read_text())["chosen"] if report.is_file() else "exported"
    return "model.onnx" if chosen == "exported" else f"model.{chosen}.onnx"


def _breakdown(running: Running, photos: Sequence[Path]) -> str:
    """Where the time of a single client's request goes, in milliseconds."""
    totals: dict[str, float] = {}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for photo in photos:
        headers = {"Content-Type": "image/jpeg", **running.request.headers}  # else urllib's: a form
        call = urllib.request.Request(  # noqa: S310  loopback
            running.request.url, photo.read_bytes(), headers
        )
        began = time.perf_counter()
        with direct.open(call, timeout=30) as response:
            response.read()
            timing = response.headers["Server-Timing"]
        totals["all"] = totals.get("all", 0) + (time.perf_counter() - began) * 1e3
        for entry in timing.split(", "):
            step, _, duration = entry.partition(";dur=")
            totals[step] = totals.get(step, 0) + float(duration)
    return ", ".join(f"{step} {total / len(photos):.2f} ms" for step, total in totals.items())


if __name__ == "__main__":
    console.run_recipe(main)
