"""Clients that ask a model all the time while something else happens, and what became of it."""

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
    """What became of the requests.

    Attributes:
        sent: All that a client was asked for; one that it sent again by itself counts once.
        answered: Right answers, by which of those allowed they are.
        wrong: Other answers.
        failed: Errors that were told, by their text.
        lost: No answer: the connection ended, or the client's time did.
        slowest_s: The longest that one took, whatever came of it.
    """

    sent: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, into: Counter[str], key: str, seconds: float) -> None:
        """Count the end of a request; many threads do."""
        with self._lock:
            into[key] += 1
            self.slowest_s = max(self.slowest_s, seconds)

    def send(self) -> None:
        """Count a request that begins."""
        with self._lock:
            self.sent += 1

    def all_answered(self) -> bool:
        """Whether nothing else came of any."""
        return self.answered.total() == self.sent > 0

    def ended(self) -> int:
        """How many requests came to an end of any kind."""
        return sum(c.total() for c in (self.answered, self.wrong, self.failed, self.lost))


@contextmanager
def load(  # noqa: PLR0913  keyword-only
    home: Path,
    model: str,
    inputs: object,
    answers: Mapping[str, Any],
    *,
    threads: int = 3,
    retry_s: float = 0,
    timeout_s: float = CLIENT_TIMEOUT_S,
    pause_s: float = 0.003,
) -> Iterator[Tally]:
    """Ask a model until the block ends; the last requests are waited for.

    Every request is then answered, or ended with an error of marship's; else this fails.

    Args:
        home: Of the server.
        model: The name of the model.
        inputs: What is asked, each time.
        answers: The right answers, by the name under which they are counted.
        threads: Clients at once.
        retry_s: As the client's own.
        timeout_s: As the client's own.
        pause_s: Between two requests of one client.
    """
    tally = Tally()
    ended = threading.Event()

    def ask(client: Client) -> None:
        tally.send()
        started = time.monotonic()
        try:
            answer = client.predict(model, inputs)
        except NoAnswerError as error:
            into, key = tally.lost, str(error)
        except MarshipError as error:
            into, key = tally.failed, str(error)
        else:
            names = [name for name, right in answers.items() if answer == right]
            into, key = (tally.answered, names[0]) if names else (tally.wrong, str(answer)[:200])
        tally.count(into, key, time.monotonic() - started)

    def go_on() -> None:
        with Client(home, retry_s=retry_s, timeout_s=timeout_s) as client:
            while not ended.is_set():
                ask(client)
                time.sleep(pause_s)

    with ThreadPoolExecutor(threads) as pool:
        asking = [pool.submit(go_on) for _ in range(threads)]
        try:
            yield tally
        finally:
            ended.set()
    for one in asking:
        one.result()  # an error that is none of marship's fails the test
    assert tally.ended() == tally.sent, tally


@contextmanager
def two_loads(
    home: Path, model: str, inputs: object, answers: Mapping[str, Any], timeout_s: float
) -> Iterator[tuple[Tally, Tally]]:
    """Two clients that ask once, and two that ask again, as marship's do by themselves."""
    with (
        load(home, model, inputs, answers, threads=2, timeout_s=timeout_s) as hasty,
        load(
            home, model, inputs, answers, threads=2, retry_s=RETRY_S, timeout_s=timeout_s
        ) as patient,
    ):
        yield hasty, patient
