"""Proves properties of an ONNX file, in a process with a time limit.

A graph may loop forever or allocate more memory than there is, when it runs and also when ONNX
Runtime folds constants while loading. Only a separate process can be killed in either case, and
survives a crash.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from marship import errors
from marship.contract import Arrays, Contract, GoldenCase, TensorSpec, read_golden, write_golden
from marship.contract.tolerance import agree, largest_difference
from marship.errors import LoadError, MarshipError, ModelError

if TYPE_CHECKING:  # onnx takes a while to import
    from onnx import ModelProto

    from marship.proof.parity import OnnxRun

_LOG_BYTES = 4096
_CAUSES: dict[int, str] = {
    signal.SIGFPE: "It divides whole numbers by zero or otherwise without a result. Give it values "
    "that it takes: --example inputs.npz."
}
"""What ends a process by a signal, where that is not too little memory."""
_LOADED = b"loaded"
_LOAD = """
import sys
from pathlib import Path
import onnxruntime
from marship.errors import MarshipError
from marship.serving.model import custom_ops
try:
    custom_ops.register(onnxruntime.SessionOptions(), [Path(sys.argv[1])])
except MarshipError:
    pass  # a reason that the proof's own process gives
print("loaded", end="", flush=True)
"""
"""Loads a library, and says that it got that far."""
_START = "import sys; from marship.proof import onnx_proof; onnx_proof.main(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What decides about the proof of an ONNX file.

    Attributes:
        example: Inputs that the file takes; see `marship.proof.examples`.
        golden: The kind of golden cases.
        missing_values: Which inputs take missing values; see `marship.proof.missing`.
        proof_seconds: Time budget of the proof of independent rows.
        limit_s: Time limit of all, in seconds.
        libraries: Files of custom operators.
        tries_empty: Whether axes are tried at size 0; not once that has ended the process.
    """

    example: Path | None = None
    golden: str = "synthetic"
    missing_values: str = "auto"
    proof_seconds: float = 60.0
    limit_s: int = 600
    libraries: tuple[str, ...] = ()
    tries_empty: bool = True


@dataclass(frozen=True, slots=True)
class OnnxProof:
    """The contract of an ONNX file, and what was proven about it.

    Attributes:
        model: The file to serve: the one that was given, or a rewritten copy in `draft`.
        contract: With a batch axis if rows are independent.
        cases: Golden cases, with the outputs of the file itself.
        summary: The proof of independent rows in one line; None if it does not apply.
        rows: The proof as stored in evidence files.
        remarks: What else the user should know, a line each.
    """

    model: Path
    contract: Contract
    cases: list[GoldenCase]
    summary: str | None
    rows: dict[str, Any] | str
    remarks: Sequence[str] = ()


def describe(path: Path, draft: Path, wishes: Wishes) -> OnnxProof:
    """Read an ONNX file, prove whether its rows are independent, and compute its golden cases.

    Args:
        path: The file.
        draft: A folder for a copy, if the file must be rewritten to be served.
        wishes: Example inputs, the kind of golden cases, what values may be missing, limits.

    Raises:
        UsageError: A file does not exist.
        DataError: The example does not hold inputs of the model.
        ModelError: The file cannot be read or run within the limit.
    """
    # -P: import no modules from the current folder, which may be untrusted
    asked = json.dumps(asdict(wishes), default=str)
    words = [sys.executable, "-P", "-c", _START, str(path), str(draft), asked]
    with tempfile.TemporaryFile() as log:
        try:  # through a pipe: golden cases of a model to be sealed are never on disk unencrypted
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                timeout=wishes.limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"{path.name} must be loaded and run on a few inputs within {wishes.limit_s:g} "
                "s, got no end of it. Mend a loop that does not end, or allow more with --limit-s."
            ) from error
        if done.returncode < 0 and wishes.tries_empty:
            return describe(path, draft, replace(wishes, tries_empty=False))
        if done.returncode != 0 or not done.stdout:
            for library in wishes.libraries:
                _check_loads(Path(library), wishes.limit_s)
            raise _crashed(path, done.returncode, log)
    head, _, cases = done.stdout.partition(b"\n")
    result = json.loads(head)
    if "code" in result:
        raise _as_error(result["code"], result["message"])
    contract = Contract.from_json(result["contract"])
    model = Path(result["model"])
    golden = read_golden(BytesIO(cases))
    return OnnxProof(model, contract, golden, **result["found"])


def main(model: str, draft: str, asked: str) -> None:
    """Entry point of the process: writes its result, or an error, to standard output."""
    with os.fdopen(os.dup(1), "wb") as target:
        os.dup2(2, 1)  # keeps prints of libraries out of the result
        _limit_memory()
        cases = BytesIO()
        try:
            proof = _prove(Path(model), Path(draft), Wishes(**json.loads(asked)))
            write_golden(cases, proof.cases)
            result = {
                "model": str(proof.model),
                "contract": proof.contract.to_json(),
                "found": {
                    "summary": proof.summary,
                    "rows": proof.rows,
                    "remarks": proof.remarks,
                },
            }
        except MarshipError as error:
            result = {"code": error.code, "message": str(error)}
        target.write(json.dumps(result).encode() + b"\n" + cases.getvalue())


def _prove(path: Path, draft: Path, wishes: Wishes) -> OnnxProof:
    from marship.proof import axes, examples, graph, parity, trials, words

    example = wishes.example and Path(wishes.example)
    libraries = [*map(Path, wishes.libraries)]
    path, labels, narrow = _rewritten(path, draft, example, libraries)
    stated = graph.contract_of(path, labels=labels, narrow=narrow)
    stated = words.worded(stated, path)
    graph.refuse_random(path)
    run = parity.runner(path, libraries=libraries)
    requests = examples.read(example, axes.apart(stated), run) if example else []
    try:
        return _proven(stated, run, requests, wishes)
    except ModelError:
        drawn = [] if example else trials.positive(axes.apart(stated), run)
        if not drawn:
            raise
        return _proven(stated, run, drawn, wishes)


def _proven(stated: Contract, run: "OnnxRun", requests: list[Arrays], wishes: Wishes) -> OnnxProof:
    """What is found out by running the file on these requests, or on drawn ones without any."""
    from marship.proof import axes, examples, graph, missing, parity, trials, words
    from marship.proof.cases import first_axis
    from marship.proof.empty import with_empty_axes

    path, example, sized = run.path, wishes.example, graph.facts(run.path).sized
    for has_rows in (True, False):
        first = requests[0] if requests else None
        contract = axes.resolved(stated, run, first, sized=sized, has_rows=has_rows)
        rows = examples.joined(requests, contract) if requests else None
        contract = trials.with_least_sizes(contract, run, rows)
        if wishes.tries_empty and not graph.recurs(path):
            contract = with_empty_axes(contract, run, rows)
        contract = trials.keeping(contract, requests)
        contract, gaps = missing.decided(contract, path, run, wishes.missing_values)
        if example is not None and wishes.missing_values != missing.ANY:
            examples.check_finite(requests, contract, Path(example))
        contract, proof = parity.with_batch_axis(contract, run, rows, seconds=wishes.proof_seconds)
        if contract.batch_axis or len(contract.inputs) == 1 or first_axis(stated) is None:
            break  # else no rows need to be kept together
    cases = parity.golden_from(run, contract, rows, wishes.golden)
    cases += missing.golden_from(run, contract)
    contract, threads = with_tolerance(contract, run, cases)
    _check_repeats(run, cases, contract)
    remarks = [line for line in (gaps, threads) if line is not None]
    # last: proofs and golden cases reach up to the bounds, and each worker replays golden cases
    lengths = graph.table_lengths(path, trials.LONGEST_TABLE)
    contract = trials.with_largest_sizes(contract, run, lengths, rows)
    contract = words.plain(trials.keeping(contract, requests))
    if proof is None:
        return OnnxProof(path, contract, cases, None, "not applicable", remarks)
    return OnnxProof(path, contract, cases, str(proof), proof.evidence(), remarks)


def _check_repeats(run: "OnnxRun", cases: list[GoldenCase], contract: Contract) -> None:
    """Check that calls leave nothing behind, as batch norm in training does in ONNX Runtime.

    Raises:
        ModelError: A golden case gives other outputs when it is run again.
    """
    for case in cases:
        got = run(case.inputs)
        if not agree(got, case.outputs, contract.tolerance):
            raise ModelError(
                "the model must give the same outputs twice, got "
                f"{largest_difference(got, case.outputs)[0]:.3g} between two calls with the same "
                "inputs. Export it for inference: with training_mode 0 of BatchNormalization, for "
                "example."
            )


def with_tolerance(
    contract: Contract, run: "OnnxRun", cases: list[GoldenCase]
) -> tuple[Contract, str | None]:
    """The contract with the tolerance of golden cases at any number of threads.

    Returns:
        The contract, and a remark where threads matter; None elsewhere.
    """
    from marship.proof import graph, margins, parity

    contract = parity.with_scale(contract, cases)
    if not graph.quantizes(run.path):
        return contract, None
    contract, gap = margins.with_threads(contract, run, cases)
    if not gap:
        return contract, None
    return contract, (
        f"outputs differ by up to {gap:.2g} with the number of threads, as the file quantizes "
        "activations: golden cases allow for that"
    )


def stated(path: Path) -> tuple[tuple[TensorSpec, ...], dict[str, int | None]]:
    """The inputs of a file, once it is rewritten, and its outputs; nothing is run.

    Returns:
        The inputs, and the size of each output's last axis by name; None where it is not stated.

    Raises:
        ModelError: It is no ONNX file, has no outputs, or an input has an unsupported type or no
            shape.
    """
    from marship.proof import graph, maps, repairs, widening

    model = graph.parsed(path)
    repairs.repair(model)
    maps.replaced(model)
    widening.widened(model)
    if not model.graph.output:  # as of a few bytes that happen to parse
        raise ModelError(f"{path} must be a valid ONNX model, got no outputs. Export it again.")
    sizes = {}
    for value in model.graph.output:
        axes = value.type.tensor_type.shape.dim
        sizes[value.name] = axes[-1].dim_value or None if axes else None
    return graph.inputs_of(model), sizes


def _rewritten(
    path: Path, draft: Path, example: Path | None, libraries: Sequence[Path]
) -> tuple[Path, dict[str, tuple[str, ...]], dict[str, str]]:
    """The file, or a copy that can be served where it cannot.

    Returns:
        The path, the names of classes by output, and types that were widened by tensor.
    """
    import onnx

    from marship.proof import divisions, examples, graph, maps, parity, repairs, widening

    model = graph.parsed(path)
    is_repaired = repairs.repair(model)
    labels = maps.replaced(model)
    narrow = widening.widened(model)
    guarded = divisions.guarded(model)
    shapeless = repairs.shapeless((*model.graph.input, *model.graph.output))
    is_linked = any(file.is_symlink() for file in graph.external_files(path).values())
    if not (is_linked or is_repaired or labels or narrow or guarded or shapeless):
        return path, labels, narrow
    requests = []
    if shapeless and example is not None:
        requests = examples.given(example, graph.typed(model))
        repairs.state_inputs(model, {name: array.ndim for name, array in requests[0].items()})
    inputs = graph.inputs_of(model)
    copy = _copied(model, path, draft)
    if repairs.shapeless(model.graph.output):
        contract = replace(graph.typed(model), inputs=inputs)
        repairs.state_outputs(model, parity.runner(copy, libraries=libraries), contract, requests)
        onnx.save(model, str(copy))
    return copy, labels, narrow


def _copied(model: "ModelProto", path: Path, draft: Path) -> Path:
    """The model in the draft's folder, with the external data of the file that it was."""
    import onnx

    from marship.proof import graph

    for location, file in graph.external_files(path).items():
        place = draft / location
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)  # ONNX's checker and ONNX Runtime take no links
    copy = draft / path.name
    onnx.save(model, str(copy))
    return copy


def _limit_memory() -> None:
    """Limit memory to that of the machine, and be the OOM killer's first choice."""
    most_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > most_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # not supported on every system
        Path("/proc/self/oom_score_adj").write_text("1000")


def _as_error(code: str, message: str) -> MarshipError:
    """The error that the process reported."""
    return next(kind for kind in errors.kinds() if kind.code == code)(message)


def _check_loads(library: Path, limit_s: float) -> None:
    """Load a library in a process of its own, to tell whether that is what ended the proof's.

    Raises:
        LoadError: The process ends.
    """
    words = [sys.executable, "-P", "-c", _LOAD, str(library)]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        timeout=limit_s, check=False,
    )  # fmt: skip
    if done.stdout.endswith(_LOADED):
        return
    code = done.returncode
    how = f"a crash ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    raise LoadError(
        f"{library.name} must be a library of custom operators that loads here, got: {how} while "
        "it was loaded. Copy it again if it is damaged, or build it against this ONNX Runtime."
    )


def _crashed(path: Path, code: int, log: IO[bytes]) -> ModelError:
    if code < 0:
        reason = f"a crash ({signal.Signals(-code).name})"
    else:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
        lines = log.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {code}"
    cause = _CAUSES.get(-code, "It may need more memory than there is.")
    return ModelError(f"{path.name} must be loaded and run on a few inputs, got: {reason}. {cause}")
