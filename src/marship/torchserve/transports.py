"""Two ways to carry flows over HTTP: blocking with requests, and asyncio with aiohttp."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import aiohttp
import requests
from urllib3.exceptions import MaxRetryError

from marship.errors import NoAnswerError, ServerError
from marship.torchserve.access import Access
from marship.torchserve.calls import Answer, Call, Flow, Pause, Step

T = TypeVar("T")


class BlockingTransport:
    """Runs a flow on this thread, over connections that stay open."""

    def __init__(self, access: Access, timeout_s: float) -> None:
        self._access, self._timeout_s = access, timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between us and a server on loopback

    def run(self, flow: Flow[T]) -> T:
        """The flow's result."""
        answer: Answer | None = None
        error: BaseException | None = None
        while True:
            step = _next(flow, answer, error)
            if isinstance(step, _Done):
                return step.value
            answer = error = None
            try:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    answer = self._exchange(step)
            except BaseException as problem:  # Ctrl-C too: the flow undoes what it began
                error = problem

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _exchange(self, call: Call) -> Answer:
        url = self._access.url(call)
        try:
            response = self._session.request(
                call.method,
                url,
                params=dict(call.params),
                headers=dict(call.headers),
                data=call.body,
                timeout=self._timeout_s,
                allow_redirects=False,
            )
        except requests.Timeout as error:
            raise _too_slow(url, self._timeout_s) from error
        except requests.ConnectionError as error:
            if error.args and isinstance(error.args[0], MaxRetryError):
                raise self._access.not_reachable(url) from error
            raise _dropped(url) from error
        except requests.RequestException as error:
            raise ServerError(f"{url} must be an address, got: {error}.") from error
        return Answer(response.status_code, _lowered(response.headers), response.content)


class AsyncTransport:
    """Runs flows on the event loop that first uses it."""

    def __init__(self, access: Access, timeout_s: float) -> None:
        self._access, self._timeout_s = access, timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def run(self, flow: Flow[T]) -> T:
        """The flow's result."""
        answer: Answer | None = None
        error: BaseException | None = None
        while True:
            step = _next(flow, answer, error)
            if isinstance(step, _Done):
                return step.value
            answer = error = None
            try:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    answer = await self._exchange(step)
            except BaseException as problem:  # cancellation too: the flow undoes what it began
                error = problem

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _exchange(self, call: Call) -> Answer:
        url = self._access.url(call)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                connector=aiohttp.TCPConnector(limit=0),  # the caller says how many at a time
            )
        try:
            async with self._session.request(
                call.method,
                url,
                params=dict(call.params),
                headers=dict(call.headers),
                data=call.body,
                allow_redirects=False,
            ) as response:
                body = await response.read()
        except TimeoutError as error:
            raise _too_slow(url, self._timeout_s) from error
        except aiohttp.ClientConnectorError as error:
            raise self._access.not_reachable(url) from error
        except aiohttp.InvalidURL as error:
            raise ServerError(f"{url} must be an address, got: {error}.") from error
        except aiohttp.ClientError as error:
            raise _dropped(url) from error
        return Answer(response.status, _lowered(response.headers), body)


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    """The end of a flow."""

    value: T


def _next(flow: Flow[T], answer: Answer | None, error: BaseException | None) -> Step | _Done[T]:
    """Go on with the flow: its next step, or its end."""
    try:
        return flow.send(answer) if error is None else flow.throw(error)
    except StopIteration as end:
        return _Done(end.value)


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _too_slow(url: str, timeout_s: float) -> NoAnswerError:
    return NoAnswerError(f"{url} must answer within {timeout_s:g} s, got no answer.")


def _dropped(url: str) -> NoAnswerError:
    return NoAnswerError(f"{url} must answer, got a connection that the server closed. Ask again.")
