"""Adapts a worker's number of threads to the number of workers.

A session's number of threads is fixed at creation. So when the number of workers changes, a new
session with the right number is created beside the old one, checked with the golden cases, and
swapped in between two calls; the old one serves requests meanwhile.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from marship.errors import MarshipError
from marship.serving.model.session import Session, SessionSettings
from marship.serving.model.siblings import Siblings

logger = logging.getLogger(__name__)

CHECK_S = 1.0
MORE_S, FEWER_S = 1.0, 5.0
"""How long a new number must be stable. Workers start one after another; and a crashed one takes
2 to 4 s to restart, for which the others need no new sessions."""


class Share:
    """Keeps a worker's sessions at its share of the cores.

    Args:
        session: The worker's session.
        siblings: The workers that share the cores, including this one.
        others: Its sessions of further graphs.
    """

    def __init__(
        self, session: Session, siblings: Siblings, others: Iterable[Session] = ()
    ) -> None:
        self._sessions, self._siblings = (session, *others), siblings
        self._seen, self._since_s = session.settings.workers, 0.0
        self._is_refused = self._waits = False

    def follow(self) -> None:
        """Start a thread that checks the number of workers."""
        threading.Thread(target=self._follow, name="marship-share", daemon=True).start()

    def _follow(self) -> None:
        while True:
            time.sleep(CHECK_S)
            try:
                self.check(time.monotonic())
            except OSError:  # the model is being unregistered, and its folder is gone
                return

    def check(self, now_s: float) -> None:
        """Count the workers, and renew the session if a new number is stable.

        Raises:
            OSError: They cannot be counted.
        """
        count = self._siblings.count()
        settings = next(self._outdated(count), self._sessions[0]).settings
        if count != self._seen:
            self._seen, self._since_s, self._is_refused = count, now_s, False
        lasts_s = MORE_S if count > settings.workers else FEWER_S
        if count == settings.workers or self._is_refused or now_s - self._since_s < lasts_s:
            return
        self._renew(replace(settings, workers=count))

    def _outdated(self, count: int) -> Iterator[Session]:
        return (session for session in self._sessions if session.settings.workers != count)

    def _renew(self, settings: SessionSettings) -> None:
        try:
            with self._siblings.one_at_a_time():
                done = all(one.renew(settings) for one in self._outdated(settings.workers))
        except MarshipError as error:  # the old session stays
            self._is_refused = True
            logger.warning("threads cannot be adjusted to the new number of workers: %s", error)
            return
        if done:
            logger.info("workers: %d, threads of each: %d", settings.workers, settings.threads)
        elif not self._waits:
            logger.warning("threads are unchanged until memory has room for a second model")
        self._waits = not done
