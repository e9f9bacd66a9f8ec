"""Connections passed on with what was read of them."""

import asyncio
import errno
import os
import resource
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import uvloop

from marship.serving.hosts.direct.sockets import HANDSHAKES_S, INLINE_BYTES, Channel, Packet, accept


def open_files() -> set[str]:
    """This process's descriptors; what an earlier test still closes may be among them."""
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 3_000_000])
def test_a_connection_arrives_with_its_bytes(size: int) -> None:
    """However many they are; the sender keeps no descriptor."""
    unread = os.urandom(size)
    before = open_files()

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
            facts = line.recv(5)
        client.close()
        sender.close()
        receiver.close()
        return payload, facts

    assert asyncio.run(pass_on()) == (unread, b"hello")
    assert not open_files() - before


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
        receiver = Channel(loop, theirs, lambda p: got.append(p.facts["n"]), lambda: None)
        while len(got) < 500:
            await asyncio.sleep(0)
        sender.close()
        receiver.close()
        return got

    assert asyncio.run(fill()) == list(range(500))


def test_packets_that_wait_for_a_side_that_goes_are_closed() -> None:
    """Once, with what travels with them, and without an error."""
    before = open_files()

    async def fill() -> int:
        loop = asyncio.get_running_loop()
        errors: list[object] = []
        loop.set_exception_handler(lambda _, facts: errors.append(facts))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lost = asyncio.Event()
        sender = Channel(loop, ours, lambda _: None, lost.set)
        for _ in range(500):
            fd = os.open("/dev/null", os.O_RDONLY)
            sender.send(Packet("n", fds=[fd], rest=bytes(20_000)))
        assert sender.waiting > 1
        theirs.close()
        sender.flush()
        await asyncio.wait_for(lost.wait(), 5)
        return len(errors)

    assert asyncio.run(fill()) == 0
    assert not open_files() - before


def test_descriptors_that_do_not_fit_are_told() -> None:
    """A process with too many files open gets the packet without them (MSG_CTRUNC)."""

    async def pass_on() -> Packet:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        got: asyncio.Future[Packet] = loop.create_future()
        sender = Channel(loop, ours, lambda _: None, lambda: None)
        receiver = Channel(loop, theirs, got.set_result, lambda: None)
        sender.send(Packet.with_connection("connection", os.dup(0), bytes(INLINE_BYTES + 1), 7))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        fd = os.dup(0)
        os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, hard))  # room for one of two
        try:
            return await asyncio.wait_for(got, 5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            sender.close()
            receiver.close()

    before = open_files()
    packet = asyncio.run(pass_on())
    assert (packet.is_cut, packet.fds, packet.facts["slot"]) == (True, [], 7)
    assert not open_files() - before


def test_bytes_that_find_no_room_leave_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last free one was taken for the file, and what it holds could not be written."""
    before = open_files()

    def full(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "fdopen", full)
    monkeypatch.setattr(os, "dup", full)
    with pytest.raises(OSError, match="Too many open files"):
        Packet.with_connection("connection", None, bytes(INLINE_BYTES + 1))
    monkeypatch.undo()
    assert not open_files() - before


def test_accepting_rests_while_too_many_files_are_open() -> None:
    """It does not turn round and round, and goes on as soon as there is room."""

    async def connect() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        errors: list[object] = []
        loop.set_exception_handler(lambda _, facts: errors.append(facts))
        listener, taken, tries = socket.create_server(("127.0.0.1", 0)), asyncio.Event(), 0

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(listener, name)

            def accept(self) -> Any:
                nonlocal tries
                tries += 1
                if tries <= 3:
                    raise OSError(24, "Too many open files")
                return listener.accept()

        def take(line: socket.socket) -> None:
            line.close()
            taken.set()

        accept(loop, Full(), take)  # type: ignore[arg-type]
        client = socket.create_connection(listener.getsockname())
        await asyncio.wait_for(taken.wait(), 5)
        loop.remove_reader(listener.fileno())
        client.close()
        listener.close()
        return tries, len(errors)

    tries, errors = asyncio.run(connect())
    assert (errors, tries < 8) == (0, True)


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM])
def test_what_the_kernel_has_no_memory_for_waits(number: int) -> None:
    """Another user's descriptors on their way, or no buffer: the other side is not gone."""

    async def fill() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tries = 0

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(ours, name)

            def sendmsg(self, *words: Any) -> int:
                nonlocal tries
                tries += 1
                if tries <= 2:
                    raise OSError(number, os.strerror(number))
                return ours.sendmsg(*words)

        got: list[int] = []
        done = asyncio.Event()
        sender = Channel(loop, Full(), lambda _: None, done.set)  # type: ignore[arg-type]

        def take(packet: Packet) -> None:
            got.append(packet.facts["n"])
            packet.close()
            if len(got) == 3:
                done.set()

        receiver = Channel(loop, theirs, take, done.set)
        for each in range(3):
            sender.send(Packet("n", {"n": each}, [os.dup(0)]))
        await asyncio.wait_for(done.wait(), 5)
        sender.close()
        receiver.close()
        return got, tries

    before = open_files()
    got, tries = asyncio.run(fill())
    assert got == [0, 1, 2]
    assert tries < 8  # it does not turn round and round
    assert not open_files() - before


@pytest.mark.parametrize("is_uvloop", [False, True])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("sends", [0, 1, 3])
def test_what_lies_unread_arrives_though_the_sender_has_died(
    is_uvloop: bool, before: int, sends: int
) -> None:
    """Whether this side sent something that nobody read, and whether it sends before it reads."""
    count = 200

    async def pass_on() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        got: list[int] = []
        ended: list[bool] = []
        lost = asyncio.Event()

        def take(packet: Packet) -> None:
            assert not lost.is_set()
            with socket.socket(fileno=packet.fds[0]) as line:
                line.send(b"x")
            got.append(packet.facts["slot"])

        def on_lost() -> None:
            ended.append(True)
            lost.set()

        receiver = Channel(loop, theirs, take, on_lost)
        for _ in range(before):
            receiver.send(Packet("load"))
        sender = Channel(loop, ours, lambda _: None, lambda: None)
        clients = []
        for slot in range(count):
            client, server = socket.socketpair()
            clients.append(client)
            sender.send(Packet.with_connection("connection", server.detach(), b"GET", slot))
        assert not sender.waiting
        sender.close()
        for _ in range(sends):
            receiver.send(Packet("load", fds=[os.dup(0)]))
        await asyncio.wait_for(lost.wait(), 5)
        answered = sum(client.recv(1) == b"x" for client in clients)
        for client in clients:
            client.close()
        assert ended == [True]
        return got, answered

    uvloop.new_event_loop().close()  # the first one opens files that stay
    before_files = open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if is_uvloop else None) as runner:
        assert runner.run(pass_on()) == (list(range(count)), count)
    assert not open_files() - before_files


@pytest.mark.parametrize("attempt", range(5))
def test_no_client_that_could_connect_is_reset_at_the_end(attempt: int) -> None:
    """Whenever its handshake ends; those that come later are refused."""
    loop, faults, refused = asyncio.new_event_loop(), list[str](), list[int]()
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    address = listener.getsockname()

    def take(line: socket.socket) -> None:
        line.setblocking(True)
        with line:
            line.sendall(line.recv(1))

    def ask(number: int) -> None:
        while True:
            try:
                line = socket.create_connection(address, 10)
            except ConnectionRefusedError:
                refused.append(number)
                return
            try:
                with line:
                    line.sendall(b"x")
                    assert line.recv(1) == b"x"
            except (OSError, AssertionError) as error:
                faults.append(repr(error))
                return

    finish = accept(loop, listener, take)
    clients = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for each in clients:
        each.start()
    loop.call_later(0.2 + attempt / 100, finish)
    loop.call_later(0.2 + attempt / 100 + 2 * HANDSHAKES_S, loop.stop)
    loop.run_forever()
    for each in clients:
        each.join(20)
    loop.close()
    assert faults == []
    assert sorted(refused) == list(range(6))
