"""Python programs as processes, forked from one that has imported the large libraries.

PyTorch and what exports its models take longer to import than the small models of tests take to
train. Nothing of marship is imported before the fork. Where the start itself is the test's subject,
and in tests/server/test_readme.py, programs start as a person starts them.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from waiting import until

LIBRARIES = (
    *("accelerate", "matplotlib.pyplot", "onnx", "onnxruntime", "rich.progress", "typer"),
    *("sklearn.metrics", "torch._dynamo", "torch.onnx", "torchmetrics"),
    "onnxscript.function_libs.torch_lib.ops",
    "pytest",  # multiprocessing imports the main program in each process
)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(LIBRARIES))


def _main(words: list[str], folder: str, environment: dict[str, str], out: str, err: str) -> None:
    """What `python WORDS` does, in this process: a file with flags, or `-m` and a module."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, out), (2, err)):
        descriptor = os.open(name, os.O_WRONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  open until the process ends
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


class Forked:
    """A program that runs on one thread; use it as a context, which ends it.

    Attributes:
        words: What would stand behind `python`.
    """

    def __init__(self, *words: str, folder: Path = Path(), **environment: str) -> None:
        self.words = list(words)
        self._out, self._err = (tempfile.NamedTemporaryFile("r") for _ in range(2))  # noqa: SIM115
        known = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        given = (self.words, str(folder.resolve()), known, self._out.name, self._err.name)
        self._process = _CONTEXT.Process(target=_main, args=given)
        self._process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._out.close()
        self._err.close()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        """Until it has printed this."""

        def is_printed() -> bool:
            printed = text in Path(self._out.name).read_text()
            assert printed or self._process.exitcode is None, self._err.read()
            return printed

        until(is_printed, timeout_s, f"print of {text!r}")

    def wait(self, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Until it ends; what it printed."""
        self._process.join(timeout_s)
        code, out, err = self._process.exitcode, self._out.read(), self._err.read()
        if code is None:
            raise subprocess.TimeoutExpired(self.words, timeout_s, out, err)
        return subprocess.CompletedProcess(self.words, code, out, err)
