"""Three nodes of Ray on one machine, each in a network namespace of its own, and their clients.

Run as a script by the test, for it must be inside a namespace: `load` sends requests from the
clients' namespace. Needs root, and iproute2.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from marship.engines.ray import plan

NODES = (1, 2, 3)
PORT, HTTP = 6390, 8000
IP = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin") or "/usr/sbin/ip"
TMP = tempfile.gettempdir()
_TRIES, _PAUSE_S = 5, 0.2


@dataclass
class Network:
    """Namespaces with a bridge between them.

    Attributes:
        prefix: Of their names and addresses: no two networks of a machine share it.
        folder: For Ray's files and tokens.
    """

    folder: Path
    prefix: str = f"mr{os.getpid()}"
    nodes: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def name(self, node: int | str) -> str:
        """A namespace's name."""
        return f"{self.prefix}-{node}"

    def make(self) -> None:
        """Make them: the bridge is the clients'."""
        hub = self.name("c")
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "set", "lo", "up")
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "link", "set", "br0", "up")
        _ip("-n", hub, "addr", "add", "10.77.0.9/24", "dev", "br0")
        for node in NODES:
            own, port = self.name(node), f"p{node}"
            _ip("netns", "add", own)
            _ip("-n", own, "link", "set", "lo", "up")
            _ip(
                *("link", "add", "e0", "netns", own, "type", "veth"),
                *("peer", "name", port, "netns", hub),
            )
            _ip("-n", hub, "link", "set", port, "master", "br0")
            _ip("-n", hub, "link", "set", port, "up")
            _ip("-n", own, "addr", "add", f"10.77.0.{node}/24", "dev", "e0")
            _ip("-n", own, "link", "set", "e0", "up")

    def start(self, node: int, *, cpus: int = 4) -> None:
        """Start a node of Ray; the first one is the head."""
        head = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        where = f"{TMP}/{self.prefix}{node}"
        words = head if node == 1 else [f"--address=10.77.0.1:{PORT}"]
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words),
            *(f"--node-ip-address=10.77.0.{node}", f"--num-cpus={cpus}"),
            *("--object-store-memory=100000000", "--disable-usage-stats"),
            *([f"--temp-dir={where}"] if node == 1 else []),
        ]
        with (self.folder / f"node{node}.log").open("wb") as log:
            self.nodes[node] = subprocess.Popen(
                [IP, "netns", "exec", self.name(node), *command],
                env={**os.environ, **self.environment(node)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self, node: int) -> dict[str, str]:
        """Ray's variables: those of docs/ray.md."""
        state = f"{TMP}/{self.prefix}{node}h"
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "ray_token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(plan.MESSAGE_BYTES),
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{state}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{state}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": state,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{state}/server-state",
        }

    def marship(self, *words: str, node: int = 1, timeout_s: float = 240) -> str:
        """Run a command on a node; returns what it printed.

        Raises:
            RuntimeError: It failed.
        """
        done = subprocess.run(
            [IP, "netns", "exec", self.name(node), sys.executable, "-m", "marship", *words],
            env={**os.environ, **self.environment(node), "MARSHIP_HOME": str(self.folder / "home")},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"marship {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def load(self, count: int, rate: float, *, clients: int = 16) -> "subprocess.Popen[str]":
        """Send requests to all nodes from the clients' namespace; its output is a line of JSON.

        It ends after `count` requests, or when its standard input does.
        """
        key = json.loads((self.folder / "home" / "key_file.json").read_text())["inference"]["key"]
        return subprocess.Popen(
            [
                *(IP, "netns", "exec", self.name("c"), sys.executable, __file__),
                *(str(count), str(rate), str(clients)),
            ],
            env={**os.environ, "KEY": key},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill(self, node: int) -> None:
        """Kill a node at once, with all that runs in its namespace."""
        found = subprocess.run(
            [IP, "netns", "pids", self.name(node)], capture_output=True, text=True, check=False
        )
        for pid in map(int, found.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if node in self.nodes:
            self.nodes.pop(node).wait()

    def remove(self) -> None:
        """Kill what runs in the namespaces, and remove them."""
        for node in (*NODES, "c"):
            self.kill(node)  # type: ignore[arg-type]
            subprocess.run([IP, "netns", "del", self.name(node)], check=False)
        for node in NODES:
            for end in ("", "h"):
                shutil.rmtree(f"{TMP}/{self.prefix}{node}{end}", ignore_errors=True)


def _ip(*words: str) -> None:
    subprocess.run([IP, *words], check=True)


def send(count: int, rate: float, clients: int, key: str) -> dict[str, object]:
    """Send requests at a steady rate; each is tried at other nodes if one does not answer.

    Failed attempts are counted by whether the request was sent, and so was in a node's hands: who
    does not try again loses those.
    """
    seen: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    lock, began = threading.Lock(), time.monotonic()
    numbers, ended = iter(range(count)), threading.Event()

    def follow() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=follow, daemon=True).start()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None or ended.is_set():
                return
            time.sleep(max(0.0, began + number / rate - time.monotonic()))  # an open loop
            got = "lost"
            for attempt in range(_TRIES):
                answer, error = _ask(number + attempt, key)
                if error is None:
                    got = answer
                    break
                with lock:
                    failures[error] += 1
                time.sleep(_PAUSE_S * 2**attempt)  # as clients back off
            with lock:
                seen[got] += 1

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seen": seen, "failures": failures, "took_s": time.monotonic() - began}


def _ask(number: int, key: str) -> tuple[str, str | None]:
    line = HTTPConnection(f"10.77.0.{number % 3 + 1}", HTTP, timeout=5)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        line.connect()
    except OSError as error:
        return "", f"not sent: {type(error).__name__}"
    try:
        line.request("POST", "/predictions/lin", b'{"input": [[1, 2, 3]]}', headers)
        got = line.getresponse()
        body = got.read().decode()
    except (OSError, HTTPException) as error:
        return "", f"sent: {type(error).__name__}"
    finally:
        line.close()
    return (body, None) if got.status == 200 else (body, f"sent: {got.status}")


def main(words: Sequence[str]) -> None:
    """Send, and write what came of it."""
    found = send(int(words[0]), float(words[1]), int(words[2]), os.environ["KEY"])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
