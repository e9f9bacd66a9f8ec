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
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from marship import errors
from marship.contract import Contract, GoldenCase, read_golden, write_golden
from marship.errors import MarshipError, ModelError
from marship.packaging.settings import PackageSettings

_LOG_BYTES = 4096
_START = "import sys; from marship.packaging import onnx_proof; onnx_proof.main(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class OnnxProof:
    """The contract of an ONNX file, and what was proven about it.

    Attributes:
        model: The file to serve: the one that was given, or a rewritten copy in `draft`.
        contract: With a batch axis if rows are independent.
        cases: Golden cases, with the outputs of the file itself.
        summary: The proof of independent rows in one line; None if it does not apply.
        rows: The proof as stored in evidence files.
        remark: What else the user should know, in one line.
    """

    model: Path
    contract: Contract
    cases: list[GoldenCase]
    summary: str | None
    rows: dict[str, Any] | str
    remark: str | None = None


def describe(path: Path, draft: Path, settings: PackageSettings) -> OnnxProof:
    """Read an ONNX file, prove whether its rows are independent, and compute its golden cases.

    Args:
        path: The file.
        draft: A folder for a copy, if the file must be rewritten to be served.
        settings: Example inputs, the kind of golden cases, what values may be missing, limits.

    Raises:
        UsageError: A file does not exist.
        DataError: The example does not hold inputs of the model.
        ModelError: The file cannot be read or run within the limit.
    """
    # -P: import no modules from the current folder, which may be untrusted
    asked = json.dumps(wishes(settings))
    words = [sys.executable, "-P", "-c", _START, str(path), str(draft), asked]
    with tempfile.TemporaryFile() as log:
        try:  # through a pipe: golden cases of a model to be sealed are never on disk unencrypted
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                timeout=settings.limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"{path.name} must be loaded and run on a few inputs within {settings.limit_s:g} "
                "s, got no end of it. Mend a loop that does not end, or allow more with --limit-s."
            ) from error
        if done.returncode != 0:
            raise _crashed(path, done.returncode, log)
    head, _, cases = done.stdout.partition(b"\n")
    result = json.loads(head)
    if "code" in result:
        raise _as_error(result["code"], result["message"])
    contract = Contract.from_json(result["contract"])
    model = Path(result["model"])
    golden = read_golden(BytesIO(cases))
    return OnnxProof(model, contract, golden, **result["found"])


def wishes(settings: PackageSettings) -> dict[str, Any]:
    """The settings that decide what is proven, by name, as JSON values."""
    return {
        "golden": settings.golden,
        "example": settings.example and str(settings.example),
        "missing_values": settings.missing_values,
        "proof_seconds": settings.proof_seconds,
    }


def main(model: str, draft: str, asked: str) -> None:
    """Entry point of the process: writes its result, or an error, to standard output."""
    with os.fdopen(os.dup(1), "wb") as target:
        os.dup2(2, 1)  # keeps prints of libraries out of the result
        _limit_memory()
        cases = BytesIO()
        try:
            proof = _prove(Path(model), Path(draft), **json.loads(asked))
            write_golden(cases, proof.cases)
            result = {
                "model": str(proof.model),
                "contract": proof.contract.to_json(),
                "found": {
                    "summary": proof.summary,
                    "rows": proof.rows,
                    "remark": proof.remark,
                },
            }
        except MarshipError as error:
            result = {"code": error.code, "message": str(error)}
        target.write(json.dumps(result).encode() + b"\n" + cases.getvalue())


def _prove(  # noqa: PLR0913  as `wishes`
    path: Path,
    draft: Path,
    *,
    example: str | None,
    golden: str,
    missing_values: str,
    proof_seconds: float,
) -> OnnxProof:
    from marship.packaging import examples
    from marship.proof import axes, graph, missing, parity, trials
    from marship.proof.cases import first_axis

    path, labels = _without_maps(path, draft)
    stated = graph.contract_of(path, labels=labels)
    graph.refuse_random(path)
    run = parity.runner(path)
    sized = graph.facts(path).sized
    requests = examples.read(Path(example), axes.apart(stated), run) if example else []
    for has_rows in (True, False):
        first = requests[0] if requests else None
        contract = axes.resolved(stated, run, first, sized=sized, has_rows=has_rows)
        rows = examples.joined(requests, contract) if requests else None
        contract = trials.with_least_sizes(contract, run, rows)
        contract = trials.keeping(contract, requests)
        contract = missing.decided(contract, path, run, missing_values)
        contract, proof = parity.with_batch_axis(contract, run, rows, seconds=proof_seconds)
        if contract.batch_axis or len(contract.inputs) == 1 or first_axis(stated) is None:
            break  # else no rows need to be kept together
    cases = parity.golden_from(run, contract, rows, golden)
    cases += missing.golden_from(run, contract)
    contract = parity.with_scale(contract, cases)
    contract, remark = _with_threads(contract, path, cases)
    # last: proofs and golden cases reach up to the bounds, and each worker replays golden cases
    lengths = graph.table_lengths(path, trials.LONGEST_TABLE)
    contract = trials.with_largest_sizes(contract, run, lengths, rows)
    contract = trials.keeping(contract, requests)
    if proof is None:
        return OnnxProof(path, contract, cases, None, "not applicable", remark)
    return OnnxProof(path, contract, cases, str(proof), proof.evidence(), remark)


def _with_threads(
    contract: Contract, path: Path, cases: list[GoldenCase]
) -> tuple[Contract, str | None]:
    """The contract for any number of threads, and a remark where they matter."""
    from marship.proof import graph, margins

    if not graph.quantizes(path):
        return contract, None
    contract, gap = margins.with_threads(contract, path, cases)
    if not gap:
        return contract, None
    return contract, (
        f"outputs differ by up to {gap:.2g} with the number of threads, as the file quantizes "
        "activations: golden cases allow for that"
    )


def _without_maps(path: Path, draft: Path) -> tuple[Path, dict[str, tuple[str, ...]]]:
    """The file, or a copy that gives tensors in place of maps, and the names of their classes."""
    import onnx

    from marship.proof import graph, maps

    model = graph.read(path)
    labels = maps.replaced(model)
    if not labels:
        return path, labels
    for location, file in graph.external_files(path).items():
        place = draft / location
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)  # ONNX's checker takes no links
    copy = draft / path.name
    onnx.save(model, str(copy))
    return copy, labels


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


def _crashed(path: Path, code: int, log: IO[bytes]) -> ModelError:
    if code < 0:
        reason = f"a crash ({signal.Signals(-code).name})"
    else:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
        lines = log.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {code}"
    return ModelError(
        f"{path.name} must be loaded and run on a few inputs, got: {reason}. It may need more "
        "memory than there is."
    )
