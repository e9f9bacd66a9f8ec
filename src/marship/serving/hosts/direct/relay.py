"""Connections to models whose workers do not speak HTTP, passed through to the engine.

Such are archives that an earlier version packaged, and those of other programs. The engine knows
every model, so the connection stays with it until it ends.
"""

import asyncio
import socket
import time

from marship.serving.hosts.direct.limits import Limits


class Relay:
    """A client's connection and the engine's, each other's counterpart.

    Args:
        limits: How long both may be silent.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.deadline = time.monotonic() + limits.relayed_s
        self.has_begun = False
        self.client, self.engine = _End(self), _End(self)
        self.client.other, self.engine.other = self.engine, self.client

    async def run(
        self, client: socket.socket, engine: str | tuple[str, int], unread: bytes
    ) -> None:
        """Connect both.

        Args:
            client: The client's socket.
            engine: The path of a unix socket, or host and port.
            unread: What was read of the client already.

        Raises:
            OSError: The engine cannot be reached; the client's connection is closed.
        """
        loop = asyncio.get_running_loop()
        self.has_begun = True
        try:
            if isinstance(engine, str):
                await loop.create_unix_connection(lambda: self.engine, engine)
            else:
                await loop.create_connection(lambda: self.engine, *engine)
        except OSError:
            client.close()
            raise
        self.engine.write(unread)
        await loop.connect_accepted_socket(lambda: self.client, client)

    def touch(self) -> None:
        """Something went through."""
        self.deadline = time.monotonic() + self._limits.relayed_s

    def close(self) -> None:
        """End both."""
        for end in (self.client, self.engine):
            if end.transport is not None:
                end.transport.abort()


class _End(asyncio.Protocol):
    """One of the two connections; what it gets is written to the other."""

    other: "_End"

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._relay.touch()
        self.other.write(data)

    def write(self, data: bytes) -> None:
        """Send; the other end is not read while this one is behind."""
        if self.transport is not None:
            self.transport.write(data)

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        if self.other.transport is not None and self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return True  # what is under way in the other direction still comes

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self.transport = None
        if self.other.transport is not None:
            self.other.transport.close()
