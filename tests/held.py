"""Clients whose every step is held until a test lets them take it: any interleaving, no sleeps."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from management import Management
from marship import Client
from marship.errors import NoAnswerError
from marship.exchange.calls import Call, Flow, HttpResponse, Pause, Step, Work

T = TypeVar("T")
PATIENCE_S = 20


class Held:
    """A client's work on a thread of its own, one step at a time.

    Args:
        who: The client, as the server's model notes it.
        home: The home of its machine.
        server: What it asks.
        act: What it does.

    Attributes:
        at: The step that it waits to take; None once it is done.
        result, error: How it ended.
    """

    def __init__(
        self, who: str, home: Path, server: Management, act: Callable[[Client], Any]
    ) -> None:
        self.who, self._server = who, server
        self.at: Step | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self._fault: BaseException | None = None
        self._is_lost = False
        self._turn, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._client = Client(home, retry_s=0)
        vars(self._client)["_transport"] = self
        self._thread = threading.Thread(target=self._run, args=(act,), daemon=True)
        self._thread.start()
        self._await()

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self.at is None

    def step(self, fault: BaseException | None = None, *, loses: bool = False) -> None:
        """Let it take its step; or fail there, or have the step's response lost."""
        self._fault, self._is_lost = fault, loses
        self._turn.release()
        self._await()

    def finish(self) -> None:
        """Let it take all the steps that are left."""
        while not self.is_done:
            self.step()

    def _await(self) -> None:
        assert self._arrived.acquire(timeout=PATIENCE_S), f"{self.who} neither asks nor ends"

    def _run(self, act: Callable[[Client], Any]) -> None:
        try:
            self.result = act(self._client)
        except BaseException as error:
            self.error = error
        self.at = None
        self._arrived.release()

    def run(self, flow: Flow[T]) -> T:
        """A transport's work: the flow's result."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = error = None
            try:
                answer = self._take(step)
            except BaseException as problem:
                error = problem

    def close(self) -> None:
        """Nothing is open."""

    def _take(self, step: Step) -> HttpResponse | Any:
        if isinstance(step, Pause):  # time passes for nobody else
            return None
        self.at = step
        self._arrived.release()
        assert self._turn.acquire(timeout=PATIENCE_S), "the test has forgotten this client"
        if self._fault is not None:
            raise self._fault
        if isinstance(step, Work):
            return step.run()
        assert isinstance(step, Call)
        answer = self._server.answer(step, self.who)
        if self._is_lost:
            raise NoAnswerError("the response was lost")
        return answer
