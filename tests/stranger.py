"""A server that sends whatever a test wants, over real sockets, with or without TLS."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable

Send = Callable[[socket.socket, threading.Event], None]
"""Given a connection whose request has been read, and what says that the test is over."""


class Stranger:
    """Takes connections on loopback until it is closed.

    Args:
        send: What it does with each.
        tls: With a certificate, it shakes hands first.
        listener: Where it listens; else at any free port.
        body: What a request ends with: to close before all is read would be a reset.
    """

    def __init__(
        self,
        send: Send,
        tls: ssl.SSLContext | None = None,
        listener: socket.socket | None = None,
        body: bytes = b"[1]",
    ) -> None:
        self._send, self._tls, self._over = send, tls, threading.Event()
        self._ends = body or b"\r\n\r\n"
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.place = self._listener.getsockname()
        self.taken, self.received = 0, b""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.place[1]}"

    def close(self) -> None:
        """End it."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                self.taken += 1
                threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError), line:
            if self._tls:
                line = self._tls.wrap_socket(line, server_side=True)
            heard = b""
            while not heard.endswith(self._ends):
                data = line.recv(1 << 16)
                if not data:
                    return
                heard += data
                self.received += data
            self._send(line, self._over)


def sends(*pieces: bytes) -> Send:
    """Send these and close the connection."""

    def send(line: socket.socket, _: threading.Event) -> None:
        for piece in pieces:
            line.sendall(piece)

    return send


def drips(start: bytes, drop: bytes) -> Send:
    """Send a beginning, then something small again and again, for ever."""

    def send(line: socket.socket, over: threading.Event) -> None:
        line.sendall(start)
        while not over.wait(0.02):
            line.sendall(drop)

    return send


def floods(start: bytes, drop: bytes) -> Send:
    """The same as fast as it is taken."""

    def send(line: socket.socket, over: threading.Event) -> None:
        line.sendall(start)
        many = drop * (1 + (1 << 16) // len(drop))
        while not over.is_set():
            line.sendall(many)

    return send
