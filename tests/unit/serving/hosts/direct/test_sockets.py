"""Connections passed on with what was read of them."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from marship.serving.hosts.direct.sockets import INLINE_BYTES, Channel, Packet


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 3_000_000])
def test_a_connection_arrives_with_its_bytes(size: int) -> None:
    """However many they are; the sender keeps no descriptor."""
    unread = os.urandom(size)
    before = len(list(Path("/proc/self/fd").iterdir()))

    async def pass_on() -> tuple[bytes, bytes]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        got: asyncio.Future[Packet] = loop.create_future()
        sender = Channel(loop, ours, lambda _: None, lambda: None)
        receiver = Channel(loop, theirs, got.set_result, lambda: None)
        client, server = socket.socketpair()
        sender.send(Packet.with_connection("connection", server.detach(), unread))
        packet = await got
        payload = packet.payload()
        with socket.socket(fileno=packet.fds[0]) as line:
            client.sendall(b"hello")
            told = line.recv(5)
        client.close()
        sender.close()
        receiver.close()
        return payload, told

    assert asyncio.run(pass_on()) == (unread, b"hello")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_the_other_side_does_not_take_waits_in_order() -> None:
    """Nothing is lost where its buffer is full; all is closed when it is gone."""

    async def fill() -> list[int]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender = Channel(loop, ours, lambda _: None, lambda: None)
        for number in range(500):
            sender.send(Packet("n", {"n": number}, rest=bytes(20_000)))
        assert sender.waiting > 0
        got: list[int] = []
        receiver = Channel(loop, theirs, lambda p: got.append(p.told["n"]), lambda: None)
        while len(got) < 500:
            await asyncio.sleep(0)
        sender.close()
        receiver.close()
        return got

    assert asyncio.run(fill()) == list(range(500))
