"""Load time and peak memory of a worker whose model is sealed, against the same model plain.

    python benchmarks/sealing.py

The model is that of memory.py: 205 MB of MatMuls with random weights. Each load is that of a
fresh process which has imported what a worker has: key, session and golden replay. Kinds take
turns, so that a busy minute hits all. Three are plain: weights in each worker, and mapped by
all, where the first worker writes the copy and later ones map it. Prints a table of medians and
then all figures as JSON. Peak is the largest resident memory from just before the load on, above
what it was then (proc(5), VmHWM). CPU time is the worker's own; that of the process which makes
the mapped copy is not in it.

Exit code 1: the sealed model, in the median, took longer than twice the plain one's time, or more
memory than 2.5 times its size.
"""

import json
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import MB, extracted, prepare

MODEL = "matmuls"
ROUNDS = 7
PLAIN, SEALED = "plain", "sealed"
KINDS = (PLAIN, SEALED, "first of mapped", "later of mapped")
LONGEST, LARGEST = 2.0, 2.5
"""Of a sealed model: its load time to that of the plain one, and its peak to the model's size."""
CLEAR_PEAK = "5"
"""proc(5), clear_refs."""


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def load(folder: Path, kind: str) -> None:
    """What a worker does before it serves; prints seconds, peak and lasting memory."""
    from marship.contract import GOLDEN_FILE, Contract
    from marship.serving.model import sealed
    from marship.serving.model.session import Session, SessionSettings

    contract = Contract.from_json((folder / "contract.json").read_bytes())
    settings = SessionSettings(intra_op_threads=1, share_weights="mapped" in kind)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
    started, worked = time.perf_counter(), time.process_time()
    opener = sealed.opener(folder)
    session = Session(folder, contract, settings, opener)
    session.replay_golden(opener.stream(GOLDEN_FILE) if opener else folder / GOLDEN_FILE)
    ready_s, cpu_s = time.perf_counter() - started, time.process_time() - worked
    peak, lasting = (resident_bytes(field) - before for field in ("VmHWM", "VmRSS"))
    figures = {"ready_s": ready_s, "cpu_s": cpu_s, "peak_mb": peak / MB, "after_mb": lasting / MB}
    print(json.dumps(figures))


def loaded(folder: Path, kind: str) -> dict[str, float]:
    """The figures of a fresh process."""
    command = [sys.executable, __file__, "--load", str(folder), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def seal(source: Path, target: Path) -> Path:
    """The extracted archive with its model sealed, as `marship package --seal` has it."""
    from marship.contract import CONTRACT_FILE, GOLDEN_FILE, Contract
    from marship.packaging.sealing import PlainModel, write_model
    from marship.serving.model import keysource, sealed

    (target / "MAR-INF").mkdir(parents=True)
    manifest = {"model": {"modelName": source.name, "modelVersion": "1.0"}}
    (target / sealed.MANIFEST_FILE).write_text(json.dumps(manifest))
    key = keysource.read(os.environ[keysource.SOURCE_VARIABLE])
    sealer = sealed.Sealer(key, source.name, "1.0")
    contract = Contract.from_json((source / CONTRACT_FILE).read_bytes())
    file, *outside = contract.files
    plain = PlainModel(source / file, {name: source / name for name in outside})
    contract = write_model(sealer, plain, contract, target)
    (target / CONTRACT_FILE).write_text(contract.to_json())
    with (source / GOLDEN_FILE).open("rb") as golden:
        sealer.write(target, GOLDEN_FILE, golden)
    return target


def measure(scratch: Path) -> tuple[float, dict[str, list[dict[str, float]]]]:
    """The model's size in MB, and the figures of each round by kind."""
    source = scratch / MODEL
    prepare(MODEL, source)
    folders = {PLAIN: source, SEALED: seal(source, scratch / "sealed")}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for turn in range(ROUNDS):
        mapped = extracted(source, scratch / "mapped")
        for kind in (PLAIN, SEALED) if turn % 2 else (SEALED, PLAIN):
            found[kind].append(loaded(folders[kind], kind))
        for kind in KINDS[2:]:
            found[kind].append(loaded(mapped, kind))
        shutil.rmtree(mapped)
    return (source / "model.onnx").stat().st_size / MB, found


def to_plain(found: dict[str, list[dict[str, float]]], kind: str, key: str) -> float:
    """The median of a figure's ratios to the plain model's in the same rounds."""
    pairs = zip(found[kind], found[PLAIN], strict=True)
    return statistics.median(one[key] / plain[key] for one, plain in pairs)


def excess(size_mb: float, found: dict[str, list[dict[str, float]]]) -> str | None:
    """What to say of a sealed model that is beyond its limits; None where it is within both."""
    load = to_plain(found, SEALED, "ready_s")
    peak = statistics.median(one["peak_mb"] for one in found[SEALED]) / size_mb
    if load <= LONGEST and peak <= LARGEST:
        return None
    return (
        f"error: a sealed model must load in {LONGEST:g} times the plain one's time and take "
        f"{LARGEST:g} times its size at most, got {load:.2f} and {peak:.2f}."
    )


def show(size_mb: float, found: dict[str, list[dict[str, float]]]) -> None:
    """Medians as a Markdown table; ratios of times are of the rounds' pairs."""
    print(f"\n{MODEL}, {size_mb:.0f} MB\n")
    print("| | ready | to plain | CPU time | to plain | peak | to the model | after |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, rounds in found.items():
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        wall, cpu = (to_plain(found, kind, key) for key in ("ready_s", "cpu_s"))
        print(
            f"| {kind} | {middle['ready_s']:.2f} s | {wall:.2f} | {middle['cpu_s']:.2f} s "
            f"| {cpu:.2f} | {middle['peak_mb']:.0f} MB | {middle['peak_mb'] / size_mb:.2f} "
            f"| {middle['after_mb']:.0f} MB |"
        )


def main() -> int:
    """Measure, print, judge."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        key = Path(scratch) / "seal.key"
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32))
        os.environ["MARSHIP_SEAL_KEY"] = f"file:{key}"
        size_mb, found = measure(Path(scratch))
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, ONNX Runtime {onnxruntime.__version__}, one thread, {ROUNDS} rounds")
    show(size_mb, found)
    print(f"\n{json.dumps(found)}")
    if said := excess(size_mb, found):
        print(said, file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(Path(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main())
