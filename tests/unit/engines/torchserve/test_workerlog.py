"""The cause of a worker's death is found in what it and its neighbours logged."""

import json
from pathlib import Path

import pytest

from marship.engines.addresses import Target
from marship.engines.engine import Wait
from marship.engines.home import Home
from marship.engines.torchserve import workerlog
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.status import ReadinessWatch
from marship.engines.torchserve.workerlog import WorkerLog
from marship.errors import LoadError
from marship.exchange.calls import HttpResponse, Pause

CHAINED = """\
Backend worker process died.
Traceback (most recent call last):
  File "x.py", line 1, in load
    import nothing
FileNotFoundError: [Errno 2] No such file or directory: 'w'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "x.py", line 3, in load
ValueError: the weights must be there"""
MASKED = """\
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ModuleNotFoundError: No module named 'nothing'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "ts.py", line 1, in load
ModuleNotFoundError: No module named 'ts.torch_handler.x'"""
OURS = """\
Failed to load model x, exception golden outputs must be equal, got others.
Traceback (most recent call last):
  File "x.py", line 1, in load
marship.errors.LoadError: golden outputs must be equal, got others.
Traceback (most recent call last):
  File "ts.py", line 1, in load
RuntimeError: 500 - Unknown exception"""
NATIVE = """\
model_name: x, batchSize: 1
Fatal Python error: Segmentation fault
Current thread 0x1 (most recent call first):"""
CUT_OFF = f"Fatal Python error: \n{NATIVE}"

STARTING = HttpResponse(
    200,
    {"content-type": "application/json"},
    json.dumps(
        [
            {
                "modelName": "x",
                "modelVersion": "1.0",
                "modelUrl": "x.mar",
                "minWorkers": 1,
                "maxWorkers": 1,
                "batchSize": 1,
                "maxBatchDelay": 1,
                "responseTimeout": 60,
                "loadedAtStartup": False,
                "workers": [{"id": "9000", "pid": -1, "status": "UNLOADING"}],
                "jobQueueStatus": {"pendingRequests": 0},
            }
        ]
    ).encode(),
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (CHAINED, "ValueError: the weights must be there"),
        (MASKED, "ModuleNotFoundError: No module named 'nothing'"),
        (OURS, "golden outputs must be equal, got others."),
        (NATIVE, "Fatal Python error: Segmentation fault"),
        (CUT_OFF, "Fatal Python error: Segmentation fault"),
        ("Fatal Python error: ", "Fatal Python error: "),
        ("Torch worker started.", workerlog.SILENT),
    ],
)
def test_the_cause(tmp_path: Path, text: str, cause: str) -> None:
    """The last error that is not a stand-in of TorchServe's, without our own class's name.

    Other models' lines, another version's, and those from before do not count.
    """
    home = Home(tmp_path)
    home.logs.mkdir()
    home.worker_log.write_text(logged("x_1.0", "Traceback (most recent call last):\nOld: error"))
    log = WorkerLog(home)
    other = "Traceback (most recent call last):\nOther: error"
    with home.worker_log.open("a") as file:
        file.write(logged("x_1.0", text) + logged("y_1.0", other) + logged("x_1.0.1", other))
    lines = log.lines("x", "1.0")
    assert [line.text for line in lines] == text.splitlines()
    assert workerlog.cause(lines) == cause


def logged(model: str, text: str) -> str:
    """What log4j2 makes of a worker's output."""
    begin = f"2026-01-01T00:00:00,000 INFO  W-9000-{model}-stdout - "
    return "".join(f"{begin}{line}\n" for line in text.splitlines())


def test_tracebacks_of_workers_that_die_at_once(tmp_path: Path) -> None:
    """Their lines alternate; each traceback is followed in its own stream."""
    home = Home(tmp_path)
    home.logs.mkdir()
    log = WorkerLog(home)
    text = "Backend worker process died.\n" + CHAINED
    home.worker_log.write_text(
        "".join(
            logged("x_1.0", line) + logged("x_1.0", line).replace("9000", "9001")
            for line in text.splitlines()
        )
    )
    lines = log.lines("x", "1.0")
    assert workerlog.dead_workers(lines) == {"9000", "9001"}
    assert workerlog.cause(lines) == "ValueError: the weights must be there"


def test_a_log_that_was_rolled_over_is_read_from_its_beginning(tmp_path: Path) -> None:
    """A file that is smaller than before is another file."""
    home = Home(tmp_path)
    home.logs.mkdir()
    home.worker_log.write_text("x" * 10_000)
    log = WorkerLog(home)
    home.worker_log.write_text(logged("x_1.0", CHAINED))
    assert workerlog.cause(log.lines("x", "1.0")) == "ValueError: the weights must be there"


@pytest.mark.parametrize(
    ("second", "cause"),
    [(CHAINED, "ValueError: the weights must be there"), ("model_name: x", workerlog.SILENT)],
)
def test_what_torchserve_lost_is_reported_by_the_next_worker(
    tmp_path: Path, second: str, cause: str
) -> None:
    """TorchServe stops reading when it sees a worker die; the first traceback never got there.

    Two workers that say nothing died in silence: no third one is waited for.
    """
    home = Home(tmp_path)
    home.logs.mkdir()
    log = WorkerLog(home)
    access = Access(Target(tmp_path, {"management": "http://127.0.0.1:1"}, {"management": "token"}))
    flow = ReadinessWatch(access, "x", "1.0", log, frozenset()).until(1, Wait(timeout_s=60))
    died = "Load model failed: x, error: Worker died."
    written = {1: f"model_name: x\n{died}", 15: f"{second}\n{died}"}
    step, pauses = next(flow), 0
    with pytest.raises(LoadError, match=f"a worker of x must load, got: {cause}"):  # noqa: PT012  the flow's steps
        while True:
            pauses += isinstance(step, Pause)
            if isinstance(step, Pause) and pauses in written:
                with home.worker_log.open("a") as file:
                    file.write(logged("x_1.0", written[pauses]))
            step = flow.send(None if isinstance(step, Pause) else STARTING)
    assert 15 < pauses < 30
