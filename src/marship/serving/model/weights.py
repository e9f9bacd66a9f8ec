"""Shares weights between all workers of a model: a prepacked copy, which they memory-map.

ONNX Runtime prepacks weights for the CPU when it loads a model, in private memory of each worker.
Here the first worker writes a prepacked copy beside the extracted archive; ONNX Runtime maps that
file, so all workers share the same pages. The copy is valid for one CPU type and one ONNX Runtime
only, and never leaves the host that created it.

The file holds each weight unpacked and prepacked: it takes up to twice the model's size on disk,
and half of it is never read.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import orjson

from marship.contract import Contract, digest_files
from marship.errors import LoadError
from marship.serving.model import custom_ops

logger = logging.getLogger(__name__)

COPY_FOLDER = ".marship-weights"
DRAFT_FOLDER = ".marship-weights.draft"
LOCK_FILE = ".marship-weights.lock"
MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.bin"
COPY_FILES = (MODEL_FILE, WEIGHTS_FILE)
RECORD_FILE = "record.json"
FORMAT = 1
SMALLEST_BYTES = 4 << 20
"""A smaller model would save a few megabytes in each worker, and costs the first one 0.2 s."""
MAKING_LIMIT_S = 600

CPU_INFO = Path("/proc/cpuinfo")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CPU_KEYS = ("vendor", "cpu family", "model", "cpu implementer", "cpu variant", "cpu part")
_CPU_FLAGS = ("flags", "features")


def check_digest(folder: Path, contract: Contract) -> None:
    """Verify the digest of the model's files.

    Raises:
        LoadError: A file is missing or modified.
    """
    try:
        found = digest_files(*(folder / name for name in contract.files))
    except OSError as error:
        raise LoadError(
            f"{', '.join(contract.files)} must be in the archive, got: {error}. Package again."
        ) from error
    if found != contract.digest:
        raise LoadError(
            f"{contract.files[0]} must have the SHA-256 {contract.digest[:12]}... that "
            f"the contract names, got {found[:12]}.... It was altered: package again."
        )


def worth_sharing(folder: Path, contract: Contract) -> bool:
    """Whether the model is large enough; a missing file is reported by `check_digest`."""
    files = [folder / name for name in contract.files]
    return all(f.is_file() for f in files) and (
        sum(f.stat().st_size for f in files) >= SMALLEST_BYTES
    )


def open_shared(
    folder: Path,
    contract: Contract,
    options: ort.SessionOptions,
    libraries: Sequence[Path] = (),
) -> ort.InferenceSession | None:
    """Open the model's prepacked copy, created first if there is no valid one.

    On a full disk, a read-only folder or a model that ONNX Runtime cannot copy, one warning is
    logged, and the caller loads the model itself, which costs memory.

    Args:
        folder: The extracted archive, which the workers of a model share.
        contract: The model's contract.
        options: Threads and the like. Options that change the graph belong into `_save`, and
            into the key.
        libraries: Files with the model's custom operators.

    Returns:
        A session on the CPU; None if there is no copy.

    Raises:
        LoadError: A file of the model is missing or altered.
    """
    # the copy's graph is optimized already: doing it again takes time, and could change it
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with (folder / LOCK_FILE).open("ab") as lock:
            _make_current(folder, contract, lock.fileno(), libraries)
            return _open(folder / COPY_FOLDER, options)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "workers of %s hold their own weights, since no copy to share could be made: %s. "
            "Mend that, or say share_weights: false under marship: in model-config.yaml.",
            contract.files[0],
            _reason(error),
        )
        return None


def _make_current(folder: Path, contract: Contract, lock: int, libraries: Sequence[Path]) -> None:
    """Make sure that there is a valid copy, under a lock that ends with the file's descriptor."""
    model = " ".join((contract.digest, *(library.sha256 for library in contract.libraries)))
    copy, key = folder / COPY_FOLDER, _key(model)
    fcntl.flock(lock, fcntl.LOCK_SH)
    if _is_untouched(copy, key):
        return
    fcntl.flock(lock, fcntl.LOCK_EX)
    if _is_untouched(copy, key):  # created by another worker while this one waited
        return
    if _is_intact(copy, key):
        _write_record(copy, key)
    else:
        check_digest(folder, contract)
        _make(folder / contract.files[0], model, lock, libraries)


def _is_untouched(copy: Path, key: dict[str, str]) -> bool:
    """Whether the copy is for this model and host, and unchanged since its digest was taken.

    Inode and times are the kernel's, and no program can set a file's ctime; they are valid for
    this boot, in which no writes can have been lost.
    """
    record = _read_record(copy)
    try:
        return record.get("key") == key and record.get("stamp") == _stamp(copy)
    except FileNotFoundError:
        return False


def _is_intact(copy: Path, key: dict[str, str]) -> bool:
    """Whether the copy is for this model and host, and its digests match."""
    record = _read_record(copy)
    try:
        return record.get("key") == key and record.get("sha256") == _digests(copy)
    except FileNotFoundError:
        return False


def _read_record(copy: Path) -> dict[str, Any]:
    try:
        record = orjson.loads((copy / RECORD_FILE).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(copy: Path, key: dict[str, str]) -> None:
    # the stamp first: a file that changes while it is hashed then no longer matches it
    record = {"key": key, "stamp": _stamp(copy), "sha256": _digests(copy)}
    draft = copy / f"{RECORD_FILE}.draft"
    draft.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
    draft.replace(copy / RECORD_FILE)


def _stamp(copy: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"boot": BOOT_ID.read_text().strip()}
    for name in COPY_FILES:
        stat = (copy / name).stat()
        found[name] = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return found


def _digests(copy: Path) -> dict[str, str]:
    return {name: digest_files(copy / name) for name in COPY_FILES}


def _key(model: str) -> dict[str, str]:
    """What a copy depends on: the model's digests, ONNX Runtime's build, and the CPU's features.

    Not on the number of threads: the bytes are the same for any.
    """
    return {
        "format": str(FORMAT),
        "model": model,
        "onnxruntime": f"{ort.__version__} {ort.get_build_info()}",
        "machine": platform.machine(),
        "processor": _processor(CPU_INFO.read_text()),
    }


def _processor(text: str) -> str:
    """A digest of the first CPU's type and features in /proc/cpuinfo."""
    kept = []
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        name = name.strip().lower()
        if name in _CPU_FLAGS:
            kept.append(" ".join(sorted(value.split())))
        elif name.startswith(_CPU_KEYS):
            kept.append(f"{name}={value.strip()}")
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _make(source: Path, model: str, lock: int, libraries: Sequence[Path]) -> None:
    """Create the copy in a separate process; the caller holds the lock.

    Its memory is released with it, and if ONNX Runtime crashes on a model, the worker does not. It
    inherits the lock and finishes even if this worker is killed meanwhile, so that the next one
    finds the copy.

    Raises:
        subprocess.SubprocessError: ONNX Runtime failed, or the disk is full.
        OSError: The process cannot be started.
    """
    try:
        subprocess.run(
            [sys.executable, "-P", "-m", __name__, str(source), model, *map(str, libraries)],
            env={**os.environ, "PYTHONPATH": _python_path()},
            pass_fds=(lock,),
            capture_output=True,
            check=True,
            timeout=MAKING_LIMIT_S,
        )
    finally:
        shutil.rmtree(source.with_name(DRAFT_FOLDER), ignore_errors=True)


def _python_path() -> str:
    """PYTHONPATH with this copy of marship first."""
    before = os.environ.get("PYTHONPATH")
    own = str(Path(__file__).parents[3])
    return f"{own}{os.pathsep}{before}" if before else own


def _reason(error: Exception) -> str:
    """The last line of the process's output, if the process failed."""
    said = getattr(error, "stderr", None) or b""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else str(error)


def _open(copy: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(str(copy / MODEL_FILE), options, providers=["CPUExecutionProvider"])


def _save(source: Path, draft: Path, libraries: Sequence[Path]) -> None:
    """Let ONNX Runtime write the optimized model with its prepacked weights, and load it."""
    options = ort.SessionOptions()
    custom_ops.register(options, libraries)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # the warning that the file is for this host only
    options.optimized_model_filepath = str(draft / MODEL_FILE)
    # onnxruntime_session_options_config_keys.h
    for name, value in {
        "optimized_model_external_initializers_file_name": WEIGHTS_FILE,
        "optimized_model_external_initializers_min_size_in_bytes": "1024",
        "save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(f"session.{name}", value)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    (draft / WEIGHTS_FILE).touch()  # not written if no weight is large enough
    again = ort.SessionOptions()
    custom_ops.register(again, libraries)
    again.intra_op_num_threads = 1
    again.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    _open(draft, again)


def _write_copy(source: Path, model: str, *libraries: str) -> None:
    """Write the copy to a draft folder, its record last, and rename it."""
    draft, copy = source.with_name(DRAFT_FOLDER), source.with_name(COPY_FOLDER)
    shutil.rmtree(draft, ignore_errors=True)  # left by a killed process
    draft.mkdir()
    _save(source, draft, [*map(Path, libraries)])
    _write_record(draft, _key(model))
    if copy.exists():
        shutil.rmtree(copy)
    draft.replace(copy)


if __name__ == "__main__":
    _write_copy(Path(sys.argv[1]), *sys.argv[2:])
