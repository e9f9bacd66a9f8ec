"""One registration: what it asks for, what it creates, and taking back that and nothing else.

Several clients may change one model at the same time. So a registration has an id, which the
server tells with the version (`status.marked`), and what a client takes back is what has its id:
never what merely appeared meanwhile, or has the same number.
"""

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from marship.engines.engine import ModelStatus, Note, Registration
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.status import checked_name, marked
from marship.engines.torchserve.store import Identity
from marship.engines.torchserve.versions import all_versions, withdraw
from marship.errors import (
    MarshipError,
    NoAnswerError,
    NotFoundError,
    NotRunningError,
    ServerError,
    UsageError,
)
from marship.exchange.calls import Call, Flow, Pause

_LOOK_S = 0.2
_UNANSWERED_S = 10.0
"""How long a version is looked for whose registration had no response: it appears unpacked."""


def check(wanted: Registration) -> None:
    """Make sure that a server can be asked for it.

    Raises:
        UsageError: The archive is no file name, or the model's name cannot be used.
    """
    if Path(wanted.archive).name != wanted.archive or wanted.archive.startswith("."):
        raise UsageError(
            f"an archive must be the name of a file in the model store, got "
            f"{wanted.archive!r}. Put the file there and give its name alone."
        )
    if wanted.name is not None:
        checked_name(wanted.name)


@dataclass(frozen=True, slots=True)
class Admitted:
    """An archive at hand that may be registered: what it is, and a digest of its files."""

    identity: Identity
    files: str | None


class Own:
    """One registration: what it creates, and taking back that and nothing else."""

    def __init__(self, access: Access, wanted: Registration, admitted: Admitted | None) -> None:
        self._access, self._wanted, self._admitted = access, wanted, admitted
        self._id = secrets.token_hex(8)
        self._name = wanted.name or (admitted.identity.name if admitted else None)
        self._is_asked = self._is_unanswered = False
        self._is_first = True

    def note(self) -> Note:
        """What is kept of it in the home."""
        files = self._admitted.files if self._admitted else None
        return Note(self._id, files, self._wanted.batch_size, self._wanted.max_batch_delay_ms)

    def ask(self) -> Flow[None]:
        """Ask the server for it.

        Raises:
            NotFoundError: The server's store does not hold the archive.
            ServerError: The server refused, or gave no response.
        """
        if self._name is not None:
            self._is_first = not (yield from all_versions(self._access, self._name))
        self._is_asked = self._is_unanswered = True
        try:
            yield from _post(self._access, self._wanted, self._name, self._id)
        except MarshipError as error:
            self._is_asked = not isinstance(error, NotRunningError)
            self._is_unanswered = isinstance(error, NoAnswerError)
            raise
        self._is_unanswered = False

    def made(self) -> Flow[ModelStatus]:
        """The version that it created.

        Raises:
            NotFoundError: Another client unregistered it at once.
        """
        status = yield from self._made()
        if status is None:
            raise self._gone()
        return status

    def checked(self, status: ModelStatus) -> ModelStatus:
        """A status, if it is of the version that this registration made.

        Raises:
            NotFoundError: Another client put a version of its own in its place.
        """
        if status.registration != self._id:
            raise self._gone()
        return status

    def withdraw(self, error: BaseException) -> Flow[None]:
        """Take back what it created, if it did; notes on the error say what could not be.

        Tried a second time if it is interrupted, or a response is lost; a third would be an
        operator who means it.
        """
        if not self._is_asked:
            return
        try:
            yield from self._take_back()
        except GeneratorExit:
            raise
        except BaseException as second:
            try:
                yield from self._take_back()
            except MarshipError as third:
                error.add_note(f"{self} may still be registered: {third}")
            if not isinstance(second, MarshipError):
                raise

    def _take_back(self) -> Flow[None]:
        made = yield from self._made()
        if made is not None:
            yield from withdraw(self._access, made, leaves_last=not self._is_first)

    def _made(self) -> Flow[ModelStatus | None]:
        """What it created; a server that had no time to respond may do so a little later."""
        end = time.monotonic() + _UNANSWERED_S
        while True:
            found = yield from all_versions(self._access, self._name)
            mine = [status for status in found if status.registration == self._id]
            if mine or not self._is_unanswered or self._is_refused(found):
                return mine[0] if mine else None
            if time.monotonic() > end:
                raise ServerError("the server may not have unpacked it yet. See: marship models")
            yield Pause(_LOOK_S)

    def _is_refused(self, found: Iterable[ModelStatus]) -> bool:
        """Whether another client's version stands in its place: the server refuses a second."""
        if self._name is None or self._admitted is None:
            return False
        place = (self._name, self._admitted.identity.version)
        return place in {(status.name, status.version) for status in found}

    def _gone(self) -> NotFoundError:
        return NotFoundError(
            f"{self} must stay registered while its workers load, got it unregistered by another "
            "client. Register it again."
        )

    def __str__(self) -> str:
        version = f" {self._admitted.identity.version}" if self._admitted else ""
        return f"{self._name or self._wanted.archive}{version}"


def _post(access: Access, wanted: Registration, name: str | None, id_: str) -> Flow[None]:
    url = marked(wanted.archive, id_)
    params = {"url": url, "synchronous": "false"}
    optional = {
        "model_name": name,  # else TorchServe takes the archive's own
        "initial_workers": wanted.workers,
        "batch_size": wanted.batch_size,
        "max_batch_delay": wanted.max_batch_delay_ms,
    }
    params |= {key: str(value) for key, value in optional.items() if value is not None}
    try:
        yield from access.authorized(Call("management", "POST", "/models", params))
    except NotFoundError as error:
        raise NotFoundError(
            f"{wanted.archive} must lie in the server's model store, got none there."
        ) from error
    except MarshipError as error:  # the id means nothing to who reads TorchServe's message
        error.args = (str(error).replace(url, wanted.archive),)
        raise
