"""Flows carried over HTTP by blocking calls, and what carrying them by asyncio has in common.

Both keep the same bounds: one deadline for a whole exchange, from the connection to the last byte
of the body, and of a stream for each wait for a line; a largest response; no encodings. Both
make sure that a new connection ends at the home's server before they send anything.
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
    Answer,
    Call,
    Destination,
    Flow,
    Lines,
    Pause,
    Step,
    Work,
)
from marship.exchange.connections import Connection, UnreachableError
from marship.exchange.limited import OverLimitError
from marship.version import VERSION

T = TypeVar("T")

MAX_RESPONSE_BYTES = 1 << 30
_OVERHEAD_BYTES = 1 << 20  # of headers; chunks of a single byte would double what a body takes
HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"marship/{VERSION}"}
_NO_ENCODING, _CHUNKED = ("", "identity"), ("", "chunked")
_LENGTH, _SHOWN, _LONGEST_REASON = re.compile(r"[0-9]{1,18}"), 40, 100
_SUCCESS, _REDIRECT = 200, 300


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one exchange may take.

    Attributes:
        timeout_s: All of it, or of a stream each wait for a line.
        max_response_bytes: The body, or a line of a stream.
    """

    timeout_s: float
    max_response_bytes: int = MAX_RESPONSE_BYTES

    def check(self, size_bytes: int, url: str) -> None:
        """Make sure that a body or a line is not too large.

        Raises:
            TooLargeError: It is.
        """
        if size_bytes > self.max_response_bytes:
            raise self.too_large(url)

    def too_large(self, url: str) -> TooLargeError:
        """The error for a response that is."""
        return TooLargeError(
            f"the response of {url} must have {self.max_response_bytes:,} bytes at most, got "
            "more. Ask for less at a time, or raise the client's max_response_bytes."
        )

    def check_head(self, answer: Answer, url: str) -> Answer:
        """Make sure of a response's status and headers that its body is the response asked for.

        Raises:
            ServerError: It is a redirect, in an encoding, or of no certain length.
            TooLargeError: It says that it is too large.
        """
        headers = answer.headers
        if not _SUCCESS <= answer.status < _REDIRECT and answer.status < BAD_REQUEST:
            raise _unfit(url, "answer by itself", f"status {answer.status}")
        for name, fit in (("content-encoding", _NO_ENCODING), ("transfer-encoding", _CHUNKED)):
            if (value := headers.get(name, "").strip()).lower() not in fit:
                raise _unfit(url, "send what is asked for", f"{name} {value[:_SHOWN]!r}")
        length = headers.get("content-length")
        if length is not None:
            if not _LENGTH.fullmatch(length):
                raise _unfit(url, "state one length in digits", repr(length[:_SHOWN]))
            self.check(int(length), url)
        return answer


class BlockingTransport:
    """Runs a flow on this thread, over connections that stay open."""

    def __init__(self, destination: Destination, bounds: Bounds) -> None:
        self._destination, self._bounds = destination, bounds
        self._pool = connections.Pool(destination.check_peer, destination.tls)

    def run(self, flow: Flow[T]) -> T:
        """The flow's result."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            step = next_step(flow, answer, error)
            if isinstance(step, Done):
                return step.value
            answer = error = None
            try:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                elif isinstance(step, Work):
                    answer = step.run()
                else:
                    answer = self._exchange(step)
            except BaseException as problem:  # Ctrl-C too: the flow undoes what it began
                error = problem

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _exchange(self, call: Call) -> Answer:
        url = self._destination.url(call)
        with self._faults(url):
            line = self._pool.take(sockets.base_of(url))
            try:
                self._restart(line)
                response = self._send(line, call, url)
                headers = lowered(response.getheaders())
                answer = self._bounds.check_head(Answer(response.status, headers, b""), url)
                if call.streams and answer.has_lines:
                    return replace(answer, lines=self._lines(line, response, url))
                return replace(answer, body=self._read(line, response, url))
            except BaseException:
                line.close()
                raise

    def _send(self, line: Connection, call: Call, url: str) -> http.client.HTTPResponse:
        target = url.removeprefix(line.base) + (f"?{urlencode(call.params)}" if call.params else "")
        try:
            line.request(call.method, target, call.body, {**HEADERS, **call.headers})
        except (BrokenPipeError, ConnectionResetError):
            if line.sock is None:
                raise
            # who refuses a body may have said why before it closed the connection
        return line.getresponse()

    def _read(self, line: Connection, response: http.client.HTTPResponse, url: str) -> bytes:
        read, size = [], 0
        for piece in connections.pieces(response):
            size += len(piece)
            self._bounds.check(size, url)
            read.append(piece)
        self._give_back(line, response)
        return b"".join(read)

    def _lines(
        self, line: Connection, response: http.client.HTTPResponse, url: str
    ) -> Iterator[bytes]:
        lines, open_bytes = Lines(), 0
        try:
            with self._faults(url):
                self._restart(line)
                for piece in connections.pieces(response):
                    open_bytes += len(piece)
                    self._bounds.check(open_bytes, url)
                    if whole := lines.feed(piece):
                        yield from whole
                        open_bytes = 0
                    if b"\n" in piece:
                        self._restart(line)
                yield from lines.end()
            self._give_back(line, response)
        finally:
            if not response.isclosed():
                line.close()

    def _restart(self, line: Connection) -> None:
        size_bytes = 2 * self._bounds.max_response_bytes + _OVERHEAD_BYTES
        line.limits.restart(self._bounds.timeout_s, size_bytes)

    def _give_back(self, line: Connection, response: http.client.HTTPResponse) -> None:
        if response.will_close:
            line.close()
        else:
            self._pool.give(line)

    @contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        """Errors of the standard library as our own."""
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
    """The end of a flow."""

    value: T


def next_step(flow: Flow[T], answer: object, error: BaseException | None) -> Step | Done[T]:
    """Go on with the flow: its next step, or its end."""
    try:
        return flow.send(answer) if error is None else flow.throw(error)
    except StopIteration as end:
        return Done(end.value)


def lowered(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their names in lower case; what comes twice is one list (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, value in headers:
        found[name.lower()] = f"{found[name.lower()]}, {value}" if name.lower() in found else value
    return found


def _unfit(url: str, rule: str, got: str) -> ServerError:
    return ServerError(f"{url} must {rule}, got {got}. Look at what answers there.")


def too_slow(url: str, timeout_s: float) -> NoAnswerError:
    """The error for a response that is not whole in time."""
    error = NoAnswerError(f"{url} must answer within {timeout_s:g} s, got no whole answer.")
    error.timed_out = True
    return error


def dropped(url: str) -> NoAnswerError:
    """The error for a connection that the server closed."""
    return NoAnswerError(f"{url} must answer, got a connection that the server closed. Ask again.")


def no_http(url: str, error: Exception) -> ServerError:
    """The error for a response that is not HTTP."""
    said = " ".join(str(getattr(error, "message", error)).split())[:_LONGEST_REASON]
    return _unfit(url, "answer in HTTP/1.1", repr(said))


def no_address(url: str, error: Exception) -> ServerError:
    """The error for a URL or a header that cannot be sent."""
    return ServerError(f"{url} must be an address, got: {error}.")


_CLOSED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def without_tls(url: str, error: Exception) -> ServerError:
    """What a failed handshake means; one that was cut off is a lost connection like any."""
    if isinstance(error, _CLOSED):
        return dropped(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLSError(
            f"{url} must show a certificate that is valid for it, got: {error.verify_message}. "
            "Renew it, use a name that it holds, or name the PEM file of the authority that signed "
            "it (of a self-signed certificate: itself) with --ca or SSL_CERT_FILE."
        )
    reason = getattr(error, "reason", None) or str(error)
    return TLSError(
        f"{url} must speak TLS 1.2 or newer, got: {str(reason).lower().replace('_', ' ')}. Use "
        "http:// where it has none, or look at its log."
    )
