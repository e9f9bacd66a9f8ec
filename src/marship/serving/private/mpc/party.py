"""A batch: what party 0 sends around, and what each party computes and answers."""

import struct
from collections.abc import Sequence

import numpy as np

from marship.errors import MarshipError, PartyError
from marship.serving.private.mpc import boxes
from marship.serving.private.mpc.boxes import Desk, Question, Sizes
from marship.serving.private.mpc.frames import ANSWERS, BATCH, BEAT, Circle
from marship.serving.private.mpc.model import SharedModel
from marship.serving.private.mpc.program import MOST_ROWS
from marship.serving.private.mpc.protocol import Party
from marship.serving.private.mpc.shares import PARTIES
from marship.serving.private.mpc.streams import MaskStream

IDLE_S = 5.0
"""A session without a batch or a heartbeat for so long is over."""
_COUNT = struct.Struct("<H")
_ENTRY = struct.Struct("<16sH")

Asked = tuple[bytes, int]
"""A request's id and rows."""


class Participant:
    """A party in a session with the two others.

    Args:
        model: Its shares.
        desk: Opens its boxes.
        sizes: The model's.
        circle: Its connections.
        streams: Shared with the party before, and the party after.
    """

    def __init__(
        self,
        model: SharedModel,
        desk: Desk,
        sizes: Sizes,
        circle: Circle,
        streams: tuple[MaskStream, MaskStream],
    ) -> None:
        self._model, self._desk, self._sizes, self.circle = model, desk, sizes, circle
        self._number, self._together = model.number, model.program.together
        self._party = Party(self._number, circle, *streams)

    def check_golden(self) -> None:
        """Replay the golden case with the others, as every session does first.

        Raises:
            PartyError: Outputs are not those of the model that was packed.
        """
        misses = self._model.golden_misses(self._party)
        if misses:
            raise PartyError(
                f"the three parties must compute the golden case as packed, got {misses} outputs "
                "out of tolerance. Check that all archives are of one packing."
            )

    def lead(self, questions: Sequence[Question]) -> list[bytes | MarshipError]:
        """Answer a batch as party 0: each question's response, or its error.

        Raises:
            PartyError: The session is over.
        """
        asked = [(question.id, question.rows) for question in questions]
        entries = b"".join(_ENTRY.pack(*one) for one in asked)
        passed = b"".join(q.boxes[n] for n in (2, 1) for q in questions)
        self.circle.send_message(BATCH, _COUNT.pack(len(asked)) + entries + passed)
        own = self._answers(asked, [question.boxes[0] for question in questions])
        lengths = [1 + self._sizes.answer_bytes(rows) for _, rows in asked]
        total = 2 * sum(lengths)
        _, data = self.circle.receive_message((ANSWERS,), total)
        if len(data) != total:
            raise PartyError(f"party 1 must send answers of {total} bytes, got {len(data)}.")
        others = boxes.cut(data, lengths * 2)
        both = zip(own, others[: len(asked)], others[len(asked) :], strict=True)
        return [_response(one[0], answers) for one, answers in zip(asked, both, strict=True)]

    def beat(self) -> None:
        """Party 0: send a heartbeat around.

        Raises:
            PartyError: The session is over.
        """
        self.circle.send_message(BEAT, b"")
        self.circle.receive_message((BEAT,), 0)

    def follow(self) -> None:
        """Parties 1 and 2: take part in batches, until the session is over.

        Raises:
            PartyError: It is over; why.
        """
        most = _COUNT.size + MOST_ROWS * (_ENTRY.size + self._most_box_bytes())
        while True:
            kind, data = self.circle.receive_message((BATCH, BEAT), most, IDLE_S)
            if kind == BEAT:
                self.circle.send_message(BEAT, b"")
            else:
                self._follow(data)

    def _most_box_bytes(self) -> int:
        return sum(self._sizes.box_bytes(party, 1) for party in range(PARTIES))

    def _follow(self, data: bytes) -> None:
        asked, own = self._read(data)
        answers = b"".join(self._answers(asked, own))
        if self._number == 1:
            _, others = self.circle.receive_message((ANSWERS,), len(answers))
            if len(others) != len(answers):
                raise PartyError(
                    f"party 2 must send answers of {len(answers)} bytes, got {len(others)}."
                )
            answers += others
        self.circle.send_message(ANSWERS, answers)

    def _read(self, data: bytes) -> tuple[list[Asked], tuple[bytes, ...]]:
        """A batch's questions and this party's boxes; party 2 passes party 1's on."""
        after = 0 if self._number == 2 else 2  # noqa: PLR2004  the party that sent it
        fault = PartyError(f"party {after} must send a batch of its form, got another.")
        if len(data) < _COUNT.size:
            raise fault
        (count,) = _COUNT.unpack_from(data)
        start = _COUNT.size + count * _ENTRY.size
        if not 1 <= count <= MOST_ROWS or len(data) < start:
            raise fault
        asked: list[Asked] = list(_ENTRY.iter_unpack(data[_COUNT.size : start]))
        total = sum(rows for _, rows in asked)
        if not all(1 <= rows <= boxes.MOST_ROWS for _, rows in asked) or total > MOST_ROWS:
            raise fault
        numbers = (2, 1) if self._number == 2 else (1,)  # noqa: PLR2004  the party's number
        lengths = [self._sizes.box_bytes(n, rows) for n in numbers for _, rows in asked]
        if len(data) != start + sum(lengths):
            raise fault
        found = boxes.cut(data[start:], lengths)
        if self._number == 2:  # noqa: PLR2004  the party's number
            self.circle.send_message(BATCH, data[:start] + b"".join(found[count:]))
        return asked, found[:count]

    def _answers(self, asked: Sequence[Asked], own: Sequence[bytes]) -> list[bytes]:
        """This party's answer to each question: a status, then what the client alone can read."""
        opened = [self._desk.open(one, box) for one, box in zip(asked, own, strict=True)]
        shares = np.concatenate([each.share for _, each in opened], 1)
        starts = range(self._together, shares.shape[1], self._together)
        pieces = np.split(shares, starts, axis=1)
        outputs = np.concatenate([self._model.run(self._party, piece) for piece in pieces], 1)
        ends = np.cumsum([rows for _, rows in asked])[:-1]
        answers: list[bytes] = []
        for one, (status, each), output in zip(
            asked, opened, np.split(outputs, ends, axis=1), strict=True
        ):
            if status == boxes.OK:
                sealed = boxes.seal_answer(each, output, self._sizes, self._number, one)
            else:
                sealed = bytes(self._sizes.answer_bytes(one[1]))
            answers.append(bytes([status]) + sealed)
        return answers


def _response(request_id: bytes, answers: Sequence[bytes]) -> bytes | MarshipError:
    for party, answer in enumerate(answers):
        if answer[0] != boxes.OK:
            return boxes.refusal(answer[0], party)
    return b"".join([boxes.MAGIC, request_id, *(answer[1:] for answer in answers)])
