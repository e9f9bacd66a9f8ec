"""Damaged messages between parties, and damaged requests: one typed error each, and no hang.

1,000 of the 2,000 mutants of private inference; the others are of encrypted requests.
"""

import queue
import random
import secrets
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from marship.errors import PartyError, PrivateError, RequestError
from marship.serving.private.mpc import boxes, frames, ring
from marship.serving.private.mpc.frames import Circle
from marship.serving.private.mpc.party import Participant
from marship.serving.private.mpc.streams import MaskStream
from trios import Trio, open_outputs, package, running

BETWEEN, ASKED = 400, 600
SEED = 16
ROW = np.full((1, 6), 0.5)


class Spoiled:
    """A connection whose nth message is damaged on its way."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain, self._left, self._change = plain, -1, random.Random()  # noqa: S311  no secret

    def spoil(self, number: int, change: random.Random) -> None:
        """Damage the message of this number from now."""
        self._left, self._change = number, change

    def sendall(self, data: bytes) -> None:
        """Send, or damage and send."""
        self._left -= 1
        if self._left == -1:
            data = mutated(data, self._change)
        self._plain.sendall(data)

    def recv_into(self, buffer: memoryview) -> int:
        """Receive."""
        return self._plain.recv_into(buffer)

    def settimeout(self, value: float | None) -> None:
        """Set the time limit."""
        self._plain.settimeout(value)

    def close(self) -> None:
        """Close."""
        self._plain.close()


def mutated(data: bytes, change: random.Random) -> bytes:
    """Bytes with a bit flipped, a piece cut out or doubled, or other bytes."""
    found, place = bytearray(data), change.randrange(len(data))
    kind = change.randrange(5)
    if kind == 0:
        found[place] ^= 1 << change.randrange(8)
    elif kind == 1:
        found[change.randrange(min(9, len(found)))] ^= 1 << change.randrange(8)  # the head
    elif kind == 2:
        del found[place : place + change.randrange(1, 40)]
    elif kind == 3:
        found[place:place] = change.randbytes(change.randrange(1, 40))
    else:
        found[place:] = change.randbytes(len(found) - place)
    return bytes(found)


def seats(trio: Trio) -> tuple[list[Participant], list[Spoiled]]:
    """The three parties on plain sockets, without greetings; and each one's way out."""
    pairs = [socket.socketpair() for _ in range(3)]  # party n sends on pairs[n][0]
    out = [Spoiled(pair[0]) for pair in pairs]
    keys = [secrets.token_bytes(32) for _ in range(3)]
    found = []
    for n, station in enumerate(trio.stations):
        before, after = (n - 1) % 3, (n + 1) % 3
        circle = Circle(out[n], pairs[after][1], (before, after))
        streams = (MaskStream(keys[n]), MaskStream(keys[after]))
        found.append(Participant(station.model, station.desk, station.sizes, circle, streams))
    return found, out


def session(trio: Trio, number: int, message: int, change: random.Random) -> object:
    """What party 0 has of a question if a party's nth message is damaged; all end."""
    parties, out = seats(trio)
    station = trio.stations[0]
    body, request_id, keys = boxes.seal(ring.encode(ROW), station.sizes, station.program.cards)
    out[number].spoil(message, change)
    ends: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def follow(one: Participant) -> None:
        try:
            one.follow()
        except BaseException as error:
            ends.put(error)
            one.circle.close(str(error))

    threads = [threading.Thread(target=follow, args=(one,), daemon=True) for one in parties[1:]]
    for thread in threads:
        thread.start()
    try:
        (answer,) = parties[0].lead([boxes.parse(body, station.sizes)])
        if not isinstance(answer, bytes):
            return answer
        return ring.decode(boxes.unseal(answer, station.sizes, request_id, keys, 1))
    except (PartyError, PrivateError) as error:
        return error
    finally:
        parties[0].circle.close("the end")
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
            assert type(ends.get(timeout=1)) is PartyError


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """A packaged model."""
    return package(tmp_path_factory.mktemp("trio"))


def test_a_damaged_message_between_parties_ends_in_one_typed_error(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or in an answer: words alone cannot be told from others. No party hangs or fails otherwise.

    Messages are damaged behind TLS, as by a party that does not follow the protocol.
    """
    monkeypatch.setattr(frames, "ANSWER_S", 0.05)
    change = random.Random(SEED)  # noqa: S311  no secret
    kinds: dict[str, int] = {}
    for _ in range(BETWEEN):
        found = session(trio, change.randrange(3), change.randrange(14), change)
        assert isinstance(found, np.ndarray | PartyError | PrivateError | RequestError)
        kinds[type(found).__name__] = kinds.get(type(found).__name__, 0) + 1
    assert kinds["PartyError"] > BETWEEN / 4
    found = session(trio, 0, 10**6, change)
    assert isinstance(found, np.ndarray)
    assert np.abs(found - open_outputs(trio.model, ROW)).max() < 0.01


@pytest.fixture(scope="module")
def together(trio: Trio) -> Iterator[Trio]:
    """The same model's parties in session."""
    with running(trio) as one:
        yield one


def test_a_damaged_request_fails_alone(together: Trio) -> None:
    """With a typed error, while the questions beside it in its batch are answered."""
    station = together.stations[0]
    change = random.Random(SEED)  # noqa: S311  no secret
    cards, wanted = station.program.cards, open_outputs(together.model, ROW)
    assert together.leader is not None
    for _ in range(ASKED // 20):
        good, request_id, keys = boxes.seal(ring.encode(ROW), station.sizes, cards)
        questions = [boxes.parse(good, station.sizes)]
        for _ in range(20):
            body, _, _ = boxes.seal(ring.encode(ROW), station.sizes, cards)
            try:
                questions.append(boxes.parse(mutated(body, change), station.sizes))
            except RequestError:
                continue  # refused before the batch
        first, *others = together.leader.ask(questions)
        assert all(isinstance(answer, RequestError) for answer in others)
        assert isinstance(first, bytes)
        found = ring.decode(boxes.unseal(first, station.sizes, request_id, keys, 1))
        assert np.abs(found - wanted).max() < 0.01


def test_a_damaged_answer_is_never_used(together: Trio) -> None:
    """Whatever changes on its way back: an error, no numbers."""
    change = random.Random(SEED)  # noqa: S311  no secret
    station = together.stations[0]
    body, request_id, keys = boxes.seal(ring.encode(ROW), station.sizes, station.program.cards)
    assert together.leader is not None
    (answer,) = together.leader.ask([boxes.parse(body, station.sizes)])
    assert isinstance(answer, bytes)
    for _ in range(100):
        damaged = mutated(answer, change)
        if damaged == answer:
            continue
        with pytest.raises(PrivateError):
            boxes.unseal(damaged, station.sizes, request_id, keys, 1)
