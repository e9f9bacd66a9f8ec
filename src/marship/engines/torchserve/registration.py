"""One registration: its request, the version it creates, and undoing exactly that.

Several clients may change one model concurrently. So a registration has an id, which the server
reports with the version (`status.marked`), and a client undoes only what has its id: never a
version that merely appeared meanwhile, or has the same number.
"""

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from marship.engines.engine import ModelStatus, Note, Registration
from marship.engines.names import checked_name
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.status import marked
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
_NO_RESPONSE_S = 10.0
"""How long to look for a version after a lost response: it appears once it is unpacked."""


def check(wanted: Registration) -> None:
    """Validate a registration.

    Raises:
        UsageError: The archive is not a file name, or the model's name or the batch size is
            invalid.
    """
    if Path(wanted.archive).name != wanted.archive or wanted.archive.startswith("."):
        raise UsageError(
            f"an archive must be the name of a file in the model store, or its path there, got "
            f"{wanted.archive!r}. Put the file there and give its name."
        )
    if wanted.batch_size is not None and wanted.batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {wanted.batch_size}.")
    if wanted.name is not None:
        checked_name(wanted.name)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A local archive that may be registered: its identity, and a digest of its files."""

    identity: Identity
    files: str | None


class OwnRegistration:
    """A registration by this client, which can be undone."""

    def __init__(self, access: Access, wanted: Registration, admitted: Admitted | None) -> None:
        self._access, self._wanted, self._admitted = access, wanted, admitted
        self._id = secrets.token_hex(8)
        self._name = wanted.name or (admitted.identity.name if admitted else None)
        self._is_sent = self._lacks_response = False
        self._is_first = True

    def note(self) -> Note:
        """The record of it for the home."""
        files = self._admitted.files if self._admitted else None
        return Note(self._id, files, self._wanted.batch_size, self._wanted.max_batch_delay_ms)

    def send(self) -> Flow[None]:
        """Send it to the server.

        Raises:
            NotFoundError: The archive is not in the server's store.
            ServerError: The server rejected it, or did not respond.
        """
        if self._name is not None:
            self._is_first = not (yield from all_versions(self._access, self._name))
        self._is_sent = self._lacks_response = True
        try:
            yield from _post(self._access, self._wanted, self._name, self._id)
        except MarshipError as error:
            self._is_sent = not isinstance(error, NotRunningError)
            self._lacks_response = isinstance(error, NoAnswerError)
            raise
        self._lacks_response = False

    def created(self) -> Flow[ModelStatus]:
        """The version that was created.

        Raises:
            NotFoundError: Another client unregistered it meanwhile.
        """
        status = yield from self._find_created()
        if status is None:
            raise self._gone()
        return status

    def checked(self, status: ModelStatus) -> ModelStatus:
        """The status, if it is of the version that this registration created.

        Raises:
            NotFoundError: Another client replaced it by its own version.
        """
        if status.registration != self._id:
            raise self._gone()
        return status

    def withdraw(self, error: BaseException) -> Flow[None]:
        """Undo what it created, if anything; notes on the error say what could not be undone.

        Retried once after an interrupt or a lost response; a third interrupt is taken as
        deliberate.
        """
        if not self._is_sent:
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
        created = yield from self._find_created()
        if created is not None:
            yield from withdraw(self._access, created, leaves_last=not self._is_first)

    def _find_created(self) -> Flow[ModelStatus | None]:
        """The created version; after a lost response the server may create it a little later."""
        end = time.monotonic() + _NO_RESPONSE_S
        while True:
            found = yield from all_versions(self._access, self._name)
            mine = [status for status in found if status.registration == self._id]
            if mine or not self._lacks_response or self._is_refused(found):
                return mine[0] if mine else None
            if time.monotonic() > end:
                raise ServerError("the server may not have unpacked it yet. See: marship models")
            yield Pause(_LOOK_S)

    def _is_refused(self, found: Iterable[ModelStatus]) -> bool:
        """Whether another client's version exists already: the server rejects a second one."""
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
        "model_name": name,  # otherwise TorchServe uses the archive's own
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
    except MarshipError as error:  # the id in TorchServe's message is meaningless to the user
        error.args = (str(error).replace(url, wanted.archive),)
        raise
