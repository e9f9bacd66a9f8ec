"""What a server's acceptor tells those who ask at the socket of its workers."""

import json
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from marship.engines.home import WORKERS_SOCKET
from marship.engines.torchserve.access import Access

_MOST_BYTES, _WAIT_S = 1 << 17, 1.0


def ask(access: Access, questions: Iterable[Mapping[str, object]]) -> list[Mapping[str, Any]]:
    """The answers, as many as come: none where there is no acceptor, fewer where it ends.

    Args:
        access: The server, on this machine.
        questions: Packets with their kind.
    """
    record = access.home.running() if access.is_local else None
    answers: list[Mapping[str, Any]] = []
    if record is None or record.acceptor is None:
        return answers
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(_WAIT_S)
        line.connect(f"{record.tmp}/{WORKERS_SOCKET}")
        for question in questions:
            line.send(json.dumps(question).encode() + b"\n")
            if not (answer := line.recv(_MOST_BYTES)):
                break
            answers.append(json.loads(answer))
    return answers
