"""Parties 1 and 2: they wait for party 0, and take part in one session at a time."""

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from marship.errors import PartyError
from marship.serving.private.mpc.links import Doors, Greeting, Link
from marship.serving.private.mpc.party import Participant

logger = logging.getLogger(__name__)

_MOST_GREETING = 16
"""Connections that may greet at the same time. With one more the oldest is closed: strangers that
never greet use up no memory, and keep no party out."""


@dataclass(slots=True)
class _Lobby:
    """The parties that have arrived for a session."""

    session: str
    links: dict[int, Link] = field(default_factory=dict)


class Follower:
    """A party that others dial.

    Args:
        doors: How it is reached.
        sit: This party in a session, of its links to the parties before it and after it.
        ear: The socket that listens.
    """

    def __init__(
        self, doors: Doors, sit: Callable[[Link, Link], Participant], ear: socket.socket
    ) -> None:
        self._doors, self._sit, self._ear = doors, sit, ear
        self._number = doors.own.number
        self._lock = threading.Lock()
        self._greeting: list[socket.socket] = []
        self._lobby: _Lobby | None = None
        self._is_busy = self._is_over = False
        self._links: dict[int, Link] = {}
        self.sessions = 0

    def serve(self) -> None:
        """Take part in sessions until `stop`."""
        while not self._is_over:
            try:
                plain, _ = self._ear.accept()
            except OSError:
                if self._is_over:
                    return
                continue
            self._make_room()
            handle = plain.dup()  # TLS takes the socket itself over
            self._greeting.append(handle)
            threading.Thread(target=self._greet, args=(plain, handle), daemon=True).start()

    def stop(self) -> None:
        """Take no further part."""
        self._is_over = True
        with contextlib.suppress(OSError):
            self._ear.shutdown(socket.SHUT_RDWR)
        self._ear.close()

    def drop(self) -> None:
        """End the session that runs, as the end of the process does.

        The party that hears this one's faults is cut off first: a process that ends says nothing.
        """
        before = self._number - 1
        for number in sorted(self._links, key=lambda one: one != before):
            with contextlib.suppress(OSError):
                self._links[number].wire.shutdown(socket.SHUT_RDWR)

    def _make_room(self) -> None:
        while len(self._greeting) >= _MOST_GREETING:
            oldest = self._greeting.pop(0)
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)

    def _greet(self, plain: socket.socket, handle: socket.socket) -> None:
        try:
            wire, peer = self._doors.admit(plain)
            full = self._arrive(wire, peer)
        except PartyError as error:
            logger.warning("a connection was refused: %s", error)
            return
        finally:
            with contextlib.suppress(ValueError):  # it was the oldest
                self._greeting.remove(handle)
            handle.close()
        if full is not None:
            self._run(full)

    def _arrive(self, wire: ssl.SSLSocket, peer: Greeting) -> _Lobby | None:
        """Put a party into the lobby of its session; the lobby, if all have arrived."""
        with self._lock:
            if self._is_busy:
                self._doors.refuse(
                    wire,
                    f"party {self._number} must have one session, got a second from party "
                    f"{peer.party}. Run one worker of a private model: marship scale MODEL 1",
                )
                return None
            if self._lobby is None or self._lobby.session != peer.session:
                self._clear()
                self._lobby = _Lobby(peer.session)
            lobby = self._lobby
            if peer.party in lobby.links:
                self._doors.refuse(wire, f"party {peer.party} must greet once, got it twice.")
                return None
            lobby.links[peer.party] = self._doors.accept(wire, peer)
            if len(lobby.links) < self._number:  # party 1 waits for 0, party 2 for 0 and 1
                return None
            self._lobby, self._is_busy = None, True
            return lobby

    def _clear(self) -> None:
        for link in self._lobby.links.values() if self._lobby else ():
            link.close()

    def _run(self, lobby: _Lobby) -> None:
        links = self._links = lobby.links
        seat: Participant | None = None
        try:
            if self._number == 1:
                links[2] = self._doors.dial(2, lobby.session)
            seat = self._sit(links[self._number - 1], links[(self._number + 1) % 3])
            seat.check_golden()
            self.sessions += 1
            logger.info("a session with the other parties began")
            seat.follow()
        except PartyError as error:
            logger.warning("the session ended: %s", error)
            self._close(links, seat, str(error))
        except Exception:
            logger.exception("the session failed")
            self._close(links, seat, f"party {self._number} must compute every batch, and failed.")
        finally:
            with self._lock:
                self._is_busy = False

    def _close(self, links: dict[int, Link], seat: Participant | None, reason: str) -> None:
        if seat is None and 0 in links:  # party 1 without party 2: party 0 shall know why
            seat = self._sit(links[0], links[0]) if self._number == 1 else None
        if seat is not None:
            seat.circle.close(reason)
        for link in links.values():
            link.close()


def listen(address: str) -> socket.socket:
    """A socket that listens at host:port.

    Raises:
        PartyError: The address is malformed or taken.
    """
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        ear = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=16)
    except (OSError, ValueError, OverflowError) as error:
        raise PartyError(
            f"a party must listen at its card's address, {address}, got: {error}. Make another "
            "card, or end what listens there."
        ) from error
    ear.settimeout(None)
    return ear
