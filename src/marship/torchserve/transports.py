"""Two ways to carry flows over HTTP: blocking with requests, and asyncio with aiohttp."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import aiohttp
import requests
from urllib3.exceptions import MaxRetryError, ReadTimeoutError

from marship.errors import NoAnswerError, ServerError
from marship.torchserve import sockets
from marship.torchserve.access import Access
from marship.torchserve.adapter import UnixAdapter
from marship.torchserve.calls import Answer, Call, Flow, Lines, Pause, Step, Work

T = TypeVar("T")


class BlockingTransport:
    """Runs a flow on this thread, over connections that stay open."""

    def __init__(self, access: Access, timeout_s: float) -> None:
        self._access, self._timeout_s = access, timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between us and a server on loopback
        self._session.mount(sockets.SCHEME, UnixAdapter())
        self._session.verify = os.environ.get("SSL_CERT_FILE") or True  # OpenSSL's, as aiohttp

    def run(self, flow: Flow[T]) -> T:
        """The flow's result."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            step = _next(flow, answer, error)
            if isinstance(step, _Done):
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
        self._session.close()

    def _exchange(self, call: Call) -> Answer:
        url = self._access.url(call)
        with self._faults(url):
            response = self._session.request(
                call.method,
                url,
                params=dict(call.params),
                headers=dict(call.headers),
                data=call.body,
                timeout=self._timeout_s,
                allow_redirects=False,
                stream=call.streams,
            )
            answer = Answer(response.status_code, _lowered(response.headers), b"")
            if call.streams and answer.has_lines:
                return replace(answer, lines=self._lines(response))
            return replace(answer, body=response.content)

    def _lines(self, response: requests.Response) -> Iterator[bytes]:
        lines = Lines()
        with response, self._faults(response.url):
            for data in response.iter_content(None):
                yield from lines.feed(data)
            yield from lines.end()

    @contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        """Errors of requests as our own."""
        try:
            yield
        except requests.Timeout as error:
            raise _too_slow(url, self._timeout_s) from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, ReadTimeoutError):  # in the middle of a stream
                raise _too_slow(url, self._timeout_s) from error
            if isinstance(cause, MaxRetryError):
                raise self._access.not_reachable(url) from error
            raise _dropped(url) from error
        except requests.RequestException as error:
            raise ServerError(f"{url} must be an address, got: {error}.") from error


class AsyncTransport:
    """Runs flows on the event loop that first uses it."""

    def __init__(self, access: Access, timeout_s: float) -> None:
        self._access, self._timeout_s = access, timeout_s
        self._sessions: dict[str | None, aiohttp.ClientSession] = {}  # by the unix socket, if any

    async def run(self, flow: Flow[T]) -> T:
        """The flow's result."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            step = _next(flow, answer, error)
            if isinstance(step, _Done):
                return step.value
            answer = error = None
            try:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Work):
                    answer = await asyncio.to_thread(step.run)
                else:
                    answer = await self._exchange(step)
            except BaseException as problem:  # cancellation too: the flow undoes what it began
                error = problem

    async def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            await session.close()

    async def _exchange(self, call: Call) -> Answer:
        url = self._access.url(call)
        with self._faults(url):
            response = await self._connected(url).request(
                call.method,
                sockets.without_path(url),
                params=dict(call.params),
                headers=dict(call.headers),
                data=call.body,
                allow_redirects=False,
                timeout=self._timeout(call),
            )
            answer = Answer(response.status, _lowered(response.headers), b"")
            if call.streams and answer.has_lines:
                return replace(answer, lines=self._lines(response, url))
            async with response:
                return replace(answer, body=await response.read())

    def _connected(self, url: str) -> aiohttp.ClientSession:
        path = sockets.path_of(url)
        if path not in self._sessions:
            # the caller says how many at a time
            unix = aiohttp.UnixConnector(path, limit=0) if path else None
            connector = unix or aiohttp.TCPConnector(limit=0)
            self._sessions[path] = aiohttp.ClientSession(connector=connector)
        return self._sessions[path]

    def _timeout(self, call: Call) -> aiohttp.ClientTimeout:
        """Of the whole exchange, or of each of a stream's pieces."""
        if call.streams:
            return aiohttp.ClientTimeout(sock_connect=self._timeout_s, sock_read=self._timeout_s)
        return aiohttp.ClientTimeout(total=self._timeout_s)

    async def _lines(self, response: aiohttp.ClientResponse, url: str) -> AsyncIterator[bytes]:
        lines = Lines()
        async with response:
            with self._faults(url):
                async for data in response.content.iter_any():
                    for line in lines.feed(data):
                        yield line
                for line in lines.end():
                    yield line

    @contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        """Errors of aiohttp as our own."""
        try:
            yield
        except TimeoutError as error:
            raise _too_slow(url, self._timeout_s) from error
        except aiohttp.ClientConnectorError as error:
            raise self._access.not_reachable(url) from error
        except aiohttp.InvalidURL as error:
            raise ServerError(f"{url} must be an address, got: {error}.") from error
        except aiohttp.ClientError as error:
            raise _dropped(url) from error


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """The end of a flow."""

    value: T


def _next(flow: Flow[T], answer: object, error: BaseException | None) -> Step | _Done[T]:
    """Go on with the flow: its next step, or its end."""
    try:
        return flow.send(answer) if error is None else flow.throw(error)
    except StopIteration as end:
        return _Done(end.value)


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _too_slow(url: str, timeout_s: float) -> NoAnswerError:
    error = NoAnswerError(f"{url} must answer within {timeout_s:g} s, got no answer.")
    error.timed_out = True
    return error


def _dropped(url: str) -> NoAnswerError:
    return NoAnswerError(f"{url} must answer, got a connection that the server closed. Ask again.")
