"""A worker of its own process, for tests that end it or take its files away."""

import subprocess
import sys
from pathlib import Path

from directly import Place, until

SCRIPT = """
import ctypes, os, resource, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from directly import service
from marship.serving.handler import OnnxHandler
from marship.serving.hosts.direct import worker
from marship.serving.message import Reply
from marship.serving.streaming import StreamHandler

forever = threading.Event()

class Stuck(OnnxHandler):
    def _reply(self, requests):
        if any(request.header("x-hold") for request in requests):
            forever.wait()
        return super()._reply(requests)

class Slow(OnnxHandler):
    def decode(self, request):
        if request.header("x-hold"):
            forever.wait()
        return super().decode(request)

    def call_s(self, rows):
        return 1.0

class Locked(Slow):
    def decode(self, request):
        if request.header("x-hold"):
            ctypes.PyDLL(None).sleep(100)  # as native code does that keeps Python's lock
        return super().decode(request)

class Stream(StreamHandler):
    def answers(self, requests, clock):
        yield {0: Reply(b"1\\n", "application/jsonl", more=True)}
        forever.wait()

kinds = {"slow": Slow, "brief": Slow, "stream": Stream, "stuck": Stuck, "locked": Locked}
timeout_s = 1 if sys.argv[4] in ("stuck", "locked") else 60
loaded = service(Path(sys.argv[2]), kind=kinds[sys.argv[4]], timeout_s=timeout_s)
loaded.measure_pace()
settings = worker.WorkerSettings(
    acceptor=Path(sys.argv[3]), model="m", version="1.0", batch=1, queue=9, key_file=None
)
started = worker.start(loaded, settings)
if sys.argv[4] == "brief":  # the engine's first request ends it
    os._exit(3)
while started._channel is None:
    time.sleep(0.01)  # its thread tells nobody else
if sys.argv[5]:
    most = len(os.listdir("/proc/self/fd")) - 1 + int(sys.argv[5])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
print("limited", flush=True)
forever.wait()
"""


class Process:
    """A worker in a process of its own.

    Args:
        place: Where it serves.
        folder: Its model.
        kind: slow, stream, stuck: which may run for a second, and runs in the event loop, or
            locked: which may run as long, and keeps Python's lock.
        files: How many more files it may open once it serves; None sets no limit.
    """

    def __init__(
        self, place: Place, folder: Path, kind: str = "slow", files: int | None = None
    ) -> None:
        before = place.seats()
        tests = Path(__file__).parent
        words = ["-c", SCRIPT, str(tests), str(folder), str(place.path), kind, str(files or "")]
        self.process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE)
        until(lambda: place.seats() == before + 1, 60)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"limited\n"

    def kill(self) -> None:
        """As the kernel does where memory ends."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
