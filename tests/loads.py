"""Clients that send requests all the time while something else happens, and the outcomes."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marship import Client
from marship.errors import MarshipError, NoAnswerError
from marship.exchange.retries import RETRY_S

CLIENT_TIMEOUT_S = 60.0


@dataclass
class Tally:
    """Outcomes of the requests.

    Attributes:
        sent: All calls of a client; retries within a call do not count.
        correct: Expected responses, by the name of the version that they are of.
        wrong: Other responses.
        failed: Errors, by their text.
        lost: No response: the connection ended, or the client timed out.
        slowest_s: The longest that a call took, whatever its outcome.
    """

    sent: int = 0
    correct: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    _lock: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def count(self, into: Counter[str], key: str, seconds: float) -> None:
        """Count the end of a request; many threads do."""
        with self._lock:
            into[key] += 1
            self.slowest_s = max(self.slowest_s, seconds)
            self._lock.notify_all()

    def send(self) -> None:
        """Count a request that begins."""
        with self._lock:
            self.sent += 1

    def wait_for_more(self, count: int, timeout_s: float = CLIENT_TIMEOUT_S) -> None:
        """Return when `count` more responses were correct.

        Raises:
            AssertionError: They were not in time.
        """
        with self._lock:
            wanted = self.correct.total() + count
            in_time = self._lock.wait_for(lambda: self.correct.total() >= wanted, timeout_s)
        assert in_time, self

    def all_correct(self) -> bool:
        """Whether every response was correct."""
        return self.correct.total() == self.sent > 0

    def ended(self) -> int:
        """How many requests have an outcome."""
        return sum(c.total() for c in (self.correct, self.wrong, self.failed, self.lost))


@contextmanager
def load(  # noqa: PLR0913  keyword-only
    home: Path,
    model: str,
    inputs: object,
    expected: Mapping[str, Any],
    *,
    threads: int = 3,
    retry_s: float = 0,
    timeout_s: float = CLIENT_TIMEOUT_S,
    pause_s: float = 0.003,
) -> Iterator[Tally]:
    """Send requests to a model until the block ends, and wait for the last responses.

    Fails if a request ends with another error than marship's.

    Args:
        home: The server's.
        model: The name of the model.
        inputs: The request.
        expected: The correct responses, by the name under which they are counted.
        threads: Clients at once.
        retry_s: As the client's.
        timeout_s: As the client's.
        pause_s: Between two requests of one client.
    """
    tally = Tally()
    ended = threading.Event()

    def send(client: Client) -> None:
        tally.send()
        started = time.monotonic()
        try:
            response = client.predict(model, inputs)
        except NoAnswerError as error:
            into, key = tally.lost, str(error)
        except MarshipError as error:
            into, key = tally.failed, str(error)
        else:
            names = [name for name, right in expected.items() if response == right]
            into, key = (tally.correct, names[0]) if names else (tally.wrong, str(response)[:200])
        tally.count(into, key, time.monotonic() - started)

    def go_on() -> None:
        with Client(home, retry_s=retry_s, timeout_s=timeout_s) as client:
            while not ended.is_set():
                send(client)
                ended.wait(pause_s)

    with ThreadPoolExecutor(threads) as pool:
        sending = [pool.submit(go_on) for _ in range(threads)]
        try:
            yield tally
        finally:
            ended.set()
    for one in sending:
        one.result()  # raises an error that is not marship's
    assert tally.ended() == tally.sent, tally


@contextmanager
def two_loads(
    home: Path, model: str, inputs: object, expected: Mapping[str, Any], timeout_s: float
) -> Iterator[tuple[Tally, Tally]]:
    """Two clients without retries, and two with marship's default retries."""
    with (
        load(home, model, inputs, expected, threads=2, timeout_s=timeout_s) as no_retry,
        load(
            home, model, inputs, expected, threads=2, retry_s=RETRY_S, timeout_s=timeout_s
        ) as retrying,
    ):
        yield no_retry, retrying
