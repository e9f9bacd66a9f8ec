"""Requests that failed before a worker had them, or with one that died: counted and logged."""

from collections.abc import Mapping
from pathlib import Path

from marship.errors import MarshipError
from marship.serving import sheet
from marship.serving.hosts.direct import request_log
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.journal import Journal
from marship.serving.hosts.direct.limits import error_reply
from marship.serving.hosts.direct.seats import Seats
from marship.serving.message import Reply
from marship.serving.sheet import Labels, Sheet


class Failures:
    """Errors that an acceptor gives.

    Args:
        seats: Knows which versions are registered: no other one gets a label, or clients could
            make up as many series as they like.
    """

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._sheet = Sheet()
        self._log: request_log.RequestLog | None = None

    def share(self, folder: Path, variables: Mapping[str, str]) -> None:
        """Count and log where the workers do.

        Args:
            folder: Of the sheets; what was counted stays there for the next acceptor.
            variables: Of the workers' environment.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._sheet = sheet.claimed(folder, "", "")
        self._log = request_log.told(variables)

    def add(
        self, model: str, version: str | None, reply: Reply, exchange: Exchange | None = None
    ) -> None:
        """Add an error that a client got.

        Args:
            model: As the request names it; empty where it names none, or nobody knows.
            version: Likewise; None is the default one.
            reply: The error.
            exchange: The request; None where a worker has read it, or nobody.
        """
        model, version = self._seats.named(model, version)
        code = ("code", reply.outcome)
        labels: Labels = (code,)
        if self._seats.is_registered(model, version):
            labels = (("model_name", model), ("model_version", version), code)
        self._sheet.values[self._place(labels)] += 1
        if self._log is None:
            return
        journal = Journal(model, version, self._log, None)
        if exchange is None:
            journal.lost(reply)
        else:
            journal.refused(exchange, reply)

    def add_error(self, model: str, version: str | None, error: MarshipError) -> None:
        """Add an error that nothing more is known of."""
        self.add(model, version, error_reply(error))

    def _place(self, labels: Labels) -> int:
        try:
            return self._sheet.place("marship_errors_total", "counter", labels)
        except ValueError:  # too many versions since the start
            return self._sheet.spare
