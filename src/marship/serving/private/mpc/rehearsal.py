"""All three parties in one process: what packing tries a model with, and tests."""

import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from marship.errors import PartyError
from marship.serving.private.mpc import shares
from marship.serving.private.mpc.model import SharedModel
from marship.serving.private.mpc.protocol import Neighbours, Party
from marship.serving.private.mpc.ring import Words
from marship.serving.private.mpc.shares import PARTIES
from marship.serving.private.mpc.streams import KEY_BYTES, MaskStream

_WAIT_S = 60.0

Put = Callable[[int, bytes], bytes]
"""What becomes of a message to a party, given its number: for tests that read or change it."""


class _Queues:
    """A party's way to the others, without sockets."""

    def __init__(self, number: int, queues: Sequence["queue.SimpleQueue[bytes]"], put: Put) -> None:
        self._target = (number - 1) % PARTIES
        self._sink, self._source = queues[self._target], queues[number]
        self._put = put

    def send(self, data: bytes) -> None:
        """Send to the party before."""
        self._sink.put(self._put(self._target, data))

    def receive(self, size_bytes: int) -> bytes:
        """Receive from the party after."""
        data = self._source.get(timeout=_WAIT_S)
        if len(data) != size_bytes:
            raise PartyError(f"a message must have {size_bytes} bytes, got {len(data)}.")
        return data


def parties(put: Put = lambda _, data: data) -> list[Party]:
    """Three parties that know each other."""
    queues: list[queue.SimpleQueue[bytes]] = [queue.SimpleQueue() for _ in range(PARTIES)]
    keys = [secrets.token_bytes(KEY_BYTES) for _ in range(PARTIES)]
    channels: list[Neighbours] = [_Queues(number, queues, put) for number in range(PARTIES)]
    return [
        Party(n, channels[n], MaskStream(keys[n]), MaskStream(keys[(n + 1) % PARTIES]))
        for n in range(PARTIES)
    ]


T = TypeVar("T")


def together(work: Callable[[int], T]) -> list[T]:
    """What each party's work returns, all at the same time; raises the first error."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def one(number: int) -> None:
        try:
            results[number] = work(number)
        except BaseException as error:  # raised below, in the thread that asked
            errors.append(error)

    threads = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(PARTIES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(PARTIES)]


def run(models: Sequence[SharedModel], values: Words, put: Put = lambda _, data: data) -> Words:
    """The outputs of a batch, words of shape (rows, output size)."""
    dealt, trio = shares.deal(values), parties(put)
    outputs = together(lambda n: models[n].run(trio[n], shares.take(dealt[n], n, values.shape)))
    return shares.join(outputs)


def golden_misses(models: Sequence[SharedModel]) -> int:
    """As `SharedModel.golden_misses`; all parties learn the same."""
    trio = parties()
    return int(np.max(together(lambda n: models[n].golden_misses(trio[n]))))
