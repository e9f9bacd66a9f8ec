"""The blocking transport, which runs flows over HTTP, and what the asyncio one shares with it.

Both have the same bounds: one deadline for a whole exchange, from connecting to the last byte of
the body, or for each line of a stream; a maximum response size; no content encodings. Both check
that a new connection is to the intended server before they send anything.
"""

import http.client
import re
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from marship.errors import NoAnswerError, ServerError, TLSError, TooLargeError
from marship.exchange import connections, sockets
from marship.exchange.calls import (
    BAD_REQUEST,
    Call,
    Destination,
    Flow,
    HttpResponse,
    Lines,
    Pause,
    Step,
    Work,
)
from marship.exchange.connections import CheckedConnection, UnreachableError
from marship.exchange.limited import OverLimitError
from marship.version import VERSION

T = TypeVar("T")

MAX_RESPONSE_BYTES = 1 << 30
_OVERHEAD_BYTES = 1 << 20  # for headers; chunks of a single byte would double a body's size
HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"marship/{VERSION}"}
_NO_ENCODING, _CHUNKED = ("", "identity"), ("", "chunked")
_LENGTH, _SHOWN, _LONGEST_REASON = re.compile(r"[0-9]{1,18}"), 40, 100
_SUCCESS, _REDIRECT = 200, 300


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one exchange.

    Attributes:
        timeout_s: For the whole exchange, or for each line of a stream.
        max_response_bytes: For the body, or for each line of a stream.
    """

    timeout_s: float
    max_response_bytes: int = MAX_RESPONSE_BYTES

    def check(self, size_bytes: int, url: str) -> None:
        """Check the size of a body or a line.

        Raises:
            TooLargeError: It exceeds the limit.
        """
        if size_bytes > self.max_response_bytes:
            raise self.too_large(url)

    def too_large(self, url: str) -> TooLargeError:
        """The error for a response that exceeds the limit."""
        return TooLargeError(
            f"the response of {url} must have {self.max_response_bytes:,} bytes at most, got "
            "more. Send less at a time, or raise the client's max_response_bytes."
        )

    def check_head(self, response: HttpResponse, url: str) -> HttpResponse:
        """Check a response's status and headers before its body is read.

        Raises:
            ServerError: It is a redirect, has a content encoding, or an ambiguous length.
            TooLargeError: Its Content-Length exceeds the limit.
        """
        headers = response.headers
        if not _SUCCESS <= response.status < _REDIRECT and response.status < BAD_REQUEST:
            raise _unfit(url, "respond without a redirect", f"status {response.status}")
        for name, fit in (("content-encoding", _NO_ENCODING), ("transfer-encoding", _CHUNKED)):
            if (value := headers.get(name, "").strip()).lower() not in fit:
                raise _unfit(url, "send the response unencoded", f"{name} {value[:_SHOWN]!r}")
        length = headers.get("content-length")
        if length is not None:
            if not _LENGTH.fullmatch(length):
                raise _unfit(url, "state one length in digits", repr(length[:_SHOWN]))
            self.check(int(length), url)
        return response


class BlockingTransport:
    """Runs flows on the calling thread, over persistent connections."""

    def __init__(self, destination: Destination, bounds: Bounds) -> None:
        self._destination, self._bounds = destination, bounds
        self._pool = connections.Pool(destination.check_peer, destination.tls)

    def run(self, flow: Flow[T]) -> T:
        """The flow's result."""
        result: Any = None
        error: BaseException | None = None
        while True:
            step = next_step(flow, result, error)
            if isinstance(step, Done):
                return step.value
            result = error = None
            try:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                elif isinstance(step, Work):
                    result = step.run()
                else:
                    result = self._exchange(step)
            except BaseException as problem:  # Ctrl-C too: the flow cleans up
                error = problem

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _exchange(self, call: Call) -> HttpResponse:
        url = self._destination.url(call)
        with self._faults(url):
            connection = self._pool.take(sockets.base_of(url))
            try:
                self._restart(connection)
                response = self._send(connection, call, url)
                headers = lowered(response.getheaders())
                head = self._bounds.check_head(HttpResponse(response.status, headers, b""), url)
                if call.streams and head.has_lines:
                    return replace(head, lines=self._lines(connection, response, url))
                return replace(head, body=self._read(connection, response, url))
            except BaseException:
                connection.close()
                raise

    def _send(
        self, connection: CheckedConnection, call: Call, url: str
    ) -> http.client.HTTPResponse:
        target = url.removeprefix(connection.base) + (
            f"?{urlencode(call.params)}" if call.params else ""
        )
        try:
            connection.request(call.method, target, call.body, {**HEADERS, **call.headers})
        except (BrokenPipeError, ConnectionResetError):
            if connection.sock is None:
                raise
            # who rejects a body may have sent a response before closing
        return connection.getresponse()

    def _read(
        self, connection: CheckedConnection, response: http.client.HTTPResponse, url: str
    ) -> bytes:
        read, size = [], 0
        for chunk in connections.chunks(response):
            size += len(chunk)
            self._bounds.check(size, url)
            read.append(chunk)
        self._give_back(connection, response)
        return b"".join(read)

    def _lines(
        self, connection: CheckedConnection, response: http.client.HTTPResponse, url: str
    ) -> Iterator[bytes]:
        lines, open_bytes = Lines(), 0
        try:
            with self._faults(url):
                self._restart(connection)
                for chunk in connections.chunks(response):
                    open_bytes += len(chunk)
                    self._bounds.check(open_bytes, url)
                    if whole := lines.feed(chunk):
                        yield from whole
                        open_bytes = 0
                    if b"\n" in chunk:
                        self._restart(connection)
                yield from lines.end()
            self._give_back(connection, response)
        finally:
            if not response.isclosed():
                connection.close()

    def _restart(self, connection: CheckedConnection) -> None:
        size_bytes = 2 * self._bounds.max_response_bytes + _OVERHEAD_BYTES
        connection.limits.restart(self._bounds.timeout_s, size_bytes)

    def _give_back(self, connection: CheckedConnection, response: http.client.HTTPResponse) -> None:
        if response.will_close:
            connection.close()
        else:
            self._pool.give(connection)

    @contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        """Convert errors of the standard library to our own."""
        try:
            yield
        except TimeoutError as error:
            raise too_slow(url, self._bounds.timeout_s) from error
        except OverLimitError as error:
            raise self._bounds.too_large(url) from error
        except UnreachableError as error:
            raise self._destination.not_reachable(url) from error
        except ssl.SSLError as error:
            raise without_tls(url, error) from error
        except http.client.InvalidURL as error:
            raise no_address(url, error) from error
        except (OSError, http.client.IncompleteRead) as error:
            raise dropped(url) from error
        except http.client.HTTPException as error:
            raise no_http(url, error) from error
        except ValueError as error:  # a header that cannot be sent
            raise no_address(url, error) from error


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A finished flow's result."""

    value: T


def next_step(flow: Flow[T], result: object, error: BaseException | None) -> Step | Done[T]:
    """Resume the flow: its next step, or its result."""
    try:
        return flow.send(result) if error is None else flow.throw(error)
    except StopIteration as end:
        return Done(end.value)


def lowered(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name; repeated ones are joined to a list (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, value in headers:
        found[name.lower()] = f"{found[name.lower()]}, {value}" if name.lower() in found else value
    return found


def _unfit(url: str, rule: str, got: str) -> ServerError:
    return ServerError(f"{url} must {rule}, got {got}. Check which server listens there.")


def too_slow(url: str, timeout_s: float) -> NoAnswerError:
    """The error for a response that is not whole in time."""
    error = NoAnswerError(f"{url} must respond within {timeout_s:g} s, got no complete response.")
    error.timed_out = True
    return error


def dropped(url: str) -> NoAnswerError:
    """The error for a connection that the server closed."""
    return NoAnswerError(f"{url} must respond, got a connection that the server closed. Retry.")


def no_http(url: str, error: Exception) -> ServerError:
    """The error for a response that is not HTTP."""
    said = " ".join(str(getattr(error, "message", error)).split())[:_LONGEST_REASON]
    return _unfit(url, "respond in HTTP/1.1", repr(said))


def no_address(url: str, error: Exception) -> ServerError:
    """The error for a URL or a header that cannot be sent."""
    return ServerError(f"{url} must be an address, got: {error}.")


_CLOSED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def without_tls(url: str, error: Exception) -> ServerError:
    """The error of a failed TLS handshake; if the connection was closed it is a lost connection."""
    if isinstance(error, _CLOSED):
        return dropped(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLSError(
            f"{url} must have a certificate that is valid for it, got: {error.verify_message}. "
            "Renew it, use a host name that it is valid for, or pass the PEM file of the CA that "
            "signed it (a self-signed certificate signs itself) with --ca or SSL_CERT_FILE."
        )
    reason = getattr(error, "reason", None) or str(error)
    return TLSError(
        f"{url} must speak TLS 1.2 or newer, got: {str(reason).lower().replace('_', ' ')}. Use "
        "http:// if it has no TLS, or see its log."
    )
