"""PartyHandler: party 0 of three in a worker, whose batch is the protocol's batch. Experimental.

A request holds shares sealed for each party, and plain ones are refused: see `boxes`. One worker
serves a model: it and the two other parties hold streams of random words in step, and a batch
already fills the processor that a second worker would need.
"""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from marship.contract import Arrays, Contract
from marship.errors import LoadError, MarshipError, ModelError
from marship.serving.formats.codec import OCTETS_TYPE
from marship.serving.handler import Clock, OnnxHandler, Reply, Request
from marship.serving.model import dumps
from marship.serving.model.graphs import Graphs
from marship.serving.model.session import Session, SessionSettings
from marship.serving.openapi import schemas
from marship.serving.openapi.interface import ENCRYPTED, BodyForm, Interface
from marship.serving.private.mpc import boxes, files
from marship.serving.private.mpc.boxes import Question
from marship.serving.private.mpc.identity import KEY_VARIABLE
from marship.serving.private.mpc.leader import Leader

logger = logging.getLogger(__name__)


class SharedSession(Session):
    """Stands where a model's session does: what runs is the protocol.

    Args:
        contract: The model's.
        settings: Of the worker.
    """

    def __init__(self, contract: Contract, settings: SessionSettings) -> None:
        self.contract, self.settings, self.sample = contract, settings, {}
        self.is_shared = False

    def run(self, inputs: Arrays, options: object = None) -> Arrays:  # noqa: ARG002
        """Refuse: no party has the model.

        Raises:
            ModelError: Always.
        """
        raise ModelError("a model of three parties must be asked with shares, got plain inputs.")

    def renew(self, settings: SessionSettings) -> bool:
        """Take other settings: the protocol has one thread."""
        self.settings = settings
        return True


class PartyHandler(OnnxHandler):
    """Answers sealed shares with sealed shares, together with parties 1 and 2."""

    is_private = waits_for_others = True

    def _open(self, settings: SessionSettings) -> Session:
        dumps.forbid()
        key = os.environ.get(KEY_VARIABLE)
        if not key:
            raise LoadError(
                f"{KEY_VARIABLE} must name the file with this party's private key, got none. Set "
                "it where the server is started."
            )
        self._place = files.read(self.folder, Path(key))
        if self._place.own.number != 0:
            raise LoadError(
                f"the party in a worker must be 0, got {self._place.own.number}. Run the others "
                "with: marship party ARCHIVE"
            )
        self.graphs, self.golden_s, self._golden_requests = Graphs(), [], []
        return SharedSession(self.contract, settings)

    def start(self) -> None:
        """Connect to the other parties, and stay connected.

        Raises:
            LoadError: They have a session with another worker of this model.
        """
        super().start()
        self.leader.start()

    @cached_property
    def leader(self) -> Leader:
        """The session with the others."""
        return Leader(self._place.doors.dial, self._place.sit)

    def rechecks(self) -> bool:
        """No rows are rechecked: the worker cannot read them."""
        return False

    def advice(self) -> object:
        """Who can ask."""
        return "shares that marship.private.MpcClient has sealed for three parties"

    def interface(self) -> Interface:
        """Shares of a client of marship."""
        body = BodyForm(OCTETS_TYPE, schemas.BINARY, "sealed shares")
        codes = {"409": ["replayed"], "503": ["party"]}
        return Interface(ENCRYPTED, (body,), (body,), codes=codes, about=str(self.advice()))

    def decode(self, request: Request) -> tuple[Arrays, Question]:
        """Read a request as far as party 0 can.

        Raises:
            RequestError: It is none, or for another model.
        """
        body = request.body
        data = bytes(body) if isinstance(body, bytes | bytearray | memoryview) else b""
        return {}, boxes.parse(data, self._place.sizes)

    def encode(self, outputs: bytes, state: Question) -> Reply:
        """The response, which the client alone can read."""
        del state
        return Reply(outputs, OCTETS_TYPE)

    def _reply_each(self, requests: Sequence[Request], clock: Clock) -> list[Reply]:
        states: list[Question | None] = [None] * len(requests)
        decoded = [self._decode(request, states, i) for i, request in enumerate(requests)]
        clock.lap("decode")
        good = [question for question in states if question is not None]
        answers = iter(self.leader.ask(good))
        results: list[bytes | MarshipError] = [
            one if isinstance(one, MarshipError) else next(answers) for one in decoded
        ]
        clock.lap("infer")
        replies = [
            self._failed(one) if isinstance(one, MarshipError) else Reply(one, OCTETS_TYPE)
            for one in results
        ]
        clock.lap("encode")
        return replies
