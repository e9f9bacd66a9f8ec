"""The versions of a model as several clients change them: which are there, and taking one back."""

from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus

from marship.engines.engine import ModelStatus
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.status import checked_name, describe, optional, unknown
from marship.errors import NotFoundError, ServerError
from marship.exchange.calls import Call, Flow, Pause, path

_PAGE = 100
_WITHDRAWALS = 10
_WITHDRAW_POLL_S = 0.2


def names(access: Access) -> Flow[list[str]]:
    """The names of all models."""
    found: list[str] = []
    page: str | None = "0"
    while page is not None:
        params = {"limit": str(_PAGE), "next_page_token": page}
        answer = yield from access.authorized(Call("management", "GET", "/models", params))
        listed = answer.json()
        found += [entry["modelName"] for entry in listed["models"]]
        page = listed.get("nextPageToken")
    return found


def all_versions(access: Access, name: str | None) -> Flow[list[ModelStatus]]:
    """All versions of a model, or of all models where the name is None; there may be none."""
    found: list[ModelStatus] = []
    for model in (yield from names(access)) if name is None else [name]:
        with suppress(NotFoundError):
            found += yield from describe(access, model, "all")
    return found


def set_default(access: Access, name: str, version: str) -> Flow[None]:
    """Make a version the one that answers where none is named.

    Raises:
        NotFoundError: There is no such model or version.
    """
    where = path("models", checked_name(name), version, "set-default")
    try:
        yield from access.authorized(Call("management", "PUT", where))
    except NotFoundError as error:
        raise unknown(name, version) from error


def unregister(access: Access, name: str, version: str | None = None) -> Flow[None]:
    """Remove a version, or the default one, and end its workers.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: It is the default version, and there are others.
    """
    where = path("models", checked_name(name), *optional(version))
    try:
        yield from access.authorized(Call("management", "DELETE", where))
    except NotFoundError as error:
        raise unknown(name, version) from error


def withdraw(access: Access, status: ModelStatus, *, leaves_last: bool = False) -> Flow[None]:
    """Unregister a version, if it is still the one that its registration created.

    TorchServe removes a default version only where there is no other. So another one becomes
    the default first: one that is ready, of several the newest.

    Args:
        access: The server's addresses and tokens.
        status: The version, as `register` returned it.
        leaves_last: Leave it where all others are gone by now and it is ready.

    Raises:
        ServerError: The server refused, or it is left.
    """
    name, version = status.name, status.version
    refusal: ServerError | None = None
    for attempt in range(_WITHDRAWALS):
        if attempt:
            yield Pause(_WITHDRAW_POLL_S)
        found = yield from all_versions(access, name)
        mine = [s for s in found if s.registration == status.registration]
        if not mine or not status.registration:
            return
        others = [s for s in found if s.version != version]
        if leaves_last and not others and mine[0].ready:
            raise ServerError(f"{name} {version} stays, since other clients removed all others.")
        try:
            yield from _make_way(access, name, version, others)
            yield from unregister(access, name, version)
        except NotFoundError:  # another version, or this one, has just gone
            continue
        except ServerError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            refusal = error  # it has become the default meanwhile
            continue
        return
    raise refusal or ServerError(f"{name} must keep its versions for a moment, got others. Retry.")


def _make_way(access: Access, name: str, version: str, others: Sequence[ModelStatus]) -> Flow[None]:
    """If a version is the default, and there are others, make the best of them the default."""
    (default,) = yield from describe(access, name)
    if default.version == version and others:
        yield from set_default(access, name, max(others, key=_fitness).version)


def _fitness(status: ModelStatus) -> tuple[bool, list[int]]:
    numbers = [int(part) for part in status.version.split(".") if part.isdecimal()]
    return status.ready > 0, numbers
