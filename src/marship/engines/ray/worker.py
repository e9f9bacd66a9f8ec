"""A worker process in a replica: started, watched, and ended with it."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from marship.engines.ray import problems
from marship.errors import LoadError, MarshipError

SCRIPT = Path(__file__).with_name("worker_process.py")
_METRIC = re.compile(
    r"\[METRICS\](?P<name>\w+)\.\w+:(?P<value>[\d.eE+-]+)\|#(?P<labels>[^|]*)\|#type:(?P<kind>\w+)"
)
_KEPT_OUT = ("PYTHONPATH", "PYTHONHOME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "TS_CONFIG_FILE")
"""An archive's own marship comes first in a worker, and it runs a model's code: it needs no key of
the cluster."""

_LOG_BYTES = 4096
Count = tuple[str, str]
"""A metric's name and its error code, empty without one."""


@dataclass
class Counts:
    """What a replica's workers counted, those that ended among them."""

    totals: Counter[Count] = field(default_factory=Counter)
    gauges: dict[Count, float] = field(default_factory=dict)

    def add(self, line: str) -> tuple[Count, float] | None:
        """Take a line of a worker's; the counter that it increments, and by how much."""
        found = _METRIC.match(line)
        if found is None:
            return None
        labels = dict(one.partition(":")[::2] for one in found["labels"].split(","))
        key, value = (found["name"], labels.get("code", "")), float(found["value"])
        if found["kind"] == "GAUGE":
            self.gauges[key] = value
            return None
        self.totals[key] += value  # type: ignore[assignment]
        return key, value


class ReplicaWorker:
    """One worker process.

    Args:
        task: See `worker_process`; `sink` is set here.
        seen: Its environment variables.
        log: A file for what it prints.
        on_line: Called on a thread with each line that it reports once it is ready.
        on_end: Called on a thread when it has ended after it was ready.
    """

    def __init__(
        self,
        task: dict[str, Any],
        seen: dict[str, str],
        log: Path,
        on_line: Callable[[str], object],
        on_end: Callable[[], None],
    ) -> None:
        self._name, self._log, self._on_line, self._on_end = task["name"], log, on_line, on_end
        self._facts: dict[str, Any] = {}
        self._told = threading.Event()
        self._is_ending = False
        reader, sink = os.pipe()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=task["folder"],
                env=seen,
                pass_fds=[sink],
                start_new_session=True,
            )
        os.close(sink)
        assert self._process.stdin is not None  # noqa: S101  it was piped
        self._process.stdin.write(json.dumps({**task, "sink": sink}).encode() + b"\n")
        self._process.stdin.flush()
        threading.Thread(target=self._read, args=(os.fdopen(reader),), daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """What it tells when it serves.

        Raises:
            MarshipError: It could not load, or not in time.
        """
        is_told = self._told.wait(timeout_s)
        if self._facts.get("ready"):
            return self._facts
        self.end()
        if "code" in self._facts:
            raise problems.of_code(self._facts["code"], self._facts["message"])
        raise self._failure(None if is_told else timeout_s)

    def _failure(self, limit_s: float | None) -> MarshipError:
        if limit_s is not None:
            return LoadError(
                f"{self._name} must load within its startupTimeout of {limit_s:g} s, but did not "
                "finish. Package it with a longer --startup-timeout-s."
            )
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
            text = log.read().decode(errors="replace")
        code = self._process.wait()
        cause = f"a crash (signal {-code})." if code < 0 else problems.last_line(text)
        if code >= 0 and not text.strip():
            cause = f"its end by itself (exit code {code}), without a word."
        return LoadError(f"a worker of {self._name} must load, got: {cause} Its log: {self._log}")

    def _read(self, told: IO[str]) -> None:
        with told:
            for line in told:
                if self._told.is_set():
                    self._on_line(line)
                    continue
                with suppress(ValueError):
                    self._facts = json.loads(line)
                self._told.set()
        self._process.wait()
        was_ready = bool(self._facts.get("ready"))
        self._told.set()
        if was_ready and not self._is_ending:
            self._on_end()

    def end(self) -> None:
        """Kill it with what it started."""
        self._is_ending = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()


def environment(settings: dict[str, str]) -> dict[str, str]:
    """A worker's environment: this process's, without what a model's code must not see."""
    inherited = {name: value for name, value in os.environ.items() if name not in _KEPT_OUT}
    return inherited | settings
