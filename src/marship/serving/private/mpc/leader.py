"""Party 0's session with the others: kept alive by heartbeats, made anew after any fault."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence

from marship.errors import LoadError, MarshipError, PartyError
from marship.serving.private.mpc.boxes import Question
from marship.serving.private.mpc.links import BusyError, Link
from marship.serving.private.mpc.party import Participant
from marship.serving.private.mpc.program import MOST_ROWS

logger = logging.getLogger(__name__)

BEAT_S = 1.0
"""Between heartbeats of an idle session."""
_FIRST_S, _LONGEST_S = 0.05, 1.0
START_S = 10.0

Dial = Callable[[int, str], Link]
Sit = Callable[[Link, Link], Participant]


class Leader:
    """Answers questions with parties 1 and 2.

    The streams of random words are out of step after any fault, so nothing is repaired: the session
    ends at all parties, and a fresh one begins.

    Args:
        dial: Connects to a party for a session.
        sit: Party 0 in a session, of its links to the parties before it and after it.

    Attributes:
        participant: Party 0 in the session that runs; None between sessions.
    """

    def __init__(self, dial: Dial, sit: Sit) -> None:
        self._dial, self._sit = dial, sit
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._tried = threading.Event()
        self._is_over = False
        self.participant: Participant | None = None
        self._fault: PartyError = PartyError("the parties must be connected, got none yet.")

    def start(self) -> None:
        """Connect, and stay connected in the background.

        Returns after the first session began, or could not: the others may start later.

        Raises:
            LoadError: The others have a session with another worker of this model.
        """
        threading.Thread(target=self._keep, name="parties", daemon=True).start()
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.participant is None:
            self._tried.wait(START_S)
            if not isinstance(self._fault, BusyError):
                return
            self._tried.clear()
        if self.participant is None:
            fault = self._fault
            self.stop()
            raise LoadError(str(fault)) from fault

    def stop(self) -> None:
        """End the session for good."""
        self._is_over = True
        self._wake.set()
        with self._lock:
            self._end(PartyError("party 0 must be there, got its end."))

    def ask(self, questions: Sequence[Question]) -> list[bytes | MarshipError]:
        """Each question's response, or its error; never raises."""
        answers: list[bytes | MarshipError] = []
        for some in _split(questions):
            with self._lock:
                answers += self._ask(some)
        return answers

    def _ask(self, questions: list[Question]) -> list[bytes | MarshipError]:
        if self.participant is None:
            return [PartyError(str(self._fault)) for _ in questions]
        try:
            return self.participant.lead(questions)
        except PartyError as error:
            self._end(error)
            return [PartyError(str(error)) for _ in questions]
        except Exception:
            self._end(PartyError("party 0 must compute every batch, and failed: see its log."))
            raise

    def _end(self, fault: PartyError) -> None:
        """Forget the session, and begin another soon."""
        seat, self.participant, self._fault = self.participant, None, fault
        if seat is not None:
            logger.warning("the session with the other parties ended: %s", fault)
            seat.circle.close(str(fault))
        self._wake.set()

    def _keep(self) -> None:
        pause_s = _FIRST_S
        while not self._is_over:
            if self.participant is None:
                self._connect_safely()
                pause_s = _FIRST_S if self.participant else min(2 * pause_s, _LONGEST_S)
                self._tried.set()
            self._wake.wait(BEAT_S if self.participant else pause_s)
            self._wake.clear()
            with self._lock:
                self._beat()

    def _beat(self) -> None:
        if self.participant is None:
            return
        try:
            self.participant.beat()
        except PartyError as error:
            self._end(error)
        except Exception:  # whatever it is, this thread alone can begin another session
            logger.exception("a heartbeat failed")
            self._end(PartyError("party 0 must send heartbeats, and failed: see its log."))

    def _connect_safely(self) -> None:
        try:
            self._connect()
        except Exception:  # whatever it is, this thread alone can try again
            logger.exception("no session with the other parties")
            self._fault = PartyError("party 0 must begin a session, and failed: see its log.")

    def _connect(self) -> None:
        session = secrets.token_hex(16)
        links: list[Link] = []
        seat: Participant | None = None
        try:
            links += [self._dial(1, session), self._dial(2, session)]
            seat = self._sit(links[1], links[0])
            seat.check_golden()
        except PartyError as error:
            if str(error) != str(self._fault):
                logger.warning("no session with the other parties: %s", error)
            self._fault = error
            _close(seat, links, str(error))
            return
        except Exception:
            _close(seat, links, "party 0 failed")
            raise
        self.participant = seat
        logger.info("a session with parties 1 and 2 began")


def _close(seat: Participant | None, links: Sequence[Link], why: str) -> None:
    if seat is not None:
        seat.circle.close(why)
    for link in links:
        link.close()


def _split(questions: Sequence[Question]) -> list[list[Question]]:
    """Batches of at most `MOST_ROWS` rows."""
    batches: list[list[Question]] = []
    rows = MOST_ROWS
    for question in questions:
        if rows + question.rows > MOST_ROWS:
            batches.append([])
            rows = 0
        batches[-1].append(question)
        rows += question.rows
    return batches
