"""What packing proves of an ONNX file, by a process with a time limit.

A graph may loop for ever or ask for more memory than there is, when it is run and also when ONNX
Runtime folds its constants as it loads. Only a process of its own can be stopped in the middle of
either; that it may crash comes along.
"""

import json
import os
import resource
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

_LOG_BYTES = 4096
_START = "import sys; from marship.packaging import onnx_proof; onnx_proof.main(*sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class OnnxProof:
    """What an ONNX file takes and gives, and what was proven of it.

    Attributes:
        contract: With the batch axis where rows are independent.
        cases: Golden cases, as the file itself computes them.
        summary: The proof of independent rows in one line; None where it does not apply.
        rows: The same as evidence files hold it.
    """

    contract: Contract
    cases: list[GoldenCase]
    summary: str | None
    rows: dict[str, Any] | str


def describe(path: Path, *, golden: str, proof_seconds: float, limit_s: float) -> OnnxProof:
    """Read an ONNX file, prove whether its rows are independent, and compute its golden cases.

    Args:
        path: The file.
        golden: Which golden cases, as `PackageSettings.golden`.
        proof_seconds: What the proof of independent rows may cost.
        limit_s: How long reading and running it may take together.

    Raises:
        UsageError: There is no such file.
        ModelError: It cannot be read or run, or not within the limit.
    """
    # -P: a folder of a stranger's where this is called holds no module that counts
    words = [sys.executable, "-P", "-c", _START, str(path), golden, str(proof_seconds)]
    with tempfile.TemporaryFile() as log:
        try:  # through a pipe: golden cases of a model to be sealed lie on no disk in the plain
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                timeout=limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"{path.name} must be loaded and run on a few inputs within {limit_s:g} s, got no "
                "end of it. Mend a loop that does not end, or allow more with --limit-s."
            ) from error
        if done.returncode != 0:
            raise _crashed(path, done.returncode, log)
    head, _, cases = done.stdout.partition(b"\n")
    told = json.loads(head)
    if "code" in told:
        raise _told(told["code"], told["message"])
    contract = Contract.from_json(told["contract"])
    return OnnxProof(contract, read_golden(BytesIO(cases)), told["summary"], told["rows"])


def main(model: str, golden: str, proof_seconds: str) -> None:
    """The process: what it found, or our own error, goes to its standard output."""
    with os.fdopen(os.dup(1), "wb") as target:
        os.dup2(2, 1)  # whatever a library prints is no part of it
        _limit_memory()
        cases = BytesIO()
        try:
            proof = _prove(Path(model), golden, float(proof_seconds))
            write_golden(cases, proof.cases)
            told = {
                "contract": proof.contract.to_json(),
                "summary": proof.summary,
                "rows": proof.rows,
            }
        except MarshipError as error:
            told = {"code": error.code, "message": str(error)}
        target.write(json.dumps(told).encode() + b"\n" + cases.getvalue())


def _prove(path: Path, golden: str, proof_seconds: float) -> OnnxProof:
    from marship.proof import graph, parity, sizes

    contract = graph.contract_of(path)
    graph.refuse_random(path)
    run = parity.runner(path)
    contract = sizes.with_least_sizes(contract, run)
    contract, proof = parity.with_batch_axis(contract, run, seconds=proof_seconds)
    cases = parity.golden_from(run, contract, None, golden)
    contract = parity.with_scale(contract, cases)
    # last, since proofs and golden cases go up to a bound: each worker would replay the longest
    lengths = graph.table_lengths(path, sizes.LONGEST_TABLE)
    contract = sizes.with_largest_sizes(contract, run, lengths)
    if proof is None:
        return OnnxProof(contract, cases, None, "not applicable")
    return OnnxProof(contract, cases, str(proof), proof.evidence())


def _limit_memory() -> None:
    """Refuse more than the machine has, and be the first to go where memory runs out."""
    most_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > most_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # not on every system
        Path("/proc/self/oom_score_adj").write_text("1000")


def _told(code: str, message: str) -> MarshipError:
    """The error that the process met."""
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
