"""Loads an extracted archive in a process of its own, as a worker would, without a server.

With the archive's own handler and copy of marship: so its code is run.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from marship.errors import LoadError

SCRIPT = Path(__file__).with_name("loading_process.py")
_LOG_BYTES = 4096
_STEPS = 2  # loading, and the rest


def run(folder: Path, task: dict[str, Any], seen: dict[str, str], limit_s: float) -> dict[str, Any]:
    """The process's result, after it and the processes of its group have exited.

    Args:
        folder: The extracted archive.
        task: See `loading_process.main`.
        seen: The process's environment.
        limit_s: How long it may take.

    Raises:
        LoadError: It did not finish, or ended without a result.
    """
    words = [sys.executable, "-P", str(SCRIPT), str(folder.absolute())]
    with (
        tempfile.TemporaryFile() as task_file,
        tempfile.TemporaryFile() as log,
        os.fdopen(os.memfd_create("result"), "w+b") as result,  # not on a disk: it may be sealed
    ):
        task_file.write(json.dumps(task).encode())
        task_file.seek(0)
        code = _code(
            words, limit_s, stdin=task_file, stdout=result, stderr=log, cwd=folder, env=seen
        )
        if code is None:
            action = " and respond" if _responds(task) else ""
            raise LoadError(
                f"{task['name']} must load{action} within its startupTimeout of {limit_s:g} s, but "
                "did not finish. Package it with a longer --startup-timeout-s."
            )
        result.seek(0)
        steps = _steps(result)
        found = {name: value for step in steps for name, value in step.items()}
        if code == 0 and ("code" in found or len(steps) == _STEPS):
            for response in (found.get("response"), *found.get("recorded", ())):
                if isinstance(response, dict) and response.get("status") in range(500, 600):
                    response["log"] = _end_of(log)
            return found
        goal = "respond to the request" if steps and _responds(task) else "load"
        raise LoadError(f"{task['name']} must {goal}, but its process ended: {_reason(code, log)}.")


def _responds(task: dict[str, Any]) -> bool:
    return "body" in task or "record" in task


def _steps(result: IO[bytes]) -> list[dict[str, Any]]:
    """What the process wrote; none where a handler overwrote it."""
    try:
        return [dict(json.loads(line)) for line in result]
    except (ValueError, TypeError):
        return []


def _code(words: list[str], limit_s: float, **streams: Any) -> int | None:  # noqa: ANN401  Popen's
    """A process's exit code; None on timeout."""
    process = subprocess.Popen(words, start_new_session=True, **streams)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):  # a handler may have started others, which keep running
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(code: int, log: IO[bytes]) -> str:
    if code < 0:
        known = -code in set(signal.Signals)
        return f"a crash ({signal.Signals(-code).name if known else f'signal {-code}'})"
    lines = _end_of(log).splitlines()
    return lines[-1].rstrip(".") if code and lines else f"exit code {code}"


def _end_of(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
    return log.read().decode(errors="replace").strip()
