"""A gateway of gRPC in a thread of this process."""

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

from marship.engines.gateway import server


class Gateway:
    """A gateway that serves while it is entered.

    Args:
        socket: Of the direct address.
        request_bytes: The largest message.
        options: Further ones of `server.serve`.
    """

    def __init__(self, socket: Path, request_bytes: int = 1 << 20, **options: Any) -> None:
        self._socket, self._request_bytes, self._options = socket, request_bytes, options

    def __enter__(self) -> "Gateway":
        started = threading.Event()

        def on_started(port: int) -> None:
            self.address, self._loop = f"127.0.0.1:{port}", asyncio.get_running_loop()
            self._task: Any = asyncio.current_task()
            started.set()

        async def serve() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await server.serve(
                    "127.0.0.1:0", self._socket, self._request_bytes, on_started, **self._options
                )

        self._thread = threading.Thread(target=asyncio.run, args=(serve(),))
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
