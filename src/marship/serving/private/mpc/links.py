"""Connections between parties: mutual TLS 1.3, and a greeting that both ends check.

The party with the lower number dials: 0 dials 1 and 2, 1 dials 2. The certificate must be that of
the number that the greeting states, and the model's digest that of one's own.
"""

import contextlib
import hashlib
import json
import secrets
import socket
import ssl
from dataclasses import asdict, dataclass

from marship.errors import PartyError
from marship.serving.private.mpc.frames import ANSWER_S, GREETING, HEAD, Circle
from marship.serving.private.mpc.identity import PartyKey
from marship.serving.private.mpc.program import SharedProgram
from marship.serving.private.mpc.shares import PARTIES
from marship.serving.private.mpc.streams import KEY_BYTES, MaskStream

PROTOCOL = 1
_MOST_GREETING_BYTES = 4096
_SEND_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a party says first.

    Attributes:
        protocol: The version of the messages.
        party: Its number.
        model: Its model's name and version.
        digest: Its model's digest.
        session: The session, which party 0 named; in hexadecimal.
        key: Its half of the stream's key that both share; in hexadecimal.
        refusal: Why there will be no session; empty if there will be one.
        is_busy: Whether that is since another session runs.
    """

    protocol: int
    party: int
    model: str
    digest: str
    session: str
    key: str = ""
    refusal: str = ""
    is_busy: bool = False


@dataclass(slots=True)
class Link:
    """A greeted party.

    Attributes:
        wire: The connection.
        peer: Its greeting.
        stream: The words that both draw.
    """

    wire: ssl.SSLSocket
    peer: Greeting
    stream: MaskStream

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.wire.close()


class BusyError(PartyError):
    """The other party refuses a session since another one runs."""


class Doors:
    """How one party reaches the others, and is reached.

    Args:
        own: The party.
        program: The model.
        digest: The model's digest.
    """

    def __init__(self, own: PartyKey, program: SharedProgram, digest: bytes) -> None:
        self.own, self.program, self.digest = own, program, digest.hex()
        self._client = own.context(program, is_server=False)
        self._server = own.context(program, is_server=True)

    def greeting(self, session: str, refusal: str = "", *, is_busy: bool = False) -> Greeting:
        """This party's greeting, with a fresh key."""
        program = self.program
        key = "" if refusal else secrets.token_hex(KEY_BYTES)
        model = f"{program.model} {program.version}"
        number = self.own.number
        return Greeting(PROTOCOL, number, model, self.digest, session, key, refusal, is_busy)

    def dial(self, number: int, session: str) -> Link:
        """Connect to a party, and greet it.

        Raises:
            PartyError: It cannot be reached, is another party, has another model, or refuses.
        """
        address = self.program.cards[number].address
        host, _, port = address.rpartition(":")
        try:
            plain = socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S)
            wire = self._client.wrap_socket(prepared(plain), server_hostname=f"party{number}")
        except (OSError, ValueError) as error:
            raise PartyError(
                f"party {number} must answer at {address} with its own certificate, got: "
                f"{_said(error)}. Start it with: marship party ARCHIVE"
            ) from error
        try:
            own = self.greeting(session)
            send_greeting(wire, own)
            peer = receive_greeting(wire, number)
            if peer.refusal:
                kind = BusyError if peer.is_busy else PartyError
                raise kind(peer.refusal)
            self.check(wire, peer)
        except PartyError:
            wire.close()
            raise
        return Link(wire, peer, _stream(own, peer))

    def admit(self, plain: socket.socket) -> tuple[ssl.SSLSocket, Greeting]:
        """Let a party in that dialled, and read its greeting, which is checked.

        Raises:
            PartyError: It is none, lies about its number, or has another model.
        """
        try:
            wire = self._server.wrap_socket(prepared(plain), server_side=True)
        except (OSError, ValueError) as error:
            plain.close()
            raise PartyError(f"a party must prove itself by TLS, got: {_said(error)}.") from error
        try:
            peer = receive_greeting(wire, None)
            self.check(wire, peer)
        except PartyError as error:
            with contextlib.suppress(PartyError):
                send_greeting(wire, self.greeting("", str(error)))
            wire.close()
            raise
        return wire, peer

    def accept(self, wire: ssl.SSLSocket, peer: Greeting) -> Link:
        """Greet a party that was admitted."""
        own = self.greeting(peer.session)
        send_greeting(wire, own)
        return Link(wire, peer, _stream(peer, own))

    def refuse(self, wire: ssl.SSLSocket, reason: str) -> None:
        """Send a party away that was admitted."""
        with contextlib.suppress(PartyError):
            send_greeting(wire, self.greeting("", reason, is_busy=True))
        wire.close()

    def check(self, wire: ssl.SSLSocket, peer: Greeting) -> None:
        """Hold a greeting against the certificate and one's own model.

        Raises:
            PartyError: They differ.
        """
        shown = wire.getpeercert(binary_form=True)
        known = {
            ssl.PEM_cert_to_DER_cert(card.certificate): card.party for card in self.program.cards
        }
        number = known.get(shown or b"")
        if number is None or number != peer.party or number == self.own.number:
            raise PartyError(
                f"a party must show the certificate of its number, got that of party {number} for "
                f"party {peer.party}."
            )
        if peer.protocol != PROTOCOL:
            raise PartyError(
                f"party {number} must speak version {PROTOCOL} of the protocol, got "
                f"{peer.protocol}. Install the same version of marship at all parties."
            )
        if peer.digest != self.digest:
            own = f"{self.program.model} {self.program.version} ({self.digest[:16]})"
            raise PartyError(
                f"party {number} must have the model of party {self.own.number}, {own}, got "
                f"{peer.model} ({peer.digest[:16]}). Use archives that were packaged together."
            )

    def circle(self, before: Link, after: Link) -> tuple[Circle, MaskStream, MaskStream]:
        """The two connections of a session, and the streams shared with both parties."""
        names = ((self.own.number - 1) % PARTIES, (self.own.number + 1) % PARTIES)
        return Circle(before.wire, after.wire, names), before.stream, after.stream


def prepared(plain: socket.socket) -> socket.socket:
    """A connection whose small messages are sent at once."""
    plain.settimeout(ANSWER_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return plain


def send_greeting(wire: ssl.SSLSocket, own: Greeting) -> None:
    """Send a greeting.

    Raises:
        PartyError: The connection is lost.
    """
    data = json.dumps(asdict(own)).encode()
    try:
        wire.sendall(HEAD.pack(len(data), 0, GREETING) + data)
    except OSError as error:
        raise PartyError(f"a party must stay connected, got: {_said(error)}.") from error


def receive_greeting(wire: ssl.SSLSocket, number: int | None) -> Greeting:
    """Read the greeting of a party; None is one that is not known yet.

    Raises:
        PartyError: The connection is lost, or something else came.
    """
    name = "a party" if number is None else f"party {number}"
    try:
        head = _exactly(wire, HEAD.size)
        length, _, kind = HEAD.unpack(head)
        if kind != GREETING or length > _MOST_GREETING_BYTES:
            raise ValueError("no greeting")
        found = Greeting(**json.loads(_exactly(wire, length)))
        texts = (found.model, found.digest, found.session, found.key, found.refusal)
        if type(found.party) is not int or not all(isinstance(text, str) for text in texts):
            raise ValueError("a greeting of another form")
        bytes.fromhex(found.key)
    except (OSError, ValueError, TypeError) as error:
        raise PartyError(f"{name} must greet, got: {_said(error)}.") from error
    return found


def _exactly(wire: ssl.SSLSocket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        more = wire.recv(size_bytes - len(data))
        if not more:
            raise ValueError("the end")
        data += more
    return data


def _stream(dialling: Greeting, answering: Greeting) -> MaskStream:
    both = f"{dialling.key}{answering.key}{dialling.session}"
    return MaskStream(hashlib.sha256(both.encode()).digest())


def _said(error: Exception) -> str:
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    return str(reason or getattr(error, "strerror", None) or error)
