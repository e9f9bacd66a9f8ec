"""What a server's processes do while something is done to them."""

import time
from collections.abc import Collection

import psutil

from marship import Client
from marship.engines.home import ServerRecord
from waiting import until

_POLL_S = 0.05
_LONGEST_S = 120.0


def workers(record: ServerRecord) -> list[psutil.Process]:
    """Processes of workers, those that still load among them, the oldest first."""
    found = [
        process
        for process in record.group.members()
        if process.pid != record.pid and process.status() != psutil.STATUS_ZOMBIE
    ]
    return sorted(found, key=lambda process: process.create_time())


def wait_ready(client: Client, model: str, wanted: int, dead: Collection[int]) -> float:
    """Seconds until so many workers are ready, none of which is one that died."""
    began = time.monotonic()

    def are_ready() -> bool:
        (status,) = client.describe(model)
        return len({w.pid for w in status.workers if w.ready} - set(dead)) == wanted

    until(are_ready, _LONGEST_S, f"{wanted} ready workers", _POLL_S)
    return time.monotonic() - began


def wait_gone(record: ServerRecord) -> float:
    """Seconds until no worker of a server is left."""
    began = time.monotonic()
    until(lambda: not workers(record), _LONGEST_S, "the end of all workers", _POLL_S)
    return time.monotonic() - began


def memory_mb(record: ServerRecord) -> tuple[int, int]:
    """What Java holds, and what all its workers do (resident)."""
    held = {process.pid: process.memory_info().rss >> 20 for process in record.group.members()}
    java = held.pop(record.pid)
    return java, sum(held.values())
